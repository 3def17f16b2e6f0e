//! What is on a device is put on others: extents of data in all volumes and snapshots that share them, and
//! pages of metadata.
//!
//! An extent is copied while its slot is locked in every volume that holds it; then all maps that point to it
//! are changed, and a record of that is appended, in one step. From the record a replay finds the same maps:
//! those related to the volume that it names, as they are then. So a move is like any other change: it need
//! not wait for a checkpoint, and writes of the slot wait for the copy only.
//!
//! Blocks that cannot be read stay, and with them all of their extent; or they are lost, if whoever asks has
//! said so: their place in the new extent is marked in all maps. All labels say that there may be such marks
//! before the first one.
//!
//! Where a page is means nothing: that it was moved is in the next checkpoint, and forgotten with a
//! crash. Pages that no two trees share, of the table of volumes and of the allocation state, are just
//! written again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures_util::future::join_all;
use pollux_device::{Gather, IoError};

use super::super::{ALLOCATION_SHAPE, Claim, MAP_SHAPE, Pool, PoolError, State};
use super::ChangingDevices;
use crate::device::is_of_medium;
use crate::journal::{AppendFor, JournalError};
use crate::layout::journal::Record;
use crate::layout::label::LOST;
use crate::layout::slot::Slot;
use crate::layout::volume::VolumeState;
use crate::layout::{EXTENT_BLOCKS, ExtentId, PagePointer};
use crate::tree::{
    NextPlace, PagePlaceInTree, Relative, Relocation, Tree, TreeError, next_place, pages_to, relocate,
};
use crate::volume::{Head, runs};

/// How often a slot that changes while it is copied is copied anew.
const COPIES_MAX: u32 = 1000;

/// Leaves of the allocation state that one checkpoint writes again.
const LEAVES_AT_ONCE: u64 = 1024;

/// Which pages have to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Everything on a device.
    Emptied {
        /// Its number.
        device: u8,
        /// What becomes of what cannot be read.
        unreadable: Unreadable,
    },
    /// Pages with both copies on one device, to have one on another.
    Spread,
}

impl Wanted {
    fn page(self, pointer: &PagePointer) -> bool {
        let [first, second] = [pointer.first, pointer.second].map(|copy| copy.extent().device());
        match self {
            Self::Emptied { device, .. } => first == device || second == device,
            Self::Spread => first == second,
        }
    }

    fn extent(self, extent: ExtentId) -> bool {
        match self {
            Self::Emptied { device, .. } => extent.device() == device,
            Self::Spread => false,
        }
    }
}

/// Pages move, and entries are looked at but not changed.
struct Pages(Wanted);

impl Relocation for Pages {
    fn moves(&self, pointer: &PagePointer) -> bool {
        self.0.page(pointer)
    }

    fn entry(&self, _: u64, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// What a walk over a map stops at.
struct Sought(Wanted);

impl Relocation for Sought {
    fn moves(&self, pointer: &PagePointer) -> bool {
        self.0.page(pointer)
    }

    fn entry(&self, _: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let slot = Slot::decode(bytes).unwrap_or_default();
        let sought = slot
            .fragments
            .iter()
            .any(|fragment| self.0.extent(fragment.extent));
        sought.then(Vec::new)
    }
}

/// One extent of a slot is another one, in which some blocks are lost.
struct Replaced {
    slot: u64,
    from: ExtentId,
    to: ExtentId,
    lost: u16,
}

/// What those who are related hold of an extent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    /// Blocks that any of them holds.
    mask: u16,
    /// Those of them that are not lost.
    readable: u16,
}

/// What becomes of blocks that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// They stay where they are, and what they are on stays too.
    Stay,
    /// They are lost: an error to whoever reads them, until they are written or deallocated.
    Lose,
}

/// How blocks of an extent were copied.
struct Copied {
    /// Those that could not be read.
    unread: u16,
    /// Why the first of them could not.
    error: Option<PoolError>,
}

impl Relocation for Replaced {
    fn moves(&self, _: &PagePointer) -> bool {
        false
    }

    fn entry(&self, entry: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        if entry != self.slot {
            return None;
        }
        // Checked when the page was opened.
        let mut slot = Slot::decode(bytes).unwrap_or_default();
        let mut fragments = slot.fragments.iter_mut();
        let moved = fragments.find(|fragment| fragment.extent == self.from)?;
        moved.extent = self.to;
        moved.lost |= self.lost & moved.mask;
        Some(slot.encode().to_vec())
    }
}

/// An extent taken to move another one there; given back unless it was used.
struct Taken {
    pool: Rc<Pool>,
    extent: ExtentId,
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Nothing happens to one that a map points to.
        self.pool.state.borrow_mut().space.return_extent(self.extent);
    }
}

impl Pool {
    /// Has the pages that are wanted of the table of volumes and of the allocation state written again with
    /// the next checkpoint, elsewhere.
    pub(super) async fn write_state_again(self: &Rc<Self>, wanted: Wanted) -> Result<(), PoolError> {
        let (ids, devices) = {
            let state = self.state.borrow();
            let numbers = state.space.numbers();
            let devices = numbers.filter_map(|number| Some((number, state.space.device(number)?.extents())));
            (state.all_ids(), devices.collect::<Vec<_>>())
        };
        for id in ids {
            let is_wanted = |state: &mut State| state.is_on_the_way(&state.volumes_tree(), id, wanted);
            if self.with_pages(is_wanted).await? {
                self.state.borrow_mut().table.write_again(id);
            }
        }
        let mut written = 0;
        for (number, extents) in devices {
            for leaf in 0..extents.div_ceil(ALLOCATION_SHAPE.leaf_entries) {
                let entry = leaf * ALLOCATION_SHAPE.leaf_entries;
                let is_wanted =
                    |state: &mut State| state.is_on_the_way(&state.allocation_tree(number), entry, wanted);
                if !self.with_pages(is_wanted).await? {
                    continue;
                }
                if let Some(space) = self.state.borrow_mut().space.device_mut(number) {
                    space.write_leaf_again(leaf);
                }
                written += 1;
                if written % LEAVES_AT_ONCE == 0 {
                    self.checkpoint().await?;
                }
            }
        }
        Ok(())
    }

    /// Moves what is wanted of the map of a volume or snapshot, without what it has in common with its
    /// parent.
    /// `moved` is told of each slot, and how many blocks of it were lost.
    ///
    /// # Errors
    ///
    /// [`PoolError::CannotCopy`] if blocks cannot be read and are to stay: everything else was moved.
    pub(super) async fn move_map(
        self: &Rc<Self>,
        changing: &ChangingDevices,
        id: u64,
        wanted: Wanted,
        moved: &mut impl FnMut(u32),
    ) -> Result<(), PoolError> {
        let (mut from, mut last, mut unread) = (0, None, Ok(()));
        loop {
            self.check_open()?;
            let next = self
                .with_pages(|state| state.next_to_move(id, wanted, from))
                .await?;
            match next {
                NextPlace::End => return unread,
                NextPlace::Nothing { next } => from = next,
                // It was moved just now, and no other place was found for it.
                NextPlace::Page(place) if last == Some(place) => return Err(PoolError::NoSpace),
                NextPlace::Page(place) => {
                    self.checkpoint_if_short().await?;
                    let moved = self
                        .with_pages(|state| state.relocate_maps(id, place, &Pages(wanted)))
                        .await;
                    if self.is_done_with_space(moved).await? {
                        from = from.max(first_of(place));
                        last = Some(place);
                    }
                }
                NextPlace::Entry(slot) => {
                    from = slot;
                    if let Wanted::Emptied { device, unreadable } = wanted {
                        let mut lost = 0;
                        let done = self.move_slot(changing, (id, slot), device, unreadable, &mut lost);
                        let done = done.await;
                        let done = self.is_done_with_space(done).await;
                        if lost > 0 || matches!(done, Ok(true)) {
                            moved(lost);
                        }
                        match done {
                            Err(error @ PoolError::CannotCopy { .. }) => {
                                from = slot + 1;
                                unread = unread.and(Err(error));
                            }
                            Ok(_) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            pollux_reactor::yield_now().await;
        }
    }

    /// Whether something was done; not so if there was no space, and a checkpoint has made some.
    async fn is_done_with_space(self: &Rc<Self>, result: Result<(), PoolError>) -> Result<bool, PoolError> {
        match result {
            Err(PoolError::NoSpace) => self.free_space().await.map(|()| false),
            other => other.map(|()| true),
        }
    }

    /// Moves all extents of a slot that are on a device, in all volumes and snapshots that hold them. One
    /// with blocks that cannot be read and are to stay is left as it is; blocks that were lost are counted.
    async fn move_slot(
        self: &Rc<Self>,
        changing: &ChangingDevices,
        (id, slot): (u64, u64),
        device: u8,
        unreadable: Unreadable,
        lost: &mut u32,
    ) -> Result<(), PoolError> {
        let (mut stay, mut unread) = (BTreeSet::new(), Ok(()));
        let mut is_labelled = self.all_labels_have(LOST);
        let mut loses = false;
        for _ in 0..COPIES_MAX {
            if loses && !is_labelled {
                changing.to_end(async |pool| pool.label_all(LOST).await).await?;
                is_labelled = true;
            }
            self.checkpoint_if_short().await?;
            let heads = self.state.borrow().heads_related_to(id);
            let mut locked = Vec::new();
            for head in &heads {
                locked.push(head.lock_slot(slot).await);
            }
            let _admitted = self.admit(Claim::Rest).await?;
            let found = self
                .with_pages(|state| state.extents_on(id, slot, device))
                .await?;
            let mut found = found.into_iter();
            let Some((from, held)) = found.find(|(extent, _)| !stay.contains(extent)) else {
                return unread;
            };
            let to = self.take_elsewhere().await?;
            // It comes to its end also when nobody waits for it any more: the extent is free only then.
            let copying = changing.to_end(async move |pool| {
                let copied = pool.copy_extent(from, to.extent, held.readable).await;
                (to, copied)
            });
            let (to, copied) = copying.await;
            let Copied { unread: gone, error } = copied?;
            if let Some(error) = error {
                match unreadable {
                    Unreadable::Stay => {
                        self.tell_blocks(id, slot, gone, "a block cannot be read, and stays where it is");
                        stay.insert(from);
                        unread = unread.and(Err(error));
                        continue;
                    }
                    Unreadable::Lose if !is_labelled => {
                        loses = true;
                        continue;
                    }
                    Unreadable::Lose => {}
                }
            }
            let is_same = |state: &State| same_heads(&state.heads_related_to(id), &heads);
            let record = Record::Move {
                volume: id,
                index: slot,
                from,
                to: to.extent,
                lost: gone,
            };
            if self.record_move(&record, held, is_same).await? {
                self.tell_blocks(id, slot, gone, "a block cannot be read, and is lost");
                let mut state = self.state.borrow_mut();
                for block in (0..EXTENT_BLOCKS as u64).filter(|block| gone >> block & 1 == 1) {
                    state.suspect(id, slot * EXTENT_BLOCKS as u64 + block);
                }
                *lost += gone.count_ones();
            }
            drop((to, locked));
        }
        Err(PoolError::Device(IoError::ResourceShortage))
    }

    fn tell_blocks(&self, volume: u64, slot: u64, mask: u16, what: &'static str) {
        for (first, blocks) in runs(mask) {
            let block = slot * EXTENT_BLOCKS as u64 + u64::from(first);
            tracing::error!(pool = %self.name, volume, block, blocks, "{what}");
        }
    }

    async fn take_elsewhere(self: &Rc<Self>) -> Result<Taken, PoolError> {
        loop {
            let taken = self.state.borrow_mut().take_extent(Claim::Rest);
            match taken {
                Ok(extent) => {
                    let pool = self.clone();
                    return Ok(Taken { pool, extent });
                }
                Err(_) => self.free_extents(Claim::Rest).await?,
            }
        }
    }

    /// Copies those blocks of an extent that can be read.
    async fn copy_extent(&self, from: ExtentId, to: ExtentId, mask: u16) -> Result<Copied, PoolError> {
        let (source, target) = (self.device(from.device())?, self.device(to.device())?);
        let (source, target) = (&source, &target);
        let block_of =
            |extent: ExtentId, first: u8| extent.number() * EXTENT_BLOCKS as u64 + u64::from(first);
        let copies = runs(mask).map(|(first, blocks)| async move {
            let mut copied = Copied {
                unread: 0,
                error: None,
            };
            // All at once, and one by one if that cannot be read.
            let mut pieces = vec![(first, blocks)];
            while let Some((first, blocks)) = pieces.pop() {
                match source.read_to_copy(block_of(from, first), blocks.into()).await {
                    Ok(read) => {
                        let at = block_of(to, first);
                        target.write(at, Gather::from(read), false).await?;
                    }
                    Err((block, error)) if is_of_medium(error) => {
                        if blocks == 1 {
                            copied.unread |= 1 << first;
                            copied.error.get_or_insert(PoolError::CannotCopy {
                                number: from.device(),
                                block,
                                source: error,
                            });
                        } else {
                            pieces.extend((first..first + blocks).rev().map(|block| (block, 1)));
                        }
                    }
                    Err((_, error)) => return Err(PoolError::from(error)),
                }
            }
            Ok(copied)
        });
        // All come to their end, also when one fails: the extent is free then.
        let copies = join_all(copies).await.into_iter();
        let none = Copied {
            unread: 0,
            error: None,
        };
        copies
            .reduce(|one, other| {
                let (one, other) = (one?, other?);
                Ok(Copied {
                    unread: one.unread | other.unread,
                    error: one.error.or(other.error),
                })
            })
            .unwrap_or(Ok(none))
    }

    /// Has all maps point to a copied extent, unless something came in between; whether they do.
    async fn record_move(
        self: &Rc<Self>,
        record: &Record,
        held: Held,
        is_same: impl Fn(&State) -> bool,
    ) -> Result<bool, PoolError> {
        let &Record::Move {
            volume,
            index,
            from,
            to,
            lost,
        } = record
        else {
            return Err(PoolError::Device(IoError::Internal));
        };
        loop {
            let appended = self
                .with_pages(|state| {
                    let found = state.extents_on(volume, index, from.device())?;
                    // One that nobody holds any more, or more of, or that somebody may be writing to.
                    if found.get(&from) != Some(&held) || !is_same(state) {
                        return Ok(Ok(false));
                    }
                    if !self.takes_changes(state) {
                        return Ok(Err(PoolError::Closed));
                    }
                    if !self.journal.has_room() {
                        return Ok(Err(JournalError::Full.into()));
                    }
                    state.move_extent(volume, index, (from, to), lost)?;
                    // There is room, and nothing ran in between.
                    let appended = self.journal.append(record, AppendFor::Change);
                    Ok(appended.map(|_| true).map_err(PoolError::from))
                })
                .await?;
            match appended {
                Err(PoolError::Journal(JournalError::Full)) => self.make_room().await?,
                other => return other,
            }
        }
    }
}

/// The first slot below a page.
fn first_of(place: PagePlaceInTree) -> u64 {
    place.index.saturating_mul(MAP_SHAPE.span(place.level))
}

fn same_heads(one: &[Rc<Head>], other: &[Rc<Head>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Rc::ptr_eq(one, other))
}

impl State {
    /// The volumes and snapshots that are open and related to one, by id.
    fn heads_related_to(&self, id: u64) -> Vec<Rc<Head>> {
        let related = self.table.related(id).into_iter();
        related.filter_map(|id| self.heads.get(&id)?.upgrade()).collect()
    }

    /// The volumes that are open and being changed.
    pub(super) fn heads_with_changes(&self) -> Vec<Rc<Head>> {
        let open = self.heads.values().filter_map(std::rc::Weak::upgrade);
        open.filter(|head| head.has_changes()).collect()
    }

    /// The maps of a volume and all that are related to it.
    fn relatives(&self, id: u64) -> Vec<Relative> {
        let related = self.table.related(id).into_iter();
        let entries = related.filter_map(|id| self.table.get(id));
        entries
            .map(|entry| Relative {
                tree: self.table.tree(entry),
                gone_before: match entry.state {
                    VolumeState::Deleting => entry.delete_cursor,
                    VolumeState::InUse | VolumeState::Kept => 0,
                },
            })
            .collect()
    }

    /// The extents of a device in a slot of all that are related to a volume, and what they hold of each.
    fn extents_on(&mut self, id: u64, slot: u64, device: u8) -> Result<BTreeMap<ExtentId, Held>, TreeError> {
        let mut found: BTreeMap<ExtentId, Held> = BTreeMap::new();
        for Relative { tree, gone_before } in self.relatives(id) {
            if slot < gone_before {
                continue;
            }
            let held = tree.get(&self.metadata(), slot, |bytes| {
                Slot::decode(bytes).unwrap_or_default()
            })?;
            for fragment in held.unwrap_or_default().fragments {
                if fragment.extent.device() == device {
                    let held = found.entry(fragment.extent).or_default();
                    held.mask |= fragment.mask;
                    held.readable |= fragment.readable();
                }
            }
        }
        Ok(found)
    }

    /// An extent of a slot is another one, and blocks of it are lost, for all who are related to a volume.
    /// Whether anybody had it.
    ///
    /// # Errors
    ///
    /// [`TreeError`]: nothing was changed.
    pub(in crate::pool) fn move_extent(
        &mut self,
        id: u64,
        slot: u64,
        (from, to): (ExtentId, ExtentId),
        lost: u16,
    ) -> Result<bool, TreeError> {
        if !self.extents_on(id, slot, from.device())?.contains_key(&from) {
            return Ok(false);
        }
        let place = PagePlaceInTree {
            level: 0,
            index: slot / MAP_SHAPE.leaf_entries,
        };
        self.relocate_maps(id, place, &Replaced { slot, from, to, lost })?;
        self.space.record_extent(to);
        self.free_extent(from);
        Ok(true)
    }

    fn relocate_maps(
        &mut self,
        id: u64,
        place: PagePlaceInTree,
        relocation: &impl Relocation,
    ) -> Result<(), TreeError> {
        let related = self.table.related(id);
        let mut relatives = self.relatives(id);
        let needed = self.pages_spoken_for() + self.pages_set_aside();
        relocate(
            &mut self.metadata(),
            &mut relatives,
            place,
            relocation,
            |metadata, pages| has_room(metadata.space.free_pages(), needed, pages),
        )?;
        for Relative { tree, .. } in relatives {
            let before = self.table.get(tree.id).and_then(|entry| entry.root);
            if before != tree.root {
                self.table.change_map(tree.id, |entry| entry.root = tree.root);
            }
        }
        for id in related {
            self.leaves.forget(id, first_of(place));
        }
        Ok(())
    }

    /// What comes first in a map, from a slot on, that has to move.
    fn next_to_move(&mut self, id: u64, wanted: Wanted, from: u64) -> Result<NextPlace, TreeError> {
        let Some(entry) = self.table.get(id).cloned() else {
            return Ok(NextPlace::End);
        };
        let from = match entry.state {
            VolumeState::Deleting => from.max(entry.delete_cursor),
            VolumeState::InUse | VolumeState::Kept => from,
        };
        let tree = self.table.tree(&entry);
        // What the deletion of a parent has passed is the child's alone.
        let parent = self.table.get(entry.parent);
        let parent = parent.filter(|parent| parent.state != VolumeState::Deleting);
        let parent = parent.map(|parent| self.table.tree(parent));
        next_place(&self.metadata(), &tree, parent.as_ref(), from, &Sought(wanted))
    }

    /// Whether a page on the way to an entry that is there has to move.
    fn is_on_the_way(&mut self, tree: &Tree, entry: u64, wanted: Wanted) -> Result<bool, TreeError> {
        let pages = pages_to(&self.metadata(), tree, entry)?;
        let is_there = pages.len() == usize::from(tree.shape.height) + 1;
        Ok(is_there && pages.iter().any(|(pointer, _)| wanted.page(pointer)))
    }

    /// Everything of a tree that nobody shares is freed.
    pub(super) fn release_allocation(&mut self, device: u8) -> Result<(), TreeError> {
        use crate::layout::page::FAN_OUT;
        use crate::tree::PageStore;
        let tree = self.allocation_tree(device);
        let mut metadata = self.metadata();
        let mut pages = Vec::new();
        let mut open: Vec<(PagePointer, u8, u64)> = tree
            .root
            .map(|root| (root, tree.shape.height, 0))
            .into_iter()
            .collect();
        while let Some((pointer, level, index)) = open.pop() {
            pages.push(pointer);
            if level > 0 {
                let page = metadata.page(&pointer, &tree.identity_at(&pointer, level, index))?;
                let below = (0..FAN_OUT).filter_map(|at| Some((page.pointer(at)?, at)));
                open.extend(below.map(|(below, at)| (below, level - 1, index * FAN_OUT + at)));
            }
        }
        for pointer in pages {
            for copy in [pointer.first, pointer.second] {
                // Leaves may never have been loaded. What is no page cannot be freed as one, and is told
                // then.
                let _ = metadata.space.adopt_page(copy);
            }
            metadata.release(&pointer);
        }
        self.allocation.remove(&device);
        Ok(())
    }

    /// The ids of all volumes and snapshots, deleted ones too.
    pub(super) fn all_ids(&self) -> BTreeSet<u64> {
        self.table.entries().map(|entry| entry.id).collect()
    }
}

/// Whether so many pages are left to what was promised room once new ones are made, each twice.
fn has_room(free_pages: u64, spoken_for: u64, pages: usize) -> Result<(), TreeError> {
    match free_pages >= spoken_for + 2 * pages as u64 {
        true => Ok(()),
        false => Err(TreeError::NoSpace),
    }
}
