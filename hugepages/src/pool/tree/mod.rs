//! Which parts of a region are free: slots of several size classes, cut from one another.
//!
//! A slot of one class is either whole, or cut into slots of the next smaller class. Invariants:
//!
//! - A cut slot (a *parent*) has a bitmap of its free children. Parents with some free children are in their
//!   class's list; those with none are not.
//! - A parent whose children are all free is made whole again, but for one a class, the *spare*, which is
//!   kept so that taking and giving one slot in turn does not cut and mend each time. Spares are mended when
//!   memory is short: no memory is stranded in a class.
//! - The end of the region that is no whole slot of a class is given to smaller ones for good, as children of
//!   a parent that is incomplete, and therefore never whole.
//!
//! - While somebody waits for a large slot, the small ones inside one large one may be set aside until it is
//!   whole: see [`gather`].
//!
//! Taking and giving take a bounded number of steps, some for each class at most, and no memory.

mod gather;
#[cfg(test)]
mod tests;

use gather::Gather;

/// No slot; the end of a list.
const NONE: u32 = u32::MAX;

/// Most children a slot is cut into: one bit each.
pub(super) const FANOUT_MAX: u32 = u64::BITS;

/// The slots of one class that were cut into the next smaller class.
struct Level {
    /// Base-two logarithm of the number of children a slot is cut into.
    shift: u32,
    /// The bitmap of a complete parent with all children free.
    whole: u64,
    parents: Box<[Parent]>,
    /// The first parent with free children.
    head: u32,
    /// A parent with all children free, in no list.
    spare: u32,
}

#[derive(Clone)]
struct Parent {
    /// The free children.
    free: u64,
    next: u32,
    previous: u32,
}

/// The free slots of all classes.
pub(super) struct Tree {
    /// Slots of the smallest class in the region.
    units: u32,
    /// Level `k` cuts slots of class `k + 1` into slots of class `k`.
    levels: Box<[Level]>,
    /// Free slots of the largest class, used last first; it has the capacity for all of them.
    largest: Vec<u32>,
    /// The slot that is being made whole for a waiter, if any.
    gather: Option<Gather>,
}

impl Tree {
    /// A region of `units` slots of the smallest class, all free. For each class but the largest,
    /// `fanout_shifts` gives the base-two logarithm of the number of its slots in one of the next class: 1
    /// and more, giving at most [`FANOUT_MAX`].
    pub(super) fn new(units: u32, fanout_shifts: impl Iterator<Item = u32>) -> Tree {
        let mut count = units;
        let levels = fanout_shifts.map(|shift| {
            let children = count;
            count >>= shift;
            Level::new(shift, children)
        });
        let levels = levels.collect();
        // Lowest first: the list is used from its end.
        Tree {
            units,
            levels,
            largest: (0..count).rev().collect(),
            gather: None,
        }
    }

    /// Takes a free slot of a class: its index among all slots of the class.
    #[inline]
    pub(super) fn take(&mut self, class: usize) -> Option<u32> {
        if let Some(slot) = self.take_as_is(class) {
            return Some(slot);
        }
        self.take_mending(class)
    }

    /// Gives a slot back.
    #[inline]
    pub(super) fn give(&mut self, class: usize, slot: u32) {
        if self.gather.is_none() {
            self.give_to_class(class, slot);
        } else {
            self.give_while_gathering(class, slot);
        }
    }

    #[inline]
    fn give_to_class(&mut self, class: usize, slot: u32) {
        let (mut class, mut slot) = (class, slot);
        while let Some(level) = self.levels.get_mut(class) {
            match level.give(slot) {
                None => return,
                Some(whole) => slot = whole,
            }
            class += 1;
        }
        self.largest.push(slot);
    }

    /// How many slots of a class can be taken.
    pub(super) fn available(&mut self, class: usize) -> u64 {
        self.mend_spares();
        let mut factor = 1_u64;
        let mut available = 0;
        for level in self.levels.get(class..).unwrap_or_default() {
            let free: u64 = level
                .parents
                .iter()
                .map(|parent| u64::from(parent.free.count_ones()))
                .sum();
            available += free * factor;
            factor <<= level.shift;
        }
        available + self.largest.len() as u64 * factor
    }

    /// Whether [`take`](Tree::take) would find a slot of this class.
    pub(super) fn has(&mut self, class: usize) -> bool {
        self.has_as_is(class) || (self.mend_spares() && self.has_as_is(class))
    }

    /// The largest class, not below `class`, that [`take`](Tree::take) would find a slot of.
    pub(super) fn largest_from(&mut self, class: usize) -> Option<usize> {
        (class..=self.levels.len()).rev().find(|&class| self.has(class))
    }

    fn has_as_is(&self, class: usize) -> bool {
        let levels = self.levels.get(class..).unwrap_or_default();
        !self.largest.is_empty()
            || levels
                .iter()
                .any(|level| level.head != NONE || level.spare != NONE)
    }

    #[cold]
    fn take_mending(&mut self, class: usize) -> Option<u32> {
        self.mend_spares().then(|| self.take_as_is(class)).flatten()
    }

    #[inline]
    fn take_as_is(&mut self, class: usize) -> Option<u32> {
        // Up to the first class that has a free slot, then down, cutting.
        let mut from = class;
        let mut slot = loop {
            match self.levels.get_mut(from) {
                None => break self.largest.pop()?,
                Some(level) => match level.take() {
                    Some(slot) => break slot,
                    None => from += 1,
                },
            }
        };
        while from > class {
            from -= 1;
            slot = self.levels[from].cut(slot);
        }
        Some(slot)
    }

    /// Makes the spares whole again, smallest class first. Whether there were any.
    fn mend_spares(&mut self) -> bool {
        let mut any = false;
        for class in 0..self.levels.len() {
            let spare = std::mem::replace(&mut self.levels[class].spare, NONE);
            if spare != NONE {
                self.levels[class].parents[spare as usize].free = 0;
                self.give_to_class(class + 1, spare);
                any = true;
            }
        }
        any
    }
}

impl Level {
    fn new(shift: u32, children: u32) -> Level {
        let fanout = 1 << shift;
        let incomplete = children % fanout;
        let parent = Parent {
            free: 0,
            next: NONE,
            previous: NONE,
        };
        let mut level = Level {
            shift,
            whole: u64::MAX >> (FANOUT_MAX - fanout),
            parents: vec![parent; children.div_ceil(fanout) as usize].into(),
            head: NONE,
            spare: NONE,
        };
        if incomplete > 0 {
            let last = children >> shift;
            level.parents[last as usize].free = (1 << incomplete) - 1;
            level.link(last);
        }
        level
    }

    #[inline]
    fn take(&mut self) -> Option<u32> {
        if self.head == NONE {
            if self.spare == NONE {
                return None;
            }
            let spare = std::mem::replace(&mut self.spare, NONE);
            self.link(spare);
        }
        let index = self.head;
        let parent = &mut self.parents[index as usize];
        let child = parent.free.trailing_zeros();
        parent.free &= parent.free - 1;
        if parent.free == 0 {
            self.unlink(index);
        }
        Some((index << self.shift) + child)
    }

    /// Cuts a slot of the class above, which nobody uses, and takes its first child.
    fn cut(&mut self, index: u32) -> u32 {
        self.parents[index as usize].free = self.whole & !1;
        self.link(index);
        index << self.shift
    }

    /// Gives a child back. The index of its parent if that is whole again and to be given to the class above.
    #[inline]
    fn give(&mut self, slot: u32) -> Option<u32> {
        let index = slot >> self.shift;
        let before = self.parents[index as usize].free;
        if !self.mark_free(slot) {
            if before == 0 {
                self.link(index);
            }
            return None;
        }
        // A parent has two children at least, so it was in the list.
        self.unlink(index);
        if self.spare == NONE {
            self.spare = index;
            return None;
        }
        self.parents[index as usize].free = 0;
        Some(index)
    }

    /// Marks a child as free; whether all children of its parent are now.
    #[inline]
    fn mark_free(&mut self, slot: u32) -> bool {
        let index = slot >> self.shift;
        let child = 1 << (slot - (index << self.shift));
        let parent = &mut self.parents[index as usize];
        assert!(parent.free & child == 0, "slot {slot} was given back twice");
        parent.free |= child;
        parent.free == self.whole
    }

    #[inline]
    fn link(&mut self, index: u32) {
        let head = std::mem::replace(&mut self.head, index);
        let parent = &mut self.parents[index as usize];
        parent.next = head;
        parent.previous = NONE;
        if head != NONE {
            self.parents[head as usize].previous = index;
        }
    }

    #[inline]
    fn unlink(&mut self, index: u32) {
        let Parent { next, previous, .. } = self.parents[index as usize];
        match self.parents.get_mut(previous as usize) {
            Some(parent) => parent.next = next,
            None => self.head = next,
        }
        if let Some(parent) = self.parents.get_mut(next as usize) {
            parent.previous = previous;
        }
    }
}
