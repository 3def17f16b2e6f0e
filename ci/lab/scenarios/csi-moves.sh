# What is in use moves. A volume of three replicas on four engines is mounted and written while the node that
# serves it is emptied: another engine serves, the fourth one gets a replica, and the node service connects
# the path there and lets the old one go. Meanwhile two nodes have a block device at once, as a virtual
# machine that moves needs it: each reads what the other writes, and one goes on after the other is gone.
#
# time limit: 300 s
# only by name: it takes more than a minute
# programs: pollux-csi pollux-engine
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
# kernel may say: Connect command failed: host path error

to_host
ask cluster start 4 > /dev/null
csi_start --reconnect-delay 1 --keep-alive 2
value_of() { ask pollux volume get "$1" -o json | sed -n "s/^ *\"$2\": \"\(.*\)\".*/\1/p" | head -n 1; }

# A volume with a file system, which is written from here on.
ask csi create --name data --bytes $((128 << 20)) --parameter replicas=3
context="$(csi_publish data)"
csi stage --volume data --staging /mnt/staging --fs ext4 $context
csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
random_file /mnt/pod/before 16
(cd /mnt/pod && sha256sum before > /tmp/sums)
(
    number=0
    while [ ! -e /tmp/enough ]; do
        number=$((number + 1))
        file="/mnt/pod/during-$((number % 64))"
        dd if=/dev/urandom of="$file" bs=64K count=4 conv=fsync 2> /dev/null || exit 1
        echo "$number" > /tmp/progress
    done
) &
writer=$!
wrote() { [ -s /tmp/progress ] && [ "$(cat /tmp/progress)" -ge "$1" ]; }
# told: where the volume is, as the control plane tells a node; connected: where the kernel has it, and in
# which state each path is.
told() { csi_publish data | sed -n 's/^--context paths=//p' | tr ',' '\n' | sort; }
connected() {
    local controller
    for controller in /sys/class/nvme/nvme*; do
        grep -qsx "$(cat /tmp/subsystem)" "$controller/subsysnqn" || continue
        echo "$(sed -n 's/^traddr=\([^,]*\),trsvcid=\([0-9]*\).*/\1:\2/p' "$controller/address")" \
            "$(cat "$controller/state")"
    done | sort
}
paths_are_those_told() {
    told | sed 's/$/ live/' > /tmp/told && connected > /tmp/connected && cmp -s /tmp/told /tmp/connected
}
echo "$context" | sed -n 's/^--context subsystemNqn=//p' > /tmp/subsystem
until_true 60 wrote 1
until_true 60 paths_are_those_told
told > /tmp/told-at-first

# The node that serves is emptied. It takes a while until the node service looks.
target="$(value_of data target_node)"
ask pollux node drain "$target" --wait > /dev/null
began="$(now)"
[ "$(value_of data target_node)" != "$target" ] || fail "it is served by the node that is to be empty"
told > /tmp/told-then
expect "$(cat /tmp/told-at-first /tmp/told-then | sort | uniq -u | wc -l)" 2 "paths that differ"
at="$(cat /tmp/progress)"

# Two nodes have a block device. A kernel takes all paths to one subsystem for its own, whatever hosts they
# were connected as. So the second node's path leads through an engine in this guest, which is a host of the
# volume by that node's name, and serves it on as another subsystem: for the kernel these are two devices.
ask csi create --name shared --bytes $((64 << 20)) --parameter replicas=1 --block --shared
csi_publish shared --block --shared > /tmp/context
csi stage --volume shared --staging /mnt/staging-shared --block --shared $(cat /tmp/context)
csi publish --volume shared --staging /mnt/staging-shared --block --shared --target /mnt/block/first
pollux-csi node --node other --endpoint unix:///tmp/other.sock --records /tmp/records-other \
    > /tmp/other 2>&1 &
other_driver=$!
until_true 30 grep -q "answers at" /tmp/other
other() { pollux-csi call --endpoint unix:///tmp/other.sock "$@"; }
other_node="$(other info | sed -n 's/^node //p')"
[ "$other_node" != "$node" ] || fail "both are the same node"
ask csi publish --volume shared --node "$other_node" --block --shared > /tmp/other-context
paths="$(sed -n 's/^paths=//p' /tmp/other-context)"
subsystem="$(sed -n 's/^subsystemNqn=//p' /tmp/other-context)"
own=nqn.2026-11.io.pollux:volume:0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01
uuid=0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f02
cat > /tmp/other.toml <<END
[nvmf]
listen = ["10.0.2.15:4422"]
subsystem = "$own"
[[namespaces]]
uri = "nvmf://$paths/$subsystem?hostnqn=$other_node&hostid=$uuid"
uuid = "$uuid"
END
pollux-engine serve --config /tmp/other.toml --cores 0 --grpc unix:/tmp/engine.sock --log-format json \
    > /tmp/engine 2>&1 &
engine=$!
until_true 60 grep -q '"message":"serving"' /tmp/engine || { cat /tmp/engine >&2; fail "no engine"; }
other stage --volume shared --staging /mnt/staging-other --block --shared --context "subsystemNqn=$own" \
    --context "namespaceUuid=$uuid" --context paths=10.0.2.15:4422 --context readOnly=false
other publish --volume shared --staging /mnt/staging-other --block --shared --target /mnt/block/second
expect "$(cat /sys/class/nvme/nvme*/hostnqn | sort -u | wc -l)" 2 "hosts of this kernel"

# moves FROM TO MIB: what is written to the one at this place is read from the other.
moves() {
    random_file /tmp/data 2
    dd if=/tmp/data of="/mnt/block/$1" bs=1M seek="$3" conv=fsync,notrunc 2> /dev/null
    drop_caches
    dd if="/mnt/block/$2" bs=1M skip="$3" count=2 2> /dev/null | cmp - /tmp/data
}
moves first second 8
moves second first 8
# Both write at once, every other MiB.
random_file /tmp/first 1
random_file /tmp/second 1
writes() {
    for place in $(seq "$2" 2 31); do
        dd if="/tmp/$1" of="/mnt/block/$1" bs=1M seek="$place" conv=fsync,notrunc 2> /dev/null || return 1
    done
}
writes first 16 &
both=$!
writes second 17
wait "$both" || fail "the first node cannot write beside the second one"
drop_caches
for place in $(seq 16 2 31); do
    dd if=/mnt/block/second bs=1M skip="$place" count=1 2> /dev/null | cmp - /tmp/first
    dd if=/mnt/block/first bs=1M skip=$((place + 1)) count=1 2> /dev/null | cmp - /tmp/second
done
# The first one is done with it, and the second goes on.
csi unpublish --volume shared --target /mnt/block/first
csi_unstage shared /mnt/staging-shared
moves second second 40
dd if=/mnt/block/second bs=1M skip=16 count=1 2> /dev/null | cmp - /tmp/first
other unpublish --volume shared --target /mnt/block/second
other unstage --volume shared --staging /mnt/staging-other
kill -TERM "$engine"
wait "$engine" || { cat /tmp/engine >&2; fail "the engine left with an error"; }
kill -TERM "$other_driver"
wait "$other_driver" || fail "the other driver left with an error"
expect "$(ls /tmp/records-other | wc -l)" 0 "records of the other node"
ask csi unpublish --volume shared --node "$other_node"
ask csi delete --volume shared

# By now, or soon, the paths are those that are told, and the file system was written all the while.
until_true 90 paths_are_those_told
tell "all paths were new $(seconds_since "$began") s after the node was empty"
until_true 60 wrote $((at + 3))
touch /tmp/enough
wait "$writer" || fail "the writer saw an error"
(cd /mnt/pod && sha256sum before during-* > /tmp/all && grep -qxF "$(cat /tmp/sums)" /tmp/all)
csi stats --volume data --target /mnt/pod | grep -q 'abnormal false: 3 paths'
csi unpublish --volume data --target /mnt/pod
csi unstage --volume data --staging /mnt/staging
drop_caches
csi stage --volume data --staging /mnt/staging --fs ext4 $(csi_publish data)
csi publish --volume data --staging /mnt/staging --fs ext4 --target /mnt/pod
(cd /mnt/pod && sha256sum -c /tmp/all > /dev/null)
csi unpublish --volume data --target /mnt/pod
csi_unstage data /mnt/staging
ask csi delete --volume data
csi_end
