//! What devices hold before a pool is made of them.

use std::rc::Rc;

use pollux_device::{BlockDevice, Gather};
use pollux_hugepages::Slice;
use pollux_pool::device::PoolDevice;
use pollux_pool::layout::BLOCK_BYTES;
use pollux_pool::{Pool, PoolError};

use super::Refusal;
use crate::drives::signature::{self, Content, LOOK_BYTES};

/// The end of a device in which others keep a second copy of their marks, in blocks of 4 KiB: 1 MiB.
const END_BLOCKS: u64 = 256;

/// Blocks written at a time.
const WIPE_BLOCKS: u64 = 64;

/// Refuses devices that hold something, unless it is given up. What others left on those is wiped at both
/// ends, so that nobody takes it for theirs.
///
/// # Errors
///
/// [`Refusal::Holds`]: nothing was written.
pub(super) async fn prepare(devices: &[Rc<dyn BlockDevice>], given_up: &[bool]) -> Result<(), Refusal> {
    let mut foreign = Vec::new();
    for (at, device) in devices.iter().enumerate() {
        let is_given_up = given_up.get(at).copied().unwrap_or(false);
        let holds = match Pool::label(device.clone()).await {
            Ok(label) => Some(format!("a device of the pool {:?} ({})", label.name, label.pool)),
            Err(PoolError::NoPool { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let device = PoolDevice::new(device.clone())?;
        let start = device.blocks().min((LOOK_BYTES / BLOCK_BYTES) as u64);
        let holds = match signature::content(&device.read(0, start).await?) {
            Content::Foreign(what) => {
                if is_given_up {
                    foreign.push(device);
                }
                Some(what.to_owned())
            }
            Content::Own | Content::Unmarked => holds,
        };
        if let Some(what) = holds.filter(|_| !is_given_up) {
            return Err(Refusal::Holds { device: at, what });
        }
    }
    for device in foreign {
        wipe(&device).await?;
    }
    Ok(())
}

async fn wipe(device: &PoolDevice) -> Result<(), PoolError> {
    let blocks = device.blocks();
    let start = 0..blocks.min((LOOK_BYTES / BLOCK_BYTES) as u64);
    let end = blocks.saturating_sub(END_BLOCKS).max(start.end)..blocks;
    for range in [start, end] {
        for block in range.clone().step_by(WIPE_BLOCKS as usize) {
            let count = WIPE_BLOCKS.min(range.end - block);
            let zeros = Slice::zeroes(count as usize * BLOCK_BYTES);
            device.write(block, Gather::from(zeros), true).await?;
        }
    }
    Ok(())
}
