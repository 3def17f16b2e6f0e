//! A namespace as one reactor serves it: the reactor's own queue pair to the device, and the gate.
//!
//! There is at most one of these for a namespace and a reactor, however many queues and controllers use it,
//! and it lives as long as any of them, or any command at the device, does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use pollux_device::{BlockDevice, IoError};
use pollux_reactor::{Instant, Reactor, ReactorId, now, spawn};

use super::gate::{BlockRange, Gate, Hold};
use crate::target::namespace::Namespace;
use crate::target::reservation::{Access, HostId, Reservations, Table as ReservationTable};

/// After a failed attach, commands fail for so long before the next attempt.
const ATTACH_PAUSE: Duration = Duration::from_secs(1);

/// By the instance of the namespace, and the reactor.
type Table = BTreeMap<(u64, ReactorId), Weak<Attached>>;

thread_local! {
    /// What this thread's reactors have attached; a simulation runs many reactors on one thread.
    static ATTACHED: RefCell<Table> = const { RefCell::new(BTreeMap::new()) };
}

enum State {
    Attaching(Vec<Waker>),
    Ready(Rc<dyn BlockDevice>),
    Failed { error: IoError, again_at: Instant },
}

/// See the module.
pub(crate) struct Attached {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) gate: Gate,
    /// Fixed parts of the geometry, close at hand.
    pub(crate) block_shift: u32,
    pub(crate) transfer_blocks_max: u32,
    pub(crate) memory_align_bytes: u32,
    pub(crate) read_only: bool,
    pub(crate) volatile_write_cache: bool,
    pub(crate) deallocates: bool,
    reactor: ReactorId,
    returns_seen: Cell<u64>,
    /// Attempts to attach that were begun; only the last one counts.
    attempts: Cell<u64>,
    /// The reservations as this reactor saw them last, with their stamp.
    reservations: RefCell<(u64, Arc<ReservationTable>)>,
    state: RefCell<State>,
}

impl Attached {
    /// The current reactor's own, made if need be.
    pub(crate) fn obtain(namespace: &Arc<Namespace>) -> Rc<Self> {
        let reactor = Reactor::current();
        let key = (namespace.instance, reactor.id());
        if let Some(attached) = ATTACHED.with_borrow(|map| map.get(&key).and_then(Weak::upgrade)) {
            return attached;
        }
        let geometry = namespace.geometry();
        let attached = Rc::new(Self {
            namespace: namespace.clone(),
            gate: Gate::default(),
            block_shift: geometry.block_bytes.trailing_zeros(),
            transfer_blocks_max: geometry.transfer_blocks_max.max(1),
            memory_align_bytes: geometry.memory_align_bytes.max(1),
            read_only: geometry.read_only,
            volatile_write_cache: geometry.volatile_write_cache,
            deallocates: geometry.deallocates,
            reactor: reactor.id(),
            returns_seen: Cell::new(namespace.returns()),
            attempts: Cell::new(0),
            reservations: RefCell::new((0, Arc::default())),
            state: RefCell::new(State::Attaching(Vec::new())),
        });
        ATTACHED.with_borrow_mut(|map| map.insert(key, Rc::downgrade(&attached)));
        if let Some(hold) = namespace.fused.join(reactor.handle()) {
            attached.gate.hold(hold);
        }
        attached.begin_attach();
        attached
    }

    fn find(instance: u64) -> Option<Rc<Self>> {
        let key = (instance, Reactor::current().id());
        ATTACHED.with_borrow(|map| map.get(&key).and_then(Weak::upgrade))
    }

    /// Holds a range on the current reactor from now on; the future ends once nothing that came before is
    /// at the device.
    pub(crate) fn hold(instance: u64, hold: Hold) -> impl Future<Output = ()> + use<> {
        let attached = Self::find(instance);
        if let Some(attached) = &attached {
            attached.gate.hold(hold);
        }
        async move {
            if let Some(attached) = attached {
                attached.gate.drained().await;
            }
        }
    }

    /// Ends a hold on the current reactor.
    pub(crate) fn release(instance: u64, number: u64) {
        if let Some(attached) = Self::find(instance) {
            attached.gate.release(number);
        }
    }

    /// Whether a command on this range may go to the device now. A hold that has ended, and whose release
    /// has not arrived here yet, keeps nobody out.
    #[inline]
    pub(crate) fn admits(&self, range: BlockRange) -> bool {
        self.gate.admits(range) || self.admits_after_all(range)
    }

    #[cold]
    fn admits_after_all(&self, range: BlockRange) -> bool {
        self.gate.retain(|hold| self.namespace.fused.is_held(hold.number));
        self.gate.admits(range)
    }

    /// The stamp of the reservations, unless one of them keeps a host from accessing the namespace.
    #[inline]
    pub(crate) fn permits(&self, host: &HostId, access: Access) -> Option<u64> {
        let stamp = self.namespace.reservations.stamp();
        (!Reservations::is_held(stamp) || self.reservation_permits(stamp, host, access)).then_some(stamp)
    }

    #[cold]
    #[inline(never)]
    fn reservation_permits(&self, stamp: u64, host: &HostId, access: Access) -> bool {
        let mut seen = self.reservations.borrow_mut();
        if seen.0 != stamp {
            *seen = self.namespace.reservations.current();
        }
        seen.1.allows(host, access)
    }

    /// Says once more, after a wait, whether commands may go to the device.
    ///
    /// # Errors
    ///
    /// [`IoError::Fenced`] if the access state says that they may not.
    pub(crate) fn check_access(&self) -> Result<(), IoError> {
        match self.namespace.access().refusal() {
            None => Ok(()),
            Some(_) => Err(IoError::Fenced),
        }
    }

    /// The queue pair, if there is one now.
    #[inline]
    pub(crate) fn device(&self) -> Option<Rc<dyn BlockDevice>> {
        match &*self.state.borrow() {
            State::Ready(device) => Some(device.clone()),
            State::Attaching(_) | State::Failed { .. } => None,
        }
    }

    /// The queue pair, once it is attached.
    ///
    /// # Errors
    ///
    /// That of the attach; the next attempt is made no sooner than [`ATTACH_PAUSE`] later.
    /// [`IoError::Gone`] for a device that came back as another one.
    pub(crate) async fn ready(self: &Rc<Self>) -> Result<Rc<dyn BlockDevice>, IoError> {
        let expired = matches!(&*self.state.borrow(), State::Failed { again_at, .. } if *again_at <= now());
        if expired {
            self.begin_attach();
        }
        std::future::poll_fn(|context| match &mut *self.state.borrow_mut() {
            State::Ready(device) => Poll::Ready(Ok(device.clone())),
            State::Failed { error, .. } => Poll::Ready(Err(*error)),
            State::Attaching(waiting) => {
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Attaches anew when the device was gone and came back.
    pub(crate) fn refresh(self: &Rc<Self>) {
        let returns = self.namespace.returns();
        if self.returns_seen.replace(returns) != returns {
            self.begin_attach();
        }
    }

    fn begin_attach(self: &Rc<Self>) {
        if !matches!(&*self.state.borrow(), State::Attaching(_)) {
            let before = self.state.replace(State::Attaching(Vec::new()));
            drop(before);
        }
        let attempt = self.attempts.get() + 1;
        self.attempts.set(attempt);
        let attaching = self.namespace.device.clone().attach();
        let weak = Rc::downgrade(self);
        spawn(async move {
            let result = attaching.await;
            let Some(attached) = weak.upgrade() else {
                return;
            };
            // The device came back meanwhile: this is of what it was before.
            if attached.attempts.get() != attempt {
                return;
            }
            let result = result.and_then(|device| {
                if attached.namespace.fits(&device.geometry()) {
                    Ok(device)
                } else {
                    Err(IoError::Gone)
                }
            });
            let state = match result {
                Ok(device) => State::Ready(device),
                Err(error) => {
                    let device = attached.namespace.device.name();
                    let reactor = attached.reactor;
                    tracing::warn!(device, %reactor, %error, "could not attach to the device");
                    State::Failed {
                        error,
                        again_at: now() + ATTACH_PAUSE,
                    }
                }
            };
            if let State::Attaching(waiting) = attached.state.replace(state) {
                waiting.into_iter().for_each(Waker::wake);
            }
        })
        .detach();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.namespace.fused.leave(self.reactor);
        // At the end of the thread the map may be gone already.
        let _ = ATTACHED.try_with(|map| {
            if let Ok(mut map) = map.try_borrow_mut() {
                map.remove(&(self.namespace.instance, self.reactor));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::io::guard::Exclusive;
    use crate::target::tests::Fixture;

    #[test]
    fn a_hold_keeps_others_out_until_it_ends_and_no_longer() {
        let (fixture, _drive) = Fixture::with_drive();
        let namespace = fixture.subsystem.namespace(1).unwrap();
        let reactor = fixture.reactor();
        fixture.world.block_on(reactor, async move {
            let attached = Attached::obtain(&namespace);
            let (held, free) = (BlockRange::new(4, 4), BlockRange::new(8, 4));
            let wait_max = Duration::from_secs(1);
            let exclusive = Exclusive::acquire(namespace.clone(), held, wait_max)
                .await
                .unwrap();
            assert!(!attached.admits(held) && attached.admits(free));
            drop(exclusive);
            // The message that releases it has not arrived yet.
            assert!(!attached.gate.admits(held));
            assert!(attached.admits(held));
            assert!(attached.gate.admits(held));
        });
    }
}
