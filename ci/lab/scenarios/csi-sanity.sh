# The tests that Kubernetes has for drivers, with the kernel of this guest: it connects, formats and mounts
# through the node service here; the controller service, the control plane and three engines are on the host.
#
# time limit: 900 s
# programs: csi-sanity pollux-csi
# kernel may say: I/O fail on reconnect controller
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:

to_host
controller="$(ask cluster start 3)"
ask pollux template create gold --replicas 3
csi_start --volumes 6 --keep-alive 30
printf 'replicas: "2"\nqosIops: "5000"\n' > /tmp/class.yaml
printf 'qosIops: "2000"\ntemplate: gold\n' > /tmp/attributes.yaml

for access in mount block; do
    began="$(now)"
    # To the controller service it makes no difference.
    [ "$access" = block ] && focus='Node Service' || focus=''
    status=0
    csi-sanity --csi.endpoint=/tmp/csi.sock --csi.controllerendpoint="10.0.2.2:$controller" \
        --csi.mountdir=/tmp/target --csi.stagingdir=/tmp/staging --csi.testvolumesize=$((64 << 20)) \
        --csi.testvolumeexpandsize=$((96 << 20)) --csi.testvolumeparameters=/tmp/class.yaml \
        --csi.testvolumemutableparameters=/tmp/attributes.yaml --csi.testvolumeaccesstype="$access" \
        --csi.testnodevolumeattachlimit --ginkgo.focus="$focus" --ginkgo.no-color --ginkgo.v \
        > /tmp/sanity 2>&1 || status=$?
    tell "$access: $(grep 'Passed' /tmp/sanity), in $(seconds_since "$began") s"
    [ "$access" = block ] || grep 'SKIPPED\]' /tmp/sanity | sort | uniq -c || true
    grep '\[FAIL\]' /tmp/sanity || true
    [ "$status" = 0 ] || { tail -n 60 /tmp/sanity; tail -n 20 /tmp/driver; fail "csi-sanity, $access"; }
    csi_is_empty
done
csi_end
