# A volume with secrets, which the node service gives to the kernel: it authenticates by DH-HMAC-CHAP, and
# has the engine prove who it is as well; then it is mounted, written, and there again. Without a secret, with
# a wrong one, and with an engine that has another one, nobody gets in. No secret is in a log or a record.
#
# time limit: 400 s
# kernel may say: I/O fail on reconnect controller
# kernel may say: nvme0: qid 0:
# kernel may say: nvme1: qid 0:
# kernel may say: failed to connect queue: 0
# modules: dh_generic
# programs: pollux-engine pollux-csi
# only by name: the kernel has to have CONFIG_NVME_HOST_AUTH, as that of --suite bookworm-backports has

grep -q dhchap_secret /dev/nvme-fabrics || fail "this kernel cannot authenticate"
address=10.0.2.15
ip link set lo up
ip address del 127.0.0.1/8 dev lo
nqn=nqn.2026-11.io.pollux:volume:0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01
files=0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01
csi_start --keep-alive 30
for name in host engine wrong; do
    nvme gen-dhchap-key --hmac=1 --nqn "$node" > "/tmp/$name.secret"
done
cat > /tmp/engine.toml <<END
[nvmf]
listen = ["$address:4422", "$address:4423"]
subsystem = "$nqn"
[nvmf.hosts]
allow_any = false
allowed = ["$node"]
[[nvmf.authentication]]
host = "$node"
secret_file = "/tmp/host.secret"
controller_secret_file = "/tmp/engine.secret"
[[namespaces]]
uri = "malloc:///files?size=96MiB"
uuid = "$files"
END
pollux-engine serve --config /tmp/engine.toml --cores 0 --log-format json > /tmp/engine 2>&1 &
engine=$!
until_true 60 grep -q '"message":"serving"' /tmp/engine || { cat /tmp/engine >&2; fail "no engine"; }

# stage ARGUMENT...: as a file system, with these secrets.
stage() {
    csi stage --volume files --staging /mnt/staging --fs ext4 --context "subsystemNqn=$nqn" \
        --context "namespaceUuid=$files" --context readOnly=false \
        --context "paths=$address:4422,$address:4423" "$@"
}
paths_are() { [ "$(cat /sys/class/nvme/nvme*/state 2> /dev/null | grep -c live)" = "$1" ]; }
# stays_out WHY ARGUMENT...: nobody gets in with these.
stays_out() {
    local why="$1"
    shift
    if stage "$@" 2> /tmp/refusal; then fail "staged with $*"; fi
    grep -q "Unauthenticated: .*$why" /tmp/refusal || { cat /tmp/refusal >&2; fail "it is not told why"; }
    csi unstage --volume files --staging /mnt/staging
    expect "$(ls /sys/class/nvme | wc -l)" 0 "paths with $*"
}

stays_out "it asks for a secret"
stays_out "are not those of the volume" --secret-file /tmp/wrong.secret
stays_out "are not those of the volume" \
    --secret-file /tmp/host.secret --controller-secret-file /tmp/wrong.secret

# The host alone, and both.
for both in "" "--controller-secret-file /tmp/engine.secret"; do
    # shellcheck disable=SC2086
    stage --secret-file /tmp/host.secret $both
    until_true 30 paths_are 2
    csi publish --volume files --staging /mnt/staging --fs ext4 --target /mnt/pod
    if [ -z "$both" ]; then
        random_file /mnt/pod/data 8
        sha256sum /mnt/pod/data > /tmp/sum
    fi
    sha256sum -c /tmp/sum
    csi unpublish --volume files --target /mnt/pod
    csi unstage --volume files --staging /mnt/staging
    expect "$(ls /sys/class/nvme | wc -l)" 0 "paths"
done

for name in host engine wrong; do
    secret="$(cut -d: -f3 < "/tmp/$name.secret")"
    if grep -qrF "$secret" /tmp/engine /tmp/driver /tmp/refusal /tmp/records; then
        fail "the secret $name is told"
    fi
done
kill -TERM "$driver" "$engine"
wait "$driver" || fail "the driver left with an error"
wait "$engine" || fail "the engine left with an error"
