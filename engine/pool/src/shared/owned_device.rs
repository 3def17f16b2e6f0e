//! A block device that one reactor has, as a device of the process.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pollux_device::events::{DeviceEvent, Publisher, Subscription};
use pollux_device::{AllocationQuery, Attaching, BlockDevice, Completion, Device, Geometry, Request};
use uuid::Uuid;

use super::forward::Forwarding;
use super::owned::Owned;

/// The device under one type, whatever it is.
struct Inner(Rc<dyn BlockDevice>);

impl BlockDevice for Inner {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        self.0.submit(request)
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.0.allocation(block, blocks, runs_max)
    }
}

/// A block device of one reactor, its *owner*, that all reactors can attach to. On the owner a queue of it is
/// the device itself; on another reactor requests go to the owner by a lane. The device lives until this and
/// all its queues are dropped.
pub struct OwnedDevice {
    name: String,
    uuid: Option<Uuid>,
    device: Arc<Owned<Inner>>,
    /// The geometry but for the block count, which is `blocks`.
    geometry: Geometry,
    blocks: Arc<AtomicU64>,
    publisher: Publisher,
}

impl OwnedDevice {
    /// Makes a device of the current reactor known to the others.
    pub fn new(name: String, uuid: Option<Uuid>, device: Rc<dyn BlockDevice>) -> Arc<Self> {
        let geometry = device.geometry();
        Arc::new(Self {
            name,
            uuid,
            device: Owned::new(Rc::new(Inner(device))),
            geometry,
            blocks: Arc::new(AtomicU64::new(geometry.blocks)),
            publisher: Publisher::default(),
        })
    }

    /// Looks how many blocks the device has now; on its owner, and nothing anywhere else.
    pub fn refresh_size(&self) {
        if let Some(inner) = self.device.here() {
            self.resized(inner.geometry().blocks);
        }
    }

    /// The device has so many blocks now; tells the subscribers if that is a change.
    pub fn resized(&self, blocks: u64) {
        if self.blocks.swap(blocks, Ordering::Relaxed) != blocks {
            self.publisher.publish(DeviceEvent::Resized);
        }
    }
}

impl Device for OwnedDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            if let Some(inner) = self.device.here() {
                return Ok(inner.0.clone());
            }
            let forwarding = Forwarding::begin(&self.device, self.geometry, &self.blocks).await?;
            Ok(Rc::new(forwarding) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use pollux_device::{BlockDeviceExt, IoError};
    use pollux_hugepages::Buffer;
    use pollux_sim::{SimDriveOptions, World};

    use super::*;

    const BLOCK: usize = 4096;

    #[test]
    fn the_owner_has_the_device_itself_and_others_a_lane_to_it() {
        let world = World::new(1);
        let machine = world.add_machine("one");
        let (owner, other) = (world.add_reactor(machine), world.add_reactor(machine));
        let drive = world.add_drive(
            machine,
            "drive",
            SimDriveOptions::new(1 << 20, BLOCK as u32).unwrap(),
        );
        let device = world.block_on(owner, async move {
            let queue = drive.attach().await.unwrap();
            let device = OwnedDevice::new("drive".to_owned(), None, queue.clone());
            let attached = device.clone().attach().await.unwrap();
            assert!(Rc::ptr_eq(&attached, &queue));
            device
        });
        let far = device.clone();
        let queue = world.block_on(other, async move {
            let queue = far.attach().await.unwrap();
            queue.write(3, Buffer::from_heap(BLOCK), true).await.unwrap();
            assert_eq!(queue.flush().await, Ok(()));
            let blocks = queue.geometry().blocks;
            let past_the_end = queue.read(blocks, Buffer::from_heap(BLOCK)).await;
            assert_eq!(past_the_end.map(drop), Err(IoError::OutOfRange));
            queue
        });
        // The queue keeps it alive.
        drop(device);
        world.block_on(other, async move {
            let read = queue.read(3, Buffer::from_heap(BLOCK)).await.unwrap();
            assert_eq!(read.len(), BLOCK);
        });
    }
}
