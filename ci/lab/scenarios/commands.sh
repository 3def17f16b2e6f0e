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

# ask_status ACTION FIRST COUNT: Get LBA Status; nvme-cli has a command for it that gives the kernel no room
# for the answer.
ask_status() {
    nvme admin-passthru "$device" --opcode=0x86 --namespace-id=1 --cdw10="$2" --cdw12=1023 \
        --cdw13=$(($1 << 24 | $3)) --data-len=4096 --read --raw-binary > /tmp/answer
}
# told AT BYTES: a number of the answer.
told() {
    od -An -v -t "u$2" -j "$1" -N "$2" /tmp/answer | tr -d ' '
}

ask_status 2 16 16
expect "$(told 0 4)" 0 "a hole has no ranges that are allocated"
expect "$(told 4 1)" 2 "all is told of it"
ask_status 2 12 24
expect "$(told 0 4)" 2 "blocks before the hole, and behind it"
expect "$(told 8 8) $(told 16 4) $(told 24 8) $(told 32 4)" "12 4 32 4" "four blocks each"
if ask_status 17 0 16; then fail "blocks that may be unrecoverable are told of"; fi

end=$((64 * 1024 * 1024 / 4096))
for command in "read -z 4096 -d /tmp/read" "write -z 4096 -d /tmp/first" "write-zeroes" "verify"; do
    # shellcheck disable=SC2086
    if nvme ${command%% *} "$device" -s "$end" -c 0 ${command#"${command%% *}"}; then
        fail "${command%% *} beyond the end"
    fi
done
disconnect
