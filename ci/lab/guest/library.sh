# What scenarios call. They run with `sh -eu`.

nqn=nqn.2026-11.io.pollux:serve
gateway=10.0.2.2

# send: gives its input to the lab as a request, and prints the answer.
send() {
    nc "$gateway" "$(cat /lab/port)" > "/tmp/answer.$$" || { echo "no answer from the lab" >&2; return 1; }
    head -n 1 "/tmp/answer.$$" | grep -qx ok || { cat "/tmp/answer.$$" >&2; return 1; }
    tail -n +2 "/tmp/answer.$$"
}

# ask REQUEST: what the host's side is to do; see control.rs for what there is.
ask() { echo "$*" | send; }

# fail WHY: ends the scenario, also from within `$(...)`, where only standard error is seen.
fail() { echo "FAILED: $*" >&2; exit 1; }

# tell TEXT: something that the lab prints with the verdict.
tell() { echo "TOLD $*"; }

# until_true SECONDS COMMAND...: waits until a command succeeds.
until_true() {
    local seconds="$1" tries
    shift
    tries=$((seconds * 5))
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "not after $seconds s: $*"
        sleep 0.2
    done
}

# expect VALUE VALUE WHAT: the two are the same.
expect() { [ "$1" = "$2" ] || fail "$3: expected $2, not $1"; }

# An engine tells hosts the address at which it listens, which is that of the host's own loopback interface.
# QEMU carries what it gets for 127.0.0.1 to there; so let the guest send it, instead of keeping it.
network_up() {
    ip address add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    ip route add default via "$gateway"
    echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
    ip route add 127.0.0.1/32 via "$gateway" dev eth0 src 10.0.2.15
}

# connect OPTION...: connects to the engine at $port, with short times so that scenarios are quick.
connect() {
    nvme connect -t tcp -a "$gateway" -s "$port" -n "$nqn" --reconnect-delay=1 --ctrl-loss-tmo=300 "$@"
}

disconnect() { nvme disconnect -n "$nqn"; }

# block NAMESPACE: the block device of a namespace, once it is there.
block() {
    until_true 30 block_is_there "$1"
    block_now "$1"
}

block_is_there() { [ -b "$(block_now "$1")" ]; }

block_now() {
    local entry
    for entry in /sys/block/nvme*n*; do
        # A path of a namespace, such as nvme0c0n1, is no device of its own.
        case "${entry##*/}" in *c*n*) continue ;; esac
        if [ "$(cat "$entry/nsid" 2> /dev/null)" = "$1" ]; then
            echo "/dev/${entry##*/}"
            return
        fi
    done
}

block_is_gone() { ! block_is_there "$1"; }

# controller: the name of the only controller.
controller() { basename /sys/class/nvme/nvme*; }

# state_is STATE: whether the only controller is in it.
state_is() { [ "$(cat "/sys/class/nvme/$(controller)/state" 2> /dev/null)" = "$1" ]; }

# bytes_of DEVICE
bytes_of() { blockdev --getsize64 "$1"; }

# random_file PATH MIB
random_file() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2> /dev/null; }

# drop_caches: what is read from here on comes from the device.
drop_caches() { echo 3 > /proc/sys/vm/drop_caches; }

# to_host: sends what is for 127.0.0.1 to the host, where engines listen.
to_host() {
    ip link set lo up
    # It is gone already after a scenario that did the same.
    ip address del 127.0.0.1/8 dev lo 2> /dev/null || true
}

# csi_start OPTION...: starts the CSI node service, and calls its process $driver and its node $node.
csi_start() {
    pollux-csi node --node guest --endpoint unix:///tmp/csi.sock --records /tmp/records "$@" > /tmp/driver 2>&1 &
    driver=$!
    until_true 30 grep -q "answers at" /tmp/driver
    node="$(csi info | sed -n 's/^node //p')"
}

# csi COMMAND...: calls the node service.
csi() { pollux-csi call --endpoint unix:///tmp/csi.sock "$@"; }

# csi_publish VOLUME ARGUMENT...: has the controller service publish a volume to this node, and prints what
# the node service is to be told of it, as its arguments.
csi_publish() {
    local id="$1"
    shift
    ask csi publish --volume "$id" --node "$node" "$@" | sed 's/^/--context /'
}

# csi_unstage VOLUME STAGING: has nothing of a volume on this node any more.
csi_unstage() {
    csi unstage --volume "$1" --staging "$2"
    ask csi unpublish --volume "$1" --node "$node"
}

# csi_end: the node service ends, with nothing left here or on the host.
csi_end() {
    csi_is_empty
    kill -TERM "$driver"
    wait "$driver" || fail "the driver left with an error"
}

csi_is_empty() {
    expect "$(ls /sys/class/nvme | wc -l)" 0 "paths"
    expect "$(grep -c ' /mnt/' /proc/mounts)" 0 "mounts"
    expect "$(ls /tmp/records | wc -l)" 0 "records"
    expect "$(ask csi list)" "" "volumes"
}

# now: seconds since the guest booted.
now() { cut -d ' ' -f 1 /proc/uptime; }

# seconds_since TIME
seconds_since() { awk -v began="$1" '{ printf "%.1f", $1 - began }' /proc/uptime; }

# mib_of DIRECTORY: the size of the file system.
mib_of() { df -m "$1" | awk 'NR == 2 { print $2 }'; }

# clean_up: leaves nothing of a scenario behind, as far as there is anything.
clean_up() {
    cd /
    killall -q lab fio || true
    while read -r _ path _; do
        case "$path" in /mnt*) umount -f -l "$path" || true ;; esac
    done < /proc/mounts
    nvme disconnect-all || true
    rm -rf /tmp/*
}
