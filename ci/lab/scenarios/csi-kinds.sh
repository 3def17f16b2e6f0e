# XFS and Btrfs from the controller service to the kernel, as in `csi-cluster`: made, filled, grown while they
# are mounted, and there again.
#
# time limit: 300 s
# programs: pollux-csi
# modules: btrfs
# kernel may say: I/O fail on reconnect controller
# kernel may say: no usable path - requeuing I/O
# kernel may say: nvme_ns_head_submit_bio:

to_host
ask cluster start 3 > /dev/null
csi_start --keep-alive 30
# XFS and Btrfs: made, filled, grown while they are mounted, and there again.
for kind in xfs btrfs; do
    ask csi create --name "$kind" --bytes $((320 << 20)) --parameter replicas=2
    context="$(csi_publish "$kind")"
    csi stage --volume "$kind" --staging /mnt/staging --fs "$kind" $context
    csi publish --volume "$kind" --staging /mnt/staging --fs "$kind" --target /mnt/pod
    random_file /mnt/pod/data 8
    sum="$(sha256sum < /mnt/pod/data)"
    before="$(mib_of /mnt/pod)"
    ask csi expand --volume "$kind" --bytes $((448 << 20))
    csi expand --volume "$kind" --target /mnt/pod --bytes $((448 << 20))
    [ "$(mib_of /mnt/pod)" -gt $((before + 100)) ] || fail "$kind has not grown"
    csi unpublish --volume "$kind" --target /mnt/pod
    csi unstage --volume "$kind" --staging /mnt/staging
    csi stage --volume "$kind" --staging /mnt/staging $context
    csi publish --volume "$kind" --staging /mnt/staging --target /mnt/pod
    expect "$(sha256sum < /mnt/pod/data)" "$sum" "what was written to $kind"
    csi unpublish --volume "$kind" --target /mnt/pod
    csi_unstage "$kind" /mnt/staging
    ask csi delete --volume "$kind"
done

csi_end
