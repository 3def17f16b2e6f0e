# Namespaces grow, come and go while the kernel uses the subsystem, and a file system grows with its
# namespace.
#
# kernel may say: detected capacity change

port="$(ask engine start 'uring://@/disk?size=64MiB&block=4096')"
connect
device="$(block 1)"
mkfs.ext4 -q "$device"
mkdir -p /mnt
mount -t ext4 "$device" /mnt
random_file /mnt/file 20
sum="$(sha256sum < /mnt/file)"

has_bytes() { [ "$(bytes_of "$1")" = "$2" ]; }

ask namespace resize 1 256MiB
until_true 30 has_bytes "$device" 268435456
resize2fs "$device"
random_file /mnt/more 120
drop_caches
expect "$(sha256sum < /mnt/file)" "$sum" "content of a file from before"

ask namespace add 'malloc:///two?size=8MiB'
two="$(block 2)"
dd if=/dev/urandom of="$two" bs=64k count=16 oflag=direct
ask namespace list
ask namespace remove 2
until_true 30 block_is_gone 2
if ask namespace remove 2; then fail "there is no namespace 2 any more"; fi

umount /mnt
e2fsck -f -n "$device"
disconnect
