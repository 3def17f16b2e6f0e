//! Which copies of the journal count: those that hold all that was ever durable.
//!
//! A copy that misses a block is given up, and the pool goes on with the other one. From then on its device
//! knows an older pool. That shows as long as the other device is there too; where it is not, the
//! superblock of the device itself has to tell. So:
//!
//! - A superblock names the devices whose copies have all blocks from where its journal begins.
//! - Before anything is durable on the other copy alone, the superblock of a device whose copy is given up
//!   says so, durably. It is written again in its place, one label area after the other, with a higher
//!   revision. If that fails nothing becomes durable any more.
//! - The same goes for a device that leaves, or is replaced, before any superblock is without it.
//! - A superblock is written again only while no checkpoint writes one, and the other way round.

use std::rc::Rc;

use arrayvec::ArrayVec;
use pollux_device::IoError;

use super::{Pool, labels};
use crate::device::PoolDevice;
use crate::journal::{COPIES_MAX, JournalCopy};
use crate::layout::DEVICES_MAX;
use crate::layout::label::Label;
use crate::layout::superblock::Superblock;

const _: () = assert!(DEVICES_MAX <= u32::BITS as usize, "a bit for each device");

/// The bit of a device.
fn bit_of(number: u8) -> u32 {
    1_u32.checked_shl(number.into()).unwrap_or(0)
}

/// Keeps superblocks from being written by others, until it is dropped.
pub(super) struct SuperblockHold(Rc<Pool>);

impl Drop for SuperblockHold {
    fn drop(&mut self) {
        self.0.superblock_held.set(false);
        self.0.superblock_free.wake();
    }
}

impl Pool {
    /// Waits until nobody writes a superblock.
    pub(super) async fn hold_superblock(self: &Rc<Self>) -> SuperblockHold {
        self.superblock_free
            .until(|| (!self.superblock_held.replace(true)).then_some(()))
            .await;
        SuperblockHold(self.clone())
    }

    /// The devices whose copies of the journal are in use and count, a bit for each number.
    pub(super) fn counted_copies(&self) -> u32 {
        let devices = self.devices.borrow();
        let copies = self.journal.copies();
        let has_copy = |device: &PoolDevice| copies.iter().any(|copy| copy.device.is_same(device));
        let numbered = (0u8..).zip(devices.iter());
        let counted = numbered.filter(|(_, device)| device.as_ref().is_some_and(has_copy));
        let bits = counted.fold(0, |bits, (number, _)| bits | bit_of(number));
        bits & !self.uncounted.get()
    }

    /// The copy of the journal on a device is given up: has its superblock say so, durably, unless that is
    /// what it says.
    ///
    /// # Errors
    ///
    /// No place of the superblock could be written, or the pool has stopped: the device may still say that
    /// its copy counts.
    pub(super) async fn discount_copy(self: &Rc<Self>, number: u8) -> Result<(), IoError> {
        let _hold = self.hold_superblock().await;
        // After a checkpoint that failed there may be a newer one on some devices.
        if let Some(error) = self.state.borrow().stopped {
            return Err(error);
        }
        let mut superblock = self.state.borrow().superblock.clone();
        if superblock.journal_copies & bit_of(number) == 0 {
            return Ok(());
        }
        superblock.journal_copies &= !bit_of(number);
        superblock.revision += 1;
        let areas = self.label_areas_of(number).ok_or(IoError::Gone)?;
        labels::rewrite_superblock(&areas, &superblock).await?;
        self.state.borrow_mut().superblock = superblock;
        tracing::warn!(pool = %self.name, device = number, "a copy of the journal is given up");
        Ok(())
    }

    /// A copy of the journal missed a block.
    pub(super) async fn copy_lost(self: &Rc<Self>, device: PoolDevice) -> Result<(), IoError> {
        let number = {
            let devices = self.devices.borrow();
            let is_it =
                |known: &Option<PoolDevice>| known.as_ref().is_some_and(|known| known.is_same(&device));
            devices.iter().position(is_it)
        };
        match number.and_then(|number| u8::try_from(number).ok()) {
            Some(number) => self.discount_copy(number).await,
            // It is no part of the pool any more.
            None => Ok(()),
        }
    }
}

/// The copies of the journal that an import finds.
pub(super) struct FoundCopies {
    /// Those that are read.
    pub(super) counted: ArrayVec<JournalCopy, COPIES_MAX>,
    /// Those that are written from then on.
    pub(super) all: ArrayVec<JournalCopy, COPIES_MAX>,
}

/// The copies of the journal on the devices that are there, as labels say where they are and the superblock
/// which of them count. A superblock that says nothing of that is of an earlier program: all of them do then.
pub(super) fn found_copies(
    devices: &[Option<PoolDevice>],
    labels: &[Option<Label>],
    superblock: &Superblock,
) -> FoundCopies {
    let is_known = superblock.journal_copies != 0;
    let mut counted = ArrayVec::new();
    let mut others = ArrayVec::<_, COPIES_MAX>::new();
    for (number, (device, label)) in (0u8..).zip(devices.iter().zip(labels)) {
        let (Some(device), Some(mut ring)) = (device, label.as_ref().and_then(Label::journal_ring)) else {
            continue;
        };
        if is_known && superblock.journal_blocks > 0 {
            if ring.blocks < superblock.journal_blocks {
                continue;
            }
            ring.blocks = superblock.journal_blocks;
        }
        let device = device.clone();
        let list = match !is_known || superblock.journal_copies & bit_of(number) != 0 {
            true => &mut counted,
            false => &mut others,
        };
        // More than are used are of no use.
        let _ = list.try_push(JournalCopy { device, ring });
    }
    let all = counted.iter().chain(&others).take(COPIES_MAX).cloned().collect();
    FoundCopies { counted, all }
}
