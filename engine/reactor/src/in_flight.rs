//! A fixed number of futures in flight, polled by slot when their own waker fires.
//!
//! This is what a queue of I/O commands is made of: nothing is allocated after the set was made, and only
//! futures that were woken are polled.
//!
//! Invariants: `free` holds each empty slot once; a bit in `woken` may be set for an empty or a waiting slot
//! (a late wake-up), which costs a look and nothing else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use atomic_waker::AtomicWaker;

struct Woken {
    bits: Box<[AtomicU64]>,
    parent: AtomicWaker,
}

struct SlotWaker {
    woken: Arc<Woken>,
    slot: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.bits[self.slot / 64].fetch_or(1 << (self.slot % 64), Ordering::AcqRel);
        self.woken.parent.wake();
    }
}

/// Futures in flight, at most a fixed number of them.
pub struct InFlight<F> {
    slots: Box<[Option<F>]>,
    wakers: Box<[Waker]>,
    free: Vec<u16>,
    woken: Arc<Woken>,
}

impl<F: Future + Unpin> InFlight<F> {
    /// Room for `capacity` futures.
    pub fn new(capacity: u16) -> Self {
        let words = usize::from(capacity).div_ceil(64);
        let woken = Arc::new(Woken {
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
            parent: AtomicWaker::new(),
        });
        Self {
            slots: (0..capacity).map(|_| None).collect(),
            wakers: (0..usize::from(capacity))
                .map(|slot| {
                    Waker::from(Arc::new(SlotWaker {
                        woken: woken.clone(),
                        slot,
                    }))
                })
                .collect(),
            free: (0..capacity).rev().collect(),
            woken,
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
        let mut context = Context::from_waker(&self.wakers[usize::from(slot)]);
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut context) {
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
        if let Some(ready) = self.poll_woken() {
            return Poll::Ready(ready);
        }
        self.woken.parent.register(context.waker());
        // A wake-up between the look and the registration would be lost without this second look.
        self.poll_woken().map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_woken(&mut self) -> Option<(u16, F::Output)> {
        for (word, bits) in self.woken.bits.iter().enumerate() {
            // Each bit that is set now is looked at once: a future that wakes itself must not keep the task
            // here.
            let mut pending = bits.load(Ordering::Acquire);
            while pending != 0 {
                let bit = pending & pending.wrapping_neg();
                pending ^= bit;
                let slot = word * 64 + bit.trailing_zeros() as usize;
                bits.fetch_and(!bit, Ordering::AcqRel);
                let Some(future) = &mut self.slots[slot] else {
                    continue;
                };
                let mut context = Context::from_waker(&self.wakers[slot]);
                if let Poll::Ready(output) = Pin::new(future).poll(&mut context) {
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
        let cancelled = self
            .slots
            .get_mut(usize::from(slot))
            .and_then(Option::take)
            .is_some();
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
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Ready once its cell is filled; keeps the waker for the test to fire.
    #[derive(Clone, Default)]
    struct Manual(Rc<RefCell<(Option<u32>, Option<Waker>)>>);

    impl Manual {
        fn finish(&self, value: u32) {
            self.0.borrow_mut().0 = Some(value);
            let waker = self.0.borrow_mut().1.take();
            waker.into_iter().for_each(Waker::wake);
        }
    }

    impl Future for Manual {
        type Output = u32;
        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u32> {
            let mut inner = self.0.borrow_mut();
            inner.1 = Some(context.waker().clone());
            inner.0.take().map_or(Poll::Pending, Poll::Ready)
        }
    }

    fn next(set: &mut InFlight<Manual>) -> Poll<(u16, u32)> {
        set.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_ready_future_takes_no_slot() {
        let mut set = InFlight::new(1);
        let future = Manual::default();
        future.finish(3);
        assert!(matches!(set.start(future), Ok(Started::Ready(3))));
        assert!(set.is_empty());
    }

    #[test]
    fn refuses_one_too_many_and_has_room_again() {
        let mut set = InFlight::new(2);
        let futures: Vec<_> = (0..3).map(|_| Manual::default()).collect();
        assert!(matches!(set.start(futures[0].clone()), Ok(Started::Pending(0))));
        assert!(matches!(set.start(futures[1].clone()), Ok(Started::Pending(1))));
        assert!(set.start(futures[2].clone()).is_err());
        assert_eq!(next(&mut set), Poll::Pending);
        futures[1].finish(11);
        assert_eq!(next(&mut set), Poll::Ready((1, 11)));
        assert!(matches!(set.start(futures[2].clone()), Ok(Started::Pending(1))));
        assert!(set.cancel(0) && !set.cancel(0));
        assert_eq!(set.len(), 1);
        futures[0].finish(1);
        assert_eq!(next(&mut set), Poll::Pending);
    }

    #[test]
    fn a_future_that_wakes_itself_does_not_hold_the_task() {
        struct Restless;
        impl Future for Restless {
            type Output = ();
            fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
        struct Count(AtomicU64);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut set = InFlight::new(1);
        assert!(matches!(set.start(Restless), Ok(Started::Pending(0))));
        let count = Arc::new(Count(AtomicU64::new(0)));
        let waker = Waker::from(count.clone());
        assert_eq!(set.poll_next(&mut Context::from_waker(&waker)), Poll::Pending);
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the task is to come back");
    }

    #[test]
    fn finds_each_of_many_in_any_order() {
        let mut set = InFlight::new(200);
        let futures: Vec<_> = (0..200).map(|_| Manual::default()).collect();
        for future in &futures {
            assert!(matches!(set.start(future.clone()), Ok(Started::Pending(_))));
        }
        let mut seen = Vec::new();
        for (number, future) in futures.iter().enumerate().rev().step_by(3) {
            future.finish(number as u32);
        }
        while let Poll::Ready((slot, number)) = next(&mut set) {
            assert_eq!(u32::from(slot), number);
            seen.push(number);
        }
        assert_eq!(seen.len(), 67);
        assert_eq!(set.len(), 133);
    }
}
