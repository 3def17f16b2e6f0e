# A file system lives through the engine being killed and started again: no error reaches it, it is clean, and
# what was synced is there.
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

port="$(ask engine start 'uring://@/disk?size=128MiB&block=4096')"
connect --hdr-digest --data-digest
device="$(block 1)"
mkfs.ext4 -q "$device"
mkdir -p /mnt
mount -t ext4 "$device" /mnt

wrote() { [ -s /tmp/progress ] && [ "$(cat /tmp/progress)" -ge "$1" ]; }

lab records write /mnt/records --slots 512 --seconds 15 --progress /tmp/progress &
writer=$!
until_true 60 wrote 30
ask engine kill
random_file /mnt/meanwhile 2 &
other=$!
sleep 2
ask engine restart
until_true 60 state_is live
wait "$writer" || fail "the writer saw an error"
wait "$other" || fail "the other writer saw an error"
sum="$(sha256sum < /mnt/meanwhile)"
umount /mnt
e2fsck -f -n "$device"
mount -t ext4 "$device" /mnt
lab records verify /mnt/records --slots 512 --durable "$(cat /tmp/progress)"
expect "$(sha256sum < /mnt/meanwhile)" "$sum" "what was written while the engine was away"
umount /mnt
disconnect
