//! A device leaves a pool: what is on it goes to the others first.
//!
//! 1. The labels say that records of moves may be in the journal: a program that does not know them must not
//!    open the pool.
//! 2. A checkpoint in which the device is *draining*: it takes nothing new. That outlives a crash; who
//!    wants to go on calls again, or calls it off.
//! 3. A copy of the journal on it is made on another device, if one has room.
//! 4. Everything on it moves, see [`moving`](super::moving), until the allocation state has nothing there, in
//!    a checkpoint that is durable.
//! 5. A checkpoint without the device, and without its allocation state.
//! 6. Its label is wiped. With or without: no superblock of the pool knows it any more.
//! 7. The labels of the others say that there are no records of moves.

use std::rc::Rc;

use pollux_device::IoError;

use super::super::labels;
use super::super::{Pool, PoolError};
use super::ChangingDevices;
use super::moving::{Unreadable, Wanted};
use crate::layout::EXTENT_BYTES;
use crate::layout::label::MOVES;
use crate::layout::superblock::{DeviceEntry, DeviceState};

/// Rounds over everything before it is given up: each is for what was written to the device before it took
/// nothing new.
const ROUNDS_MAX: u32 = 1000;

/// How far a device is with giving away what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// Bytes that were on it at first.
    pub total_bytes: u64,
    /// Bytes that are still on it, or were moved away since the last checkpoint.
    pub left_bytes: u64,
}

/// A device has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Blocks that could not be read, and were given up since it was asked for.
    pub lost_blocks: u64,
}

impl Pool {
    /// Moves everything from a device to the others, and takes it out of the pool, while volumes are in use;
    /// `tell` is told how that gets on. What was begun before a crash goes on; so does it after an error.
    /// Blocks that cannot be read keep the device, or are lost and let it go.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoDevice`], [`PoolError::LastDevice`], [`PoolError::NoRoomToDrain`]: nothing was done.
    /// [`PoolError::CannotCopy`]: some blocks cannot be read, and are to stay; all others were moved.
    /// With others the device stays in the pool and takes nothing new: call again, or
    /// [`Pool::cancel_drain`].
    pub async fn drain_device(
        self: &Rc<Self>,
        number: u8,
        unreadable: Unreadable,
        tell: &mut dyn FnMut(DrainProgress),
    ) -> Result<Drained, PoolError> {
        let changing = self.change_devices().await?;
        let entry = self.member(number)?;
        self.check_drainable(number)?;
        if entry.state == DeviceState::InUse {
            changing.to_end(async |pool| pool.label_all(MOVES).await).await?;
            self.set_draining(number, true).await?;
        }
        // What leaves devices named that are not there, or the other way round, comes to its end also when
        // nobody waits for it any more.
        let moving = async move |pool: Rc<Self>| pool.move_journal(number).await;
        changing.to_end(moving).await?;
        let mut progress = DrainProgress {
            total_bytes: self.used_extents(number) * EXTENT_BYTES,
            left_bytes: 0,
        };
        let mut drained = Drained::default();
        let mut empty = false;
        for _ in 0..ROUNDS_MAX {
            let mut told = |lost: u32| {
                drained.lost_blocks += u64::from(lost);
                progress.left_bytes = self.used_extents(number) * EXTENT_BYTES;
                tell(progress);
            };
            let wanted = Wanted::Emptied {
                device: number,
                unreadable,
            };
            let moved = self.move_all(&changing, wanted, &mut told).await;
            let moved = match moved {
                Ok(()) | Err(PoolError::CannotCopy { .. }) => moved,
                Err(error) => return Err(error),
            };
            // What was freed is gone after two at most: one may have begun before.
            self.checkpoint().await?;
            told(0);
            moved?;
            empty = self.used_extents(number) == 0;
            if empty {
                break;
            }
            pollux_reactor::sleep(self.options.commit_interval).await;
        }
        if !empty {
            return Err(PoolError::Device(IoError::ResourceShortage));
        }
        let leaving = async move |pool: Rc<Self>| {
            pool.let_go(number).await?;
            pool.forbid_moves().await
        };
        changing.to_end(leaving).await?;
        Ok(drained)
    }

    /// A device that is being drained takes data again.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn cancel_drain(self: &Rc<Self>, number: u8) -> Result<(), PoolError> {
        let changing = self.change_devices().await?;
        self.member(number)?;
        let calling_off = async move |pool: Rc<Self>| {
            pool.set_draining(number, false).await?;
            pool.forbid_moves().await
        };
        changing.to_end(calling_off).await
    }

    /// Sees to it that the two copies of each page of metadata are on two devices, where there are two: after
    /// a device was added to a pool that had one.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: what was not done yet is done when it is called again.
    pub async fn spread_metadata(self: &Rc<Self>) -> Result<(), PoolError> {
        let changing = self.change_devices().await?;
        let open = self.devices();
        if open
            .iter()
            .filter(|device| device.state == DeviceState::InUse)
            .count()
            < 2
        {
            return Ok(());
        }
        self.move_all(&changing, Wanted::Spread, &mut |_| {}).await?;
        self.checkpoint().await
    }

    pub(super) fn member(&self, number: u8) -> Result<DeviceEntry, PoolError> {
        let state = self.state.borrow();
        let entry = state.members.get(usize::from(number)).copied();
        let entry = entry.filter(|entry| entry.state != DeviceState::Absent);
        entry.ok_or(PoolError::NoDevice { number })
    }

    /// Whether other devices can take what a device has.
    fn check_drainable(&self, number: u8) -> Result<(), PoolError> {
        let needed = self.used_extents(number);
        let state = self.state.borrow();
        let others = state.members.iter().enumerate();
        let others = others
            .filter(|(other, entry)| *other != usize::from(number) && entry.state == DeviceState::InUse);
        if others.count() == 0 {
            return Err(PoolError::LastDevice { number });
        }
        let free = state.space.free_extents_without(number);
        let free = free.saturating_sub(state.table.set_aside());
        if free < needed {
            return Err(PoolError::NoRoomToDrain {
                number,
                used_bytes: needed * EXTENT_BYTES,
                free_bytes: free * EXTENT_BYTES,
            });
        }
        Ok(())
    }

    /// Extents of a device that hold data or pages, or did until the last checkpoint.
    fn used_extents(&self, number: u8) -> u64 {
        let fixed = self.fixed_extents(number);
        let state = self.state.borrow();
        let taken = state
            .space
            .device(number)
            .map_or(0, |space| space.taken_extents());
        taken.saturating_sub(fixed.len() as u64)
    }

    async fn set_draining(self: &Rc<Self>, number: u8, draining: bool) -> Result<(), PoolError> {
        {
            let mut state = self.state.borrow_mut();
            let entry = state.members.get_mut(usize::from(number));
            entry.ok_or(PoolError::NoDevice { number })?.state = match draining {
                true => DeviceState::Draining,
                false => DeviceState::InUse,
            };
            state.space.set_draining(number, draining);
        }
        self.checkpoint().await
    }

    /// Whether all labels have an incompatible feature.
    pub(super) fn all_labels_have(&self, feature: u64) -> bool {
        let labels = self.labels.borrow();
        let mut labels = labels.iter().flatten();
        labels.all(|label| label.features.incompatible & feature != 0)
    }

    /// Has all labels say that an incompatible feature may be in use.
    pub(super) async fn label_all(&self, feature: u64) -> Result<(), PoolError> {
        if self.all_labels_have(feature) {
            return Ok(());
        }
        for device in self.devices() {
            self.change_label(device.number, |label| label.features.incompatible |= feature)
                .await?;
        }
        Ok(())
    }

    /// Once a checkpoint is durable that was begun after the last move: has all labels say that there are
    /// none.
    async fn forbid_moves(&self) -> Result<(), PoolError> {
        let devices = self.devices();
        if devices.iter().any(|device| device.state == DeviceState::Draining) {
            return Ok(());
        }
        for device in devices {
            self.change_label(device.number, |label| label.features.incompatible &= !MOVES)
                .await?;
        }
        Ok(())
    }

    /// Moves what is wanted of all trees.
    ///
    /// # Errors
    ///
    /// [`PoolError::CannotCopy`] if blocks cannot be read and are to stay: everything else was moved.
    async fn move_all(
        self: &Rc<Self>,
        changing: &ChangingDevices,
        wanted: Wanted,
        moved: &mut impl FnMut(u32),
    ) -> Result<(), PoolError> {
        let ids = self.state.borrow().all_ids();
        let mut unread = Ok(());
        for id in ids {
            match self.move_map(changing, id, wanted, moved).await {
                Err(error @ PoolError::CannotCopy { .. }) => unread = unread.and(Err(error)),
                other => other?,
            }
        }
        self.write_state_again(wanted).await?;
        unread
    }

    /// Takes a device that has nothing out of the pool.
    async fn let_go(self: &Rc<Self>, number: u8) -> Result<(), PoolError> {
        let device = self.device(number)?;
        let at = usize::from(number);
        self.give_up_journal(number).await?;
        // One that is being written has this device, and what is used of it.
        let no_checkpoint = self.hold_checkpoints().await?;
        self.with_pages(|state| {
            state.release_allocation(number)?;
            let nothing = DeviceEntry {
                id: uuid::Uuid::nil(),
                extents: 0,
                state: DeviceState::Absent,
                allocation: None,
            };
            if let Some(entry) = state.members.get_mut(at) {
                *entry = nothing;
            }
            while state
                .members
                .last()
                .is_some_and(|last| last.state == DeviceState::Absent)
            {
                state.members.pop();
            }
            state.space.remove(number);
            self.journal.remove_copy(&device);
            Ok(())
        })
        .await?;
        drop(no_checkpoint);
        self.checkpoint().await?;
        // No superblock names it any more, and nobody uses it.
        if let Some(place) = self.devices.borrow_mut().get_mut(at) {
            *place = None;
        }
        let label = self.labels.borrow_mut().get_mut(at).and_then(Option::take);
        self.journal
            .set_data_devices(self.devices.borrow().iter().flatten().cloned().collect());
        if let Some(label) = label
            && let Err(error) = labels::wipe_label(&device, label.extents).await
        {
            tracing::warn!(pool = %self.name, device = number, %error, "a removed device keeps its label");
        }
        tracing::info!(pool = %self.name, device = number, "a device was removed");
        Ok(())
    }
}
