//! A device that has become larger.
//!
//! Its last two label areas move to the new end:
//!
//! 1. In memory the device has its new size; the extents of the areas at the new end are used, those of the
//!    old ones are free in what goes to the device, and held here so that nobody takes them. Nor does anybody
//!    take an extent past the old end: no record of the journal may name one before step 2 is done.
//! 2. A checkpoint, whose superblock goes to the areas of both sizes. From then on the device has its new
//!    size, whatever its labels say: an import that finds them behind goes on with step 3.
//! 3. The labels, one copy after the other, the new end first. An import finds the superblock in the areas of
//!    either size.
//! 4. The extents of the old areas can be used.

use std::rc::Rc;

use super::super::create::reserve_extents;
use super::super::labels::{self, extents_of};
use super::super::{Pool, PoolError, State};
use crate::layout::label::{DEVICE_EXTENTS_MAX, Label};
use crate::layout::superblock::DeviceState;
use crate::layout::{EXTENT_BLOCKS, EXTENT_BYTES, ExtentId};

/// A device that the pool uses more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// Its number in the pool.
    pub number: u8,
    /// Bytes that the pool used before.
    pub before_bytes: u64,
    /// Bytes that it uses now.
    pub bytes: u64,
}

/// The extents of the label areas at the end of a device.
fn end_areas(extents: u64) -> [u64; 2] {
    [extents.saturating_sub(2), extents.saturating_sub(1)]
}

impl Pool {
    /// Uses all of devices that have become larger; those that have. Volumes go on meanwhile. That is done
    /// also when nobody waits for it any more.
    ///
    /// # Errors
    ///
    /// [`PoolError`]. With an error of a device what was not done yet is done by the next import.
    pub async fn grow(self: &Rc<Self>) -> Result<Vec<Grown>, PoolError> {
        let changing = self.change_devices().await?;
        changing.to_end(async |pool| pool.use_more().await).await
    }

    async fn use_more(self: &Rc<Self>) -> Result<Vec<Grown>, PoolError> {
        let mut grown = Vec::new();
        for status in self.devices() {
            let device = self.device(status.number)?;
            let before = status.size_bytes / EXTENT_BYTES;
            let extents = extents_of(&device).min(DEVICE_EXTENTS_MAX);
            if status.state != DeviceState::InUse || extents <= before {
                continue;
            }
            let fresh = end_areas(extents).into_iter();
            let fresh = fresh.filter(|extent| !end_areas(before).contains(extent));
            labels::wipe_superblocks(&device, fresh.map(|extent| extent * EXTENT_BLOCKS as u64)).await?;
            let made = self.state.borrow_mut().begin_growth(status.number, extents);
            made?;
            grown.push(Grown {
                number: status.number,
                before_bytes: status.size_bytes,
                bytes: extents * EXTENT_BYTES,
            });
        }
        if !grown.is_empty() {
            self.checkpoint().await?;
            for Grown { number, bytes, .. } in &grown {
                let mut state = self.state.borrow_mut();
                if let Some(space) = state.space.device_mut(*number) {
                    space.use_all(reserve_extents(bytes / EXTENT_BYTES));
                }
            }
            self.finish_growth().await?;
            for Grown { number, bytes, .. } in &grown {
                tracing::info!(pool = %self.name, device = number, bytes, "the pool uses more of a device");
            }
        }
        Ok(grown)
    }

    /// Once a superblock says what size devices have: brings their labels after, and frees their old label
    /// areas.
    ///
    /// # Errors
    ///
    /// [`PoolError::Device`].
    pub(in crate::pool) async fn finish_growth(&self) -> Result<(), PoolError> {
        let growing: Vec<(u8, u64)> = {
            let state = self.state.borrow();
            let sizes = state.sizes_before.iter();
            sizes.map(|(number, before)| (*number, *before)).collect()
        };
        for (number, before) in growing {
            let extents = {
                let state = self.state.borrow();
                state.space.device(number).map_or(0, |space| space.extents())
            };
            self.change_label(number, |label| label.extents = extents).await?;
            let mut state = self.state.borrow_mut();
            state.sizes_before.remove(&number);
            for extent in end_areas(before) {
                if !end_areas(extents).contains(&extent) {
                    state.space.return_extent(ExtentId::new(number, extent));
                }
            }
        }
        Ok(())
    }

    /// Writes a label that differs from the one that a device has, and is newer.
    ///
    /// # Errors
    ///
    /// [`PoolError::Device`].
    pub(in crate::pool) async fn change_label(
        &self,
        number: u8,
        change: impl FnOnce(&mut Label),
    ) -> Result<(), PoolError> {
        let device = self.device(number)?;
        let known = self.labels.borrow().get(usize::from(number)).cloned().flatten();
        let mut label = known.ok_or(PoolError::NoDevice { number })?;
        change(&mut label);
        label.generation += 1;
        labels::write_label(&device, &label).await?;
        if let Some(place) = self.labels.borrow_mut().get_mut(usize::from(number)) {
            *place = Some(label);
        }
        Ok(())
    }
}

impl State {
    /// A device has so many extents from the next checkpoint on.
    fn begin_growth(&mut self, number: u8, extents: u64) -> Result<(), PoolError> {
        let entry = self.members.get_mut(usize::from(number));
        let entry = entry.ok_or(PoolError::NoDevice { number })?;
        let before = std::mem::replace(&mut entry.extents, extents);
        self.space.grow(number, extents);
        self.hold_old_areas(number, before, extents)?;
        for extent in end_areas(extents) {
            if !end_areas(before).contains(&extent) {
                self.space.mark_extent(ExtentId::new(number, extent), false)?;
            }
        }
        Ok(())
    }

    /// The label areas that a device had with fewer extents hold superblocks until its labels say what size
    /// it has.
    ///
    /// # Errors
    ///
    /// [`PoolError::State`] if they are used for something else.
    pub(in crate::pool) fn hold_old_areas(
        &mut self,
        number: u8,
        before: u64,
        extents: u64,
    ) -> Result<(), PoolError> {
        self.sizes_before.insert(number, before);
        for extent in end_areas(before) {
            if !end_areas(extents).contains(&extent)
                && let Some(space) = self.space.device_mut(number)
            {
                space.hold_extent(ExtentId::new(number, extent))?;
            }
        }
        Ok(())
    }
}
