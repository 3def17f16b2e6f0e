//! Bad blocks for whoever has them elsewhere: those of volumes that a scrub or a drain has met, remembered
//! until they were told.

use std::collections::BTreeMap;

use super::{Pool, State};
use crate::layout::volume::{VolumeKind, VolumeState};

/// Blocks that are remembered; what is beyond waits for the next scrub.
const SUSPECTS_MAX: usize = 65_536;

/// Blocks that are told at once.
const TOLD_MAX: usize = 1024;

/// How often each is told: who asked may not have come to it.
const TELLS: u8 = 3;

/// By volume and block, how often it is told yet.
#[derive(Debug, Default)]
pub(super) struct Suspects(BTreeMap<(u64, u64), u8>);

impl Suspects {
    fn note(&mut self, volume: u64, block: u64) {
        if self.0.len() < SUSPECTS_MAX {
            self.0.insert((volume, block), TELLS);
        }
    }

    fn tell(&mut self, volume: u64) -> Vec<u64> {
        let of_volume = (volume, 0)..=(volume, u64::MAX);
        let mut told = Vec::new();
        for ((_, block), left) in self.0.range_mut(of_volume).take(TOLD_MAX) {
            told.push(*block);
            *left -= 1;
        }
        for block in &told {
            if self.0.get(&(volume, *block)) == Some(&0) {
                self.0.remove(&(volume, *block));
            }
        }
        told
    }
}

impl State {
    /// A block of a volume or snapshot is bad, and so it may be in all volumes that are related to it.
    pub(super) fn suspect(&mut self, id: u64, block: u64) {
        for id in self.table.related(id) {
            let is_volume = self
                .table
                .get(id)
                .is_some_and(|entry| entry.kind == VolumeKind::Volume && entry.state == VolumeState::InUse);
            if is_volume {
                self.suspects.note(id, block);
            }
        }
    }

    /// The same for those that the last scrub before this import has kept.
    pub(super) fn suspect_what_was_found(&mut self) {
        for (id, block) in self.scrub.bad_blocks.clone() {
            self.suspect(id, block);
        }
    }
}

impl Pool {
    /// Blocks of a volume, by its name, which a scrub or a drain has found bad in it or in what it shares
    /// blocks with: for whoever can write them anew, by reading them first. Each is told a few times, and no
    /// more until it is found again.
    pub fn suspected_blocks(&self, name: &str) -> Vec<u64> {
        let mut state = self.state.borrow_mut();
        let id = state
            .table
            .entries()
            .find(|entry| entry.name == name)
            .map(|entry| entry.id);
        id.map(|id| state.suspects.tell(id)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_told_a_few_times_to_its_volume_alone() {
        let mut suspects = Suspects::default();
        for block in 0..TOLD_MAX as u64 + 5 {
            suspects.note(7, block);
        }
        suspects.note(8, 3);
        for _ in 0..TELLS {
            assert_eq!(suspects.tell(7).len(), TOLD_MAX);
        }
        assert_eq!(suspects.tell(7).len(), 5);
        assert_eq!(suspects.tell(6), []);
        for _ in 0..TELLS {
            assert_eq!(suspects.tell(8), [3]);
        }
        assert_eq!(suspects.tell(8), []);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut suspects = Suspects::default();
        (0..2 * SUSPECTS_MAX as u64).for_each(|block| suspects.note(1, block));
        assert_eq!(suspects.0.len(), SUSPECTS_MAX);
    }
}
