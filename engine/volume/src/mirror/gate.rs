//! Holding changes: while a hold is in force none begins, and none is under way.
//!
//! Invariants:
//! - There is one hold at most. It ends when it is released or when its time is over, whatever its holder
//!   does.
//! - A change that has passed the gate is counted until it is done with all replicas, answered or not.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::IoError;
use pollux_reactor::{Instant, Reactor, Signal, sleep, timeout};

use super::connection::clock;
use super::snapshot::SnapshotError;
use super::{Core, Mirror};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Changes under way.
    under_way: Cell<u64>,
    /// The number of the hold, from when it is asked for.
    hold: Cell<Option<u64>>,
    /// Somebody waits until nothing is under way, without a hold.
    is_draining: Cell<bool>,
    next: Cell<u64>,
    /// The hold ended, or the last change did.
    changed: Signal,
}

/// A change that has passed the gate; it has ended when this is dropped.
pub(super) struct Passage(Rc<Gate>);

impl Drop for Passage {
    fn drop(&mut self) {
        let gate = &self.0;
        let left = gate.under_way.get().saturating_sub(1);
        gate.under_way.set(left);
        if left == 0 && (gate.hold.get().is_some() || gate.is_draining.get()) {
            gate.changed.wake();
        }
    }
}

impl Gate {
    /// Wakes everybody who waits at it, to look again.
    pub(super) fn wake(&self) {
        self.changed.wake();
    }

    fn release(&self, number: u64) {
        if self.hold.get() == Some(number) {
            self.hold.set(None);
            self.changed.wake();
        }
    }
}

impl Core {
    /// Lets a change begin, unless changes are held: then it waits.
    pub(super) async fn pass_gate(&self) -> Result<Passage, IoError> {
        let gate = &self.gate;
        if gate.hold.get().is_some() {
            let open = || (gate.hold.get().is_none() || self.stopped().is_some()).then_some(());
            gate.changed.until(open).await;
            self.check_serving()?;
        }
        Ok(self.pass())
    }

    /// Lets a change begin now, unless changes are held.
    pub(super) fn try_pass_gate(&self) -> Option<Passage> {
        self.gate.hold.get().is_none().then(|| self.pass())
    }

    fn pass(&self) -> Passage {
        self.gate.under_way.set(self.gate.under_way.get() + 1);
        Passage(self.gate.clone())
    }

    /// Waits until no change is under way. Others may begin.
    pub(super) async fn drained(&self) -> Result<(), IoError> {
        let gate = &self.gate;
        gate.is_draining.set(true);
        let is_over = || (gate.under_way.get() == 0 || self.stopped().is_some()).then_some(());
        gate.changed.until(is_over).await;
        gate.is_draining.set(false);
        self.check_serving()
    }
}

/// Changes of a volume are held: none is under way, and new ones wait. Reads go on. Ends when it is
/// dropped, or when its time is over.
pub struct Hold {
    pub(super) core: Rc<Core>,
    number: u64,
    ends_at: Instant,
}

impl Hold {
    /// Whether it has lasted up to now.
    pub fn is_in_force(&self) -> bool {
        self.core.gate.hold.get() == Some(self.number) && self.core.stopped().is_none()
    }

    /// The time that is left of it.
    pub(super) fn left(&self) -> Duration {
        Duration::from_nanos(self.ends_at.as_nanos().saturating_sub(clock().as_nanos()))
    }

    /// Waits for something that a wake of the target tells of, as long as the hold is in force.
    pub(super) async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> Result<T, SnapshotError> {
        self.core
            .gate
            .changed
            .until(|| match (self.is_in_force(), ready()) {
                (false, _) => Some(Err(SnapshotError::Expired)),
                (true, found) => found.map(Ok),
            })
            .await
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.core.gate.release(self.number);
    }
}

impl Mirror {
    /// Holds changes for `limit` at most. Returns once all that had begun are on all replicas.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Busy`] when they are held already, [`SnapshotError::Expired`] when those under way
    /// did not end in time, or the target stopped.
    pub async fn hold(&self, limit: Duration) -> Result<Hold, SnapshotError> {
        let core = self.core.clone();
        core.check_serving()?;
        // What is the same everywhere can be cut, and while that is waited for nothing needs to be held.
        if timeout(limit, core.all_settled()).await.is_err() {
            return Err(SnapshotError::Expired);
        }
        core.check_serving()?;
        if core.gate.hold.get().is_some() {
            return Err(SnapshotError::Busy);
        }
        let number = core.gate.next.get();
        core.gate.next.set(number + 1);
        core.gate.hold.set(Some(number));
        let nanoseconds = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let hold = Hold {
            core: core.clone(),
            number,
            ends_at: Instant::from_nanos(clock().as_nanos().saturating_add(nanoseconds)),
        };
        // Whoever asked may be gone when the time is over, and the clients wait. If there is nobody at all
        // any more, replicas are let go of at once.
        let waiting = Rc::downgrade(&core);
        let expiry = async move {
            sleep(limit).await;
            if let Some(core) = waiting.upgrade() {
                core.gate.release(number);
            }
        };
        Reactor::current().spawn(expiry).detach();
        let drained = || (hold.core.gate.under_way.get() == 0).then_some(());
        hold.until(drained).await?;
        Ok(hold)
    }
}
