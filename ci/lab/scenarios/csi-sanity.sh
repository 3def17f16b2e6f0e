# The tests that Kubernetes has for drivers, with the kernel of this guest: it connects, formats and mounts
# through the node service here; the controller service, the control plane and three engines are on the host.
#
# time limit: 900 s
# programs: csi-sanity pollux-csi
# only by name: it takes minutes
# kernel may say: I/O fail on reconnect controller
# kernel may say: long keepalive RTT

ip link set lo up
# What is for 127.0.0.1 goes to the host. The address is gone already after a scenario that did the same.
ip address del 127.0.0.1/8 dev lo 2> /dev/null || true
controller="$(ask cluster start 3)"
ask pollux template create gold --replicas 3
pollux-csi node --node guest --endpoint unix:///tmp/csi.sock --records /tmp/records > /tmp/driver 2>&1 &
driver=$!
until_true 30 grep -q "answers at" /tmp/driver
printf 'replicas: "2"\nqosIops: "5000"\n' > /tmp/class.yaml
printf 'qosIops: "2000"\ntemplate: gold\n' > /tmp/attributes.yaml

for access in mount block; do
    began="$(cut -d ' ' -f 1 /proc/uptime)"
    status=0
    csi-sanity --csi.endpoint=/tmp/csi.sock --csi.controllerendpoint="10.0.2.2:$controller" \
        --csi.mountdir=/tmp/target --csi.stagingdir=/tmp/staging --csi.testvolumesize=$((64 << 20)) \
        --csi.testvolumeexpandsize=$((96 << 20)) --csi.testvolumeparameters=/tmp/class.yaml \
        --csi.testvolumemutableparameters=/tmp/attributes.yaml --csi.testvolumeaccesstype="$access" \
        --ginkgo.no-color --ginkgo.v > /tmp/sanity 2>&1 || status=$?
    seconds="$(awk -v began="$began" '{ printf "%.0f", $1 - began }' /proc/uptime)"
    tell "$access: $(grep 'Passed' /tmp/sanity), in $seconds s"
    grep '\[FAIL\]' /tmp/sanity || true
    [ "$status" = 0 ] || { tail -n 60 /tmp/sanity; tail -n 20 /tmp/driver; fail "csi-sanity, $access"; }
    expect "$(ls /sys/class/nvme | wc -l)" 0 "paths"
    expect "$(ls /tmp/records | wc -l)" 0 "records"
    expect "$(ask csi list)" "" "volumes"
done
grep 'SKIPPED\]' /tmp/sanity | sort | uniq -c || true
kill -TERM "$driver"
wait "$driver" || fail "the driver left with an error"
