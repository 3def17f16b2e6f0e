//! The size classes of a pool, ready for quick arithmetic: all sizes are powers of two.

use super::tree::FANOUT_MAX;
use crate::BUFFER_ALIGNMENT_BYTES;
use crate::error::Error;

/// Most size classes a pool can have.
pub const MAX_CLASSES: usize = 8;

/// In the table of lengths: longer than any buffer.
const NO_CLASS: u8 = u8::MAX;

/// Base-two logarithm of the unit in which the positions of slots are counted.
const UNIT_SHIFT: u32 = BUFFER_ALIGNMENT_BYTES.trailing_zeros();

/// The size classes of a pool.
pub(super) struct Classes {
    count: usize,
    /// Base-two logarithms of the sizes.
    shifts: [u8; MAX_CLASSES],
    /// The class for buffers of up to `1 << index` units.
    by_length: [u8; usize::BITS as usize],
}

impl Classes {
    /// Checks sizes that a user chose.
    pub(super) fn new(sizes_bytes: &[usize]) -> Result<Classes, Error> {
        if sizes_bytes.is_empty() || sizes_bytes.len() > MAX_CLASSES {
            return Err(Error::SizeClass { class_bytes: 0 });
        }
        let mut classes = Classes {
            count: sizes_bytes.len(),
            shifts: [0; MAX_CLASSES],
            by_length: [NO_CLASS; usize::BITS as usize],
        };
        let mut before = None;
        let mut covered = 0;
        for (class, &class_bytes) in sizes_bytes.iter().enumerate() {
            let follows = before
                .is_none_or(|before| class_bytes > before && class_bytes / before <= FANOUT_MAX as usize);
            if class_bytes < BUFFER_ALIGNMENT_BYTES || !class_bytes.is_power_of_two() || !follows {
                return Err(Error::SizeClass { class_bytes });
            }
            before = Some(class_bytes);
            let shift = class_bytes.trailing_zeros();
            classes.shifts[class] = shift as u8;
            let covers = (shift - UNIT_SHIFT) as usize + 1;
            classes.by_length[covered..covers].fill(class as u8);
            covered = covers;
        }
        Ok(classes)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The smallest class that holds `len_bytes`, if there is one.
    #[inline]
    pub(super) fn for_length(&self, len_bytes: usize) -> Option<usize> {
        let units_less_one = len_bytes.saturating_sub(1) >> UNIT_SHIFT;
        let class = *self
            .by_length
            .get((usize::BITS - units_less_one.leading_zeros()) as usize)?;
        (class != NO_CLASS).then_some(usize::from(class))
    }

    /// The size of a slot in bytes.
    #[inline]
    pub(super) fn bytes(&self, class: usize) -> usize {
        1 << self.shifts[class]
    }

    /// The size of the largest slots in bytes.
    pub(super) fn largest_bytes(&self) -> usize {
        self.bytes(self.count - 1)
    }

    /// The unit in which a slot begins.
    #[inline]
    pub(super) fn unit_of(&self, class: usize, slot: u32) -> usize {
        (slot as usize) << (u32::from(self.shifts[class]) - UNIT_SHIFT)
    }

    /// The slot that begins in a unit.
    #[inline]
    pub(super) fn slot_at(&self, class: usize, unit: u32) -> u32 {
        unit >> (u32::from(self.shifts[class]) - UNIT_SHIFT)
    }

    /// For each class but the largest, the base-two logarithm of the number of its slots in one of the next
    /// class.
    pub(super) fn fanout_shifts(&self) -> impl Iterator<Item = u32> {
        self.shifts[..self.count]
            .windows(2)
            .map(|pair| u32::from(pair[1] - pair[0]))
    }
}
