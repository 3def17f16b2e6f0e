# xfs is made, filled, unmounted and checked; after a new connection its content is what was written, and
# what is discarded gives its space back on the host.
#
# time limit: 240 s

port="$(ask engine start 'uring://@/disk?size=512MiB&block=4096')"
connect
device="$(block 1)"
mkfs.xfs -q "$device"
mkdir -p /mnt
mount -t xfs "$device" /mnt
for number in 1 2 3 4; do
    random_file "/mnt/large-$number" 12
done
mkdir /mnt/small
for number in $(seq 200); do
    echo "file $number" > "/mnt/small/$number"
done
(cd /mnt && find . -type f -exec sha256sum {} + > /tmp/sums)
umount /mnt
xfs_repair -n "$device"
disconnect

connect --data-digest
device="$(block 1)"
mount -t xfs "$device" /mnt
(cd /mnt && sha256sum -c /tmp/sums > /tmp/checked) || { grep -v OK /tmp/checked; fail "content changed"; }
expect "$(wc -l < /tmp/checked)" 204 "files"

full="$(ask allocated disk)"
rm /mnt/large-1 /mnt/large-2 /mnt/large-3
# gave_back BYTES: what is freed may be known to the file system a little later only.
gave_back() {
    sync
    fstrim /mnt
    [ $((full - $(ask allocated disk))) -ge "$1" ]
}
until_true 20 gave_back $((30 * 1024 * 1024))
umount /mnt
xfs_repair -n "$device"
disconnect
