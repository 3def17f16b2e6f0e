//! The gate of one namespace on one reactor: counts the commands at the device, and keeps commands out of
//! ranges that a fused command holds.
//!
//! Invariants:
//! - `entered[e]` is the number of commands at the device that entered in epoch `e`.
//! - A hold is in `holds` before its epoch begins, so that no command that overlaps it enters from then on;
//!   it is drained once the epoch before has emptied.
//! - `held` is true exactly while `holds` is not empty: all that a command looks at when there is no fused
//!   command.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::attached::Attached;

/// Blocks from `start` up to, not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl BlockRange {
    /// `blocks` blocks from `start` on.
    pub(crate) fn new(start: u64, blocks: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(blocks),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A range held for a fused command, by a number that its namespace never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) number: u64,
    pub(crate) range: BlockRange,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Gate {
    epoch: Cell<usize>,
    entered: [Cell<u32>; 2],
    holds: RefCell<Vec<Hold>>,
    held: Cell<bool>,
    /// Commands that wait for a hold to end, and holds that wait for commands to end.
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// Whether a command on this range may enter now.
    #[inline]
    pub(crate) fn admits(&self, range: BlockRange) -> bool {
        !self.held.get() || !self.holds.borrow().iter().any(|hold| hold.range.overlaps(&range))
    }

    /// Waits until a command on this range may enter.
    pub(crate) async fn admitted(&self, range: BlockRange) {
        self.wait_until(|| self.admits(range)).await;
    }

    /// Keeps commands out of a range from now on. Twice is once.
    pub(crate) fn hold(&self, hold: Hold) {
        let mut holds = self.holds.borrow_mut();
        if !holds.contains(&hold) {
            holds.push(hold);
        }
        self.held.set(true);
    }

    /// Waits until every command that entered before now has left.
    pub(crate) async fn drained(&self) {
        // An earlier hold that was given up may have left the other epoch filled.
        self.wait_until(|| self.entered[1 - self.epoch.get()].get() == 0)
            .await;
        let before = self.epoch.get();
        self.epoch.set(1 - before);
        self.wait_until(|| self.entered[before].get() == 0).await;
    }

    /// Ends a hold.
    pub(crate) fn release(&self, number: u64) {
        self.retain(|hold| hold.number != number);
    }

    /// Ends the holds that are not to be kept.
    pub(crate) fn retain(&self, keep: impl Fn(&Hold) -> bool) {
        let mut holds = self.holds.borrow_mut();
        let before = holds.len();
        holds.retain(keep);
        let ended = holds.len() < before;
        self.held.set(!holds.is_empty());
        drop(holds);
        if ended {
            self.wake();
        }
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        std::future::poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn wake(&self) {
        // Taken out first: a waker may run what comes back here.
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A command that is at the device of a namespace, until dropped.
pub(crate) struct Entered {
    attached: Rc<Attached>,
    epoch: usize,
}

impl Entered {
    /// Enters. Ask [`Gate::admits`] first, with nothing awaited in between.
    pub(crate) fn new(attached: &Rc<Attached>) -> Self {
        let epoch = attached.gate.epoch.get();
        Self::in_epoch(attached, epoch)
    }

    /// Enters once more for the same command, whatever was held meanwhile.
    pub(crate) fn again(&self) -> Self {
        Self::in_epoch(&self.attached, self.epoch)
    }

    fn in_epoch(attached: &Rc<Attached>, epoch: usize) -> Self {
        let entered = &attached.gate.entered[epoch];
        entered.set(entered.get() + 1);
        Self {
            attached: attached.clone(),
            epoch,
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let gate = &self.attached.gate;
        let left = gate.entered[self.epoch].get() - 1;
        gate.entered[self.epoch].set(left);
        if left == 0 && !gate.waiting.borrow().is_empty() {
            gate.wake();
        }
    }
}
