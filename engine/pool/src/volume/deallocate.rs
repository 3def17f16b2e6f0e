//! Deallocation: slot by slot at the ends of a range, leaf by leaf of the map between them.
//!
//! All blocks of a slot are locked: an extent may become free, and nobody may be writing into it.

use pollux_device::IoError;

use super::locks::WHOLE_SLOT;
use super::{Volume, parts};
use crate::journal::{AppendFor, JournalError};
use crate::layout::EXTENT_BLOCKS;
use crate::layout::journal::Record;
use crate::layout::page::MAP_LEAF_SLOTS;
use crate::layout::slot::Slot;
use crate::map::deallocate;
use crate::pool::{Admitted, Claim, PoolError};

impl Volume {
    /// Makes blocks read as zeros, and gives back their space.
    pub(crate) async fn deallocate_blocks(&self, block: u64, blocks: u64) -> Result<(), IoError> {
        {
            let _change = self.head.begin_change().await?;
            let extent_blocks = EXTENT_BLOCKS as u64;
            let end = block + blocks;
            // The slots that are in the range as a whole.
            let whole = block.div_ceil(extent_blocks)..end / extent_blocks;
            if whole.is_empty() {
                self.deallocate_ends(block, end).await?;
            } else {
                self.deallocate_ends(block, whole.start * extent_blocks).await?;
                self.deallocate_ends(whole.end * extent_blocks, end).await?;
                self.deallocate_slots(whole.start, whole.end).await?;
            }
        }
        self.pool.changed();
        Ok(())
    }

    /// Waits for room for the pages of a deallocation in one leaf, whose slots are locked. Where it frees an
    /// extent its pages are the volume's own, and no more of them come to stay: then it may use also what is
    /// set aside for thick volumes. Otherwise pages that snapshots keep might use that up.
    async fn admit_deallocation(&self, first: u64, end: u64) -> Result<Admitted, PoolError> {
        match self.pool.admit(self.head.claim).await {
            Err(PoolError::NoSpace) if self.has_own(first, end).await? => {
                self.pool.admit(Claim::SetAside).await
            }
            other => other,
        }
    }

    /// Whether any of some slots has an extent of the volume's own.
    async fn has_own(&self, first: u64, end: u64) -> Result<bool, PoolError> {
        let id = self.head.id;
        self.pool
            .with_pages(|state| {
                for index in first..end {
                    let parent_generation = state.parent_generation(id, index);
                    let slot = state.slot(id, index)?;
                    if slot.fragments.iter().any(|one| one.birth > parent_generation) {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
            .await
    }

    /// Deallocates parts of one slot or two.
    async fn deallocate_ends(&self, block: u64, end: u64) -> Result<(), PoolError> {
        for part in parts(block, end.saturating_sub(block)) {
            let _lock = self.head.locks.lock(part.slot, WHOLE_SLOT).await;
            let _admitted = self.admit_deallocation(part.slot, part.slot + 1).await?;
            let (id, index, mask) = (self.head.id, part.slot, part.mask());
            let sequence = self
                .change_slots(index, |state| {
                    let slot = state.slot(id, index)?;
                    let after = deallocate(&slot, mask, state.parent_generation(id, index)).slot;
                    Ok((slot != after).then(|| Record::Slot {
                        volume: id,
                        index,
                        slot: after,
                    }))
                })
                .await?;
            if let Some(sequence) = sequence {
                self.remember_emptied(index, sequence).await?;
            }
        }
        Ok(())
    }

    /// Deallocates whole slots.
    async fn deallocate_slots(&self, first: u64, end: u64) -> Result<(), PoolError> {
        let mut next = Some(first);
        while let Some(from) = next.filter(|from| *from < end) {
            let Some(leaf) = self.next_leaf(from).await? else {
                return Ok(());
            };
            let (from, upto) = (leaf.max(from), end.min(leaf + MAP_LEAF_SLOTS));
            if from >= end {
                return Ok(());
            }
            self.clear_slots(from, upto).await?;
            next = Some(upto);
        }
        Ok(())
    }

    /// Clears slots of one leaf.
    async fn clear_slots(&self, first: u64, end: u64) -> Result<(), PoolError> {
        let mut locked = Vec::new();
        for index in first..end {
            // In ascending order, so that two of these never wait for each other.
            locked.push(self.head.locks.lock(index, WHOLE_SLOT).await);
        }
        let _admitted = self.admit_deallocation(first, end).await?;
        let record = Record::Clear {
            volume: self.head.id,
            first,
            count: (end - first) as u32,
        };
        let id = self.head.id;
        self.change_slots(first, |state| {
            for index in first..end {
                if !state.slot(id, index)?.is_empty() {
                    return Ok(Some(record.clone()));
                }
            }
            Ok(None)
        })
        .await?;
        Ok(())
    }

    /// Appends a record for slots of the leaf of `index`, and does what it says; where the record is.
    async fn change_slots(
        &self,
        index: u64,
        mut make: impl FnMut(&mut crate::pool::State) -> Result<Option<Record>, crate::tree::TreeError>,
    ) -> Result<Option<u64>, PoolError> {
        let (pool, id) = (&self.pool, self.head.id);
        loop {
            let appended = pool
                .with_pages(|state| {
                    let Some(record) = make(state)? else {
                        return Ok(Ok(None));
                    };
                    state.prepare_slot(id, index)?;
                    let sequence = match pool.journal().append(&record, AppendFor::Change) {
                        Ok(sequence) => sequence,
                        Err(error) => return Ok(Err(error)),
                    };
                    match &record {
                        Record::Slot { index, slot, .. } => state.replace_slot(id, *index, slot)?,
                        Record::Clear { first, count, .. } => {
                            for index in *first..*first + u64::from(*count) {
                                state.replace_slot(id, index, &Slot::default())?;
                            }
                        }
                        Record::Intent { .. }
                        | Record::Checksum { .. }
                        | Record::Move { .. }
                        | Record::Volume(_)
                        | Record::Snapshot { .. } => {}
                    }
                    Ok(Ok(Some(sequence)))
                })
                .await?;
            match appended {
                Ok(sequence) => return Ok(sequence),
                Err(JournalError::Full) => pool.make_room().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
