# What nvme-cli asks of controllers and namespaces is answered with what is true: identify, logs and features.

# field NAME FILE: the value behind a name in what nvme-cli prints.
field() { sed -n "s/^$1[[:space:]]*: *\(.*[^ ]\) *\$/\1/p" "$2" | head -n 1; }

# is NAME VALUE: the last answer has this value.
is() { expect "$(field "$1" /tmp/answer)" "$2" "$1"; }

# answer COMMAND ARGUMENT...: asks the controller or namespace.
answer() { nvme "$@" > /tmp/answer || fail "nvme $*"; cat /tmp/answer; }

port="$(ask engine start 'malloc:///one?size=16MiB&block=4096' 'malloc:///two?size=8MiB&block=512')"
connect
device="$(block 1)"
small="$(block 2)"
controller="/dev/$(controller)"

nvme list
nvme list | grep -q "Pollux" || fail "nvme list does not tell the model"

answer id-ctrl "$controller"
is mn Pollux
is subnqn "$nqn"
is sqes 0x66
is cqes 0x44
is mdts 8
is ioccsz 516
is cntrltype 1
is oacs 0x200
expect "$(field vwc /tmp/answer)" 0x6 "no volatile write cache, but flush of all namespaces"

answer id-ns "$device"
is nsze 0x1000
is ncap 0x1000
is nmic 0x1
grep -q 'lbads:12 .*in use' /tmp/answer
answer id-ns "$small"
is nsze 0x4000
grep -q 'lbads:9 .*in use' /tmp/answer
answer ns-descs "$device"
uuid="$(field uuid /tmp/answer)"
expect "$uuid" "$(cat "/sys/block/${device##*/}/uuid")" "the UUID that the kernel knows"
answer list-ns "$controller"
expect "$(grep -c '^\[' /tmp/answer)" 2 "namespaces in the list"

answer get-feature "$controller" -f 7 -H
grep -q 'Number of IO Completion Queues Allocated' /tmp/answer
answer get-feature "$controller" -f 0xb
answer get-feature "$controller" -f 0xf
if nvme get-feature "$controller" -f 0xc0; then fail "there is no feature c0h"; fi

answer smart-log "$controller"
is critical_warning 0
before="$(field host_write_commands /tmp/answer)"
dd if=/dev/zero of="$device" bs=4096 count=10 oflag=direct
answer smart-log "$controller"
expect "$(field host_write_commands /tmp/answer)" "$((before + 10))" "writes that the controller counted"

answer error-log "$controller" -e 4
errors="$(field error_count /tmp/answer)"
if nvme read "$device" -s 0x1000 -c 0 -z 4096 -d /tmp/read; then fail "there is no such block"; fi
answer error-log "$controller" -e 4
expect "$(field error_count /tmp/answer)" "$((errors + 1))" "errors that the controller counted"

answer fw-log "$controller"
answer effects-log "$controller"
answer supported-log-pages "$controller"
answer changed-ns-list-log "$controller"
disconnect
