//! Which blocks of a volume are being written: by slot, so that writes of a block come one after the other,
//! and none is read meanwhile.
//!
//! Invariants:
//! - Two locks that are held have no block in common.
//! - Locks of a block are granted in the order in which they were asked for.
//! - A slot is in the table while anything of it is locked or waited for.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::map::FreshExtent;

/// Slots share a counter of locks by the low bits of their number.
const COUNTERS: usize = 4096;

/// All blocks of a slot.
pub(super) const WHOLE_SLOT: u16 = u16::MAX;

struct Waiter {
    ticket: u64,
    mask: u16,
    waker: Option<Waker>,
}

#[derive(Default)]
struct SlotLocks {
    held: u16,
    waiting: VecDeque<Waiter>,
    /// The extent that writes to holes of this slot go to, as long as any of them is under way.
    fresh: Option<FreshExtent>,
    /// Writes that use it.
    fresh_users: u32,
}

/// See the module.
pub(super) struct Locks {
    slots: RefCell<HashMap<u64, SlotLocks, foldhash::fast::FixedState>>,
    next_ticket: Cell<u64>,
    /// How often something of a slot was locked.
    counters: Box<[Cell<u32>]>,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            slots: RefCell::default(),
            next_ticket: Cell::new(0),
            counters: (0..COUNTERS).map(|_| Cell::new(0)).collect(),
        }
    }
}

impl Locks {
    /// A number that changes whenever a block of the slot is locked, and now and then besides.
    pub(super) fn count(&self, slot: u64) -> u32 {
        self.counter(slot).get()
    }

    fn counter(&self, slot: u64) -> &Cell<u32> {
        &self.counters[slot as usize % COUNTERS]
    }

    /// Whether any of some blocks is locked.
    pub(super) fn is_locked(&self, slot: u64, mask: u16) -> bool {
        let slots = self.slots.borrow();
        !slots.is_empty()
            && slots
                .get(&slot)
                .is_some_and(|locks| locks.held & mask != 0 || !locks.waiting.is_empty())
    }

    /// Locks blocks of a slot, when those who asked before are done with them.
    pub(super) fn lock(self: &Rc<Self>, slot: u64, mask: u16) -> Locking {
        Locking {
            locks: self.clone(),
            slot,
            mask,
            state: Asked::No,
        }
    }

    /// Locks blocks of a slot if nobody has any of them or waits.
    pub(super) fn try_lock(self: &Rc<Self>, slot: u64, mask: u16) -> Option<SlotLock> {
        let mut slots = self.slots.borrow_mut();
        let locks = slots.entry(slot).or_default();
        if locks.held & mask != 0 || !locks.waiting.is_empty() {
            return None;
        }
        self.grant(slot, locks, mask);
        Some(SlotLock {
            locks: self.clone(),
            slot,
            mask,
        })
    }

    fn grant(&self, slot: u64, locks: &mut SlotLocks, mask: u16) {
        debug_assert_eq!(locks.held & mask, 0, "two locks of one block");
        locks.held |= mask;
        let counter = self.counter(slot);
        counter.set(counter.get().wrapping_add(1));
    }

    fn unlock(&self, slot: u64, mask: u16) {
        let mut slots = self.slots.borrow_mut();
        let Some(locks) = slots.get_mut(&slot) else {
            return;
        };
        locks.held &= !mask;
        let mut woken: smallvec::SmallVec<[Waker; 4]> = smallvec::SmallVec::new();
        if !locks.waiting.is_empty() {
            let mut taken = locks.held;
            for waiter in &mut locks.waiting {
                if waiter.mask & taken == 0 {
                    woken.extend(waiter.waker.take());
                }
                taken |= waiter.mask;
            }
        } else if locks.held == 0 {
            debug_assert!(locks.fresh_users == 0, "who uses the extent has a lock");
            slots.remove(&slot);
        }
        drop(slots);
        woken.into_iter().for_each(Waker::wake);
    }

    /// The extent that another write to a hole of the slot has taken; it is in use until
    /// [`Locks::release_fresh`]. To be called with a lock.
    pub(super) fn share_fresh(&self, slot: u64) -> Option<FreshExtent> {
        let mut slots = self.slots.borrow_mut();
        let locks = slots.get_mut(&slot)?;
        let fresh = locks.fresh?;
        locks.fresh_users += 1;
        Some(fresh)
    }

    /// An extent was taken for holes of the slot. To be called with a lock.
    pub(super) fn offer_fresh(&self, slot: u64, fresh: FreshExtent) {
        if let Some(locks) = self.slots.borrow_mut().get_mut(&slot) {
            locks.fresh = Some(fresh);
            locks.fresh_users = 1;
        }
    }

    /// A write is done with the extent; whether it was the last one.
    pub(super) fn release_fresh(&self, slot: u64) -> bool {
        let mut slots = self.slots.borrow_mut();
        let Some(locks) = slots.get_mut(&slot) else {
            return true;
        };
        locks.fresh_users = locks.fresh_users.saturating_sub(1);
        if locks.fresh_users == 0 {
            locks.fresh = None;
        }
        locks.fresh_users == 0
    }
}

enum Asked {
    No,
    Waiting(u64),
    Done,
}

/// A lock being asked for.
pub(super) struct Locking {
    locks: Rc<Locks>,
    slot: u64,
    mask: u16,
    state: Asked,
}

impl Future for Locking {
    type Output = SlotLock;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<SlotLock> {
        let shared = self.locks.clone();
        let (slot, mask) = (self.slot, self.mask);
        let mut slots = shared.slots.borrow_mut();
        let locks = slots.entry(slot).or_default();
        let own = match self.state {
            Asked::Waiting(ticket) => locks.waiting.iter().position(|waiter| waiter.ticket == ticket),
            Asked::No | Asked::Done => None,
        };
        let before = own.unwrap_or(locks.waiting.len());
        let waited_for = locks
            .waiting
            .iter()
            .take(before)
            .fold(locks.held, |taken, waiter| taken | waiter.mask);
        if waited_for & mask == 0 {
            if let Some(own) = own {
                locks.waiting.remove(own);
            }
            shared.grant(slot, locks, mask);
            self.state = Asked::Done;
            return Poll::Ready(SlotLock {
                locks: self.locks.clone(),
                slot,
                mask,
            });
        }
        let waker = context.waker().clone();
        match own.and_then(|own| locks.waiting.get_mut(own)) {
            Some(waiter) => waiter.waker = Some(waker),
            None => {
                let ticket = shared.next_ticket.get();
                shared.next_ticket.set(ticket + 1);
                locks.waiting.push_back(Waiter {
                    ticket,
                    mask,
                    waker: Some(waker),
                });
                self.state = Asked::Waiting(ticket);
            }
        }
        Poll::Pending
    }
}

impl Drop for Locking {
    fn drop(&mut self) {
        let Asked::Waiting(ticket) = self.state else {
            return;
        };
        if let Some(locks) = self.locks.slots.borrow_mut().get_mut(&self.slot) {
            locks.waiting.retain(|waiter| waiter.ticket != ticket);
        }
        // Those behind it may go on now.
        self.locks.unlock(self.slot, 0);
    }
}

/// Blocks of a slot that are locked until this is dropped.
pub(crate) struct SlotLock {
    locks: Rc<Locks>,
    slot: u64,
    mask: u16,
}

impl Drop for SlotLock {
    fn drop(&mut self) {
        self.locks.unlock(self.slot, self.mask);
    }
}
