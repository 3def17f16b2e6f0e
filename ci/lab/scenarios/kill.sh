# The engine is killed in the middle of writing, twice, and started again: the kernel reconnects, the writer
# never sees an error, and every record that was made durable is on the device, at once and in the end.
#
# time limit: 240 s
# kernel may say: starting error recovery
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:
# kernel may say: failed to connect socket
# kernel may say: queue_rq returned
# kernel may say: Reconnecting in
# kernel may say: Failed reconnect attempt
# kernel may say: failed nvme_keep_alive_end_io

port="$(ask engine start 'uring://@/disk?size=64MiB&block=4096')"
connect
device="$(block 1)"
mkfs.ext4 -q "$device"
mkdir -p /mnt
mount -t ext4 "$device" /mnt
umount /mnt

# wrote AT_LEAST: whether so many records are durable.
wrote() { [ -s /tmp/progress ] && [ "$(cat /tmp/progress)" -ge "$1" ]; }

lab records write "$device" --slots 256 --seconds 25 --progress /tmp/progress &
writer=$!
for round in 1 2; do
    until_true 60 wrote $((round * 40))
    durable="$(cat /tmp/progress)"
    ask engine kill
    # Nothing of it may have been in the memory of the engine only.
    ask copy disk "after-$round"
    ask records "after-$round" 256 "$durable" || fail "a durable record is not on the device"
    sleep 2
    ask engine restart
    until_true 60 state_is live
    until_true 60 wrote $((durable + 20))
done
wait "$writer" || fail "the writer saw an error"
drop_caches
lab records verify "$device" --slots 256 --durable "$(cat /tmp/progress)"
disconnect
