# XFS and Btrfs from the controller service to the kernel, as in `csi-cluster`: made, filled, grown while they
# are mounted, and there again. Then how long it takes until a new volume is mounted, beside what the kernel
# and mkfs.ext4 take by themselves.
#
# time limit: 300 s
# programs: pollux-csi
# modules: btrfs
# only by name: it takes a minute, and most of it is shown by csi-cluster
# kernel may say: I/O fail on reconnect controller
# kernel may say: long keepalive RTT

to_host
ask cluster start 3 > /dev/null
csi_start --reconnect-delay 1 --fast-io-fail 2 --keep-alive 2
# XFS and Btrfs: made, filled, grown while they are mounted, and there again.
for kind in xfs btrfs; do
    ask csi create --name "$kind" --bytes $((320 << 20)) --parameter replicas=2
    context="$(csi_publish "$kind")"
    csi stage --volume "$kind" --staging /mnt/staging --fs "$kind" $context
    csi publish --volume "$kind" --staging /mnt/staging --fs "$kind" --target /mnt/pod
    random_file /mnt/pod/data 8
    sum="$(sha256sum < /mnt/pod/data)"
    before="$(mib_of /mnt/pod)"
    ask csi expand --volume "$kind" --bytes $((448 << 20))
    csi expand --volume "$kind" --target /mnt/pod --bytes $((448 << 20))
    [ "$(mib_of /mnt/pod)" -gt $((before + 100)) ] || fail "$kind has not grown"
    csi unpublish --volume "$kind" --target /mnt/pod
    csi unstage --volume "$kind" --staging /mnt/staging
    csi stage --volume "$kind" --staging /mnt/staging $context
    csi publish --volume "$kind" --staging /mnt/staging --target /mnt/pod
    expect "$(sha256sum < /mnt/pod/data)" "$sum" "what was written to $kind"
    csi unpublish --volume "$kind" --target /mnt/pod
    csi_unstage "$kind" /mnt/staging
    ask csi delete --volume "$kind"
done

# How long it takes until a new volume is mounted.
ask csi create --name data --bytes $((512 << 20)) --parameter replicas=3
began="$(now)"
context="$(csi_publish data)"
tell "ControllerPublish took $(seconds_since "$began") s"
staged="$(now)"
csi stage --volume data --staging /mnt/staging --fs ext4 $context
csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
tell "NodeStage and NodePublish took $(seconds_since "$staged") s, over three paths, with mkfs.ext4"
tell "mounted $(seconds_since "$began") s after ControllerPublish was called"
host="$(cat /sys/class/nvme/nvme*/hostid | head -n 1)"
csi unpublish --volume data --target /mnt/pod
csi_unstage data /mnt/staging
ask csi delete --volume data

# What the kernel and mkfs.ext4 take by themselves.
ask csi create --name bare --bytes $((512 << 20)) --parameter replicas=3
ask csi publish --volume bare --node "$node" > /tmp/bare
value_of() { sed -n "s/^$1=//p" /tmp/bare; }
began="$(now)"
for path in $(value_of paths | tr , ' '); do
    nvme connect -t tcp -a "${path%:*}" -s "${path#*:}" -n "$(value_of subsystemNqn)" -q "$node" -I "$host"
done
tell "the kernel connected three paths in $(seconds_since "$began") s, called by nvme-cli"
device_of() { basename "$(dirname "$(grep -lx "$1" /sys/block/nvme*n*/uuid | grep -v 'c[0-9]*n')")"; }
bare_is_there() { [ -b "/dev/$(device_of "$(value_of namespaceUuid)")" ]; }
until_true 30 bare_is_there
mkfs.ext4 -q -F -m 0 -E nodiscard "/dev/$(device_of "$(value_of namespaceUuid)")"
mkdir -p /mnt/bare
mount -t ext4 "/dev/$(device_of "$(value_of namespaceUuid)")" /mnt/bare
tell "and was done with mkfs.ext4 and mount after $(seconds_since "$began") s"
umount /mnt/bare
nvme disconnect -n "$(value_of subsystemNqn)" > /dev/null
ask csi unpublish --volume bare --node "$node"
ask csi delete --volume bare
csi_end
