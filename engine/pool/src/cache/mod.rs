//! Pages in memory, between the trees and the devices.
//!
//! A page is *dirty* while its generation is open: it is only here. A checkpoint *seals* the dirty pages,
//! from the leaves up, since a page holds the CRCs of those below it; then it *writes* them, and once it is
//! durable they are
//! *clean*: they can be dropped and loaded again.
//!
//! Invariants:
//! - Only clean pages are ever dropped.
//! - A dirty page has no other holder. One that is sealed is never changed: trees shadow it.
//! - When a checkpoint has sealed its pages there is no pointer without a CRC, neither in pages nor, once the
//!   caller has asked [`PageCache::sealed`], in roots.
//! - A page that is released while it is written is still written: a crash may go back to the checkpoint that
//!   has it.

mod load;
mod pages;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use uuid::Uuid;

use crate::allocator::StateError;
use crate::layout::page::{FAN_OUT, Page, PageIdentity, PageKind};
use crate::layout::{BlockAddress, PagePointer};
use crate::space::PoolSpace;
use crate::tree::{PageStore, TreeError};
pub(crate) use load::load_copy;
pub use load::{LoadError, load};
pub(crate) use pages::PagePlace;
use pages::Pages;

/// Pages that are kept whatever the limit: the way to a leaf in a few trees.
const CLEAN_PAGES_MIN: usize = 64;

/// The part of the clean pages that is dropped at a time, as one in so many: looking for the oldest looks
/// at all.
const DROPPED_PART: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Of the open generation.
    Dirty,
    /// Of the checkpoint that is being made.
    Sealed,
    /// On the device.
    Clean,
}

struct Cached {
    page: Rc<Page>,
    second: BlockAddress,
    state: State,
    /// When it was last looked at, in looks.
    used: Cell<u64>,
}

/// See the module.
pub struct PageCache {
    pool: Uuid,
    /// By the raw address of the first copy.
    pages: Pages,
    clean_pages_max: usize,
    clean_pages: usize,
    looks: Cell<u64>,
    /// The CRCs of the pages that the last checkpoint sealed.
    sealed: HashMap<u64, u32>,
}

/// A page and where it goes.
pub struct SealedPage {
    /// Both places.
    pub pointer: PagePointer,
    /// The page.
    pub page: Rc<Page>,
}

/// A page is not what the pointers to it say: a mistake of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a page points to {0:?}, which was never sealed: this is a bug, and nothing was written")]
pub struct Unsealed(pub BlockAddress);

impl PageCache {
    /// A cache that keeps at most so many bytes of clean pages, and a few pages in any case.
    pub fn new(pool: Uuid, clean_bytes_max: usize) -> Self {
        Self {
            pool,
            pages: Pages::default(),
            clean_pages_max: (clean_bytes_max / crate::layout::BLOCK_BYTES).max(CLEAN_PAGES_MIN),
            clean_pages: 0,
            looks: Cell::new(0),
            sealed: HashMap::new(),
        }
    }

    /// The pool.
    pub fn pool(&self) -> Uuid {
        self.pool
    }

    /// Pages that are only in memory.
    pub fn dirty_pages(&self) -> usize {
        self.pages.len() - self.clean_pages
    }

    /// Takes in a page that was loaded, and drops others if there are too many.
    fn insert(&mut self, pointer: &PagePointer, page: Page) {
        if self.clean_pages >= self.clean_pages_max {
            self.drop_oldest();
        }
        let cached = Cached {
            page: Rc::new(page),
            second: pointer.second,
            state: State::Clean,
            used: Cell::new(self.look()),
        };
        let before = self.pages.insert(pointer.first.raw(), cached);
        debug_assert!(before.is_none(), "a page that is there is not loaded");
        self.clean_pages += 1;
    }

    fn look(&self) -> u64 {
        self.looks.set(self.looks.get() + 1);
        self.looks.get()
    }

    fn drop_oldest(&mut self) {
        let clean = self
            .pages
            .iter()
            .filter(|(_, cached)| cached.state == State::Clean);
        let mut ages: Vec<(u64, u64)> = clean.map(|(key, cached)| (cached.used.get(), key)).collect();
        let dropped = (ages.len() / DROPPED_PART).clamp(1, ages.len().max(1));
        if dropped < ages.len() {
            ages.select_nth_unstable(dropped);
        }
        for (_, key) in ages.into_iter().take(dropped) {
            self.pages.remove(key);
            self.clean_pages -= 1;
        }
    }

    /// Seals the dirty pages of a kind of tree. What is in them is final; kinds that hold the roots of
    /// others come after those.
    ///
    /// # Errors
    ///
    /// [`Unsealed`].
    pub fn seal(&mut self, kind: PageKind) -> Result<(), Unsealed> {
        let mut keys: Vec<(u8, u64)> = self
            .pages
            .iter()
            .filter(|(_, cached)| cached.state == State::Dirty && cached.page.identity().kind == kind)
            .map(|(key, cached)| (cached.page.identity().level, key))
            .collect();
        keys.sort_unstable();
        for (level, key) in keys {
            let Some(cached) = self.pages.get_mut(key) else {
                continue;
            };
            // A dirty page has no other holder, so nothing is copied.
            let page = Rc::make_mut(&mut cached.page);
            if level > 0 {
                fill_in(page, &self.sealed)?;
            }
            cached.state = State::Sealed;
            self.sealed.insert(key, page.seal());
        }
        Ok(())
    }

    /// A pointer as a root is to be kept from now on: with the CRC of its page, if that was sealed by the
    /// last checkpoint.
    #[must_use]
    pub fn sealed(&self, pointer: PagePointer) -> PagePointer {
        match self.sealed.get(&pointer.first.raw()) {
            Some(crc) if pointer.crc == 0 => PagePointer { crc: *crc, ..pointer },
            _ => pointer,
        }
    }

    /// The pages that a checkpoint has sealed, to be written to both of their places.
    pub fn to_write(&self) -> Vec<SealedPage> {
        let sealed = self
            .pages
            .iter()
            .filter(|(_, cached)| cached.state == State::Sealed);
        sealed
            .filter_map(|(key, cached)| {
                Some(SealedPage {
                    pointer: PagePointer {
                        first: BlockAddress::from_raw(key)?,
                        second: cached.second,
                        birth: cached.page.identity().birth,
                        crc: self.sealed.get(&key).copied()?,
                    },
                    page: cached.page.clone(),
                })
            })
            .collect()
    }

    /// The checkpoint is durable: what it wrote is clean, and the next one may seal.
    pub fn checkpoint_durable(&mut self) {
        for cached in self
            .pages
            .values_mut()
            .filter(|cached| cached.state == State::Sealed)
        {
            cached.state = State::Clean;
            self.clean_pages += 1;
        }
        self.sealed.clear();
        while self.clean_pages > self.clean_pages_max {
            self.drop_oldest();
        }
    }

    /// Where a page is, if it is in memory.
    pub(crate) fn place(&self, pointer: &PagePointer) -> Option<PagePlace> {
        self.pages.place(pointer.first.raw())
    }

    /// The page at a place, if it is still there.
    #[inline]
    pub(crate) fn page_at(&self, place: PagePlace) -> Option<&Page> {
        let cached = self.pages.at(place)?;
        // No look of its own: as new as the last one is good enough, and costs less.
        cached.used.set(self.looks.get());
        Some(&cached.page)
    }

    /// The page at a place, if it is still there and only in memory, to be changed. Whether it belongs to the
    /// tree that asks is up to the caller.
    #[inline]
    pub(crate) fn dirty_page_at(&mut self, place: PagePlace) -> Option<&mut Page> {
        let cached = self.pages.at_mut(place)?;
        (cached.state == State::Dirty).then(|| Rc::make_mut(&mut cached.page))
    }

    fn find(&self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&Cached, TreeError> {
        let absent = TreeError::Absent {
            pointer: *pointer,
            identity: *identity,
        };
        let cached = self.pages.get(pointer.first.raw()).ok_or(absent)?;
        let found = cached.page.identity();
        debug_assert_eq!(
            (found.kind, found.level, found.index, found.birth),
            (identity.kind, identity.level, identity.index, identity.birth),
            "two pages have one place"
        );
        cached.used.set(self.look());
        Ok(cached)
    }
}

/// Gives the pointers of a page the CRCs that they did not have yet.
fn fill_in(page: &mut Page, sealed: &HashMap<u64, u32>) -> Result<(), Unsealed> {
    for at in 0..FAN_OUT {
        let Some(pointer) = page.pointer(at).filter(|pointer| pointer.crc == 0) else {
            continue;
        };
        let crc = sealed.get(&pointer.first.raw()).copied();
        let crc = crc.ok_or(Unsealed(pointer.first))?;
        page.put_pointer(at, Some(&PagePointer { crc, ..pointer }));
    }
    Ok(())
}

/// The cache and the space that its pages take, as trees see them.
pub struct Metadata<'a> {
    /// The pages.
    pub cache: &'a mut PageCache,
    /// Where they go.
    pub space: &'a mut PoolSpace,
}

impl Metadata<'_> {
    /// Takes in a page that was loaded, and drops others if there are too many.
    ///
    /// # Errors
    ///
    /// [`StateError`] if the allocation state says that no page is there: one of the two is damaged.
    pub fn insert(&mut self, pointer: &PagePointer, page: Page) -> Result<(), StateError> {
        for copy in [pointer.first, pointer.second] {
            self.space.adopt_page(copy)?;
        }
        self.cache.insert(pointer, page);
        Ok(())
    }
}

impl PageStore for Metadata<'_> {
    fn page(&self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&Page, TreeError> {
        self.cache.find(pointer, identity).map(|cached| &*cached.page)
    }

    fn page_mut(&mut self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&mut Page, TreeError> {
        let state = self.cache.find(pointer, identity)?.state;
        debug_assert_eq!(state, State::Dirty, "trees shadow what is sealed");
        let absent = TreeError::Absent {
            pointer: *pointer,
            identity: *identity,
        };
        let cached = self.cache.pages.get_mut(pointer.first.raw()).ok_or(absent)?;
        Ok(Rc::make_mut(&mut cached.page))
    }

    fn create(&mut self, page: Page) -> Result<PagePointer, TreeError> {
        let first = self.space.take_page(None).map_err(|_| TreeError::NoSpace)?;
        let second = match self.space.take_page(Some(first.extent())) {
            Ok(second) => second,
            Err(_) => {
                // Never written, so it can only be used.
                let freed = self.space.free_page(first);
                debug_assert_eq!(freed, Ok(()));
                return Err(TreeError::NoSpace);
            }
        };
        let pointer = PagePointer {
            first,
            second,
            birth: page.identity().birth,
            crc: 0,
        };
        let cached = Cached {
            page: Rc::new(page),
            second,
            state: State::Dirty,
            used: Cell::new(self.cache.look()),
        };
        let before = self.cache.pages.insert(first.raw(), cached);
        debug_assert!(before.is_none(), "two pages have one place");
        Ok(pointer)
    }

    fn reserve(&mut self, pages: usize) -> Result<(), TreeError> {
        // The two copies have to be in two extents: one more extent's worth, for the last of them.
        let wanted = 2 * pages as u64 + crate::layout::EXTENT_BLOCKS as u64;
        if self.space.free_pages() >= wanted {
            Ok(())
        } else {
            Err(TreeError::NoSpace)
        }
    }

    fn release(&mut self, pointer: &PagePointer) {
        if let Some(cached) = self.cache.pages.remove(pointer.first.raw())
            && cached.state == State::Clean
        {
            self.cache.clean_pages -= 1;
        }
        for copy in [pointer.first, pointer.second] {
            if let Err(error) = self.space.free_page(copy) {
                // It stays used: space is lost, and nothing else.
                tracing::error!(pool = %self.cache.pool, %error, "a page could not be freed");
            }
        }
    }

    fn empty(&self, identity: PageIdentity) -> Page {
        Page::empty(self.cache.pool, identity)
    }
}
