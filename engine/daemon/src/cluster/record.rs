//! The record of who takes part in a volume, as the control plane and the mirror have it.

use pollux_api::control::v1 as api;
use pollux_volume::membership::{
    Epoch, Membership, MembershipError, REPLICAS_MAX, ReplicaEntry, ReplicaState, RollBack, SlotSet,
    SnapshotEntry,
};
use uuid::Uuid;

/// The block size of volumes: that of pools.
pub(super) const BLOCK_BYTES: u32 = 4096;

/// Why the control plane's record is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// A UUID that is none.
    #[error("{0:?} is no UUID")]
    Uuid(String),
    /// A field that is out of range.
    #[error("{0} is out of range")]
    Field(&'static str),
    /// It must not be so.
    #[error(transparent)]
    Record(#[from] MembershipError),
}

/// Reads a UUID.
pub(super) fn uuid(text: &str) -> Result<Uuid, RecordError> {
    text.parse().map_err(|_| RecordError::Uuid(text.to_owned()))
}

/// The mirror's record.
pub(super) fn from_api(record: &api::Membership) -> Result<Membership, RecordError> {
    let block_bytes = u64::from(BLOCK_BYTES);
    if !record.size_bytes.is_multiple_of(block_bytes) {
        return Err(RecordError::Field("the size"));
    }
    let mut replicas = [None; REPLICAS_MAX];
    for member in &record.members {
        let slot = usize::try_from(member.slot).unwrap_or(usize::MAX);
        let place = replicas.get_mut(slot).ok_or(RecordError::Field("a slot"))?;
        let state = match member.state() {
            api::ReplicaState::InSync => ReplicaState::InSync,
            api::ReplicaState::Stale => ReplicaState::Behind,
            api::ReplicaState::Rebuilding => ReplicaState::Empty,
            api::ReplicaState::Unspecified | api::ReplicaState::Assigned => {
                return Err(RecordError::Field("the state of a replica"));
            }
        };
        if place.is_some() {
            return Err(RecordError::Field("a slot, which is taken twice"));
        }
        *place = Some(ReplicaEntry {
            id: uuid(&member.uid)?,
            state,
        });
    }
    let record = Membership {
        volume: uuid(&record.volume_uid)?,
        epoch: Epoch(record.epoch),
        version: record.version,
        size_blocks: record.size_bytes / block_bytes,
        block_bytes: BLOCK_BYTES,
        min_in_sync: u8::try_from(record.min_in_sync).unwrap_or(u8::MAX),
        replicas,
        snapshots: record.snapshots.iter().map(snapshot).collect::<Result<_, _>>()?,
        roll_back: record.roll_back.as_ref().map(roll_back).transpose()?,
        caches_lost: match record.caches_lost_epoch {
            0 => None,
            epoch => Some(Epoch(epoch)),
        },
    };
    record.check()?;
    Ok(record)
}

fn snapshot(recorded: &api::RecordedSnapshot) -> Result<SnapshotEntry, RecordError> {
    let slots = |bits: u32| {
        let bits = u8::try_from(bits).ok();
        bits.and_then(SlotSet::from_bits)
            .ok_or(RecordError::Field("a slot of a snapshot"))
    };
    Ok(SnapshotEntry {
        id: uuid(&recorded.uid)?,
        cut: uuid(&recorded.cut)?,
        held_by: slots(recorded.held_by)?,
        owed_to: slots(recorded.owed_to)?,
    })
}

fn roll_back(recorded: &api::RecordedRollBack) -> Result<RollBack, RecordError> {
    Ok(RollBack {
        id: uuid(&recorded.request_uid)?,
        snapshot: uuid(&recorded.snapshot_uid)?,
        is_done: recorded.done,
    })
}

/// The control plane's record.
pub(super) fn to_api(record: &Membership) -> api::Membership {
    let members = (0..).zip(&record.replicas).filter_map(|(slot, entry)| {
        let entry = entry.as_ref()?;
        let state = match entry.state {
            ReplicaState::InSync => api::ReplicaState::InSync,
            ReplicaState::Behind => api::ReplicaState::Stale,
            ReplicaState::Empty => api::ReplicaState::Rebuilding,
        };
        Some(api::Member {
            uid: entry.id.to_string(),
            slot,
            state: state.into(),
        })
    });
    api::Membership {
        volume_uid: record.volume.to_string(),
        epoch: record.epoch.0,
        version: record.version,
        size_bytes: record.size_bytes(),
        min_in_sync: record.min_in_sync.into(),
        members: members.collect(),
        snapshots: record
            .snapshots
            .iter()
            .map(|entry| api::RecordedSnapshot {
                uid: entry.id.to_string(),
                cut: entry.cut.to_string(),
                held_by: entry.held_by.bits().into(),
                owed_to: entry.owed_to.bits().into(),
            })
            .collect(),
        roll_back: record.roll_back.map(|roll_back| api::RecordedRollBack {
            request_uid: roll_back.id.to_string(),
            snapshot_uid: roll_back.snapshot.to_string(),
            done: roll_back.is_done,
        }),
        caches_lost_epoch: record.caches_lost.map_or(0, |epoch| epoch.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> api::Membership {
        let member = |number: u128, slot, state: api::ReplicaState| api::Member {
            uid: Uuid::from_u128(number).to_string(),
            slot,
            state: state.into(),
        };
        api::Membership {
            volume_uid: Uuid::from_u128(7).to_string(),
            epoch: 3,
            version: 9,
            size_bytes: 1 << 20,
            min_in_sync: 2,
            members: vec![
                member(1, 0, api::ReplicaState::InSync),
                member(2, 2, api::ReplicaState::Stale),
                member(3, 4, api::ReplicaState::Rebuilding),
            ],
            snapshots: vec![api::RecordedSnapshot {
                uid: Uuid::from_u128(8).to_string(),
                cut: Uuid::from_u128(9).to_string(),
                held_by: 0b1,
                owed_to: 0b100,
            }],
            roll_back: Some(api::RecordedRollBack {
                request_uid: Uuid::from_u128(10).to_string(),
                snapshot_uid: Uuid::from_u128(8).to_string(),
                done: false,
            }),
            caches_lost_epoch: 2,
        }
    }

    #[test]
    fn records_come_back_as_they_went() {
        let there = from_api(&record()).expect("it is good");
        assert_eq!(there.size_blocks, 256);
        assert_eq!(there.in_sync().len(), 1);
        assert_eq!(to_api(&there), record());
    }

    #[test]
    fn bad_records_are_errors() {
        type Damage = fn(&mut api::Membership);
        let damages: [Damage; 13] = [
            |record| record.volume_uid = "volume".to_owned(),
            |record| record.size_bytes = 4097,
            |record| record.size_bytes = 0,
            |record| record.min_in_sync = 300,
            |record| record.caches_lost_epoch = 4,
            |record| record.members[0].slot = 5,
            |record| record.members[0].slot = 2,
            |record| record.members[0].set_state(api::ReplicaState::Assigned),
            |record| record.members[0].uid.clear(),
            |record| record.snapshots[0].held_by = 0b100_0001,
            |record| record.snapshots[0].cut.clear(),
            |record| record.roll_back.as_mut().expect("it has one").request_uid.clear(),
            |record| record.roll_back.as_mut().expect("it has one").snapshot_uid = Uuid::nil().to_string(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let mut record = record();
            damage(&mut record);
            assert!(from_api(&record).is_err(), "damage {number}");
        }
    }
}
