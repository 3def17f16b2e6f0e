//! Requests that take too long, and targets that go away.

use std::time::Duration;

use pollux_device::spdk::Transport;
use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_hugepages::Buffer;

use crate::common::TestReactors;
use crate::support::{Ground, Relay, connect, memory, on};

/// What changes that were never answered are waited for is three of these.
const KEEP_ALIVE: Duration = Duration::from_millis(500);

#[test]
fn a_request_that_takes_too_long_is_aborted_and_nothing_else() {
    let ground = Ground::with("faulty:///malloc:///ground?inner.size=32MiB&read.stuck=true;nth=3");
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let mut options = ground.options(None);
    options.timeout = Duration::from_millis(300);
    let device = connect(&reactor, options);
    let queue_of = device.clone();
    on(&reactor, move || async move {
        let queue = queue_of.attach().await.expect("attached");
        let read = |block| queue.read(block, Buffer::from_heap(4096));
        let (first, second, stuck) = (read(0), read(1), read(2));
        assert!(first.await.is_ok() && second.await.is_ok());
        assert_eq!(stuck.await.map(drop), Err(IoError::TimedOut));
        for block in 0..10 {
            read(block).await.expect("the queue works");
        }
    });
    drop(device);
    reactors.run(|| async {});
}

/// The controller is reset when aborts do not help either. What had its time fails; what came later is done.
#[test]
fn a_controller_that_does_not_answer_is_reset() {
    let ground = Ground::new();
    ground.serve(memory(&ground));
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let mut options = ground.options(None);
    options.timeout = Duration::from_millis(300);
    options.abort_timeout = Duration::from_millis(300);
    options.keep_alive = KEEP_ALIVE;
    let device = connect(&reactor, options);
    let queue_of = device.clone();
    let (attached, is_attached) = std::sync::mpsc::channel();
    let (freeze, is_frozen) = std::sync::mpsc::channel::<Vec<_>>();
    let done = std::thread::spawn({
        let reactor = reactor.clone();
        move || {
            on(&reactor, move || async move {
                let queue = queue_of.attach().await.expect("attached");
                attached.send(()).expect("the test waits");
                let frozen = loop {
                    match is_frozen.try_recv() {
                        Ok(frozen) => break frozen,
                        Err(_) => pollux_reactor::sleep(Duration::from_millis(1)).await,
                    }
                };
                let early = queue.read(0, Buffer::from_heap(4096));
                // Longer than a request and its abort may take.
                pollux_reactor::sleep(Duration::from_secs(1)).await;
                let late = queue.write(1, Buffer::from_heap(4096), false);
                drop(frozen);
                let results = (early.await.map(drop), late.await);
                queue.flush().await.expect("the queue works");
                results
            })
        }
    });
    is_attached.recv().expect("attached");
    freeze.send(ground.freeze()).expect("the task waits");
    let results = done.join().expect("no panic");
    assert_eq!(results, (Err(IoError::TimedOut), Ok(())));
    drop(device);
    reactors.run(|| async {});
}

/// What is under way when the target goes waits until it is back, and is done then.
#[test]
fn requests_wait_for_a_target_that_comes_back() {
    let mut ground = Ground::new();
    let medium = memory(&ground);
    ground.serve(medium.clone());
    let reactors = TestReactors::start(2);
    let mut options = ground.options(None);
    options.keep_alive = KEEP_ALIVE;
    let device = connect(&reactors.handles()[0], options);
    let writers: Vec<_> = (0..2_u64)
        .map(|number| {
            let (device, reactor) = (device.clone(), reactors.handles()[number as usize].clone());
            std::thread::spawn(move || {
                on(&reactor, move || async move {
                    let queue = device.attach().await.expect("attached");
                    let end = pollux_reactor::now() + Duration::from_millis(1500);
                    let mut rounds = 0_u64;
                    while pollux_reactor::now() < end {
                        let mut data = Buffer::from_heap(8192);
                        data.fill(rounds as u8);
                        let block = number * 1000 + rounds % 500;
                        queue.write(block, data, false).await.expect("written in the end");
                        let read = queue.read(block, Buffer::from_heap(8192)).await.expect("read");
                        assert!(read.iter().all(|&byte| byte == rounds as u8));
                        rounds += 1;
                    }
                    rounds
                })
            })
        })
        .collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        ground.stop();
        std::thread::sleep(Duration::from_millis(50));
        ground.start_again(medium.clone());
    }
    for writer in writers {
        assert!(writer.join().expect("no panic") > 0);
    }
    drop(device);
    reactors.run(|| async {});
}

#[test]
fn a_target_that_stays_away_is_gone() {
    let mut ground = Ground::new();
    ground.serve(memory(&ground));
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let mut options = ground.options(None);
    options.loss_timeout = Duration::from_millis(500);
    let device = connect(&reactor, options);
    let queue_of = device.clone();
    let (attached, is_attached) = std::sync::mpsc::channel();
    let reading = std::thread::spawn({
        let reactor = reactor.clone();
        move || {
            on(&reactor, move || async move {
                let queue = queue_of.attach().await.expect("attached");
                attached.send(()).expect("the test waits");
                loop {
                    if let Err(error) = queue.read(0, Buffer::from_heap(4096)).await {
                        return (error, queue.write(0, Buffer::from_heap(4096), true).await);
                    }
                }
            })
        }
    });
    is_attached.recv().expect("attached");
    ground.stop();
    let (read, written) = reading.join().expect("no panic");
    assert_eq!((read, written), (IoError::Gone, Err(IoError::Gone)));
    drop(device);
    reactors.run(|| async {});
}

/// What a target was asked to change and never answered may happen late: nothing is sent before it is dead.
#[test]
fn changes_that_were_never_answered_are_waited_for() {
    let ground = Ground::with("faulty:///malloc:///ground?inner.size=32MiB&write.stuck=true;nth=1");
    let relay = Relay::to(ground.address);
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let mut options = ground.options(None);
    options.keep_alive = KEEP_ALIVE;
    if let Transport::Tcp(address) = &mut options.transport {
        address.port = relay.address.port();
    }
    let device = connect(&reactor, options);
    let queue_of = device.clone();
    let (attached, is_attached) = std::sync::mpsc::channel();
    let writing = std::thread::spawn({
        let reactor = reactor.clone();
        move || {
            on(&reactor, move || async move {
                let queue = queue_of.attach().await.expect("attached");
                queue.read(0, Buffer::from_heap(4096)).await.expect("connected");
                let write = queue.write(0, Buffer::from_heap(4096), false);
                attached.send(()).expect("the test waits");
                write.await
            })
        }
    });
    is_attached.recv().expect("attached");
    // Until the target has it, and keeps it.
    std::thread::sleep(Duration::from_millis(300));
    let cut_at = std::time::Instant::now();
    relay.cut();
    assert_eq!(writing.join().expect("no panic"), Ok(()));
    assert!(cut_at.elapsed() >= KEEP_ALIVE * 3, "after {:?}", cut_at.elapsed());
    drop(device);
    reactors.run(|| async {});
}
