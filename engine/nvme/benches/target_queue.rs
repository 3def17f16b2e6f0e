//! Commands through an I/O queue of the target, without a connection: checked, looked up, submitted to the
//! device, answered. 4 KiB, depth 128.
//!
//! `cargo bench -p pollux-nvme --bench target_queue`; the throughput that criterion prints is in commands a
//! second.

#![allow(clippy::unwrap_used, reason = "a benchmark may fail by a panic")]

#[path = "../tests/support/queue.rs"]
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollux_device::{Device, Geometry, MallocDevice, MallocOptions, NullDevice};
use pollux_hugepages::Slice;
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};
use queue::{BLOCK_BYTES, Host, Later};

const DEPTH: u16 = 128;
const SIZE_BYTES: u64 = 256 << 20;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Null,
    Malloc,
    MallocLater,
}

fn device(kind: Kind) -> Arc<dyn Device> {
    let malloc = || MallocDevice::new("memory", &MallocOptions::new(SIZE_BYTES)).unwrap();
    match kind {
        Kind::Null => NullDevice::new("nothing", Geometry::new(SIZE_BYTES, BLOCK_BYTES as u32).unwrap()),
        Kind::Malloc => malloc(),
        Kind::MallocLater => Arc::new(Later(malloc())),
    }
}

fn run(reactor: &ReactorThread, device: &Arc<dyn Device>, write: bool, rounds: u64) -> Duration {
    let device = device.clone();
    let elapsed = reactor.handle().call_blocking(move || async move {
        let mut host = Host::new(device, DEPTH).await;
        let data = Slice::copy_from(&[7; BLOCK_BYTES]);
        let data = write.then_some(&data);
        host.round(0..DEPTH.into(), data).await;
        let start = Instant::now();
        let mut position = 1u64;
        for _ in 0..rounds {
            let blocks = (0..DEPTH).map(|_| {
                // Positions that a processor cannot guess, and that cost nearly nothing.
                position ^= position << 13;
                position ^= position >> 7;
                position ^= position << 17;
                position % (SIZE_BYTES / BLOCK_BYTES as u64)
            });
            host.round(blocks, data).await;
        }
        start.elapsed()
    });
    elapsed.unwrap()
}

fn bench(criterion: &mut Criterion) {
    let settings = Settings {
        idle: IdlePolicy::Poll,
        ..Settings::default()
    };
    let reactor = ReactorThread::spawn(settings).unwrap();
    let mut group = criterion.benchmark_group("target_queue");
    group.throughput(Throughput::Elements(DEPTH.into()));
    for kind in [Kind::Null, Kind::Malloc, Kind::MallocLater] {
        let device = device(kind);
        // Every block is there before anything is measured.
        run(
            &reactor,
            &device,
            true,
            20 * SIZE_BYTES / BLOCK_BYTES as u64 / u64::from(DEPTH),
        );
        for write in [false, true] {
            let name = format!("{kind:?}/{}", if write { "write" } else { "read" });
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| run(&reactor, &device, write, rounds));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
