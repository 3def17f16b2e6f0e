//! All volumes and snapshots of a pool, in memory; the tree of them is written from here by checkpoints.
//!
//! Invariants:
//! - The parent of every entry is in the table, or 0.
//! - The generation of a volume is that of its parent, 0 without one; that of a snapshot is the one it
//!   closed.
//! - At most one entry has the state *deleting*; it has at most one child. An entry that is *kept* waits for
//!   that, or has more.
//! - Names of entries in use are unique.
//! - `set_aside` is the sum of what is set aside for each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::thick::set_aside_for;
use crate::layout::page::{MAP_LEAF_SLOTS, PageKind};
use crate::layout::volume::{VolumeEntry, VolumeKind, VolumeState};
use crate::tree::{Passed, Shape, Tree};

/// Maps of volumes: 476 TiB.
pub(crate) const MAP_SHAPE: Shape = Shape {
    kind: PageKind::Map,
    height: 4,
    leaf_entries: MAP_LEAF_SLOTS,
};

/// Slots that a volume may have.
pub(crate) const SLOTS_MAX: u64 = MAP_SHAPE.span_of_all();

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<u64, VolumeEntry>,
    by_name: BTreeMap<String, u64>,
    children: BTreeMap<u64, BTreeSet<u64>>,
    /// Entries that are not in the tree as they are here.
    dirty: BTreeSet<u64>,
    next_id: u64,
    version: u64,
    /// Extents that thick volumes may still take, and the pages of their maps.
    set_aside: u64,
}

impl Table {
    /// Nothing; the next entry gets this id.
    pub(crate) fn new(next_id: u64) -> Self {
        Self {
            next_id: next_id.max(1),
            ..Self::default()
        }
    }

    /// A number that changes whenever what is own to a volume may change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(crate) fn get(&self, id: u64) -> Option<&VolumeEntry> {
        self.entries.get(&id)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&VolumeEntry> {
        self.get(*self.by_name.get(name)?)
    }

    /// Those in use whose names come after one, by name.
    pub(crate) fn after(&self, name: &str) -> impl Iterator<Item = &VolumeEntry> {
        let after = (Bound::Excluded(name), Bound::Unbounded);
        self.by_name
            .range::<str, _>(after)
            .filter_map(|(_, id)| self.get(*id))
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &VolumeEntry> {
        self.entries.values()
    }

    pub(crate) fn children(&self, id: u64) -> impl Iterator<Item = u64> {
        self.children.get(&id).into_iter().flatten().copied()
    }

    pub(crate) fn child_count(&self, id: u64) -> usize {
        self.children.get(&id).map_or(0, BTreeSet::len)
    }

    /// An entry and all that it may share pages and extents with: those on the way up to the first snapshot
    /// that is there, and all that come from it. By id.
    pub(crate) fn related(&self, id: u64) -> BTreeSet<u64> {
        let mut first = id;
        while let Some(entry) = self.get(first).filter(|entry| entry.parent != 0) {
            first = entry.parent;
        }
        let mut found = BTreeSet::from([first]);
        let mut open = vec![first];
        while let Some(id) = open.pop() {
            for child in self.children(id) {
                found.insert(child);
                open.push(child);
            }
        }
        found
    }

    /// Extents that are set aside for thick volumes.
    pub(crate) fn set_aside(&self) -> u64 {
        self.set_aside
    }

    /// Puts an entry in, or replaces it.
    pub(crate) fn put(&mut self, entry: VolumeEntry) {
        self.forget(entry.id);
        self.version += 1;
        self.next_id = self.next_id.max(entry.id + 1);
        if entry.state == VolumeState::InUse {
            self.by_name.insert(entry.name.clone(), entry.id);
        }
        if entry.parent != 0 {
            self.children.entry(entry.parent).or_default().insert(entry.id);
        }
        self.dirty.insert(entry.id);
        self.set_aside += set_aside_for(&entry);
        self.entries.insert(entry.id, entry);
    }

    fn forget(&mut self, id: u64) -> Option<VolumeEntry> {
        let entry = self.entries.remove(&id)?;
        self.set_aside = self.set_aside.saturating_sub(set_aside_for(&entry));
        if self.by_name.get(&entry.name) == Some(&id) {
            self.by_name.remove(&entry.name);
        }
        if let Some(siblings) = self.children.get_mut(&entry.parent) {
            siblings.remove(&id);
            if siblings.is_empty() {
                self.children.remove(&entry.parent);
            }
        }
        Some(entry)
    }

    /// Takes an entry out; its children become those of its parent.
    pub(crate) fn remove(&mut self, id: u64) {
        let children: Vec<u64> = self.children(id).collect();
        let Some(entry) = self.forget(id) else { return };
        self.version += 1;
        self.dirty.insert(id);
        let generation = self.get(entry.parent).map_or(0, |parent| parent.generation);
        for child in children {
            self.change(child, |child| {
                child.parent = entry.parent;
                child.own_extents = child.own_extents.wrapping_add(entry.own_extents);
                if child.kind == VolumeKind::Volume {
                    child.generation = generation;
                    // What the parent had is its own now.
                    child.count_covered = child.thick;
                }
            });
        }
    }

    /// Changes an entry; whether there is one.
    pub(crate) fn change(&mut self, id: u64, act: impl FnOnce(&mut VolumeEntry)) -> bool {
        let Some(mut entry) = self.get(id).cloned() else {
            return false;
        };
        act(&mut entry);
        self.put(entry);
        true
    }

    /// Changes what no other entry depends on: root, own extents, covered slots, cursor.
    pub(crate) fn change_map(&mut self, id: u64, act: impl FnOnce(&mut VolumeEntry)) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let (cursor, before) = (entry.delete_cursor, set_aside_for(entry));
            act(entry);
            self.set_aside = (self.set_aside + set_aside_for(entry)).saturating_sub(before);
            self.version += u64::from(entry.delete_cursor != cursor);
            self.dirty.insert(id);
        }
    }

    /// The CRCs of roots that a checkpoint has sealed; see [`PageCache::sealed`](crate::cache::PageCache).
    pub(crate) fn seal_roots(
        &mut self,
        sealed: impl Fn(crate::layout::PagePointer) -> crate::layout::PagePointer,
    ) {
        for entry in self.entries.values_mut() {
            entry.root = entry.root.map(&sealed);
        }
    }

    /// Ids that differ from what the tree has, those that are gone among them.
    pub(crate) fn dirty(&self) -> impl Iterator<Item = u64> {
        self.dirty.iter().copied()
    }

    /// How many those are.
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// An entry goes to the tree with the next checkpoint, changed or not.
    pub(crate) fn write_again(&mut self, id: u64) {
        self.dirty.insert(id);
    }

    pub(crate) fn clear_dirty(&mut self) {
        self.dirty.clear();
    }

    /// The generation after which what an entry holds was born if it is its own.
    pub(crate) fn parent_generation(&self, entry: &VolumeEntry) -> u64 {
        self.get(entry.parent).map_or(0, |parent| parent.generation)
    }

    /// The map of an entry.
    pub(crate) fn tree(&self, entry: &VolumeEntry) -> Tree {
        let parent = self.get(entry.parent);
        let passed = match parent {
            Some(parent) if parent.state == VolumeState::Deleting => Passed {
                before: parent.delete_cursor,
                generation: self.parent_generation(parent),
            },
            _ => Passed::default(),
        };
        Tree {
            shape: MAP_SHAPE,
            id: entry.id,
            root: entry.root,
            parent_generation: parent.map_or(0, |parent| parent.generation),
            passed,
        }
    }

    /// The generation after which what a volume overwrote in place was born at the latest: parents that are
    /// being deleted are skipped, since their volumes may have been overwritten behind the cursor.
    pub(crate) fn overwritten_after(&self, entry: &VolumeEntry) -> u64 {
        let mut parent = self.get(entry.parent);
        while let Some(deleting) = parent.filter(|parent| parent.state == VolumeState::Deleting) {
            parent = self.get(deleting.parent);
        }
        parent.map_or(0, |parent| parent.generation)
    }
}
