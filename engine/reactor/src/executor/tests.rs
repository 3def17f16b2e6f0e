//! The executor by itself, on a driver that does nothing: small enough to run under an interpreter that
//! checks every access to memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use pollux_hugepages::PoolOptions;

use super::*;
use crate::driver::{Progress, WakeReactor};
use crate::net::{Address, Connecting, Detached, Listener, Stream};
use crate::real::Ring;
use crate::{sleep_until, yield_now};

/// A clock that the test moves, and nothing else.
#[derive(Default)]
struct Still {
    now_ns: Arc<AtomicU64>,
    wakes: Arc<Wakes>,
    waits: Rc<RefCell<Vec<Wait>>>,
    /// Woken in every turn, to try its luck.
    hot: Rc<RefCell<Option<Waker>>>,
}

#[derive(Default)]
struct Wakes(AtomicU64);

impl WakeReactor for Wakes {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Driver for Still {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }

    fn random_u64(&self) -> u64 {
        4
    }

    fn turn(&self, wait: Wait) -> io::Result<Progress> {
        self.waits.borrow_mut().push(wait);
        let hot = self.hot.borrow().clone();
        Ok(Progress {
            events: 0,
            speculative: hot.map(Waker::wake).map_or(0, |()| 1),
        })
    }

    fn waker(&self) -> Arc<dyn WakeReactor> {
        self.wakes.clone()
    }

    fn listen(&self, _: &Address) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, _: &Address) -> Connecting {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn attach(&self, _: Detached) -> io::Result<Box<dyn Stream>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn ring(&self) -> Option<&Ring> {
        None
    }
}

fn core_with(driver: Still) -> Rc<Core> {
    let options = PoolOptions {
        total_bytes: 4096,
        classes_bytes: vec![4096],
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).expect("there is memory");
    Core::new(ReactorId(1), Box::new(driver), pool)
}

fn core() -> Rc<Core> {
    core_with(Still::default())
}

fn turn(core: &Rc<Core>) -> Turn {
    Core::turn(core, Wait::Until(None)).expect("this driver never fails")
}

#[test]
fn clearing_drops_every_future_also_those_that_others_hold() {
    let core = core();
    let witness = Rc::new(());
    let mut tasks = Vec::new();
    for number in 0..10 {
        let held = witness.clone();
        let task = Core::spawn(&core, async move {
            for _ in 0..number {
                yield_now().await;
            }
            let _held = held;
            std::future::pending::<()>().await;
        });
        tasks.push(task);
    }
    // One task waits for another: they hold each other's wakers.
    let waits = tasks.pop().expect("there are ten");
    let held = witness.clone();
    Core::spawn(&core, async move {
        let _held = held;
        waits.await;
    })
    .detach();
    for _ in 0..5 {
        turn(&core);
    }
    assert_eq!(core.tasks(), 11);
    assert_eq!(Rc::strong_count(&witness), 12);
    Core::clear(&core);
    assert_eq!(core.tasks(), 0);
    assert_eq!(Rc::strong_count(&witness), 1);
    drop(tasks);
}

#[test]
fn a_future_that_spawns_when_dropped_is_cleared_with_what_it_spawned() {
    struct Spawns(Rc<()>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            let held = self.0.clone();
            crate::spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            })
            .detach();
        }
    }
    let core = core();
    let witness = Rc::new(());
    let spawns = Spawns(witness.clone());
    Core::spawn(&core, async move {
        let _spawns = spawns;
        std::future::pending::<()>().await;
    })
    .detach();
    turn(&core);
    Core::clear(&core);
    assert_eq!(core.tasks(), 0);
    assert_eq!(Rc::strong_count(&witness), 1);
}

#[test]
fn wakers_may_be_used_on_any_thread_and_outlive_the_reactor() {
    let driver = Still::default();
    let wakes = driver.wakes.clone();
    let core = core_with(driver);
    let (sender, receiver) = mpsc::channel::<Waker>();
    let polls = Rc::new(Cell::new(0));
    let polled = polls.clone();
    let future = std::future::poll_fn(move |context| {
        polled.set(polled.get() + 1);
        let _ = sender.send(context.waker().clone());
        Poll::<()>::Pending
    });
    Core::spawn(&core, future).detach();
    turn(&core);
    let waker = receiver.recv().expect("it was polled");
    let before = wakes.0.load(Ordering::Relaxed);
    let waker = std::thread::spawn(move || {
        waker.wake_by_ref();
        waker.wake_by_ref();
        waker
    });
    let waker = waker.join().expect("no panic");
    assert_eq!(wakes.0.load(Ordering::Relaxed), before + 1, "scheduled once");
    turn(&core);
    assert_eq!(polls.get(), 2);
    Core::clear(&core);
    drop(core);
    let waker = std::thread::spawn(move || {
        waker.wake_by_ref();
        waker
    });
    drop(waker.join().expect("no panic"));
    drop(receiver);
    assert_eq!(polls.get(), 2);
}

#[test]
fn a_message_to_a_reactor_that_is_gone_is_refused_and_dropped() {
    let core = core();
    let handle = core.handle();
    let witness = Arc::new(());
    let held = witness.clone();
    let waiting = handle.spawn(move || async move { drop(held) });
    assert!(waiting.is_ok());
    drop(core);
    assert_eq!(Arc::strong_count(&witness), 1, "nobody waits for it for ever");
    assert!(handle.spawn(|| async {}).is_err());
}

#[test]
fn running_what_only_tries_its_luck_is_no_work() {
    let driver = Still::default();
    let (waits, hot) = (driver.waits.clone(), driver.hot.clone());
    let core = core_with(driver);
    let polls = Rc::new(Cell::new(0));
    let polled = polls.clone();
    let future = std::future::poll_fn(move |context| {
        polled.set(polled.get() + 1);
        *hot.borrow_mut() = Some(context.waker().clone());
        Poll::<()>::Pending
    });
    let _task = Core::spawn(&core, future);
    assert!(turn(&core).work > 0, "its first run");
    assert_eq!(turn(&core).work, 0);
    assert_eq!(turn(&core).work, 0);
    assert_eq!(polls.get(), 3);
    assert_eq!(
        *waits.borrow(),
        [Wait::Never, Wait::Until(None), Wait::Until(None)]
    );
    // Another task beside it is work.
    Core::spawn(&core, async {}).detach();
    assert!(turn(&core).work > 0);
    Core::clear(&core);
}

#[test]
fn the_driver_may_wait_only_when_nothing_is_ready() {
    let driver = Still::default();
    let waits = driver.waits.clone();
    let now_ns = driver.now_ns.clone();
    let core = core_with(driver);
    let deadline = Instant::from_nanos(10);
    let restless = Core::spawn(&core, async move {
        yield_now().await;
        sleep_until(deadline).await;
    });
    for _ in 0..4 {
        turn(&core);
    }
    // Spawned, run again, and then nothing until the timer.
    assert_eq!(
        *waits.borrow(),
        [Wait::Never, Wait::Never, Wait::Until(None), Wait::Until(None)]
    );
    assert_eq!(core.next_deadline(), Some(deadline));
    now_ns.store(10, Ordering::Relaxed);
    let fired = turn(&core);
    assert_eq!((fired.work, fired.timed), (1, 1));
    let ran = turn(&core);
    assert_eq!((ran.work, ran.timed), (1, 1), "a task that a timer woke");
    assert!(restless.is_finished());
    assert_eq!(core.next_deadline(), None);
}

/// Hardware that answers what it was asked before the last time it was polled.
#[derive(Default)]
struct Hardware {
    asked: Cell<bool>,
    answered: Cell<u32>,
    polls: Cell<u32>,
    waiter: RefCell<Option<Waker>>,
}

impl Hardware {
    async fn ask(&self) {
        let before = self.answered.get();
        self.asked.set(true);
        std::future::poll_fn(|context| {
            if self.answered.get() > before {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Poller for Hardware {
    fn poll(&self) -> PollerState {
        self.polls.set(self.polls.get() + 1);
        if !self.asked.replace(false) {
            return PollerState::Idle;
        }
        self.answered.set(self.answered.get() + 1);
        if let Some(waker) = self.waiter.take() {
            waker.wake();
        }
        PollerState::Progressed
    }
}

#[test]
fn what_a_poller_found_is_taken_up_and_the_next_request_sent_in_the_same_turn() {
    let core = core();
    let hardware = Rc::new(Hardware::default());
    let poller: std::rc::Weak<dyn Poller> = Rc::downgrade(&(Rc::clone(&hardware) as Rc<dyn Poller>));
    core.add_poller(poller);
    let user = hardware.clone();
    let task = Core::spawn(&core, async move {
        loop {
            user.ask().await;
        }
    });
    turn(&core);
    // Once and again; what the task does about the second answer is for the next turn.
    assert_eq!((hardware.polls.get(), hardware.answered.get()), (2, 2));
    assert_eq!(turn(&core).work, 4, "two runs of the task, two answers");
    assert_eq!((hardware.polls.get(), hardware.answered.get()), (4, 4));
    drop(task);
    turn(&core);
    assert_eq!(hardware.polls.get(), 5, "nobody went on: it is not asked again");
    Core::clear(&core);
}

#[test]
fn time_is_busy_idle_or_asleep() {
    let driver = Still::default();
    let now_ns = driver.now_ns.clone();
    let core = core_with(driver);
    let spend = |nanoseconds| now_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    let never = || Core::turn(&core, Wait::Never).expect("this driver never fails");
    never();
    spend(5);
    Core::spawn(&core, async {}).detach();
    never();
    spend(100);
    never();
    spend(7);
    never();
    let counters = core.counters().snapshot();
    assert_eq!(
        (counters.idle_ns, counters.busy_ns, counters.asleep_ns),
        (12, 100, 0)
    );
    assert_eq!(counters.iterations, 4);
}

#[test]
fn those_who_wait_for_a_signal_look_again_when_it_comes() {
    let core = core();
    let signal = Rc::new(crate::Signal::default());
    let value = Rc::new(Cell::new(0));
    let waiters: Vec<_> = (1..=3)
        .map(|wanted| {
            let (signal, value) = (signal.clone(), value.clone());
            Core::spawn(&core, async move {
                signal.until(|| (value.get() >= wanted).then_some(wanted)).await
            })
        })
        .collect();
    turn(&core);
    value.set(2);
    turn(&core);
    assert!(!waiters.iter().any(Task::is_finished), "nobody was told");
    signal.wake();
    turn(&core);
    let finished: Vec<_> = waiters.iter().map(Task::is_finished).collect();
    assert_eq!(finished, [true, true, false]);
}

#[test]
fn what_is_not_to_be_abandoned_ends_without_those_who_waited() {
    let core = core();
    let signal = Rc::new(crate::Signal::default());
    let steps = Rc::new(Cell::new(0));
    let waiter = {
        let (signal, steps) = (signal.clone(), steps.clone());
        Core::spawn(&core, async move {
            let work = async move {
                steps.set(1);
                let mut is_woken = false;
                signal
                    .until(|| std::mem::replace(&mut is_woken, true).then_some(()))
                    .await;
                steps.set(2);
            };
            crate::Unabandoned::new(work).await;
        })
    };
    turn(&core);
    assert_eq!(steps.get(), 1);
    drop(waiter);
    turn(&core);
    signal.wake();
    turn(&core);
    turn(&core);
    assert_eq!(steps.get(), 2);
    // One that is dropped where no reactor runs is dropped.
    drop(crate::Unabandoned::new(async {}));
}
