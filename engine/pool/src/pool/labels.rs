//! Reading and writing the label areas of devices.

use futures_util::future::join_all;
use pollux_device::{Gather, IoError};
use pollux_hugepages::Slice;
use uuid::Uuid;

use crate::device::PoolDevice;
use crate::layout::label::{Label, area_blocks};
use crate::layout::superblock::Superblock;
use crate::layout::{Block, EXTENT_BLOCKS, LayoutError};

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
            Ok(label)
                if found
                    .as_ref()
                    .is_none_or(|found| label.generation > found.generation) =>
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
                    if found
                        .as_ref()
                        .is_none_or(|found| superblock.checkpoint > found.checkpoint)
                    {
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

/// Writes a block to one place in each label area of devices, each with its extents.
///
/// The error is of the last one that failed; it matters only when all of a device did.
async fn write_areas(
    devices: &[(PoolDevice, u64)],
    block_in_area: u64,
    content: &Block,
) -> Result<(), IoError> {
    let bytes = Slice::copy_from(content);
    let writes = devices.iter().flat_map(|(device, extents)| {
        let bytes = bytes.clone();
        area_blocks(*extents).map(|area| {
            let from = Gather::from(bytes.clone());
            async move { device.write(area + block_in_area, from, true).await }
        })
    });
    let results = join_all(writes).await;
    let mut outcome = Ok(());
    for copies in results.chunks(area_blocks(0).len()) {
        if let Some(Err(error)) = copies.iter().find(|result| result.is_err()) {
            tracing::warn!(%error, "a copy of a label or superblock could not be written");
            if copies.iter().all(Result::is_err) {
                outcome = Err(*error);
            }
        }
    }
    outcome
}

/// Writes a superblock to its slot in all label areas, durably.
///
/// # Errors
///
/// No copy could be written on one of the devices.
pub(super) async fn write_superblock(
    devices: &[(PoolDevice, u64)],
    superblock: &Superblock,
) -> Result<(), IoError> {
    let slot = Superblock::slot_block(superblock.checkpoint);
    write_areas(devices, slot, &superblock.encode()).await
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
    write_label_block(device, extents, &[0; crate::layout::BLOCK_BYTES]).await
}

async fn write_label_block(device: &PoolDevice, extents: u64, content: &Block) -> Result<(), IoError> {
    for area in area_blocks(extents) {
        let from = Gather::from(Slice::copy_from(content));
        device.write(area, from, true).await?;
    }
    Ok(())
}
