//! Locks on ranges of blocks: writes of the same block one after the other, reads beside reads.
//!
//! Whoever came first goes first: a lock is held once no earlier one that overlaps is in its way. So nobody
//! starves, and whoever holds at most one lock at a time cannot be part of a deadlock.
//!
//! Most locks meet nobody. Whether that is so is told by counts of the blocks in use, by their hashes: a
//! lock all of whose counts were zero when it came is held at once. All others look at each lock there is.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

use slab::Slab;

/// Beside whom a lock may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Beside others that are shared.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: Range<u64>,
    mode: Mode,
    /// Nobody is in its way, nor will be: whoever comes later waits.
    is_held: bool,
    waker: Option<Waker>,
}

impl Entry {
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        let overlaps = self.range.start < other.range.end && other.range.start < self.range.end;
        overlaps && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

/// How many counts there are, as a power of two.
const COUNTS_LOG2: u32 = 10;

/// Ranges of more blocks are not counted by block: that would take longer than to look at all locks.
const COUNTED_BLOCKS_MAX: u64 = 256;

/// How many locks there are on blocks, by the hashes of these. Zero means none; what is more may be others.
#[derive(Debug)]
struct Crowd {
    counts: Box<[u32]>,
    /// Locks that are not counted by block.
    long: usize,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            counts: vec![0; 1 << COUNTS_LOG2].into_boxed_slice(),
            long: 0,
        }
    }
}

impl Crowd {
    fn is_counted(range: &Range<u64>) -> bool {
        range.end.saturating_sub(range.start) <= COUNTED_BLOCKS_MAX
    }

    /// The count of a block: multiplicative hashing, Knuth volume 3, section 6.4.
    fn place(block: u64) -> usize {
        (block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - COUNTS_LOG2)) as usize
    }

    /// Counts a lock, and tells whether there is none that overlaps for certain.
    fn enter(&mut self, range: &Range<u64>) -> bool {
        if !Self::is_counted(range) {
            self.long += 1;
            return false;
        }
        let mut is_alone = self.long == 0;
        for block in range.clone() {
            if let Some(count) = self.counts.get_mut(Self::place(block)) {
                // A range may have a place twice, and is not in its own way; that it looks is no harm.
                is_alone &= *count == 0;
                *count += 1;
            }
        }
        is_alone
    }

    fn leave(&mut self, range: &Range<u64>) {
        if !Self::is_counted(range) {
            self.long -= 1;
            return;
        }
        for block in range.clone() {
            if let Some(count) = self.counts.get_mut(Self::place(block)) {
                *count -= 1;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    entries: Slab<Entry>,
    crowd: Crowd,
    next_ticket: u64,
    /// Entries that may have somebody to wake.
    waiting: usize,
}

impl Table {
    /// Whether nobody earlier is in the way.
    fn is_held(&self, key: usize) -> bool {
        let Some(entry) = self.entries.get(key) else {
            return false;
        };
        let is_before = |other: &Entry| other.ticket < entry.ticket && other.is_in_the_way_of(entry);
        entry.is_held || !self.entries.iter().any(|(_, other)| is_before(other))
    }
}

/// The locks of a volume.
#[derive(Debug, Clone, Default)]
pub(crate) struct RangeLocks(Rc<RefCell<Table>>);

/// A lock that is held, or waited for; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    table: Rc<RefCell<Table>>,
    key: usize,
}

impl RangeLocks {
    /// Queues up for a range; see [`Held::granted`].
    fn queue(&self, range: Range<u64>, mode: Mode) -> Held {
        let mut table = self.0.borrow_mut();
        let ticket = table.next_ticket;
        table.next_ticket += 1;
        let is_held = table.crowd.enter(&range);
        let key = table.entries.insert(Entry {
            ticket,
            range,
            mode,
            is_held,
            waker: None,
        });
        Held {
            table: self.0.clone(),
            key,
        }
    }

    /// A lock that nobody is in the way of; `None` if somebody is.
    pub(crate) fn try_lock(&self, range: Range<u64>, mode: Mode) -> Option<Held> {
        let held = self.queue(range, mode);
        let is_held = {
            let mut table = self.0.borrow_mut();
            let is_held = table.is_held(held.key);
            if let Some(entry) = table.entries.get_mut(held.key) {
                entry.is_held = is_held;
            }
            is_held
        };
        is_held.then_some(held)
    }

    /// Waits for a lock.
    pub(crate) async fn lock(&self, range: Range<u64>, mode: Mode) -> Held {
        let held = self.queue(range, mode);
        held.granted().await;
        held
    }
}

impl Held {
    async fn granted(&self) {
        poll_fn(|context| {
            let table = &mut *self.table.borrow_mut();
            let is_held = table.is_held(self.key);
            let Some(entry) = table.entries.get_mut(self.key) else {
                return Poll::Ready(());
            };
            table.waiting -= usize::from(entry.waker.take().is_some());
            if is_held {
                entry.is_held = true;
                return Poll::Ready(());
            }
            entry.waker = Some(context.waker().clone());
            table.waiting += 1;
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut woken: Vec<Waker> = Vec::new();
        {
            let table = &mut *self.table.borrow_mut();
            let Some(gone) = table.entries.try_remove(self.key) else {
                return;
            };
            table.crowd.leave(&gone.range);
            table.waiting -= usize::from(gone.waker.is_some());
            if table.waiting > 0 {
                let others = table.entries.iter_mut().map(|(_, entry)| entry);
                let waiting = others.filter(|entry| gone.is_in_the_way_of(entry));
                woken.extend(waiting.filter_map(|entry| entry.waker.take()));
                table.waiting -= woken.len();
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use proptest::prelude::*;

    use super::*;

    fn held(locks: &RangeLocks, lock: &Held) -> bool {
        locks.0.borrow().is_held(lock.key)
    }

    /// Short ranges that meet, and some that are not counted by block.
    fn ranges() -> impl Strategy<Value = (u64, u64, bool)> {
        let short = (0..20_u64, 1..8_u64, any::<bool>());
        let long = (0..900_u64, 200..400_u64, any::<bool>());
        let anywhere = (0..1000_u64, 1..8_u64, any::<bool>());
        prop_oneof![4 => short, 1 => long, 2 => anywhere]
    }

    fn mode(is_exclusive: bool) -> Mode {
        match is_exclusive {
            true => Mode::Exclusive,
            false => Mode::Shared,
        }
    }

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Somebody who waits for a lock, or has it.
    struct Waiter {
        locking: Option<Pin<Box<dyn Future<Output = Held>>>>,
        held: Option<Held>,
        flag: Arc<Flag>,
        range: Range<u64>,
        is_exclusive: bool,
    }

    impl Waiter {
        fn poll(&mut self) {
            let waker = Waker::from(self.flag.clone());
            let Some(locking) = &mut self.locking else { return };
            if let Poll::Ready(held) = locking.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.held = Some(held);
                self.locking = None;
            }
        }

        fn is_in_the_way_of(&self, other: &Self) -> bool {
            let overlaps = self.range.start < other.range.end && other.range.start < self.range.end;
            overlaps && (self.is_exclusive || other.is_exclusive)
        }
    }

    proptest! {
        /// Never two in each other's way at once, nobody is overtaken, and in the end everybody had a turn.
        #[test]
        fn nobody_is_in_the_way_and_nobody_starves(
            asked in proptest::collection::vec(ranges(), 1..40),
            order in proptest::collection::vec(any::<usize>(), 200),
        ) {
            let locks = RangeLocks::default();
            let mut waiting: Vec<(Held, Range<u64>, bool)> = asked
                .into_iter()
                .map(|(start, len, exclusive)| {
                    let range = start..start + len;
                    (locks.queue(range.clone(), mode(exclusive)), range, exclusive)
                })
                .collect();
            let mut order = order.into_iter();
            while !waiting.is_empty() {
                let running: Vec<usize> =
                    (0..waiting.len()).filter(|&index| held(&locks, &waiting[index].0)).collect();
                prop_assert!(running.contains(&0), "the first is never in anybody's queue");
                for (at, &one) in running.iter().enumerate() {
                    for &other in &running[at + 1..] {
                        let (_, one, alone) = &waiting[one];
                        let (_, other, other_alone) = &waiting[other];
                        let overlap = one.start < other.end && other.start < one.end;
                        prop_assert!(!overlap || !(*alone || *other_alone));
                    }
                }
                let chosen = running[order.next().unwrap_or(0) % running.len()];
                drop(waiting.remove(chosen));
            }
            let table = locks.0.borrow();
            prop_assert!(table.entries.is_empty());
            prop_assert_eq!(table.crowd.long, 0);
            prop_assert!(table.crowd.counts.iter().all(|&count| count == 0));
        }

        /// What is taken without waiting is in nobody's way, and what is not taken leaves nothing behind.
        #[test]
        fn a_lock_is_taken_at_once_exactly_if_nobody_is_in_the_way(
            asked in proptest::collection::vec((ranges(), any::<bool>()), 1..40),
        ) {
            let locks = RangeLocks::default();
            let mut taken: Vec<(Option<Held>, Range<u64>, bool)> = Vec::new();
            for ((start, len, is_exclusive), waits) in asked {
                let range = start..start + len;
                let overlaps = |other: &Range<u64>| range.start < other.end && other.start < range.end;
                let is_free = !taken
                    .iter()
                    .any(|(_, other, alone)| overlaps(other) && (*alone || is_exclusive));
                let lock = match waits {
                    true => Some(locks.queue(range.clone(), mode(is_exclusive))),
                    false => {
                        let lock = locks.try_lock(range.clone(), mode(is_exclusive));
                        prop_assert_eq!(lock.is_some(), is_free);
                        lock
                    }
                };
                if lock.is_some() {
                    taken.push((lock, range, is_exclusive));
                }
            }
            prop_assert_eq!(locks.0.borrow().entries.len(), taken.len());
            drop(taken);
            prop_assert!(locks.0.borrow().crowd.counts.iter().all(|&count| count == 0));
        }

        /// Whoever waits, and comes first now, is woken when what was in its way goes, or gives up; and who
        /// is woken has its lock exactly if nobody who came before is in its way.
        #[test]
        fn who_comes_first_is_woken(
            asked in proptest::collection::vec(ranges(), 1..40),
            steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 0..200),
        ) {
            let locks = RangeLocks::default();
            let mut asked = asked.into_iter();
            let mut waiters: Vec<Waiter> = Vec::new();
            for (comes, which) in steps {
                let next = asked.next().filter(|_| comes);
                if let Some((start, len, is_exclusive)) = next {
                    let (locks, range) = (locks.clone(), start..start + len);
                    let asked = range.clone();
                    let mut waiter = Waiter {
                        locking: Some(Box::pin(async move { locks.lock(asked, mode(is_exclusive)).await })),
                        held: None,
                        flag: Arc::default(),
                        range,
                        is_exclusive,
                    };
                    waiter.poll();
                    waiters.push(waiter);
                } else if !waiters.is_empty() {
                    drop(waiters.remove(which % waiters.len()));
                    for waiter in &mut waiters {
                        if waiter.flag.0.swap(false, Ordering::Relaxed) {
                            waiter.poll();
                        }
                    }
                }
                for (at, waiter) in waiters.iter().enumerate() {
                    let is_first = !waiters[..at].iter().any(|before| before.is_in_the_way_of(waiter));
                    prop_assert_eq!(waiter.held.is_some(), is_first);
                }
                let registered = waiters.iter().filter(|waiter| waiter.locking.is_some()).count();
                prop_assert_eq!(locks.0.borrow().waiting, registered);
            }
        }
    }
}
