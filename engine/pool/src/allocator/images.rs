//! The allocation state as a checkpoint has it, leaf by leaf, while it changes already.
//!
//! A checkpoint closes in one step, and its leaves are written later. So what it has of a leaf, its
//! *image*, is taken when the leaf is written, or right before the first change after the checkpoint
//! closed, if that is earlier.
//!
//! Invariant: whatever changes what [`DeviceSpace::image`] says of an extent calls [`DeviceSpace::touch`]
//! first. Two things change what is kept and not what an image says: taking an extent for data, which is
//! not in the state before it is recorded, and freeing what the checkpoint before has closed.

use std::collections::{BTreeMap, BTreeSet};

use super::{DeviceSpace, WHOLE};
use crate::layout::page::ALLOCATION_LEAF_EXTENTS;

/// The used blocks of the extents of a leaf.
pub type LeafImage = Box<[u16; ALLOCATION_LEAF_EXTENTS as usize]>;

/// Which leaves have changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaves {
    /// Since the last checkpoint closed.
    dirty: BTreeSet<u64>,
    /// Those of them whose pages may not be changed yet.
    unprepared: BTreeSet<u64>,
    /// Before the last checkpoint closed, and their images were not taken yet.
    closed: BTreeSet<u64>,
    /// Images that were taken early.
    images: BTreeMap<u64, LeafImage>,
}

impl Leaves {
    pub(super) fn close(&mut self) {
        debug_assert!(self.unprepared.is_empty(), "no place was found for their pages");
        // Whatever is left is of a checkpoint that failed, or of one whose leaves nobody wrote.
        self.images.clear();
        self.closed = std::mem::take(&mut self.dirty);
        self.unprepared.clear();
    }
}

impl DeviceSpace {
    /// What an image says of an extent is about to change.
    pub(super) fn touch(&mut self, number: u64) {
        let leaf = number / ALLOCATION_LEAF_EXTENTS;
        if self.leaves.closed.contains(&leaf) {
            let image = self.leaf_image(leaf);
            self.leaves.closed.remove(&leaf);
            self.leaves.images.insert(leaf, image);
        }
        if self.leaves.dirty.insert(leaf) {
            self.leaves.unprepared.insert(leaf);
        }
    }

    /// Leaves that have changed since the last checkpoint closed.
    pub fn dirty_leaves(&self) -> impl Iterator<Item = u64> {
        self.leaves.dirty.iter().copied()
    }

    /// How many those are.
    pub fn dirty_leaf_count(&self) -> usize {
        self.leaves.dirty.len()
    }

    /// Those of them that nobody has told to be prepared.
    pub fn unprepared_leaves(&self) -> impl Iterator<Item = u64> {
        self.leaves.unprepared.iter().copied()
    }

    /// The page of a leaf may be changed until the next checkpoint closes.
    pub fn set_prepared(&mut self, leaf: u64) {
        self.leaves.unprepared.remove(&leaf);
    }

    /// A leaf as the checkpoint has it that was closed last; once for each of those that had changed.
    pub fn closed_image(&mut self, leaf: u64) -> Option<LeafImage> {
        match self.leaves.images.remove(&leaf) {
            Some(image) => Some(image),
            None => self.leaves.closed.remove(&leaf).then(|| self.leaf_image(leaf)),
        }
    }

    /// The same as [`DeviceSpace::image`] of each extent of a leaf.
    fn leaf_image(&self, leaf: u64) -> LeafImage {
        let first = leaf.saturating_mul(ALLOCATION_LEAF_EXTENTS);
        let numbers = first..first.saturating_add(ALLOCATION_LEAF_EXTENTS).min(self.extents);
        let mut image: LeafImage = Box::new([0; ALLOCATION_LEAF_EXTENTS as usize]);
        for (used, number) in image.iter_mut().zip(numbers.clone()) {
            if self.is_taken(number) {
                *used = WHOLE;
            }
        }
        if numbers.is_empty() {
            return image;
        }
        let mut keep = |number: u64, mask: u16| {
            if let Some(used) = image.get_mut((number - first) as usize) {
                *used &= mask;
            }
        };
        for (number, taken) in self.pages.range(numbers.clone()) {
            keep(*number, *taken);
        }
        for number in self.unrecorded.range(numbers.clone()) {
            keep(*number, 0);
        }
        for freed in [&self.pending, &self.closing] {
            for (number, freed) in freed.range(numbers.clone()) {
                keep(*number, !freed);
            }
        }
        image
    }
}
