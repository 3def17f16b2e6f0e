//! All ways of copying against plain slices, at all alignments.

use std::sync::atomic::{AtomicPtr, Ordering};

use proptest::prelude::*;

use super::words;

/// A page of words, as an arena is, and the plain bytes it should be equal to.
struct Compared {
    arena: Vec<u64>,
    model: Vec<u8>,
}

const LEN: usize = if cfg!(miri) { 256 } else { 1024 };

impl Compared {
    fn new() -> Compared {
        let model: Vec<u8> = (0..LEN).map(|position| (position % 253) as u8 + 1).collect();
        let words = model
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        Compared {
            arena: words.collect(),
            model,
        }
    }

    fn arena(&mut self) -> *mut u8 {
        self.arena.as_mut_ptr().cast()
    }

    fn check(&self) {
        let bytes: Vec<u8> = self.arena.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, self.model);
    }
}

type CopyIn = unsafe fn(*const u8, *mut u8, usize);
type CopyOut = unsafe fn(*const u8, *mut u8, usize);
type FillZero = unsafe fn(*mut u8, usize);

fn compare(offset: usize, from: &[u8], (into, out, zero): (CopyIn, CopyOut, FillZero)) {
    let len = from.len();
    let mut compared = Compared::new();
    let mut found = vec![0; len];
    // SAFETY: `offset + len` is at most LEN, and nobody else knows the words.
    unsafe { out(compared.arena().add(offset), found.as_mut_ptr(), len) };
    assert_eq!(found, compared.model[offset..offset + len]);
    // SAFETY: as before.
    unsafe { into(from.as_ptr(), compared.arena().add(offset), len) };
    compared.model[offset..offset + len].copy_from_slice(from);
    compared.check();
    // SAFETY: as before.
    unsafe { zero(compared.arena().add(offset), len) };
    compared.model[offset..offset + len].fill(0);
    compared.check();
}

fn all_ways() -> Vec<(CopyIn, CopyOut, FillZero)> {
    vec![
        (words::copy_in, words::copy_out, words::fill_zero),
        (super::copy_in, super::copy_out, super::fill_zero),
        (super::copy_in_uncached, super::copy_out, super::fill_zero),
    ]
}

#[test]
fn every_way_copies_at_every_alignment() {
    let from: Vec<u8> = (0..LEN).map(|position| (position % 241) as u8 ^ 0x5a).collect();
    let lengths = if cfg!(miri) {
        vec![0, 1, 7, 9]
    } else {
        (0..=72).chain(120..=136).chain(188..=200).collect::<Vec<_>>()
    };
    let alignments = if cfg!(miri) { 3 } else { 65 };
    for way in all_ways() {
        for offset in 0..alignments {
            for &len in &lengths {
                compare(offset, &from[3..3 + len], way);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_way_copies_what_a_slice_would(
        offset in 0..LEN,
        from in prop::collection::vec(any::<u8>(), 0..LEN),
    ) {
        let len = from.len().min(LEN - offset);
        for way in all_ways() {
            compare(offset, &from[..len], way);
        }
    }
}

#[test]
fn words_that_are_shared_keep_the_bytes_of_others() {
    // Two threads write every other range of three bytes, at once: no byte of either may be lost.
    let mut words = vec![0_u64; 96];
    let shared = AtomicPtr::new(words.as_mut_ptr().cast::<u8>());
    let rounds = if cfg!(miri) { 2 } else { 2000 };
    std::thread::scope(|scope| {
        for thread in 0..2_usize {
            let arena = &shared;
            scope.spawn(move || {
                let arena = arena.load(Ordering::Relaxed);
                for _ in 0..rounds {
                    for range in (thread * 3..768).step_by(6) {
                        // SAFETY: inside the words, which are only reached by atomic accesses while threads
                        // run.
                        unsafe { words::copy_in([thread as u8 + 1; 3].as_ptr(), arena.add(range), 3) };
                    }
                }
            });
        }
    });
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(position, &byte)| byte as usize == position / 3 % 2 + 1)
    );
}
