//! The journal, done again on what the last checkpoint has; and the changes of memory that records stand for.
//!
//! Parents, roots and cursors are never taken from a record but from what is there: a deletion in the
//! background is not in the journal, and begins anew where the checkpoint left it.
//!
//! An in-place write that was under way left data that is newer than its checksum. That is so only in regions
//! with an intent, and only in extents that the volume could overwrite: those blocks get new checksums. Not
//! those that are lost: what lies in their places was never theirs.

use std::collections::BTreeSet;
use std::rc::Rc;

use pollux_device::IoError;

use super::import::{ImportReport, LostBlock};
use super::{Leaf, Pool, PoolError, REGION_SLOTS, State};
use crate::layout::journal::Record;
use crate::layout::page::MAP_LEAF_SLOTS;
use crate::layout::slot::Slot;
use crate::layout::volume::{VolumeEntry, VolumeKind, VolumeState};
use crate::layout::{BLOCK_BYTES, EXTENT_BLOCKS, crc32c};
use crate::map::freed_between;
use crate::tree::TreeError;

impl Pool {
    pub(super) async fn replay(
        self: &Rc<Self>,
        records: &[Record],
        report: &mut ImportReport,
    ) -> Result<(), PoolError> {
        {
            let mut state = self.state.borrow_mut();
            // Pages that are made below must not go where a later record has data.
            for record in records {
                match record {
                    Record::Slot { slot, .. } => {
                        for fragment in &slot.fragments {
                            state.space.mark_extent(fragment.extent, true)?;
                        }
                    }
                    Record::Move { to, .. } => state.space.mark_extent(*to, true)?,
                    _ => {}
                }
            }
        }
        let mut regions = BTreeSet::new();
        for record in records {
            match record {
                Record::Slot { volume, index, slot } => self.replay_slot(*volume, *index, slot).await?,
                Record::Clear { volume, first, count } => {
                    for index in *first..first.saturating_add((*count).into()) {
                        self.replay_slot(*volume, index, &Slot::default()).await?;
                    }
                }
                Record::Checksum {
                    volume,
                    index,
                    block,
                    checksum,
                } => {
                    let (volume, index) = (*volume, *index);
                    let mut slot = self.with_pages(|state| state.slot(volume, index)).await?;
                    // A block that is nowhere has none: it was deallocated in a record before, and written
                    // anew in one after.
                    if slot.fragment_of(*block).is_some()
                        && let Some(known) = slot.checksums.get_mut(usize::from(*block))
                    {
                        *known = *checksum;
                        self.replay_slot(volume, index, &slot).await?;
                    }
                }
                Record::Move {
                    volume,
                    index,
                    from,
                    to,
                    lost,
                } => {
                    let (volume, index, from, to, lost) = (*volume, *index, *from, *to, *lost);
                    let moved = self.with_pages(|state| state.move_extent(volume, index, (from, to), lost));
                    if !moved.await? {
                        // The extent stays used: space is lost, and nothing else.
                        tracing::error!(pool = %self.name, ?from, ?to, "nobody had an extent that was moved");
                    }
                }
                Record::Intent { volume, region } => drop(regions.insert((*volume, *region))),
                Record::Volume(entry) => {
                    let applied = self.state.borrow_mut().apply_volume(entry);
                    applied.ok_or(PoolError::Record { volume: entry.parent })?;
                }
                Record::Snapshot { volume, entry } => {
                    let applied = self.state.borrow_mut().apply_snapshot(*volume, entry);
                    applied.ok_or(PoolError::Record { volume: *volume })?;
                }
            }
        }
        for (volume, region) in regions {
            self.adopt_newer_blocks(volume, region, report).await?;
        }
        Ok(())
    }

    async fn replay_slot(self: &Rc<Self>, volume: u64, index: u64, slot: &Slot) -> Result<(), PoolError> {
        if self.state.borrow().table.get(volume).is_none() {
            return Err(PoolError::Record { volume });
        }
        self.with_pages(|state| state.replace_slot(volume, index, slot))
            .await
    }

    async fn adopt_newer_blocks(
        self: &Rc<Self>,
        volume: u64,
        region: u64,
        report: &mut ImportReport,
    ) -> Result<(), PoolError> {
        let born_after = {
            let state = self.state.borrow();
            let entry = state.table.get(volume).filter(|entry| {
                entry.kind == VolumeKind::Volume && entry.state == VolumeState::InUse && entry.checksums
            });
            let Some(entry) = entry else { return Ok(()) };
            state.table.overwritten_after(entry)
        };
        for index in region * REGION_SLOTS..(region + 1) * REGION_SLOTS {
            let mut slot = self.with_pages(|state| state.slot(volume, index)).await?;
            let before = slot.clone();
            for fragment in &before.fragments {
                if fragment.birth <= born_after {
                    continue;
                }
                for block in (0..EXTENT_BLOCKS as u8).filter(|block| fragment.readable() >> block & 1 == 1) {
                    let device = self.device(fragment.extent.device());
                    let place = fragment.extent.number() * EXTENT_BLOCKS as u64 + u64::from(block);
                    let read = match device {
                        Ok(device) => device.read(place, 1).await,
                        Err(error) => Err(error),
                    };
                    let Ok(bytes) = read else {
                        let block = index * EXTENT_BLOCKS as u64 + u64::from(block);
                        report.unreadable.push(LostBlock { volume, block });
                        continue;
                    };
                    debug_assert_eq!(bytes.len(), BLOCK_BYTES);
                    let checksum = slot.checksums.get_mut(usize::from(block));
                    let checksum = checksum.ok_or(IoError::Internal)?;
                    let found = crc32c(&bytes);
                    if *checksum != found {
                        *checksum = found;
                        report.newer_blocks += 1;
                    }
                }
            }
            if slot != before {
                self.with_pages(|state| state.replace_slot(volume, index, &slot))
                    .await?;
            }
        }
        Ok(())
    }
}

impl State {
    /// A slot of a volume or snapshot; an empty one where there is no such volume.
    ///
    /// # Errors
    ///
    /// [`TreeError`].
    pub(crate) fn slot(&mut self, volume: u64, index: u64) -> Result<Slot, TreeError> {
        let Some(entry) = self.table.get(volume) else {
            return Ok(Slot::default());
        };
        let tree = self.table.tree(entry);
        // Checked when the page was opened.
        let slot = tree.get(&self.metadata(), index, |bytes| {
            Slot::decode(bytes).unwrap_or_default()
        })?;
        Ok(slot.unwrap_or_default())
    }

    /// Makes the pages of a slot ones that can be changed, so that [`State::replace_slot`] cannot fail until
    /// the generation closes.
    ///
    /// # Errors
    ///
    /// [`TreeError`].
    pub(crate) fn prepare_slot(&mut self, volume: u64, index: u64) -> Result<(), TreeError> {
        let Some(entry) = self.table.get(volume) else {
            return Ok(());
        };
        let mut tree = self.table.tree(entry);
        let (before, generations) = (tree.root, self.generations);
        self.leaves.forget(volume, index);
        tree.prepare(&mut self.metadata(), generations, index)?;
        if tree.root != before {
            self.table.change_map(volume, |entry| entry.root = tree.root);
        }
        Ok(())
    }

    /// Replaces a slot, and frees what nobody reaches any more.
    ///
    /// # Errors
    ///
    /// [`TreeError`]: nothing was changed.
    pub(crate) fn replace_slot(&mut self, volume: u64, index: u64, slot: &Slot) -> Result<(), TreeError> {
        let Some(entry) = self.table.get(volume) else {
            return Ok(());
        };
        let mut tree = self.table.tree(entry);
        let before = tree.root;
        let generations = self.generations;
        let old = tree.get(&self.metadata(), index, |bytes| {
            Slot::decode(bytes).unwrap_or_default()
        })?;
        let old = old.unwrap_or_default();
        let bytes = if slot.is_empty() {
            [0; Slot::BYTES]
        } else {
            slot.encode()
        };
        self.leaves.forget(volume, index);
        tree.put(&mut self.metadata(), generations, index, &bytes)?;
        if tree.root != before {
            self.table.change_map(volume, |entry| entry.root = tree.root);
        }
        self.account((volume, index), &old, slot, tree.parent_generation_of(index));
        Ok(())
    }

    /// A slot and its leaf, if that is in memory.
    pub(crate) fn slot_at(&mut self, volume: u64, index: u64) -> Option<(Leaf, Slot)> {
        let leaf = self.leaf(volume, index)?;
        let page = self.cache.page_at(leaf.place)?;
        // Checked when the page was opened.
        let slot = Slot::decode(page.entry(index % MAP_LEAF_SLOTS)).unwrap_or_default();
        Some((leaf, slot))
    }

    /// Replaces a slot in a leaf that may be changed where it is, by one that is not empty.
    pub(crate) fn replace_in_leaf(&mut self, leaf: &Leaf, index: u64, old: &Slot, slot: &Slot) {
        debug_assert!(!slot.is_empty(), "a leaf without entries would stay");
        if old.fragments != slot.fragments {
            self.leaves.forget_slot(leaf.volume, index);
        }
        if let Some(page) = self.cache.open_page_at(leaf.place) {
            page.put_entry(index % MAP_LEAF_SLOTS, &slot.encode());
        }
        self.account((leaf.volume, index), old, slot, leaf.parent_generation);
    }

    /// A slot was replaced: marks and frees extents, and counts them.
    fn account(&mut self, (volume, index): (u64, u64), old: &Slot, slot: &Slot, parent_generation: u64) {
        let mut own: i64 = 0;
        self.maps_changed += u64::from(old.fragments != slot.fragments);
        for fragment in &slot.fragments {
            if old.fragment_with(fragment.extent).is_none() {
                self.space.record_extent(fragment.extent);
                own += 1;
            }
        }
        for extent in freed_between(old, slot, parent_generation) {
            self.free_extent(extent);
            own -= 1;
        }
        let has_own = |slot: &Slot| slot.fragments.iter().any(|one| one.birth > parent_generation);
        let covered = i64::from(has_own(slot)) - i64::from(has_own(old));
        if own != 0 || covered != 0 {
            self.table.change_map(volume, |entry| {
                entry.own_extents = entry.own_extents.wrapping_add_signed(own);
                if entry.thick {
                    // One that was never counted may go: a deletion had come by.
                    entry.covered_slots = entry.covered_slots.saturating_add_signed(covered);
                }
            });
            self.counted_meanwhile(volume, index, covered);
        }
    }

    pub(crate) fn free_extent(&mut self, extent: crate::layout::ExtentId) {
        if let Err(error) = self.space.free_extent(extent) {
            // It stays used: space is lost, and nothing else.
            tracing::error!(?extent, %error, "an extent could not be freed");
        }
    }

    /// A volume is made, or changed; `None` if its parent is not there.
    pub(crate) fn apply_volume(&mut self, entry: &VolumeEntry) -> Option<()> {
        let made = match self.table.get(entry.id) {
            Some(known) => VolumeEntry {
                root: known.root,
                parent: known.parent,
                generation: known.generation,
                delete_cursor: known.delete_cursor,
                own_extents: known.own_extents,
                covered_slots: known.covered_slots,
                count_covered: known.count_covered,
                ..entry.clone()
            },
            None if entry.parent == 0 => VolumeEntry {
                generation: 0,
                ..entry.clone()
            },
            None => {
                let parent = self.table.get(entry.parent)?;
                VolumeEntry {
                    root: parent.root,
                    generation: parent.generation,
                    ..entry.clone()
                }
            }
        };
        self.table.put(made);
        Some(())
    }

    /// A snapshot of a volume is made, which closes the generation; `None` if there is no such volume.
    pub(crate) fn apply_snapshot(&mut self, volume: u64, entry: &VolumeEntry) -> Option<()> {
        let head = self.table.get(volume)?.clone();
        self.table.put(VolumeEntry {
            root: head.root,
            parent: head.parent,
            own_extents: head.own_extents,
            ..entry.clone()
        });
        self.table.put(VolumeEntry {
            parent: entry.id,
            generation: entry.generation,
            own_extents: 0,
            covered_slots: 0,
            count_covered: false,
            ..head
        });
        self.generations.open = self.generations.open.max(entry.generation + 1);
        Some(())
    }
}
