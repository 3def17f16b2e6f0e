//! How fast the wire types are: CRC-32C by two crates, and the PDU codec.
//!
//! `cargo bench -p pollux-nvme --bench wire`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollux_nvme::wire::command::{
    BlockCommand, BlockFlags, CompletionEntry, IoOpcode, SglDescriptor, SubmissionEntry,
};
use pollux_nvme::wire::digest::{Digest, crc32c};
use pollux_nvme::wire::pdu::{
    ConnectionLimits, DataAlignment, DataEnd, DataRange, Decoded, Direction, Framing, HEADER_BYTES_MAX,
    Header, Phase, decode_header, encode_command, encode_controller_data, encode_host_data,
    encode_ready_to_transfer, encode_response,
};
use pollux_nvme::wire::status::Status;

/// A data PDU header, a command capsule, a small and a large transfer.
const DIGEST_SIZES_BYTES: [usize; 4] = [24, 72, 4096, 128 << 10];

fn digests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32c");
    for size_bytes in DIGEST_SIZES_BYTES {
        let data: Vec<u8> = (0..=250).cycle().take(size_bytes).collect();
        group.throughput(Throughput::Bytes(size_bytes as u64));
        group.bench_function(format!("pollux/{size_bytes}"), |bencher| {
            bencher.iter(|| crc32c(black_box(&data)));
        });
        group.bench_function(format!("pollux in 4 KiB pieces/{size_bytes}"), |bencher| {
            bencher.iter(|| {
                let mut digest = Digest::new();
                for piece in black_box(&data).chunks(4096) {
                    digest.update(piece);
                }
                digest.value()
            });
        });
        group.bench_function(format!("crate crc32c/{size_bytes}"), |bencher| {
            bencher.iter(|| crc32c::crc32c(black_box(&data)));
        });
        group.bench_function(format!("crate crc-fast/{size_bytes}"), |bencher| {
            bencher.iter(|| crc_fast::crc32_iscsi(black_box(&data)));
        });
    }
    group.finish();
}

fn limits(framing: &Framing) -> ConnectionLimits {
    ConnectionLimits {
        phase: Phase::Established,
        header_digest: framing.header_digest,
        data_digest: framing.data_digest,
        data_alignment: framing.data_alignment,
        in_capsule_data_bytes_max: 8192,
        host_data_bytes_max: 128 << 10,
        controller_data_bytes_max: 1 << 20,
    }
}

const RANGE: DataRange = DataRange {
    command_id: 7,
    offset_bytes: 0,
    length_bytes: 4096,
};

fn read_entry() -> SubmissionEntry {
    let command = BlockCommand {
        starting_block: 12_345,
        blocks: 8,
        flags: BlockFlags::empty(),
    };
    command.to_entry(IoOpcode::Read, 7, 1, SglDescriptor::transport(4096))
}

/// What a connection looks at first, folded into one number so that nothing but decoding is measured.
fn looked_at(bytes: &[u8], limits: &ConnectionLimits) -> u64 {
    let Ok(Decoded::Pdu(pdu)) = decode_header(bytes, Direction::HostToController, limits) else {
        return 0;
    };
    match pdu.header {
        Header::Command(capsule) => {
            let command = BlockCommand::from_entry(&capsule.entry);
            command.starting_block + u64::from(command.blocks) + pdu.data_bytes as u64
        }
        Header::HostData(data) => u64::from(data.transfer_tag.get()) + pdu.data_offset as u64,
        _ => 0,
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, header_digest) in [("", false), (" with header digest", true)] {
        let framing = Framing {
            header_digest,
            data_digest: false,
            data_alignment: DataAlignment::NONE,
        };
        let limits = limits(&framing);
        let mut command = [0; HEADER_BYTES_MAX];
        let command_bytes = encode_command(&read_entry(), 0, &framing, &mut command).expect("it fits");
        let mut data = [0; HEADER_BYTES_MAX];
        let data_bytes = encode_host_data(RANGE, 3, true, &framing, &mut data).expect("it fits");
        group.bench_function(format!("command{name}"), |bencher| {
            bencher.iter(|| looked_at(black_box(&command[..command_bytes]), black_box(&limits)));
        });
        group.bench_function(format!("host data{name}"), |bencher| {
            bencher.iter(|| looked_at(black_box(&data[..data_bytes]), black_box(&limits)));
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for (name, header_digest) in [("", false), (" with header digest", true)] {
        let framing = Framing {
            header_digest,
            data_digest: false,
            data_alignment: DataAlignment::NONE,
        };
        let completion = CompletionEntry::new(7, Status::SUCCESS, 0).with_queue_head(9);
        let entry = read_entry();
        let mut out = [0; HEADER_BYTES_MAX];
        group.bench_function(format!("response{name}"), |bencher| {
            bencher.iter(|| {
                encode_response(black_box(&completion), black_box(&framing), black_box(&mut out)).unwrap_or(0)
            });
        });
        group.bench_function(format!("controller data{name}"), |bencher| {
            bencher.iter(|| {
                let range = DataRange {
                    offset_bytes: black_box(4096),
                    ..RANGE
                };
                let end = DataEnd::LastAndSuccess;
                encode_controller_data(range, end, black_box(&framing), black_box(&mut out)).unwrap_or(0)
            });
        });
        group.bench_function(format!("ready to transfer{name}"), |bencher| {
            bencher.iter(|| {
                let range = DataRange {
                    offset_bytes: black_box(4096),
                    ..RANGE
                };
                encode_ready_to_transfer(range, 3, black_box(&framing), black_box(&mut out)).unwrap_or(0)
            });
        });
        group.bench_function(format!("command{name}"), |bencher| {
            bencher.iter(|| {
                encode_command(black_box(&entry), 4096, black_box(&framing), black_box(&mut out)).unwrap_or(0)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, digests, decode, encode);
criterion_main!(benches);
