//! Walking two trees side by side.

use super::{PageStore, Tree, TreeError};
use crate::layout::PagePointer;
use crate::layout::page::FAN_OUT;

/// What differs between two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entries that may differ, as the pages of only one of the trees have them: first and count,
    /// ascending.
    pub leaves: Vec<(u64, u64)>,
    /// Where to go on; `None` when the walk has come to the end.
    pub next: Option<u64>,
}

/// The leaves, from that of entry `from` on, that are not the same page in both trees: `leaves_max` of them
/// at most.
///
/// Equal pointers are skipped with all that is below. Two trees without a page in common cost what they hold.
///
/// # Errors
///
/// [`TreeError::Absent`].
pub fn differences(
    store: &impl PageStore,
    one: &Tree,
    other: &Tree,
    from: u64,
    leaves_max: usize,
) -> Result<Difference, TreeError> {
    let mut found = Difference {
        leaves: Vec::new(),
        next: None,
    };
    let mut walk = Walk {
        store,
        one,
        other,
        from,
        leaves_max,
        found: &mut found,
    };
    walk.level(one.shape.height, 0, one.root, other.root)?;
    Ok(found)
}

struct Walk<'a, S> {
    store: &'a S,
    one: &'a Tree,
    other: &'a Tree,
    from: u64,
    leaves_max: usize,
    found: &'a mut Difference,
}

impl<S: PageStore> Walk<'_, S> {
    fn level(
        &mut self,
        level: u8,
        index: u64,
        one: Option<PagePointer>,
        other: Option<PagePointer>,
    ) -> Result<(), TreeError> {
        let span = self.one.shape.span(level);
        let first = index * span;
        let same = match (&one, &other) {
            (None, None) => true,
            (Some(one), Some(other)) => one.is_same_page(other),
            _ => false,
        };
        if same || self.found.next.is_some() || first.saturating_add(span) <= self.from {
            return Ok(());
        }
        if level == 0 {
            if self.found.leaves.len() == self.leaves_max {
                self.found.next = Some(first);
            } else {
                self.found.leaves.push((first, span));
            }
            return Ok(());
        }
        let (store, tree, other_tree) = (self.store, self.one, self.other);
        let page_of = |tree: &Tree, pointer: Option<PagePointer>| {
            pointer
                .map(|pointer| store.page(&pointer, &tree.identity(&pointer, level, index)))
                .transpose()
        };
        let (one, other) = (page_of(tree, one)?, page_of(other_tree, other)?);
        for at in 0..FAN_OUT {
            let one = one.and_then(|page| page.pointer(at));
            let other = other.and_then(|page| page.pointer(at));
            self.level(level - 1, index * FAN_OUT + at, one, other)?;
        }
        Ok(())
    }
}
