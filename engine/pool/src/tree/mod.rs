//! Copy-on-write radix trees of pages.
//!
//! Invariants:
//! - All trees of one kind have the same height, so that a place in one is the same place in any other.
//! - A page of a tree is its *own* if it was born after the generation of the tree's parent. An own page is
//!   never reached from another tree that is kept; what is not own is never changed or freed here.
//! - A page is changed where it is only if it is own and was born in the generation that is open, after the
//!   last checkpoint closed one: else what a crash goes back to would change. Otherwise it is shadowed.
//! - An interior page has at least one pointer, and a leaf at least one entry that is not zeros: empty
//!   pages are freed.
//!
//! Pages come from a [`PageStore`]. Looking for one that is not in memory ends in [`TreeError::Absent`]:
//! the caller loads it and does the operation again. No operation changes anything before all the pages
//! that it needs are there.

mod delete;
mod relocate;
#[cfg(test)]
mod tests;
mod walk;

pub use delete::{Deletion, Freed, Trimming, delete_range, pages_to, trim_leaf};
pub use relocate::{NextPlace, PagePlaceInTree, Relative, Relocation, next_place, relocate};
pub use walk::{Difference, differences};

use crate::layout::PagePointer;
use crate::layout::page::{FAN_OUT, Page, PageIdentity, PageKind};

/// The most levels of a tree, leaves included.
pub const LEVELS_MAX: u8 = 9;

/// Why an operation on a tree was not done. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A page is not in memory: load it and try again.
    #[error("a page has to be loaded first")]
    Absent {
        /// Where it is.
        pointer: PagePointer,
        /// Which page must be there.
        identity: PageIdentity,
    },
    /// There is no room for a page.
    #[error("no space is left for metadata")]
    NoSpace,
    /// The index is past the end of the tree.
    #[error("the entry is past the end of the tree")]
    OutOfRange,
}

/// Where pages are kept while a tree is worked on.
pub trait PageStore {
    /// The page at a pointer.
    ///
    /// # Errors
    ///
    /// [`TreeError::Absent`].
    fn page(&self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&Page, TreeError>;

    /// A page that was made since the last checkpoint, to be changed.
    ///
    /// # Errors
    ///
    /// [`TreeError::Absent`].
    fn page_mut(&mut self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&mut Page, TreeError>;

    /// Finds places for a new page and keeps it. Its pointer has no CRC yet.
    ///
    /// # Errors
    ///
    /// [`TreeError::NoSpace`]. Not after [`PageStore::reserve`] promised the room.
    fn create(&mut self, page: Page) -> Result<PagePointer, TreeError>;

    /// Promises room for so many pages more.
    ///
    /// # Errors
    ///
    /// [`TreeError::NoSpace`].
    fn reserve(&mut self, pages: usize) -> Result<(), TreeError>;

    /// A page is no longer reached from anywhere.
    fn release(&mut self, pointer: &PagePointer);

    /// Whether a page was made since the last checkpoint, so that it may be changed where it is for all who
    /// share it.
    fn is_new(&self, pointer: &PagePointer) -> bool;

    /// A page without entries.
    fn empty(&self, identity: PageIdentity) -> Page;
}

/// What all trees of a kind have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// What they keep.
    pub kind: PageKind,
    /// Interior levels above the leaves, less than [`LEVELS_MAX`].
    pub height: u8,
    /// Entries of a leaf.
    pub leaf_entries: u64,
}

impl Shape {
    /// Entries of a tree.
    pub fn entries(&self) -> u64 {
        self.span(self.height)
    }

    /// The same, for constants.
    pub const fn span_of_all(&self) -> u64 {
        FAN_OUT.pow(self.height as u32) * self.leaf_entries
    }

    /// Entries under a page of a level.
    pub fn span(&self, level: u8) -> u64 {
        let pages = FAN_OUT.checked_pow(u32::from(level)).unwrap_or(u64::MAX);
        pages.saturating_mul(self.leaf_entries)
    }

    /// The place of an entry among the pages of a level, and in the page.
    fn place(&self, entry: u64, level: u8) -> (u64, u64) {
        let below = if level == 0 { 1 } else { self.span(level - 1) };
        (entry / self.span(level), entry % self.span(level) / below)
    }
}

/// A tree, or a snapshot of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    /// Its shape.
    pub shape: Shape,
    /// Who makes its pages.
    pub id: u64,
    /// The page at its top; `None` if all entries are zeros.
    pub root: Option<PagePointer>,
    /// The generation of its parent: what was born later is its own.
    pub parent_generation: u64,
    /// Where its parent, which is being deleted, has gone already.
    pub passed: Passed,
}

/// How far the deletion of a tree's parent has come. What it has passed belongs to its only child, and what
/// is *own* is judged there by the generation of the parent's parent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Entries before this one, and pages with nothing else below them.
    pub before: u64,
    /// The generation of the deleted tree's parent.
    pub generation: u64,
}

/// The generations that a change of a tree happens in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generations {
    /// The one that is open: the birth of new pages.
    pub open: u64,
    /// The last one that a checkpoint closed: pages up to this are not changed where they are.
    pub closed: u64,
}

impl Tree {
    fn identity(&self, pointer: &PagePointer, level: u8, index: u64) -> PageIdentity {
        PageIdentity {
            kind: self.shape.kind,
            level,
            tree: self.id,
            index,
            birth: pointer.birth,
        }
    }

    /// Which page a pointer of this tree leads to.
    pub(crate) fn identity_at(&self, pointer: &PagePointer, level: u8, index: u64) -> PageIdentity {
        self.identity(pointer, level, index)
    }

    fn check(&self, entry: u64) -> Result<(), TreeError> {
        if entry < self.shape.entries() {
            Ok(())
        } else {
            Err(TreeError::OutOfRange)
        }
    }

    /// The generation after which a page at a place was born if it is own.
    fn parent_generation_at(&self, level: u8, index: u64) -> u64 {
        self.parent_generation_before(index.saturating_add(1).saturating_mul(self.shape.span(level)))
    }

    /// The same for an entry: for what a leaf points to.
    pub fn parent_generation_of(&self, entry: u64) -> u64 {
        self.parent_generation_before(entry.saturating_add(1))
    }

    fn parent_generation_before(&self, end: u64) -> u64 {
        if end <= self.passed.before {
            self.passed.generation
        } else {
            self.parent_generation
        }
    }

    /// Gives an entry to a function; `None` for one in a page that is not there, and so zeros.
    ///
    /// # Errors
    ///
    /// [`TreeError::Absent`], [`TreeError::OutOfRange`].
    pub fn get<T>(
        &self,
        store: &impl PageStore,
        entry: u64,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, TreeError> {
        self.check(entry)?;
        let mut next = self.root;
        for level in (0..=self.shape.height).rev() {
            let Some(pointer) = next else { return Ok(None) };
            let (index, at) = self.shape.place(entry, level);
            let page = store.page(&pointer, &self.identity(&pointer, level, index))?;
            if level == 0 {
                return Ok(Some(read(page.entry(at))));
            }
            next = page.pointer(at);
        }
        Ok(None)
    }

    /// The pointer to the leaf of an entry, if there is one.
    ///
    /// # Errors
    ///
    /// [`TreeError::Absent`], [`TreeError::OutOfRange`]. The leaf itself need not be there.
    pub fn leaf(&self, store: &impl PageStore, entry: u64) -> Result<Option<PagePointer>, TreeError> {
        self.check(entry)?;
        let mut next = self.root;
        for level in (1..=self.shape.height).rev() {
            let Some(pointer) = next else { return Ok(None) };
            let (index, at) = self.shape.place(entry, level);
            next = store
                .page(&pointer, &self.identity(&pointer, level, index))?
                .pointer(at);
        }
        Ok(next)
    }

    /// Replaces an entry. Zeros in its place free the pages that are left without entries.
    ///
    /// # Errors
    ///
    /// [`TreeError`].
    pub fn put(
        &mut self,
        store: &mut impl PageStore,
        generations: Generations,
        entry: u64,
        bytes: &[u8],
    ) -> Result<(), TreeError> {
        self.check(entry)?;
        let clear = bytes.iter().all(|byte| *byte == 0);
        if clear && self.get(store, entry, |_| ())?.is_none() {
            return Ok(());
        }
        // Everything that can fail comes first.
        self.get(store, entry, |_| ())?;
        store.reserve(usize::from(self.shape.height) + 1)?;
        let path = self.make_path(store, generations, entry)?;
        let (index, at) = self.shape.place(entry, 0);
        if let Some(leaf) = path.first() {
            store
                .page_mut(leaf, &self.identity(leaf, 0, index))?
                .put_entry(at, bytes);
        }
        if clear {
            self.drop_empty(store, entry, &path)
        } else {
            Ok(())
        }
    }

    /// Makes every page on the way to an entry one that may be changed, so that [`Tree::open_leaf`] has it
    /// until the generation closes.
    ///
    /// # Errors
    ///
    /// [`TreeError`].
    pub fn prepare(
        &mut self,
        store: &mut impl PageStore,
        generations: Generations,
        entry: u64,
    ) -> Result<(), TreeError> {
        self.check(entry)?;
        self.get(store, entry, |_| ())?;
        store.reserve(usize::from(self.shape.height) + 1)?;
        self.make_path(store, generations, entry).map(drop)
    }

    /// The leaf of an entry, to be changed; `None` if a page on the way to it is not open. Whoever leaves it
    /// without entries leaves an empty leaf.
    ///
    /// # Errors
    ///
    /// [`TreeError`].
    pub fn open_leaf<'a>(
        &self,
        store: &'a mut impl PageStore,
        generations: Generations,
        entry: u64,
    ) -> Result<Option<&'a mut Page>, TreeError> {
        self.check(entry)?;
        let mut next = self.root;
        for level in (0..=self.shape.height).rev() {
            let (index, at) = self.shape.place(entry, level);
            let Some(pointer) = next.filter(|pointer| self.is_open(pointer, generations, level, index))
            else {
                return Ok(None);
            };
            let identity = self.identity(&pointer, level, index);
            if level == 0 {
                return store.page_mut(&pointer, &identity).map(Some);
            }
            next = store.page(&pointer, &identity)?.pointer(at);
        }
        Ok(None)
    }

    /// Makes every page on the way to an entry one that may be changed; the pointers to them, the leaf's
    /// first.
    fn make_path(
        &mut self,
        store: &mut impl PageStore,
        generations: Generations,
        entry: u64,
    ) -> Result<arrayvec::ArrayVec<PagePointer, { LEVELS_MAX as usize }>, TreeError> {
        let mut path = arrayvec::ArrayVec::new();
        let mut next = self.root;
        let mut above: Option<(PagePointer, PageIdentity, u64)> = None;
        for level in (0..=self.shape.height).rev() {
            let (index, at) = self.shape.place(entry, level);
            let pointer = match next {
                Some(pointer) if self.is_open(&pointer, generations, level, index) => pointer,
                other => {
                    let made = self.make_page(store, generations, other, level, index)?;
                    match &above {
                        Some((parent, identity, at)) => {
                            store.page_mut(parent, identity)?.put_pointer(*at, Some(&made));
                        }
                        None => self.root = Some(made),
                    }
                    made
                }
            };
            let identity = self.identity(&pointer, level, index);
            next = if level == 0 {
                None
            } else {
                store.page(&pointer, &identity)?.pointer(at)
            };
            above = Some((pointer, identity, at));
            path.insert(0, pointer);
        }
        Ok(path)
    }

    /// Whether a page may be changed where it is.
    fn is_open(&self, pointer: &PagePointer, generations: Generations, level: u8, index: u64) -> bool {
        pointer.birth > self.parent_generation_at(level, index) && pointer.birth > generations.closed
    }

    /// A page that may be changed, with the entries of `old`, which is freed if it is own.
    fn make_page(
        &self,
        store: &mut impl PageStore,
        generations: Generations,
        old: Option<PagePointer>,
        level: u8,
        index: u64,
    ) -> Result<PagePointer, TreeError> {
        let Some(old) = old else {
            let identity = PageIdentity {
                kind: self.shape.kind,
                level,
                tree: self.id,
                index,
                birth: generations.open,
            };
            let page = store.empty(identity);
            return store.create(page);
        };
        let page = store.page(&old, &self.identity(&old, level, index))?;
        let page = page.shadow(self.id, generations.open);
        let made = store.create(page)?;
        if old.birth > self.parent_generation_at(level, index) {
            store.release(&old);
        }
        Ok(made)
    }

    /// Frees the pages of a path that are left without entries. All of them are open.
    fn drop_empty(
        &mut self,
        store: &mut impl PageStore,
        entry: u64,
        path: &[PagePointer],
    ) -> Result<(), TreeError> {
        for (level, pointer) in (0..).zip(path) {
            let (index, _) = self.shape.place(entry, level);
            if !store
                .page(pointer, &self.identity(pointer, level, index))?
                .is_empty()
            {
                return Ok(());
            }
            store.release(pointer);
            match path.get(usize::from(level) + 1) {
                Some(parent) => {
                    let (index, at) = self.shape.place(entry, level + 1);
                    let identity = self.identity(parent, level + 1, index);
                    store.page_mut(parent, &identity)?.put_pointer(at, None);
                }
                None => self.root = None,
            }
        }
        Ok(())
    }
}
