# Commands that file systems do not send: compare, write zeroes, verify, deallocate, flush, which blocks are
# allocated, and those that must fail.

port="$(ask engine start 'uring://@/disk?size=64MiB&block=4096')"
connect
device="$(block 1)"
random_file /tmp/data 1

dd if=/tmp/data of="$device" bs=64k oflag=direct
head -c 65536 /tmp/data > /tmp/first
nvme compare "$device" -s 0 -c 15 -z 65536 -d /tmp/first
if nvme compare "$device" -s 1 -c 15 -z 65536 -d /tmp/first; then fail "other blocks compare equal"; fi
nvme verify "$device" -s 0 -c 15
nvme flush "$device"

# zeros FIRST COUNT: blocks that read as zeros.
zeros() {
    dd if="$device" bs=4096 skip="$1" count="$2" iflag=direct 2> /dev/null | cmp -n $(($2 * 4096)) - /dev/zero
}

nvme write-zeroes "$device" -s 2 -c 3
zeros 2 4
nvme write-zeroes "$device" -s 8 -c 3 --deac
zeros 8 4
nvme dsm "$device" -d -s 16 -b 16
zeros 16 16
if zeros 32 1; then fail "a neighbour was taken too"; fi
dd if="$device" bs=4096 count=2 iflag=direct 2> /dev/null | cmp -n 8192 - /tmp/data

# allocated FIRST COUNT: asks which of these blocks are.
allocated() {
    nvme get-lba-status "$device" --start-lba="$1" --range-len="$2" --max-dw=1023 --action=2 > /tmp/answer
    cat /tmp/answer
    grep -q '(CMPC): 2$' /tmp/answer || fail "not all is told of $2 blocks from $1 on"
}

allocated 16 16
grep -q '(NLSD): 0$' /tmp/answer || fail "a hole counts as allocated"
allocated 12 24
expect "$(grep -c 'NLB: 0x00000004' /tmp/answer)" 2 "four blocks before the hole, and four behind it"
if nvme get-lba-status "$device" --start-lba=0 --range-len=16 --max-dw=1023 --action=17; then
    fail "blocks that may be unrecoverable are told of"
fi

end=$((64 * 1024 * 1024 / 4096))
for command in "read -z 4096 -d /tmp/read" "write -z 4096 -d /tmp/first" "write-zeroes" "verify"; do
    # shellcheck disable=SC2086
    if nvme ${command%% *} "$device" -s "$end" -c 0 ${command#"${command%% *}"}; then
        fail "${command%% *} beyond the end"
    fi
done
disconnect
