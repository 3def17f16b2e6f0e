//! The executor of one reactor.
//!
//! Invariants:
//! - A task's future is polled and dropped on the reactor's own thread only (`async_task::spawn_local` checks
//!   it).
//! - A runnable is in exactly one place: the local run queue, or the remote queue when another thread woke
//!   it.
//! - `active` holds the waker of every task that has not ended, so that dropping the core can drop every
//!   future.
//! - A turn runs at most the tasks that were ready when it began, and once more those that are ready when
//!   pollers have found something: a task that wakes itself cannot starve the driver.
//!
//! # What counts as work
//!
//! An adaptive reactor sleeps when it has found no work for a while. Work is whatever happened: messages,
//! wake-ups, completions, progress of pollers, and the tasks that ran because of them. A task that the driver
//! woke just to try its luck ([`Progress::speculative`](crate::Progress::speculative)) is no work. Timers,
//! and the tasks they woke, are counted apart ([`Turn::timed`]): they are no sign that more is to come soon.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_task::{Runnable, Task};
use pollux_hugepages::BufferPool;
use slab::Slab;

use crate::context;
use crate::counters::{self, Counters};
use crate::driver::{Driver, Wait};
use crate::handle::{ReactorHandle, ReactorId, Shared};
use crate::timer::{Instant, Timers};

/// Messages taken from the mailbox in one turn, so that a flood cannot starve the I/O.
const MESSAGES_PER_TURN: usize = 256;

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

/// Called once or twice a turn; for hardware that has to be asked, such as an NVMe completion queue.
pub trait Poller {
    /// Asks once. Must not block.
    fn poll(&self) -> PollerState;
}

/// One reactor: executor, timers, mailbox and driver, without a thread. [`real`](crate::real) gives it a
/// thread, a simulation calls [`Core::turn`] itself.
pub struct Core {
    shared: Arc<Shared>,
    run_queue: RefCell<VecDeque<Runnable>>,
    active: Rc<RefCell<Slab<Waker>>>,
    /// The number of the task that is polled now, or was last.
    running: Rc<Cell<usize>>,
    pub(crate) timers: RefCell<Timers>,
    pollers: RefCell<Vec<std::rc::Weak<dyn Poller>>>,
    driver: Box<dyn Driver>,
    buffers: BufferPool,
    now: Cell<Instant>,
    last: Cell<LastTurn>,
}

/// What the turn before left behind.
#[derive(Clone, Copy)]
struct LastTurn {
    /// Up to here the time is accounted for.
    accounted: Instant,
    /// It found something to do.
    busy: bool,
    /// Tasks that the driver woke just to try.
    speculative: u64,
    /// Tasks that timers woke.
    timers_fired: u64,
}

/// What one [`Core::turn`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// Messages, task polls, timers and driver events together, tasks that merely tried apart.
    pub work: u64,
    /// The part of `work` that was timers and the tasks they woke.
    pub timed: u64,
    /// A poller needs to be asked again soon.
    pub poller_waiting: bool,
}

impl Core {
    /// A reactor on the calling thread.
    pub fn new(id: ReactorId, driver: Box<dyn Driver>, buffers: BufferPool) -> Rc<Self> {
        let shared = Arc::new(Shared::new(id, driver.waker()));
        let now = driver.now();
        Rc::new(Self {
            shared,
            run_queue: RefCell::default(),
            active: Rc::default(),
            running: Rc::default(),
            timers: RefCell::default(),
            pollers: RefCell::default(),
            driver,
            buffers,
            now: Cell::new(now),
            last: Cell::new(LastTurn {
                accounted: now,
                busy: false,
                speculative: 0,
                timers_fired: 0,
            }),
        })
    }

    /// Its number.
    pub fn id(&self) -> ReactorId {
        self.shared.id
    }

    /// What other threads send it messages with.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle::new(self.shared.clone())
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

    /// The number of the task that is polled now, or was last. Small; used again once the task has ended.
    pub fn running(&self) -> usize {
        self.running.get()
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
                running: core.running.clone(),
                key,
            },
        };
        let shared = core.shared.clone();
        let (runnable, task) = async_task::spawn_local(tracked, move |runnable| {
            let mut runnable = Some(runnable);
            // By identity and not by number: a simulation may run a second reactor of the same number.
            context::with_current(|core| {
                Arc::ptr_eq(&core.shared, &shared)
                    .then(|| core.run_queue.borrow_mut().extend(runnable.take()))
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
        let started = core.driver.now();
        core.account(started);
        core.now.set(started);
        let last = core.last.get();

        turn.work += core.drain_mailbox();
        let ran = core.run_ready().saturating_sub(last.speculative);
        turn.work += ran;
        turn.timed += ran.min(last.timers_fired);
        let found = core.poll_pollers(&mut turn);
        if found > 0 && !core.run_queue.borrow().is_empty() {
            // Whoever waited for what they found goes on now, and what they ask for next is sent.
            turn.work += core.run_ready();
            core.poll_pollers(&mut turn);
        }

        let may_wait = turn.work == 0 && !turn.poller_waiting && core.run_queue.borrow().is_empty();
        let wait = if may_wait { wait } else { Wait::Never };
        let progress = core.driver.turn(wait)?;
        counters::add(&counters.driver_events, u64::from(progress.events));
        turn.work += u64::from(progress.events);

        let mut accounted = started;
        if wait != Wait::Never {
            accounted = core.driver.now();
            core.now.set(accounted);
            counters::add(&counters.asleep_ns, nanoseconds_between(started, accounted));
        }
        let timers_fired = core.fire_timers();
        turn.work += timers_fired;
        turn.timed += timers_fired;
        core.last.set(LastTurn {
            accounted,
            busy: turn.work > 0,
            speculative: u64::from(progress.speculative),
            timers_fired,
        });
        Ok(turn)
    }

    /// Adds the time since the last turn began, or woke, to what that turn was.
    fn account(&self, now: Instant) {
        let last = self.last.get();
        let counters = &self.shared.counters;
        let counter = if last.busy {
            &counters.busy_ns
        } else {
            &counters.idle_ns
        };
        counters::add(counter, nanoseconds_between(last.accounted, now));
    }

    /// Takes no message from now on; those that wait are dropped.
    pub(crate) fn close(&self) {
        self.shared.close();
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

    /// Asks each poller once. How many did something.
    fn poll_pollers(&self, turn: &mut Turn) -> u64 {
        if self.pollers.borrow().is_empty() {
            return 0;
        }
        let mut found = 0;
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
                PollerState::Progressed => found += 1,
                PollerState::Waiting => turn.poller_waiting = true,
                PollerState::Idle => {}
            }
            at += 1;
        }
        turn.work += found;
        found
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
        let timers = core.timers.borrow_mut().clear();
        drop(timers);
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
        let timers = core.timers.borrow_mut().clear();
        drop(timers);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close();
        // Here, and not where the last handle is dropped: the futures belong to this thread.
        while let Some(runnable) = self.shared.woken.pop() {
            drop(runnable);
        }
    }
}

fn nanoseconds_between(earlier: Instant, later: Instant) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
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
    running: Rc<Cell<usize>>,
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
        let project = self.project();
        project.entry.running.set(project.entry.key);
        project.future.poll(context)
    }
}

#[cfg(test)]
mod tests;
