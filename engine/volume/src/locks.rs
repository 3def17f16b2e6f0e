//! Locks on ranges of blocks: writes of the same block one after the other, reads beside reads.
//!
//! Whoever came first goes first: a lock is held once no earlier one that overlaps is in its way. So nobody
//! starves, and whoever holds at most one lock at a time cannot be part of a deadlock.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

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
    waker: Option<Waker>,
}

impl Entry {
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        let overlaps = self.range.start < other.range.end && other.range.start < self.range.end;
        overlaps && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

/// In the order in which they came.
#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    next_ticket: u64,
}

impl Table {
    fn position(&self, ticket: u64) -> Option<usize> {
        self.entries
            .binary_search_by_key(&ticket, |entry| entry.ticket)
            .ok()
    }

    /// Whether nobody earlier is in the way.
    fn is_held(&self, ticket: u64) -> bool {
        let Some(position) = self.position(ticket) else {
            return false;
        };
        let (earlier, rest) = self.entries.split_at(position);
        let clear = |entry: &Entry| !earlier.iter().any(|before| before.is_in_the_way_of(entry));
        rest.first().is_some_and(clear)
    }
}

/// The locks of a volume.
#[derive(Debug, Clone, Default)]
pub(crate) struct RangeLocks(Rc<RefCell<Table>>);

/// A lock that is held, or waited for; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    table: Rc<RefCell<Table>>,
    ticket: u64,
}

impl RangeLocks {
    /// Queues up for a range; see [`Held::granted`].
    fn queue(&self, range: Range<u64>, mode: Mode) -> Held {
        let mut table = self.0.borrow_mut();
        let ticket = table.next_ticket;
        table.next_ticket += 1;
        table.entries.push(Entry {
            ticket,
            range,
            mode,
            waker: None,
        });
        Held {
            table: self.0.clone(),
            ticket,
        }
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
            let mut table = self.table.borrow_mut();
            if table.is_held(self.ticket) {
                return Poll::Ready(());
            }
            if let Some(position) = table.position(self.ticket)
                && let Some(entry) = table.entries.get_mut(position)
            {
                entry.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut woken: Vec<Waker> = Vec::new();
        {
            let mut table = self.table.borrow_mut();
            let Some(position) = table.position(self.ticket) else {
                return;
            };
            let gone = table.entries.remove(position);
            let later = table.entries.iter_mut().skip(position);
            let waiting = later.filter(|entry| gone.is_in_the_way_of(entry));
            woken.extend(waiting.filter_map(|entry| entry.waker.take()));
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(locks: &RangeLocks, lock: &Held) -> bool {
        locks.0.borrow().is_held(lock.ticket)
    }

    proptest! {
        /// Never two in each other's way at once, nobody is overtaken, and in the end everybody had a turn.
        #[test]
        fn nobody_is_in_the_way_and_nobody_starves(
            asked in proptest::collection::vec((0..20_u64, 1..8_u64, any::<bool>()), 1..40),
            order in proptest::collection::vec(any::<usize>(), 200),
        ) {
            let locks = RangeLocks::default();
            let mut waiting: Vec<(Held, Range<u64>, bool)> = asked
                .into_iter()
                .map(|(start, len, exclusive)| {
                    let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
                    (locks.queue(start..start + len, mode), start..start + len, exclusive)
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
            prop_assert!(locks.0.borrow().entries.is_empty());
        }
    }
}
