//! Which blocks are allocated, and which differ between two volumes: a page of ranges at a time.

use std::rc::Rc;

use super::{Volume, runs};
use crate::layout::page::MAP_LEAF_SLOTS;
use crate::layout::slot::Slot;
use crate::layout::{EXTENT_BLOCKS, PagePointer};
use crate::pool::{MAP_SHAPE, Pool, PoolError, State};
use crate::tree::{Tree, TreeError, differences};

/// Neighbouring blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first one.
    pub block: u64,
    /// How many.
    pub blocks: u64,
}

/// Some ranges, in order, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangePage {
    /// The ranges; neighbouring ones may touch.
    pub ranges: Vec<BlockRange>,
    /// The block from which on nothing was looked at; `None` at the end.
    pub next: Option<u64>,
}

impl RangePage {
    fn push(&mut self, block: u64, blocks: u64) {
        match self.ranges.last_mut() {
            Some(last) if last.block + last.blocks == block => last.blocks += blocks,
            _ => self.ranges.push(BlockRange { block, blocks }),
        }
    }

    /// Leaves out what is not in a range.
    fn clip(&mut self, from: u64, end: u64) {
        for range in &mut self.ranges {
            let last = (range.block + range.blocks).min(end);
            range.block = range.block.max(from).min(last);
            range.blocks = last - range.block;
        }
        self.ranges.retain(|range| range.blocks > 0);
        self.next = self.next.filter(|next| *next < end);
    }
}

impl Volume {
    /// The first slot of the first leaf of the map that has something at or after a slot.
    pub(super) async fn next_leaf(&self, slot: u64) -> Result<Option<u64>, PoolError> {
        let id = self.head.id;
        self.pool
            .with_pages(|state| {
                let Some(tree) = state.tree_of(id) else {
                    return Ok(None);
                };
                let nothing = Tree { root: None, ..tree };
                let found = differences(&state.metadata(), &tree, &nothing, slot, 1)?;
                Ok(found.leaves.first().map(|(first, _)| *first))
            })
            .await
    }

    /// Allocated blocks from one on, up to another.
    ///
    /// # Errors
    ///
    /// [`PoolError::Page`].
    pub async fn allocated(&self, block: u64, end: u64) -> Result<RangePage, PoolError> {
        let id = self.head.id;
        let page = self.pool.with_pages(|state| {
            let tree = state.tree_of(id);
            state.ranges(tree, None, block)
        });
        let mut page = page.await?;
        page.clip(block, end);
        Ok(page)
    }
}

impl Pool {
    /// Blocks from one on that differ between two volumes or snapshots, as far as the pool can tell: those
    /// that are in other places, or have other checksums. Blocks that do not differ may be among them; none
    /// that differs is missing.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn changed_blocks(
        self: &Rc<Self>,
        one: &str,
        other: &str,
        block: u64,
    ) -> Result<RangePage, PoolError> {
        let (one, other) = (self.volume(one)?, self.volume(other)?);
        let end = one.size_blocks.max(other.size_blocks);
        let page = self.with_pages(|state| {
            let trees = (state.tree_of(one.id), state.tree_of(other.id));
            state.ranges(trees.0, trees.1, block)
        });
        let mut page = page.await?;
        page.clip(block, end);
        Ok(page)
    }
}

impl State {
    /// The map of a volume or snapshot.
    pub(crate) fn tree_of(&self, id: u64) -> Option<Tree> {
        self.table.get(id).map(|entry| self.table.tree(entry))
    }

    /// The generation that the own extents of a slot were born after.
    pub(crate) fn parent_generation(&self, id: u64, index: u64) -> u64 {
        self.tree_of(id)
            .map_or(0, |tree| tree.parent_generation_of(index))
    }

    /// The blocks of the next leaf that is not the same in two maps in which they differ.
    fn ranges(&mut self, one: Option<Tree>, other: Option<Tree>, block: u64) -> Result<RangePage, TreeError> {
        let Some(shape) = one.or(other) else {
            return Ok(RangePage::default());
        };
        let nothing = Tree {
            root: None::<PagePointer>,
            ..shape
        };
        let (one, other) = (one.unwrap_or(nothing), other.unwrap_or(nothing));
        let from = block / EXTENT_BLOCKS as u64;
        if from >= MAP_SHAPE.span_of_all() {
            return Ok(RangePage::default());
        }
        let found = differences(&self.metadata(), &one, &other, from, 1)?;
        let Some((first, _)) = found.leaves.first().copied() else {
            return Ok(RangePage::default());
        };
        let mut page = RangePage {
            ranges: Vec::new(),
            next: found.next.map(|slot| slot * EXTENT_BLOCKS as u64),
        };
        for index in first..first + MAP_LEAF_SLOTS {
            let metadata = self.metadata();
            let slot_in = |tree: &Tree| {
                let slot = tree.get(&metadata, index, |bytes| Slot::decode(bytes).unwrap_or_default());
                slot.map(Option::unwrap_or_default)
            };
            let (one, other) = (slot_in(&one)?, slot_in(&other)?);
            for (first, blocks) in runs(differing(&one, &other)) {
                page.push(index * EXTENT_BLOCKS as u64 + u64::from(first), blocks.into());
            }
        }
        Ok(page)
    }
}

/// The blocks that differ between two slots.
fn differing(one: &Slot, other: &Slot) -> u16 {
    let place = |slot: &Slot, block| {
        let fragment = slot.fragment_of(block);
        fragment.map(|fragment| (fragment.extent, fragment.lost >> block & 1))
    };
    let differs = |block: u8| {
        place(one, block) != place(other, block)
            || one.checksums.get(usize::from(block)) != other.checksums.get(usize::from(block))
    };
    (0..EXTENT_BLOCKS as u8)
        .filter(|block| differs(*block))
        .fold(0, |mask, block| mask | 1 << block)
}
