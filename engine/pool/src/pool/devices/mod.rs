//! The devices of a pool, changed while it is in use.
//!
//! Which devices a pool has is in its superblock, and so changes with a checkpoint: as a whole, or not at
//! all. What a change has to do before or after that is done in an order in which a power cut leaves the
//! pool importable at each step, and goes on, or begins anew, with the next import or call.
//!
//! Invariants:
//! - One change at a time.
//! - Of the devices that a superblock names, those that the one before named are written first, then one that
//!   it names no more, and new ones last: so no device is ever alone in knowing that it belongs to the pool.
//! - While a device is larger than its labels say, superblocks are in the label areas of both sizes, and the
//!   old areas are used for nothing else.

mod add;
mod closed;
mod drain;
mod grow;
mod journal;
mod moving;
mod replace;

use std::rc::Rc;

use pollux_device::IoError;
use pollux_reactor::Unabandoned;
use uuid::Uuid;

use super::labels::{self, Areas, extents_of};
use super::{Pool, PoolError};
use crate::device::PoolDevice;
use crate::layout::EXTENT_BYTES;
use crate::layout::superblock::{DeviceState, Superblock};

pub use drain::{DrainProgress, Drained};
pub use grow::Grown;
pub use moving::Unreadable;
pub(super) use replace::Successor;
pub use replace::{ReplaceProgress, Replaced};

/// A device of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its number in the pool.
    pub number: u8,
    /// Its UUID.
    pub uuid: Uuid,
    /// What becomes of it.
    pub state: DeviceState,
    /// Bytes of it that the pool uses.
    pub size_bytes: u64,
    /// Bytes that it has: more than the pool uses if it has become larger.
    pub device_bytes: u64,
    /// Bytes that are free, or will be after the next checkpoints.
    pub free_bytes: u64,
    /// It has a copy of the journal.
    pub has_journal: bool,
}

/// Keeps others from changing devices until it is dropped, and all that was begun has come to its end.
pub(super) struct ChangingDevices(Rc<Changing>);

/// A change, or what is left of it.
struct Changing(Rc<Pool>);

impl ChangingDevices {
    /// A part of the change, done with the pool, which comes to its end also when nobody waits for it any
    /// more; no other change begins before.
    pub(super) fn to_end<T: 'static>(
        &self,
        part: impl AsyncFnOnce(Rc<Pool>) -> T + 'static,
    ) -> Unabandoned<T> {
        let changing = self.0.clone();
        Unabandoned::new(async move {
            let done = part(changing.0.clone()).await;
            drop(changing);
            done
        })
    }
}

impl Drop for ChangingDevices {
    fn drop(&mut self) {
        self.0.0.change_is_ending.set(true);
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.changing_devices.set(false);
        self.0.change_is_ending.set(false);
        self.0.change_ended.wake();
    }
}

impl Pool {
    /// The devices of the pool, by number.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let journals = self.journal.copies();
        let state = self.state.borrow();
        let numbered = (0u8..).zip(&state.members);
        numbered
            .filter(|(_, entry)| entry.state != DeviceState::Absent)
            .filter_map(|(number, entry)| {
                let device = self.device(number).ok()?;
                let space = state.space.device(number)?.counts();
                Some(DeviceStatus {
                    number,
                    uuid: entry.id,
                    state: entry.state,
                    size_bytes: entry.extents * EXTENT_BYTES,
                    device_bytes: extents_of(&device) * EXTENT_BYTES,
                    free_bytes: (space.free + space.freeing) * EXTENT_BYTES,
                    has_journal: journals.iter().any(|copy| copy.device.is_same(&device)),
                })
            })
            .collect()
    }

    /// Refuses a device that wants its memory aligned otherwise than the volumes that are open say.
    fn check_alignment(&self, device: &PoolDevice) -> Result<(), PoolError> {
        let wanted = device.geometry().memory_align_bytes;
        match self.opened().is_empty() || wanted <= self.memory_align_bytes() {
            true => Ok(()),
            false => Err(PoolError::Alignment { wanted }),
        }
    }

    /// Begins a change of the devices. What is left of one that nobody waits for any more is waited for.
    ///
    /// # Errors
    ///
    /// [`PoolError::DevicesChanging`] while there is another one.
    pub(super) async fn change_devices(self: &Rc<Self>) -> Result<ChangingDevices, PoolError> {
        self.until_changed().await;
        self.check_changes()?;
        self.begin_change()
    }

    /// Waits until nothing is left of a change of devices that nobody waits for any more.
    pub async fn until_changed(&self) {
        self.change_ended
            .until(|| (!self.change_is_ending.get()).then_some(()))
            .await;
    }

    /// The same for a pool that may be read-only.
    fn begin_change(self: &Rc<Self>) -> Result<ChangingDevices, PoolError> {
        if self.changing_devices.replace(true) {
            return Err(PoolError::DevicesChanging);
        }
        Ok(ChangingDevices(Rc::new(Changing(self.clone()))))
    }

    /// The label areas that a superblock goes to.
    pub(super) fn label_areas(&self) -> Vec<Areas> {
        let state = self.state.borrow();
        let numbers: Vec<u8> = state.space.numbers().collect();
        drop(state);
        numbers
            .into_iter()
            .filter_map(|number| self.label_areas_of(number))
            .collect()
    }

    pub(super) fn label_areas_of(&self, number: u8) -> Option<Areas> {
        let state = self.state.borrow();
        let extents = state.space.device(number)?.extents();
        if let Some(areas) = self.successor_areas(number, extents) {
            return Some(areas);
        }
        let areas = Areas::new(self.device(number).ok()?, extents);
        Some(match state.sizes_before.get(&number) {
            Some(before) => areas.and_of(*before),
            None => areas,
        })
    }

    /// Writes a superblock to all of its devices, in the order that the invariants ask for.
    pub(super) async fn write_superblock(&self, superblock: &Superblock) -> Result<(), IoError> {
        let (mut stay, mut leave, mut join) = (Vec::new(), Vec::new(), Vec::new());
        for (number, entry) in (0u8..).zip(&superblock.devices) {
            let Some(areas) = self.label_areas_of(number) else {
                continue;
            };
            if let Some(joining) = self.joining_areas(number, superblock) {
                leave.push(areas);
                join.push(joining);
                continue;
            }
            let state = self.state.borrow();
            let before = state.superblock.devices.get(usize::from(number));
            match before.is_some_and(|before| before.id == entry.id) {
                true => stay.push(areas),
                false => join.push(areas),
            }
        }
        labels::write_superblock(&stay, superblock).await?;
        if let Err(error) = labels::write_superblock(&leave, superblock).await {
            tracing::warn!(pool = %self.name, %error, "a device that leaves cannot be told so");
        }
        labels::write_superblock(&join, superblock).await
    }
}
