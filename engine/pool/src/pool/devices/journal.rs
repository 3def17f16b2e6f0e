//! A copy of the journal goes from a device that leaves to another one.
//!
//! The place is taken in memory first, then the label says that a copy is there, then blocks go to it too,
//! and a checkpoint has the place as used. An import marks it as used if the label says so, whatever the
//! checkpoint says; what is in it before the first block counts for nothing, since the other copy has all.

use std::rc::Rc;

use super::super::{Pool, PoolError};
use crate::journal::{COPIES_MAX, JournalCopy};
use crate::layout::superblock::DeviceState;
use crate::layout::{EXTENT_BLOCKS, ExtentId};

impl Pool {
    /// Sees to it that the journal does not need a device, with two copies on others if there is room.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoRoomForJournal`] if the only copy cannot be made elsewhere.
    pub(super) async fn move_journal(self: &Rc<Self>, leaving: u8) -> Result<(), PoolError> {
        let device = self.device(leaving)?;
        let copies = self.journal.copies();
        let Some(known) = copies.first() else {
            return Ok(());
        };
        let extents = known.ring.blocks / EXTENT_BLOCKS as u64;
        let elsewhere = copies.iter().filter(|copy| !copy.device.is_same(&device)).count();
        if elsewhere == COPIES_MAX {
            return Ok(());
        }
        let open = self.devices().into_iter();
        let open = open.filter(|status| {
            status.number != leaving && status.state == DeviceState::InUse && !status.has_journal
        });
        for status in open {
            if self
                .add_journal(status.number, extents, elsewhere, leaving)
                .await?
            {
                return Ok(());
            }
        }
        if elsewhere == 0 {
            return Err(PoolError::NoRoomForJournal { extents });
        }
        Ok(())
    }

    /// The copy of the journal on a device is used no more, if there is another one. The device says so
    /// first.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoRoomForJournal`] if there is no other one.
    pub(super) async fn give_up_journal(self: &Rc<Self>, number: u8) -> Result<(), PoolError> {
        let device = self.device(number)?;
        if !self
            .journal
            .copies()
            .iter()
            .any(|copy| copy.device.is_same(&device))
        {
            return Ok(());
        }
        // Superblocks that are written from now on do not name it.
        let before = self.uncounted.get();
        self.uncounted.set(before | 1 << number);
        let discounted = self.discount_copy(number).await;
        self.uncounted.set(before);
        discounted?;
        let copies = self.journal.copies();
        if copies.iter().all(|copy| copy.device.is_same(&device)) {
            let extents = copies
                .first()
                .map_or(0, |copy| copy.ring.blocks / EXTENT_BLOCKS as u64);
            return Err(PoolError::NoRoomForJournal { extents });
        }
        self.journal.remove_copy(&device);
        Ok(())
    }

    /// Makes a copy of the journal on a device, if it has room for it. Whether it has.
    async fn add_journal(
        self: &Rc<Self>,
        number: u8,
        extents: u64,
        elsewhere: usize,
        leaving: u8,
    ) -> Result<bool, PoolError> {
        let known = self.labels.borrow().get(usize::from(number)).cloned().flatten();
        let known = known.ok_or(PoolError::NoDevice { number })?;
        if known.journal_extents == 0 {
            let first = {
                let mut state = self.state.borrow_mut();
                let space = state.space.device_mut(number);
                let space = space.ok_or(PoolError::NoDevice { number })?;
                let Some(first) = space.find_run(extents) else {
                    return Ok(false);
                };
                for extent in first..first + extents {
                    space.hold_extent(ExtentId::new(number, extent))?;
                }
                first
            };
            // With an error of the device the place stays taken until the next import, as the label may
            // name it.
            self.change_label(number, |label| {
                (label.journal_first, label.journal_extents) = (first, extents);
            })
            .await?;
        } else if known.journal_extents < extents {
            return Ok(false);
        }
        let label = self.labels.borrow().get(usize::from(number)).cloned().flatten();
        let label = label.ok_or(PoolError::NoDevice { number })?;
        {
            let mut state = self.state.borrow_mut();
            for extent in label.journal_first..label.journal_first + label.journal_extents {
                state.space.record_extent(ExtentId::new(number, extent));
            }
        }
        if elsewhere + 1 == COPIES_MAX {
            // The other one has everything.
            self.give_up_journal(leaving).await?;
        }
        let device = self.device(number)?;
        if let Some(ring) = label.journal_ring() {
            self.journal.add_copy(JournalCopy { device, ring });
        }
        self.checkpoint().await?;
        Ok(true)
    }
}
