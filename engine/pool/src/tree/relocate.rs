//! Pages, and what leaves point to, are put elsewhere, in all trees that share them.
//!
//! Nothing that trees mean changes: a page that is moved keeps its birth and who made it, and every tree that
//! had the old one at a place has the new one there. So whatever was own to a tree stays its own, whatever
//! was shared stays shared, and two trees that had the same page at a place still have.
//!
//! As always nothing changes that the last checkpoint has: a page that is on a device is replaced, with
//! everything on the way to it; one that was made since is changed where it is.

use std::collections::BTreeMap;

use super::{PageStore, Tree, TreeError};
use crate::layout::PagePointer;
use crate::layout::page::{FAN_OUT, PageIdentity};

/// A tree of a family: of those that share pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// The tree.
    pub tree: Tree,
    /// Entries before this one, and pages with nothing else below them, are gone: the deletion of the tree
    /// has passed them.
    pub gone_before: u64,
}

/// A place of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagePlaceInTree {
    /// 0 for a leaf.
    pub level: u8,
    /// Its place among the pages of its level.
    pub index: u64,
}

/// What is to be put elsewhere.
pub trait Relocation {
    /// Whether a page has to move.
    fn moves(&self, pointer: &PagePointer) -> bool;

    /// An entry of a leaf as it is to be, if it changes. Called for leaves at the place that is looked at.
    fn entry(&self, entry: u64, bytes: &[u8]) -> Option<Vec<u8>>;
}

/// A page on the way to the place.
struct Found {
    pointer: PagePointer,
    identity: PageIdentity,
    /// Entries to be replaced: which, and by what.
    entries: Vec<(u64, Vec<u8>)>,
}

/// Relocates what is at a place of all trees of a family: the page there and those on the way to it as far as
/// they have to move, and, of a leaf, the entries that change. How many trees have a new root.
///
/// `room_for` is asked before anything changes whether there is room for so many new pages, and is to be
/// the last thing that can fail.
///
/// # Errors
///
/// [`TreeError`]: nothing was changed.
pub fn relocate<S: PageStore>(
    store: &mut S,
    family: &mut [Relative],
    place: PagePlaceInTree,
    relocation: &impl Relocation,
    room_for: impl FnOnce(&mut S, usize) -> Result<(), TreeError>,
) -> Result<usize, TreeError> {
    let levels = find(store, family, place, relocation)?;
    let pages = levels.iter().map(BTreeMap::len).sum();
    store.reserve(pages)?;
    room_for(store, pages)?;
    let mut moved: BTreeMap<u64, PagePointer> = BTreeMap::new();
    for level in levels {
        let mut moved_here = BTreeMap::new();
        for (key, found) in level {
            if let Some(pointer) = replace(store, found, place, &moved, relocation)? {
                moved_here.insert(key, pointer);
            }
        }
        moved = moved_here;
    }
    let mut changed = 0;
    for relative in family {
        let root = relative.tree.root;
        if let Some(new) = root.and_then(|root| moved.get(&root.first.raw())) {
            relative.tree.root = Some(*new);
            changed += 1;
        }
    }
    Ok(changed)
}

/// The pages on the way to a place, of all trees, from the place up; by the address of their first copy.
fn find(
    store: &impl PageStore,
    family: &[Relative],
    place: PagePlaceInTree,
    relocation: &impl Relocation,
) -> Result<Vec<BTreeMap<u64, Found>>, TreeError> {
    let mut levels = Vec::new();
    for Relative { tree, gone_before } in family {
        let height = tree.shape.height;
        levels.resize_with(usize::from(height.saturating_sub(place.level)) + 1, BTreeMap::new);
        let mut next = tree.root;
        for level in (place.level..=height).rev() {
            let below = u32::from(level - place.level);
            let index = FAN_OUT.checked_pow(below).map_or(0, |pages| place.index / pages);
            let end = (index + 1).saturating_mul(tree.shape.span(level));
            let Some(pointer) = next.filter(|_| end > *gone_before) else {
                break;
            };
            let identity = tree.identity(&pointer, level, index);
            let page = store.page(&pointer, &identity)?;
            if level > place.level {
                let below = FAN_OUT
                    .checked_pow(below - 1)
                    .map_or(0, |pages| place.index / pages);
                next = page.pointer(below % FAN_OUT);
            }
            let entries = match level {
                0 => {
                    let first = index * tree.shape.leaf_entries;
                    let changed = (0..tree.shape.leaf_entries)
                        .filter_map(|at| Some((at, relocation.entry(first + at, page.entry(at))?)));
                    changed.collect()
                }
                _ => Vec::new(),
            };
            if let Some(pages) = levels.get_mut(usize::from(level - place.level)) {
                pages.entry(pointer.first.raw()).or_insert(Found {
                    pointer,
                    identity,
                    entries,
                });
            }
        }
    }
    Ok(levels)
}

/// Replaces a page if it has to move, or something in it has to change that a checkpoint has; where it is
/// now.
fn replace<S: PageStore>(
    store: &mut S,
    found: Found,
    place: PagePlaceInTree,
    moved: &BTreeMap<u64, PagePointer>,
    relocation: &impl Relocation,
) -> Result<Option<PagePointer>, TreeError> {
    let Found {
        pointer,
        identity,
        entries,
    } = found;
    let below = u32::from(identity.level - place.level)
        .checked_sub(1)
        .and_then(|below| Some(place.index / FAN_OUT.checked_pow(below)? % FAN_OUT));
    let child = match below {
        Some(at) => {
            let old = store.page(&pointer, &identity)?.pointer(at);
            let new = old.and_then(|old| moved.get(&old.first.raw()).filter(|new| new.birth == old.birth));
            new.map(|new| (at, *new))
        }
        None => None,
    };
    let must_move = relocation.moves(&pointer);
    if entries.is_empty() && child.is_none() && !must_move {
        return Ok(None);
    }
    let (at, made) = if store.is_new(&pointer) && !must_move {
        (pointer, None)
    } else {
        let page = store.page(&pointer, &identity)?.clone();
        let made = store.create(page)?;
        store.release(&pointer);
        (made, Some(made))
    };
    let page = store.page_mut(&at, &identity)?;
    for (at, bytes) in &entries {
        page.put_entry(*at, bytes);
    }
    if let Some((at, new)) = child {
        page.put_pointer(at, Some(&new));
    }
    Ok(made)
}

/// What a look for something to relocate comes to first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextPlace {
    /// A page that has to move.
    Page(PagePlaceInTree),
    /// An entry that changes.
    Entry(u64),
    /// Nothing before this entry.
    Nothing {
        /// Where to go on.
        next: u64,
    },
    /// Nothing at all.
    End,
}

/// Looks from an entry on for something to relocate, in the next leaf at most. What the tree has in common
/// with another is passed over.
///
/// # Errors
///
/// [`TreeError::Absent`].
pub fn next_place(
    store: &impl PageStore,
    tree: &Tree,
    other: Option<&Tree>,
    from: u64,
    relocation: &impl Relocation,
) -> Result<NextPlace, TreeError> {
    let other = other.map_or(Tree { root: None, ..*tree }, |other| *other);
    let look = Look {
        store,
        tree,
        other: &other,
        from,
        relocation,
    };
    let found = look.level(tree.shape.height, 0, tree.root, other.root)?;
    Ok(found.unwrap_or(NextPlace::End))
}

struct Look<'a, S, R> {
    store: &'a S,
    tree: &'a Tree,
    other: &'a Tree,
    from: u64,
    relocation: &'a R,
}

impl<S: PageStore, R: Relocation> Look<'_, S, R> {
    fn level(
        &self,
        level: u8,
        index: u64,
        own: Option<PagePointer>,
        other: Option<PagePointer>,
    ) -> Result<Option<NextPlace>, TreeError> {
        let span = self.tree.shape.span(level);
        let end = (index + 1).saturating_mul(span);
        let Some(pointer) = own.filter(|_| end > self.from) else {
            return Ok(None);
        };
        if other.is_some_and(|other| other.is_same_page(&pointer)) {
            return Ok(None);
        }
        if self.relocation.moves(&pointer) {
            return Ok(Some(NextPlace::Page(PagePlaceInTree { level, index })));
        }
        let page = self
            .store
            .page(&pointer, &self.tree.identity(&pointer, level, index))?;
        if level == 0 {
            let first = index * self.tree.shape.leaf_entries;
            let mut entries = (0..self.tree.shape.leaf_entries).filter(|at| first + at >= self.from);
            let found = entries.find(|at| self.relocation.entry(first + at, page.entry(*at)).is_some());
            return Ok(Some(match found {
                Some(at) => NextPlace::Entry(first + at),
                None => NextPlace::Nothing { next: end },
            }));
        }
        let other = other
            .map(|other| {
                self.store
                    .page(&other, &self.other.identity(&other, level, index))
            })
            .transpose()?;
        for at in 0..FAN_OUT {
            let other = other.and_then(|page| page.pointer(at));
            let found = self.level(level - 1, index * FAN_OUT + at, page.pointer(at), other)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
