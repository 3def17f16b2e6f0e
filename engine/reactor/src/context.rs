//! Which reactor runs on this thread now, and the functions that tasks call.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use async_task::Task;
use pollux_hugepages::BufferPool;

use crate::driver::Driver;
use crate::executor::{Core, Poller};
use crate::handle::{ReactorHandle, ReactorId};
use crate::timer::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// A reactor, on its own thread. Cheap to clone, not to be sent: others use its [`ReactorHandle`].
#[derive(Clone)]
pub struct Reactor(Rc<Core>);

impl Reactor {
    /// The reactor that runs the calling task.
    ///
    /// # Panics
    ///
    /// Outside a reactor: a mistake of the caller, never of a peer.
    pub fn current() -> Self {
        Self::try_current().expect("called from a task of a reactor")
    }

    /// The reactor that runs the calling task, if there is one.
    pub fn try_current() -> Option<Self> {
        CURRENT.with_borrow(|current| current.clone()).map(Self)
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0
    }

    /// Its number.
    pub fn id(&self) -> ReactorId {
        self.0.id()
    }

    /// What other threads send it messages with.
    pub fn handle(&self) -> ReactorHandle {
        self.0.handle()
    }

    /// The driver that owns its clock, randomness and network.
    pub fn driver(&self) -> &dyn Driver {
        self.0.driver()
    }

    /// The buffers of this reactor.
    pub fn buffers(&self) -> &BufferPool {
        self.0.buffers()
    }

    /// The clock as of the start of this turn.
    pub fn now(&self) -> Instant {
        self.0.now()
    }

    /// The number of the task that runs now: small, and used again once the task has ended. A connection is
    /// one task for life, so that this tells connections apart where nobody names them.
    pub fn task(&self) -> usize {
        self.0.running()
    }

    /// Has a poller asked every turn until its owner drops it.
    pub fn add_poller(&self, poller: std::rc::Weak<dyn Poller>) {
        self.0.add_poller(poller);
    }

    /// Runs a future as a task of its own. Dropping the [`Task`] cancels it; [`Task::detach`] lets it run.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        Core::spawn(&self.0, future)
    }
}

/// Makes `core` the current reactor of this thread until dropped. Nests, as one simulated reactor calling
/// into the harness that runs another does.
#[must_use]
pub(crate) struct Entered(Option<Rc<Core>>);

pub(crate) fn enter(core: &Rc<Core>) -> Entered {
    Entered(CURRENT.replace(Some(core.clone())))
}

impl Drop for Entered {
    fn drop(&mut self) {
        let previous = self.0.take();
        // At the end of the thread the slot may be gone already; there is nothing left to restore then.
        let _ = CURRENT.try_with(|current| current.replace(previous));
    }
}

/// What `act` returns for the reactor that runs on the calling thread now, if there is one.
pub(crate) fn with_current<T>(act: impl FnOnce(&Core) -> Option<T>) -> Option<T> {
    CURRENT
        .try_with(|current| {
            current
                .try_borrow()
                .ok()
                .and_then(|current| act(current.as_ref()?))
        })
        .ok()
        .flatten()
}

/// [`Reactor::current`].
pub fn current() -> Reactor {
    Reactor::current()
}

/// Runs a future as a task of its own on the current reactor. See [`Reactor::spawn`].
pub fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    Reactor::current().spawn(future)
}

/// The current reactor's clock as of the start of this turn.
pub fn now() -> Instant {
    Reactor::current().now()
}

/// A random number from the current reactor's driver.
pub fn random_u64() -> u64 {
    Reactor::current().driver().random_u64()
}

/// The current reactor's buffers.
pub fn buffers() -> BufferPool {
    Reactor::current().buffers().clone()
}

/// Lets the other tasks of this reactor run once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return std::task::Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
