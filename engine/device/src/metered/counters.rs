//! Counters of one queue pair, and their sum over many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::request::Request;

/// Kinds of requests that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Reads and compares.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Deallocations, and writes of zeros.
    Deallocate,
}

impl Operation {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Deallocate];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Deallocate => "deallocate",
        }
    }

    /// That of a request, and the bytes that it moves or frees.
    pub(super) fn of(request: &Request, block_shift: u32) -> (Self, u64) {
        match request {
            Request::Read { into, .. } => (Self::Read, into.len() as u64),
            Request::Compare { with, .. } => (Self::Read, with.len_bytes() as u64),
            Request::Write { from, .. } => (Self::Write, from.len_bytes() as u64),
            Request::Flush => (Self::Flush, 0),
            Request::Deallocate { blocks, .. } | Request::WriteZeroes { blocks, .. } => {
                (Self::Deallocate, blocks.saturating_mul(1 << block_shift))
            }
        }
    }
}

/// The first bound of times is 2 to this power of nanoseconds: 8.2 µs.
const FIRST_BOUND_SHIFT: u32 = 13;

/// How many bounds there are; each is twice the one before, up to 17 s.
const BOUNDS: usize = 22;

/// Upper bounds of times, in nanoseconds. What is longer than the last has a place of its own.
pub const BOUNDS_NS: [u64; BOUNDS] = {
    let mut bounds = [0; BOUNDS];
    let mut index = 0;
    while index < BOUNDS {
        bounds[index] = 1 << (FIRST_BOUND_SHIFT + index as u32);
        index += 1;
    }
    bounds
};

/// The place of a time.
fn place(ns: u64) -> usize {
    // A time that is a bound is within it.
    let bits = u64::BITS - ns.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST_BOUND_SHIFT) as usize).min(BOUNDS)
}

#[derive(Debug, Default)]
struct OperationCounters {
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    sum_ns: AtomicU64,
    places: [AtomicU64; BOUNDS + 1],
}

/// What one reactor counts. Aligned, so that no two reactors write the same cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    operations: [OperationCounters; Operation::ALL.len()],
}

/// Adds without a read-modify-write instruction: there is one writer.
fn add(counter: &AtomicU64, amount: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(amount), Ordering::Relaxed);
}

impl Counters {
    fn of(&self, operation: Operation) -> &OperationCounters {
        let [read, write, flush, deallocate] = &self.operations;
        match operation {
            Operation::Read => read,
            Operation::Write => write,
            Operation::Flush => flush,
            Operation::Deallocate => deallocate,
        }
    }

    pub(super) fn done(&self, operation: Operation, bytes: u64, took: Duration) {
        let counters = self.of(operation);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&counters.done, 1);
        add(&counters.bytes, bytes);
        add(&counters.sum_ns, ns);
        if let Some(count) = counters.places.get(place(ns)) {
            add(count, 1);
        }
    }

    pub(super) fn failed(&self, operation: Operation) {
        add(&self.of(operation).failed, 1);
    }

    pub(super) fn read(&self) -> Measured {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Measured {
            operations: self.operations.each_ref().map(|counters| OperationCounts {
                done: read(&counters.done),
                failed: read(&counters.failed),
                bytes: read(&counters.bytes),
                sum_ns: read(&counters.sum_ns),
                places: counters.places.each_ref().map(read),
            }),
        }
    }
}

/// What was counted of one kind of requests. The numbers are of about the same moment, not of exactly one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// Requests that were done.
    pub done: u64,
    /// Requests that failed; those for which something was short, and which are asked again, do not count.
    pub failed: u64,
    /// Bytes of those that were done.
    pub bytes: u64,
    /// The time that those took, altogether.
    pub sum_ns: u64,
    /// How many of them took as long as each bound of [`BOUNDS_NS`] and longer than the one before; the last
    /// are those that took longer than all.
    pub places: [u64; BOUNDS + 1],
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// By kind, in the order of [`Operation::ALL`].
    pub operations: [OperationCounts; Operation::ALL.len()],
}

impl Measured {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (sum, other) in self.operations.iter_mut().zip(&other.operations) {
            sum.done = sum.done.wrapping_add(other.done);
            sum.failed = sum.failed.wrapping_add(other.failed);
            sum.bytes = sum.bytes.wrapping_add(other.bytes);
            sum.sum_ns = sum.sum_ns.wrapping_add(other.sum_ns);
            for (sum, other) in sum.places.iter_mut().zip(&other.places) {
                *sum = sum.wrapping_add(*other);
            }
        }
    }

    /// What was counted, by kind.
    pub fn iter(&self) -> impl Iterator<Item = (Operation, &OperationCounts)> {
        Operation::ALL.into_iter().zip(&self.operations)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_time_has_the_place_of_its_bound(ns in any::<u64>(), shift in 0_u32..64) {
            let ns = ns >> shift;
            let expected = BOUNDS_NS.partition_point(|bound| *bound < ns);
            prop_assert_eq!(place(ns), expected);
        }
    }

    #[test]
    fn a_time_that_is_a_bound_is_within_it() {
        for (index, bound) in BOUNDS_NS.into_iter().enumerate() {
            assert_eq!((place(bound), place(bound + 1)), (index, index + 1));
        }
        assert_eq!((place(0), place(1), place(u64::MAX)), (0, 0, BOUNDS));
    }
}
