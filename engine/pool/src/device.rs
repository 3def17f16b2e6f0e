//! A device of a pool, in blocks of 4 KiB whatever the blocks of the device are.

mod mirror;
mod protected;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Gather, Geometry, IoError, Reply, Request};
use pollux_hugepages::Buffer;
use pollux_reactor::{buffers, sleep};

use crate::layout::BLOCK_BYTES;
pub(crate) use mirror::Mirror;
pub(crate) use protected::Protected;

/// The pause before a device that is short of resources is asked again, and how often it is: a minute in all.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);
const SHORTAGES_MAX: u32 = 6_000;

/// Blocks of a device that a pool cannot use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device has blocks of {0} bytes, and a pool needs 512, 1024, 2048 or 4096: use another device")]
pub struct BlockSizeError(pub u32);

/// See the module.
#[derive(Clone)]
pub struct PoolDevice {
    device: Rc<dyn BlockDevice>,
    /// Blocks of the device in one of 4 KiB.
    ratio: u64,
    /// Where writes go too, for all clones.
    mirror: Rc<RefCell<Option<Rc<Mirror>>>>,
}

impl PoolDevice {
    /// A device as this reactor sees it.
    ///
    /// # Errors
    ///
    /// [`BlockSizeError`].
    pub fn new(device: Rc<dyn BlockDevice>) -> Result<Self, BlockSizeError> {
        let block_bytes = device.geometry().block_bytes;
        let ratio = (BLOCK_BYTES as u64).checked_div(block_bytes.into()).unwrap_or(0);
        if block_bytes < 512 || ratio * u64::from(block_bytes) != BLOCK_BYTES as u64 {
            return Err(BlockSizeError(block_bytes));
        }
        Ok(Self {
            device,
            ratio,
            mirror: Rc::default(),
        })
    }

    /// Writes that begin from now on go to another device too, or to none.
    pub(crate) fn set_mirror(&self, mirror: Option<Rc<Mirror>>) {
        *self.mirror.borrow_mut() = mirror;
    }

    fn mirror(&self) -> Option<Rc<Mirror>> {
        self.mirror.borrow().clone()
    }

    /// The geometry, in blocks of the device.
    pub fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    /// Blocks of 4 KiB.
    pub fn blocks(&self) -> u64 {
        self.geometry().blocks / self.ratio
    }

    /// Whether writes are durable only after a flush.
    pub fn has_volatile_cache(&self) -> bool {
        self.geometry().volatile_write_cache
    }

    /// Whether both are the same device.
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.device, &other.device)
    }

    /// Reads blocks.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub async fn read(&self, block: u64, blocks: u64) -> Result<Buffer, IoError> {
        let bytes = usize::try_from(blocks).map_or(usize::MAX, |blocks| blocks.saturating_mul(BLOCK_BYTES));
        retried(async || {
            let into = memory(bytes);
            self.device.read(block * self.ratio, into).await
        })
        .await
    }

    /// Reads blocks to copy them. What the medium did not return is asked for once more, block by block: the
    /// first block that cannot be read is told.
    pub(crate) async fn read_to_copy(&self, block: u64, blocks: u64) -> Result<Buffer, (u64, IoError)> {
        match self.read(block, blocks).await {
            Err(error) if is_of_medium(error) => {}
            other => return other.map_err(|error| (block, error)),
        }
        let mut all = memory(usize::try_from(blocks).map_or(usize::MAX, |blocks| blocks * BLOCK_BYTES));
        for (number, into) in (block..).zip(all.chunks_exact_mut(BLOCK_BYTES)) {
            let read = self.read(number, 1).await.map_err(|error| (number, error))?;
            into.copy_from_slice(&read);
        }
        Ok(all)
    }

    /// Starts a read, once: what is short of resources is told.
    pub(crate) fn start_read(&self, block: u64, into: Buffer) -> Completion {
        self.device.submit(Request::Read {
            block: block * self.ratio,
            into,
        })
    }

    /// Starts a write, once: what is short of resources is told.
    pub(crate) fn start_write(&self, block: u64, from: Gather) -> Completion {
        if self.mirror.borrow().is_some() {
            let this = self.clone();
            return Completion::from_future(async move {
                this.write(block, from, false).await?;
                Ok(Reply::Done)
            });
        }
        self.device.submit(Request::Write {
            block: block * self.ratio,
            from,
            force_unit_access: false,
        })
    }

    /// Reads blocks into a buffer, which is as long as they are.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub async fn read_into(&self, block: u64, into: Buffer) -> Result<Buffer, IoError> {
        let bytes = into.len();
        match self.device.read(block * self.ratio, into).await {
            // The buffer is gone with the request.
            Err(IoError::ResourceShortage) => self.read(block, (bytes / BLOCK_BYTES) as u64).await,
            result => result,
        }
    }

    /// Writes blocks; with `durable` they are on the medium when it returns.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub async fn write(&self, block: u64, from: Gather, durable: bool) -> Result<(), IoError> {
        match self.mirror() {
            Some(mirror) => mirror.write(self, block, from, durable).await,
            None => self.write_alone(block, from, durable).await,
        }
    }

    async fn write_alone(&self, block: u64, from: Gather, durable: bool) -> Result<(), IoError> {
        retried(async || self.device.write(block * self.ratio, from.clone(), durable).await).await
    }

    /// Brings every completed write to the medium; nothing to do where there is no volatile cache.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.flush_alone().await?;
        match self.mirror() {
            Some(mirror) => mirror.flush().await,
            None => Ok(()),
        }
    }

    async fn flush_alone(&self) -> Result<(), IoError> {
        if !self.has_volatile_cache() {
            return Ok(());
        }
        retried(async || self.device.flush().await).await
    }
}

/// Memory for metadata. It never waits for the pool of buffers: those who hold these may wait for metadata.
pub(crate) fn memory(bytes: usize) -> Buffer {
    buffers()
        .allocate(bytes)
        .unwrap_or_else(|| Buffer::from_heap(bytes))
}

/// Whether an error is one of the blocks that were read, while others may be well.
pub(crate) fn is_of_medium(error: IoError) -> bool {
    matches!(error, IoError::MediaRead | IoError::ChecksumMismatch)
}

/// Short of resources is not broken.
async fn retried<T>(mut act: impl AsyncFnMut() -> Result<T, IoError>) -> Result<T, IoError> {
    for _ in 0..SHORTAGES_MAX {
        match act().await {
            Err(IoError::ResourceShortage) => sleep(SHORTAGE_PAUSE).await,
            result => return result,
        }
    }
    Err(IoError::ResourceShortage)
}
