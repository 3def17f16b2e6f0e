//! `null` and `malloc` through the whole layer: a buffer from the pool, submit, complete, drop. 4 KiB, depth
//! 128, one thread that stays on the core it started on.
//!
//! `cargo bench -p pollux-device --bench device`; the throughput that criterion prints is in requests a
//! second. For a comparison with SPDK's `bdevperf` run both in turn on one core (`taskset`), several times.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollux_device::{
    BlockDevice, Completion, Device, Gather, Geometry, MallocDevice, MallocOptions, NullDevice, Reply,
    Request,
};
use pollux_hugepages::{BufferPool, PoolOptions};

const BLOCK_BYTES: usize = 4096;
const DEPTH: usize = 128;
/// As large as the device that SPDK is measured with: more than the second-level cache.
const SIZE_BYTES: u64 = 256 << 20;

/// Positions that a processor cannot guess, and that cost nearly nothing.
struct Positions(u64);

impl Positions {
    fn next(&mut self, blocks: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % blocks
    }
}

fn attach(device: Arc<dyn Device>) -> Rc<dyn BlockDevice> {
    let mut attaching = device.attach();
    match attaching.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(queue)) => queue,
        _ => panic!("these devices attach at once"),
    }
}

fn finish(completion: Completion) -> Reply {
    let mut completion = std::pin::pin!(completion);
    match completion.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(reply)) => reply,
        _ => panic!("these devices complete at once"),
    }
}

/// Submits a whole queue of requests, then takes all completions.
fn round(
    queue: &dyn BlockDevice,
    pool: &BufferPool,
    positions: &mut Positions,
    in_flight: &mut Vec<Completion>,
    write: bool,
) {
    let blocks = SIZE_BYTES / BLOCK_BYTES as u64;
    for _ in 0..DEPTH {
        let buffer = pool.allocate(BLOCK_BYTES).expect("the pool holds the depth");
        let block = positions.next(blocks);
        let request = if write {
            Request::Write {
                block,
                from: Gather::from(buffer),
                force_unit_access: false,
            }
        } else {
            Request::Read { block, into: buffer }
        };
        in_flight.push(queue.submit(request));
    }
    for completion in in_flight.drain(..) {
        black_box(finish(completion));
    }
}

fn bench(criterion: &mut Criterion) {
    let cpu = rustix::thread::sched_getcpu();
    let mut only = rustix::thread::CpuSet::new();
    only.set(cpu);
    rustix::thread::sched_setaffinity(None, &only).expect("a core of one's own");

    let pool = BufferPool::new(&PoolOptions::default()).expect("memory");
    let geometry = Geometry::new(SIZE_BYTES, BLOCK_BYTES as u32).expect("a geometry");
    let malloc = MallocDevice::new("malloc", &MallocOptions::new(SIZE_BYTES)).expect("memory");
    let devices: [(&str, Arc<dyn Device>); 2] =
        [("null", NullDevice::new("null", geometry)), ("malloc", malloc)];

    for (name, device) in devices {
        let queue = attach(device);
        let mut group = criterion.benchmark_group(format!("{name} 4KiB depth {DEPTH}"));
        group.throughput(Throughput::Elements(DEPTH as u64));
        // Writes first, so that no read finds memory that was never touched.
        for (operation, write) in [("write", true), ("read", false)] {
            let mut positions = Positions(0x9e37_79b9_7f4a_7c15);
            let mut in_flight = Vec::with_capacity(DEPTH);
            group.bench_function(operation, |bencher| {
                bencher.iter(|| round(&*queue, &pool, &mut positions, &mut in_flight, write));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
