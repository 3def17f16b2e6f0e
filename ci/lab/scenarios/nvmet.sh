# The project's initiator works with the target of the Linux kernel: what it writes is what it reads. Then
# that target and the engine, both in this guest and in memory, take turns under the same loads, and the
# ratios are told.
#
# time limit: 240 s
# programs: pollux-engine pollux-bench

address=10.0.2.15
ip link set lo up
# It is not there any more after a scenario that did the same.
ip address del 127.0.0.1/8 dev lo 2> /dev/null || true
mount -t configfs configfs /sys/kernel/config
config=/sys/kernel/config/nvmet

mkdir "$config/subsystems/$nqn"
echo 1 > "$config/subsystems/$nqn/attr_allow_any_host"
for namespace in 1 2; do
    mkdir "$config/subsystems/$nqn/namespaces/$namespace"
    echo "/dev/ram$namespace" > "$config/subsystems/$nqn/namespaces/$namespace/device_path"
    echo 1 > "$config/subsystems/$nqn/namespaces/$namespace/enable"
done
mkdir "$config/ports/1"
echo tcp > "$config/ports/1/addr_trtype"
echo ipv4 > "$config/ports/1/addr_adrfam"
echo "$address" > "$config/ports/1/addr_traddr"
echo 4421 > "$config/ports/1/addr_trsvcid"
ln -s "$config/subsystems/$nqn" "$config/ports/1/subsystems/$nqn"

pollux-engine serve 'malloc:///one?size=16MiB&block=512' 'malloc:///two?size=16MiB&block=512' --cores 0 --nvmf "$address:4422" --log-format json \
    > /tmp/engine 2>&1 &
engine=$!
until_true 60 grep -q '"message":"serving"' /tmp/engine

# load PORT NAMESPACE ARGUMENT...: the requests a second of a target, of which none may fail.
load() {
    local uri="nvmf://$address:$1/$nqn?hostnqn=nqn.2026-11.io.pollux:guest&nsid=$2"
    shift 2
    pollux-bench run "$uri" --warm-up 1 --time 2 --size 12MiB --quiet --json /tmp/result "$@" > /tmp/table \
        || { cat /tmp/table >&2; return 1; }
    awk '/"iops"/ { gsub(/[,"]/, ""); sum += $2 } END { printf "%d\n", sum }' /tmp/result
}

# First whether it is right.
for port in 4421 4422; do
    load "$port" 1 --pattern randrw --block 4KiB --depth 32 --verify
    load "$port" 2 --pattern randrw --block 64KiB --depth 8 --verify
done

set +x
for pattern in randread randwrite; do
    for depth in 1 32; do
        kernel="$(load 4421 1 --pattern "$pattern" --block 4KiB --depth "$depth")"
        pollux="$(load 4422 1 --pattern "$pattern" --block 4KiB --depth "$depth")"
        tell "$pattern 4 KiB depth $depth: pollux $pollux, nvmet $kernel requests a second," \
            "$((pollux * 100 / kernel)) %"
    done
done
set -x
kill -TERM "$engine"
wait "$engine" || fail "the engine left with an error"

rm "$config/ports/1/subsystems/$nqn"
rmdir "$config/ports/1" "$config/subsystems/$nqn"/namespaces/* "$config/subsystems/$nqn"
ip link set lo down
