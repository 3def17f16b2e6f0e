//! What all reactors know of a device: the association with its controller, who uses which queue, what was
//! lost.
//!
//! One lock guards it, which is taken when something begins or ends and never for an I/O. Whoever changes
//! something wakes everybody who waits; there are few, and they look again.
//!
//! Invariants:
//! - A seat is open only for the association that is live, or for the one just lost until its connection is
//!   closed: no two associations have connections at a time, and no connection outlives the wait for the end
//!   of its commands.
//! - `unsettled` is set, before its seat is closed, by every connection that ended with a change of data
//!   unanswered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use pollux_device::events::{DeviceEvent, Publisher, Subscription};
use pollux_device::{Geometry, Health};

use super::super::connection::CommandId;
use super::super::controller::QueueTicket;
use super::holes::Question;
use super::ledger::CacheLedger;
use super::options::NvmfOptions;
use super::plan::Limits;

/// A controller this host is connected to, as all reactors know it.
#[derive(Debug)]
pub(super) struct Association {
    /// Rises by one with each association of the device.
    pub(super) generation: u64,
    /// The epoch of the write cache; see [`CacheLedger`].
    pub(super) cache_epoch: u64,
    pub(super) ticket: QueueTicket,
    pub(super) namespace_id: u32,
    /// Whether the controller can be asked for holes of the namespace.
    pub(super) tells_holes: bool,
    /// I/O queues that the controller gives.
    pub(super) queues: u16,
    /// Pauses that the controller asks for before a command is sent again.
    pub(super) retry_delays: [Duration; 3],
}

/// Where the device stands.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Connected.
    Live(Arc<Association>),
    /// Lost a while ago; requests wait.
    Lost {
        /// The association that was lost.
        generation: u64,
    },
    /// Lost for so long that requests fail.
    Down {
        /// The association that was lost.
        generation: u64,
    },
    /// For good.
    Gone,
}

impl Phase {
    /// The association, if it is live and this one.
    pub(super) fn is_live(&self, generation: u64) -> bool {
        matches!(self, Self::Live(association) if association.generation == generation)
    }
}

/// A queue identifier: somebody's or nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    Free,
    Closed,
    /// A connection is being made or is up.
    Open,
}

/// A command that is to be aborted.
#[derive(Debug, Clone, Copy)]
pub(super) struct AbortWanted {
    pub(super) generation: u64,
    pub(super) queue_id: u16,
    pub(super) command: CommandId,
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// By queue identifier, less one.
    seats: Box<[Seat]>,
    unsettled: bool,
    /// The live association does not work any more, and why.
    lost: Option<String>,
    pub(super) aborts: Vec<AbortWanted>,
    /// Questions which blocks are allocated; none is older than the live association.
    pub(super) questions: Vec<Question>,
    /// Why the controller of the live association is not asked for holes any more.
    pub(super) no_holes: Option<&'static str>,
    /// The device is not used any more.
    pub(super) closing: bool,
    waiters: Vec<Waker>,
}

/// A device as its reactors share it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) options: NvmfOptions,
    pub(super) limits: Limits,
    pub(super) ledger: CacheLedger,
    geometry: Geometry,
    blocks: AtomicU64,
    present: AtomicBool,
    publisher: Publisher,
    health: Mutex<Health>,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(
        name: String,
        options: NvmfOptions,
        geometry: Geometry,
        limits: Limits,
        association: Association,
    ) -> Self {
        let seats = vec![Seat::Free; usize::from(options.queues)].into_boxed_slice();
        Self {
            name,
            options,
            limits,
            ledger: CacheLedger::default(),
            geometry,
            blocks: AtomicU64::new(geometry.blocks),
            present: AtomicBool::new(true),
            publisher: Publisher::default(),
            health: Mutex::default(),
            state: Mutex::new(State {
                phase: Phase::Live(Arc::new(association)),
                seats,
                unsettled: false,
                lost: None,
                aborts: Vec::new(),
                questions: Vec::new(),
                no_holes: None,
                closing: false,
                waiters: Vec::new(),
            }),
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    /// The namespace is there.
    pub(super) fn is_present(&self) -> bool {
        self.present.load(Ordering::Relaxed)
    }

    pub(super) fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    pub(super) fn publish(&self, event: DeviceEvent) {
        self.publisher.publish(event);
    }

    /// The namespace was found, as large as this, or not at all; tells those concerned.
    pub(super) fn found(&self, blocks: Option<u64>) {
        let Some(blocks) = blocks else {
            if self.present.swap(false, Ordering::Relaxed) {
                self.publish(DeviceEvent::Removed);
            }
            return;
        };
        let resized = self.blocks.swap(blocks, Ordering::Relaxed) != blocks;
        if !self.present.swap(true, Ordering::Relaxed) {
            self.publish(DeviceEvent::Returned);
        }
        if resized {
            self.publish(DeviceEvent::Resized);
        }
    }

    pub(super) fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_health(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody who waits for a change.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, waiters) = {
            let mut state = self.lock();
            let result = change(&mut state);
            (result, std::mem::take(&mut state.waiters))
        };
        waiters.into_iter().for_each(Waker::wake);
        result
    }

    /// Waits until `look` finds something.
    pub(super) async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            if let Some(found) = look(&mut state) {
                return Poll::Ready(found);
            }
            if !state
                .waiters
                .iter()
                .any(|waiter| waiter.will_wake(context.waker()))
            {
                state.waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Takes a free queue identifier; `None` when all that the controller gives are taken.
    pub(super) fn take_seat(&self) -> Option<u16> {
        self.update(|state| {
            let limit = match &state.phase {
                Phase::Live(association) => usize::from(association.queues),
                _ => usize::MAX,
            };
            let free = state
                .seats
                .iter()
                .take(limit)
                .position(|seat| *seat == Seat::Free)?;
            if let Some(seat) = state.seats.get_mut(free) {
                *seat = Seat::Closed;
            }
            u16::try_from(free + 1).ok()
        })
    }

    /// A connection for a seat is about to be made. False when the association is not the live one any more.
    pub(super) fn open_seat(&self, queue_id: u16, generation: u64) -> bool {
        self.update(|state| {
            let live = state.phase.is_live(generation);
            if live {
                state.set_seat(queue_id, Seat::Open);
            }
            live
        })
    }

    /// The connection of a seat is closed: nothing more is sent on it.
    pub(super) fn close_seat(&self, queue_id: u16, unsettled: bool) {
        self.update(|state| {
            state.unsettled |= unsettled;
            state.set_seat(queue_id, Seat::Closed);
        });
    }

    /// Gives a queue identifier back; its connection is closed.
    pub(super) fn free_seat(&self, queue_id: u16) {
        self.update(|state| state.set_seat(queue_id, Seat::Free));
    }

    /// An association does not work any more, and why.
    pub(super) fn report_lost(&self, generation: u64, why: &dyn std::fmt::Display) {
        self.update(|state| {
            if state.phase.is_live(generation) && state.lost.is_none() {
                state.lost = Some(why.to_string());
            }
        });
    }
}

impl State {
    fn set_seat(&mut self, queue_id: u16, to: Seat) {
        let index = usize::from(queue_id).wrapping_sub(1);
        if let Some(seat) = self.seats.get_mut(index) {
            *seat = to;
        }
    }

    /// Why the live association does not work, if that was reported.
    pub(super) fn take_lost(&mut self) -> Option<String> {
        self.lost.take()
    }

    /// Once no connection is open: whether a change of data is unsettled, which is then for the caller to
    /// settle.
    pub(super) fn all_closed(&mut self) -> Option<bool> {
        let open = self.seats.contains(&Seat::Open);
        (!open).then(|| std::mem::take(&mut self.unsettled))
    }

    /// Nobody uses the device.
    pub(super) fn all_free(&self) -> bool {
        self.seats.iter().all(|seat| *seat == Seat::Free)
    }
}
