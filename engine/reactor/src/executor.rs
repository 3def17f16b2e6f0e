//! The executor of one reactor.
//!
//! Invariants:
//! - A task's future is polled and dropped on the reactor's own thread only (`async_task::spawn_local` checks it).
//! - A runnable is in exactly one place: the local run queue, or the remote queue when another thread woke it.
//! - `active` holds the waker of every task that has not ended, so that dropping the core can drop every future.
//! - A turn runs at most the tasks that were ready when it began: a task that wakes itself cannot starve the driver.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_task::{Runnable, Task};
use crossbeam::queue::{ArrayQueue, SegQueue};
use pollux_hugepages::BufferPool;
use slab::Slab;

use crate::context;
use crate::counters::{self, Counters};
use crate::driver::{Driver, Progress, Wait, WakeReactor};
use crate::timer::{Instant, Timers};

/// Messages that may wait in a reactor's mailbox; one more is refused.
pub const MAILBOX_CAPACITY: usize = 16_384;

/// Messages taken from the mailbox in one turn, so that a flood cannot starve the I/O.
const MESSAGES_PER_TURN: usize = 256;

/// The number of a reactor, unique within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReactorId(pub u32);

impl fmt::Display for ReactorId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "reactor {}", self.0)
    }
}

type Message = Box<dyn FnOnce() + Send>;

/// The part of a reactor that other threads touch.
struct Shared {
    id: ReactorId,
    /// Tasks of this reactor that another thread woke. Bounded by the number of tasks: each is in it at most once.
    woken: SegQueue<Runnable>,
    mailbox: ArrayQueue<Message>,
    waker: Arc<dyn WakeReactor>,
    counters: Counters,
}

/// Reaches a reactor from any thread.
#[derive(Clone)]
pub struct ReactorHandle(Arc<Shared>);

/// The reactor's mailbox is full, or the reactor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox of {0} is full: it is overloaded or stopped")]
pub struct MailboxFull(pub ReactorId);

/// A call to another reactor that brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoteCallError {
    /// The message could not be left.
    #[error(transparent)]
    MailboxFull(#[from] MailboxFull),
    /// The reactor stopped before it answered.
    #[error("{0} stopped before it answered")]
    Stopped(ReactorId),
}

impl ReactorHandle {
    /// The reactor's number.
    pub fn id(&self) -> ReactorId {
        self.0.id
    }

    /// Its counters, live.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Has the reactor make a future and run it to its end.
    ///
    /// # Errors
    ///
    /// [`MailboxFull`]; nothing was left then.
    pub fn spawn<M, F>(&self, make: M) -> Result<(), MailboxFull>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.send(Box::new(move || context::spawn(make()).detach()))
    }

    /// Has the reactor run a future and waits for what it returns; from any executor.
    ///
    /// # Errors
    ///
    /// [`RemoteCallError`] when the reactor cannot take the call or stops before its end.
    pub async fn call<M, F, T>(&self, make: M) -> Result<T, RemoteCallError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.spawn(move || {
            let future = make();
            async move {
                // The caller may have gone away; then nobody wants the answer.
                let _ = sender.send(future.await);
            }
        })?;
        receiver.await.map_err(|_| RemoteCallError::Stopped(self.id()))
    }

    fn send(&self, message: Message) -> Result<(), MailboxFull> {
        self.0.mailbox.push(message).map_err(|_| MailboxFull(self.id()))?;
        self.0.waker.wake();
        Ok(())
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("ReactorHandle").field(&self.0.id).finish()
    }
}

/// What a poller found, which decides whether an adaptive reactor may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollerState {
    /// It did something.
    Progressed,
    /// Nothing came, but something is outstanding that only polling can find: no sleep.
    Waiting,
    /// Nothing is outstanding.
    Idle,
}

/// Called once a turn; for hardware that has to be asked, such as an NVMe completion queue.
pub trait Poller {
    /// Asks once. Must not block.
    fn poll(&self) -> PollerState;
}

/// One reactor: executor, timers, mailbox and driver, without a thread. [`real`](crate::real) gives it a thread, a
/// simulation calls [`Core::turn`] itself.
pub struct Core {
    shared: Arc<Shared>,
    run_queue: RefCell<VecDeque<Runnable>>,
    active: Rc<RefCell<Slab<Waker>>>,
    pub(crate) timers: RefCell<Timers>,
    pollers: RefCell<Vec<std::rc::Weak<dyn Poller>>>,
    driver: Box<dyn Driver>,
    buffers: BufferPool,
    now: Cell<Instant>,
}

/// What one [`Core::turn`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// Messages, task polls, timers and driver events together.
    pub work: u64,
    /// A poller needs to be asked again soon.
    pub poller_waiting: bool,
}

impl Core {
    /// A reactor on the calling thread.
    pub fn new(id: ReactorId, driver: Box<dyn Driver>, buffers: BufferPool) -> Rc<Self> {
        let shared = Arc::new(Shared {
            id,
            woken: SegQueue::new(),
            mailbox: ArrayQueue::new(MAILBOX_CAPACITY),
            waker: driver.waker(),
            counters: Counters::default(),
        });
        let now = Cell::new(driver.now());
        Rc::new(Self {
            shared,
            run_queue: RefCell::default(),
            active: Rc::default(),
            timers: RefCell::default(),
            pollers: RefCell::default(),
            driver,
            buffers,
            now,
        })
    }

    /// Its number.
    pub fn id(&self) -> ReactorId {
        self.shared.id
    }

    /// What other threads send it messages with.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle(self.shared.clone())
    }

    /// Its driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Its buffers.
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The clock as of the start of this turn.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// When the earliest timer is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.borrow().next_deadline()
    }

    /// Whether a turn would find a task or a message, timers and driver apart.
    pub fn is_ready(&self) -> bool {
        !self.run_queue.borrow().is_empty() || self.has_mail()
    }

    pub(crate) fn has_mail(&self) -> bool {
        !self.shared.woken.is_empty() || !self.shared.mailbox.is_empty()
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.active.borrow().len()
    }

    /// Adds a poller; it is asked every turn until its owner drops it.
    pub fn add_poller(&self, poller: std::rc::Weak<dyn Poller>) {
        self.pollers.borrow_mut().push(poller);
    }

    /// Runs a future as a task of its own. Dropping the [`Task`] cancels it.
    pub fn spawn<F>(core: &Rc<Self>, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let key = core.active.borrow_mut().insert(Waker::noop().clone());
        let tracked = Tracked {
            future,
            entry: ActiveEntry {
                active: core.active.clone(),
                key,
            },
        };
        let shared = core.shared.clone();
        let (runnable, task) = async_task::spawn_local(tracked, move |runnable| {
            let mut runnable = Some(runnable);
            context::with_current(shared.id, |core| {
                core.run_queue.borrow_mut().extend(runnable.take());
            });
            if let Some(runnable) = runnable {
                shared.woken.push(runnable);
                shared.waker.wake();
            }
        });
        if let Some(entry) = core.active.borrow_mut().get_mut(key) {
            *entry = runnable.waker();
        }
        runnable.schedule();
        task
    }

    /// One iteration of the reactor.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::turn`].
    pub fn turn(core: &Rc<Self>, wait: Wait) -> io::Result<Turn> {
        let _entered = context::enter(core);
        let mut turn = Turn::default();
        let counters = &core.shared.counters;
        counters::add(&counters.iterations, 1);
        core.now.set(core.driver.now());

        turn.work += core.drain_mailbox();
        turn.work += core.run_ready();
        core.poll_pollers(&mut turn);

        let may_wait = turn.work == 0 && !turn.poller_waiting;
        let wait = if may_wait { wait } else { Wait::Never };
        let Progress { events } = core.driver.turn(wait)?;
        counters::add(&counters.driver_events, u64::from(events));
        turn.work += u64::from(events);

        core.now.set(core.driver.now());
        turn.work += core.fire_timers();
        Ok(turn)
    }

    fn drain_mailbox(&self) -> u64 {
        if !self.has_mail() {
            return 0;
        }
        let counters = &self.shared.counters;
        counters::raise(&counters.mailbox_depth_max, self.shared.mailbox.len() as u64);
        let mut taken = 0;
        for _ in 0..self.shared.woken.len() {
            let Some(runnable) = self.shared.woken.pop() else {
                break;
            };
            self.run_queue.borrow_mut().push_back(runnable);
            taken += 1;
        }
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.shared.mailbox.pop() else {
                break;
            };
            message();
            taken += 1;
        }
        counters::add(&counters.messages, taken);
        taken
    }

    fn run_ready(&self) -> u64 {
        let ready = self.run_queue.borrow().len();
        if ready == 0 {
            return 0;
        }
        let counters = &self.shared.counters;
        counters::raise(&counters.run_queue_depth_max, ready as u64);
        for _ in 0..ready {
            let Some(runnable) = self.run_queue.borrow_mut().pop_front() else {
                break;
            };
            runnable.run();
        }
        counters::add(&counters.tasks_run, ready as u64);
        ready as u64
    }

    fn poll_pollers(&self, turn: &mut Turn) {
        if self.pollers.borrow().is_empty() {
            return;
        }
        let mut at = 0;
        loop {
            let Some(poller) = self.pollers.borrow().get(at).cloned() else {
                break;
            };
            let Some(poller) = poller.upgrade() else {
                self.pollers.borrow_mut().swap_remove(at);
                continue;
            };
            match poller.poll() {
                PollerState::Progressed => turn.work += 1,
                PollerState::Waiting => turn.poller_waiting = true,
                PollerState::Idle => {}
            }
            at += 1;
        }
    }

    fn fire_timers(&self) -> u64 {
        let now = self.now.get();
        let mut fired = 0;
        loop {
            let Some(waker) = self.timers.borrow_mut().take_due(now) else {
                break;
            };
            waker.wake();
            fired += 1;
        }
        counters::add(&self.shared.counters.timers_fired, fired);
        fired
    }

    /// Drops every future of this reactor, as when it stops or its simulated machine loses power.
    pub fn clear(core: &Rc<Self>) {
        let _entered = context::enter(core);
        while core.shared.mailbox.pop().is_some() {}
        for waker in core.timers.borrow_mut().clear() {
            drop(waker);
        }
        // Waking every task puts its runnable into a queue; dropping the runnable drops the future.
        loop {
            let wakers: Vec<Waker> = core
                .active
                .borrow()
                .iter()
                .map(|(_, waker)| waker.clone())
                .collect();
            for waker in wakers {
                waker.wake();
            }
            let mut dropped = false;
            loop {
                let local = core.run_queue.borrow_mut().pop_front();
                let Some(runnable) = local.or_else(|| core.shared.woken.pop()) else {
                    break;
                };
                drop(runnable);
                dropped = true;
            }
            if !dropped {
                break;
            }
        }
        core.timers.borrow_mut().clear();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        while self.shared.mailbox.pop().is_some() {}
    }
}

pin_project_lite::pin_project! {
    /// A future that is listed as active until it is dropped.
    struct Tracked<F> {
        #[pin]
        future: F,
        entry: ActiveEntry,
    }
}

struct ActiveEntry {
    active: Rc<RefCell<Slab<Waker>>>,
    key: usize,
}

impl Drop for ActiveEntry {
    fn drop(&mut self) {
        let waker = self.active.borrow_mut().try_remove(self.key);
        drop(waker);
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(context)
    }
}
