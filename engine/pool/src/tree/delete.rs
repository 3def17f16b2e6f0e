//! Deleting a tree from a family: what only it holds is freed, exactly.
//!
//! What a tree N with parent P holds at a place is only its own if it was born after P's generation and no
//! child of N holds it at the same place. Deeper descendants cannot hold what none of the children does.
//!
//! With one child or none, everything that only N holds is freed, and N can be forgotten. With more, N is
//! *kept*: what only it holds is cut out of its tree (which shadows pages of it), and the rest stays for
//! what the children still share. Walking it again later finds what they have dropped meanwhile.
//!
//! What N has from P it cannot free. If P is kept too, N lets go of what none of its children holds, since
//! nobody can see it there, and P frees it if N was the last to hold it: so children come before parents.
//! While P is in use, P holds it anyway, and a copy of N's pages without it would only take room.

use arrayvec::ArrayVec;

use super::{Generations, LEVELS_MAX, PageStore, Tree, TreeError};
use crate::layout::PagePointer;
use crate::layout::page::{FAN_OUT, Page, PageIdentity};

/// A tree that goes, and its children.
#[derive(Debug, Clone, Copy)]
pub struct Deletion<'a> {
    /// The tree.
    pub tree: Tree,
    /// Its children: next snapshots, heads and clones made from it.
    pub children: &'a [Tree],
}

/// Is told what a walk frees in leaves.
pub trait Freed {
    /// An entry of the tree, and that of each child at the same place, zeros if there is none. Frees what
    /// only the tree holds, and returns what stays in the entry, which matters if the tree is kept.
    fn entry(&mut self, entry: u64, own: &[u8], children: &[&[u8]]) -> ArrayVec<u8, 256>;
}

/// Frees what only a tree holds among the entries from `from` up to `end`, both at the border of a leaf;
/// `end` may be past the last one. A page above goes with the last entry below it.
///
/// # Errors
///
/// [`TreeError::Absent`]: nothing was freed; load the page and call again. Callers take ranges of one leaf,
/// so that few pages are needed at a time.
pub fn delete_range(
    store: &mut impl PageStore,
    deletion: &Deletion<'_>,
    from: u64,
    end: u64,
    freed: &mut impl Freed,
) -> Result<(), TreeError> {
    let children: Vec<Option<PagePointer>> = deletion.children.iter().map(|child| child.root).collect();
    let height = deletion.tree.shape.height;
    let mut found = Found::default();
    let mut walk = Walk {
        store,
        deletion,
        own_after: deletion.tree.parent_generation,
        from,
        end,
    };
    walk.collect(height, 0, deletion.tree.root, &children, &mut found)?;
    for (entry, own, others) in &found.entries {
        let others: Vec<&[u8]> = others.iter().map(Vec::as_slice).collect();
        freed.entry(*entry, own, &others);
    }
    for pointer in &found.pages {
        store.release(pointer);
    }
    Ok(())
}

/// How a kept tree is trimmed.
#[derive(Debug, Clone, Copy)]
pub struct Trimming {
    /// The generation that the tree closed: pages born later are shadows of its own, made by trimming it.
    pub generation: u64,
    /// What the tree has from its parent is looked at as well: only if that is kept too.
    pub lets_go: bool,
}

/// Cuts what none of its children holds out of one leaf of a kept tree, and frees what was the tree's own.
/// The tree has a new root then.
///
/// # Errors
///
/// [`TreeError::Absent`] and [`TreeError::NoSpace`]: nothing was freed.
pub fn trim_leaf(
    store: &mut impl PageStore,
    deletion: &Deletion<'_>,
    trimming: Trimming,
    generations: Generations,
    entry: u64,
    freed: &mut impl Freed,
) -> Result<Tree, TreeError> {
    let tree = deletion.tree;
    let leaf_entries = tree.shape.leaf_entries;
    let first = entry / leaf_entries * leaf_entries;
    let children: Vec<Option<PagePointer>> = deletion.children.iter().map(|child| child.root).collect();
    let mut found = Found::default();
    let mut walk = Walk {
        store,
        deletion,
        own_after: if trimming.lets_go {
            0
        } else {
            tree.parent_generation
        },
        from: first,
        end: first + leaf_entries,
    };
    walk.collect(tree.shape.height, 0, tree.root, &children, &mut found)?;
    if found.entries.is_empty() {
        return Ok(tree);
    }
    // Those of its own that no child holds: they go once they are replaced.
    let old = path_of(store, &tree, first)?;
    let mut replaced = old.clone();
    for child in deletion.children {
        let path = path_of(store, child, first)?;
        replaced.retain(|page| path.iter().all(|other| !other.is_same_page(page)));
    }
    replaced.retain(|page| page.birth > tree.parent_generation && page.birth <= trimming.generation);
    store.reserve(old.len() * 2)?;
    // Here only what was made by trimming counts as own.
    let mut trimmed = Tree {
        parent_generation: trimming.generation,
        ..tree
    };
    for (entry, own, others) in &found.entries {
        let others: Vec<&[u8]> = others.iter().map(Vec::as_slice).collect();
        let rest = freed.entry(*entry, own, &others);
        if rest.as_slice() != own.as_slice() {
            trimmed.put(store, generations, *entry, &rest)?;
        }
    }
    let new = path_of(store, &trimmed, first)?;
    for page in &replaced {
        if new.iter().all(|other| !other.is_same_page(page)) {
            store.release(page);
        }
    }
    Ok(Tree {
        parent_generation: tree.parent_generation,
        ..trimmed
    })
}

/// The pages on the way to an entry, as far as there are any.
fn path_of(
    store: &impl PageStore,
    tree: &Tree,
    entry: u64,
) -> Result<ArrayVec<PagePointer, { LEVELS_MAX as usize }>, TreeError> {
    let mut path = ArrayVec::new();
    let mut next = tree.root;
    for level in (0..=tree.shape.height).rev() {
        let Some(pointer) = next else { break };
        path.push(pointer);
        let (index, at) = tree.shape.place(entry, level);
        next = store
            .page(&pointer, &tree.identity(&pointer, level, index))?
            .pointer(at);
    }
    Ok(path)
}

/// The pages on the way to an entry, as far as there are any, and which they are.
///
/// # Errors
///
/// [`TreeError::Absent`] for one that leads to another; the leaf need not be there.
pub fn pages_to(
    store: &impl PageStore,
    tree: &Tree,
    entry: u64,
) -> Result<Vec<(PagePointer, PageIdentity)>, TreeError> {
    let mut pages = Vec::new();
    let mut next = tree.root;
    for level in (0..=tree.shape.height).rev() {
        let Some(pointer) = next else { break };
        let (index, at) = tree.shape.place(entry, level);
        let identity = tree.identity(&pointer, level, index);
        pages.push((pointer, identity));
        next = match level {
            0 => None,
            _ => store.page(&pointer, &identity)?.pointer(at),
        };
    }
    Ok(pages)
}

/// What only the tree holds, before anything is freed.
#[derive(Default)]
struct Found {
    entries: Vec<(u64, Vec<u8>, Vec<Vec<u8>>)>,
    pages: Vec<PagePointer>,
}

struct Walk<'a, S> {
    store: &'a mut S,
    deletion: &'a Deletion<'a>,
    /// Pages born after this generation are looked at.
    own_after: u64,
    from: u64,
    end: u64,
}

impl<S: PageStore> Walk<'_, S> {
    fn collect(
        &mut self,
        level: u8,
        index: u64,
        own: Option<PagePointer>,
        children: &[Option<PagePointer>],
        found: &mut Found,
    ) -> Result<(), TreeError> {
        let (tree, span) = (&self.deletion.tree, self.deletion.tree.shape.span(level));
        let first = index.saturating_mul(span);
        let last = first.saturating_add(span);
        let Some(own) = own.filter(|_| first < self.end && last > self.from) else {
            return Ok(());
        };
        let held_by_child = children.iter().flatten().any(|child| child.is_same_page(&own));
        if own.birth <= self.own_after || held_by_child {
            return Ok(());
        }
        let page = self.store.page(&own, &tree.identity(&own, level, index))?.clone();
        let mut others: Vec<Option<Page>> = Vec::new();
        for (child, pointer) in self.deletion.children.iter().zip(children) {
            let page =
                pointer.map(|pointer| self.store.page(&pointer, &child.identity(&pointer, level, index)));
            others.push(page.transpose()?.cloned());
        }
        if level == 0 {
            for at in 0..tree.shape.leaf_entries {
                let entry = page.entry(at);
                if entry.iter().any(|byte| *byte != 0) {
                    let zeros = vec![0; entry.len()];
                    let others = others.iter().map(|other| {
                        other
                            .as_ref()
                            .map_or_else(|| zeros.clone(), |page| page.entry(at).to_vec())
                    });
                    found.entries.push((first + at, entry.to_vec(), others.collect()));
                }
            }
        } else {
            for at in 0..FAN_OUT {
                let below: Vec<_> = others.iter().map(|other| other.as_ref()?.pointer(at)).collect();
                self.collect(level - 1, index * FAN_OUT + at, page.pointer(at), &below, found)?;
            }
        }
        if last <= self.end {
            found.pages.push(own);
        }
        Ok(())
    }
}
