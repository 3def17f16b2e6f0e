//! Which extents are free, and which pages.
//!
//! Invariants:
//! - An extent is *free*, *data* (all of it is used), or holds *pages* (a bit for each that is used, at
//!   least one).
//! - What is freed is not free: it is *pending*, then *closing* while the checkpoint is written in which it
//!   is free, and free once that is durable. So what a crash goes back to is never overwritten. The state
//!   that goes to the drive, as [`DeviceSpace::image`] gives it, has neither.
//! - An extent that was taken for data is *unrecorded* until a map points to it: it is not in the state that
//!   goes to the drive, so that a crash before its first record leaves nothing behind.
//! - What a checkpoint writes of the state is as it was when it closed: see `images`.
//! - Data never takes the last extents: so many as `reserve_extents` says stay for pages, so that deleting
//!   in a full pool finds room for the pages that it changes.
//! - The two copies of a page are in two extents, so that no damage of one extent takes both.
//!
//! Memory: a bit for each extent, 2 MiB per TiB, and entries for extents with pages and for what was freed
//! since the last checkpoint.

mod images;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{BlockAddress, EXTENT_BLOCKS, ExtentId};
pub use images::LeafImage;
use images::Leaves;

/// The mask of an extent that is used as a whole.
const WHOLE: u16 = u16::MAX;

/// No space for what was asked. Freeing, and a checkpoint after it, help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no extent is free; delete something, and wait for the next checkpoint")]
pub struct NoSpace;

/// Something was to be marked or freed that is not in that state: damage of the metadata, or a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is past the end of the device.
    #[error("extent {0} is past the end of the device")]
    OutOfRange(u64),
    /// Two things claim it.
    #[error("extent {0} is used for something else already")]
    Used(u64),
    /// It is not used, or was freed before.
    #[error("extent {0} is not used so")]
    NotUsed(u64),
}

/// How much of a device is used, in extents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceCounts {
    /// Can be taken now, the reserve included.
    pub free: u64,
    /// Will be free after one or two checkpoints.
    pub freeing: u64,
    /// Hold pages, in use or being freed.
    pub pages: u64,
}

/// What was freed and is not free yet: blocks by extent.
type Freed = BTreeMap<u64, u16>;

/// The space of one device.
#[derive(Debug, Clone)]
pub struct DeviceSpace {
    device: u8,
    extents: u64,
    /// Extents from this one on are not taken: no durable checkpoint knows of them.
    usable: u64,
    /// A bit for each extent that is not free: used, pending or closing.
    taken: Vec<u64>,
    free: u64,
    /// Extents with pages: blocks that are taken.
    pages: BTreeMap<u64, u16>,
    /// Extents with pages that have free blocks.
    partial: BTreeSet<u64>,
    /// Free blocks of those.
    partial_blocks: u64,
    pending: Freed,
    closing: Freed,
    /// Taken for data that no map points to yet.
    unrecorded: BTreeSet<u64>,
    reserve_extents: u64,
    /// Where to look for a free extent next.
    cursor: u64,
    /// Leaves of the allocation state that changed.
    leaves: Leaves,
}

impl DeviceSpace {
    /// A device on which nothing is used.
    pub fn new(device: u8, extents: u64, reserve_extents: u64) -> Self {
        let words = usize::try_from(extents.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            device,
            extents,
            usable: extents,
            taken: vec![0; words],
            free: extents,
            pages: BTreeMap::new(),
            partial: BTreeSet::new(),
            partial_blocks: 0,
            pending: BTreeMap::new(),
            closing: BTreeMap::new(),
            unrecorded: BTreeSet::new(),
            reserve_extents,
            cursor: 0,
            leaves: Leaves::default(),
        }
    }

    /// Extents of the device.
    pub fn extents(&self) -> u64 {
        self.extents
    }

    /// How much is used.
    pub fn counts(&self) -> SpaceCounts {
        let whole = |freed: &Freed| freed.iter().filter(|(_, mask)| **mask == WHOLE).count() as u64;
        SpaceCounts {
            free: self.free,
            freeing: whole(&self.pending) + whole(&self.closing),
            pages: self.pages.len() as u64,
        }
    }

    fn is_taken(&self, number: u64) -> bool {
        let word = self
            .taken
            .get((number / 64) as usize)
            .copied()
            .unwrap_or(u64::MAX);
        word >> (number % 64) & 1 == 1
    }

    fn set_taken(&mut self, number: u64, taken: bool) {
        let Some(word) = self.taken.get_mut((number / 64) as usize) else {
            return;
        };
        let bit = 1 << (number % 64);
        let counts = u64::from(number < self.usable);
        if taken {
            *word |= bit;
            self.free -= counts;
        } else {
            *word &= !bit;
            self.free += counts;
        }
    }

    /// A free extent from the cursor on, and around.
    fn find(&self) -> Option<u64> {
        let words = self.taken.len() as u64;
        let start = self.cursor / 64;
        // The word of the cursor twice: from the cursor on first, and all of it at the end.
        (0..=words).find_map(|step| {
            let at = (start + step) % words;
            let mut free = !self.taken.get(at as usize)?;
            if step == 0 {
                free &= u64::MAX << (self.cursor % 64);
            }
            let number = at * 64 + u64::from(free.trailing_zeros());
            (free != 0 && number < self.usable).then_some(number)
        })
    }

    fn take(&mut self, number: u64) {
        self.set_taken(number, true);
        self.cursor = (number + 1) % self.extents;
    }

    /// Takes an extent for data. [`DeviceSpace::record_extent`] or [`DeviceSpace::return_extent`] follows.
    ///
    /// # Errors
    ///
    /// [`NoSpace`] when only the reserve is left.
    pub fn take_extent(&mut self) -> Result<ExtentId, NoSpace> {
        if self.free <= self.reserve_extents {
            return Err(NoSpace);
        }
        self.take_reserved_extent()
    }

    /// The same of what is reserved for metadata.
    ///
    /// # Errors
    ///
    /// [`NoSpace`] when nothing is left.
    pub fn take_reserved_extent(&mut self) -> Result<ExtentId, NoSpace> {
        let number = self.find().ok_or(NoSpace)?;
        self.take(number);
        self.unrecorded.insert(number);
        Ok(ExtentId::new(self.device, number))
    }

    /// A map points to an extent that was taken. No more than once is needed, and more do nothing.
    pub fn record_extent(&mut self, extent: ExtentId) {
        if self.unrecorded.contains(&extent.number()) {
            self.touch(extent.number());
            self.unrecorded.remove(&extent.number());
        }
    }

    /// An extent that was taken was not needed. No map ever pointed to it, so it is free at once; nothing
    /// happens to one that is recorded.
    pub fn return_extent(&mut self, extent: ExtentId) {
        if self.unrecorded.remove(&extent.number()) {
            self.set_taken(extent.number(), false);
        }
    }

    /// Extents that can be taken for data.
    pub fn free_extents(&self) -> u64 {
        self.free.saturating_sub(self.reserve_extents)
    }

    /// Takes a block for a page, not in the extent `apart`.
    ///
    /// # Errors
    ///
    /// [`NoSpace`] when there is none, the reserve included.
    pub fn take_page(&mut self, apart: Option<ExtentId>) -> Result<BlockAddress, NoSpace> {
        let apart = apart
            .filter(|extent| extent.device() == self.device)
            .map(ExtentId::number);
        let partial = self.partial.iter().copied().find(|number| Some(*number) != apart);
        let number = match partial {
            Some(number) => number,
            None => self.find().ok_or(NoSpace)?,
        };
        self.touch(number);
        if partial.is_none() {
            self.take(number);
            self.partial_blocks += EXTENT_BLOCKS as u64;
        }
        let mask = self.pages.entry(number).or_insert(0);
        let index = mask.trailing_ones() as u8;
        *mask |= 1 << index;
        self.partial_blocks -= 1;
        if *mask == WHOLE {
            self.partial.remove(&number);
        } else {
            self.partial.insert(number);
        }
        Ok(ExtentId::new(self.device, number).block(index))
    }

    /// Blocks that can still be taken for pages.
    pub fn free_pages(&self) -> u64 {
        self.free * EXTENT_BLOCKS as u64 + self.partial_blocks
    }

    /// Frees an extent of data: it can be taken after the next checkpoint.
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing is changed.
    pub fn free_extent(&mut self, extent: ExtentId) -> Result<(), StateError> {
        let number = self.check(extent)?;
        let freed = self.pending.contains_key(&number)
            || self.closing.contains_key(&number)
            || self.unrecorded.contains(&number);
        if !self.is_taken(number) || self.pages.contains_key(&number) || freed {
            return Err(StateError::NotUsed(number));
        }
        self.touch(number);
        self.pending.insert(number, WHOLE);
        Ok(())
    }

    /// Frees a page: it can be taken after the next checkpoint.
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing is changed.
    pub fn free_page(&mut self, page: BlockAddress) -> Result<(), StateError> {
        let number = self.check(page.extent())?;
        let bit = 1 << page.index();
        if self.used_mask(number) & bit == 0 || !self.pages.contains_key(&number) {
            return Err(StateError::NotUsed(number));
        }
        self.touch(number);
        *self.pending.entry(number).or_insert(0) |= bit;
        Ok(())
    }

    fn check(&self, extent: ExtentId) -> Result<u64, StateError> {
        let number = extent.number();
        if extent.device() == self.device && number < self.extents {
            Ok(number)
        } else {
            Err(StateError::OutOfRange(number))
        }
    }

    /// Blocks of an extent that are used, without those being freed.
    fn used_mask(&self, number: u64) -> u16 {
        if !self.is_taken(number) || self.unrecorded.contains(&number) {
            return 0;
        }
        let taken = self.pages.get(&number).copied().unwrap_or(WHOLE);
        let freed = |from: &Freed| from.get(&number).copied().unwrap_or(0);
        taken & !freed(&self.pending) & !freed(&self.closing)
    }

    /// Marks an extent as used by data or by something that never goes, at import or creation. Marking data
    /// twice is no error with `again`: several records may name one extent.
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing is changed.
    pub fn mark_extent(&mut self, extent: ExtentId, again: bool) -> Result<(), StateError> {
        let number = self.check(extent)?;
        if !self.is_taken(number) {
            self.touch(number);
            self.set_taken(number, true);
            return Ok(());
        }
        if again && !self.pages.contains_key(&number) {
            Ok(())
        } else {
            Err(StateError::Used(number))
        }
    }

    /// The device has more extents from now on. They are taken only after [`DeviceSpace::use_all`], which is
    /// for when a checkpoint is durable that knows of them: before that no record may name them.
    pub fn grow(&mut self, extents: u64) {
        if extents > self.extents {
            let words = usize::try_from(extents.div_ceil(64)).unwrap_or(usize::MAX);
            self.taken.resize(words, 0);
            self.extents = extents;
        }
    }

    /// All extents may be taken.
    pub fn use_all(&mut self, reserve_extents: u64) {
        let taken = (self.usable..self.extents).filter(|number| self.is_taken(*number));
        self.free += self.extents - self.usable - taken.count() as u64;
        self.usable = self.extents;
        self.reserve_extents = reserve_extents;
    }

    /// A leaf of the allocation state goes to the drive with the next checkpoint, changed or not.
    pub fn write_leaf_again(&mut self, leaf: u64) {
        self.touch(leaf.saturating_mul(crate::layout::page::ALLOCATION_LEAF_EXTENTS));
    }

    /// Extents that are not free: used, being freed, or taken and not recorded yet.
    pub fn taken_extents(&self) -> u64 {
        self.usable - self.free
    }

    /// The first neighbouring extents of a range that are not free, so many at most.
    pub fn taken_run(&self, range: std::ops::Range<u64>, extents_max: u64) -> Option<std::ops::Range<u64>> {
        let (mut next, end) = (range.start, range.end.min(self.extents));
        while next < end && !self.is_taken(next) {
            // Word by word where nothing is taken.
            let word = self.taken.get((next / 64) as usize).copied().unwrap_or(u64::MAX);
            next += match word {
                0 => 64 - next % 64,
                _ => 1,
            };
        }
        let stop = end.min(next.saturating_add(extents_max));
        let run = (next..stop)
            .find(|number| !self.is_taken(*number))
            .unwrap_or(stop);
        (next < run).then_some(next..run)
    }

    /// The last of so many neighbouring extents that are free: the first of them.
    pub fn find_run(&self, extents: u64) -> Option<u64> {
        let mut run = 0;
        for number in (0..self.usable).rev() {
            run = if self.is_taken(number) { 0 } else { run + 1 };
            if run == extents {
                return Some(number);
            }
        }
        None
    }

    /// Keeps an extent from being used that is free on the drive from the next checkpoint on, until
    /// [`DeviceSpace::return_extent`].
    ///
    /// # Errors
    ///
    /// [`StateError::NotUsed`] for one with pages, or that is being freed; nothing is changed.
    pub fn hold_extent(&mut self, extent: ExtentId) -> Result<(), StateError> {
        let number = self.check(extent)?;
        let freed = self.pending.contains_key(&number) || self.closing.contains_key(&number);
        if freed || self.pages.contains_key(&number) {
            return Err(StateError::NotUsed(number));
        }
        self.touch(number);
        if !self.is_taken(number) {
            self.set_taken(number, true);
        }
        self.unrecorded.insert(number);
        Ok(())
    }

    /// Takes the used blocks of an extent as a checkpoint has them. Which of the extents used as a whole
    /// hold pages is not in the mask, and told later by [`DeviceSpace::adopt_page`].
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing is changed.
    pub fn load(&mut self, number: u64, mask: u16) -> Result<(), StateError> {
        if mask == 0 {
            return Ok(());
        }
        if number >= self.extents {
            return Err(StateError::OutOfRange(number));
        }
        if self.is_taken(number) {
            return Err(StateError::Used(number));
        }
        self.set_taken(number, true);
        if mask != WHOLE {
            self.pages.insert(number, mask);
            self.partial.insert(number);
            self.partial_blocks += u64::from(mask.count_zeros());
        }
        Ok(())
    }

    /// Says that a used block is a page: of an extent that [`DeviceSpace::load`] found used as a whole, all
    /// blocks are pages then. To be called before a page of a checkpoint is freed.
    ///
    /// # Errors
    ///
    /// [`StateError::NotUsed`].
    pub fn adopt_page(&mut self, page: BlockAddress) -> Result<(), StateError> {
        let number = self.check(page.extent())?;
        if self.used_mask(number) >> page.index() & 1 == 0 {
            return Err(StateError::NotUsed(number));
        }
        self.pages.entry(number).or_insert(WHOLE);
        Ok(())
    }

    /// The used blocks of an extent as they go to the drive: what is being freed is free.
    pub fn image(&self, number: u64) -> u16 {
        if number < self.extents {
            self.used_mask(number)
        } else {
            0
        }
    }

    /// Whether anything was freed that is not free yet.
    pub fn is_freeing(&self) -> bool {
        !self.pending.is_empty() || !self.closing.is_empty()
    }

    /// Closes a checkpoint: what was freed before is free in it. One at a time: the last one has ended, with
    /// [`DeviceSpace::free_closed`].
    pub fn close_checkpoint(&mut self) {
        debug_assert!(self.closing.is_empty(), "the last checkpoint has ended");
        std::mem::swap(&mut self.pending, &mut self.closing);
        self.leaves.close();
    }

    /// The checkpoint that was closed is durable: what is free in it can be taken, so many extents of it with
    /// each call; whether more are left.
    pub fn free_closed(&mut self, extents_max: usize) -> bool {
        for _ in 0..extents_max {
            let Some((number, freed)) = self.closing.pop_first() else {
                return false;
            };
            let before = self.pages.get(&number).copied();
            let left = before.map_or(0, |mask| mask & !freed);
            self.partial_blocks -= before.map_or(0, |mask| u64::from(mask.count_zeros()));
            if left == 0 {
                self.pages.remove(&number);
                self.partial.remove(&number);
                self.set_taken(number, false);
            } else {
                self.pages.insert(number, left);
                self.partial.insert(number);
                self.partial_blocks += u64::from(left.count_zeros());
            }
        }
        !self.closing.is_empty()
    }
}
