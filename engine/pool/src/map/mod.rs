//! What a write or a deallocation does to a slot, decided without any I/O.
//!
//! Invariants:
//! - The place of a block in an extent is its place in the slot; so an extent that is own has room for
//!   every block of its slot that it does not hold, and a slot with an own extent needs no fresh one.
//! - Data goes only to own extents and to fresh ones. What a snapshot can reach is never written.
//! - A plan changes nothing. The data is written first, then [`WritePlan::apply`] makes the image of the
//!   slot that goes to the journal, together with the extents that it no longer needs and nobody else can
//!   reach.
//!
//! Blocks in `in_place` are overwritten: they need the intent of their region. Blocks in `fill` go to
//! places of own extents that the slot does not use: they need nothing, but the caller must see to it that
//! the record that emptied such a place is durable. The place of a lost block is one of these: what the slot
//! says of it is an error, whatever lies there.

#[cfg(test)]
mod tests;

use arrayvec::ArrayVec;

use crate::layout::slot::{FRAGMENTS_MAX, Fragment, Slot};
use crate::layout::{EXTENT_BLOCKS, ExtentId};

/// Some blocks of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The extent.
    pub extent: ExtentId,
    /// Which of its blocks, a bit each.
    pub mask: u16,
}

/// How some blocks of a slot are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WritePlan {
    /// Blocks overwritten where they are.
    pub in_place: ArrayVec<Target, FRAGMENTS_MAX>,
    /// Blocks written to places of an own extent that are not used.
    pub fill: Option<Target>,
    /// Blocks written to a fresh extent; 0 if none is needed.
    pub fresh: u16,
    /// Blocks that have to be read and written to the fresh extent too, since there is no room for a fifth
    /// fragment.
    pub copy: ArrayVec<Target, FRAGMENTS_MAX>,
    /// Blocks that would have to be copied, and are lost.
    pub lost: u16,
}

/// A slot after a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// What it is now.
    pub slot: Slot,
    /// Extents that nobody can reach any more.
    pub freed: ArrayVec<ExtentId, FRAGMENTS_MAX>,
}

/// An extent that was allocated for a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshExtent {
    /// The extent.
    pub extent: ExtentId,
    /// The generation that is open.
    pub birth: u64,
}

/// A fresh extent is needed and was not given, or the plan is of another slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the plan does not fit the slot: plan again")]
pub struct PlanMismatch;

/// Plans a write of the blocks in `mask` to a slot of a head whose parent has this generation.
pub fn plan_write(slot: &Slot, mask: u16, parent_generation: u64) -> WritePlan {
    let mut plan = WritePlan::default();
    let own = |fragment: &&Fragment| fragment.birth > parent_generation;
    let mut rest = mask;
    for fragment in slot.fragments.iter().filter(own) {
        let hit = fragment.readable() & mask;
        if hit != 0 {
            plan.in_place.push(Target {
                extent: fragment.extent,
                mask: hit,
            });
            rest &= !hit;
        }
    }
    if rest == 0 {
        return plan;
    }
    // One that is written anyway is best: its blocks are next to each other.
    let touched = |fragment: &&Fragment| fragment.mask & mask != 0;
    let room = slot.fragments.iter().filter(own).find(touched);
    if let Some(fragment) = room.or_else(|| slot.fragments.iter().find(own)) {
        plan.fill = Some(Target {
            extent: fragment.extent,
            mask: rest,
        });
        return plan;
    }
    plan.fresh = rest;
    let left = slot
        .fragments
        .iter()
        .filter(|fragment| fragment.mask & !rest != 0);
    if left.clone().count() == FRAGMENTS_MAX {
        plan.lost = slot.lost() & !rest;
        plan.copy = left
            .map(|fragment| Target {
                extent: fragment.extent,
                mask: fragment.readable() & !rest,
            })
            .filter(|target| target.mask != 0)
            .collect();
    }
    plan
}

impl WritePlan {
    /// Whether blocks move that are not written, which must not be written by others meanwhile.
    pub fn moves_others(&self) -> bool {
        !self.copy.is_empty() || self.lost != 0
    }

    /// Whether a fresh extent is needed.
    pub fn needs_extent(&self) -> bool {
        self.fresh != 0
    }

    /// Blocks that the plan writes new data to.
    pub fn mask(&self) -> u16 {
        let in_place = self.in_place.iter().fold(0, |mask, target| mask | target.mask);
        in_place | self.fill.map_or(0, |target| target.mask) | self.fresh
    }

    /// The slot once the data is written. `checksums` are those of the blocks written, by their place in
    /// the slot.
    ///
    /// # Errors
    ///
    /// [`PlanMismatch`].
    pub fn apply(
        &self,
        slot: &Slot,
        parent_generation: u64,
        fresh: Option<FreshExtent>,
        checksums: &[u32; EXTENT_BLOCKS],
    ) -> Result<Change, PlanMismatch> {
        let mut change = Change {
            slot: slot.clone(),
            ..Change::default()
        };
        for target in &self.in_place {
            let fragment = slot.fragment_with(target.extent).ok_or(PlanMismatch)?;
            if fragment.readable() & target.mask != target.mask {
                return Err(PlanMismatch);
            }
        }
        let copied = self
            .copy
            .iter()
            .fold(self.lost, |mask, target| mask | target.mask);
        let moved = self.fresh | copied | self.fill.map_or(0, |target| target.mask);
        let filled = self.fill.map(|target| target.extent);
        change.remove(moved, parent_generation, filled);
        if let Some(target) = self.fill {
            let found = change
                .slot
                .fragments
                .iter_mut()
                .find(|fragment| fragment.extent == target.extent);
            found.ok_or(PlanMismatch)?.mask |= target.mask;
        }
        if self.needs_extent() {
            let FreshExtent { extent, birth } = fresh.ok_or(PlanMismatch)?;
            let fragment = Fragment {
                extent,
                mask: self.fresh | copied,
                birth,
                lost: self.lost,
            };
            let known = change
                .slot
                .fragments
                .iter_mut()
                .find(|known| known.extent == extent);
            match known {
                // Another write to holes of the slot took it first.
                Some(known) => {
                    known.mask |= fragment.mask;
                    known.lost |= fragment.lost;
                }
                None => change
                    .slot
                    .fragments
                    .try_push(fragment)
                    .map_err(|_| PlanMismatch)?,
            }
        }
        let written = self.mask();
        for (block, (to, from)) in change.slot.checksums.iter_mut().zip(checksums).enumerate() {
            if written >> block & 1 == 1 {
                *to = *from;
            } else if copied >> block & 1 == 1 {
                *to = slot.checksums.get(block).copied().unwrap_or(0);
            }
        }
        Ok(change)
    }
}

/// Deallocates the blocks in `mask`: they read as zeros from then on.
pub fn deallocate(slot: &Slot, mask: u16, parent_generation: u64) -> Change {
    let mut change = Change {
        slot: slot.clone(),
        ..Change::default()
    };
    change.remove(mask, parent_generation, None);
    change
}

/// The extents of a slot that the slot in its place does not have, and that nobody else can reach. For
/// replay, where only the images are known.
pub fn freed_between(old: &Slot, new: &Slot, parent_generation: u64) -> impl Iterator<Item = ExtentId> {
    let gone = old
        .fragments
        .iter()
        .filter(move |fragment| new.fragment_with(fragment.extent).is_none());
    gone.filter(move |fragment| fragment.birth > parent_generation)
        .map(|fragment| fragment.extent)
}

impl Change {
    /// Takes blocks out of the slot, and out of it the fragments that are left with none; not the one with an
    /// extent that is kept, which gets some.
    fn remove(&mut self, mask: u16, parent_generation: u64, kept: Option<ExtentId>) {
        for fragment in &mut self.slot.fragments {
            fragment.mask &= !mask;
            fragment.lost &= !mask;
        }
        self.slot.fragments.retain(|fragment| {
            let stays = fragment.mask != 0 || Some(fragment.extent) == kept;
            if !stays && fragment.birth > parent_generation {
                self.freed.push(fragment.extent);
            }
            stays
        });
        for (block, checksum) in self.slot.checksums.iter_mut().enumerate() {
            if mask >> block & 1 == 1 {
                *checksum = 0;
            }
        }
    }
}
