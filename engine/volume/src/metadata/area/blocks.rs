//! Blocks of 4 KiB of a device, many at a time, whatever the block size of the device is.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError, ZeroOptions};
use pollux_hugepages::Buffer;
use pollux_reactor::{buffers, sleep};

use crate::metadata::{AreaLayout, BLOCK_BYTES, Block, LayoutError};

/// Blocks that are read or written with one request.
const RUN_BLOCKS_MAX: u64 = 32;

/// The pause before a device that is short of resources is asked again.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(5);

/// How often it is asked again: five minutes in all.
const SHORTAGES_MAX: u32 = 60_000;

/// When a write has to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    /// When it is done.
    AtOnce,
    /// With the next flush.
    Later,
}

/// See the module.
pub(super) struct Blocks {
    device: Rc<dyn BlockDevice>,
    /// Blocks of the device in one of 4 KiB.
    ratio: u64,
}

impl Blocks {
    /// # Errors
    ///
    /// [`LayoutError::BlockSize`].
    pub(super) fn new(device: Rc<dyn BlockDevice>) -> Result<Self, LayoutError> {
        let ratio = AreaLayout::ratio_of(&device.geometry())?;
        Ok(Self { device, ratio })
    }

    /// How many there are, by now.
    pub(super) fn count(&self) -> u64 {
        self.device.geometry().blocks / self.ratio
    }

    /// How many go with one request.
    pub(super) fn run_max(&self) -> u64 {
        let transfer_max = u64::from(self.device.geometry().transfer_blocks_max);
        (transfer_max / self.ratio).clamp(1, RUN_BLOCKS_MAX)
    }

    /// Reads blocks; for each that cannot be read, and only for those, an error of its own.
    ///
    /// # Errors
    ///
    /// [`IoError`] of the device as a whole.
    pub(super) async fn read(&self, first: u64, count: u64) -> Result<Vec<Result<Block, IoError>>, IoError> {
        let end = first.saturating_add(count);
        let mut found = Vec::with_capacity(count as usize);
        let mut at = first;
        while at < end {
            let run = self.run_max().min(end - at);
            match self.read_run(at, run).await {
                Ok(data) => found.extend(data.as_chunks().0.iter().map(|block| Ok(*block))),
                Err(error) if is_of_blocks(error) => {
                    for block in at..at + run {
                        found.push(self.read_one(block).await?);
                    }
                }
                Err(error) => return Err(error),
            }
            at += run;
        }
        Ok(found)
    }

    async fn read_one(&self, block: u64) -> Result<Result<Block, IoError>, IoError> {
        match self.read_run(block, 1).await {
            Ok(data) => data.first_chunk().copied().map(Ok).ok_or(IoError::Internal),
            Err(error) if is_of_blocks(error) => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }

    async fn read_run(&self, first: u64, count: u64) -> Result<Buffer, IoError> {
        let bytes = count as usize * BLOCK_BYTES;
        let reading = async || self.device.read(first * self.ratio, memory(bytes)).await;
        let data = retried(reading).await?;
        match data.len() == bytes {
            true => Ok(data),
            false => Err(IoError::Internal),
        }
    }

    /// Writes blocks, one after the other.
    ///
    /// # Errors
    ///
    /// [`IoError`]; each of them has its old content or the new one then, or is torn.
    pub(super) async fn write(&self, first: u64, blocks: &[Block], durable: Durable) -> Result<(), IoError> {
        let at_once = durable == Durable::AtOnce;
        let mut at = first;
        for run in blocks.chunks(self.run_max() as usize) {
            let mut buffer = memory(size_of_val(run));
            buffer.copy_from_slice(run.as_flattened());
            let data = buffer.freeze();
            retried(async || self.device.write(at * self.ratio, data.clone(), at_once).await).await?;
            at += run.len() as u64;
        }
        Ok(())
    }

    /// Makes blocks zeros, that take their space.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub(super) async fn clear(&self, first: u64, count: u64) -> Result<(), IoError> {
        let options = ZeroOptions {
            force_unit_access: false,
            may_deallocate: false,
        };
        let (first, count) = (first * self.ratio, count * self.ratio);
        retried(async || self.device.write_zeroes(first, count, options).await).await
    }

    /// Makes all durable that was written.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub(super) async fn flush(&self) -> Result<(), IoError> {
        retried(async || self.device.flush().await).await
    }
}

/// Whether it is the blocks that cannot be read, and others may be.
fn is_of_blocks(error: IoError) -> bool {
    matches!(error, IoError::MediaRead | IoError::ChecksumMismatch)
}

/// Memory for metadata never waits for those who may be waiting for metadata.
fn memory(bytes: usize) -> Buffer {
    buffers()
        .allocate(bytes)
        .unwrap_or_else(|| Buffer::from_heap(bytes))
}

/// Short of resources is not broken.
async fn retried<T>(mut act: impl AsyncFnMut() -> Result<T, IoError>) -> Result<T, IoError> {
    for _ in 0..SHORTAGES_MAX {
        match act().await {
            Err(IoError::ResourceShortage | IoError::NotReady) => sleep(SHORTAGE_PAUSE).await,
            result => return result,
        }
    }
    Err(IoError::ResourceShortage)
}
