//! A device comes to a pool.
//!
//! 1. Old superblocks on it are wiped, and it gets its label. That names a device that no superblock of the
//!    pool knows: an import that is given it says so, and the device can be added again.
//! 2. A checkpoint whose superblock knows it. It goes to the devices that were there before first, then to
//!    the new one: so those that were there know of the new one if it knows of itself.
//! 3. Data and pages go to it. Not before: records of the journal that name a device that no superblock knows
//!    could not be replayed.
//!
//! A pool with one copy of the journal gets a second one on the new device, as long as the first. All blocks
//! from the cut of that checkpoint on are in both, and no import with the new device needs an older one.

use std::rc::Rc;

use pollux_device::BlockDevice;

use super::super::create::{JOURNAL_FIRST, JOURNAL_PART_MAX, check_device, empty_space, random_uuid};
use super::super::labels::{self, extents_of};
use super::super::{Pool, PoolError};
use crate::device::PoolDevice;
use crate::journal::{COPIES_MAX, JournalCopy};
use crate::layout::label::{Features, Label, area_blocks};
use crate::layout::superblock::{DeviceEntry, DeviceState};
use crate::layout::{DEVICES_MAX, EXTENT_BLOCKS};

impl Pool {
    /// Adds a device, whose content is lost, while volumes are in use; its number in the pool. What belongs
    /// to another pool is taken only with `overwrite`. It is added also when nobody waits for that any more.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: the device is no part of the pool then.
    pub async fn add_device(
        self: &Rc<Self>,
        device: Rc<dyn BlockDevice>,
        overwrite: bool,
    ) -> Result<u8, PoolError> {
        let changing = self.change_devices().await?;
        let adding = async move |pool: Rc<Self>| pool.add(device, overwrite).await;
        changing.to_end(adding).await
    }

    async fn add(self: &Rc<Self>, device: Rc<dyn BlockDevice>, overwrite: bool) -> Result<u8, PoolError> {
        let number = self.free_number()?;
        let device = check_device(0, device)?;
        self.check_alignment(&device)?;
        self.prepare_device(&device, overwrite).await?;
        let label = self.new_label(number, &device);
        labels::write_label(&device, &label).await?;
        self.take_in(number, device, label)?;
        self.checkpoint().await?;
        self.state.borrow_mut().space.set_draining(number, false);
        tracing::info!(pool = %self.name, device = number, "a device was added");
        Ok(number)
    }

    /// The lowest number that no device has.
    fn free_number(&self) -> Result<u8, PoolError> {
        let state = self.state.borrow();
        let absent = |entry: &DeviceEntry| entry.state == DeviceState::Absent;
        let number = state.members.iter().position(absent);
        let number = number.unwrap_or(state.members.len());
        match u8::try_from(number) {
            Ok(number) if usize::from(number) < DEVICES_MAX => Ok(number),
            _ => Err(PoolError::DeviceCount {
                found: DEVICES_MAX + 1,
            }),
        }
    }

    /// Sees to it that a device is none of a pool, and wipes what an earlier pool left in its label areas.
    ///
    /// # Errors
    ///
    /// [`PoolError::Member`], [`PoolError::InUse`]: nothing was written.
    pub(in crate::pool) async fn prepare_device(
        &self,
        device: &PoolDevice,
        overwrite: bool,
    ) -> Result<(), PoolError> {
        let label = labels::read_label(device).await.ok();
        if let Some(label) = &label {
            let number = {
                let state = self.state.borrow();
                let member =
                    |entry: &DeviceEntry| entry.state != DeviceState::Absent && entry.id == label.device;
                state.members.iter().position(member)
            };
            // Else it is left of an addition that was cut short, or of a device that left the pool.
            let is_ours = label.pool == self.uuid;
            if let Some(number) = number.filter(|_| is_ours) {
                return Err(PoolError::Member { number });
            }
            if !is_ours && !overwrite {
                return Err(PoolError::InUse {
                    device: 0,
                    pool: label.name.clone(),
                    uuid: label.pool,
                });
            }
        }
        let extents = extents_of(device);
        if let Some(label) = label {
            labels::wipe_label(device, label.extents.min(extents)).await?;
        }
        labels::wipe_superblocks(device, area_blocks(extents)).await?;
        Ok(())
    }

    /// The label of a device that is new in the pool.
    fn new_label(&self, number: u8, device: &PoolDevice) -> Label {
        let extents = extents_of(device);
        let copies = self.journal.copies();
        let wanted = copies.first().filter(|_| copies.len() < COPIES_MAX);
        let wanted = wanted.map_or(0, |copy| copy.ring.blocks / EXTENT_BLOCKS as u64);
        let fits = wanted <= extents / JOURNAL_PART_MAX;
        Label {
            pool: self.uuid,
            device: random_uuid(),
            features: self.features(),
            generation: 1,
            extents,
            journal_first: JOURNAL_FIRST,
            journal_extents: if fits { wanted } else { 0 },
            device_number: number.into(),
            devices: self.devices().len() as u16 + 1,
            name: self.name.clone(),
        }
    }

    /// What the pool uses beyond version 1: all labels say the same.
    pub(in crate::pool) fn features(&self) -> Features {
        let labels = self.labels.borrow();
        labels
            .iter()
            .flatten()
            .fold(Features::default(), |all, label| Features {
                compatible: all.compatible | label.features.compatible,
                read_only_compatible: all.read_only_compatible | label.features.read_only_compatible,
                incompatible: all.incompatible | label.features.incompatible,
            })
    }

    /// The next checkpoint has a device more. In one step.
    fn take_in(&self, number: u8, device: PoolDevice, label: Label) -> Result<(), PoolError> {
        let space = empty_space(number, &label)?;
        let entry = DeviceEntry {
            id: label.device,
            extents: label.extents,
            state: DeviceState::InUse,
            allocation: None,
        };
        let at = usize::from(number);
        {
            let mut state = self.state.borrow_mut();
            // It takes nothing until the checkpoint is durable: no record may name what is on it before.
            state.space.insert(number, space, true);
            state.allocation.insert(number, None);
            match state.members.get_mut(at) {
                Some(place) => *place = entry,
                None => state.members.push(entry),
            }
        }
        if let Some(ring) = label.journal_ring() {
            let device = device.clone();
            self.journal.add_copy(JournalCopy { device, ring });
        }
        put_at(&mut self.devices.borrow_mut(), at, device);
        put_at(&mut self.labels.borrow_mut(), at, label);
        self.journal
            .set_data_devices(self.devices.borrow().iter().flatten().cloned().collect());
        Ok(())
    }
}

fn put_at<T>(list: &mut Vec<Option<T>>, at: usize, value: T) {
    if list.len() <= at {
        list.resize_with(at + 1, || None);
    }
    if let Some(place) = list.get_mut(at) {
        *place = Some(value);
    }
}
