//! What taking a buffer from a pool and giving it back costs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollux_hugepages::{Buffer, BufferPool, PoolOptions};

/// Commands in flight in the bursts.
const DEPTH: usize = 128;

fn pool() -> BufferPool {
    BufferPool::new(&PoolOptions::default()).expect("64 MiB can be mapped")
}

/// One buffer at a time, of each kind.
fn one(criterion: &mut Criterion) {
    let pool = pool();
    let mut group = criterion.benchmark_group("allocate and drop");
    for (name, len_bytes) in [("4 KiB", 4 << 10), ("128 KiB", 128 << 10), ("1 MiB", 1 << 20)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(pool.allocate(len_bytes)))
        });
    }
    group.bench_function("4 KiB, split in two", |bencher| {
        bencher.iter(|| {
            let mut buffer = pool.allocate(4096).expect("the pool is empty");
            let head = buffer.split_to(512);
            (black_box(head), black_box(buffer))
        });
    });
    group.bench_function("4 KiB, frozen and cloned", |bencher| {
        bencher.iter(|| {
            let slice = pool.allocate(4096).expect("the pool is empty").freeze();
            (black_box(slice.clone()), black_box(slice))
        });
    });
    group.bench_function("4 KiB from the heap, for comparison", |bencher| {
        bencher.iter(|| black_box(Vec::<u8>::with_capacity(4096)));
    });
    group.finish();
}

/// Many buffers in flight, first in, first out: per buffer.
fn many(criterion: &mut Criterion) {
    let pool = pool();
    let mut group = criterion.benchmark_group("128 in flight");
    group.throughput(Throughput::Elements(1));
    group.bench_function("4 KiB", |bencher| {
        let mut in_flight: Vec<_> = (0..DEPTH).map(|_| pool.allocate(4096)).collect();
        let mut next = 0;
        bencher.iter(|| {
            in_flight[next] = None;
            in_flight[next] = pool.allocate(4096);
            next = (next + 1) % DEPTH;
        });
    });
    group.bench_function("4 KiB in bursts", |bencher| {
        let mut in_flight = Vec::with_capacity(DEPTH);
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..iterations.div_ceil(DEPTH as u64) {
                in_flight.extend((0..DEPTH).map(|_| pool.allocate(4096)));
                in_flight.clear();
            }
            start.elapsed() * iterations as u32 / (iterations.next_multiple_of(DEPTH as u64) as u32)
        });
    });
    group.bench_function("4 KiB and 128 KiB in turn", |bencher| {
        let mut in_flight: Vec<_> = (0..DEPTH).map(|_| pool.allocate(4096)).collect();
        let mut next = 0;
        bencher.iter(|| {
            in_flight[next] = None;
            in_flight[next] = pool.allocate(if next % 2 == 0 { 4 << 10 } else { 128 << 10 });
            next = (next + 1) % DEPTH;
        });
    });
    group.finish();
}

/// Buffers that are dropped on another thread: allocating and collecting, per buffer, on the home thread.
fn remote(criterion: &mut Criterion) {
    let pool = pool();
    let mut group = criterion.benchmark_group("dropped on another thread");
    group.bench_function("4 KiB", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let count = left.min(8192);
                let start = Instant::now();
                let buffers: Vec<Option<Buffer>> = (0..count).map(|_| pool.allocate(4096)).collect();
                spent += start.elapsed();
                std::thread::spawn(|| drop(buffers))
                    .join()
                    .expect("dropping does not panic");
                let start = Instant::now();
                pool.collect();
                spent += start.elapsed();
                left -= count;
            }
            spent
        });
    });
    group.finish();
}

criterion_group!(benches, one, many, remote);
criterion_main!(benches);
