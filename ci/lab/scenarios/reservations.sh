# Two hosts share a namespace by reservations: what one of them reserved the other cannot write, until it
# preempts; what is to persist is there after the engine was killed.
#
# time limit: 240 s
# kernel may say: using deprecated NVME_IOCTL_IO_CMD
# kernel may say: reservation conflict
# kernel may say: starting error recovery
# kernel may say: failed to connect socket
# kernel may say: Failed reconnect attempt
# kernel may say: queue_rq returned
# kernel may say: failed nvme_keep_alive_end_io

port="$(ask engine start 'uring://@/disk?size=64MiB&block=4096' --reservations '@/reservations')"

# host NUMBER: connects as that host, and prints the device of its controller. nvme-cli connects to one
# subsystem once; the kernel takes both controllers for paths of one device, so commands go to each by itself.
host() {
    local before options
    before="$(ls /sys/class/nvme)"
    options="transport=tcp,traddr=$gateway,trsvcid=$port,nqn=$nqn,nr_io_queues=1"
    options="$options,reconnect_delay=1,ctrl_loss_tmo=300,hostnqn=nqn.2026-11.io.pollux:host-$1"
    echo "$options,hostid=00000000-0000-0000-0000-00000000000$1" > /dev/nvme-fabrics
    for name in $(ls /sys/class/nvme); do
        case "$before" in *"$name"*) ;; *) echo "/dev/$name" ;; esac
    done
}

one="$(host 1)"
two="$(host 2)"
block 1 > /dev/null
head -c 4096 /dev/urandom > /tmp/first
head -c 4096 /dev/urandom > /tmp/second

# write CONTROLLER FILE, read CONTROLLER: one block.
write_block() { nvme write "$1" -n 1 -s 0 -c 0 -z 4096 -d "$2"; }
read_block() { nvme read "$1" -n 1 -s 0 -c 0 -z 4096 -d /tmp/read; }
refused() {
    if "$@" > /tmp/said 2>&1; then fail "was not refused: $*"; fi
    cat /tmp/said
    grep -qi 'reservation.conflict\|83)' /tmp/said || fail "refused for another reason: $*"
}
# report CONTROLLER TEXT: the report says so.
report() {
    nvme resv-report "$1" -n 1 --eds > /tmp/report
    cat /tmp/report
    tr -s ' \t' ' ' < /tmp/report | grep -qi "$2" || fail "the report does not say: $2"
}

nvme id-ns "$one" -n 1 | tr -s ' \t' ' ' | grep -qi 'rescap *: *0xff'
nvme resv-register "$one" -n 1 --nrkey=0xa1 --rrega=0 --cptpl=3
nvme resv-register "$two" -n 1 --nrkey=0xb2 --rrega=0
nvme resv-acquire "$one" -n 1 --crkey=0xa1 --rtype=1 --racqa=0
write_block "$one" /tmp/first
refused write_block "$two" /tmp/second
read_block "$two"
cmp /tmp/read /tmp/first
refused nvme resv-acquire "$two" -n 1 --crkey=0xb2 --rtype=1 --racqa=0
report "$two" 'rtype *: *1'
report "$two" 'ptpls *: *1'

# Preempt and abort: the other one is out.
nvme resv-acquire "$two" -n 1 --crkey=0xb2 --prkey=0xa1 --rtype=2 --racqa=2
write_block "$two" /tmp/second
refused write_block "$one" /tmp/first
refused read_block "$one"

# It persists.
ask engine kill
ask engine restart
both_live() {
    for name in $(ls /sys/class/nvme); do
        [ "$(cat "/sys/class/nvme/$name/state")" = live ] || return 1
    done
}
until_true 60 both_live
refused write_block "$one" /tmp/first
read_block "$two"
cmp /tmp/read /tmp/second
report "$one" 'rtype *: *2'

nvme resv-release "$two" -n 1 --crkey=0xb2 --rtype=2 --rrela=0
write_block "$one" /tmp/first
read_block "$two"
cmp /tmp/read /tmp/first
disconnect
