# A volume of three replicas on three engines of a cluster, with the kernel's own multipath as its host: it
# has a path to each engine and follows ANA when the node that serves is drained, when the engine that serves
# is killed, and when it stands still for longer than anybody waits for it; and it waits while an engine does
# that only has a replica. A writer of records and fio, which verifies all that it writes, see no error; every
# record that was made durable is there, and all paths are back in the end.
#
# time limit: 600 s
# programs: fio
# only by name: it takes two minutes
# kernel may say: failed to connect socket
# kernel may say: Reconnecting in
# kernel may say: Failed reconnect attempt
# kernel may say: starting error recovery
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:
# kernel may say: I/O fail on reconnect controller
# kernel may say: queue_rq returned
# kernel may say: failed nvme_keep_alive_end_io
# kernel may say: keep-alive
# kernel may say: Property Set error
# kernel may say: Connect Invalid Data Parameter
# kernel may say: failed to connect queue
# kernel may say: timeout
# kernel may say: I/O Cmd

expect "$(cat /sys/module/nvme_core/parameters/multipath)" Y "multipath of the kernel"
ask cluster start 3 > /dev/null
ask pollux volume create v --size 64MiB --replicas 3 --wait
ask pollux volume publish v --host "$(cat /etc/nvme/hostnqn)" --wait | grep '^nvme connect' > /tmp/paths
expect "$(wc -l < /tmp/paths)" 3 "paths that are told of"

# value_of FIELD: what the control plane tells of the volume.
value_of() { ask pollux volume get v -o json | sed -n "s/^ *\"$1\": \"\(.*\)\".*/\1/p" | head -n 1; }
# The node that serves, and those that only have a replica.
serving() { value_of target_node; }
others() { printf 'n1\nn2\nn3\n' | grep -vx "$(serving)"; }
volume_is() { ask pollux volume get v -o json | grep -q "\"state\": \"VOLUME_STATE_$1\""; }
live() { [ "$(cat /sys/class/nvme/nvme*/state | grep -cx live)" = "$1" ]; }
# optimized: the controllers whose path the kernel uses. Of one that is gone it still tells what it was.
optimized() {
    local controller
    for controller in /sys/class/nvme/nvme*; do
        if grep -qx live "$controller/state" && grep -qx optimized "$controller"/nvme*/ana_state; then
            echo "${controller##*/}"
        fi
    done
}
# went_on_from NODE CONTROLLER: whether another node serves, and the kernel uses the path to it and no other.
went_on_from() {
    [ "$(serving)" != "$1" ] && [ "$(optimized | wc -l)" = 1 ] && [ "$(optimized)" != "$2" ]
}

while read -r command; do
    $command --reconnect-delay=1 --ctrl-loss-tmo=600 --keep-alive-tmo=2
done < /tmp/paths
device="$(block 1)"
until_true 20 live 3
expect "$(optimized | wc -l)" 1 "optimized paths"
expect "$(cat /sys/class/nvme/nvme*/nvme*/ana_state | grep -cx inaccessible)" 2 "inaccessible paths"

# The records have the first MiB, fio has what is from the sixteenth on. Each of its passes writes other data,
# and reads all of it.
verify_by_fio() {
    fio --name=pass --thread --filename="$device" --offset=16M --size=2M --bs=4k --direct=1 --rw=randwrite \
        --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --randseed="$1" --eta=never \
        --output=/tmp/fio \
        ${2-} || { cat /tmp/fio >&2; return 1; }
}
(
    pass=0
    while [ ! -e /tmp/enough ]; do
        pass=$((pass + 1))
        verify_by_fio "$pass" || exit 1
        echo "$pass" > /tmp/passes
    done
) &
fio=$!
lab records write "$device" --slots 256 --seconds 600 --progress /tmp/progress --until /tmp/enough \
    --pauses /tmp/pauses &
writer=$!
passed() { [ -s /tmp/passes ] && [ "$(cat /tmp/passes)" -ge "$1" ]; }
wrote() { [ -s /tmp/progress ] && [ "$(cat /tmp/progress)" -ge "$1" ]; }
# go_on: both write on, what fio writes after this moment is verified, and what took long is forgotten.
go_on() {
    until_true 60 wrote $(($(cat /tmp/progress) + 20))
    until_true 90 passed $(($(cat /tmp/passes) + 2))
    : > /tmp/pauses
}
longest_pause() { sort -n /tmp/pauses | tail -n 1; }
until_true 60 passed 1
until_true 30 wrote 20
go_on

# The node that serves is drained: a planned move.
node="$(serving)" path="$(optimized)"
ask pollux node drain "$node"
until_true 60 went_on_from "$node" "$path"
until_true 60 wrote $(($(cat /tmp/progress) + 20))
tell "the longest wait for a durable write, $(longest_pause) ms at a planned move"
live 3 || fail "a path was lost by a planned move"
ask pollux node undrain "$node"
go_on

# The engine that serves is killed.
node="$(serving)" path="$(optimized)"
ask cluster kill "$node"
until_true 60 went_on_from "$node" "$path"
until_true 60 wrote $(($(cat /tmp/progress) + 20))
tell "$(longest_pause) ms when the engine that serves was killed"
go_on
ask cluster restart "$node"
until_true 90 volume_is HEALTHY
until_true 60 live 3
go_on

# The engine that serves stands still, and goes on when another one has taken over long ago.
node="$(serving)" path="$(optimized)"
ask cluster pause "$node"
until_true 90 went_on_from "$node" "$path"
until_true 60 wrote $(($(cat /tmp/progress) + 20))
tell "$(longest_pause) ms when it stood still"
go_on
ask cluster resume "$node"
until_true 90 volume_is HEALTHY
until_true 60 live 3
go_on

# An engine stands still that only has a replica: nobody else takes over.
node="$(others | head -n 1)" target="$(serving)"
ask cluster pause "$node"
until_true 60 volume_is DEGRADED
until_true 60 wrote $(($(cat /tmp/progress) + 20))
tell "$(longest_pause) ms when one stood still that only has a replica"
expect "$(serving)" "$target" "the node that serves"
ask cluster resume "$node"
until_true 90 volume_is HEALTHY
until_true 60 live 3
go_on

touch /tmp/enough
wait "$writer" || fail "the writer saw an error"
wait "$fio" || fail "fio saw an error, or read other data than it wrote"
drop_caches
lab records verify "$device" --slots 256 --durable "$(cat /tmp/progress)"
verify_by_fio "$(cat /tmp/passes)" --verify_only
tell "$(cat /tmp/progress) durable records and $(cat /tmp/passes) passes of fio over 2 MiB"
expect "$(optimized | wc -l)" 1 "optimized paths"
nvme disconnect -n "$(sed -n 's/.* -n \([^ ]*\).*/\1/p' /tmp/paths | head -n 1)"
ask pollux volume unpublish v
ask pollux volume delete v
