//! Which pages of an arena were written: a bit for each 4096 bytes.
//!
//! Not taken from the kernel, which knows nothing of the kind about huge pages, and for others tells whether
//! a page is in memory just now.
//!
//! Invariant: the bit of a page with anything but zeros in it is set. Bits are set before the page is
//! written, and cleared after it was filled with zeros, by whoever keeps all others from writing it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 4096;

const WORD_BITS: u64 = 64;

/// The bits of one arena.
pub(super) struct Written(Box<[AtomicU64]>);

impl Written {
    /// For an arena of so many bytes, of which nothing was written.
    pub(super) fn new(bytes: u64) -> Self {
        let words = bytes.div_ceil(PAGE_BYTES).div_ceil(WORD_BITS);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes that bytes are about to be written.
    #[inline]
    pub(super) fn set(&self, bytes: Range<u64>) {
        for page in bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES) {
            let (word, bit) = place(page);
            // Written before, mostly: then the line stays shared between the cores.
            if let Some(word) = self.0.get(word)
                && word.load(Ordering::Relaxed) & bit == 0
            {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Notes that bytes are zeros now; counts for the pages that are wholly among them.
    pub(super) fn clear(&self, bytes: Range<u64>) {
        for page in bytes.start.div_ceil(PAGE_BYTES)..bytes.end / PAGE_BYTES {
            let (word, bit) = place(page);
            if let Some(word) = self.0.get(word) {
                word.fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }

    /// Whether the page with this byte was written, and where the last of its neighbours that are alike ends,
    /// no further than `end`.
    pub(super) fn run(&self, byte: u64, end: u64) -> (bool, u64) {
        let first = byte / PAGE_BYTES;
        let written = self.is_set(first);
        let mut page = first + 1;
        while page * PAGE_BYTES < end && self.is_set(page) == written {
            // Whole words at a time where the device is large and empty, or full.
            let alike = if written { u64::MAX } else { 0 };
            let whole = page.is_multiple_of(WORD_BITS)
                && self.0.get(place(page).0).map(|word| word.load(Ordering::Relaxed)) == Some(alike);
            page += if whole { WORD_BITS } else { 1 };
        }
        (written, (page * PAGE_BYTES).min(end))
    }

    fn is_set(&self, page: u64) -> bool {
        let (word, bit) = place(page);
        self.0
            .get(word)
            .is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }
}

fn place(page: u64) -> (usize, u64) {
    ((page / WORD_BITS) as usize, 1 << (page % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        /// Against a list of pages.
        #[test]
        fn agrees_with_a_list(
            changes in prop::collection::vec((any::<bool>(), 0u64..1_200_000, 0u64..600_000), 0..40),
            start in 0u64..1_300_000,
        ) {
            const BYTES: u64 = 1_310_720;
            let written = Written::new(BYTES);
            let mut model = vec![false; (BYTES / PAGE_BYTES) as usize];
            for (set, from, len) in changes {
                let range = from..(from + len).min(BYTES);
                for (page, state) in (0..).zip(model.iter_mut()) {
                    let page = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                    if set {
                        *state |= range.start < page.end && page.start < range.end;
                    } else {
                        *state &= !(range.start <= page.start && page.end <= range.end);
                    }
                }
                if set { written.set(range) } else { written.clear(range) }
            }
            let mut at = start;
            while at < BYTES {
                let (state, end) = written.run(at, BYTES);
                prop_assert!(end > at);
                for page in at / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
                    prop_assert_eq!(model[page as usize], state);
                }
                if end < BYTES {
                    prop_assert_ne!(model[(end / PAGE_BYTES) as usize], state);
                }
                at = end;
            }
        }
    }
}
