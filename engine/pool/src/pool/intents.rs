//! Regions of volumes in which blocks may be overwritten in place.
//!
//! An intent is active from when its record is durable until a checkpoint that does not write it again: one
//! that finds the region unused since the checkpoint before.

use std::collections::HashMap;

use crate::layout::journal::Record;

/// Slots of a region: 1 MiB.
pub(crate) const REGION_SLOTS: u64 = 16;

/// Active intents; further regions wait for a checkpoint. They are of 64 GiB.
pub(crate) const INTENTS_MAX: usize = 65_536;

/// Regions that are being written at one time; further ones wait for a checkpoint.
const IN_USE_MAX: usize = 3500;

/// Intents that a checkpoint writes again: those in use right then, and some that were used lately. The
/// others are made anew when they are needed.
const KEPT_MAX: usize = 7000;

/// Intents that a block of the journal has room for.
const IN_A_BLOCK: usize = 236;

const _: () = assert!(KEPT_MAX / IN_A_BLOCK < crate::journal::RESERVED_BLOCKS as usize);

#[derive(Debug, Clone, Copy)]
struct Intent {
    /// Durable once the journal has reached this.
    sequence: u64,
    /// Writes under way.
    uses: u32,
    /// Used since the last checkpoint closed.
    used: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Intents {
    /// Checkpoints that closed: between two of them no intent ends.
    round: u64,
    /// By volume and region.
    active: HashMap<(u64, u64), Intent, foldhash::fast::FixedState>,
    /// How many have writes under way.
    in_use: usize,
}

/// What is needed before a write in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The intent is in use for the write, and durable once the journal has reached this sequence.
    Active(u64),
    /// Its record has to be appended first.
    Unknown,
    /// There are too many: a checkpoint has to come first.
    Full,
}

impl Intents {
    /// Whether an intent is active and durable; if so it is used.
    pub(crate) fn is_durable(&mut self, volume: u64, region: u64, durable: u64) -> bool {
        let Some(intent) = self.active.get_mut(&(volume, region)) else {
            return false;
        };
        let is_durable = intent.sequence <= durable && self.in_use < IN_USE_MAX;
        intent.used |= is_durable;
        is_durable
    }

    /// A number that changes with each checkpoint that closes. An intent that [`Intents::is_durable`] has
    /// found is so, and used, as long as this stays the same.
    #[inline]
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// Whether a write in place may begin in any region whose intent is durable.
    #[inline]
    pub(crate) fn has_room_for_use(&self) -> bool {
        self.in_use < IN_USE_MAX
    }

    /// Begins a write in place.
    pub(crate) fn begin(&mut self, volume: u64, region: u64) -> Use {
        let is_full = self.active.len() >= INTENTS_MAX;
        match self.active.get_mut(&(volume, region)) {
            Some(intent) if intent.uses == 0 && self.in_use >= IN_USE_MAX => {
                intent.used = true;
                Use::Full
            }
            Some(intent) => {
                self.in_use += usize::from(intent.uses == 0);
                intent.uses += 1;
                intent.used = true;
                Use::Active(intent.sequence)
            }
            None if is_full => Use::Full,
            None => Use::Unknown,
        }
    }

    /// The record of an intent was appended, to be durable at a sequence.
    pub(crate) fn appended(&mut self, volume: u64, region: u64, sequence: u64) {
        let intent = Intent {
            sequence,
            uses: 0,
            used: true,
        };
        self.active.entry((volume, region)).or_insert(intent);
    }

    /// A write in place has ended: its data and its record are where they should be, or it failed.
    pub(crate) fn end(&mut self, volume: u64, region: u64) {
        if let Some(intent) = self.active.get_mut(&(volume, region)) {
            intent.uses = intent.uses.saturating_sub(1);
            self.in_use -= usize::from(intent.uses == 0);
        }
    }

    /// A checkpoint closes: drops what was not used since the last one, and returns what has to be written
    /// again.
    pub(crate) fn close(&mut self) -> Vec<Record> {
        self.round += 1;
        let mut room = KEPT_MAX - self.in_use;
        self.active.retain(|_, intent| {
            if intent.uses > 0 {
                return true;
            }
            let kept = intent.used && room > 0;
            room -= usize::from(kept);
            kept
        });
        let mut kept: Vec<(u64, u64)> = self.active.keys().copied().collect();
        kept.sort_unstable();
        for intent in self.active.values_mut() {
            intent.used = intent.uses > 0;
        }
        kept.into_iter()
            .map(|(volume, region)| Record::Intent { volume, region })
            .collect()
    }

    /// How many are active.
    pub(crate) fn len(&self) -> usize {
        self.active.len()
    }
}
