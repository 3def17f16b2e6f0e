# The discovery service tells of the subsystem at the address that reaches it, `connect-all` connects to
# what it tells, and an unknown subsystem or port is refused.
#
# kernel may say: Connect Invalid Data Parameter
# kernel may say: failed to connect socket
# kernel may say: failed to connect queue: 0 ret=16770
# kernel may say: Connect command failed

port="$(ask engine start 'malloc:///one?size=16MiB' 'null:///two?size=1GiB')"
nvme discover -t tcp -a "$gateway" -s "$port" > /tmp/found
cat /tmp/found
grep -q "^subnqn: *$nqn\$" /tmp/found
grep -q "^subtype: *nvme subsystem" /tmp/found
grep -q "^trsvcid: *$port\$" /tmp/found

nvme connect-all -t tcp -a "$gateway" -s "$port"
expect "$(bytes_of "$(block 1)")" 16777216 "size of the first namespace"
expect "$(bytes_of "$(block 2)")" 1073741824 "size of the second namespace"
nvme list-subsys
disconnect

if connect -n nqn.2026-11.io.pollux:unknown; then fail "connected to a subsystem that there is not"; fi
if nvme discover -t tcp -a "$gateway" -s 9; then fail "there is nothing on port 9"; fi
