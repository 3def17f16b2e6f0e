//! Reading and writing the label areas of devices.

use arrayvec::ArrayVec;
use futures_util::future::join_all;
use pollux_device::{Gather, IoError};
use pollux_hugepages::Slice;
use uuid::Uuid;

use crate::device::PoolDevice;
use crate::layout::label::{Label, area_blocks};
use crate::layout::superblock::Superblock;
use crate::layout::{BLOCK_BYTES, Block, EXTENT_BLOCKS, LayoutError};

/// Label areas of a device of two sizes.
const AREAS_MAX: usize = 8;

/// Extents that a device has room for.
pub(super) fn extents_of(device: &PoolDevice) -> u64 {
    device.blocks() / EXTENT_BLOCKS as u64
}

/// One block of 4 KiB; what cannot be read counts as damaged.
async fn read_block(device: &PoolDevice, block: u64) -> Result<Block, LayoutError> {
    let bytes = device.read(block, 1).await;
    let bytes = bytes.map_err(|_| LayoutError::Checksum("block that cannot be read"))?;
    Block::try_from(&bytes[..]).map_err(|_| LayoutError::Checksum("block that cannot be read"))
}

/// The newest label of a device; without any, what is wrong with the first copy.
pub(super) async fn read_label(device: &PoolDevice) -> Result<Label, LayoutError> {
    let mut found: Option<Label> = None;
    let mut first_error = None;
    for block in area_blocks(extents_of(device)) {
        let label = match read_block(device, block).await {
            Ok(bytes) => Label::decode(&bytes),
            Err(error) => Err(error),
        };
        match label {
            // At what is the end of a device now there may be labels of its earlier lives.
            Ok(label)
                if found.as_ref().is_none_or(|found| {
                    found.device == label.device && label.generation > found.generation
                }) =>
            {
                found = Some(label);
            }
            Ok(_) => {}
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    found.ok_or(first_error.unwrap_or(LayoutError::Magic("label")))
}

/// The newest superblock of a pool on a device that has so many extents.
pub(super) async fn read_superblock(
    device: &PoolDevice,
    pool: Uuid,
    extents: u64,
) -> Result<Superblock, LayoutError> {
    let mut found: Option<Superblock> = None;
    let mut last_error = LayoutError::Magic("superblock");
    for area in area_blocks(extents) {
        for slot in [1, 2] {
            let superblock = match read_block(device, area + slot).await {
                Ok(bytes) => Superblock::decode(&bytes),
                Err(error) => Err(error),
            };
            match superblock {
                Ok(superblock) if superblock.pool == pool => {
                    if found.as_ref().is_none_or(|found| superblock.is_newer_than(found)) {
                        found = Some(superblock);
                    }
                }
                Ok(_) => {}
                Err(LayoutError::Magic(_)) => {}
                Err(error) => last_error = error,
            }
        }
    }
    found.ok_or(last_error)
}

/// A device and its label areas, by their first blocks. One that becomes larger has those of both sizes.
#[derive(Clone)]
pub(super) struct Areas {
    pub(super) device: PoolDevice,
    blocks: ArrayVec<u64, AREAS_MAX>,
}

impl Areas {
    /// Those of a device of so many extents.
    pub(super) fn new(device: PoolDevice, extents: u64) -> Self {
        let blocks = area_blocks(extents).into_iter().collect();
        Self { device, blocks }
    }

    /// Those that the device had with so many extents too.
    #[must_use]
    pub(super) fn and_of(mut self, extents: u64) -> Self {
        for block in area_blocks(extents) {
            if !self.blocks.contains(&block) {
                // There is room for those of two sizes.
                let _ = self.blocks.try_push(block);
            }
        }
        self
    }

    /// Writes a block to one place in each; the error is the last one if no copy could be written.
    async fn write(&self, block_in_area: u64, content: Slice) -> Result<(), IoError> {
        let writes = self.blocks.iter().map(|area| {
            let from = Gather::from(content.clone());
            self.device.write(area + block_in_area, from, true)
        });
        let results = join_all(writes).await;
        let Some(Err(error)) = results.iter().find(|result| result.is_err()) else {
            return Ok(());
        };
        tracing::warn!(%error, "a copy of a label or superblock could not be written");
        match results.iter().all(Result::is_err) {
            true => Err(*error),
            false => Ok(()),
        }
    }
}

/// Writes a superblock to its slot in all label areas of devices, durably.
///
/// # Errors
///
/// No copy could be written on one of the devices.
pub(super) async fn write_superblock(devices: &[Areas], superblock: &Superblock) -> Result<(), IoError> {
    let slot = Superblock::slot_block(superblock.checkpoint);
    let content = Slice::copy_from(&superblock.encode());
    let writes = devices.iter().map(|areas| areas.write(slot, content.clone()));
    join_all(writes).await.into_iter().collect()
}

/// Writes a superblock in the place of an earlier revision of it, durably, in one label area of a device
/// after the other: a power cut spoils one at most.
///
/// # Errors
///
/// No copy could be written.
pub(super) async fn rewrite_superblock(areas: &Areas, superblock: &Superblock) -> Result<(), IoError> {
    let slot = Superblock::slot_block(superblock.checkpoint);
    let content = Slice::copy_from(&superblock.encode());
    let mut result = Err(IoError::Gone);
    for area in &areas.blocks {
        let from = Gather::from(content.clone());
        match areas.device.write(area + slot, from, true).await {
            Ok(()) => result = Ok(()),
            Err(error) if result.is_err() => result = Err(error),
            Err(_) => {}
        }
    }
    result
}

/// Wipes the superblocks in label areas, given their first blocks, durably.
///
/// # Errors
///
/// A copy could not be written.
pub(super) async fn wipe_superblocks(
    device: &PoolDevice,
    areas: impl IntoIterator<Item = u64>,
) -> Result<(), IoError> {
    for area in areas {
        let zeros = Gather::from(Slice::zeroes(2 * BLOCK_BYTES));
        device.write(area + 1, zeros, true).await?;
    }
    Ok(())
}

/// Whether every copy of a label is what it should be.
pub(super) async fn is_label_whole(device: &PoolDevice, label: &Label) -> bool {
    for area in area_blocks(label.extents) {
        let copy = read_block(device, area).await;
        if copy.and_then(|bytes| Label::decode(&bytes)).as_ref() != Ok(label) {
            return false;
        }
    }
    true
}

/// Writes a label, durably, one copy after the other.
///
/// # Errors
///
/// A copy could not be written.
pub(super) async fn write_label(device: &PoolDevice, label: &Label) -> Result<(), IoError> {
    let content = label.encode().map_err(|_| IoError::Internal)?;
    write_label_block(device, label.extents, &content).await
}

/// Wipes the labels of a device, durably: it holds no pool any more.
///
/// # Errors
///
/// A copy could not be written.
pub(super) async fn wipe_label(device: &PoolDevice, extents: u64) -> Result<(), IoError> {
    write_label_block(device, extents, &[0; BLOCK_BYTES]).await
}

async fn write_label_block(device: &PoolDevice, extents: u64, content: &Block) -> Result<(), IoError> {
    for area in area_blocks(extents) {
        let from = Gather::from(Slice::copy_from(content));
        device.write(area, from, true).await?;
    }
    Ok(())
}
