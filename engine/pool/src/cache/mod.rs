//! Pages in memory, between the trees and the devices.
//!
//! A page is *open* while its generation is: it is only here, and its tree changes it. A checkpoint
//! *closes* all open pages at once, which costs nothing: from then on generations tell them from later
//! ones.
//! Then, while everything goes on, it *seals* them one by one, from the leaves up, since a page holds the
//! CRCs of those below it, and writes them. Once it is durable they are *clean*: they can be dropped and
//! loaded again.
//!
//! Invariants:
//! - Only clean pages are ever dropped.
//! - A page that is closed is never changed but by sealing it, which fills in what could not be known
//!   before: the CRCs of the pages that it points to. Trees shadow it.
//! - A pointer without a CRC leads to a page that is open, or that the last checkpoint closed: shadows that
//!   were made of a page before it was sealed have such pointers until they are sealed themselves. In a
//!   page that is closed and not sealed yet it may also lead to one of the checkpoint before.
//!   [`PageCache::sealed`] has all of those CRCs.
//! - A page that is released while a checkpoint has yet to write it is still written: a crash may go back to
//!   that checkpoint.

mod load;
mod pages;
mod seal;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use pollux_hugepages::Slice;
use uuid::Uuid;

use crate::allocator::StateError;
use crate::layout::page::{Page, PageIdentity};
use crate::layout::{BlockAddress, PagePointer};
use crate::space::PoolSpace;
use crate::tree::{PageStore, TreeError};
pub(crate) use load::load_copy;
pub use load::{LoadError, load};
pub(crate) use pages::PagePlace;
use pages::Pages;
use seal::Sealing;

/// Pages that are kept whatever the limit: the way to a leaf in a few trees.
const CLEAN_PAGES_MIN: usize = 64;

struct Cached {
    page: Page,
    second: BlockAddress,
    /// The generation in which it was put where it is: its birth, unless it was moved there.
    made: u64,
    /// It was looked at since the search for pages to drop has come by.
    used: Cell<bool>,
}

impl Cached {}

/// See the module.
pub struct PageCache {
    pool: Uuid,
    /// By the raw address of the first copy.
    pages: Pages,
    clean_pages_max: usize,
    clean_pages: usize,
    /// Pages that the last checkpoint closed, and that are not clean yet.
    closed_pages: usize,
    /// The generation that the last checkpoint closed: pages made later are open.
    closed: u64,
    /// The generation that the last durable checkpoint closed: pages made by then are clean.
    durable: u64,
    sealing: Sealing,
}

/// A page and where it goes.
pub struct SealedPage {
    /// Both places.
    pub pointer: PagePointer,
    /// Which page it is.
    pub identity: PageIdentity,
    /// Its bytes.
    pub bytes: Slice,
}

/// A page is not what the pointers to it say: a mistake of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a page points to {0:?}, which was never sealed: this is a bug; the last checkpoint stays as it is")]
pub struct Unsealed(pub BlockAddress);

impl PageCache {
    /// A cache that keeps at most so many bytes of clean pages, and a few pages in any case. Pages born up to
    /// the generation `durable` are on devices.
    pub fn new(pool: Uuid, clean_bytes_max: usize, durable: u64) -> Self {
        Self {
            pool,
            pages: Pages::default(),
            clean_pages_max: (clean_bytes_max / crate::layout::BLOCK_BYTES).max(CLEAN_PAGES_MIN),
            clean_pages: 0,
            closed_pages: 0,
            closed: durable,
            durable,
            sealing: Sealing::default(),
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

    /// Takes in a page that was loaded, and drops another if there are too many.
    fn insert(&mut self, pointer: &PagePointer, page: Page) {
        debug_assert!(page.identity().birth <= self.durable, "what is loaded is clean");
        if self.clean_pages >= self.clean_pages_max {
            self.drop_one();
        }
        let cached = Cached {
            made: page.identity().birth,
            page,
            second: pointer.second,
            used: Cell::new(true),
        };
        let before = self.pages.insert(pointer.first.raw(), cached);
        debug_assert!(before.is_none(), "a page that is there is not loaded");
        self.clean_pages += 1;
    }

    /// Drops a clean page that was not looked at for long, if there is one.
    fn drop_one(&mut self) {
        // Twice around: the first time takes the marks away.
        for _ in 0..2 * self.pages.places() {
            let Some((key, cached)) = self.pages.next() else {
                continue;
            };
            if cached.made <= self.durable && !cached.used.replace(false) {
                self.pages.remove(key);
                self.clean_pages -= 1;
                return;
            }
        }
    }

    /// Drops so many clean pages at most, while there are more than are kept; whether there still are.
    pub fn shrink(&mut self, pages_max: usize) -> bool {
        let too_many = self.clean_pages.saturating_sub(self.clean_pages_max);
        for _ in 0..too_many.min(pages_max) {
            self.drop_one();
        }
        too_many > pages_max
    }

    /// Closes all open pages, which were born in `generation` at the latest. The last checkpoint is durable.
    pub fn close(&mut self, generation: u64) {
        debug_assert_eq!(self.closed, self.durable, "one checkpoint at a time");
        self.closed = generation;
        self.closed_pages = self.dirty_pages();
        self.sealing.close();
    }

    /// The checkpoint is durable, all of whose pages were sealed and written: they are clean. Then
    /// [`PageCache::shrink`] is to be called.
    pub fn checkpoint_durable(&mut self) {
        self.durable = self.closed;
        self.clean_pages += std::mem::take(&mut self.closed_pages);
    }

    /// A page that nothing leads to any more goes.
    fn remove(&mut self, key: u64) {
        let Some(cached) = self.pages.remove(key) else {
            return;
        };
        if cached.made <= self.durable {
            self.clean_pages -= 1;
        } else if cached.made <= self.closed {
            self.closed_pages -= 1;
            self.sealing.keep(key, cached);
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
        // A line of memory that is only looked at need not go back to it.
        if !cached.used.get() {
            cached.used.set(true);
        }
        Some(&cached.page)
    }

    /// The page at a place, if it is still there and open, to be changed. Whether it belongs to the tree that
    /// asks is up to the caller.
    #[inline]
    pub(crate) fn open_page_at(&mut self, place: PagePlace) -> Option<&mut Page> {
        let cached = self.pages.at_mut(place)?;
        (cached.made > self.closed).then_some(&mut cached.page)
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
        cached.used.set(true);
        Ok(cached)
    }
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
        self.cache.find(pointer, identity).map(|cached| &cached.page)
    }

    fn page_mut(&mut self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&mut Page, TreeError> {
        let made = self.cache.find(pointer, identity)?.made;
        debug_assert!(made > self.cache.closed, "trees shadow what is closed");
        let absent = TreeError::Absent {
            pointer: *pointer,
            identity: *identity,
        };
        let cached = self.cache.pages.get_mut(pointer.first.raw()).ok_or(absent)?;
        Ok(&mut cached.page)
    }

    fn create(&mut self, mut page: Page) -> Result<PagePointer, TreeError> {
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
        self.cache.sealing.made(page.identity(), first.raw());
        self.cache.sealing.complete_new(&mut page);
        let cached = Cached {
            // The generation that is open is a later one than any that was closed, and so is this for a page
            // that was moved.
            made: page.identity().birth.max(self.cache.closed + 1),
            page,
            second,
            used: Cell::new(true),
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
        self.cache.remove(pointer.first.raw());
        for copy in [pointer.first, pointer.second] {
            if let Err(error) = self.space.free_page(copy) {
                // It stays used: space is lost, and nothing else.
                tracing::error!(pool = %self.cache.pool, %error, "a page could not be freed");
            }
        }
    }

    fn is_new(&self, pointer: &PagePointer) -> bool {
        let cached = self.cache.pages.get(pointer.first.raw());
        cached.is_some_and(|cached| cached.made > self.cache.closed)
    }

    fn empty(&self, identity: PageIdentity) -> Page {
        Page::empty(self.cache.pool, identity)
    }
}
