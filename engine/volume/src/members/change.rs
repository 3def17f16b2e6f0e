//! Changes of the record that the target wants, apart from who is in sync.

use uuid::Uuid;

use crate::membership::{
    Membership, ReplicaState, RollBack, SNAPSHOTS_MAX, SlotNumber, SlotSet, SnapshotEntry,
};

/// A change that is wanted until the record has it, or cannot have it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A snapshot that was cut on every replica of the set.
    AddSnapshot(SnapshotEntry),
    /// No snapshot of this name.
    RemoveSnapshot(Uuid),
    /// A replica has got a cut that was owed to it.
    Given(SlotNumber, Uuid),
    /// Nothing is owed to a replica any more.
    Forgiven(SlotNumber),
    /// A replica does not have a cut that it should have.
    Lost(SlotNumber, Uuid),
    /// A larger size, in blocks.
    Size(u64),
    /// The volume goes back to a snapshot, unless it has done so under that name.
    RollBack(RollBack),
    /// The roll-back of this name is over.
    RolledBack(Uuid),
    /// This opening relies on a replica that may have lost what was in its cache.
    CachesLost,
}

impl Change {
    /// Makes the change, if it is possible. `writing` are the replicas that take writes without being in
    /// sync.
    pub(super) fn apply(&self, record: &mut Membership, writing: SlotSet) {
        match *self {
            Self::AddSnapshot(entry) => {
                let in_sync = record.in_sync();
                let behind = record.slots_in(ReplicaState::Behind);
                let is_possible = record.snapshots.len() < SNAPSHOTS_MAX
                    && record.snapshot(entry.id).is_none()
                    && entry.held_by.contains_all(in_sync);
                if is_possible {
                    let held_by = entry.held_by.and(in_sync.or(behind));
                    let owed_to = entry.owed_to.and(behind).without(held_by).without(writing);
                    record.snapshots.push(SnapshotEntry {
                        held_by,
                        owed_to,
                        ..entry
                    });
                }
            }
            Self::RemoveSnapshot(id) => {
                // One that the volume goes back to stays until it has.
                let is_source = record
                    .rolling_back()
                    .is_some_and(|roll_back| roll_back.snapshot == id);
                if !is_source {
                    record.snapshots.retain(|entry| entry.id != id);
                }
            }
            Self::Given(slot, cut) => {
                let entry = record.snapshots.iter_mut().find(|entry| entry.cut == cut);
                if let Some(entry) = entry.filter(|entry| entry.owed_to.contains(slot)) {
                    entry.owed_to.remove(slot);
                    entry.held_by.insert(slot);
                }
            }
            Self::Forgiven(slot) => record
                .snapshots
                .iter_mut()
                .for_each(|entry| entry.owed_to.remove(slot)),
            Self::Lost(slot, cut) => {
                let lost = record.snapshots.iter_mut().filter(|entry| entry.cut == cut);
                lost.for_each(|entry| entry.held_by.remove(slot));
                record.snapshots.retain(|entry| !entry.held_by.is_empty());
            }
            Self::Size(size_blocks) => record.size_blocks = record.size_blocks.max(size_blocks),
            Self::RollBack(wanted) => {
                let is_new = record.roll_back.is_none_or(|known| known.id != wanted.id);
                if is_new && record.snapshot(wanted.snapshot).is_some() {
                    record.roll_back = Some(wanted);
                }
            }
            Self::RolledBack(id) => {
                let known = record.roll_back.as_mut().filter(|known| known.id == id);
                if let Some(known) = known {
                    known.is_done = true;
                }
            }
            Self::CachesLost => record.caches_lost = Some(record.epoch),
        }
    }

    /// Whether it is about the replica in a slot alone.
    pub(super) fn is_of(&self, of: SlotNumber) -> bool {
        match self {
            Self::Given(slot, _) | Self::Forgiven(slot) | Self::Lost(slot, _) => *slot == of,
            Self::AddSnapshot(_)
            | Self::RemoveSnapshot(_)
            | Self::Size(_)
            | Self::RollBack(_)
            | Self::RolledBack(_)
            | Self::CachesLost => false,
        }
    }
}

/// All snapshots are owed to a replica that stops being empty, but for those that it has.
pub(super) fn owe_all(record: &mut Membership, slot: SlotNumber) {
    for entry in &mut record.snapshots {
        if !entry.held_by.contains(slot) {
            entry.owed_to.insert(slot);
        }
    }
}
