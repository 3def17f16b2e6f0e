# The node service of the CSI driver, with a real kernel: a volume is connected by its identity, formatted,
# mounted, published twice, filled, grown while it is mounted, taken away, and has its data when it is back.
# A block device is a file where it is published. What holds data is not formatted, and what is in use is not
# taken away.
#
# time limit: 300 s
# kernel may say: I/O fail on reconnect controller
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:
# programs: pollux-engine pollux-csi

address=10.0.2.15
ip link set lo up
ip address del 127.0.0.1/8 dev lo
nqn=nqn.2026-11.io.pollux:volume:0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01
files=0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01
device=0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f02
cat > /tmp/engine.toml <<END
[nvmf]
listen = ["$address:4422", "$address:4423"]
subsystem = "$nqn"
[[namespaces]]
uri = "malloc:///files?size=96MiB"
uuid = "$files"
[[namespaces]]
uri = "malloc:///device?size=16MiB"
uuid = "$device"
END
pollux-engine serve --config /tmp/engine.toml --cores 0 --grpc unix:/tmp/engine.sock --log-format json \
    > /tmp/engine 2>&1 &
engine=$!
until_true 60 grep -q '"message":"serving"' /tmp/engine || { cat /tmp/engine >&2; fail "no engine"; }

csi_start --topology zone=z1 --keep-alive 30
# refused CODE CALL...: the call fails with this code.
refused() {
    local code="$1"
    shift
    if csi "$@" 2> /tmp/refusal; then fail "$* is taken"; fi
    grep -q "$code" /tmp/refusal || { cat /tmp/refusal >&2; fail "$*: not $code"; }
}
context() {
    echo "--context subsystemNqn=$nqn --context namespaceUuid=$1 --context readOnly=false" \
        "--context paths=$address:4422,$address:4423"
}
csi info | grep -qx 'node nqn.2026-11.io.pollux:node:default:guest'

# Twice at once, and once more: one connection by each path, one file system.
began="$(now)"
csi stage --volume files --staging /mnt/staging --fs ext4 $(context "$files") &
csi stage --volume files --staging /mnt/staging --fs ext4 $(context "$files")
wait $!
tell "staged after $(seconds_since "$began") s, with mkfs.ext4"
csi stage --volume files --staging /mnt/staging --fs ext4 $(context "$files")
paths_are() { [ "$(cat /sys/class/nvme/nvme*/state 2> /dev/null | grep -c live)" = "$1" ]; }
until_true 30 paths_are 2
expect "$(grep -c ' /mnt/staging ' /proc/mounts)" 1 "mounts"
csi publish --volume files --staging /mnt/staging --fs ext4 --target /mnt/pod
csi publish --volume files --staging /mnt/staging --fs ext4 --target /mnt/reader --read-only
random_file /mnt/pod/data 8
sha256sum /mnt/pod/data > /tmp/sum
cmp /mnt/pod/data /mnt/reader/data
if touch /mnt/reader/file; then fail "a reader writes"; fi
csi stats --volume files --target /mnt/pod | tee /tmp/stats
grep -q 'abnormal false: 2 paths' /tmp/stats
refused FailedPrecondition unstage --volume files --staging /mnt/staging

# It grows while it is mounted.
pollux-engine namespace --grpc unix:/tmp/engine.sock resize 1 128MiB
csi expand --volume files --target /mnt/pod --bytes $((128 << 20))
[ "$(mib_of /mnt/pod)" -gt 100 ] || fail "it has not grown"

# A file that is open keeps it where it is; a failed unpublish is no success.
exec 9> /mnt/pod/open
refused FailedPrecondition unpublish --volume files --target /mnt/pod
exec 9>&-
csi unpublish --volume files --target /mnt/pod
csi unpublish --volume files --target /mnt/pod
[ ! -e /mnt/pod ] || fail "the target is still there"
csi unpublish --volume files --target /mnt/reader

# The driver is killed; the next one undoes what it did.
kill -KILL "$driver"
wait "$driver" || true
csi_start --keep-alive 30
csi unstage --volume files --staging /mnt/staging
csi unstage --volume files --staging /mnt/staging
expect "$(ls /sys/class/nvme | wc -l)" 0 "paths"
expect "$(ls /tmp/records | wc -l)" 0 "records"

# Back again it has its data; as another file system, or with one that is not there, it is left alone.
refused FailedPrecondition stage --volume files --staging /mnt/staging --fs xfs $(context "$files")
csi unstage --volume files --staging /mnt/staging
refused InvalidArgument stage --volume files --staging /mnt/staging --option remount $(context "$files")
csi stage --volume files --staging /mnt/staging --option nosuid,nodev $(context "$files")
csi publish --volume files --staging /mnt/staging --target /mnt/pod
csi publish --volume files --staging /mnt/staging --target /mnt/reader --read-only
sha256sum -c /tmp/sum
# What its class forbids is forbidden to readers too.
grep ' /mnt/reader ' /proc/mounts | grep -q ' ro,nosuid,nodev,' || fail "$(grep ' /mnt/' /proc/mounts)"
# What others mounted is left alone.
mkdir -p /mnt/other
mount -t tmpfs none /mnt/other
refused FailedPrecondition unpublish --volume files --target /mnt/other
refused FailedPrecondition unpublish --volume nobody --target /mnt/other
umount /mnt/other
csi unpublish --volume files --target /mnt/reader
csi unpublish --volume files --target /mnt/pod
csi unstage --volume files --staging /mnt/staging

# A block device, and what is on it.
csi stage --volume device --staging /mnt/staging --block $(context "$device")
csi publish --volume device --staging /mnt/staging --block --target /mnt/block/dev
[ -b /mnt/block/dev ] || fail "it is no block device"
random_file /tmp/data 4
dd if=/tmp/data of=/mnt/block/dev bs=1M conv=fsync,notrunc 2> /dev/null
csi stats --volume device --target /mnt/block/dev | grep -q "of $((16 << 20)) used"
csi unpublish --volume device --target /mnt/block/dev
csi unstage --volume device --staging /mnt/staging
refused FailedPrecondition stage --volume device --staging /mnt/staging --fs ext4 $(context "$device")
grep -q 'left alone' /tmp/refusal
csi unstage --volume device --staging /mnt/staging
csi stage --volume device --staging /mnt/staging --block $(context "$device")
csi publish --volume device --staging /mnt/staging --block --target /mnt/block/dev
drop_caches
dd if=/mnt/block/dev bs=1M count=4 2> /dev/null | cmp - /tmp/data
csi unpublish --volume device --target /mnt/block/dev
csi unstage --volume device --staging /mnt/staging

expect "$(ls /sys/class/nvme | wc -l)" 0 "paths"
expect "$(grep -c ' /mnt/' /proc/mounts)" 0 "mounts"
kill -TERM "$driver" "$engine"
wait "$driver" || fail "the driver left with an error"
wait "$engine" || fail "the engine left with an error"
