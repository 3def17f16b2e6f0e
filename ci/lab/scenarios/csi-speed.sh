# How long it takes from ControllerPublish until a new volume is mounted, with three paths and mkfs.ext4,
# beside what nvme-cli, mkfs.ext4 and mount take by themselves for the same: in turns, five times.
#
# time limit: 300 s
# programs: pollux-csi
# only by name: it measures
# kernel may say: I/O fail on reconnect controller

to_host
ask cluster start 3 > /dev/null
metrics=10.0.2.15:9441
csi_start --reconnect-delay 1 --keep-alive 2 --metrics "$metrics"
# seconds_in METHOD: how long the node service itself was with calls of this kind, altogether.
seconds_in() {
    wget -q -O - "http://$metrics/metrics" \
        | sed -n "s/^pollux_csi_call_seconds_sum{method=\".*$1\"} //p"
}
# median FILE: the middle one of five numbers.
median() { sort -n "$1" | sed -n 3p; }
exact() { awk -v began="$1" '{ printf "%.2f", $1 - began }' /proc/uptime; }
device_of() { basename "$(dirname "$(grep -lx "$1" /sys/block/nvme*n*/uuid | grep -v 'c[0-9]*n')")"; }

for round in 1 2 3 4 5; do
    ask csi create --name data --bytes $((512 << 20)) --parameter replicas=3
    began="$(now)"
    context="$(csi_publish data)"
    exact "$began" >> /tmp/published; echo >> /tmp/published
    csi stage --volume data --staging /mnt/staging --fs ext4 $context
    exact "$began" >> /tmp/staged; echo >> /tmp/staged
    csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
    exact "$began" >> /tmp/mounted; echo >> /tmp/mounted
    host="$(cat /sys/class/nvme/nvme*/hostid | head -n 1)"
    csi unpublish --volume data --target /mnt/pod
    csi_unstage data /mnt/staging
    ask csi delete --volume data

    ask csi create --name bare --bytes $((512 << 20)) --parameter replicas=3
    ask csi publish --volume bare --node "$node" > /tmp/bare
    value_of() { sed -n "s/^$1=//p" /tmp/bare; }
    bare_is_there() { [ -b "/dev/$(device_of "$(value_of namespaceUuid)")" ]; }
    mkdir -p /mnt/bare
    began="$(now)"
    for path in $(value_of paths | tr , ' '); do
        nvme connect -t tcp -a "${path%:*}" -s "${path#*:}" -q "$node" -I "$host" \
            -n "$(value_of subsystemNqn)"
    done
    exact "$began" >> /tmp/connected; echo >> /tmp/connected
    until_true 30 bare_is_there
    device="/dev/$(device_of "$(value_of namespaceUuid)")"
    mkfs.ext4 -q -F -m 0 -E nodiscard "$device"
    exact "$began" >> /tmp/made; echo >> /tmp/made
    mount -t ext4 "$device" /mnt/bare
    exact "$began" >> /tmp/bare-mounted; echo >> /tmp/bare-mounted
    umount /mnt/bare
    nvme disconnect -n "$(value_of subsystemNqn)" > /dev/null
    ask csi unpublish --volume bare --node "$node"
    ask csi delete --volume bare
done
divide() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
bare="$(median /tmp/bare-mounted)"
mounted="$(median /tmp/mounted)"
staged="$(divide "$(seconds_in NodeStageVolume)" 5)"
published="$(divide "$(seconds_in NodePublishVolume)" 5)"
tell "ControllerPublish $(median /tmp/published) s, staged after $(median /tmp/staged) s, mounted after" \
    "$mounted s, with the starts of pollux-csi call: $(divide "$mounted" "$bare") times the kernel by itself"
tell "the kernel by itself: connected $(median /tmp/connected) s, mkfs.ext4 $(median /tmp/made) s," \
    "mounted $bare s"
tell "in the node service itself: NodeStage $staged s, NodePublish $published s (mean)"
awk -v staged="$staged" -v published="$published" -v bare="$bare" 'BEGIN {
    ratio = (staged + published) / bare
    printf "TOLD NodeStage and NodePublish take %.2f times what the kernel takes by itself\n", ratio
    exit ratio > 2
}' || fail "the node service takes too long"
grep -o 'took=.*' /tmp/driver > /tmp/parts || true
while read -r parts; do tell "NodeStage: ${parts#took=}"; done < /tmp/parts
csi_end
