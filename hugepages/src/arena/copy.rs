//! Copies between an arena, which other threads may be reading and writing, and memory of one's own.
//!
//! In Rust's memory model plain accesses that race are undefined behaviour, and no such rule binds a drive
//! whose DMA races with another. So the accesses to the arena are not plain ones:
//!
//! - On x86_64 they are made by an `asm!` block. To the compiler the block is opaque: it can have the effect
//!   of any code that Rust could express, and the one that these blocks stand for is a loop of relaxed
//!   one-byte atomic accesses, which cannot be a data race. The processor does at least as much: each aligned
//!   access of `rep movsb`, `rep stosb` and the vector instructions is made of whole bytes that are read and
//!   written once.
//! - Elsewhere (and under Miri, which cannot run assembly) they are relaxed atomic accesses of aligned 8-byte
//!   words, where part of a word is stored by compare-and-exchange: all accesses to the arena have one size,
//!   so that no two of different sizes can race. An arena is a whole number of pages, so the words are all
//!   inside.
//!
//! Which instructions: `rep movsb` is as fast as the standard library's copy here and needs no detection of
//! features. Copies of 16 KiB and more into an arena larger than the caches are 1.4 times as fast with
//! non-temporal stores, which do not read the old bytes first; where the arena would fit, they are half as
//! fast. Wider vectors gain nothing over the 16 bytes that every x86_64 has. Repeat it with `cargo bench -p
//! pollux-hugepages --bench copy`.

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use assembly::{copy_in, copy_in_uncached, copy_out, fill_zero};
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(super) use words::{copy_in, copy_in as copy_in_uncached, copy_out, fill_zero};

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod assembly {
    use core::arch::asm;

    /// What the processor writes at a time.
    const LINE_BYTES: usize = 64;

    /// Copies from an arena to memory of one's own.
    ///
    /// # Safety
    ///
    /// `len` bytes at `arena` are mapped; `len` bytes at `into` are the caller's alone; the two do not
    /// overlap.
    pub(in crate::arena) unsafe fn copy_out(arena: *const u8, into: *mut u8, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { copy(arena, into, len) }
    }

    /// Copies from memory of one's own to an arena.
    ///
    /// # Safety
    ///
    /// `len` bytes at `from` are not written by anyone; `len` bytes at `arena` are mapped; the two do not
    /// overlap.
    pub(in crate::arena) unsafe fn copy_in(from: *const u8, arena: *mut u8, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { copy(from, arena, len) }
    }

    /// Like [`copy_in`], around the caches: for much data that is not soon read again.
    ///
    /// # Safety
    ///
    /// As for [`copy_in`].
    pub(in crate::arena) unsafe fn copy_in_uncached(from: *const u8, arena: *mut u8, len: usize) {
        // Whole cache lines, between what comes before the first and after the last.
        let before = arena.addr().next_multiple_of(LINE_BYTES) - arena.addr();
        let Some(rest) = len.checked_sub(before).filter(|&rest| rest >= LINE_BYTES) else {
            // SAFETY: as the caller promises.
            return unsafe { copy_in(from, arena, len) };
        };
        let lines = rest / LINE_BYTES;
        let done = before + lines * LINE_BYTES;
        // SAFETY: the ranges are parts of those that the caller vouches for, and `movntdq` gets multiples of
        // 16; no other memory is written. The fence makes the stores ones that others see in order, as the
        // compiler believes of all of them. Races: see the file's head.
        unsafe {
            copy(from, arena, before);
            asm!(
                "2:",
                "movdqu {a}, [{from}]",
                "movdqu {b}, [{from} + 16]",
                "movdqu {c}, [{from} + 32]",
                "movdqu {d}, [{from} + 48]",
                "movntdq [{into}], {a}",
                "movntdq [{into} + 16], {b}",
                "movntdq [{into} + 32], {c}",
                "movntdq [{into} + 48], {d}",
                "add {from}, 64",
                "add {into}, 64",
                "dec {lines}",
                "jnz 2b",
                "sfence",
                from = inout(reg) from.add(before) => _,
                into = inout(reg) arena.add(before) => _,
                lines = inout(reg) lines => _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                options(nostack),
            );
            copy(from.add(done), arena.add(done), len - done);
        }
    }

    /// Fills an arena with zeros.
    ///
    /// # Safety
    ///
    /// `len` bytes at `arena` are mapped.
    pub(in crate::arena) unsafe fn fill_zero(arena: *mut u8, len: usize) {
        // SAFETY: the bytes are mapped, as the caller promises; the direction flag is clear as Rust's calling
        // convention demands; no other memory is written. Races: see the file's head.
        unsafe {
            asm!(
                "rep stosb",
                inout("rcx") len => _,
                inout("rdi") arena => _,
                in("al") 0_u8,
                options(nostack, preserves_flags),
            );
        }
    }

    unsafe fn copy(from: *const u8, into: *mut u8, len: usize) {
        // SAFETY: both ranges are valid and apart, as the callers promise; the direction flag is clear as
        // Rust's calling convention demands; no other memory is written. Races: see the file's head.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rdi") into => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(any(test, not(all(target_arch = "x86_64", not(miri)))))]
mod words {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    const WORD_BYTES: usize = 8;

    /// Copies from an arena to memory of one's own.
    ///
    /// # Safety
    ///
    /// The words that hold `len` bytes at `arena` are mapped; `len` bytes at `into` are the caller's alone;
    /// the two do not overlap.
    pub(in crate::arena) unsafe fn copy_out(arena: *const u8, into: *mut u8, len: usize) {
        for_each_word(arena.cast_mut(), len, |word, part, done| {
            // SAFETY: the word is mapped and aligned and only reached by atomic accesses of its size.
            let bytes = unsafe { AtomicU64::from_ptr(word) }.load(Relaxed).to_ne_bytes();
            // SAFETY: `done + part.len() <= len`, and those bytes are the caller's.
            unsafe {
                into.add(done)
                    .copy_from_nonoverlapping(bytes[part.clone()].as_ptr(), part.len())
            };
        });
    }

    /// Copies from memory of one's own to an arena.
    ///
    /// # Safety
    ///
    /// `len` bytes at `from` are not written by anyone; the words that hold `len` bytes at `arena` are
    /// mapped; the two do not overlap.
    pub(in crate::arena) unsafe fn copy_in(from: *const u8, arena: *mut u8, len: usize) {
        for_each_word(arena, len, |word, part, done| {
            // SAFETY: `done + part.len() <= len`, and nobody writes those bytes.
            let source = unsafe { std::slice::from_raw_parts(from.add(done), part.len()) };
            // SAFETY: the word is mapped and aligned and only reached by atomic accesses of its size.
            store(unsafe { AtomicU64::from_ptr(word) }, part, source);
        });
    }

    /// Fills an arena with zeros.
    ///
    /// # Safety
    ///
    /// The words that hold `len` bytes at `arena` are mapped.
    pub(in crate::arena) unsafe fn fill_zero(arena: *mut u8, len: usize) {
        for_each_word(arena, len, |word, part, _done| {
            // SAFETY: the word is mapped and aligned and only reached by atomic accesses of its size.
            store(
                unsafe { AtomicU64::from_ptr(word) },
                part.clone(),
                &[0; WORD_BYTES][part],
            );
        });
    }

    /// Replaces a part of a word.
    fn store(word: &AtomicU64, part: std::ops::Range<usize>, source: &[u8]) {
        let replaced = |old: u64| {
            let mut bytes = old.to_ne_bytes();
            bytes[part.clone()].copy_from_slice(source);
            u64::from_ne_bytes(bytes)
        };
        if source.len() == WORD_BYTES {
            word.store(replaced(0), Relaxed);
            return;
        }
        let mut old = word.load(Relaxed);
        while let Err(current) = word.compare_exchange_weak(old, replaced(old), Relaxed, Relaxed) {
            old = current;
        }
    }

    /// Calls `each` with every aligned word of a range, the part of it in the range, and the bytes done
    /// before.
    fn for_each_word(
        start: *mut u8,
        len: usize,
        mut each: impl FnMut(*mut u64, std::ops::Range<usize>, usize),
    ) {
        let mut done = 0;
        while done < len {
            let position = start.wrapping_add(done);
            let skipped = position.addr() % WORD_BYTES;
            let taken = (WORD_BYTES - skipped).min(len - done);
            each(
                position.wrapping_sub(skipped).cast(),
                skipped..skipped + taken,
                done,
            );
            done += taken;
        }
    }
}

#[cfg(test)]
mod tests;
