//! Deleted volumes and snapshots give back what only they held.
//!
//! One at a time. With one child or none, an entry is *deleting*: a cursor goes over its map, and what it
//! has passed belongs to the child. It becomes so in a checkpoint of its own, and is gone in one of its
//! own, so that after a crash no volume has written as if it were alone with what others still share. With
//! more children it is *kept*, and what none of them holds is cut out of it: of what it has from its parent
//! only if that is kept too, and then the parent is gone over after it. What they overwrite later is looked
//! for when another entry has gone, and when space is short.

use std::rc::{Rc, Weak};
use std::time::Duration;

use arrayvec::ArrayVec;
use pollux_reactor::sleep;

use super::{MAP_SHAPE, Pool, PoolError, State};
use crate::layout::ExtentId;
use crate::layout::slot::Slot;
use crate::layout::volume::{VolumeEntry, VolumeState};
use crate::tree::{Deletion, Freed, Passed, Tree, TreeError, Trimming, delete_range, differences, trim_leaf};

/// What only the deleted tree holds, of the slots that a walk comes by.
struct Collect {
    parent_generation: u64,
    /// What the tree has from its parent, and no child has, does not stay in it. It is not freed.
    lets_go: bool,
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
            let is_own = fragment.birth > self.parent_generation;
            let stays = held || !(is_own || self.lets_go);
            if !stays {
                gone |= fragment.mask;
                if is_own {
                    self.freed.push(fragment.extent);
                }
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

/// Space is short if less than one part of so many is free.
const SHORT_PARTS: u64 = 16;

/// How often it is looked whether space is short.
const SHORT_LOOK: Duration = Duration::from_secs(60);

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

    /// Goes over the map of a kept entry.
    async fn trim(self: &Rc<Self>, id: u64) -> Result<(), PoolError> {
        // Its parent may come to be kept meanwhile: then this is done again.
        let lets_go = self.state.borrow().lets_go(id);
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            self.check_open()?;
            cursor = self
                .with_pages(|state| state.trim_step(id, from, lets_go))
                .await?;
            pollux_reactor::yield_now().await;
            self.checkpoint_if_short().await?;
        }
        self.state.borrow_mut().trimmed.insert(id, lets_go);
        self.checkpoint().await
    }

    /// Has kept entries gone over again, if anything has changed in maps since that was last asked for.
    pub(super) fn look_for_space(&self) {
        let mut state = self.state.borrow_mut();
        let changed = state.maps_changed;
        if !state.trimmed.is_empty() && std::mem::replace(&mut state.looked_for_space, changed) != changed {
            state.trimmed.clear();
            self.wanted.wake();
        }
    }

    /// Looks for space again and again while it is short, until the pool is closed. It holds no pool while it
    /// waits, so that whoever closed that finds the devices free.
    pub(super) async fn look_for_space_if_short(pool: Weak<Self>) {
        loop {
            sleep(SHORT_LOOK).await;
            let Some(pool) = pool.upgrade().filter(|pool| !pool.closed.get()) else {
                return;
            };
            let space = pool.space();
            if (space.free_bytes + space.freeing_bytes) < space.total_bytes / SHORT_PARTS {
                pool.look_for_space();
            }
        }
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
        // Children before parents: what a child lets go of may be the parent's to free.
        let waits = |entry: &VolumeEntry| {
            let mut children = self.table.children(entry.id).filter_map(|id| self.table.get(id));
            children.any(|child| child.state != VolumeState::InUse && !self.is_trimmed(child))
        };
        let ranked = deleted.map(|entry| (rank(entry), entry));
        let ranked = ranked.filter(|(rank, entry)| *rank < 2 || !(self.is_trimmed(entry) || waits(entry)));
        ranked
            .min_by_key(|(rank, entry)| (*rank, entry.id))
            .map(|(_, entry)| (entry.id, entry.state))
    }

    /// Whether a kept entry lets go of what it has from its parent: that is kept too.
    fn lets_go(&self, id: u64) -> bool {
        let parent = self.table.get(id).and_then(|entry| self.table.get(entry.parent));
        parent.is_some_and(|parent| parent.state == VolumeState::Kept)
    }

    /// Whether a kept entry was gone over, and need not be again until some entry is gone or space is short.
    pub(super) fn is_trimmed(&self, entry: &VolumeEntry) -> bool {
        let trimmed = self.trimmed.get(&entry.id);
        trimmed.is_some_and(|let_go| *let_go || !self.lets_go(entry.id))
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
            lets_go: false,
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
    fn trim_step(&mut self, id: u64, from: u64, lets_go: bool) -> Result<Option<u64>, TreeError> {
        let Some(entry) = self.table.get(id).cloned() else {
            return Ok(None);
        };
        let tree = self.table.tree(&entry);
        let children = self.children_trees(id);
        // A leaf that it has from its parent matters only if it lets go, one that a child has does not.
        let relative = match lets_go {
            true => children.first().copied(),
            false => self.table.get(entry.parent).map(|parent| self.table.tree(parent)),
        };
        let relative = relative.unwrap_or(Tree { root: None, ..tree });
        let next = differences(&self.metadata(), &tree, &relative, from, 1)?;
        let Some((first, count)) = next.leaves.first().copied() else {
            return Ok(None);
        };
        let deletion = Deletion {
            tree: Tree {
                passed: Passed::default(),
                ..tree
            },
            children: &children,
        };
        let mut collect = Collect {
            parent_generation: tree.parent_generation,
            lets_go,
            freed: Vec::new(),
        };
        let trimming = Trimming {
            generation: entry.generation,
            lets_go,
        };
        let generations = self.generations;
        let trimmed = trim_leaf(
            &mut self.metadata(),
            &deletion,
            trimming,
            generations,
            first,
            &mut collect,
        )?;
        let freed = collect.freed.len() as u64;
        for extent in collect.freed {
            self.free_extent(extent);
        }
        if trimmed.root != tree.root || freed > 0 {
            self.maps_changed += 1;
            self.table.change_map(id, |entry| {
                entry.root = trimmed.root;
                entry.own_extents = entry.own_extents.wrapping_sub(freed);
            });
            // The parent may hold alone now what went.
            if lets_go {
                self.trimmed.remove(&entry.parent);
            }
        }
        Ok(Some(first + count))
    }
}
