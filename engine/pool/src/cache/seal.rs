//! Sealing the pages that a checkpoint has closed, one by one, while trees go on.

use std::collections::HashMap;

use pollux_hugepages::Slice;

use super::{Cached, PageCache, SealedPage, Unsealed};
use crate::layout::page::{FAN_OUT, Page, PageIdentity, PageKind, VOLUME_LEAF_ENTRIES};
use crate::layout::volume::VolumeEntry;
use crate::layout::{BlockAddress, PagePointer};
use crate::tree::LEVELS_MAX;

/// Kinds of trees.
const KINDS: usize = 3;

/// Which pages come before which others: those that are pointed to before those that point to them.
const RANKS: usize = KINDS * LEVELS_MAX as usize;

/// By the raw address of the first copy: birth and CRC. What has the same address and birth is the same page.
type Crcs = HashMap<u64, (u64, u32), foldhash::fast::FixedState>;

/// Pages by rank, each by the raw address of its first copy. Some may be gone.
type Ranked = [Vec<u64>; RANKS];

/// See the module.
pub(super) struct Sealing {
    /// Made since the last checkpoint closed.
    open: Ranked,
    /// Closed, and not sealed yet.
    closed: Ranked,
    /// Closed pages that their trees have released, and that are not sealed yet.
    kept: HashMap<u64, Cached>,
    /// The CRCs of the pages that the last checkpoint has sealed so far.
    sealed: Crcs,
    /// Those of the one before.
    sealed_before: Crcs,
    /// Nothing of the last checkpoint is left to be sealed.
    is_done: bool,
}

impl Default for Sealing {
    fn default() -> Self {
        Self {
            open: Default::default(),
            closed: Default::default(),
            kept: HashMap::new(),
            sealed: Crcs::default(),
            sealed_before: Crcs::default(),
            is_done: true,
        }
    }
}

fn rank(identity: &PageIdentity) -> usize {
    let kind = match identity.kind {
        PageKind::Map => 0,
        // Their leaves hold the roots of maps.
        PageKind::Volumes => 1,
        PageKind::Allocation => 2,
    };
    kind * usize::from(LEVELS_MAX) + usize::from(identity.level)
}

impl Sealing {
    pub(super) fn made(&mut self, identity: &PageIdentity, key: u64) {
        debug_assert!(identity.level < LEVELS_MAX, "no tree is as high");
        if let Some(pages) = self.open.get_mut(rank(identity)) {
            pages.push(key);
        }
    }

    pub(super) fn close(&mut self) {
        debug_assert!(self.kept.is_empty(), "the last checkpoint has sealed its pages");
        self.closed = std::mem::take(&mut self.open);
        self.is_done = false;
        self.sealed_before = std::mem::take(&mut self.sealed);
    }

    /// A closed page is released.
    pub(super) fn keep(&mut self, key: u64, cached: Cached) {
        if !self.sealed.contains_key(&key) {
            self.kept.insert(key, cached);
        }
    }

    fn pop(&mut self) -> Option<u64> {
        self.closed.iter_mut().find_map(Vec::pop)
    }

    fn crc(&self, pointer: &PagePointer) -> Option<u32> {
        let maps = [&self.sealed, &self.sealed_before].into_iter();
        let mut found = maps.filter_map(|crcs| crcs.get(&pointer.first.raw()));
        let (_, crc) = found.find(|(birth, _)| *birth == pointer.birth)?;
        Some(*crc)
    }

    /// A page is made while others are sealed. Where it is a shadow of one of those, it has pointers to
    /// pages that the checkpoint before has sealed, and whose CRCs nobody knows any more when its turn
    /// comes.
    pub(super) fn complete_new(&self, page: &mut Page) {
        if !self.is_done {
            for_each_incomplete(page, |pointer| {
                self.crc(pointer).map(|crc| PagePointer { crc, ..*pointer })
            });
        }
    }

    /// Gives the pointers of a page the CRCs that they did not have yet.
    fn fill_in(&self, page: &mut Page) -> Result<(), Unsealed> {
        let mut unsealed = None;
        for_each_incomplete(page, |pointer| {
            let crc = self.crc(pointer);
            if crc.is_none() {
                unsealed = Some(Unsealed(pointer.first));
            }
            Some(PagePointer {
                crc: crc?,
                ..*pointer
            })
        });
        unsealed.map_or(Ok(()), Err)
    }
}

/// Replaces the pointers without a CRC, those of an interior page or the roots of volumes.
fn for_each_incomplete(page: &mut Page, mut complete: impl FnMut(&PagePointer) -> Option<PagePointer>) {
    let PageIdentity { kind, level, .. } = *page.identity();
    if level > 0 {
        for at in 0..FAN_OUT {
            let pointer = page.pointer(at).filter(|pointer| pointer.crc == 0);
            if let Some(completed) = pointer.and_then(|pointer| complete(&pointer)) {
                page.put_pointer(at, Some(&completed));
            }
        }
    } else if kind == PageKind::Volumes {
        for at in 0..VOLUME_LEAF_ENTRIES {
            // Checked when the page was opened.
            let Ok(Some(mut entry)) = VolumeEntry::decode(page.entry(at)) else {
                continue;
            };
            let root = entry.root.filter(|root| root.crc == 0);
            if let Some(completed) = root.and_then(|root| complete(&root)) {
                entry.root = Some(completed);
                page.put_entry(at, &entry.encode());
            }
        }
    }
}

impl PageCache {
    /// Seals one of the pages that were closed, to be written to both of its places; `None` once all are
    /// sealed. `fill` puts in what the page is to hold and does not yet, before anything else.
    ///
    /// # Errors
    ///
    /// [`Unsealed`].
    pub fn seal_next(&mut self, mut fill: impl FnMut(&mut Page)) -> Result<Option<SealedPage>, Unsealed> {
        while let Some(key) = self.sealing.pop() {
            // One that was open when it was released is nowhere.
            let mut kept = self.sealing.kept.remove(&key);
            let Some(cached) = kept.as_mut().or_else(|| self.pages.get_mut(key)) else {
                continue;
            };
            debug_assert!(
                cached.made > self.durable && cached.made <= self.closed,
                "its place was not given to another page yet"
            );
            fill(&mut cached.page);
            self.sealing.fill_in(&mut cached.page)?;
            let crc = cached.page.seal();
            let Some(first) = BlockAddress::from_raw(key) else {
                continue;
            };
            let birth = cached.page.identity().birth;
            self.sealing.sealed.insert(key, (birth, crc));
            return Ok(Some(SealedPage {
                pointer: PagePointer {
                    first,
                    second: cached.second,
                    birth,
                    crc,
                },
                identity: *cached.page.identity(),
                bytes: Slice::copy_from(cached.page.bytes()),
            }));
        }
        self.sealing.is_done = true;
        Ok(None)
    }

    /// A pointer with the CRC of its page, if it has none yet and one of the last two checkpoints sealed the
    /// page.
    #[must_use]
    pub fn sealed(&self, pointer: PagePointer) -> PagePointer {
        match self.sealing.crc(&pointer) {
            Some(crc) if pointer.crc == 0 => PagePointer { crc, ..pointer },
            _ => pointer,
        }
    }
}
