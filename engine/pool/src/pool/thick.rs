//! Thick volumes: every write to one finds space, whatever others do.
//!
//! An extent is needed for a slot that has none of the volume's own: a slot that has one is *covered*. So
//! what a thick volume may still take is its slots less those that are covered, and the pages of its map
//! that are not its own yet. So much is *set aside*: whoever else takes an extent, or pages that stay,
//! leaves it alone.
//!
//! Invariants:
//! - The count of covered slots is never more than there are. Changes of the volume keep it exact. The
//!   deletion of a parent makes slots covered that it does not count: they are counted once that has ended.
//! - What is set aside is free in a durable checkpoint when it is promised: extents that are being freed are
//!   not counted, as a crash may bring them back.
//! - A pool that holds a thick volume has the feature [`THICK`] in all labels.

use std::rc::Rc;

use super::{MAP_SHAPE, Pool, PoolError, State};
use crate::layout::label::THICK;
use crate::layout::page::{FAN_OUT, MAP_LEAF_SLOTS};
use crate::layout::volume::{VolumeEntry, VolumeKind, VolumeState};
use crate::layout::{EXTENT_BLOCKS, EXTENT_BYTES};
use crate::tree::{Tree, TreeError, differences};

/// How often something for which there is no room is tried again after a checkpoint: what was freed is free
/// after two.
const ROOM_ROUNDS_MAX: u32 = 3;

/// Leaves after which others run.
const LEAVES_IN_A_STEP: usize = 16;

/// Extents that are set aside for a volume; 0 for one that is not thick.
pub(super) fn set_aside_for(entry: &VolumeEntry) -> u64 {
    if !entry.thick || entry.kind != VolumeKind::Volume || entry.state != VolumeState::InUse {
        return 0;
    }
    let uncovered = entry.slots().saturating_sub(entry.covered_slots);
    if uncovered == 0 {
        return 0;
    }
    // The leaf of a covered slot is the volume's own, and all pages above it are. Of the others there are as
    // many as the map has at each level, or one for each slot that is not covered.
    let (mut pages, mut level_pages) = (0, entry.slots().div_ceil(MAP_LEAF_SLOTS));
    for _ in 0..=MAP_SHAPE.height {
        pages += level_pages.min(uncovered);
        level_pages = level_pages.div_ceil(FAN_OUT);
    }
    // Both copies, which are in two extents.
    uncovered + (2 * pages).div_ceil(EXTENT_BLOCKS as u64) + 1
}

/// The covered slots of a volume being counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recount {
    volume: u64,
    /// What it came from when that was begun: with another parent it is begun anew.
    parent: u64,
    /// Slots before this one are counted.
    next: u64,
    covered: u64,
}

impl Pool {
    /// Does what may be refused as there is no room for thick volumes, again once what was freed is free.
    pub(super) async fn with_room<T>(
        self: &Rc<Self>,
        act: impl AsyncFn() -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        for _ in 0..ROOM_ROUNDS_MAX {
            match act().await {
                Err(PoolError::NoRoomForThick { .. }) if self.state.borrow().space.is_freeing() => {
                    self.checkpoint().await?;
                }
                other => return other,
            }
        }
        act().await
    }

    /// Has all labels say that there may be thick volumes.
    pub(super) async fn allow_thick(self: &Rc<Self>) -> Result<(), PoolError> {
        let labels = self.labels.borrow().clone();
        let known = |features: u64| features & THICK != 0;
        if labels
            .iter()
            .flatten()
            .all(|label| known(label.features.read_only_compatible))
        {
            return Ok(());
        }
        let changing = self.change_devices().await?;
        let allowing = async move |pool: Rc<Self>| {
            for device in pool.devices() {
                pool.change_label(device.number, |label| {
                    label.features.read_only_compatible |= THICK
                })
                .await?;
            }
            Ok(())
        };
        changing.to_end(allowing).await
    }

    /// Has all labels of a pool that was just opened say that there are no thick volumes, if there are none:
    /// programs that do not know of them can use it again. What fails is tried again with the next import.
    pub(super) async fn forget_thick(&self) {
        let has_thick = self.state.borrow().table.entries().any(|entry| entry.thick);
        if has_thick || self.features().read_only_compatible & THICK == 0 {
            return;
        }
        for device in self.devices() {
            let changed = self.change_label(device.number, |label| {
                label.features.read_only_compatible &= !THICK
            });
            if let Err(error) = changed.await {
                let device = device.number;
                tracing::warn!(pool = %self.name, device, %error, "a label still tells of thick volumes");
            }
        }
    }

    /// Counts the covered slots of a volume, while it is in use.
    pub(super) async fn count_covered(self: &Rc<Self>, id: u64) -> Result<(), PoolError> {
        loop {
            for _ in 0..LEAVES_IN_A_STEP {
                self.check_open()?;
                if self.with_pages(|state| state.count_covered_of_leaf(id)).await? {
                    return Ok(());
                }
            }
            pollux_reactor::yield_now().await;
        }
    }
}

impl State {
    /// Whether so many extents can be set aside in place of as many as are now.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoRoomForThick`].
    pub(super) fn check_set_aside(&self, before: u64, after: u64) -> Result<(), PoolError> {
        let others = self.table.set_aside().saturating_sub(before);
        let free = self.space.free_extents();
        if after <= before || others.saturating_add(after) <= free {
            return Ok(());
        }
        Err(PoolError::NoRoomForThick {
            needed_bytes: (after - before).saturating_mul(EXTENT_BYTES),
            free_bytes: free.saturating_sub(self.table.set_aside()) * EXTENT_BYTES,
        })
    }

    /// Whether the covered slots of a volume are to be counted, and can be now.
    pub(super) fn is_to_be_counted(&self, entry: &VolumeEntry) -> bool {
        let parent = self.table.get(entry.parent);
        entry.count_covered
            && entry.state == VolumeState::InUse
            && parent.is_none_or(|parent| parent.state != VolumeState::Deleting)
    }

    /// A volume whose covered slots are to be counted.
    pub(super) fn next_to_count(&self) -> Option<u64> {
        let mut entries = self.table.entries();
        entries
            .find(|entry| self.is_to_be_counted(entry))
            .map(|entry| entry.id)
    }

    /// Counts those of the next leaf that may have own extents; whether the end has come, or nothing is to be
    /// counted any more.
    fn count_covered_of_leaf(&mut self, id: u64) -> Result<bool, TreeError> {
        let Some(entry) = self.table.get(id).filter(|entry| self.is_to_be_counted(entry)) else {
            self.recount = None;
            return Ok(true);
        };
        let parent = entry.parent;
        let tree = self.table.tree(entry);
        let nothing = Tree { root: None, ..tree };
        let shared = self
            .table
            .get(parent)
            .map_or(nothing, |parent| self.table.tree(parent));
        let begun = self
            .recount
            .filter(|recount| (recount.volume, recount.parent) == (id, parent));
        let begun = begun.unwrap_or(Recount {
            volume: id,
            parent,
            next: 0,
            covered: 0,
        });
        // Leaves that the parent has too have nothing of the volume's own.
        let found = differences(&self.metadata(), &tree, &shared, begun.next, 1)?;
        let Some((first, count)) = found.leaves.first().copied() else {
            self.table.change_map(id, |entry| {
                entry.covered_slots = begun.covered;
                entry.count_covered = false;
            });
            self.recount = None;
            return Ok(true);
        };
        let mut covered = begun.covered;
        for index in first..first + count {
            let parent_generation = tree.parent_generation_of(index);
            let slot = self.slot(id, index)?;
            covered += u64::from(slot.fragments.iter().any(|one| one.birth > parent_generation));
        }
        self.recount = Some(Recount {
            next: first + count,
            covered,
            ..begun
        });
        Ok(false)
    }

    /// A slot of a volume has come to be covered, or to be not, while they may be counted.
    pub(super) fn counted_meanwhile(&mut self, volume: u64, index: u64, change: i64) {
        if let Some(recount) = &mut self.recount
            && recount.volume == volume
            && index < recount.next
        {
            recount.covered = recount.covered.saturating_add_signed(change);
        }
    }
}
