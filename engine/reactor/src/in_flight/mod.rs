//! A fixed number of futures in flight, polled by slot when their own waker fires.
//!
//! This is what a queue of I/O commands is made of: nothing is allocated after the set was made, and only
//! futures that were woken are polled.
//!
//! Invariants:
//! - `free` holds each empty slot once.
//! - A slot that was woken is in `pending`, or in the [`wakers::Flags`] of the set; it may be empty by then,
//!   or wait again (a late wake-up), which costs a look and nothing else.
//! - Whenever [`InFlight::poll_next`] says `Pending`, the task's waker was registered before the flags were
//!   collected for the last time: a flag that was raised later wakes the task.

mod wakers;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use wakers::WakerSet;

/// Futures in flight, at most a fixed number of them.
pub struct InFlight<F> {
    slots: Box<[Option<F>]>,
    free: Vec<u16>,
    /// Slots that were woken and not looked at yet, a bit each.
    pending: Box<[u64]>,
    wakers: WakerSet,
}

impl<F: Future + Unpin> InFlight<F> {
    /// Room for `capacity` futures.
    pub fn new(capacity: u16) -> Self {
        let wakers = WakerSet::new(capacity);
        Self {
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            pending: vec![0; wakers.words()].into_boxed_slice(),
            wakers,
        }
    }

    /// Futures in flight.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room for one more.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Polls a future once; one that is not ready stays in flight, in the slot returned with `Pending`.
    ///
    /// # Errors
    ///
    /// The future itself, not polled, when there is no room.
    pub fn start(&mut self, mut future: F) -> Result<Started<F::Output>, F> {
        let Some(&slot) = self.free.last() else {
            return Err(future);
        };
        let waker = self.wakers.waker(slot);
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return Ok(Started::Ready(output));
        }
        self.free.pop();
        self.slots[usize::from(slot)] = Some(future);
        Ok(Started::Pending(slot))
    }

    /// The next future that was woken and is ready, with its slot. `Pending` when none is, or nothing is in
    /// flight; the task is woken when that changes.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<(u16, F::Output)> {
        if self.is_empty() {
            return Poll::Pending;
        }
        if let Some(ready) = self.poll_pending() {
            return Poll::Ready(ready);
        }
        // Each flag is looked at once: a future that wakes itself must not keep the task here. What is raised
        // between the two wakes the task, what was raised before is collected.
        self.wakers.register(context.waker());
        if self.wakers.collect(&mut self.pending)
            && let Some(ready) = self.poll_pending()
        {
            return Poll::Ready(ready);
        }
        Poll::Pending
    }

    fn poll_pending(&mut self) -> Option<(u16, F::Output)> {
        for word in 0..self.pending.len() {
            while let bits @ 1.. = self.pending[word] {
                self.pending[word] = bits & (bits - 1);
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let Some(future) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
                    continue;
                };
                let waker = self.wakers.waker(slot as u16);
                if let Poll::Ready(output) = Pin::new(future).poll(&mut Context::from_waker(&waker)) {
                    self.slots[slot] = None;
                    self.free.push(slot as u16);
                    return Some((slot as u16, output));
                }
            }
        }
        None
    }

    /// Drops the future in a slot, if there is one.
    pub fn cancel(&mut self, slot: u16) -> bool {
        let future = self.slots.get_mut(usize::from(slot)).and_then(Option::take);
        let cancelled = future.is_some();
        if cancelled {
            self.free.push(slot);
        }
        cancelled
    }
}

/// What [`InFlight::start`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Started<T> {
    /// The future was ready at once and never took a slot.
    Ready(T),
    /// The future is in flight in this slot.
    Pending(u16),
}

#[cfg(test)]
mod tests;
