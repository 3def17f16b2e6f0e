//! Ways to copy between an arena and a buffer: which one the arena uses was chosen by this.
//!
//! The store is touched at random: one of 256 MiB, which is more than the caches hold, and one of 16 MiB,
//! which is not; the buffer is hot. The candidates take turns of a few milliseconds, so that whatever else
//! the machine does disturbs all of them alike.

#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::Instant;

use pollux_hugepages::{Arena, ArenaOptions, Buffer, PagePreference};

const COLD_STORE_BYTES: usize = 256 << 20;
const CACHED_STORE_BYTES: usize = 16 << 20;
/// Bytes copied in one turn of a candidate.
const TURN_BYTES: usize = 16 << 20;
/// Turns of each candidate.
const ROUNDS: usize = 40;

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
        (
            $(#[$doc:meta])* $name:ident,
            $stride:literal, [$($load:literal),*], [$($store:literal),*], $end:literal
        ) => {
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
        /// 16 bytes a register, four at a time, with stores that go around the caches: every x86_64 has
        /// these.
        sse2_non_temporal,
        64,
        [
            "movdqu xmm0, [{from}]",
            "movdqu xmm1, [{from} + 16]",
            "movdqu xmm2, [{from} + 32]",
            "movdqu xmm3, [{from} + 48]"
        ],
        [
            "movntdq [{into}], xmm0",
            "movntdq [{into} + 16], xmm1",
            "movntdq [{into} + 32], xmm2",
            "movntdq [{into} + 48], xmm3"
        ],
        "sfence"
    );
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
         "vmovntdq [{into} + 64], ymm2", "vmovntdq [{into} + 96], ymm3"], "sfence\n vzeroupper"
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
         "vmovntdq [{into} + 128], zmm2", "vmovntdq [{into} + 192], zmm3"], "sfence\n vzeroupper"
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
    all.push(("sse2 non-temporal", variants::sse2_non_temporal));
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
struct Places {
    state: u64,
    store_bytes: usize,
    len: usize,
}

impl Places {
    fn next(&mut self) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % (self.store_bytes / self.len) * self.len
    }
}

/// GB/s at the first quartile of the times: what the machine does when nobody disturbs, but not a lucky once.
fn rate(bytes: usize, times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    bytes as f64 / times[times.len() / 4] / 1e9
}

/// What takes turns: its name, and copying into the store and out of it at a place.
type Contender<'a> = (&'static str, [Box<dyn Fn(usize, &mut [u8]) + 'a>; 2]);

fn contenders(arena: &Arena) -> Vec<Contender<'_>> {
    let base = arena.base().as_ptr();
    let mut all: Vec<Contender<'_>> = Vec::new();
    for (name, copy) in candidates() {
        all.push((
            name,
            [
                // SAFETY: the places are inside the arena, which nobody else uses.
                Box::new(move |place, hot| unsafe { copy(hot.as_ptr(), base.add(place), hot.len()) }),
                // SAFETY: as before.
                Box::new(move |place, hot| unsafe { copy(base.add(place), hot.as_mut_ptr(), hot.len()) }),
            ],
        ));
    }
    all.push((
        "Arena: copy_in, copy_out",
        [
            Box::new(|place, hot| arena.copy_in(place, hot)),
            Box::new(|place, hot| arena.copy_out(place, hot)),
        ],
    ));
    all.push((
        "Arena: fill_zero, compare",
        [
            Box::new(|place, hot| arena.fill_zero(place, hot.len())),
            // All bytes are zeros, here and there.
            Box::new(|place, hot| assert!(arena.compare(place, hot).is_none())),
        ],
    ));
    all
}

fn measure(arena: &Arena, hot: &mut [u8]) {
    let copies = TURN_BYTES / hot.len();
    let mut places = Places {
        state: 0x9e37_79b9_7f4a_7c15,
        store_bytes: arena.len_bytes(),
        len: hot.len(),
    };
    let contenders = contenders(arena);
    let mut times: Vec<[Vec<f64>; 2]> = vec![[const { Vec::new() }; 2]; contenders.len()];
    for round in 0..ROUNDS {
        // Another one begins each time, so that none always comes after the same other one.
        for turn in 0..contenders.len() {
            let who = (round * 3 + turn) % contenders.len();
            for (copy, times) in contenders[who].1.iter().zip(&mut times[who]) {
                // The first turn is for the caches to become what this contender leaves of them.
                (0..copies).for_each(|_| copy(places.next(), hot));
                let start = Instant::now();
                (0..copies).for_each(|_| copy(places.next(), hot));
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    for ((name, _), [into, out]) in contenders.iter().zip(&mut times) {
        let bytes = copies * hot.len();
        println!(
            "{:>6} KiB  {name:<26} {:>6.1} {:>6.1}",
            hot.len() >> 10,
            rate(bytes, into),
            rate(bytes, out)
        );
    }
}

fn main() {
    for (page, store_bytes) in [
        (PagePreference::Ordinary, COLD_STORE_BYTES),
        (PagePreference::Size2MiB, COLD_STORE_BYTES),
        (PagePreference::Size2MiB, CACHED_STORE_BYTES),
    ] {
        let options = ArenaOptions {
            page,
            populate: true,
            fall_back: false,
            ..ArenaOptions::default()
        };
        let arena = match Arena::map(store_bytes, &options) {
            Ok(arena) => arena,
            Err(error) => {
                println!("not measured: {error}");
                continue;
            }
        };
        println!(
            "store of {} MiB on {} pages, GB/s       in    out",
            store_bytes >> 20,
            arena.page_kind()
        );
        for len in [4 << 10, 16 << 10, 128 << 10] {
            let mut hot = Buffer::from_heap(len);
            hot.fill(0);
            measure(&arena, &mut hot);
        }
    }
}
