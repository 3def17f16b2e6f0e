//! A controller: what one association of one host with a subsystem has of state.
//!
//! The state is shared by the reactors of the admin queue and of the I/O queues, under a lock that no I/O
//! takes.
//!
//! Invariants:
//! - A controller is in its subsystem from its admission until its admin queue is gone, it expires or it is
//!   ended; then all its queues are told to end.
//! - `queues` holds exactly the queues whose registration is alive. A queue's registration lives until its
//!   last command has left the device, even when the connection was lost before.

mod error_log;
mod events;
mod features;
mod keep_alive;
mod link;
mod registers;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use pollux_reactor::Instant;

pub(crate) use error_log::{ERROR_LOG_ENTRIES, ErrorLog, ErrorRecord};
pub(crate) use events::EventKind;
pub(crate) use features::Features;
pub(crate) use keep_alive::{KEEP_ALIVE_GRANULARITY_100MS, KeepAlive, watch as watch_keep_alive};
pub(crate) use link::{EndWatch, IoTotals, QueueLink};
pub(crate) use registers::{Effect, Registers, VERSION};

use super::config::TargetConfig;
use super::discovery::Directory;
use super::refusal::Refusal;
use super::reservation::NoticeQueue;
use super::subsystem::Subsystem;
use super::sync::lock;
use crate::wire::command::{CompletionEntry, PropertyGet, PropertySet, SubmissionEntry};
use crate::wire::log::ReservationNotificationType;
use crate::wire::nqn::Nqn;
use crate::wire::status::Status;
use events::Events;

/// Asynchronous event requests that a host may have outstanding (AERL + 1).
pub(crate) const ASYNC_EVENTS_MAX: u8 = 8;

/// Which of the retry delays of Identify is told with what is to be tried again (CRD), and how long that
/// one is (CRDT1).
const RETRY_DELAY_INDEX: u8 = 1;
pub(crate) const RETRY_DELAY_100MS: u16 = 10;

/// Namespaces in the Changed Attached Namespace List; with more, the list says that it overflowed (NVMe
/// Base 2.0, 5.16.1.5).
pub(crate) const CHANGED_NAMESPACES_MAX: usize = 1024;

/// A host, as its Connect commands name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) nqn: Nqn,
    pub(crate) id: [u8; 16],
}

/// What a controller is for.
pub(crate) enum Kind {
    /// Namespaces.
    Io,
    /// Telling hosts what there is.
    Discovery {
        /// What there is.
        directory: Arc<Directory>,
        /// The address that the host reached this target by.
        reached: Option<IpAddr>,
    },
}

/// What an admin queue's Connect command asks for.
pub(crate) struct Association {
    pub(crate) kind: Kind,
    pub(crate) host: Host,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) write_cache_reported: bool,
}

/// What is behind the lock of a controller.
pub(crate) struct State {
    pub(crate) registers: Registers,
    pub(crate) features: Features,
    pub(crate) events: Events,
    pub(crate) errors: ErrorLog,
    pub(crate) changed_namespaces: BTreeSet<u32>,
    pub(crate) reservation_notices: NoticeQueue,
    /// When a flush first failed for the host to hear of a loss of caches: by the namespace, and the loss.
    flushes_failed: BTreeMap<(u64, u64), Instant>,
    pub(crate) keep_alive: KeepAlive,
    queues: BTreeMap<u16, Arc<QueueLink>>,
    /// What was read and written by queues that are gone.
    retired: IoTotals,
    ended: bool,
}

/// See the module.
pub(crate) struct Controller {
    /// The controller identifier (CNTLID).
    pub(crate) id: u16,
    pub(crate) kind: Kind,
    pub(crate) host: Host,
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) config: Arc<TargetConfig>,
    /// Whether Identify tells this host of a volatile write cache. Fixed when the controller is made: to a
    /// namespace with a cache that comes later every write goes with FUA, as the host does not know that it
    /// would have to flush.
    pub(crate) write_cache_reported: bool,
    /// The host disabled the volatile write cache: every write goes with FUA.
    write_through: AtomicBool,
    /// The host waits before it tries again when it is told to (ACRE).
    delays_retries: AtomicBool,
    state: Mutex<State>,
}

impl Controller {
    /// A controller with this identifier. The subsystem is locked meanwhile.
    pub(crate) fn new(id: u16, subsystem: Arc<Subsystem>, association: Association) -> Arc<Self> {
        let Association {
            kind,
            host,
            keep_alive,
            write_cache_reported,
        } = association;
        let config = subsystem.config.clone();
        let state = State {
            registers: Registers::new(config.queue_depth_max),
            features: Features::default(),
            events: Events::default(),
            errors: ErrorLog::default(),
            changed_namespaces: BTreeSet::new(),
            reservation_notices: NoticeQueue::default(),
            flushes_failed: BTreeMap::new(),
            keep_alive,
            queues: BTreeMap::new(),
            retired: IoTotals::default(),
            ended: false,
        };
        Arc::new(Self {
            id,
            kind,
            host,
            config,
            subsystem,
            write_cache_reported,
            write_through: AtomicBool::new(false),
            delays_retries: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    /// Access to the state. Nothing else is locked, and nobody is called, meanwhile.
    pub(crate) fn with<T>(&self, access: impl FnOnce(&mut State) -> T) -> T {
        access(&mut lock(&self.state))
    }

    /// Whether this is a discovery controller.
    pub(crate) fn is_discovery(&self) -> bool {
        matches!(self.kind, Kind::Discovery { .. })
    }

    /// Whether a write to a namespace with or without a volatile write cache goes with FUA though the host
    /// did not ask.
    #[inline]
    pub(crate) fn forces_unit_access(&self, volatile_write_cache: bool) -> bool {
        volatile_write_cache && (!self.write_cache_reported || self.write_through.load(Ordering::Relaxed))
    }

    /// Enables or disables the volatile write cache for this host.
    pub(crate) fn set_write_cache(&self, enabled: bool) {
        self.write_through.store(!enabled, Ordering::Relaxed);
    }

    /// Whether the host has the volatile write cache enabled.
    pub(crate) fn has_write_cache_enabled(&self) -> bool {
        !self.write_through.load(Ordering::Relaxed)
    }

    /// The host waits, or not, before it tries again when it is told to.
    pub(crate) fn set_delays_retries(&self, delays: bool) {
        self.delays_retries.store(delays, Ordering::Relaxed);
    }

    /// The status as this host is told: where it is to try again, after the delay that Identify tells, if
    /// it knows of delays (CRD; NVMe Base 2.0, 3.3.3.2.1).
    pub(crate) fn told(&self, status: Status) -> Status {
        let later = status.is(Status::COMMAND_INTERRUPTED) || status.is(Status::NAMESPACE_NOT_READY);
        if later && !status.do_not_retry() && self.delays_retries.load(Ordering::Relaxed) {
            return status.with_retry_delay_index(RETRY_DELAY_INDEX);
        }
        status
    }

    /// A flush is about to fail for the host to hear of a loss of caches, unless one has: when that was.
    pub(crate) fn flush_failed_at(&self, (namespace, loss): (u64, u64), now: Instant) -> Option<Instant> {
        self.with(|state| match state.flushes_failed.entry((namespace, loss)) {
            Entry::Occupied(failed) => Some(*failed.get()),
            Entry::Vacant(first) => {
                first.insert(now);
                None
            }
        })
    }

    /// The queue identifiers that the host may connect: up to this one.
    pub(crate) fn io_queues_max(&self) -> u16 {
        self.with(|state| state.features.io_queues(&self.config))
    }

    /// Makes a queue known, until its registration is dropped.
    pub(crate) fn register(self: &Arc<Self>, id: u16) -> Result<Registration, RegisterError> {
        self.with(|state| {
            if state.ended {
                return Err(RegisterError::Ended);
            }
            if id != 0 && !state.registers.is_enabled() {
                return Err(RegisterError::Disabled);
            }
            if state.queues.contains_key(&id) {
                return Err(RegisterError::Duplicate);
            }
            let link = QueueLink::new(id);
            state.queues.insert(id, link.clone());
            self.subsystem.count_queue(true);
            Ok(Registration {
                controller: self.clone(),
                link,
            })
        })
    }

    fn unregister(&self, link: &Arc<QueueLink>) {
        let last = self.with(|state| {
            if state
                .queues
                .get(&link.id)
                .is_some_and(|found| Arc::ptr_eq(found, link))
            {
                state.queues.remove(&link.id);
            }
            state.retired += link.counters.totals();
            if state.registers.is_resetting() && !state.queues.keys().any(|id| *id != 0) {
                state.registers.reset_done();
            }
            link.id == 0
        });
        if last {
            self.end("the admin queue is gone");
        }
        self.subsystem.count_queue(false);
    }

    /// A queue by its identifier.
    pub(crate) fn queue(&self, id: u16) -> Option<Arc<QueueLink>> {
        self.with(|state| state.queues.get(&id).cloned())
    }

    /// How many queues it has, the admin queue among them.
    pub(crate) fn queues(&self) -> usize {
        self.with(|state| state.queues.len())
    }

    /// Ends the controller and all its connections.
    pub(crate) fn end(&self, reason: &'static str) {
        let queues = self.with(|state| {
            if std::mem::replace(&mut state.ended, true) {
                return None;
            }
            state.events.reset();
            Some(state.queues.values().cloned().collect::<Vec<_>>())
        });
        let Some(queues) = queues else {
            return;
        };
        for link in queues {
            link.end(reason);
        }
        self.subsystem.remove_controller(self.id);
        tracing::info!(
            controller = self.id,
            subsystem = %self.subsystem.nqn,
            host = %self.host.nqn,
            reason,
            "controller ended"
        );
    }

    /// The keep alive timer ran out (NVMe Base 2.0, 3.9).
    pub(crate) fn expire(&self) {
        self.with(|state| state.registers.fail());
        self.end("the keep alive timer expired");
    }

    /// Reads a property.
    pub(crate) fn get_property(&self, get: PropertyGet) -> Result<u64, Refusal> {
        self.with(|state| state.registers.get(get.offset, get.size))
    }

    /// Writes a property. The caller does what [`Effect::Shutdown`] asks for.
    pub(crate) fn set_property(&self, set: PropertySet) -> Result<Effect, Refusal> {
        let (effect, queues) = self.with(|state| -> Result<_, Refusal> {
            let effect = state.registers.set(set.offset, set.size, set.value)?;
            if effect != Effect::Reset {
                return Ok((effect, Vec::new()));
            }
            state.features = Features::default();
            state.events.reset();
            state.changed_namespaces.clear();
            state.reservation_notices = NoticeQueue::default();
            let queues: Vec<_> = state
                .queues
                .values()
                .filter(|link| link.id != 0)
                .cloned()
                .collect();
            if queues.is_empty() {
                state.registers.reset_done();
            }
            Ok((effect, queues))
        })?;
        if effect == Effect::Reset {
            self.set_write_cache(true);
            self.set_delays_retries(false);
        }
        for link in queues {
            link.end("the controller was reset");
        }
        Ok(effect)
    }

    /// Remembers a failed command.
    pub(crate) fn record_failure(
        &self,
        queue_id: u16,
        entry: &SubmissionEntry,
        refusal: &Refusal,
        block: u64,
    ) {
        let count = self.subsystem.count_failure();
        let record = ErrorRecord {
            count,
            queue_id,
            command_id: entry.command_id.get(),
            status: refusal.status,
            parameter: refusal.parameter,
            block,
            namespace_id: entry.namespace_id.get(),
        };
        self.with(|state| state.errors.push(record));
    }

    /// A namespace was added, removed or changed.
    pub(crate) fn namespace_changed(&self, id: u32) {
        if self.is_discovery() {
            return;
        }
        self.with(|state| {
            // One above the limit is kept: it says that the list overflowed.
            if state.changed_namespaces.len() <= CHANGED_NAMESPACES_MAX {
                state.changed_namespaces.insert(id);
            }
            state.events.raise(EventKind::NamespaceAttributes);
        });
    }

    /// The reservations of a namespace changed in a way that its host is to be told, unless it does not want
    /// to.
    pub(crate) fn reservation_changed(&self, id: u32, kind: ReservationNotificationType) {
        self.with(|state| {
            if state.features.masks_reservation(id, kind) {
                return;
            }
            state.reservation_notices.push(id, kind);
            state.events.raise(EventKind::Reservation);
        });
    }

    /// Tells the host that something happened, if it wants to know.
    pub(crate) fn raise(&self, kind: EventKind) {
        self.with(|state| state.events.raise(kind));
    }

    /// What was read and written over all queues.
    pub(crate) fn totals(&self) -> IoTotals {
        self.with(|state| {
            let mut totals = state.retired;
            for link in state.queues.values() {
                totals += link.counters.totals();
            }
            totals
        })
    }

    /// Whether there was traffic on any queue since the last call.
    pub(crate) fn take_traffic(&self) -> bool {
        self.with(|state| {
            state
                .queues
                .values()
                .fold(false, |any, link| link.take_traffic() | any)
        })
    }

    /// Takes an asynchronous event request in.
    pub(crate) fn request_event(self: &Arc<Self>, command_id: u16) -> Result<EventRequest, Status> {
        let token = self.with(|state| state.events.request(command_id, usize::from(ASYNC_EVENTS_MAX)))?;
        Ok(EventRequest {
            controller: self.clone(),
            token,
        })
    }
}

/// Why a queue could not be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegisterError {
    /// The controller is ending.
    Ended,
    /// The controller is not enabled.
    Disabled,
    /// The queue exists.
    Duplicate,
}

/// A queue known to its controller until dropped.
pub(crate) struct Registration {
    pub(crate) controller: Arc<Controller>,
    pub(crate) link: Arc<QueueLink>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.controller.unregister(&self.link);
    }
}

/// An asynchronous event request under way.
pub(crate) struct EventRequest {
    controller: Arc<Controller>,
    token: u64,
}

impl Future for EventRequest {
    type Output = CompletionEntry;

    fn poll(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CompletionEntry> {
        let outcome = self
            .controller
            .with(|state| state.events.poll(self.token, context.waker()));
        outcome.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for EventRequest {
    fn drop(&mut self) {
        self.controller.with(|state| state.events.forget(self.token));
    }
}
