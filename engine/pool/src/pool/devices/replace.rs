//! A device takes the place of another one, under the same number.
//!
//! 1. The new device gets its label, of a device that no superblock knows, and its old superblocks are wiped.
//! 2. At a moment without writes a [`Mirror`] begins: all writes go to both devices from then on.
//! 3. What is used of the old device is copied, range by range.
//!    The old one says that its copy of the journal counts no more, see [`counted`](super::super::counted).
//! 4. A checkpoint whose superblock names the new device in place of the old one. It goes to the other
//!    devices first, then to the old one, which so learns that it has left, and to the new one last: from no
//!    set of devices can the pool be opened both with the old one and with the new one. A power cut between
//!    the last two leaves a superblock that names the new device, which has everything: an import that is
//!    given both goes on from there.
//! 5. The label of the old device is wiped.
//!
//! Until step 4 a crash, or an error of the new device, leaves the pool with the old one: it is begun anew.

use std::ops::Range;
use std::rc::Rc;

use pollux_device::{BlockDevice, Gather};
use uuid::Uuid;

use super::super::create::{check_device, random_uuid};
use super::super::labels::{self, Areas, extents_of};
use super::super::{Pool, PoolError};
use crate::device::{Mirror, PoolDevice};
use crate::layout::label::{Label, area_blocks};
use crate::layout::superblock::{DeviceState, Superblock};
use crate::layout::{EXTENT_BLOCKS, EXTENT_BYTES};

/// Extents that are copied at a time.
const COPY_EXTENTS_MAX: u64 = 16;

/// How far a copy of a device is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplaceProgress {
    /// Bytes that are copied.
    pub copied_bytes: u64,
    /// Bytes that were used when it began: what is written meanwhile is copied besides.
    pub total_bytes: u64,
}

/// A device has taken the place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// The label of the old one could not be wiped: it still looks like a device of the pool. That is
    /// refused beside the other devices; if there are none it can be opened, and misses what is written
    /// from now on.
    pub keeps_label: bool,
}

/// A device that is to take the place of another one.
#[derive(Clone)]
pub(in crate::pool) struct Successor {
    number: u8,
    id: Uuid,
    device: PoolDevice,
    mirror: Rc<Mirror>,
}

/// A replacement under way; without an end of it, everything is as it was.
struct Replacing {
    pool: Rc<Pool>,
    old: PoolDevice,
    done: bool,
}

impl Replacing {
    fn end(mut self, done: bool) {
        self.done = done;
    }
}

impl Drop for Replacing {
    fn drop(&mut self) {
        if !self.done {
            self.old.set_mirror(None);
            *self.pool.successor.borrow_mut() = None;
        }
        self.pool.uncounted.set(0);
    }
}

impl Pool {
    /// Copies a device to another one that is at least as large, whose content is lost, and takes that in its
    /// place, while volumes are in use; `tell` is told how that gets on. The old device holds no pool then.
    /// What belongs to another pool is taken only with `overwrite`.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: the pool has the old device.
    pub async fn replace_device(
        self: &Rc<Self>,
        number: u8,
        device: Rc<dyn BlockDevice>,
        overwrite: bool,
        tell: &mut dyn FnMut(ReplaceProgress),
    ) -> Result<Replaced, PoolError> {
        let changing = self.change_devices().await?;
        let entry = self.member(number)?;
        let old = self.device(number)?;
        let device = check_device(0, device)?;
        self.check_room(&device, entry.extents)?;
        self.check_alignment(&device)?;
        let known = self.labels.borrow().get(usize::from(number)).cloned().flatten();
        let label = Label {
            device: random_uuid(),
            ..known.ok_or(PoolError::NoDevice { number })?
        };
        let (fresh, its_label) = (device.clone(), label.clone());
        let preparing = async move |pool: Rc<Self>| {
            pool.prepare_device(&fresh, overwrite).await?;
            labels::wipe_superblocks(&fresh, area_blocks(entry.extents)).await?;
            labels::write_label(&fresh, &its_label).await?;
            Ok::<_, PoolError>(fresh.flush().await?)
        };
        changing.to_end(preparing).await?;
        let mirrored = 2 * EXTENT_BLOCKS as u64..(entry.extents - 2) * EXTENT_BLOCKS as u64;
        let successor = Successor {
            number,
            id: label.device,
            mirror: Mirror::new(device.clone(), mirrored),
            device,
        };
        let replacing = Replacing {
            pool: self.clone(),
            old: old.clone(),
            done: false,
        };
        self.begin_mirror(&old, &successor).await?;
        self.copy_used(number, entry.extents, tell, async |blocks| {
            let _copying = successor.mirror.copy(blocks.clone()).await;
            let (old, new) = (old.clone(), successor.device.clone());
            let copying = async move |_| Self::copy_blocks(number, &old, &new, blocks).await;
            changing.to_end(copying).await?;
            match successor.mirror.failed() {
                Some(error) => Err(error.into()),
                None => Ok(()),
            }
        })
        .await?;
        successor.device.flush().await?;
        // From here on it comes to its end, whether or not anybody waits for it: the checkpoint that names
        // the new device does too, and what is written after that has to go there.
        let before = old.clone();
        let handing_over = async move |pool: Rc<Self>| {
            let handed_over = pool.hand_over(&before, &successor, label).await;
            replacing.end(handed_over.is_ok());
            handed_over?;
            Ok::<_, PoolError>(pool.wipe_old_label(number, &before, entry.extents).await)
        };
        let keeps_label = changing.to_end(handing_over).await?;
        tracing::info!(pool = %self.name, device = number, "a device was replaced");
        Ok(Replaced { keeps_label })
    }

    /// Refuses a device that has room for fewer extents than the one whose place it is to take.
    pub(super) fn check_room(&self, device: &PoolDevice, extents: u64) -> Result<(), PoolError> {
        match extents_of(device) < extents {
            true => Err(PoolError::TooSmall {
                device: 0,
                blocks: device.blocks(),
                needed: extents * EXTENT_BLOCKS as u64,
            }),
            false => Ok(()),
        }
    }

    /// Wipes the label of a device that was replaced; whether it still has one.
    pub(super) async fn wipe_old_label(&self, number: u8, old: &PoolDevice, extents: u64) -> bool {
        let wiped = labels::wipe_label(old, extents).await;
        if let Err(error) = wiped {
            tracing::warn!(pool = %self.name, device = number, %error, "a replaced device keeps its label");
        }
        wiped.is_err()
    }

    /// Has writes go to both devices, from a moment on at which none is under way.
    async fn begin_mirror(self: &Rc<Self>, old: &PoolDevice, successor: &Successor) -> Result<(), PoolError> {
        let mut holds = Vec::new();
        loop {
            let busy = self.state.borrow().heads_with_changes();
            for head in busy {
                holds.push(head.hold().await);
            }
            let no_checkpoint = self.hold_checkpoints().await?;
            self.journal.commit().await?;
            self.check_open()?;
            // Volumes that were opened meanwhile may have begun to write.
            let quiet = self.journal.is_idle() && self.state.borrow().heads_with_changes().is_empty();
            if quiet {
                *self.successor.borrow_mut() = Some(successor.clone());
                old.set_mirror(Some(successor.mirror.clone()));
            }
            drop(no_checkpoint);
            if quiet {
                return Ok(());
            }
        }
    }

    /// Has everything copied that is used of a device but its label areas, blocks by blocks.
    pub(super) async fn copy_used(
        &self,
        number: u8,
        extents: u64,
        tell: &mut dyn FnMut(ReplaceProgress),
        mut copy: impl AsyncFnMut(Range<u64>) -> Result<(), PoolError>,
    ) -> Result<(), PoolError> {
        let mut progress = ReplaceProgress {
            copied_bytes: 0,
            total_bytes: {
                let state = self.state.borrow();
                let taken = state
                    .space
                    .device(number)
                    .map_or(0, |space| space.taken_extents());
                taken.saturating_sub(4) * EXTENT_BYTES
            },
        };
        let mut from = 2;
        loop {
            self.check_open()?;
            // What is not taken now is written to both when it is.
            let next = {
                let state = self.state.borrow();
                let space = state.space.device(number);
                space.and_then(|space| space.taken_run(from..extents - 2, COPY_EXTENTS_MAX))
            };
            let Some(run) = next else { break };
            from = run.end;
            copy(run.start * EXTENT_BLOCKS as u64..run.end * EXTENT_BLOCKS as u64).await?;
            progress.copied_bytes += (run.end - run.start) * EXTENT_BYTES;
            tell(progress);
        }
        Ok(())
    }

    /// Copies blocks of a device to the same place on another one.
    pub(super) async fn copy_blocks(
        number: u8,
        old: &PoolDevice,
        new: &PoolDevice,
        blocks: Range<u64>,
    ) -> Result<(), PoolError> {
        let read = old.read_to_copy(blocks.start, blocks.end - blocks.start).await;
        let read = read.map_err(|(block, source)| PoolError::CannotCopy {
            number,
            block,
            source,
        })?;
        new.write(blocks.start, Gather::from(read), false).await?;
        Ok(())
    }

    /// Makes the checkpoint that names the new device, and uses it from then on.
    async fn hand_over(
        self: &Rc<Self>,
        old: &PoolDevice,
        successor: &Successor,
        label: Label,
    ) -> Result<(), PoolError> {
        let at = usize::from(successor.number);
        if let Some(error) = successor.mirror.failed() {
            return Err(error.into());
        }
        // The old one must not seem to be whole where it does not learn that it has left.
        self.uncounted.set(1 << successor.number);
        self.discount_copy(successor.number).await?;
        let name = |id| {
            let mut state = self.state.borrow_mut();
            let entry = state.members.get_mut(at);
            entry.map(|entry| std::mem::replace(&mut entry.id, id))
        };
        let before = name(successor.id);
        if let Err(error) = self.checkpoint().await {
            // The pool may be about to be exported, which makes one more.
            if !self.is_handed_over(successor) {
                before.map(name);
            }
            return Err(error);
        }
        if let Some(error) = successor
            .mirror
            .failed()
            .filter(|_| !self.is_handed_over(successor))
        {
            return Err(error.into());
        }
        if let Some(place) = self.devices.borrow_mut().get_mut(at) {
            *place = Some(successor.device.clone());
        }
        if let Some(place) = self.labels.borrow_mut().get_mut(at) {
            *place = Some(label);
        }
        self.journal.replace_device(old, &successor.device);
        self.journal
            .set_data_devices(self.devices.borrow().iter().flatten().cloned().collect());
        *self.successor.borrow_mut() = None;
        Ok(())
    }

    fn is_handed_over(&self, successor: &Successor) -> bool {
        let state = self.state.borrow();
        let entry = state.superblock.devices.get(usize::from(successor.number));
        entry.is_some_and(|entry| entry.id == successor.id)
    }

    /// The label areas of a device that takes the place of another one, once it has done so.
    pub(super) fn successor_areas(&self, number: u8, extents: u64) -> Option<Areas> {
        let successor = self.successor.borrow();
        let successor = successor
            .as_ref()
            .filter(|successor| successor.number == number)?;
        self.is_handed_over(successor)
            .then(|| Areas::new(successor.device.clone(), extents))
    }

    /// The label areas of a device that is to take the place of another one with a superblock, and does not
    /// have it yet.
    pub(super) fn joining_areas(&self, number: u8, superblock: &Superblock) -> Option<Areas> {
        let successor = self.successor.borrow();
        let successor = successor
            .as_ref()
            .filter(|successor| successor.number == number)?;
        let entry = superblock.devices.get(usize::from(number))?;
        let joins = entry.id == successor.id && !self.is_handed_over(successor);
        joins.then(|| Areas::new(successor.device.clone(), entry.extents))
    }

    /// A superblock that is about to be written names no device that failed before it had everything. One
    /// that it names must not fail from now on.
    pub(in crate::pool) fn without_failed_successor(&self, superblock: &mut Superblock) {
        let successor = self.successor.borrow().clone();
        let Some(successor) = successor.filter(|successor| !self.is_handed_over(successor)) else {
            return;
        };
        let at = usize::from(successor.number);
        let is_named = superblock
            .devices
            .get(at)
            .is_some_and(|entry| entry.id == successor.id);
        if !is_named {
            return;
        }
        if successor.mirror.failed().is_none() {
            successor.mirror.rely_on();
            return;
        }
        let mut state = self.state.borrow_mut();
        let Some(id) = state.superblock.devices.get(at).map(|entry| entry.id) else {
            return;
        };
        for entry in [superblock.devices.get_mut(at), state.members.get_mut(at)]
            .into_iter()
            .flatten()
        {
            if entry.state != DeviceState::Absent {
                entry.id = id;
            }
        }
    }
}
