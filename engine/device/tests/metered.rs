//! What is measured is what happened.

mod common;

use std::time::Duration;

use common::{TestReactors, block_on, on_reactor, open};
use pollux_device::faulty::{Fault, Operation as Struck, Rule, When};
use pollux_device::metered::{BOUNDS_NS, Operation};
use pollux_device::{
    BlockDeviceExt, Device, Faults, FaultyDevice, IoError, MallocDevice, MallocOptions, MeteredDevice,
    ZeroOptions,
};
use pollux_hugepages::{Buffer, Slice};

const BLOCK_BYTES: usize = 4096;

#[test]
fn requests_bytes_and_errors_are_counted_by_kind() {
    on_reactor(|| async {
        let memory = MallocDevice::new("memory", &MallocOptions::new(1 << 20)).expect("memory");
        let faults = Faults::new(Some(1));
        let metered = MeteredDevice::new(FaultyDevice::new(memory, faults.clone()));
        assert_eq!(metered.name(), "memory");
        let queue = metered.clone().attach().await.expect("memory attaches");
        let data = Slice::copy_from(&[7; 2 * BLOCK_BYTES]);
        queue.write(0, data.clone(), false).await.expect("it is written");
        queue
            .read(0, Buffer::from_heap(BLOCK_BYTES))
            .await
            .expect("it is read");
        queue.compare(0, data).await.expect("it is the same");
        let other = queue.compare(0, Slice::copy_from(&[8; BLOCK_BYTES])).await;
        assert_eq!(other, Err(IoError::CompareFailed));
        queue.flush().await.expect("it is flushed");
        queue.deallocate(0, 2).await.expect("it is deallocated");
        queue
            .write_zeroes(0, 1, ZeroOptions::default())
            .await
            .expect("zeros");
        let out_of_range = queue.read(1 << 20, Buffer::from_heap(BLOCK_BYTES)).await;
        assert!(out_of_range.is_err());
        faults.set([Rule {
            when: When::operation(Struck::Write),
            fault: Fault::Fail(IoError::ResourceShortage),
        }]);
        let short = queue.write(0, Slice::copy_from(&[0; BLOCK_BYTES]), false).await;
        assert_eq!(short, Err(IoError::ResourceShortage));
        faults.set([Rule {
            when: When::operation(Struck::Flush),
            fault: Fault::Delay(Duration::from_millis(30)..=Duration::from_millis(30)),
        }]);
        queue.flush().await.expect("it is flushed");

        let block = BLOCK_BYTES as u64;
        let measured = metered.meter().read();
        let counted: Vec<_> = measured
            .iter()
            .map(|(operation, counts)| (operation, counts.done, counts.failed, counts.bytes))
            .collect();
        assert_eq!(
            counted,
            [
                (Operation::Read, 3, 1, 4 * block),
                (Operation::Write, 1, 0, 2 * block),
                (Operation::Flush, 2, 0, 0),
                (Operation::Deallocate, 2, 0, 3 * block),
            ]
        );
        for (operation, counts) in measured.iter() {
            assert_eq!(counts.places.iter().sum::<u64>(), counts.done, "{operation:?}");
        }
        let (_, flushes) = measured.iter().nth(2).expect("flushes");
        assert!(flushes.sum_ns >= 30_000_000, "{}", flushes.sum_ns);
        let slow = BOUNDS_NS.partition_point(|bound| *bound < 30_000_000);
        assert_eq!(
            flushes.places[slow..].iter().sum::<u64>(),
            1,
            "{:?}",
            flushes.places
        );
        // What queue pairs counted that are gone is not forgotten.
        drop(queue);
        assert_eq!(metered.meter().read(), measured);
    });
}

#[test]
fn reactors_count_apart_and_are_added_up() {
    let reactors = TestReactors::start(3);
    let handles = reactors.handles();
    let device =
        block_on(handles[0].call(|| async {
            MeteredDevice::new(open("malloc:///memory?size=1MiB").await.expect("memory"))
        }));
    let device = device.expect("the reactor runs");
    for handle in &handles {
        let device = device.clone();
        let wrote = handle.call(move || async move {
            let queue = device.attach().await.expect("memory attaches");
            for block in 0..10 {
                let data = Slice::copy_from(&[1; BLOCK_BYTES]);
                queue.write(block, data, false).await.expect("it is written");
            }
        });
        block_on(wrote).expect("the reactor runs");
    }
    let (_, writes) = device
        .meter()
        .read()
        .iter()
        .nth(1)
        .map(|(kind, counts)| (kind, *counts))
        .expect("writes");
    assert_eq!((writes.done, writes.bytes), (30, 30 * BLOCK_BYTES as u64));
    reactors.run(|| async {});
}
