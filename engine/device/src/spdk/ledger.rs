//! Which completed writes may still be in a volatile cache, and whether such a cache was lost.
//!
//! A drive that was pulled, or a remote target that was connected to anew, may have lost what it had in its
//! cache. If there may have been completed writes that no flush covered, each user of the device gets one
//! failed flush, so that nobody takes a later one for the proof that those writes are safe.
//!
//! - `dirty` is set when a write completes, and cleared when a flush begins: what completes while the flush
//!   is under way sets it again. A flush that fails, or that nobody waits for any more, sets it again too.
//! - A loss counts when `dirty` is set, or a flush is under way, whose fate is unknown.
//! - `unanswered` is set when a queue was lost with a change of data under way: a remote target may still
//!   do it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the reactors of a device know together. Flushes are rare: all orderings of theirs are the strongest.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    dirty: AtomicBool,
    flushing: AtomicU64,
    losses: AtomicU64,
    unanswered: AtomicBool,
}

impl Ledger {
    /// A change of data was lost with its queue: nobody knows whether it was done, or will be.
    pub(super) fn left_unanswered(&self) {
        self.unanswered.store(true, Ordering::SeqCst);
    }

    /// Whether a change of data was left unanswered since this was asked last.
    pub(super) fn take_unanswered(&self) -> bool {
        self.unanswered.swap(false, Ordering::SeqCst)
    }

    /// A write into a volatile cache has completed. Changes memory only if it is the first since a flush.
    #[inline]
    pub(super) fn wrote(&self) {
        if !self.dirty.load(Ordering::SeqCst) {
            self.dirty.store(true, Ordering::SeqCst);
        }
    }

    /// How often completed writes may have been lost.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// The cache is gone, if there was one.
    pub(super) fn lost(&self) {
        let dirty = self.dirty.swap(false, Ordering::SeqCst);
        if dirty || self.flushing.load(Ordering::SeqCst) > 0 {
            self.losses.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A flush is about to be sent.
    pub(super) fn begin_flush(&self) -> Flush<'_> {
        // In this order: a loss in between counts.
        self.flushing.fetch_add(1, Ordering::SeqCst);
        Flush {
            was_dirty: self.dirty.swap(false, Ordering::SeqCst),
            ledger: self,
        }
    }
}

/// A flush under way; one that is dropped has not succeeded, as far as anybody knows.
#[must_use = "a flush that is dropped has failed"]
pub(super) struct Flush<'a> {
    was_dirty: bool,
    ledger: &'a Ledger,
}

impl Flush<'_> {
    /// It has succeeded: what it covered is stable.
    pub(super) fn succeeded(mut self) {
        self.was_dirty = false;
    }
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        if self.was_dirty {
            self.ledger.dirty.store(true, Ordering::SeqCst);
        }
        self.ledger.flushing.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_flush_covered_can_be_lost() {
        let ledger = Ledger::default();
        ledger.lost();
        assert_eq!(ledger.losses(), 0, "nothing was written");
        ledger.wrote();
        ledger.begin_flush().succeeded();
        ledger.lost();
        assert_eq!(ledger.losses(), 0, "all was flushed");
        ledger.wrote();
        drop(ledger.begin_flush());
        ledger.lost();
        assert_eq!(ledger.losses(), 1, "the flush failed");
        ledger.lost();
        assert_eq!(ledger.losses(), 1, "nothing was written since");
        ledger.wrote();
        let flush = ledger.begin_flush();
        ledger.wrote();
        flush.succeeded();
        ledger.lost();
        assert_eq!(ledger.losses(), 2, "a write completed after the flush began");
        let flush = ledger.begin_flush();
        ledger.lost();
        assert_eq!(ledger.losses(), 3, "the fate of the flush is unknown");
        drop(flush);
    }
}
