//! The snapshots of a volume, as its record has them: what is not there does not exist.
//!
//! Invariants of a record:
//! - Every snapshot is on one replica at least, and none is on an empty one. No two have the same name or
//!   cut.
//! - A snapshot is owed to replicas only that are behind and do not have it.
//!
//! Invariants of a change:
//! - A snapshot that comes is on every replica that is in sync then: all were cut while nothing was written.
//! - A snapshot that stays is the same. It comes to a replica only that it was owed to, and is owed to one
//!   more only as that stops being empty.
//!
//! A replica that is *owed* a snapshot has taken no write since that was cut. So it can still be given it,
//! before it takes writes again: what it missed up to now is all in which it may differ from the snapshot.
//! One that took writes without having it never gets it.

use uuid::Uuid;

use super::{Membership, MembershipError, ReplicaState, SlotNumber, SlotSet};

/// Snapshots that a volume can have: as many as the copy of the record on a replica has room for.
pub const SNAPSHOTS_MAX: usize = 100;

/// A snapshot of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotEntry {
    /// Its name, given by whoever asked for it.
    pub id: Uuid,
    /// What replicas know it by. Drawn anew for each attempt, so that what a failed one left is never taken
    /// for the snapshot.
    pub cut: Uuid,
    /// Who has it.
    pub held_by: SlotSet,
    /// Who is to get it before any write.
    pub owed_to: SlotSet,
}

impl Membership {
    /// A snapshot by its name.
    pub fn snapshot(&self, id: Uuid) -> Option<SnapshotEntry> {
        self.snapshots.iter().find(|entry| entry.id == id).copied()
    }

    /// The snapshots that are owed to a replica, oldest first.
    pub fn owed(&self, slot: SlotNumber) -> impl Iterator<Item = SnapshotEntry> {
        self.snapshots
            .iter()
            .filter(move |entry| entry.owed_to.contains(slot))
            .copied()
    }

    /// What becomes of the snapshots of a replica that changes its state.
    pub(super) fn forget_snapshots_of(&mut self, slot: SlotNumber, state: ReplicaState) {
        for entry in &mut self.snapshots {
            match state {
                ReplicaState::InSync => entry.owed_to.remove(slot),
                ReplicaState::Behind => {}
                ReplicaState::Empty => {
                    entry.held_by.remove(slot);
                    entry.owed_to.remove(slot);
                }
            }
        }
        self.snapshots.retain(|entry| !entry.held_by.is_empty());
    }

    pub(super) fn check_snapshots(&self) -> Result<(), MembershipError> {
        if self.snapshots.len() > SNAPSHOTS_MAX {
            return Err(MembershipError::SnapshotCount);
        }
        let behind = self.slots_in(ReplicaState::Behind);
        for (index, entry) in self.snapshots.iter().enumerate() {
            let require = |valid: bool, problem| require(valid, entry.id, problem);
            require(!entry.id.is_nil() && !entry.cut.is_nil(), "it has no name")?;
            let mut earlier = self.snapshots.iter().take(index);
            let is_alike = |other: &SnapshotEntry| other.id == entry.id || other.cut == entry.cut;
            require(!earlier.any(is_alike), "there are two of that name")?;
            require(!entry.held_by.is_empty(), "no replica has it")?;
            let able = self.in_sync().or(behind);
            require(
                able.contains_all(entry.held_by),
                "a replica that is empty or not there has it",
            )?;
            let fit = behind.without(entry.held_by);
            require(
                fit.contains_all(entry.owed_to),
                "it is owed to a replica that is not behind",
            )?;
        }
        Ok(())
    }

    pub(super) fn check_snapshots_follow(&self, before: &Self) -> Result<(), MembershipError> {
        let no_longer_empty = before.slots_in(ReplicaState::Empty);
        for entry in &self.snapshots {
            let require = |valid: bool, problem| require(valid, entry.id, problem);
            let Some(old) = before.snapshot(entry.id) else {
                let is_on_all = entry.held_by.contains_all(self.in_sync());
                require(is_on_all, "it is new, and not on every replica in sync")?;
                continue;
            };
            require(old.cut == entry.cut, "it is another one than before")?;
            let came = entry.held_by.without(old.held_by);
            require(
                old.owed_to.contains_all(came),
                "a replica has it now that it was not owed to",
            )?;
            let owed = entry.owed_to.without(old.owed_to);
            require(
                no_longer_empty.contains_all(owed),
                "it is owed to a replica that may have taken writes since",
            )?;
        }
        Ok(())
    }
}

fn require(valid: bool, id: Uuid, problem: &'static str) -> Result<(), MembershipError> {
    match valid {
        true => Ok(()),
        false => Err(MembershipError::Snapshot { id, problem }),
    }
}
