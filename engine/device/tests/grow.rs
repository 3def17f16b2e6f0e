//! Devices grow while they are in use, and tell their subscribers.

mod common;

use std::sync::Arc;

use pollux_device::events::DeviceEvent;
use pollux_device::{
    BlockDeviceExt, Device, DeviceUri, Faults, FaultyDevice, Geometry, GrowError, MallocDevice,
    MallocOptions, Registry,
};
use pollux_hugepages::{Buffer, Slice};

use common::block_on;

fn open(uri: &str) -> Arc<dyn Device> {
    let uri: DeviceUri = uri.parse().expect("a URI");
    block_on(Registry::standard().open(&uri)).expect("a device")
}

fn devices() -> Vec<Arc<dyn Device>> {
    let inner = MallocDevice::new("inner", &MallocOptions::new(1 << 20)).expect("memory");
    vec![
        open("null:///a?size=1MiB"),
        open("malloc:///b?size=1MiB&block=512"),
        FaultyDevice::new(inner, Faults::default()),
    ]
}

#[test]
fn what_was_written_stays_and_what_is_new_reads_zeros() {
    for device in devices() {
        let mut events = device.subscribe();
        let queue = block_on(device.clone().attach()).expect("a queue");
        let block_bytes = device.geometry().block_bytes as usize;
        let data = Slice::copy_from(&vec![7; block_bytes]);
        block_on(queue.write(0, data, false)).expect("written");

        // More than is mapped inline.
        block_on(device.clone().grow_to(100 << 20)).expect("it grows");
        let geometry = device.geometry();
        assert_eq!(geometry.bytes(), 100 << 20);
        assert_eq!(queue.geometry(), geometry);
        assert_eq!(events.try_recv().expect("an event"), DeviceEvent::Resized);

        let into = Buffer::from_heap(block_bytes);
        let last = block_on(queue.read(geometry.blocks - 1, into)).expect("the last block is there");
        assert!(last.iter().all(|byte| *byte == 0));
        if device.name() != "a" {
            let first = block_on(queue.read(0, Buffer::from_heap(block_bytes))).expect("read");
            assert!(first.iter().all(|byte| *byte == 7));
        }
    }
}

#[test]
fn the_same_size_is_no_change() {
    for device in devices() {
        let mut events = device.subscribe();
        block_on(device.clone().grow_to(1 << 20)).expect("nothing to do");
        assert!(events.try_recv().is_err());
    }
}

#[test]
fn bad_sizes_change_nothing() {
    for device in devices() {
        let mut events = device.subscribe();
        for (bytes, is_shrink) in [(0, false), (1000, false), (512 << 10, true), (u64::MAX, false)] {
            let error = block_on(device.clone().grow_to(bytes)).expect_err("a bad size");
            assert_eq!(matches!(error, GrowError::Shrink { .. }), is_shrink, "{error}");
        }
        assert_eq!(device.geometry().bytes(), 1 << 20);
        assert!(events.try_recv().is_err());
    }
}

/// A device that does not say how it grows.
struct Fixed(Geometry);

impl Device for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }

    fn geometry(&self) -> Geometry {
        self.0
    }

    fn attach(self: Arc<Self>) -> pollux_device::Attaching {
        Box::pin(std::future::ready(Err(pollux_device::IoError::Unsupported)))
    }

    fn subscribe(&self) -> pollux_device::events::Subscription {
        pollux_device::events::Publisher::default().subscribe()
    }
}

#[test]
fn a_device_that_cannot_grow_says_so() {
    let device = Arc::new(Fixed(Geometry::new(4096, 512).expect("a geometry")));
    let error = block_on(device.grow_to(8192)).expect_err("it cannot");
    assert!(matches!(error, GrowError::Unsupported), "{error}");
}
