//! Whole blocks, though several reactors read and write at once.
//!
//! Copies to and from an arena may race, and a race leaves a mix of both. The promise is that of a drive:
//! concurrent writes of a block leave one of the two, and a read sees one or the other. So every granule of
//! 4096 bytes has a version, shared with the granules a multiple of [`STRIPES`] away:
//!
//! - odd while somebody writes: writers wait for it to be even, and make it odd by a compare-and-exchange;
//! - readers write nothing: they read the version, copy, and copy again if the version was odd or has
//!   changed.
//!
//! Without contention a write costs one compare-and-exchange and a read two loads. With it, the wait is for
//! one copy of 4096 bytes on another core; a waiter that has spun for long gives its core away, in case the
//! writer lost its own. A reader that was overtaken [`READ_ATTEMPTS`] times becomes a writer, so that its
//! loop ends.

use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Bytes of a granule: the largest block, so that no block is in two granules.
pub(super) const GRANULE_BYTES: u64 = 4096;

/// Versions of a device.
pub(super) const STRIPES: u64 = 4096;

/// Copies that a reader makes in vain before it keeps the writers out.
const READ_ATTEMPTS: u32 = 16;

/// Looks at a version before the core is given away for once.
const SPINS: u32 = 1024;

/// The versions of all granules of a device.
pub(super) struct Stripes(Box<[AtomicU32]>);

impl Stripes {
    pub(super) fn new() -> Self {
        Self((0..STRIPES).map(|_| AtomicU32::new(0)).collect())
    }

    /// Runs `copy`, which reads the granule, until no writer was there meanwhile.
    pub(super) fn read<T>(&self, granule: u64, mut copy: impl FnMut() -> T) -> T {
        let version = self.version(granule);
        for _ in 0..READ_ATTEMPTS {
            let before = wait_until_even(version);
            let copied = copy();
            // The copy is done before the second look.
            fence(Ordering::Acquire);
            if version.load(Ordering::Relaxed) == before {
                return copied;
            }
        }
        let _writing = Writing::begin(version);
        copy()
    }

    /// Runs `copy`, which writes the granule, with all others kept out.
    pub(super) fn write<T>(&self, granule: u64, copy: impl FnOnce() -> T) -> T {
        let _writing = Writing::begin(self.version(granule));
        copy()
    }

    /// Runs `change`, which writes all these granules, at most [`STRIPES`], with all others kept out.
    pub(super) fn write_all<T>(&self, granules: Range<u64>, change: impl FnOnce() -> T) -> T {
        debug_assert!(granules.end - granules.start <= STRIPES);
        // Ascending by stripe, not by granule: all who hold several take them in one order, so nobody waits
        // in a ring.
        let wrapped_from = granules.start.next_multiple_of(STRIPES).min(granules.end);
        for granule in (wrapped_from..granules.end).chain(granules.start..wrapped_from) {
            begin(self.version(granule));
        }
        let _writing = WritingAll {
            stripes: self,
            granules,
        };
        change()
    }

    fn version(&self, granule: u64) -> &AtomicU32 {
        &self.0[(granule % STRIPES) as usize]
    }
}

/// A version that is odd until this is dropped.
struct Writing<'a>(&'a AtomicU32);

impl<'a> Writing<'a> {
    fn begin(version: &'a AtomicU32) -> Self {
        begin(version);
        Self(version)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        end(self.0);
    }
}

/// Versions of granules that are odd until this is dropped.
struct WritingAll<'a> {
    stripes: &'a Stripes,
    granules: Range<u64>,
}

impl Drop for WritingAll<'_> {
    fn drop(&mut self) {
        for granule in self.granules.clone() {
            end(self.stripes.version(granule));
        }
    }
}

/// Makes a version odd as soon as it is even.
fn begin(version: &AtomicU32) {
    loop {
        let even = wait_until_even(version);
        let odd = even.wrapping_add(1);
        if version
            .compare_exchange_weak(even, odd, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            // Whoever sees what is written next sees the odd version too.
            fence(Ordering::Release);
            return;
        }
    }
}

/// Makes a version even that this thread made odd.
fn end(version: &AtomicU32) {
    let even = version.load(Ordering::Relaxed).wrapping_add(1);
    version.store(even, Ordering::Release);
}

fn wait_until_even(version: &AtomicU32) -> u32 {
    let mut looks = 0_u32;
    loop {
        let seen = version.load(Ordering::Acquire);
        if seen.is_multiple_of(2) {
            return seen;
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(SPINS) {
            std::thread::yield_now();
        }
        spin_loop();
    }
}
