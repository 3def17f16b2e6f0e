//! Opening, and what happens to a namespace while it is in use.

use std::time::{Duration, Instant};

use pollux_device::events::{DeviceEvent, Subscription};
use pollux_device::spdk::SpdkDevice;
use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_hugepages::Buffer;

use crate::common::{TestReactors, block_on};
use crate::support::{Counted, Ground, HEALTH, connect, memory, on};

/// Longer than anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn expect_event(events: &mut Subscription, expected: DeviceEvent) {
    eventually("an event", || match events.try_recv() {
        Ok(event) => {
            assert_eq!(event, expected);
            true
        }
        Err(_) => false,
    });
}

#[test]
fn a_namespace_grows_while_it_is_used() {
    let ground = Ground::new();
    let medium = memory(&ground);
    ground.serve(medium.clone());
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let device = connect(&reactor, ground.options(None));
    let mut events = device.subscribe();
    let blocks = device.geometry().blocks;
    on(&ground.reactor(), move || async move {
        medium.grow_to(64 << 20).await.expect("there is memory");
    });
    expect_event(&mut events, DeviceEvent::Resized);
    assert_eq!(device.geometry().blocks, 2 * blocks);
    let queue_of = device.clone();
    on(&reactor, move || async move {
        let queue = queue_of.attach().await.expect("attached");
        queue
            .read(blocks, Buffer::from_heap(4096))
            .await
            .expect("it is in range now");
    });
    drop(device);
    reactors.run(|| async {});
}

#[test]
fn a_namespace_that_goes_fails_alone() {
    let ground = Ground::new();
    let first = ground.serve(memory(&ground));
    let second = ground.serve(Counted::new(memory(&ground)));
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let gone = connect(&reactor, ground.options(Some(first)));
    let stays = connect(&reactor, ground.options(Some(second)));
    let mut events = gone.subscribe();
    ground.subsystem.remove_namespace(first).expect("it is there");
    expect_event(&mut events, DeviceEvent::Removed);
    let (gone_too, stays_too) = (gone.clone(), stays.clone());
    on(&reactor, move || async move {
        let queue = stays_too.attach().await.expect("attached");
        queue
            .read(0, Buffer::from_heap(4096))
            .await
            .expect("nothing happened to it");
        let queue = gone_too.attach().await.expect("attached");
        let read = queue.read(0, Buffer::from_heap(4096)).await.map(drop);
        assert_eq!(read, Err(IoError::Gone));
        assert_eq!(queue.flush().await, Err(IoError::Gone));
    });
    drop((gone, stays));
    reactors.run(|| async {});
}

#[test]
fn a_namespace_that_comes_back_is_used_again() {
    let ground = Ground::new();
    let medium = memory(&ground);
    let id = ground.serve(medium.clone());
    let stays = ground.serve(Counted::new(memory(&ground)));
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let device = connect(&reactor, ground.options(Some(id)));
    let other = connect(&reactor, ground.options(Some(stays)));
    let mut events = device.subscribe();
    ground.subsystem.remove_namespace(id).expect("it is there");
    expect_event(&mut events, DeviceEvent::Removed);
    assert_eq!(ground.serve(medium), id);
    expect_event(&mut events, DeviceEvent::Returned);
    for device in [device.clone(), other.clone()] {
        on(&reactor, move || async move {
            let queue = device.attach().await.expect("attached");
            queue.read(0, Buffer::from_heap(4096)).await.expect("it works");
        });
    }
    drop((device, other));
    reactors.run(|| async {});
}

#[test]
fn one_controller_serves_several_namespaces_and_is_detached_with_the_last() {
    let ground = Ground::new();
    ground.serve(memory(&ground));
    ground.serve(Counted::new(memory(&ground)));
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let open = |options| {
        let opened = on(&reactor, move || async move { SpdkDevice::open(options).await });
        opened.map_err(|error| error.to_string())
    };
    let error = open(ground.options(None)).expect_err("there are two");
    assert!(error.contains("namespaces 1, 2"), "{error}");
    let error = open(ground.options(Some(7))).expect_err("there are two");
    assert!(error.contains("no namespace 7; it has 1, 2"), "{error}");
    for _ in 0..3 {
        let first = open(ground.options(Some(1))).expect("it is there");
        let second = open(ground.options(Some(2))).expect("it is there");
        let mut other = ground.options(Some(2));
        other.depth = 9;
        let error = open(other).expect_err("it is in use");
        assert!(error.contains("other settings"), "{error}");
        drop((first, second));
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut options = ground.options(None);
    if let pollux_device::spdk::Transport::Tcp(address) = &mut options.transport {
        address.port = nobody.local_addr().expect("bound").port();
    }
    drop(nobody);
    let error = open(options).expect_err("nobody listens");
    assert!(error.contains("no controller answers at 127.0.0.1:"), "{error}");
    reactors.run(|| async {});
}

/// DPDK binds the thread that starts it to processors; that must be none of those that are there.
#[test]
fn opening_leaves_threads_where_they_are() {
    let ground = Ground::new();
    ground.serve(memory(&ground));
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let here = || rustix::thread::sched_getaffinity(None).expect("it can be asked for");
    let before = (here(), on(&reactor, move || async move { here() }));
    let device = connect(&reactor, ground.options(None));
    let after = (here(), on(&reactor, move || async move { here() }));
    assert_eq!(before, after);
    let new = std::thread::spawn(here).join().expect("no panic");
    assert_eq!(new, before.0, "a thread that is started now");
    drop(device);
    reactors.run(|| async {});
}

#[test]
fn the_smart_log_is_read() {
    let ground = Ground::new();
    ground.serve(Counted::new(memory(&ground)));
    let reactors = TestReactors::start(1);
    let device = connect(&reactors.handles()[0], ground.options(None));
    let target = pollux_device::Health {
        // The target counts them itself.
        power_cycles: 0,
        power_on_hours: 0,
        unsafe_shutdowns: 0,
        ..HEALTH
    };
    eventually("the log", || {
        let found = device.health();
        found.temperature_kelvin == target.temperature_kelvin
            && found.percentage_used == target.percentage_used
            && found.media_errors == target.media_errors
    });
    drop(device);
    reactors.run(|| async {});
}

/// A reactor sleeps while nothing is under way, and does not while something is.
#[test]
fn an_idle_queue_lets_its_reactor_sleep() {
    let ground = Ground::with("faulty:///malloc:///ground?inner.size=32MiB&read.stuck=true;nth=1");
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let device = connect(&reactor, ground.options(None));
    let queue_of = device.clone();
    let (sender, stop) = std::sync::mpsc::channel::<()>();
    let (started, start) = std::sync::mpsc::channel();
    let attached = std::thread::spawn({
        let reactor = reactor.clone();
        move || {
            block_on(reactor.call(move || async move {
                let queue = queue_of.attach().await.expect("attached");
                queue
                    .write(0, Buffer::from_heap(4096), false)
                    .await
                    .expect("written");
                started.send(()).expect("the test waits");
                while stop.try_recv().is_err() {
                    pollux_reactor::sleep(Duration::from_millis(20)).await;
                }
                // Stuck in the target: nobody waits for it any more, but the queue does.
                drop(queue.read(0, Buffer::from_heap(4096)));
                started.send(()).expect("the test waits");
                pollux_reactor::sleep(Duration::from_millis(300)).await;
            }))
            .expect("the reactor runs");
        }
    });
    start.recv().expect("attached");
    let asleep = |span: u64| {
        let before = reactor.counters().snapshot();
        std::thread::sleep(Duration::from_millis(span));
        let after = reactor.counters().snapshot();
        (
            after.asleep_ns - before.asleep_ns,
            after.iterations - before.iterations,
        )
    };
    let (idle_ns, _) = asleep(200);
    assert!(idle_ns > 100_000_000, "asleep {idle_ns} ns of 200 ms while idle");
    sender.send(()).expect("the task waits");
    start.recv().expect("the task runs");
    let (busy_ns, turns) = asleep(200);
    assert!(
        busy_ns < 50_000_000,
        "asleep {busy_ns} ns of 200 ms with a request under way"
    );
    assert!(turns > 1000, "{turns} turns");
    attached.join().expect("no panic");
    drop(device);
    reactors.run(|| async {});
}
