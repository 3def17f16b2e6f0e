//! Making a large slot whole for somebody who waits for it.
//!
//! Small buffers come and go all over a busy region, so that a large slot might never be free as a whole
//! while memory is short. So when a large slot is waited for, one is chosen (the *block*), and what is free
//! or comes free inside it is set aside, until all of it is free. Everything outside the block goes on as
//! before.
//!
//! Invariants while gathering: the parents inside the block are in no list and are no spares, their bitmaps
//! are kept; the block is at most a quarter of the region; it is given up after [`PATIENCE`] slots were given
//! back elsewhere, for some buffer inside may be held for long.

use std::ops::Range;

use super::{NONE, Tree};

/// Slots given back outside the block before another block is tried.
pub(super) const PATIENCE: u32 = 4096;

/// A block is at most the region divided by this.
const REGION_SHARE: u32 = 4;

/// The block that is being made whole.
pub(super) struct Gather {
    class: usize,
    block: u32,
    /// The block's range of slots of the smallest class.
    units: Range<u32>,
    patience: u32,
}

impl Tree {
    /// Begins to make that slot of `wanted` whole that holds the slot `slot` of `class`, which was just given
    /// back. Nothing happens if a block is being made whole already, or if there is no such slot, or it is
    /// too large.
    pub(in crate::pool) fn gather_around(&mut self, wanted: usize, class: usize, slot: u32) {
        if self.gather.is_some() || wanted <= class {
            return;
        }
        let (wanted_shift, shift) = (self.units_shift(wanted), self.units_shift(class));
        let wanted_units = 1 << wanted_shift;
        let block = slot >> (wanted_shift - shift);
        let units = block << wanted_shift..(block + 1) << wanted_shift;
        if units.end > self.units || wanted_units > self.units / REGION_SHARE {
            return;
        }
        self.mend_spares();
        self.for_parents_inside(&units, wanted, |level, index| level.unlink(index));
        self.gather = Some(Gather {
            class: wanted,
            block,
            units,
            patience: PATIENCE,
        });
    }

    /// Gives up making a block whole: what was set aside is there for all again.
    pub(in crate::pool) fn stop_gathering(&mut self) {
        if let Some(gather) = self.gather.take() {
            self.for_parents_inside(&gather.units, gather.class, |level, index| level.link(index));
        }
    }

    /// Gives a slot back while a block is being made whole.
    #[cold]
    pub(super) fn give_while_gathering(&mut self, class: usize, slot: u32) {
        let unit = slot << self.units_shift(class);
        let Some(gather) = &mut self.gather else {
            return self.give_to_class(class, slot);
        };
        if class > gather.class || !gather.units.contains(&unit) {
            gather.patience -= 1;
            if gather.patience == 0 || class > gather.class {
                self.stop_gathering();
            }
            return self.give_to_class(class, slot);
        }
        let (wanted, block) = (gather.class, gather.block);
        let mut slot = slot;
        for level in &mut self.levels[class..wanted] {
            if !level.mark_free(slot) {
                return;
            }
            slot >>= level.shift;
            level.parents[slot as usize].free = 0;
        }
        debug_assert_eq!(slot, block, "the slot given back is inside the block");
        self.gather = None;
        self.give_to_class(wanted, block);
    }

    /// Base-two logarithm of the number of slots of the smallest class in one of `class`.
    fn units_shift(&self, class: usize) -> u32 {
        self.levels[..class].iter().map(|level| level.shift).sum()
    }

    /// Calls `act` for all parents inside a block of `class` that have free children.
    fn for_parents_inside(
        &mut self,
        units: &Range<u32>,
        class: usize,
        mut act: impl FnMut(&mut super::Level, u32),
    ) {
        let mut shift = 0;
        for level in &mut self.levels[..class] {
            shift += level.shift;
            debug_assert!(level.spare == NONE || !units.contains(&(level.spare << shift)));
            for index in units.start >> shift..units.end >> shift {
                if level.parents[index as usize].free != 0 {
                    act(level, index);
                }
            }
        }
    }
}
