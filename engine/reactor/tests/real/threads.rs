//! Tasks, messages, timers, panics and sleep on reactor threads.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, SLEEPY, eventually, reactor, settings};
use pollux_reactor::real::{IdlePolicy, ReactorError, ReactorThread, Reactors};
use pollux_reactor::{
    Elapsed, MAILBOX_CAPACITY, ReactorId, RemoteCallError, current, now, sleep, spawn, timeout, yield_now,
};

/// Tells when it is dropped, and on which thread.
struct Witness(mpsc::Sender<Option<String>>);

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.send(std::thread::current().name().map(str::to_owned));
    }
}

#[test]
fn runs_a_future_and_returns_its_result() {
    let reactor = reactor(7, SLEEPY);
    let (name, id) = reactor
        .handle()
        .call_blocking(|| async {
            yield_now().await;
            (std::thread::current().name().map(str::to_owned), current().id())
        })
        .unwrap();
    assert_eq!((name.as_deref(), id), (Some("reactor-7"), ReactorId(7)));
    reactor.stop();
    reactor.join().unwrap();
}

#[test]
fn dropping_a_task_cancels_it_and_detaching_lets_it_run() {
    let reactor = reactor(0, SLEEPY);
    let (sender, dropped) = mpsc::channel();
    let ran = Arc::new(AtomicBool::new(false));
    let runs = ran.clone();
    reactor
        .handle()
        .call_blocking(move || async move {
            let witness = Witness(sender);
            let task = spawn(async move {
                let _witness = witness;
                pending::<()>().await;
            });
            yield_now().await;
            drop(task);
            spawn(async move {
                yield_now().await;
                runs.store(true, Ordering::Release);
            })
            .detach();
        })
        .unwrap();
    assert_eq!(
        dropped.recv_timeout(PATIENCE).unwrap().as_deref(),
        Some("reactor-0")
    );
    eventually("the detached task runs", || ran.load(Ordering::Acquire));
}

#[test]
fn a_task_that_wakes_itself_starves_nobody() {
    let reactor = reactor(0, SLEEPY);
    let turns = reactor
        .handle()
        .call_blocking(|| async {
            let stop = Rc::new(Cell::new(false));
            let seen = stop.clone();
            let restless = spawn(async move {
                let mut turns = 0_u64;
                while !seen.get() {
                    turns += 1;
                    yield_now().await;
                }
                turns
            });
            // Needs the driver, the timers and other tasks to be served meanwhile.
            sleep(Duration::from_millis(5)).await;
            stop.set(true);
            restless.await
        })
        .unwrap();
    assert!(turns > 1);
}

#[test]
fn a_task_is_woken_from_any_thread_and_each_wake_counts() {
    const WAKES: usize = 10_000;
    let reactor = reactor(0, SLEEPY);
    let (wakers, waker) = mpsc::channel::<Waker>();
    let polls = Arc::new(AtomicUsize::new(0));
    let polled = polls.clone();
    reactor
        .handle()
        .spawn(move || {
            poll_fn(move |context| {
                if polled.fetch_add(1, Ordering::AcqRel) == 0 {
                    wakers.send(context.waker().clone()).unwrap();
                }
                Poll::<()>::Pending
            })
        })
        .unwrap();
    let waker = waker.recv_timeout(PATIENCE).unwrap();
    for wake in 1..=WAKES {
        waker.wake_by_ref();
        let start = Instant::now();
        while polls.load(Ordering::Acquire) <= wake {
            assert!(start.elapsed() < PATIENCE, "wake-up {wake} was lost");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_hundred_thousand_messages_wake_sleeping_reactors_and_none_is_lost() {
    const PAIRS: u64 = 4;
    const ROUNDS: u64 = 25_000;
    let reactors =
        Reactors::spawn((0..2).map(|id| settings(id, IdlePolicy::Adaptive { spin: Duration::ZERO })))
            .unwrap();
    let handles = reactors.handles();
    let rounds = Arc::new(AtomicU64::new(0));
    let (done, finished) = mpsc::channel();
    for _ in 0..PAIRS {
        let (other, rounds, done) = (handles[1].clone(), rounds.clone(), done.clone());
        handles[0]
            .spawn(move || async move {
                for round in 0..ROUNDS {
                    assert_eq!(other.call(move || async move { round }).await, Ok(round));
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                done.send(()).unwrap();
            })
            .unwrap();
    }
    for _ in 0..PAIRS {
        finished.recv_timeout(PATIENCE).expect("no wake-up is lost");
    }
    assert_eq!(rounds.load(Ordering::Relaxed), PAIRS * ROUNDS);
    for handle in &handles {
        assert!(
            handle.counters().snapshot().asleep_ns > 0,
            "{} slept",
            handle.id()
        );
    }
}

#[test]
fn many_threads_wake_a_reactor_that_never_spins() {
    const THREADS: u64 = 4;
    const MESSAGES: u64 = 20_000;
    let reactor = reactor(0, IdlePolicy::Adaptive { spin: Duration::ZERO });
    let sum = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (handle, sum) = (reactor.handle(), sum.clone());
            scope.spawn(move || {
                for number in 0..MESSAGES {
                    let sum = sum.clone();
                    let mut message = move || async move {
                        sum.fetch_add(number, Ordering::Relaxed);
                    };
                    while handle.spawn(message.clone()).is_err() {
                        std::thread::yield_now();
                    }
                    let _ = &mut message;
                }
            });
        }
    });
    let expected = THREADS * (MESSAGES * (MESSAGES - 1) / 2);
    eventually("every message arrives", || {
        sum.load(Ordering::Relaxed) == expected
    });
}

#[test]
fn an_idle_adaptive_reactor_sleeps_and_a_polling_one_does_not() {
    let adaptive = reactor(0, SLEEPY);
    let polling = reactor(1, IdlePolicy::Poll);
    std::thread::sleep(Duration::from_millis(20));
    let before = adaptive.handle().counters().snapshot();
    let polled_before = polling.handle().counters().snapshot();
    std::thread::sleep(Duration::from_millis(50));
    let after = adaptive.handle().counters().snapshot();
    let polled = polling.handle().counters().snapshot();
    assert!(
        after.iterations - before.iterations <= 2,
        "asleep, it does not turn"
    );
    assert!(polled.iterations - polled_before.iterations > 10);
    assert!(polled.idle_ns > polled_before.idle_ns);
    assert_eq!(polled.asleep_ns, 0);
    adaptive.handle().call_blocking(|| async {}).unwrap();
    assert!(adaptive.handle().counters().snapshot().asleep_ns > 0);
}

#[test]
fn a_polling_reactor_makes_no_system_call() {
    let reactor = reactor(0, IdlePolicy::Poll);
    let calls = || {
        reactor
            .handle()
            .call_blocking(|| async { current().driver().ring().map(|ring| ring.system_calls()) })
            .unwrap()
            .unwrap()
    };
    // The first turn submits the poll of the bell.
    calls();
    let before = calls();
    let turned = reactor.handle().counters().snapshot().iterations;
    eventually("it turns", || {
        reactor.handle().counters().snapshot().iterations > turned + 1000
    });
    assert_eq!(calls(), before);
}

#[test]
fn timers_fire_in_order_and_not_early_and_wake_a_sleeping_reactor() {
    let reactor = reactor(0, SLEEPY);
    let order = reactor
        .handle()
        .call_blocking(|| async {
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [30_u64, 10, 20, 10]
                .into_iter()
                .map(|milliseconds| {
                    let order = order.clone();
                    spawn(async move {
                        let start = now();
                        sleep(Duration::from_millis(milliseconds)).await;
                        assert!(now() - start >= Duration::from_millis(milliseconds));
                        order.borrow_mut().push(milliseconds);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            order.take()
        })
        .unwrap();
    assert_eq!(order, [10, 10, 20, 30]);
    assert!(reactor.handle().counters().snapshot().timers_fired >= 4);
}

#[test]
fn a_timeout_drops_what_takes_too_long() {
    let reactor = reactor(0, SLEEPY);
    let (sender, dropped) = mpsc::channel();
    let outcome = reactor
        .handle()
        .call_blocking(move || async move {
            let witness = Witness(sender);
            timeout(Duration::from_millis(2), async move {
                let _witness = witness;
                pending::<()>().await;
            })
            .await
        })
        .unwrap();
    assert_eq!(outcome, Err(Elapsed));
    assert!(dropped.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn a_full_mailbox_refuses_and_takes_messages_again() {
    let reactor = reactor(0, SLEEPY);
    let handle = reactor.handle();
    let (release, blocked) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    handle
        .spawn(move || async move {
            entered.send(()).unwrap();
            blocked.recv().unwrap();
        })
        .unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let message = |ran: &Arc<AtomicUsize>| {
        let ran = ran.clone();
        move || async move {
            ran.fetch_add(1, Ordering::Relaxed);
        }
    };
    for _ in 0..MAILBOX_CAPACITY {
        handle.spawn(message(&ran)).unwrap();
    }
    let error = handle.spawn(message(&ran)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the mailbox of reactor 0 takes no message: the reactor is overloaded or stopped"
    );
    release.send(()).unwrap();
    eventually("all that were taken run", || {
        ran.load(Ordering::Relaxed) == MAILBOX_CAPACITY
    });
    assert_eq!(handle.call_blocking(|| async { 1 }), Ok(1));
}

#[test]
fn stopping_drops_every_future_on_its_own_thread() {
    let reactor = reactor(3, SLEEPY);
    let (sender, dropped) = mpsc::channel();
    reactor
        .handle()
        .call_blocking({
            let sender = sender.clone();
            move || async move {
                for number in 0..100_u64 {
                    let witness = Witness(sender.clone());
                    spawn(async move {
                        let _witness = witness;
                        sleep(Duration::from_secs(1000 + number)).await;
                    })
                    .detach();
                }
                yield_now().await;
            }
        })
        .unwrap();
    drop(sender);
    reactor.stop();
    reactor.join().unwrap();
    let names: Vec<_> = dropped.iter().collect();
    assert_eq!(names.len(), 100);
    assert!(names.iter().all(|name| name.as_deref() == Some("reactor-3")));
}

#[test]
fn a_call_that_is_under_way_when_the_reactor_stops_ends() {
    let reactor = reactor(5, SLEEPY);
    let handle = reactor.handle();
    let caller = {
        let handle = handle.clone();
        std::thread::spawn(move || handle.call_blocking(pending::<()>))
    };
    eventually("the call arrives", || handle.counters().snapshot().messages > 0);
    reactor.stop();
    reactor.join().unwrap();
    assert_eq!(
        caller.join().unwrap(),
        Err(RemoteCallError::Stopped(ReactorId(5)))
    );
    assert!(matches!(
        handle.call_blocking(|| async {}),
        Err(RemoteCallError::MailboxFull(_))
    ));
}

#[test]
fn a_task_must_not_block_its_reactor() {
    let reactor = reactor(0, SLEEPY);
    let handle = reactor.handle();
    let outcome = reactor
        .handle()
        .call_blocking(move || async move { handle.call_blocking(|| async {}) })
        .unwrap();
    assert_eq!(outcome, Err(RemoteCallError::WouldBlock(ReactorId(0))));
}

#[test]
fn a_panic_is_told_to_whoever_joins_and_drops_all_futures() {
    let reactor = reactor(9, SLEEPY);
    let (sender, dropped) = mpsc::channel();
    reactor
        .handle()
        .spawn(move || async move {
            let witness = Witness(sender);
            spawn(async move {
                let _witness = witness;
                pending::<()>().await;
            })
            .detach();
            yield_now().await;
            panic!("a defect with number {}", 42);
        })
        .unwrap();
    assert_eq!(
        dropped.recv_timeout(PATIENCE).unwrap().as_deref(),
        Some("reactor-9")
    );
    eventually("the thread ends", || reactor.is_finished());
    let handle = reactor.handle();
    match reactor.join() {
        Err(ReactorError::Panicked { id, message }) => {
            assert_eq!((id, message.as_str()), (ReactorId(9), "a defect with number 42"));
        }
        other => panic!("{other:?}"),
    }
    assert!(handle.call_blocking(|| async {}).is_err());
}

#[test]
fn a_core_that_is_not_there_is_a_clear_error() {
    let mut settings = settings(0, SLEEPY);
    settings.core = Some(100_000);
    let error = ReactorThread::spawn(settings).unwrap_err().to_string();
    assert!(error.starts_with("core 100000 is not there"), "{error}");
}

#[test]
fn a_pinned_reactor_runs_on_its_core() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let chosen = (0..rustix::thread::CpuSet::MAX_CPU).rfind(|&core| allowed.is_set(core));
    let mut settings = settings(0, SLEEPY);
    settings.core = chosen;
    let reactor = ReactorThread::spawn(settings).unwrap();
    let core = reactor
        .handle()
        .call_blocking(|| async { rustix::thread::sched_getcpu() })
        .unwrap();
    assert_eq!(Some(core), chosen);
}

#[test]
fn randomness_differs_between_reactors() {
    let reactors = Reactors::spawn((0..2).map(|id| settings(id, SLEEPY))).unwrap();
    let numbers: Vec<_> = reactors
        .handles()
        .iter()
        .map(|handle| {
            handle
                .call_blocking(|| async { pollux_reactor::random_u64() })
                .unwrap()
        })
        .collect();
    assert_ne!(numbers[0], numbers[1]);
    reactors.stop();
    reactors.join().unwrap();
}
