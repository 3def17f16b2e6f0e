//! Who takes part in a volume: read from its status and written to it, and which change may follow which.
//!
//! Targets work by the same record, and each replica keeps a copy of it (`engine/volume`, `membership`); the
//! rules here are the rules there. Invariants of a record:
//! - One replica at least is in sync; no two share a slot.
//! - `epoch` and `version` are 1 at least.
//!
//! Invariants of a change:
//! - `version` rises by one, `epoch` by one or not at all. A change of epoch changes nothing else.
//! - Sets that follow each other share a replica.
//! - A replica comes in rebuilding, is stale before it is in sync, and is out of sync before it goes.
//! - The volume never shrinks.
//! - A snapshot that comes is on every replica in sync; one that stays comes to no replica that may have
//!   taken writes since.
//! - A roll-back comes as one that is not done, of a snapshot that there is; it is done once, and never
//!   forgotten.
//! - Caches were lost at the opening that says so, and that is never forgotten.

use std::collections::BTreeSet;

use pollux_api::control::v1::{Member, Membership, RecordedRollBack, ReplicaState, VolumeStatus};

/// Slots of a record: so many replicas a volume can have at a time, those included that are to go.
pub const SLOTS: u32 = 5;

/// Snapshots that a volume can have: as many as the copy of the record on a replica has room for.
pub const SNAPSHOTS_MAX: usize = 100;

/// The block size of volumes, in bytes: that of pools.
const BLOCK_BYTES: u64 = 4096;

/// The record, as the status of a volume tells it. Replicas that are not made yet are no part of it.
pub fn membership(volume_uid: &str, status: &VolumeStatus) -> Membership {
    let mut members: Vec<Member> = status
        .replicas
        .iter()
        .filter(|replica| {
            !matches!(
                replica.state(),
                ReplicaState::Assigned | ReplicaState::Unspecified
            )
        })
        .map(|replica| Member {
            uid: replica.uid.clone(),
            slot: replica.slot,
            state: replica.state,
        })
        .collect();
    members.sort_by_key(|member| member.slot);
    Membership {
        volume_uid: volume_uid.to_owned(),
        epoch: status.epoch,
        version: status.version,
        size_bytes: status.size_bytes,
        min_in_sync: status.min_in_sync,
        members,
        snapshots: status.snapshots.clone(),
        roll_back: status.roll_back.clone(),
        caches_lost_epoch: status.caches_lost_epoch,
    }
}

/// Takes the snapshots off a record that only replicas had which are not there any more.
pub fn forget_snapshots(status: &mut VolumeStatus) {
    let members = |state: fn(ReplicaState) -> bool| {
        let replicas = status.replicas.iter();
        let slots = replicas
            .filter(|replica| state(replica.state()))
            .map(|replica| replica.slot);
        slots.fold(0, |bits, slot| bits | 1_u32 << slot.min(SLOTS))
    };
    let able = members(|state| matches!(state, ReplicaState::InSync | ReplicaState::Stale));
    for snapshot in &mut status.snapshots {
        snapshot.held_by &= able;
        snapshot.owed_to &= able;
    }
    status.snapshots.retain(|snapshot| snapshot.held_by != 0);
}

/// Puts what targets change into a status: epoch, version, size, the states of replicas, snapshots, whether a
/// roll-back is done, and whether caches were lost.
pub fn put_membership(status: &mut VolumeStatus, next: &Membership) {
    status.epoch = next.epoch;
    status.version = next.version;
    status.size_bytes = next.size_bytes;
    status.snapshots.clone_from(&next.snapshots);
    status.roll_back.clone_from(&next.roll_back);
    status.caches_lost_epoch = next.caches_lost_epoch;
    for replica in &mut status.replicas {
        let member = next.members.iter().find(|member| member.uid == replica.uid);
        if let Some(member) = member {
            replica.state = member.state;
        }
    }
}

/// A slot that no replica has.
pub fn free_slot(status: &VolumeStatus) -> Option<u32> {
    let is_free = |slot: &u32| status.replicas.iter().all(|replica| replica.slot != *slot);
    (0..SLOTS).find(is_free)
}

fn require(holds: bool, what: &str) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(what.to_owned()),
    }
}

/// Checks the invariants of a record.
///
/// # Errors
///
/// The first that does not hold, for people.
pub fn check(record: &Membership) -> Result<(), String> {
    require(!record.volume_uid.is_empty(), "it names no volume")?;
    require((1..u64::MAX).contains(&record.epoch), "its epoch is out of range")?;
    require(
        (1..u64::MAX).contains(&record.version),
        "its version is out of range",
    )?;
    let is_size = record.size_bytes > 0 && record.size_bytes.is_multiple_of(BLOCK_BYTES);
    require(is_size, "its size is out of range")?;
    require(
        (1..=SLOTS).contains(&record.min_in_sync),
        "its min_in_sync is out of range",
    )?;
    let slots: BTreeSet<u32> = record.members.iter().map(|member| member.slot).collect();
    let uids: BTreeSet<&str> = record.members.iter().map(|member| member.uid.as_str()).collect();
    let is_each_once = slots.len() == record.members.len() && uids.len() == record.members.len();
    require(is_each_once, "a replica or a slot is in it twice")?;
    require(
        slots.iter().all(|slot| *slot < SLOTS),
        "a slot of it is out of range",
    )?;
    require(!uids.contains(""), "a replica of it has no name")?;
    let is_known = |member: &Member| {
        matches!(
            member.state(),
            ReplicaState::InSync | ReplicaState::Stale | ReplicaState::Rebuilding
        )
    };
    require(
        record.members.iter().all(is_known),
        "a replica of it has no state",
    )?;
    require(
        record.caches_lost_epoch <= record.epoch,
        "its loss of caches is out of range",
    )?;
    require(!in_sync(record).is_empty(), "no replica of it is in sync")?;
    check_snapshots(record)
}

/// The slots of replicas in a state, as bits.
fn slots_in(record: &Membership, state: ReplicaState) -> u32 {
    let members = record.members.iter();
    let slots = members
        .filter(|member| member.state() == state)
        .map(|member| member.slot);
    slots.fold(0, |bits, slot| bits | 1_u32 << slot.min(SLOTS))
}

fn check_snapshots(record: &Membership) -> Result<(), String> {
    require(
        record.snapshots.len() <= SNAPSHOTS_MAX,
        "it has more snapshots than a volume can have",
    )?;
    let stale = slots_in(record, ReplicaState::Stale);
    let able = stale | slots_in(record, ReplicaState::InSync);
    let mut names = BTreeSet::new();
    for snapshot in &record.snapshots {
        let is_new = names.insert(&snapshot.uid) && names.insert(&snapshot.cut);
        require(
            is_new && !snapshot.uid.is_empty() && !snapshot.cut.is_empty(),
            "a snapshot of it has no name of its own",
        )?;
        require(
            snapshot.held_by != 0 && snapshot.held_by & !able == 0,
            "a snapshot of it is on no replica, or on one that cannot have it",
        )?;
        require(
            snapshot.owed_to & !(stale & !snapshot.held_by) == 0,
            "a snapshot of it is owed to a replica that cannot take it",
        )?;
    }
    Ok(())
}

/// A snapshot that comes is on all of the set; one that stays is the same, and comes to replicas only that it
/// was owed to.
fn check_snapshots_follow(next: &Membership, before: &Membership) -> Result<(), String> {
    let no_longer_empty = slots_in(before, ReplicaState::Rebuilding);
    let set = slots_in(next, ReplicaState::InSync);
    for snapshot in &next.snapshots {
        let old = before.snapshots.iter().find(|old| old.uid == snapshot.uid);
        let Some(old) = old else {
            require(
                set & !snapshot.held_by == 0,
                "a new snapshot is not on every replica in sync",
            )?;
            continue;
        };
        require(old.cut == snapshot.cut, "a snapshot is another one than before")?;
        let came = snapshot.held_by & !old.held_by;
        require(
            came & !old.owed_to == 0,
            "a replica has a snapshot now that it was not owed to",
        )?;
        let owed = snapshot.owed_to & !old.owed_to;
        require(
            owed & !no_longer_empty == 0,
            "a snapshot is owed to a replica that may have taken writes since",
        )?;
    }
    Ok(())
}

/// The one that a target may make of a roll-back.
pub fn is_ending(next: Option<&RecordedRollBack>, before: Option<&RecordedRollBack>) -> bool {
    let ended = before.map(|before| RecordedRollBack {
        done: true,
        ..before.clone()
    });
    next == before || next == ended.as_ref()
}

fn check_roll_back_follows(next: &Membership, before: &Membership) -> Result<(), String> {
    let (now, old) = (next.roll_back.as_ref(), before.roll_back.as_ref());
    if is_ending(now, old) {
        return Ok(());
    }
    let Some(now) = now else {
        return Err("a roll-back is forgotten".to_owned());
    };
    let is_known = old.is_some_and(|old| old.request_uid == now.request_uid);
    require(!is_known && !now.done, "a roll-back is another one than before")?;
    require(!now.request_uid.is_empty(), "a roll-back has no name")?;
    let mut snapshots = next.snapshots.iter();
    require(
        snapshots.any(|snapshot| snapshot.uid == now.snapshot_uid),
        "a roll-back is to a snapshot that is not there",
    )
}

fn in_sync(record: &Membership) -> BTreeSet<&str> {
    let members = record.members.iter();
    members
        .filter(|member| member.state() == ReplicaState::InSync)
        .map(|member| member.uid.as_str())
        .collect()
}

/// Checks that a record may be what comes after another one.
///
/// # Errors
///
/// The first invariant that does not hold, for people; those of the record itself included.
pub fn check_follows(next: &Membership, before: &Membership) -> Result<(), String> {
    check(next)?;
    require(next.volume_uid == before.volume_uid, "it is of another volume")?;
    require(next.size_bytes >= before.size_bytes, "the volume would shrink")?;
    require(
        Some(next.version) == before.version.checked_add(1),
        "its version does not follow",
    )?;
    if next.epoch != before.epoch {
        let opened = Membership {
            epoch: before.epoch.saturating_add(1),
            version: next.version,
            ..before.clone()
        };
        return require(*next == opened, "a change of epoch changes nothing else");
    }
    let is_known = [before.caches_lost_epoch, next.epoch].contains(&next.caches_lost_epoch);
    require(is_known, "caches were lost at another opening")?;
    for slot in 0..SLOTS {
        let member = |record: &Membership| {
            let found = record.members.iter().find(|member| member.slot == slot);
            found.cloned()
        };
        check_step(member(before), member(next))?;
    }
    let shared = in_sync(next).intersection(&in_sync(before)).count();
    require(shared > 0, "no replica would stay in sync")?;
    check_roll_back_follows(next, before)?;
    check_snapshots_follow(next, before)
}

/// Which steps one slot may make.
fn check_step(before: Option<Member>, after: Option<Member>) -> Result<(), String> {
    use ReplicaState::{InSync, Rebuilding};
    let (is_legal, uid) = match (&before, &after) {
        (None, None) => return Ok(()),
        (None, Some(new)) => (new.state() == Rebuilding, &new.uid),
        (Some(old), None) => (old.state() != InSync, &old.uid),
        (Some(old), Some(new)) => {
            let is_jump = old.state() == Rebuilding && new.state() == InSync;
            (old.uid == new.uid && !is_jump, &new.uid)
        }
    };
    let state = |member: &Option<Member>| member.as_ref().map(Member::state);
    let (from, to) = (state(&before), state(&after));
    require(
        is_legal,
        &format!("replica {uid} cannot go from {from:?} to {to:?} in one step"),
    )
}

#[cfg(test)]
mod tests {
    use pollux_api::control::v1::RecordedSnapshot;

    use super::*;

    fn record(states: &[(u32, ReplicaState)]) -> Membership {
        Membership {
            volume_uid: "v".to_owned(),
            epoch: 3,
            version: 7,
            size_bytes: 1 << 20,
            min_in_sync: 1,
            members: states
                .iter()
                .map(|(slot, state)| Member {
                    uid: format!("r{slot}"),
                    slot: *slot,
                    state: (*state).into(),
                })
                .collect(),
            snapshots: Vec::new(),
            roll_back: None,
            caches_lost_epoch: 0,
        }
    }

    fn follows(before: &[(u32, ReplicaState)], after: &[(u32, ReplicaState)]) -> bool {
        let next = Membership {
            version: 8,
            ..record(after)
        };
        check_follows(&next, &record(before)).is_ok()
    }

    #[test]
    fn steps_are_those_of_the_protocol() {
        use ReplicaState::{InSync, Rebuilding, Stale};
        let base = (0, InSync);
        for (from, to, legal) in [
            (None, Some(Rebuilding), true),
            (None, Some(Stale), false),
            (None, Some(InSync), false),
            (Some(Rebuilding), Some(Stale), true),
            (Some(Rebuilding), Some(InSync), false),
            (Some(Rebuilding), None, true),
            (Some(Stale), Some(InSync), true),
            (Some(Stale), Some(Rebuilding), true),
            (Some(Stale), None, true),
            (Some(InSync), Some(Stale), true),
            (Some(InSync), Some(Rebuilding), true),
            (Some(InSync), None, false),
        ] {
            let with = |state: Option<ReplicaState>| {
                let mut states = vec![base];
                states.extend(state.map(|state| (1, state)));
                states
            };
            assert_eq!(follows(&with(from), &with(to)), legal, "{from:?} to {to:?}");
        }
        assert!(!follows(&[(0, InSync), (1, Stale)], &[(0, Stale), (1, InSync)]));
        assert!(!follows(&[base], &[(0, Stale)]), "nothing would count");
    }

    #[test]
    fn a_loss_of_caches_is_told_by_the_opening_that_finds_it_and_stays() {
        for (before, after, legal) in [
            (0, 0, true),
            (0, 3, true),
            (0, 2, false),
            (0, 4, false),
            (2, 2, true),
            (2, 3, true),
            (2, 1, false),
            (2, 0, false),
        ] {
            let with = |version, caches_lost_epoch| Membership {
                version,
                caches_lost_epoch,
                ..record(&[(0, ReplicaState::InSync)])
            };
            let result = check_follows(&with(8, after), &with(7, before));
            assert_eq!(result.is_ok(), legal, "{before} to {after}: {result:?}");
        }
    }

    #[test]
    fn a_roll_back_begins_and_is_done_once() {
        let begun = |request: &str, snapshot: &str| {
            Some(RecordedRollBack {
                request_uid: request.to_owned(),
                snapshot_uid: snapshot.to_owned(),
                done: false,
            })
        };
        let done = |roll_back: &Option<RecordedRollBack>| {
            let mut roll_back = roll_back.clone();
            roll_back.iter_mut().for_each(|roll_back| roll_back.done = true);
            roll_back
        };
        let (first, second) = (begun("r1", "s"), begun("r2", "s"));
        for (before, after, legal) in [
            (None, first.clone(), true),
            (None, done(&first), false),
            (None, begun("r1", "other"), false),
            (None, begun("", "s"), false),
            (first.clone(), first.clone(), true),
            (first.clone(), done(&first), true),
            (first.clone(), None, false),
            (first.clone(), second.clone(), true),
            (first.clone(), done(&second), false),
            (done(&first), first.clone(), false),
            (done(&first), None, false),
            (done(&first), second.clone(), true),
        ] {
            let with = |version, roll_back: &Option<RecordedRollBack>| Membership {
                version,
                roll_back: roll_back.clone(),
                snapshots: vec![RecordedSnapshot {
                    uid: "s".to_owned(),
                    cut: "c".to_owned(),
                    held_by: 1,
                    owed_to: 0,
                }],
                ..record(&[(0, ReplicaState::InSync)])
            };
            let follows = check_follows(&with(8, &after), &with(7, &before));
            assert_eq!(follows.is_ok(), legal, "{before:?} to {after:?}");
        }
    }

    #[test]
    fn an_epoch_is_a_change_of_its_own() {
        use ReplicaState::{InSync, Stale};
        let before = record(&[(0, InSync), (1, InSync)]);
        let mut next = Membership {
            epoch: 4,
            version: 8,
            ..before.clone()
        };
        assert_eq!(check_follows(&next, &before), Ok(()));
        next.epoch = 5;
        assert!(check_follows(&next, &before).is_err());
        next.epoch = 2;
        assert!(check_follows(&next, &before).is_err());
        next.epoch = 4;
        next.members[1].set_state(Stale);
        assert!(check_follows(&next, &before).is_err());
        let late = Membership {
            version: 9,
            ..before.clone()
        };
        assert!(check_follows(&late, &before).is_err());
        let smaller = Membership {
            version: 8,
            size_bytes: 4096,
            ..before.clone()
        };
        assert!(check_follows(&smaller, &before).is_err());
    }

    #[test]
    fn bad_records_are_refused() {
        use ReplicaState::{Assigned, InSync};
        type Damage = fn(&mut Membership);
        let damages: [Damage; 10] = [
            |record| record.volume_uid.clear(),
            |record| record.epoch = 0,
            |record| record.version = u64::MAX,
            |record| record.size_bytes = 1,
            |record| record.min_in_sync = 0,
            |record| record.min_in_sync = 6,
            |record| record.members.clear(),
            |record| record.members[1].slot = 0,
            |record| record.members[1].slot = 5,
            |record| record.members[1].set_state(Assigned),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let mut record = record(&[(0, InSync), (1, InSync)]);
            assert_eq!(check(&record), Ok(()));
            damage(&mut record);
            assert!(check(&record).is_err(), "damage {number}");
        }
    }
}
