//! The way to leaves of maps that were used lately, so that a request need not walk down a tree.
//!
//! Invariant: what is remembered of a leaf is right as long as the table has the same version, the page is
//! in memory, and nobody has called [`Leaves::forget`]: whoever may put another page in the place of a leaf
//! does.

use crate::cache::PagePlace;
use crate::layout::page::MAP_LEAF_SLOTS;

/// Leaves that are remembered. A leaf is 2 MiB of a volume.
const LEAVES: usize = 8192;

/// Where a leaf is, and what is own in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    pub(super) volume: u64,
    pub(super) number: u64,
    pub(super) table_version: u64,
    /// Its page.
    pub(crate) place: PagePlace,
    /// What was born after this is own.
    pub(crate) parent_generation: u64,
}

/// See the module.
pub(super) struct Leaves(Box<[Option<Leaf>]>);

impl Default for Leaves {
    fn default() -> Self {
        Self(vec![None; LEAVES].into_boxed_slice())
    }
}

impl Leaves {
    fn at(volume: u64, number: u64) -> usize {
        // Neighbouring leaves of one volume do not meet, and those of two seldom.
        (number.wrapping_add(volume.wrapping_mul(0x9e37_79b9)) % LEAVES as u64) as usize
    }

    #[inline]
    pub(super) fn get(&self, volume: u64, slot: u64, table_version: u64) -> Option<Leaf> {
        let number = slot / MAP_LEAF_SLOTS;
        let leaf = self.0[Self::at(volume, number)]?;
        let is_it = leaf.volume == volume && leaf.number == number && leaf.table_version == table_version;
        is_it.then_some(leaf)
    }

    pub(super) fn put(&mut self, leaf: Leaf) {
        self.0[Self::at(leaf.volume, leaf.number)] = Some(leaf);
    }

    pub(super) fn forget(&mut self, volume: u64, slot: u64) {
        let number = slot / MAP_LEAF_SLOTS;
        let known = &mut self.0[Self::at(volume, number)];
        if known.is_some_and(|leaf| leaf.volume == volume && leaf.number == number) {
            *known = None;
        }
    }
}
