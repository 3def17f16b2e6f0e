//! Looking at everything that is stored, before somebody needs it: every block that has a checksum, and both
//! copies of every page. A page with one good copy is repaired; a bad block of data is told.
//!
//! How far it is becomes durable with each checkpoint, and so does what it found: one that was interrupted
//! goes on where it was, after a restart too, and the last one is remembered.
//!
//! Of a read-only pool all is looked at, nothing is repaired, and nothing is remembered. What is on a
//! device that is missing is not looked at.
//!
//! Volumes go on meanwhile. A slot is looked at with its blocks locked; a page that looks bad is looked at
//! again while no checkpoint runs, since its place may have been given to another page by then.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{Gather, IoError};
use pollux_hugepages::Slice;
use pollux_reactor::{Unabandoned, now, sleep};

use super::checkpoint::CheckpointHold;
use super::{ALLOCATION_SHAPE, LostBlock, Pool, PoolError, State};
use crate::cache::load_copy;
use crate::layout::page::{MAP_LEAF_SLOTS, PageIdentity};
use crate::layout::scrub::{SCRUB_BAD_BLOCKS, ScrubRecord, ScrubState};
use crate::layout::slot::{Fragment, Slot};
use crate::layout::volume::VolumeState;
use crate::layout::{BLOCK_BYTES, BlockAddress, EXTENT_BLOCKS, PagePointer, crc32c};
use crate::tree::{Tree, TreeError, differences, pages_to};

/// Bad blocks that are told one by one; all are counted.
const BAD_BLOCKS_MAX: usize = 10_000;

/// How long a scrub goes on before a checkpoint keeps how far it is, if no other one does.
const KEPT_EVERY: Duration = Duration::from_secs(60);

/// How a pool is scrubbed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes read a second, at most; 0 for no limit.
    pub bytes_per_second: u64,
    /// Begin with the first block again where an earlier scrub was interrupted.
    pub begin_anew: bool,
}

/// How far a scrub has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Volumes and snapshots that are done, deleted ones that are still kept among them.
    pub volumes_done: usize,
    /// How many there are.
    pub volumes: usize,
    /// Bytes that were read.
    pub read_bytes: u64,
}

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Blocks of data that were read and compared with their checksums.
    pub blocks: u64,
    /// Blocks that were not read: those without a checksum, and those on a device that is missing.
    pub unchecked_blocks: u64,
    /// Blocks that do not match their checksum or cannot be read, the first of them.
    pub bad_blocks: Vec<LostBlock>,
    /// How many there are.
    pub bad_block_count: u64,
    /// Pages of metadata whose copies were both read.
    pub pages: u64,
    /// Copies of pages that were bad and are written again.
    pub repaired_pages: u64,
    /// Copies of pages that are bad and were left so, as the pool is read-only.
    pub unrepaired_pages: u64,
    /// Pages without a good copy, or whose bad copy could not be written.
    pub lost_pages: u64,
}

/// A scrub under way.
struct Scrub<'a> {
    options: ScrubOptions,
    report: ScrubReport,
    progress: ScrubProgress,
    tell: &'a mut dyn FnMut(ScrubProgress),
    started: pollux_reactor::Instant,
    kept: pollux_reactor::Instant,
    started_seconds: u64,
    /// Pages that were looked at, by the address of their first copy.
    seen: HashSet<u64>,
}

impl Scrub<'_> {
    /// So much was read: waits as the limit asks for.
    async fn read(&mut self, bytes: u64) {
        self.progress.read_bytes += bytes;
        if self.options.bytes_per_second > 0 {
            let due = self.progress.read_bytes as f64 / self.options.bytes_per_second as f64;
            let elapsed = now() - self.started;
            if let Some(ahead) = Duration::from_secs_f64(due).checked_sub(elapsed)
                && !ahead.is_zero()
            {
                sleep(ahead).await;
            }
        }
    }

    /// What is durable with the next checkpoint.
    fn record(&self, state: ScrubState) -> ScrubRecord {
        let bad_blocks = self.report.bad_blocks.iter().take(SCRUB_BAD_BLOCKS);
        ScrubRecord {
            state,
            started_seconds: self.started_seconds,
            blocks: self.report.blocks,
            unchecked_blocks: self.report.unchecked_blocks,
            bad_block_count: self.report.bad_block_count,
            bad_blocks: bad_blocks.map(|bad| (bad.volume, bad.block)).collect(),
            pages: self.report.pages,
            repaired_pages: self.report.repaired_pages,
            lost_pages: self.report.lost_pages,
        }
    }

    fn bad(&mut self, volume: u64, block: u64) {
        self.report.bad_block_count += 1;
        if self.report.bad_blocks.len() < BAD_BLOCKS_MAX {
            self.report.bad_blocks.push(LostBlock { volume, block });
        }
    }
}

impl From<&ScrubRecord> for ScrubReport {
    fn from(record: &ScrubRecord) -> Self {
        let bad_blocks = record.bad_blocks.iter();
        Self {
            blocks: record.blocks,
            unchecked_blocks: record.unchecked_blocks,
            bad_blocks: bad_blocks
                .map(|(volume, block)| LostBlock {
                    volume: *volume,
                    block: *block,
                })
                .collect(),
            bad_block_count: record.bad_block_count,
            pages: record.pages,
            repaired_pages: record.repaired_pages,
            unrepaired_pages: 0,
            lost_pages: record.lost_pages,
        }
    }
}

/// The only scrub of a pool, until it is dropped.
struct Scrubbing<'a>(&'a Pool);

impl Drop for Scrubbing<'_> {
    fn drop(&mut self) {
        self.0.scrubbing.set(false);
    }
}

impl Pool {
    /// How far a scrub has come, or what the last one found.
    pub fn last_scrub(&self) -> ScrubRecord {
        self.state.borrow().scrub.clone()
    }

    /// Reads everything that is stored and compares it with its checksums; `tell` is told how it gets on. It
    /// goes on where the last one was, if that did not come to its end. What is dropped in between is
    /// interrupted.
    ///
    /// # Errors
    ///
    /// [`PoolError::Busy`] if one is under way, [`PoolError::Page`] if a page without a good copy leads to
    /// something that is not in memory, and [`PoolError::Closed`].
    pub async fn scrub(
        self: &Rc<Self>,
        options: ScrubOptions,
        tell: &mut dyn FnMut(ScrubProgress),
    ) -> Result<ScrubReport, PoolError> {
        self.check_open()?;
        if self.scrubbing.replace(true) {
            return Err(PoolError::Busy {
                name: self.name.clone(),
            });
        }
        let _scrubbing = Scrubbing(self);
        let (ids, before): (Vec<u64>, ScrubRecord) = {
            let state = self.state.borrow();
            let ids = state.table.entries().map(|entry| entry.id);
            (ids.collect(), state.scrub.clone())
        };
        let place = match before.state {
            ScrubState::UnderWay { volume, slot } if !options.begin_anew && !self.read_only => {
                Some((volume, slot))
            }
            ScrubState::UnderWay { .. } | ScrubState::Never | ScrubState::Ended { .. } => None,
        };
        let (at_volume, at_slot) = place.unwrap_or_default();
        let mut scrub = Scrub {
            options,
            report: place.map(|_| ScrubReport::from(&before)).unwrap_or_default(),
            progress: ScrubProgress {
                volumes: ids.len(),
                volumes_done: ids.iter().filter(|id| **id < at_volume).count(),
                ..ScrubProgress::default()
            },
            tell,
            started: now(),
            kept: now(),
            started_seconds: place.map_or(self.now_seconds(), |_| before.started_seconds),
            seen: HashSet::new(),
        };
        if at_volume == 0 {
            self.keep_scrub(&mut scrub, 0, 0).await?;
            self.scrub_metadata(&ids, &mut scrub).await?;
        }
        for id in ids.into_iter().filter(|id| *id >= at_volume) {
            let from = if id == at_volume { at_slot } else { 0 };
            self.scrub_volume(id, from, &mut scrub).await?;
            scrub.progress.volumes_done += 1;
            (scrub.tell)(scrub.progress);
        }
        if self.read_only {
            return Ok(scrub.report);
        }
        let ended = ScrubState::Ended {
            seconds: self.now_seconds(),
        };
        self.state.borrow_mut().scrub = scrub.record(ended);
        self.checkpoint().await?;
        Ok(scrub.report)
    }

    /// All before a slot of a volume was looked at. That is durable with the next checkpoint, which is made
    /// if there was none for long.
    async fn keep_scrub(
        self: &Rc<Self>,
        scrub: &mut Scrub<'_>,
        volume: u64,
        slot: u64,
    ) -> Result<(), PoolError> {
        if self.read_only {
            return Ok(());
        }
        self.state.borrow_mut().scrub = scrub.record(ScrubState::UnderWay { volume, slot });
        if now() - scrub.kept >= KEPT_EVERY {
            self.checkpoint().await?;
            scrub.kept = now();
        }
        Ok(())
    }

    /// The pages of the table of volumes and of the allocation state.
    async fn scrub_metadata(self: &Rc<Self>, ids: &[u64], scrub: &mut Scrub<'_>) -> Result<(), PoolError> {
        for id in ids {
            self.scrub_path(*id, scrub, |state| Some(state.volumes_tree()))
                .await?;
        }
        let devices: Vec<(u8, u64)> = {
            let state = self.state.borrow();
            let numbers = state.space.numbers();
            numbers
                .filter_map(|number| Some((number, state.space.device(number)?.extents())))
                .collect()
        };
        for (device, extents) in devices {
            for first in (0..extents).step_by(ALLOCATION_SHAPE.leaf_entries as usize) {
                self.scrub_path(first, scrub, |state| Some(state.allocation_tree(device)))
                    .await?;
            }
        }
        Ok(())
    }

    async fn scrub_volume(
        self: &Rc<Self>,
        id: u64,
        first_slot: u64,
        scrub: &mut Scrub<'_>,
    ) -> Result<(), PoolError> {
        let mut next = Some(first_slot);
        while let Some(from) = next {
            self.check_open()?;
            let leaf = self
                .with_pages(|state| {
                    // What its parent has too is looked at there.
                    let Some(entry) = state.table.get(id).cloned() else {
                        return Ok(None);
                    };
                    let passed = match entry.state {
                        VolumeState::Deleting => entry.delete_cursor,
                        VolumeState::InUse | VolumeState::Kept => 0,
                    };
                    let tree = state.table.tree(&entry);
                    let nothing = Tree { root: None, ..tree };
                    let parent = state.table.get(entry.parent);
                    let parent = parent.map_or(nothing, |parent| state.table.tree(parent));
                    let found = differences(&state.metadata(), &tree, &parent, from.max(passed), 1)?;
                    Ok(found.leaves.first().map(|(first, _)| *first))
                })
                .await?;
            let Some(first) = leaf else { return Ok(()) };
            self.scrub_path(first, scrub, |state| state.tree_of(id)).await?;
            for index in first..first + MAP_LEAF_SLOTS {
                self.scrub_slot(id, index, scrub).await?;
            }
            (scrub.tell)(scrub.progress);
            self.keep_scrub(scrub, id, first + MAP_LEAF_SLOTS).await?;
            next = Some(first + MAP_LEAF_SLOTS);
        }
        Ok(())
    }

    async fn scrub_slot(
        self: &Rc<Self>,
        id: u64,
        index: u64,
        scrub: &mut Scrub<'_>,
    ) -> Result<(), PoolError> {
        loop {
            let head = self.head_of(id);
            let _locked = match &head {
                Some(head) => Some(head.lock_slot(index).await),
                None => None,
            };
            let held = self.with_pages(|state| state.held_slot(id, index)).await?;
            let (slot, born_after, checksums) = held.unwrap_or_default();
            let (mut blocks, mut unchecked, mut bad) = (0, 0, Vec::new());
            for fragment in slot
                .fragments
                .iter()
                .filter(|fragment| fragment.birth > born_after)
            {
                // Known to be bad, with or without a checksum.
                bad.extend((0..EXTENT_BLOCKS as u8).filter(|block| fragment.lost >> block & 1 == 1));
                blocks += u64::from(fragment.lost.count_ones());
                let held = u64::from(fragment.readable().count_ones());
                if !checksums || self.is_absent(fragment.extent.device()) {
                    unchecked += held;
                    continue;
                }
                blocks += held;
                bad.extend(self.scrub_fragment(&slot, fragment, scrub).await?);
            }
            if !bad.is_empty() {
                // Its place may belong to others since it was moved or deleted, and who opened the volume
                // meanwhile may write to it.
                let now = self.with_pages(|state| state.held_slot(id, index)).await?;
                let is_opened = head.is_none() && self.head_of(id).is_some();
                if is_opened || now.is_none_or(|(now, ..)| now != slot) {
                    continue;
                }
            }
            scrub.report.blocks += blocks;
            scrub.report.unchecked_blocks += unchecked;
            for block in bad {
                let block = index * EXTENT_BLOCKS as u64 + u64::from(block);
                scrub.bad(id, block);
                self.state.borrow_mut().suspect(id, block);
            }
            return Ok(());
        }
    }

    /// The blocks of a fragment that do not match their checksum or cannot be read, without those that are
    /// lost.
    async fn scrub_fragment(
        &self,
        slot: &Slot,
        fragment: &Fragment,
        scrub: &mut Scrub<'_>,
    ) -> Result<Vec<u8>, PoolError> {
        let Fragment { extent, .. } = *fragment;
        let device = self.device(extent.device())?;
        let place = extent.number() * EXTENT_BLOCKS as u64;
        let mut bad = Vec::new();
        for (first, blocks) in crate::volume::runs(fragment.readable()) {
            let all = device.read(place + u64::from(first), blocks.into()).await.ok();
            for number in 0..blocks {
                let block = first + number;
                let at = usize::from(number) * BLOCK_BYTES;
                let single;
                let bytes = match &all {
                    Some(all) => all.get(at..at + BLOCK_BYTES),
                    // One by one, to tell which it is.
                    None => {
                        single = device.read(place + u64::from(block), 1).await.ok();
                        single.as_deref()
                    }
                };
                let expected = slot.checksums.get(usize::from(block)).copied();
                if bytes.map(crc32c) != expected {
                    bad.push(block);
                }
            }
            scrub.read(u64::from(blocks) * BLOCK_BYTES as u64).await;
        }
        Ok(bad)
    }

    /// Looks at the pages on the way to an entry of a tree.
    async fn scrub_path(
        self: &Rc<Self>,
        entry: u64,
        scrub: &mut Scrub<'_>,
        tree: impl Fn(&State) -> Option<Tree>,
    ) -> Result<(), PoolError> {
        let path = |state: &mut State| -> Result<Vec<(PagePointer, PageIdentity)>, TreeError> {
            match tree(state) {
                Some(tree) => pages_to(&state.metadata(), &tree, entry),
                None => Ok(Vec::new()),
            }
        };
        for (pointer, identity) in self.with_pages(path).await? {
            // A page without a CRC is in memory only.
            if pointer.crc == 0 || !scrub.seen.insert(pointer.first.raw()) {
                continue;
            }
            scrub.report.pages += 1;
            let bad = self.bad_copies(&pointer, &identity).await;
            scrub.read(2 * BLOCK_BYTES as u64).await;
            if bad.is_empty() {
                continue;
            }
            if self.read_only {
                match self.any_page(&pointer, &identity).await {
                    Ok(_) => scrub.report.unrepaired_pages += bad.len() as u64,
                    Err(_) => scrub.report.lost_pages += 1,
                }
                continue;
            }
            let hold = Rc::new(self.hold_checkpoints().await?);
            let is_there = self.with_pages(path).await?.contains(&(pointer, identity));
            if is_there {
                self.repair(&pointer, &identity, &hold, scrub).await;
            }
            drop(hold);
        }
        Ok(())
    }

    async fn bad_copies(&self, pointer: &PagePointer, identity: &PageIdentity) -> Vec<BlockAddress> {
        let devices = self.devices.borrow().clone();
        let mut bad = Vec::new();
        for copy in [pointer.first, pointer.second] {
            let read = load_copy(self.uuid, &devices, copy, pointer.crc, identity).await;
            // What is on a device that is missing may be good.
            if read.is_err() && !self.is_absent(copy.extent().device()) {
                bad.push(copy);
            }
        }
        bad
    }

    /// Writes copies of a page that are bad again, from the other one or from memory.
    async fn repair(
        self: &Rc<Self>,
        pointer: &PagePointer,
        identity: &PageIdentity,
        hold: &Rc<CheckpointHold>,
        scrub: &mut Scrub<'_>,
    ) {
        let bad = self.bad_copies(pointer, identity).await;
        if bad.is_empty() {
            return;
        }
        let Ok(page) = self.any_page(pointer, identity).await else {
            scrub.report.lost_pages += 1;
            return;
        };
        for copy in bad {
            let (pool, hold) = (self.clone(), hold.clone());
            let bytes = Slice::copy_from(page.bytes());
            // Its place is given to nobody else while it is written, whether or not anybody waits for that.
            let writing = Unabandoned::new(async move {
                let written = pool.write_page_copy(copy, bytes).await;
                drop(hold);
                written
            });
            match writing.await {
                Ok(()) => {
                    scrub.report.repaired_pages += 1;
                    tracing::warn!(pool = %self.name, page = ?identity, "a copy of a page was repaired");
                }
                Err(error) => {
                    scrub.report.lost_pages += 1;
                    tracing::error!(pool = %self.name, page = ?identity, %error, "a page cannot be repaired");
                }
            }
        }
    }

    async fn write_page_copy(&self, address: BlockAddress, bytes: Slice) -> Result<(), IoError> {
        let extent = address.extent();
        let device = self.device(extent.device())?;
        let block = extent.number() * EXTENT_BLOCKS as u64 + u64::from(address.index());
        device.write(block, Gather::from(bytes), true).await
    }
}

impl State {
    /// A slot of a volume or snapshot, the generation after which what is its own was born, and whether it
    /// has checksums; `None` where nothing is, or the deletion has passed.
    fn held_slot(&mut self, id: u64, index: u64) -> Result<Option<(Slot, u64, bool)>, TreeError> {
        let Some(entry) = self.table.get(id) else {
            return Ok(None);
        };
        let checksums = entry.checksums;
        if entry.state == VolumeState::Deleting && index < entry.delete_cursor {
            return Ok(None);
        }
        let slot = self.slot(id, index)?;
        Ok(Some((slot, self.parent_generation(id, index), checksums)))
    }
}
