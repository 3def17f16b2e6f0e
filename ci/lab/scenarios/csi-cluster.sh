# The life of volumes from the controller service to the kernel: a control plane, three engines and the CSI
# controller service on the host, the node service in this guest. A volume of three replicas is made,
# staged, mounted and written; a snapshot is taken of it and restored into another volume, while the engine
# that serves is killed under the mounted file system; it grows while it is mounted; all engines are killed
# under it at once; a block device beside it has what changed between two snapshots told; a volume that was
# made by hand is used as well. At the end nothing is left, neither here nor on the engines.
#
# time limit: 300 s
# programs: pollux-csi
# kernel may say: failed to connect socket
# kernel may say: Reconnecting in
# kernel may say: Failed reconnect attempt
# kernel may say: starting error recovery
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:
# kernel may say: I/O fail on reconnect controller
# kernel may say: queue_rq returned
# kernel may say: failed nvme_keep_alive_end_io
# kernel may say: Property Set error
# kernel may say: Connect Invalid Data Parameter
# kernel may say: failed to connect queue
# kernel may say: I/O Cmd(0x0)
# kernel may say: critical medium error
# kernel may say: Aborting journal
# kernel may say: Detected aborted journal
# kernel may say: Remounting filesystem read-only
# kernel may say: ext4_writepages: jbd2_start
# kernel may say: I/O error when updating journal superblock
# kernel may say: Buffer I/O error
# kernel may say: previous I/O error to superblock detected
# kernel may say: I/O error while writing superblock

to_host
ask cluster start 3 > /dev/null
csi_start --reconnect-delay 1 --keep-alive 2
# target_of VOLUME: the engine that serves it.
target_of() { ask pollux volume get "$1" -o json | sed -n 's/^ *"target_node": "\(.*\)".*/\1/p'; }
state_of() { ask pollux volume get "$1" -o json | sed -n 's/^ *"state": "VOLUME_STATE_\(.*\)".*/\1/p'; }
is_healthy() { [ "$(state_of "$1")" = HEALTHY ]; }
# check_data DIRECTORY: what was written is there.
check_data() { (cd "$1" && sha256sum -c /tmp/sums > /dev/null); }
paths_are() { [ "$(cat /sys/class/nvme/nvme*/state 2> /dev/null | grep -c live)" = "$1" ]; }

# A volume with a file system.
ask csi create --name data --bytes $((512 << 20)) --parameter replicas=3 --parameter minInSync=2
began="$(now)"
context="$(csi_publish data)"
csi stage --volume data --staging /mnt/staging --fs ext4 $context
csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
tell "mounted $(seconds_since "$began") s after ControllerPublish was called, with mkfs.ext4"
until_true 30 paths_are 3
random_file /mnt/pod/first 24
(cd /mnt/pod && sha256sum first > /tmp/sums)
cp /tmp/sums /tmp/sums-of-snapshot

# Held still while it is taken, a snapshot has what was there, also what nobody made durable.
pollux-csi freeze --target /mnt/pod --seconds 30 -- \
    sh -c '. /lab/library.sh; ask csi snapshot --name before --volume data' > /tmp/taken
grep -qx 'ready true' /tmp/taken || fail "the snapshot is not taken"
if pollux-csi freeze --target /mnt/pod --seconds 1 -- sleep 20; then fail "it takes too long"; fi
timeout 20 touch /mnt/pod/goes-on || fail "the file system is still held"
rm /mnt/pod/first
random_file /mnt/pod/second 16
(cd /mnt/pod && sha256sum second > /tmp/sums)

# The engine that serves is killed while it is written to. The kernel goes on by another path.
target="$(target_of data)"
(
    number=0
    while [ ! -e /tmp/enough ]; do
        number=$((number + 1))
        dd if=/dev/urandom of="/mnt/pod/during-$number" bs=64K count=4 conv=fsync 2> /dev/null || exit 1
        echo "$number" > /tmp/progress
    done
) &
writer=$!
until_true 30 [ -s /tmp/progress ]
ask cluster kill "$target"
at="$(cat /tmp/progress)"
began="$(now)"
wrote_on() { [ "$(cat /tmp/progress)" -gt $((at + 2)) ]; }
until_true 90 wrote_on
tell "written again $(seconds_since "$began") s after the engine that serves was killed"
touch /tmp/enough
wait "$writer" || fail "the writer saw an error"
[ "$(target_of data)" != "$target" ] || fail "it is served by the engine that was killed"
check_data /mnt/pod
(cd /mnt/pod && sha256sum second during-* > /tmp/sums)

# It grows meanwhile, on the copies that are left, and while it is mounted.
ask csi expand --volume data --bytes $((640 << 20))
csi expand --volume data --target /mnt/pod --bytes $((640 << 20))
[ "$(mib_of /mnt/pod)" -gt 560 ] || fail "it has not grown"
ask cluster restart "$target"
until_true 90 is_healthy data
until_true 60 paths_are 3
check_data /mnt/pod

# All engines are killed under the mounted file system, and come back later. Requests wait for them; what is
# lost with their caches the host hears of, and whatever was told to be durable is there.
sync
: > /tmp/durable
(
    cd /mnt/pod
    number=0
    while number=$((number + 1)); do
        dd if=/dev/urandom of="later-$number" bs=64K count=4 conv=fsync 2> /dev/null || exit 0
        sha256sum "later-$number" >> /tmp/durable
    done
) &
writer=$!
until_true 30 [ -s /tmp/durable ]
for engine in n1 n2 n3; do ask cluster kill "$engine"; done
sleep 8
kill -0 "$writer" || fail "the writer saw an error while the engines were away"
for engine in n1 n2 n3; do ask cluster restart "$engine"; done
is_over() { ! kill -0 "$writer" 2> /dev/null; }
until_true 60 is_over
tell "$(wc -l < /tmp/durable) files were durable when all engines were killed; the next one failed"
csi unpublish --volume data --target /mnt/pod
csi unstage --volume data --staging /mnt/staging
until_true 90 is_healthy data
csi stage --volume data --staging /mnt/staging --fs ext4 $(csi_publish data)
csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
check_data /mnt/pod
(cd /mnt/pod && sha256sum -c /tmp/durable > /dev/null) || fail "what was told to be durable is not there"
rm /mnt/pod/later-*
until_true 60 paths_are 3

# Another volume begins as the snapshot, beside the first one.
ask csi create --name restored --bytes $((640 << 20)) --parameter replicas=3 --from-snapshot before
csi stage --volume restored --staging /mnt/staging-restored --fs ext4 $(csi_publish restored)
csi publish --volume restored --staging /mnt/staging-restored --fs ext4 --target /mnt/restored
(cd /mnt/restored && sha256sum -c /tmp/sums-of-snapshot > /dev/null)
[ "$(mib_of /mnt/restored)" -gt 560 ] || fail "the copy is not as large as asked"
csi unpublish --volume restored --target /mnt/restored
csi_unstage restored /mnt/staging-restored
ask csi delete --volume restored

# After all of it the file system is sound, and what was written is there.
csi unpublish --volume data --target /mnt/pod
csi unstage --volume data --staging /mnt/staging
csi stage --volume data --staging /mnt/staging --fs ext4 $(csi_publish data)
csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
check_data /mnt/pod
csi unpublish --volume data --target /mnt/pod
csi_unstage data /mnt/staging
ask csi delete-snapshot --snapshot before
ask csi delete --volume data

# A block device, and what is told of its snapshots.
ask csi create --name raw --bytes $((64 << 20)) --parameter replicas=2 --block
csi stage --volume raw --staging /mnt/staging --block $(csi_publish raw --block)
csi publish --volume raw --staging /mnt/staging --block --target /mnt/block/dev
[ -b /mnt/block/dev ] || fail "it is no block device"
random_file /tmp/data 4
dd if=/tmp/data of=/mnt/block/dev bs=1M seek=8 conv=fsync,notrunc 2> /dev/null
ask csi snapshot --name one --volume raw | grep -qx 'ready true'
expect "$(ask csi blocks --snapshot one)" "$((8 << 20)) $((4 << 20))" "what the snapshot holds"
dd if=/tmp/data of=/mnt/block/dev bs=4K count=3 seek=100 conv=fsync,notrunc 2> /dev/null
ask csi snapshot --name two --volume raw | grep -qx 'ready true'
expect "$(ask csi blocks --snapshot two --since one)" "$((100 * 4096)) $((3 * 4096))" "what changed"
drop_caches
dd if=/mnt/block/dev bs=1M skip=8 count=4 2> /dev/null | cmp - /tmp/data
csi unpublish --volume raw --target /mnt/block/dev
csi_unstage raw /mnt/staging
ask csi delete-snapshot --snapshot one
ask csi delete-snapshot --snapshot two
ask csi delete --volume raw

# A volume that was made without the driver is used by its name.
ask pollux volume create by-hand --size 64MiB --replicas 2 --wait > /dev/null
csi stage --volume by-hand --staging /mnt/staging --fs ext4 $(csi_publish by-hand)
csi publish --volume by-hand --staging /mnt/staging --fs ext4 --target /mnt/pod
random_file /mnt/pod/data 4
csi stats --volume by-hand --target /mnt/pod | grep -q 'abnormal false: 2 paths'
csi unpublish --volume by-hand --target /mnt/pod
csi_unstage by-hand /mnt/staging
ask pollux volume delete by-hand --wait > /dev/null

csi_end
