//! Ways to copy between an arena and a buffer: which one the arena uses was chosen by this.
//!
//! The store is 256 MiB, far more than the second-level cache, touched at random; the buffer is hot.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pollux_hugepages::{Arena, ArenaOptions, Buffer, BufferPool, PagePreference, PoolOptions};

const STORE_BYTES: usize = 256 << 20;

/// A copy of bytes from one place to another that do not overlap.
type Copy = unsafe fn(from: *const u8, into: *mut u8, len: usize);

#[cfg(target_arch = "x86_64")]
mod variants {
    use core::arch::asm;

    /// The processor's own copy.
    pub unsafe fn move_string(from: *const u8, into: *mut u8, len: usize) {
        // SAFETY: the caller's.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => _, inout("rdi") into => _, inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
    }

    macro_rules! vector_loop {
        ($(#[$doc:meta])* $name:ident, $stride:literal, [$($load:literal),*], [$($store:literal),*], $end:literal) => {
            $(#[$doc])*
            pub unsafe fn $name(from: *const u8, into: *mut u8, len: usize) {
                assert!(len % $stride == 0 && len > 0);
                // SAFETY: the caller's.
                unsafe {
                    asm!(
                        "2:",
                        $($load,)*
                        $($store,)*
                        "add {from}, {stride}",
                        "add {into}, {stride}",
                        "sub {len}, {stride}",
                        "jnz 2b",
                        $end,
                        "vzeroupper",
                        from = inout(reg) from => _,
                        into = inout(reg) into => _,
                        len = inout(reg) len => _,
                        stride = const $stride,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                        options(nostack),
                    );
                }
            }
        };
    }

    vector_loop!(
        /// 32 bytes a register, four at a time.
        avx2, 128,
        ["vmovdqu ymm0, [{from}]", "vmovdqu ymm1, [{from} + 32]",
         "vmovdqu ymm2, [{from} + 64]", "vmovdqu ymm3, [{from} + 96]"],
        ["vmovdqu [{into}], ymm0", "vmovdqu [{into} + 32], ymm1",
         "vmovdqu [{into} + 64], ymm2", "vmovdqu [{into} + 96], ymm3"], ""
    );
    vector_loop!(
        /// The same with stores that go around the caches.
        avx2_non_temporal, 128,
        ["vmovdqu ymm0, [{from}]", "vmovdqu ymm1, [{from} + 32]",
         "vmovdqu ymm2, [{from} + 64]", "vmovdqu ymm3, [{from} + 96]"],
        ["vmovntdq [{into}], ymm0", "vmovntdq [{into} + 32], ymm1",
         "vmovntdq [{into} + 64], ymm2", "vmovntdq [{into} + 96], ymm3"], "sfence"
    );
    vector_loop!(
        /// The same, fetching 1 KiB ahead.
        avx2_prefetching, 128,
        ["prefetcht0 [{from} + 1024]", "prefetcht0 [{from} + 1088]",
         "vmovdqu ymm0, [{from}]", "vmovdqu ymm1, [{from} + 32]",
         "vmovdqu ymm2, [{from} + 64]", "vmovdqu ymm3, [{from} + 96]"],
        ["vmovdqu [{into}], ymm0", "vmovdqu [{into} + 32], ymm1",
         "vmovdqu [{into} + 64], ymm2", "vmovdqu [{into} + 96], ymm3"], ""
    );
    vector_loop!(
        /// 64 bytes a register, four at a time.
        avx512, 256,
        ["vmovdqu64 zmm0, [{from}]", "vmovdqu64 zmm1, [{from} + 64]",
         "vmovdqu64 zmm2, [{from} + 128]", "vmovdqu64 zmm3, [{from} + 192]"],
        ["vmovdqu64 [{into}], zmm0", "vmovdqu64 [{into} + 64], zmm1",
         "vmovdqu64 [{into} + 128], zmm2", "vmovdqu64 [{into} + 192], zmm3"], ""
    );
    vector_loop!(
        /// The same with stores that go around the caches.
        avx512_non_temporal, 256,
        ["vmovdqu64 zmm0, [{from}]", "vmovdqu64 zmm1, [{from} + 64]",
         "vmovdqu64 zmm2, [{from} + 128]", "vmovdqu64 zmm3, [{from} + 192]"],
        ["vmovntdq [{into}], zmm0", "vmovntdq [{into} + 64], zmm1",
         "vmovntdq [{into} + 128], zmm2", "vmovntdq [{into} + 192], zmm3"], "sfence"
    );
}

/// What the standard library does, which needs that nobody else looks.
unsafe fn standard(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe { into.copy_from_nonoverlapping(from, len) }
}

#[cfg(target_arch = "x86_64")]
fn candidates() -> Vec<(&'static str, Copy)> {
    let mut all: Vec<(&str, Copy)> = vec![("standard", standard), ("rep movsb", variants::move_string)];
    if is_x86_feature_detected!("avx2") {
        all.push(("avx2", variants::avx2));
        all.push(("avx2 non-temporal", variants::avx2_non_temporal));
        all.push(("avx2 prefetching", variants::avx2_prefetching));
    }
    if is_x86_feature_detected!("avx512f") {
        all.push(("avx512", variants::avx512));
        all.push(("avx512 non-temporal", variants::avx512_non_temporal));
    }
    all
}

#[cfg(not(target_arch = "x86_64"))]
fn candidates() -> Vec<(&'static str, Copy)> {
    vec![("standard", standard)]
}

/// Places in the store in an order that no prefetcher foresees.
fn places(len: usize) -> impl FnMut() -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % (STORE_BYTES / len) * len
    }
}

fn buffer(len: usize) -> Buffer {
    let pool = BufferPool::new(&PoolOptions::default()).expect("64 MiB can be mapped");
    pool.allocate(len).expect("the pool is empty")
}

fn copies(criterion: &mut Criterion) {
    for page in [PagePreference::Ordinary, PagePreference::Size2MiB] {
        let options = ArenaOptions {
            page,
            populate: true,
            fall_back: false,
            ..ArenaOptions::default()
        };
        let Ok(arena) = Arena::map(STORE_BYTES, &options) else {
            // Huge pages have to be reserved first; without, there is nothing to measure.
            continue;
        };
        for len in [4 << 10, 128 << 10] {
            let mut hot = buffer(len);
            hot.fill(1);
            let mut group = criterion.benchmark_group(format!("{page:?} pages, {} KiB", len >> 10));
            group.throughput(Throughput::Bytes(len as u64));
            for (name, copy) in candidates() {
                let mut next = places(len);
                group.bench_function(BenchmarkId::new("in", name), |bencher| {
                    bencher.iter(|| {
                        // SAFETY: the place is inside the arena, which nobody else uses.
                        unsafe { copy(hot.as_ptr(), arena.base().as_ptr().add(next()), len) }
                    });
                });
                group.bench_function(BenchmarkId::new("out", name), |bencher| {
                    bencher.iter(|| {
                        // SAFETY: the place is inside the arena, which nobody else uses.
                        unsafe { copy(arena.base().as_ptr().add(next()), hot.as_mut_ptr(), len) }
                        black_box(&hot);
                    });
                });
            }
            let mut next = places(len);
            group.bench_function(BenchmarkId::new("in", "Arena::copy_in"), |bencher| {
                bencher.iter(|| arena.copy_in(next(), &hot));
            });
            group.bench_function(BenchmarkId::new("out", "Arena::copy_out"), |bencher| {
                bencher.iter(|| arena.copy_out(next(), &mut hot));
            });
            group.bench_function("zero", |bencher| bencher.iter(|| arena.fill_zero(next(), len)));
            group.bench_function("compare", |bencher| {
                hot.fill(0);
                bencher.iter(|| arena.compare(next(), &hot));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, copies);
criterion_main!(benches);
