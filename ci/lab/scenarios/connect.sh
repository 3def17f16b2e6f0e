# The kernel connects with and without header and data digests and with one or several queues, and what it
# writes is what it reads, with requests of every size.
#
# time limit: 240 s

port="$(ask engine start 'malloc:///disk?size=64MiB')"
random_file /tmp/data 8

for options in '' '--hdr-digest' '--data-digest' '--hdr-digest --data-digest' '--nr-io-queues=1'; do
    echo "-- connect $options"
    # shellcheck disable=SC2086
    connect $options
    device="$(block 1)"
    expect "$(bytes_of "$device")" 67108864 "size"
    queues="$(cat "/sys/class/nvme/$(controller)/queue_count")"
    case "$options" in
        *queues=1*) expect "$queues" 2 "queues with that of the administrator" ;;
        *) expect "$queues" 3 "queues with that of the administrator" ;;
    esac
    for block_bytes in 512 4096 65536 1048576; do
        count=$((2097152 / block_bytes))
        dd if=/tmp/data of="$device" bs="$block_bytes" count="$count" seek="$count" conv=fsync 2> /dev/null
        drop_caches
        dd if="$device" bs="$block_bytes" count="$count" skip="$count" iflag=direct 2> /dev/null > /tmp/read
        head -c 2097152 /tmp/data | cmp - /tmp/read
    done
    disconnect
done
