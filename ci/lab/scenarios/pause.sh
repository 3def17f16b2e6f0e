# An idle connection stays; an engine that stands still for longer than the keep alive timeout is given up,
# and found again when it goes on, without an error for who writes.
#
# time limit: 180 s
# kernel may say: starting error recovery
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:
# kernel may say: Reconnecting in
# kernel may say: Failed reconnect attempt
# kernel may say: failed nvme_keep_alive_end_io
# kernel may say: keep-alive
# kernel may say: timeout
# kernel may say: I/O Cmd

port="$(ask engine start 'malloc:///disk?size=64MiB')"
connect --keep-alive-tmo=4
device="$(block 1)"
sleep 12
expect "$(cat "/sys/class/nvme/$(controller)/state")" live "state after an idle time"
if dmesg | grep -q 'error recovery'; then fail "the connection did not last"; fi

random_file /tmp/data 8
dd if=/tmp/data of="$device" bs=64k conv=fsync
ask engine pause
dd if=/tmp/data of="$device" bs=64k seek=128 conv=fsync &
writer=$!
sleep 12
ask engine resume
until_true 90 state_is live
wait "$writer" || fail "the writer saw an error"
drop_caches
for first in 0 128; do
    dd if="$device" bs=64k skip="$first" count=128 iflag=direct 2> /dev/null | cmp - /tmp/data
done
disconnect
