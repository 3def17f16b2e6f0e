//! Randomness of a simulation: every stream derives from one seed and a purpose.
//!
//! A stream of its own for each purpose and number (this connection, that drive) means that one more fault,
//! or one more machine, does not shift the choices made elsewhere: a seed stays close to itself while a
//! scenario is being changed. Nothing here uses floating point functions that differ between platforms.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The root of all randomness of one simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The stream for a purpose, such as `"network connection"`, and a number within it.
    pub fn stream(self, purpose: &str, number: u64) -> Random {
        let mut key = [0; 32];
        let mut state = hash_bytes(self.0 ^ hash_bytes(number, &[]), purpose.as_bytes());
        for word in key.chunks_exact_mut(8) {
            state = mix(state, self.0);
            word.copy_from_slice(&state.to_le_bytes());
        }
        Random(ChaCha8Rng::from_seed(key))
    }
}

/// One stream of choices.
#[derive(Debug, Clone)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// Any number.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of the high half of a product is far below what a test could see.
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of a range, both ends included; the start of an empty one.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (start, end) = (*range.start(), *range.end());
        match end.checked_sub(start) {
            Some(u64::MAX) => self.u64(),
            Some(span) => start + self.below(span + 1),
            None => start,
        }
    }

    /// An index of something that has `len` entries; 0 when it has none.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A span of a range, both ends included.
    pub fn duration(&mut self, range: RangeInclusive<Duration>) -> Duration {
        let nanos = |span: &Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.within(nanos(range.start())..=nanos(range.end())))
    }

    /// Whether something of this probability, 0.0 to 1.0, happens. Takes a number from the stream either way.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits fit a double exactly, so that this is the same on every platform.
        ((self.u64() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// One of the entries.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.index(from.len()))
    }

    /// Puts the entries in any order.
    pub fn shuffle<T>(&mut self, entries: &mut [T]) {
        for last in (1..entries.len()).rev() {
            entries.swap(last, self.index(last + 1));
        }
    }

    /// Fills bytes.
    pub fn fill(&mut self, into: &mut [u8]) {
        self.0.fill_bytes(into);
    }
}

/// Folds a value into a hash. Not for hostile input.
pub(crate) fn mix(hash: u64, value: u64) -> u64 {
    let mut mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 32;
    mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 29)
}

/// Folds bytes into a hash.
pub(crate) fn hash_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let mut hash = mix(hash, bytes.len() as u64);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        hash = mix(
            hash,
            word.iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        );
    }
    words
        .remainder()
        .iter()
        .fold(hash, |hash, &byte| mix(hash, u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, purpose: &str, number: u64) -> u64 {
        Seed(seed).stream(purpose, number).u64()
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_number_and_repeat() {
        assert_eq!(first(1, "drive", 0), first(1, "drive", 0));
        let mut values = vec![
            first(1, "drive", 0),
            first(2, "drive", 0),
            first(1, "link", 0),
            first(1, "drive", 1),
        ];
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), 4);
    }

    #[test]
    fn stays_within_its_bounds() {
        let mut random = Seed(3).stream("test", 0);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[random.within(3..=7) as usize - 3] = true;
            assert!(random.duration(Duration::ZERO..=Duration::from_nanos(2)) <= Duration::from_nanos(2));
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(random.below(0), 0);
        assert_eq!(random.within(9..=9), 9);
        assert!(!random.chance(0.0) && random.chance(1.0));
        assert!(random.pick::<u8>(&[]).is_none());
        let tails = (0..10_000).filter(|_| random.chance(0.25)).count();
        assert!((2_300..2_700).contains(&tails), "{tails}");
    }

    #[test]
    fn a_shuffle_keeps_every_entry() {
        let mut entries: Vec<u32> = (0..50).collect();
        Seed(4).stream("test", 0).shuffle(&mut entries);
        assert_ne!(entries, (0..50).collect::<Vec<_>>());
        entries.sort_unstable();
        assert_eq!(entries, (0..50).collect::<Vec<_>>());
    }
}
