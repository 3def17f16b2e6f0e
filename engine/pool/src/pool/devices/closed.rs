//! A device of a pool that is open read-only is replaced: one that takes no writes any more, as drives that
//! are worn out do. A pool in use cannot let go of it, since it has to be told first that it has left.
//!
//! 1. The new device gets its label, of a device that no superblock knows, and its old superblocks are wiped.
//! 2. What is used of the old device is copied, the journal too. Nothing is written to the pool meanwhile.
//! 3. The newest superblock is written again with a higher revision, and names the new device: to that one
//!    first, then to the others.
//! 4. The label of the old device is wiped, if it can be.
//!
//! The new one first, unlike in a pool that is in use: its content is that of the old one until the pool is
//! opened for writing, and that ends with a checkpoint on all devices which names the one that was given.
//! So up to then either may be given, and from then on the other one is refused. A device that fails in the
//! third step is no reason to go back: whoever opens the pool gives the new device, and that knows.

use std::rc::Rc;

use pollux_device::BlockDevice;

use super::super::create::{check_device, random_uuid};
use super::super::import::find;
use super::super::labels::{self, Areas};
use super::super::{Pool, PoolError};
use super::replace::{ReplaceProgress, Replaced};
use crate::device::{PoolDevice, Protected};
use crate::layout::label::{Label, area_blocks};

impl Pool {
    /// Copies a device of a pool that is open read-only to another one that is at least as large, whose
    /// content is lost, and takes that in its place; `tell` is told how that gets on. The old device may be
    /// one that takes no writes. `members` are all devices of the pool, which it has behind others that
    /// let no write through. What belongs to another pool is taken only with `overwrite`.
    ///
    /// The pool goes on with the new device, and stays read-only.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: the pool has the old device. [`PoolError::ReadWrite`] if the pool is not read-only.
    pub async fn replace_device_read_only(
        self: &Rc<Self>,
        number: u8,
        device: Rc<dyn BlockDevice>,
        members: Vec<Rc<dyn BlockDevice>>,
        overwrite: bool,
        tell: &mut dyn FnMut(ReplaceProgress),
    ) -> Result<Replaced, PoolError> {
        if !self.is_read_only() {
            return Err(PoolError::ReadWrite);
        }
        self.check_open()?;
        let _changing = self.begin_change()?;
        let entry = self.member(number)?;
        let at = usize::from(number);
        let found = find(members, false).await?;
        if found.unknown_features != 0 {
            // What this program does not know of the superblock would be lost.
            return Err(PoolError::Features {
                unknown: found.unknown_features,
            });
        }
        let known = found.labels.get(at).cloned().flatten();
        let known = known.ok_or(PoolError::NoDevice { number })?;
        let new = check_device(0, device.clone())?;
        self.check_room(&new, entry.extents)?;
        self.check_alignment(&new)?;
        self.prepare_device(&new, overwrite).await?;
        labels::wipe_superblocks(&new, area_blocks(entry.extents)).await?;
        let label = Label {
            device: random_uuid(),
            extents: entry.extents,
            ..known
        };
        labels::write_label(&new, &label).await?;
        let old = self.device(number)?;
        self.copy_used(number, entry.extents, tell, async |blocks| {
            Self::copy_blocks(number, &old, &new, blocks).await
        })
        .await?;
        new.flush().await?;
        let mut superblock = found.superblock.clone();
        superblock.revision += 1;
        if let Some(entry) = superblock.devices.get_mut(at) {
            entry.id = label.device;
        }
        labels::rewrite_superblock(&Areas::new(new, entry.extents), &superblock).await?;
        for (other, areas) in found.label_areas() {
            if other != number
                && let Err(error) = labels::rewrite_superblock(&areas, &superblock).await
            {
                let pool = &self.name;
                tracing::warn!(%pool, device = other, %error, "a device cannot be told of a new one");
            }
        }
        let keeps_label = match found.devices.get(at).cloned().flatten() {
            Some(old) => self.wipe_old_label(number, &old, entry.extents).await,
            None => false,
        };
        self.go_on_with(number, device, label)?;
        tracing::info!(pool = %self.name, device = number, "a device was replaced");
        Ok(Replaced { keeps_label })
    }

    /// Reads from another device from now on.
    fn go_on_with(&self, number: u8, device: Rc<dyn BlockDevice>, label: Label) -> Result<(), PoolError> {
        let at = usize::from(number);
        let protected = PoolDevice::new(Rc::new(Protected(device)))?;
        if let Some(entry) = self.state.borrow_mut().members.get_mut(at) {
            entry.id = label.device;
        }
        if let Some(place) = self.devices.borrow_mut().get_mut(at) {
            *place = Some(protected);
        }
        if let Some(place) = self.labels.borrow_mut().get_mut(at) {
            *place = Some(label);
        }
        Ok(())
    }
}
