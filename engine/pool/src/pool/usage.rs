//! How much space a volume or snapshot uses, and how much of that no other one in use does.
//!
//! What is born after the parent's generation the parent has not, and what no child has at the same place,
//! no other descendant has. So who shares an extent is found from one to the next: parents that have it,
//! and children that have it. Entries that were deleted are no users of it themselves, and are only looked
//! through.

use std::rc::Rc;

use super::{Pool, PoolError, State};
use crate::layout::slot::Fragment;
use crate::layout::volume::VolumeState;
use crate::layout::{EXTENT_BYTES, ExtentId};
use crate::tree::{Tree, TreeError, differences};

/// Leaves after which others run.
const LEAVES_IN_A_STEP: usize = 16;

/// Space that a volume or snapshot uses, in whole extents, without metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of it, in bytes.
    pub used_bytes: u64,
    /// What no other volume or snapshot uses, in bytes: deleting it gives back so much.
    pub unique_bytes: u64,
}

impl Usage {
    /// What others use too, in bytes.
    pub fn shared_bytes(&self) -> u64 {
        self.used_bytes.saturating_sub(self.unique_bytes)
    }
}

impl Pool {
    /// Counts the space of a volume or snapshot. It walks all of its map, unless nothing has changed anywhere
    /// since it did. The count is exact if no volume is given or gives back space meanwhile.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn usage(self: &Rc<Self>, name: &str) -> Result<Usage, PoolError> {
        let id = self.volume(name)?.id;
        let begun = {
            let state = self.state.borrow();
            let begun = (state.maps_changed, state.table.version());
            match state.usages.get(&id) {
                Some((maps, table, usage)) if (*maps, *table) == begun => return Ok(*usage),
                _ => begun,
            }
        };
        let mut usage = Usage::default();
        let mut next = Some(0);
        while let Some(from) = next {
            self.check_open()?;
            for _ in 0..LEAVES_IN_A_STEP {
                let Some(from) = next else { break };
                let (leaf, after) = self.with_pages(|state| state.usage_of_leaf(id, from)).await?;
                usage.used_bytes += leaf.used_bytes;
                usage.unique_bytes += leaf.unique_bytes;
                next = after;
            }
            debug_assert!(next.is_none_or(|next| next > from), "the walk goes on");
            pollux_reactor::yield_now().await;
        }
        let mut state = self.state.borrow_mut();
        let (maps, table) = begun;
        // Those that are gone, or that were counted before something changed, are of no use.
        state
            .usages
            .retain(|_, (of_maps, of_table, _)| (*of_maps, *of_table) == begun);
        state.usages.insert(id, (maps, table, usage));
        Ok(usage)
    }
}

impl State {
    /// Counts the next leaf from a slot on; and where to go on after it.
    fn usage_of_leaf(&mut self, id: u64, from: u64) -> Result<(Usage, Option<u64>), TreeError> {
        let nothing = (Usage::default(), None);
        let Some(entry) = self.table.get(id) else {
            return Ok(nothing);
        };
        let tree = self.table.tree(entry);
        let empty = Tree { root: None, ..tree };
        let found = differences(&self.metadata(), &tree, &empty, from, 1)?;
        let Some((first, count)) = found.leaves.first().copied() else {
            return Ok(nothing);
        };
        let mut usage = Usage::default();
        for index in first..first + count {
            for fragment in &self.slot(id, index)?.fragments {
                let is_shared = self.is_shared(id, index, fragment)?;
                usage.used_bytes += EXTENT_BYTES;
                usage.unique_bytes += if is_shared { 0 } else { EXTENT_BYTES };
            }
        }
        Ok((usage, Some(first + count)))
    }

    /// Whether an extent of a slot is used by another entry too.
    fn is_shared(&mut self, id: u64, index: u64, fragment: &Fragment) -> Result<bool, TreeError> {
        let mut at = id;
        let mut open: Vec<u64> = self.table.children(id).collect();
        loop {
            if self.is_used_below(open, index, fragment.extent)? {
                return Ok(true);
            }
            let parent = self.table.get(at).and_then(|entry| self.table.get(entry.parent));
            let Some(parent) = parent.filter(|parent| fragment.birth <= parent.generation) else {
                return Ok(false);
            };
            if parent.state == VolumeState::InUse {
                return Ok(true);
            }
            let siblings = self.table.children(parent.id);
            open = siblings.filter(|sibling| *sibling != at).collect();
            at = parent.id;
        }
    }

    /// Whether any of some entries, or of those below them, is in use and has an extent in a slot.
    fn is_used_below(&mut self, mut open: Vec<u64>, index: u64, extent: ExtentId) -> Result<bool, TreeError> {
        while let Some(id) = open.pop() {
            let Some(entry) = self.table.get(id) else { continue };
            let state = entry.state;
            // What a deletion has passed is not there any more, and its child has it or not.
            let is_passed = state == VolumeState::Deleting && index < entry.delete_cursor;
            if !is_passed && self.slot(id, index)?.fragment_with(extent).is_none() {
                continue;
            }
            if state == VolumeState::InUse {
                return Ok(true);
            }
            open.extend(self.table.children(id));
        }
        Ok(false)
    }
}
