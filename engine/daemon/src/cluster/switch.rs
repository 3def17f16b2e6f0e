//! A volume as hosts see it, whoever serves it: the device of a namespace that stays while its target comes
//! and goes.
//!
//! Invariants:
//! - What hosts are told of it (but for its size) is the same on every engine, and never changes.
//! - A request goes to the device that is behind when it comes, or fails with [`IoError::Fenced`]: hosts try
//!   another path then.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pollux_device::events::{DeviceEvent, Publisher, Subscription};
use pollux_device::{
    AllocationQuery, Attaching, BlockDevice, Completion, Device, Geometry, IoError, Request,
};
use uuid::Uuid;

use super::record::BLOCK_BYTES;

/// Blocks of the largest transfer: 1 MiB.
const TRANSFER_BLOCKS_MAX: u32 = 256;

/// The alignment of memory that every drive is content with.
const MEMORY_ALIGN_BYTES: u32 = 4096;

/// Blocks that are best written together: those of an extent of a pool.
const OPTIMAL_BLOCKS: u32 = 16;

/// See the module.
pub(super) struct VolumeSwitch {
    name: String,
    volume: Uuid,
    blocks: AtomicU64,
    behind: Mutex<Option<Arc<dyn Device>>>,
    /// Counts the changes of what is behind.
    changes: AtomicU64,
    publisher: Publisher,
}

impl VolumeSwitch {
    /// A volume with nothing behind it yet.
    pub(super) fn new(volume: Uuid, size_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            name: format!("volume/{volume}"),
            volume,
            blocks: AtomicU64::new(size_bytes / u64::from(BLOCK_BYTES)),
            behind: Mutex::default(),
            changes: AtomicU64::new(1),
            publisher: Publisher::default(),
        })
    }

    /// Puts a device behind it, or nothing.
    ///
    /// # Errors
    ///
    /// [`IoError::Unsupported`] for a device that cannot do what hosts were told; nothing has changed then.
    pub(super) fn connect(&self, device: Option<Arc<dyn Device>>) -> Result<(), IoError> {
        if let Some(device) = &device {
            let geometry = device.geometry();
            let fits = geometry.block_bytes == BLOCK_BYTES
                && geometry.transfer_blocks_max >= TRANSFER_BLOCKS_MAX
                && geometry.memory_align_bytes <= MEMORY_ALIGN_BYTES
                && geometry.atomic_write_blocks >= 1
                && geometry.metadata_bytes == 0
                && geometry.deallocates
                && !geometry.read_only;
            if !fits {
                return Err(IoError::Unsupported);
            }
            self.resize(geometry.bytes());
        }
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner) = device;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Its size, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed) * u64::from(BLOCK_BYTES)
    }

    /// Hosts see another size from now on.
    pub(super) fn resize(&self, size_bytes: u64) {
        let blocks = size_bytes / u64::from(BLOCK_BYTES);
        if self.blocks.swap(blocks, Ordering::Relaxed) != blocks {
            self.publisher.publish(DeviceEvent::Resized);
        }
    }

    fn behind(&self) -> Option<Arc<dyn Device>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Device for VolumeSwitch {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> Option<Uuid> {
        Some(self.volume)
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: BLOCK_BYTES,
            blocks: self.blocks.load(Ordering::Relaxed),
            optimal_blocks: OPTIMAL_BLOCKS,
            transfer_blocks_max: TRANSFER_BLOCKS_MAX,
            memory_align_bytes: MEMORY_ALIGN_BYTES,
            volatile_write_cache: true,
            atomic_write_blocks: 1,
            deallocates: true,
            metadata_bytes: 0,
            read_only: false,
        }
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let queue: Rc<dyn BlockDevice> = Rc::new(Queue(Rc::new(Attached {
                switch: self,
                newest: RefCell::new((0, None)),
            })));
            Ok(queue)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }
}

/// What one reactor has of it.
struct Attached {
    switch: Arc<VolumeSwitch>,
    /// The queue to what was behind after so many changes.
    newest: RefCell<(u64, Option<Rc<dyn BlockDevice>>)>,
}

impl Attached {
    /// The queue to what is behind now, if this reactor has it already.
    fn queue(&self) -> Option<Rc<dyn BlockDevice>> {
        let (changes, queue) = &*self.newest.borrow();
        let is_newest = *changes == self.switch.changes.load(Ordering::Acquire);
        queue.clone().filter(|_| is_newest)
    }

    /// The queue to what is behind now.
    async fn attach(&self) -> Result<Rc<dyn BlockDevice>, IoError> {
        let changes = self.switch.changes.load(Ordering::Acquire);
        // The old one is let go of first: it may be all that keeps its device.
        *self.newest.borrow_mut() = (0, None);
        let device = self.switch.behind().ok_or(IoError::Fenced)?;
        let queue = device.attach().await?;
        // Were there a newer one meanwhile, this is not taken for it.
        *self.newest.borrow_mut() = (changes, Some(queue.clone()));
        Ok(queue)
    }
}

struct Queue(Rc<Attached>);

impl BlockDevice for Queue {
    fn geometry(&self) -> Geometry {
        self.0.switch.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        if let Some(queue) = self.0.queue() {
            return queue.submit(request);
        }
        let attached = self.0.clone();
        Completion::from_future(async move { attached.attach().await?.submit(request).await })
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        let attached = self.0.clone();
        Box::pin(async move {
            let queue = attached.attach().await?;
            queue.allocation(block, blocks, runs_max).await
        })
    }
}
