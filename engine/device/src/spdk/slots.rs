//! The requests of one queue: a fixed number of slots, one for each command that SPDK may know.
//!
//! Invariants:
//! - A slot is in `free`, or granted to a waiter, or belongs to one request until that has taken its result
//!   or was dropped and the command is over.
//! - A slot is in `parked` exactly while its stage is [`Stage::Parked`].
//! - `in_flight` is the number of slots in [`Stage::InFlight`]: those whose memory SPDK, or the drive, uses.
//! - Waiters get slots in the order in which they came; a new request does not overtake them.

use std::collections::VecDeque;
use std::task::Waker;

use pollux_reactor::Instant;

use super::raw::queue::Order;
use crate::error::IoError;

/// Requests that may wait for a slot; one more is refused as a resource that is short.
const WAITERS_MAX: usize = 65_536;

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nowhere: the slot is free, or granted.
    Idle,
    /// Waits to be given to SPDK, or for the controller to be known to be done with it.
    Parked,
    /// With SPDK.
    InFlight,
    /// Over.
    Done(Result<(), IoError>),
}

/// One request.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) stage: Stage,
    pub(super) order: Option<Order>,
    pub(super) waker: Option<Waker>,
    /// Nobody waits for it any more.
    pub(super) abandoned: bool,
    /// When it was given to SPDK.
    pub(super) sent_at: Instant,
    /// When the drive was asked to abort it, as it had had its time.
    pub(super) aborted_at: Option<Instant>,
    /// Times that it was given to SPDK again.
    pub(super) attempts: u8,
    /// What it ends with once the controller is known to be done with its memory; `None` to send it again.
    pub(super) verdict: Option<IoError>,
}

impl Slot {
    fn new() -> Self {
        Self {
            stage: Stage::Idle,
            order: None,
            waker: None,
            abandoned: false,
            sent_at: Instant::ORIGIN,
            aborted_at: None,
            attempts: 0,
            verdict: None,
        }
    }

    /// Makes it the slot of a new request.
    pub(super) fn begin(&mut self, order: Order) {
        *self = Self {
            order: Some(order),
            ..Self::new()
        };
    }
}

/// All slots of a queue.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    parked: VecDeque<u16>,
    waiters: VecDeque<(u64, Waker)>,
    granted: Vec<(u64, u16)>,
    tickets: u64,
    in_flight: usize,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::new()).collect(),
            free: (0..count).rev().collect(),
            parked: VecDeque::with_capacity(usize::from(count)),
            waiters: VecDeque::new(),
            granted: Vec::new(),
            tickets: 0,
            in_flight: 0,
        }
    }

    /// Requests with SPDK.
    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether requests wait to be given to SPDK.
    #[inline]
    pub(super) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(index))
    }

    /// A free slot, unless others wait for one.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        if self.waiters.is_empty() {
            self.free.pop()
        } else {
            None
        }
    }

    /// Waits for a slot, or goes on waiting; `Err` when too many do.
    pub(super) fn wait(&mut self, ticket: &mut Option<u64>, waker: &Waker) -> Result<Option<u16>, IoError> {
        let Some(number) = *ticket else {
            if let Some(index) = self.take() {
                return Ok(Some(index));
            }
            if self.waiters.len() >= WAITERS_MAX {
                return Err(IoError::ResourceShortage);
            }
            self.tickets += 1;
            self.waiters.push_back((self.tickets, waker.clone()));
            *ticket = Some(self.tickets);
            return Ok(None);
        };
        if let Some(at) = self.granted.iter().position(|(granted, _)| *granted == number) {
            *ticket = None;
            return Ok(Some(self.granted.swap_remove(at).1));
        }
        if let Some((_, waiting)) = self.waiters.iter_mut().find(|(waiting, _)| *waiting == number) {
            waiting.clone_from(waker);
        }
        Ok(None)
    }

    /// Waits no more. Returns the slot that was granted and never taken.
    pub(super) fn give_up(&mut self, ticket: u64) -> Option<u16> {
        self.waiters.retain(|(waiting, _)| *waiting != ticket);
        let at = self.granted.iter().position(|(granted, _)| *granted == ticket)?;
        Some(self.granted.swap_remove(at).1)
    }

    /// Gives a slot back, or to the next who waits, who is to be woken.
    #[inline]
    #[must_use = "the one who gets the slot must be woken"]
    pub(super) fn release(&mut self, index: u16) -> Option<Waker> {
        if let Some(slot) = self.get_mut(index) {
            slot.stage = Stage::Idle;
            slot.waker = None;
        }
        match self.waiters.pop_front() {
            Some((ticket, waker)) => {
                self.granted.push((ticket, index));
                Some(waker)
            }
            None => {
                self.free.push(index);
                None
            }
        }
    }

    /// Makes a request wait: at the end, or before all others.
    pub(super) fn park(&mut self, index: u16, first: bool) {
        if let Some(slot) = self.get_mut(index) {
            slot.stage = Stage::Parked;
            match first {
                true => self.parked.push_front(index),
                false => self.parked.push_back(index),
            }
        }
    }

    /// Takes the request that waits longest.
    pub(super) fn unpark(&mut self) -> Option<u16> {
        self.parked.pop_front()
    }

    /// A request is with SPDK from now on.
    #[inline]
    pub(super) fn sent(&mut self, index: u16, now: Instant) {
        if let Some(slot) = self.get_mut(index) {
            slot.stage = Stage::InFlight;
            slot.sent_at = now;
            self.in_flight += 1;
        }
    }

    /// A request is not with SPDK any more; it was there.
    #[inline]
    pub(super) fn returned(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The requests with SPDK, with their numbers.
    pub(super) fn sent_ones(&mut self) -> impl Iterator<Item = (u16, &mut Slot)> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(index, slot)| (slot.stage == Stage::InFlight).then_some((index as u16, slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_to_those_who_wait_in_their_order() {
        let mut slots = Slots::new(2);
        let (first, second) = (slots.take().expect("two"), slots.take().expect("one"));
        assert_eq!(slots.take(), None);
        let (mut early, mut late, mut gone) = (None, None, None);
        for ticket in [&mut early, &mut gone, &mut late] {
            assert_eq!(slots.wait(ticket, Waker::noop()), Ok(None));
        }
        assert_eq!(slots.give_up(gone.expect("it waits")), None);
        assert!(slots.release(first).is_some());
        assert_eq!(slots.take(), None, "nobody overtakes");
        assert!(slots.release(second).is_some());
        assert_eq!(slots.wait(&mut late, Waker::noop()), Ok(Some(second)));
        let unclaimed = slots.give_up(early.expect("it waits"));
        assert_eq!(unclaimed, Some(first));
        assert!(slots.release(first).is_none());
        assert_eq!(slots.take(), Some(first));
    }

    #[test]
    fn waiting_is_bounded() {
        let mut slots = Slots::new(0);
        for _ in 0..WAITERS_MAX {
            assert_eq!(slots.wait(&mut None, Waker::noop()), Ok(None));
        }
        let refused = slots.wait(&mut None, Waker::noop());
        assert_eq!(refused, Err(IoError::ResourceShortage));
    }

    #[test]
    fn parked_requests_keep_their_order() {
        let mut slots = Slots::new(4);
        slots.park(1, false);
        slots.park(2, false);
        slots.park(3, true);
        let order: Vec<u16> = std::iter::from_fn(|| slots.unpark()).collect();
        assert_eq!(order, [3, 1, 2]);
        assert!(!slots.has_parked());
    }
}
