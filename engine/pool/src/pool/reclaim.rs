//! Deleted volumes and snapshots give back what only they held.
//!
//! One at a time. With one child or none, an entry is *deleting*: a cursor goes over its map, and what it
//! has passed belongs to the child. It becomes so in a checkpoint of its own, and is gone in one of its
//! own, so that after a crash no volume has written as if it were alone with what others still share. With
//! more children it is *kept*, and what none of them holds is cut out of it.

use std::rc::Rc;

use arrayvec::ArrayVec;

use super::{MAP_SHAPE, Pool, PoolError, State};
use crate::layout::ExtentId;
use crate::layout::slot::Slot;
use crate::layout::volume::{VolumeEntry, VolumeState};
use crate::tree::{Deletion, Freed, Passed, Tree, TreeError, delete_range, differences, trim_leaf};

/// What only the deleted tree holds, of the slots that a walk comes by.
struct Collect {
    parent_generation: u64,
    freed: Vec<ExtentId>,
}

impl Freed for Collect {
    fn entry(&mut self, _: u64, own: &[u8], children: &[&[u8]]) -> ArrayVec<u8, 256> {
        // Checked when the pages were opened.
        let mut slot = Slot::decode(own).unwrap_or_default();
        let others: Vec<Slot> = children
            .iter()
            .map(|child| Slot::decode(child).unwrap_or_default())
            .collect();
        let mut gone = 0;
        slot.fragments.retain(|fragment| {
            let held = others
                .iter()
                .any(|other| other.fragment_with(fragment.extent).is_some());
            let stays = held || fragment.birth <= self.parent_generation;
            if !stays {
                self.freed.push(fragment.extent);
                gone |= fragment.mask;
            }
            stays
        });
        for (block, checksum) in slot.checksums.iter_mut().enumerate() {
            if gone >> block & 1 == 1 {
                *checksum = 0;
            }
        }
        if slot.is_empty() {
            ArrayVec::from_iter([0; Slot::BYTES])
        } else {
            ArrayVec::from_iter(slot.encode())
        }
    }
}

/// Somebody reclaims until this is dropped, as it is when nobody waits for it any more.
struct Reclaiming<'a>(&'a Pool);

impl Drop for Reclaiming<'_> {
    fn drop(&mut self) {
        self.0.reclaiming.set(false);
        self.0.wanted.wake();
    }
}

impl Pool {
    /// Gives back the space of everything that was deleted, as far as it can be now: nothing, if the pool is
    /// read-only.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: what was not done yet is done at the next call, or after the next import.
    pub async fn reclaim(self: &Rc<Self>) -> Result<(), PoolError> {
        if self.read_only {
            return Ok(());
        }
        if self.reclaiming.replace(true) {
            // Somebody does it already.
            self.wanted.until(|| (!self.reclaiming.get()).then_some(())).await;
            return Ok(());
        }
        let _reclaiming = Reclaiming(self);
        self.reclaim_all().await
    }

    async fn reclaim_all(self: &Rc<Self>) -> Result<(), PoolError> {
        loop {
            self.check_open()?;
            let next = self.state.borrow().next_to_reclaim();
            match next {
                None => {
                    let next = self.state.borrow().next_to_count();
                    match next {
                        None => return Ok(()),
                        Some(id) => self.count_covered(id).await?,
                    }
                }
                Some((id, VolumeState::Deleting)) => self.delete_passing(id).await?,
                Some((id, _)) if self.state.borrow().table.child_count(id) <= 1 => {
                    self.state.borrow_mut().table.change(id, |entry| {
                        entry.state = VolumeState::Deleting;
                        entry.delete_cursor = 0;
                    });
                    self.checkpoint().await?;
                }
                Some((id, _)) => self.trim(id).await?,
            }
        }
    }

    /// Goes over the map of an entry with one child or none, and forgets it.
    async fn delete_passing(self: &Rc<Self>, id: u64) -> Result<(), PoolError> {
        loop {
            self.check_open()?;
            let done = self.with_pages(|state| state.delete_step(id)).await?;
            if done {
                break;
            }
            // Others run in between.
            pollux_reactor::yield_now().await;
            self.checkpoint_if_short().await?;
        }
        {
            let mut state = self.state.borrow_mut();
            state.table.remove(id);
            state.trimmed.clear();
        }
        self.checkpoint().await
    }

    async fn trim(self: &Rc<Self>, id: u64) -> Result<(), PoolError> {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            self.check_open()?;
            cursor = self.with_pages(|state| state.trim_step(id, from)).await?;
            pollux_reactor::yield_now().await;
            self.checkpoint_if_short().await?;
        }
        self.state.borrow_mut().trimmed.insert(id);
        self.checkpoint().await
    }
}

impl State {
    /// The deleted entry to go on with: the one that is being deleted, one that can be, one to be trimmed.
    fn next_to_reclaim(&self) -> Option<(u64, VolumeState)> {
        let deleted = self
            .table
            .entries()
            .filter(|entry| entry.state != VolumeState::InUse);
        let rank = |entry: &VolumeEntry| match entry.state {
            VolumeState::Deleting => 0,
            _ if self.table.child_count(entry.id) <= 1 => 1,
            _ => 2,
        };
        let ranked = deleted.map(|entry| (rank(entry), entry.id, entry.state));
        let ranked = ranked.filter(|(rank, id, _)| *rank < 2 || !self.trimmed.contains(id));
        ranked
            .min_by_key(|(rank, id, _)| (*rank, *id))
            .map(|(_, id, state)| (id, state))
    }

    fn children_trees(&self, id: u64) -> Vec<Tree> {
        let children = self.table.children(id).filter_map(|id| self.table.get(id));
        children.map(|child| self.table.tree(child)).collect()
    }

    /// Deletes up to the end of the next leaf that may hold something; whether the end has come.
    fn delete_step(&mut self, id: u64) -> Result<bool, TreeError> {
        let Some(entry) = self.table.get(id) else {
            return Ok(true);
        };
        let (tree, cursor) = (self.table.tree(entry), entry.delete_cursor);
        let children = self.children_trees(id);
        let nothing = Tree { root: None, ..tree };
        let other = children.first().unwrap_or(&nothing);
        let next = differences(&self.metadata(), &tree, other, cursor, 1)?;
        let end = match next.leaves.first() {
            Some((first, count)) => first + count,
            None => u64::MAX,
        };
        let deletion = Deletion {
            tree,
            children: &children,
        };
        let mut collect = Collect {
            parent_generation: tree.parent_generation,
            freed: Vec::new(),
        };
        delete_range(&mut self.metadata(), &deletion, cursor, end, &mut collect)?;
        let freed = collect.freed.len() as u64;
        self.maps_changed += 1;
        for extent in collect.freed {
            self.free_extent(extent);
        }
        self.table.change_map(id, |entry| {
            entry.delete_cursor = end.min(MAP_SHAPE.span_of_all());
            entry.own_extents = entry.own_extents.wrapping_sub(freed);
        });
        Ok(end == u64::MAX)
    }

    /// Cuts what no child holds out of the next leaf that may hold something; where to go on.
    fn trim_step(&mut self, id: u64, from: u64) -> Result<Option<u64>, TreeError> {
        let Some(entry) = self.table.get(id).cloned() else {
            return Ok(None);
        };
        let tree = self.table.tree(&entry);
        let parent = self.table.get(entry.parent);
        let parent = parent.map_or(Tree { root: None, ..tree }, |parent| self.table.tree(parent));
        let next = differences(&self.metadata(), &tree, &parent, from, 1)?;
        let Some((first, count)) = next.leaves.first().copied() else {
            return Ok(None);
        };
        let children = self.children_trees(id);
        let deletion = Deletion {
            tree: Tree {
                passed: Passed::default(),
                ..tree
            },
            children: &children,
        };
        let mut collect = Collect {
            parent_generation: tree.parent_generation,
            freed: Vec::new(),
        };
        let generations = self.generations;
        let trimmed = trim_leaf(
            &mut self.metadata(),
            &deletion,
            entry.generation,
            generations,
            first,
            &mut collect,
        )?;
        let freed = collect.freed.len() as u64;
        self.maps_changed += 1;
        for extent in collect.freed {
            self.free_extent(extent);
        }
        if trimmed.root != tree.root || freed > 0 {
            self.table.change_map(id, |entry| {
                entry.root = trimmed.root;
                entry.own_extents = entry.own_extents.wrapping_sub(freed);
            });
        }
        Ok(Some(first + count))
    }
}
