//! The executor, timers and mailboxes of reactors on the simulated clock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pollux_reactor::{Elapsed, now, random_u64, sleep, spawn, timeout, yield_now};
use pollux_sim::{Crash, MachineOptions, World, WorldOptions};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_hour_of_sleep_takes_an_hour_of_virtual_time() {
    let world = World::new(1);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let slept = world.block_on(reactor, async {
        let start = now();
        sleep(Duration::from_secs(3000)).await;
        now() - start
    });
    assert!(
        slept >= Duration::from_secs(3000) && slept < Duration::from_secs(3001),
        "{slept:?}"
    );
    assert!(world.now().as_nanos() >= 3_000_000_000_000);
}

#[test]
fn timers_fire_in_order_and_timeouts_cut() {
    let world = World::new(2);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = order.clone();
    world.block_on(reactor, async move {
        let tasks: Vec<_> = [30u64, 10, 20]
            .map(|millis| {
                let order = order.clone();
                spawn(async move {
                    sleep(Duration::from_millis(millis)).await;
                    order.borrow_mut().push(millis);
                })
            })
            .into();
        assert_eq!(
            timeout(Duration::from_millis(15), std::future::pending::<()>()).await,
            Err(Elapsed)
        );
        assert_eq!(order.borrow().as_slice(), [10]);
        for task in tasks {
            task.await;
        }
    });
    assert_eq!(seen.borrow().as_slice(), [10, 20, 30]);
}

#[test]
fn messages_cross_reactors_and_machines() {
    let world = World::new(3);
    let machine = world.add_machine("one");
    let (first, second) = (world.add_reactor(machine), world.add_reactor(machine));
    let handle = world.handle(second).unwrap();
    let (answer, elsewhere) = world.block_on(first, async move {
        let here = pollux_reactor::current().id();
        let answer = handle
            .call(|| async {
                sleep(SECOND).await;
                pollux_reactor::current().id()
            })
            .await;
        (answer.unwrap() != here, handle.id() != here)
    });
    assert!(answer && elsewhere);
    assert!(world.now().as_nanos() >= 1_000_000_000);
}

#[test]
fn a_call_to_a_reactor_that_crashes_is_stopped() {
    let world = World::new(4);
    let (one, other) = (world.add_machine("one"), world.add_machine("other"));
    let (first, second) = (world.add_reactor(one), world.add_reactor(other));
    let handle = world.handle(second).unwrap();
    let call = world.spawn(
        first,
        async move { handle.call(std::future::pending::<u32>).await },
    );
    world.run_for(SECOND);
    assert!(!call.is_ended());
    world.crash(other, Crash::Power);
    assert!(world.finish(&call).is_err());
}

#[test]
fn busy_loops_use_up_time() {
    let world = World::new(5);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let turns = world.block_on(reactor, async {
        let end = now() + Duration::from_millis(1);
        let mut turns = 0u32;
        while now() < end {
            yield_now().await;
            turns += 1;
        }
        turns
    });
    assert!((500..5000).contains(&turns), "{turns}");
}

/// Many tasks on several reactors that sleep, yield and draw; what they saw, and the trace.
fn jumble(seed: u64) -> (Vec<(u32, u64)>, u64) {
    let options = WorldOptions {
        stall_probability: 0.01,
        ..WorldOptions::default()
    };
    let world = World::with_options(seed, options);
    let log = Rc::new(RefCell::new(Vec::new()));
    for number in 0..4 {
        let machine = world.add_machine("machine");
        let reactor = world.add_reactor(machine);
        let log = log.clone();
        drop(world.spawn(reactor, async move {
            for _ in 0..50 {
                sleep(Duration::from_micros(random_u64() % 100)).await;
                yield_now().await;
                log.borrow_mut().push((number, now().as_nanos()));
            }
        }));
    }
    world.run_for(SECOND);
    let hash = world.trace_hash();
    (log.take(), hash)
}

#[test]
fn a_seed_repeats_and_seeds_differ() {
    let (first, again, other) = (jumble(10), jumble(10), jumble(11));
    assert_eq!(first.0.len(), 200);
    assert_eq!(first, again);
    assert_ne!(first.1, other.1);
    assert_ne!(first.0, other.0);
}

#[test]
fn reactors_that_are_ready_together_run_in_any_order() {
    let mut firsts = [0; 3];
    for seed in 0..60 {
        let world = World::new(seed);
        let machine = world.add_machine("one");
        let first = Rc::new(Cell::new(None));
        for number in 0..3 {
            let reactor = world.add_reactor(machine);
            let first = first.clone();
            drop(world.spawn(reactor, async move {
                first.set(first.get().or(Some(number)));
            }));
        }
        world.run_for(SECOND);
        firsts[first.get().unwrap()] += 1;
    }
    assert!(firsts.iter().all(|&count| count > 5), "{firsts:?}");
}

#[test]
fn clocks_are_offset_and_drift() {
    let world = World::new(6);
    let fast = world.add_machine_with(
        "fast",
        MachineOptions {
            clock_offset: Duration::from_secs(1000),
            clock_drift_ppb: 100_000_000,
        },
    );
    let reactor = world.add_reactor(fast);
    let local = world.block_on(reactor, async {
        let start = now();
        sleep(Duration::from_secs(110)).await;
        (start, now() - start)
    });
    assert!(local.0.as_nanos() >= 1_000_000_000_000);
    assert!(local.1 >= Duration::from_secs(110));
    let elapsed = world.now().as_nanos();
    assert!((100_000_000_000..100_100_000_000).contains(&elapsed), "{elapsed}");
    let before = world.local_time(fast);
    world.jump_clock(fast, SECOND);
    assert_eq!(world.local_time(fast) - before, SECOND);
}

#[test]
fn a_crash_drops_every_future_and_a_restart_begins_anew() {
    let world = World::new(7);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let alive = Rc::new(());
    let held = alive.clone();
    let task = world.spawn(reactor, async move {
        let _held = held;
        let inner = spawn(std::future::pending::<()>());
        inner.await;
    });
    world.run_for(SECOND);
    assert_eq!((Rc::strong_count(&alive), world.tasks(reactor)), (2, 2));
    world.crash(machine, Crash::Process);
    assert_eq!((Rc::strong_count(&alive), world.tasks(reactor)), (1, 0));
    assert!(task.take().unwrap().is_err());
    assert!(world.handle(reactor).is_none() && !world.is_up(machine));
    assert!(world.spawn(reactor, async {}).take().unwrap().is_err());

    world.restart(machine);
    assert_eq!(world.block_on(reactor, async { 5 }), 5);
}

#[test]
fn a_task_can_crash_its_own_machine() {
    let world = World::new(8);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let control = world.control();
    let task = world.spawn(reactor, async move {
        control.crash(machine, Crash::Power);
        sleep(SECOND).await;
        unreachable!("the machine is down");
    });
    world.run_for(SECOND * 3);
    assert!(task.take().unwrap().is_err());
}

#[test]
fn a_task_can_wait_for_one_of_another_machine() {
    let world = World::new(9);
    let (one, other) = (world.add_machine("one"), world.add_machine("other"));
    let (first, second) = (world.add_reactor(one), world.add_reactor(other));
    let slow = world.spawn(second, async {
        sleep(SECOND).await;
        42
    });
    assert_eq!(world.block_on(first, slow), Ok(42));
}

#[test]
fn a_stalled_reactor_does_not_run() {
    let world = World::new(10);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    world.stall(reactor, SECOND);
    world.block_on(reactor, async {});
    assert!(world.now().as_nanos() >= 1_000_000_000);
}

#[test]
fn conditions_have_a_limit() {
    let world = World::new(11);
    let control = world.control();
    let late = move |nanos| control.now().as_nanos() >= nanos;
    assert!(world.run_until(|| false, SECOND).is_err());
    assert_eq!(world.now().as_nanos(), 1_000_000_000);
    let reached = Rc::new(Cell::new(false));
    let set = reached.clone();
    world.after(SECOND, move || set.set(true));
    assert!(world.run_until(|| reached.get(), SECOND * 5).is_ok());
    assert!(late(2_000_000_000) && !late(2_000_000_001));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_deadlock_is_a_failure() {
    let world = World::new(12);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "something spins")]
fn spinning_is_a_failure() {
    let options = WorldOptions {
        turns_max: 1000,
        ..WorldOptions::default()
    };
    let world = World::with_options(13, options);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, async {
        loop {
            yield_now().await;
        }
    });
}

#[test]
fn a_failure_tells_seed_and_replay() {
    let options = WorldOptions {
        replay: Some("run --seed 14".to_owned()),
        ..WorldOptions::default()
    };
    let world = World::with_options(14, options);
    world.note("something odd", 3, 4);
    let note = world.failure_note();
    assert!(
        note.contains("seed 14") && note.contains("run --seed 14") && note.contains("something odd"),
        "{note}"
    );
}
