//! FLUSH and FUA reach the medium, one for one, and a cache that may be lost is not forgotten.

use std::sync::atomic::{AtomicU64, Ordering};

use pollux_device::{BlockDeviceExt, Device, Gather, IoError};
use pollux_hugepages::Buffer;

use crate::common::TestReactors;
use crate::support::{Counted, Ground, connect, memory, on};

fn block(byte: u8) -> Gather {
    let mut buffer = Buffer::from_heap(4096);
    buffer.fill(byte);
    buffer.into()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn every_flush_and_every_stable_write_is_seen_by_the_medium() {
    let ground = Ground::new();
    let medium = Counted::new(memory(&ground));
    ground.serve(medium.clone());
    let reactors = TestReactors::start(1);
    let device = connect(&reactors.handles()[0], ground.options(None));
    assert!(device.geometry().volatile_write_cache);
    let queue_of = device.clone();
    on(&reactors.handles()[0], move || async move {
        let queue = queue_of.attach().await.expect("attached");
        for index in 0..5 {
            queue.write(index, block(1), false).await.expect("written");
        }
        for index in 0..3 {
            queue.write(index, block(2), true).await.expect("written");
        }
        for _ in 0..4 {
            queue.flush().await.expect("flushed");
        }
    });
    assert_eq!(count(&medium.writes), 8);
    assert_eq!(count(&medium.stable_writes), 3);
    assert_eq!(count(&medium.flushes), 4);
    drop(device);
    reactors.run(|| async {});
}

/// A remote target that was connected to anew may have lost its cache.
#[test]
fn one_flush_fails_after_a_cache_may_have_been_lost() {
    let mut ground = Ground::new();
    let medium = Counted::new(memory(&ground));
    ground.serve(medium.clone());
    let reactors = TestReactors::start(1);
    let reactor = reactors.handles()[0].clone();
    let device = connect(&reactor, ground.options(None));
    for dirty in [true, false] {
        let queue_of = device.clone();
        let (sender, resume) = std::sync::mpsc::channel::<()>();
        let (wrote, written) = std::sync::mpsc::channel();
        let flushes = std::thread::spawn({
            let reactor = reactor.clone();
            move || {
                on(&reactor, move || async move {
                    let queue = queue_of.attach().await.expect("attached");
                    queue.write(0, block(1), false).await.expect("written");
                    if !dirty {
                        queue.flush().await.expect("flushed");
                    }
                    wrote.send(()).expect("the test waits");
                    while resume.try_recv().is_err() {
                        pollux_reactor::sleep(std::time::Duration::from_millis(5)).await;
                    }
                    // Waits until the target is back.
                    let read = queue.read(0, Buffer::from_heap(4096)).await.expect("read");
                    assert!(read.iter().all(|&byte| byte == 1));
                    (queue.flush().await, queue.flush().await)
                })
            }
        });
        written.recv().expect("written");
        ground.stop();
        ground.start_again(medium.clone());
        sender.send(()).expect("the task waits");
        let expected = if dirty { Err(IoError::MediaWrite) } else { Ok(()) };
        assert_eq!(
            flushes.join().expect("no panic"),
            (expected, Ok(())),
            "dirty: {dirty}"
        );
    }
    drop(device);
    reactors.run(|| async {});
}
