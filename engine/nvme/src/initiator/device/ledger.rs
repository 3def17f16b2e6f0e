//! Which completed writes may still be in a volatile cache of the target, and whether such a cache was lost.
//!
//! A flush covers the writes that were completed before it was begun. So time is counted in flushes begun: a
//! write that completes after `n` of them is covered by flush number `n` (from 0) and later ones. Writes on
//! any reactor and flushes on any other meet here; nothing is locked, and a write changes memory only when it
//! is the first since a flush.
//!
//! When the target is lost and does not prove that it ran on, the *epoch* changes: completed writes that no
//! flush covered may be gone. Then each user of the device gets one failed flush, so that nobody takes a
//! later flush for the proof that those writes are safe.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the reactors of a device know together. All orderings are the strongest: a write that completes while
/// the epoch changes is seen by one side or the other, and flushes are rare.
#[derive(Debug, Default)]
pub(super) struct CacheLedger {
    flushes_begun: AtomicU64,
    /// Flushes below this number have made what they cover stable.
    flushed_through: AtomicU64,
    /// One more than the flushes begun when the last write completed; 0 when none has.
    last_write: AtomicU64,
    epoch: AtomicU64,
    losses: AtomicU64,
}

/// A flush under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlushTicket(u64);

impl CacheLedger {
    /// The epoch now.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// How often completed writes may have been lost.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// A write into a volatile cache has completed, which was sent in `epoch`.
    pub(super) fn wrote(&self, epoch: u64) {
        let stamp = self.flushes_begun.load(Ordering::SeqCst) + 1;
        if self.last_write.load(Ordering::SeqCst) < stamp {
            self.last_write.fetch_max(stamp, Ordering::SeqCst);
        }
        // Its completion is heard of only now, and the cache it is in is gone already.
        if self.epoch() != epoch {
            self.losses.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A flush is about to be sent.
    pub(super) fn begin_flush(&self) -> FlushTicket {
        FlushTicket(self.flushes_begun.fetch_add(1, Ordering::SeqCst))
    }

    /// A flush has succeeded.
    pub(super) fn end_flush(&self, ticket: FlushTicket) {
        self.flushed_through.fetch_max(ticket.0 + 1, Ordering::SeqCst);
    }

    /// The target was lost and has not proved that it ran on. Says whether completed writes may be lost with
    /// it.
    pub(super) fn end_epoch(&self) -> bool {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        // What was lost is as good as flushed from here on: it is told of once. It takes a number of its own,
        // so that writes that follow are told from it.
        let number = self.flushes_begun.fetch_add(1, Ordering::SeqCst);
        let last_write = self.last_write.load(Ordering::SeqCst);
        let flushed_through = self.flushed_through.fetch_max(number + 1, Ordering::SeqCst);
        let lost = last_write > flushed_through;
        if lost {
            self.losses.fetch_add(1, Ordering::SeqCst);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write,
        BeginFlush,
        EndFlush(prop::sample::Index),
        Lose,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Write),
            2 => Just(Step::BeginFlush),
            2 => any::<prop::sample::Index>().prop_map(Step::EndFlush),
            1 => Just(Step::Lose),
        ]
    }

    proptest! {
        /// Against the set of writes that no flush has covered.
        #[test]
        fn a_loss_is_told_exactly_when_a_write_was_not_covered(
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let ledger = CacheLedger::default();
            let mut next_write = 0u32;
            let mut volatile: Vec<u32> = Vec::new();
            let mut flushes: Vec<(FlushTicket, Vec<u32>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Write => {
                        ledger.wrote(ledger.epoch());
                        volatile.push(next_write);
                        next_write += 1;
                    }
                    Step::BeginFlush => flushes.push((ledger.begin_flush(), volatile.clone())),
                    Step::EndFlush(index) => {
                        if flushes.is_empty() { continue }
                        let (ticket, covered) = flushes.remove(index.index(flushes.len()));
                        ledger.end_flush(ticket);
                        volatile.retain(|write| !covered.contains(write));
                    }
                    Step::Lose => {
                        let before = ledger.losses();
                        prop_assert_eq!(ledger.end_epoch(), !volatile.is_empty());
                        prop_assert_eq!(ledger.losses(), before + u64::from(!volatile.is_empty()));
                        volatile.clear();
                        flushes.clear();
                    }
                }
            }
        }
    }

    #[test]
    fn a_completion_heard_of_late_counts_as_lost() {
        let ledger = CacheLedger::default();
        let epoch = ledger.epoch();
        assert!(!ledger.end_epoch());
        ledger.wrote(epoch);
        assert_eq!(ledger.losses(), 1);
    }
}
