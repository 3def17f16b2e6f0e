//! The way to leaves of maps that were used lately, so that a request need not walk down a tree.
//!
//! For slots that are one extent, which is what those of a volume without snapshots come to be, the extent is
//! remembered too: a request need not look at the leaf then, which is a miss of the processor's caches.
//!
//! So is whether the intent of a slot's region is durable, in place of a look-up for each write. That holds
//! until the next checkpoint closes, whatever happens to the leaf.
//!
//! Invariant: what is remembered of a leaf is right as long as the table has the same version, the page is
//! in memory, and nobody has called [`Leaves::forget`] or [`Leaves::forget_slot`]: whoever may put another
//! page in the place of a leaf, or the blocks of a slot elsewhere, does.

use crate::cache::PagePlace;
use crate::layout::ExtentId;
use crate::layout::page::MAP_LEAF_SLOTS;

/// Leaves that are remembered. A leaf is 2 MiB of a volume.
const LEAVES: usize = 8192;

/// Where a leaf is, and what is own in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    pub(super) volume: u64,
    pub(super) number: u64,
    pub(super) table_version: u64,
    /// Its page.
    pub(crate) place: PagePlace,
    /// What was born after this is own.
    pub(crate) parent_generation: u64,
}

/// An extent that is all of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WholeExtent {
    /// The extent.
    pub(crate) extent: ExtentId,
    /// It can be overwritten in place.
    pub(crate) is_own: bool,
}

/// The bit of a remembered extent that says that it is own.
const OWN: u64 = 1 << 63;

const _: () = assert!(MAP_LEAF_SLOTS <= u32::BITS as u64, "a bit for each slot");

#[derive(Clone)]
struct Known {
    leaf: Leaf,
    /// The round of [`Intents`](super::Intents) that `intents` is of.
    intents_round: u64,
    /// Slots whose region has an intent that is durable, a bit each.
    intents: u32,
    /// The extent that is all of a slot and whether it is own; 0 for none, or not known.
    extents: [u64; MAP_LEAF_SLOTS as usize],
}

impl Known {
    #[inline]
    fn whole_extent(&self, slot: u64) -> Option<WholeExtent> {
        let raw = *self.extents.get((slot % MAP_LEAF_SLOTS) as usize)?;
        Some(WholeExtent {
            extent: ExtentId::from_raw(raw & !OWN)?,
            is_own: raw & OWN != 0,
        })
    }
}

/// See the module.
pub(super) struct Leaves(Box<[Option<Known>]>);

impl Default for Leaves {
    fn default() -> Self {
        Self(vec![None; LEAVES].into_boxed_slice())
    }
}

impl Leaves {
    #[inline]
    fn at(volume: u64, number: u64) -> usize {
        // Neighbouring leaves of one volume do not meet, and those of two seldom.
        (number.wrapping_add(volume.wrapping_mul(0x9e37_79b9)) % LEAVES as u64) as usize
    }

    #[inline]
    fn known(&self, volume: u64, number: u64, table_version: u64) -> Option<&Known> {
        let known = self.0.get(Self::at(volume, number))?.as_ref()?;
        let Leaf {
            volume: of,
            number: its,
            table_version: then,
            ..
        } = known.leaf;
        (of == volume && its == number && then == table_version).then_some(known)
    }

    #[inline]
    pub(super) fn get(&self, volume: u64, slot: u64, table_version: u64) -> Option<Leaf> {
        let known = self.known(volume, slot / MAP_LEAF_SLOTS, table_version);
        known.map(|known| known.leaf)
    }

    /// The extent that is all of a slot, if that is known.
    #[inline]
    pub(super) fn whole_extent(&self, volume: u64, slot: u64, table_version: u64) -> Option<WholeExtent> {
        let known = self.known(volume, slot / MAP_LEAF_SLOTS, table_version)?;
        known.whole_extent(slot)
    }

    /// Both.
    #[inline]
    pub(super) fn get_with_extent(
        &self,
        volume: u64,
        slot: u64,
        table_version: u64,
    ) -> Option<(Leaf, Option<WholeExtent>)> {
        let known = self.known(volume, slot / MAP_LEAF_SLOTS, table_version)?;
        Some((known.leaf, known.whole_extent(slot)))
    }

    pub(super) fn put(&mut self, leaf: Leaf) {
        if let Some(place) = self.0.get_mut(Self::at(leaf.volume, leaf.number)) {
            *place = Some(Known {
                leaf,
                intents_round: 0,
                intents: 0,
                extents: [0; MAP_LEAF_SLOTS as usize],
            });
        }
    }

    fn of(&mut self, volume: u64, slot: u64) -> Option<&mut Option<Known>> {
        let number = slot / MAP_LEAF_SLOTS;
        let place = self.0.get_mut(Self::at(volume, number))?;
        let is_it = |known: &Known| known.leaf.volume == volume && known.leaf.number == number;
        place.as_ref().is_some_and(is_it).then_some(place)
    }

    /// Remembers the extent that is all of a slot of a leaf that is known.
    pub(super) fn learn(&mut self, volume: u64, slot: u64, whole: WholeExtent) {
        if let Some(Some(known)) = self.of(volume, slot)
            && let Some(extent) = known.extents.get_mut((slot % MAP_LEAF_SLOTS) as usize)
        {
            *extent = whole.extent.raw() | if whole.is_own { OWN } else { 0 };
        }
    }

    /// Whether the intent of a slot's region is known to be durable.
    #[inline]
    pub(super) fn has_intent(&self, volume: u64, slot: u64, round: u64) -> bool {
        let number = slot / MAP_LEAF_SLOTS;
        let known = self.0.get(Self::at(volume, number)).and_then(Option::as_ref);
        known.is_some_and(|known| {
            known.leaf.volume == volume
                && known.leaf.number == number
                && known.intents_round == round
                && known.intents >> (slot % MAP_LEAF_SLOTS) & 1 == 1
        })
    }

    /// Remembers that the intent of a slot's region is durable in this round.
    pub(super) fn learn_intent(&mut self, volume: u64, slot: u64, round: u64) {
        if let Some(Some(known)) = self.of(volume, slot) {
            if known.intents_round != round {
                (known.intents_round, known.intents) = (round, 0);
            }
            known.intents |= 1 << (slot % MAP_LEAF_SLOTS);
        }
    }

    /// The blocks of a slot are elsewhere from now on.
    pub(super) fn forget_slot(&mut self, volume: u64, slot: u64) {
        if let Some(Some(known)) = self.of(volume, slot)
            && let Some(extent) = known.extents.get_mut((slot % MAP_LEAF_SLOTS) as usize)
        {
            *extent = 0;
        }
    }

    /// The leaf of a slot is another page from now on.
    pub(super) fn forget(&mut self, volume: u64, slot: u64) {
        if let Some(place) = self.of(volume, slot) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Intents, Use};

    const VOLUME: u64 = 3;

    fn leaf(number: u64) -> Leaf {
        Leaf {
            volume: VOLUME,
            number,
            table_version: 1,
            place: PagePlace::default(),
            parent_generation: 0,
        }
    }

    #[test]
    fn an_intent_is_known_in_its_round_and_for_its_slot_only() {
        let mut leaves = Leaves::default();
        leaves.learn_intent(VOLUME, 40, 1);
        assert!(!leaves.has_intent(VOLUME, 40, 1), "its leaf is not known");
        leaves.put(leaf(40 / MAP_LEAF_SLOTS));
        leaves.learn_intent(VOLUME, 40, 1);
        assert!(leaves.has_intent(VOLUME, 40, 1));
        for (volume, slot, round) in [
            (VOLUME, 41, 1),
            (VOLUME, 40, 2),
            (VOLUME, 9, 1),
            (VOLUME + 1, 40, 1),
        ] {
            assert!(!leaves.has_intent(volume, slot, round), "{volume} {slot} {round}");
        }
        // What another round knew is not taken over.
        leaves.learn_intent(VOLUME, 41, 2);
        assert!(leaves.has_intent(VOLUME, 41, 2) && !leaves.has_intent(VOLUME, 40, 2));
        leaves.put(leaf(40 / MAP_LEAF_SLOTS));
        assert!(
            !leaves.has_intent(VOLUME, 41, 2),
            "nothing is known of a leaf that was just found"
        );
    }

    #[test]
    fn what_is_known_of_an_intent_ends_with_it() {
        let (mut leaves, mut intents) = (Leaves::default(), Intents::default());
        leaves.put(leaf(0));
        assert_eq!(intents.begin(VOLUME, 0), Use::Unknown);
        intents.appended(VOLUME, 0, 1);
        assert!(intents.is_durable(VOLUME, 0, 1));
        leaves.learn_intent(VOLUME, 5, intents.round());
        assert!(leaves.has_intent(VOLUME, 5, intents.round()));
        // It was used: the first checkpoint keeps it, and the second does not. Nobody may go by what was
        // known before either of them: that it is used has to be said again.
        for kept in [1, 0] {
            assert_eq!(intents.close().len(), kept);
            assert!(!leaves.has_intent(VOLUME, 5, intents.round()));
        }
    }
}
