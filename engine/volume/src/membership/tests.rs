//! Which records and changes are legal.

use proptest::prelude::*;

use super::*;

const VOLUME: Uuid = Uuid::from_u128(0x77);

fn entry(id: u128, state: ReplicaState) -> Option<ReplicaEntry> {
    let id = Uuid::from_u128(id);
    Some(ReplicaEntry { id, state })
}

fn record() -> Membership {
    let [first, second, third] = [ReplicaState::InSync, ReplicaState::InSync, ReplicaState::Empty];
    Membership {
        volume: VOLUME,
        epoch: Epoch(3),
        version: 9,
        size_blocks: 1 << 20,
        block_bytes: 4096,
        min_in_sync: 1,
        replicas: [entry(1, first), entry(2, second), entry(3, third), None, None],
        snapshots: Vec::new(),
        roll_back: None,
        caches_lost: None,
    }
}

fn slot(index: usize) -> SlotNumber {
    SlotNumber::new(index).unwrap()
}

#[test]
fn a_set_is_never_empty() {
    let mut none = record();
    none = none.with_state(slot(0), ReplicaState::Behind);
    assert_eq!(none.check(), Ok(()));
    none = none.with_state(slot(1), ReplicaState::Behind);
    assert_eq!(none.check(), Err(MembershipError::NoneInSync));
}

#[test]
fn fields_are_checked() {
    let bad: [fn(&mut Membership); 10] = [
        |record| record.volume = Uuid::nil(),
        |record| record.epoch = Epoch(0),
        |record| record.version = u64::MAX,
        |record| record.block_bytes = 1000,
        |record| record.size_blocks = u64::MAX,
        |record| record.min_in_sync = 0,
        |record| record.min_in_sync = 6,
        |record| record.replicas[3] = record.replicas[0],
        |record| record.caches_lost = Some(Epoch(0)),
        |record| record.caches_lost = Some(Epoch(4)),
    ];
    for spoil in bad {
        let mut spoilt = record();
        spoil(&mut spoilt);
        assert!(spoilt.check().is_err(), "{spoilt:?}");
    }
}

#[test]
fn two_sets_in_a_row_share_a_replica() {
    let before = record().with_state(slot(1), ReplicaState::Behind);
    let after = before.next();
    let after = after.with_state(slot(0), ReplicaState::Behind);
    let after = after.with_state(slot(1), ReplicaState::InSync);
    assert_eq!(after.check_follows(&before), Err(MembershipError::NoneInSync));
}

fn snapshot(number: u128, held_by: u8, owed_to: u8) -> SnapshotEntry {
    SnapshotEntry {
        id: Uuid::from_u128(number),
        cut: Uuid::from_u128(number << 8),
        held_by: SlotSet::from_bits(held_by).unwrap(),
        owed_to: SlotSet::from_bits(owed_to).unwrap(),
    }
}

/// The record with its second replica behind, and snapshots.
fn with_snapshots(snapshots: &[SnapshotEntry]) -> Membership {
    let mut record = record().with_state(slot(1), ReplicaState::Behind);
    record.snapshots = snapshots.to_vec();
    record
}

#[test]
fn snapshots_are_checked() {
    let good = [snapshot(1, 0b11, 0), snapshot(2, 0b01, 0b10)];
    assert_eq!(with_snapshots(&good).check(), Ok(()));
    let bad = [
        (snapshot(1, 0b01, 0), "two of that name"),
        (snapshot(0, 0b01, 0), "no name"),
        (snapshot(3, 0, 0b10), "no replica has it"),
        (snapshot(3, 0b101, 0), "a replica that is empty"),
        (snapshot(3, 0b1001, 0), "a replica that is empty"),
        (snapshot(3, 0b10, 0b01), "not behind"),
        (snapshot(3, 0b11, 0b10), "not behind"),
    ];
    for (one, problem) in bad {
        let error = with_snapshots(&[good[0], one]).check().unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let many: Vec<_> = (1..=101).map(|number| snapshot(number, 1, 0)).collect();
    assert_eq!(with_snapshots(&many[..100]).check(), Ok(()));
    assert_eq!(with_snapshots(&many).check(), Err(MembershipError::SnapshotCount));
}

#[test]
fn snapshots_come_and_stay_as_they_may() {
    let before = with_snapshots(&[snapshot(1, 0b01, 0b10)]);
    let after = |snapshots: &[SnapshotEntry]| Membership {
        snapshots: snapshots.to_vec(),
        ..before.next()
    };
    let good: [&[SnapshotEntry]; 4] = [
        &[],
        &[snapshot(1, 0b11, 0)],
        &[snapshot(1, 0b01, 0), snapshot(2, 0b01, 0b10)],
        &[snapshot(1, 0b01, 0b10), snapshot(2, 0b01, 0)],
    ];
    for snapshots in good {
        assert_eq!(after(snapshots).check_follows(&before), Ok(()), "{snapshots:?}");
    }
    let another = SnapshotEntry {
        cut: Uuid::from_u128(9),
        ..snapshot(1, 0b01, 0)
    };
    let bad: [(&[SnapshotEntry], &str); 2] = [
        (
            &[snapshot(1, 0b01, 0b10), snapshot(2, 0b10, 0)],
            "every replica in sync",
        ),
        (&[another], "another one"),
    ];
    for (snapshots, problem) in bad {
        let error = after(snapshots).check_follows(&before).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    // It is owed to none that may have taken writes since, and comes only to one that it is owed to.
    let before = with_snapshots(&[snapshot(1, 0b01, 0)]);
    for entry in [snapshot(1, 0b01, 0b10), snapshot(1, 0b11, 0)] {
        let mut after = before.next();
        after.snapshots = vec![entry];
        assert!(after.check_follows(&before).is_err(), "{entry:?}");
    }
    // One that was empty takes its first write after it.
    let mut after = before.next().with_state(slot(2), ReplicaState::Behind);
    after.snapshots = vec![snapshot(1, 0b01, 0b100)];
    assert_eq!(after.check_follows(&before), Ok(()));
}

#[test]
fn a_roll_back_is_begun_once_and_ended_once() {
    let roll_back = |id: u128, number: u128, is_done| {
        Some(RollBack {
            id: Uuid::from_u128(id),
            snapshot: Uuid::from_u128(number),
            is_done,
        })
    };
    let with = |roll_back| Membership {
        roll_back,
        ..with_snapshots(&[snapshot(1, 0b01, 0), snapshot(2, 0b01, 0)])
    };
    let (begun, ended) = (roll_back(7, 1, false), roll_back(7, 1, true));
    for (before, after, legal) in [
        (None, begun, true),
        (None, ended, false),
        (None, roll_back(7, 3, false), false),
        (None, roll_back(0, 1, false), false),
        (begun, begun, true),
        (begun, ended, true),
        (begun, None, false),
        (begun, roll_back(7, 2, false), false),
        (begun, roll_back(7, 2, true), false),
        (begun, roll_back(8, 1, false), true),
        (begun, roll_back(8, 1, true), false),
        (ended, ended, true),
        (ended, begun, false),
        (ended, None, false),
        (ended, roll_back(8, 2, false), true),
    ] {
        let (before, mut after) = (with(before), with(after));
        after.version += 1;
        let follows = after.check_follows(&before);
        assert_eq!(
            follows.is_ok(),
            legal,
            "{:?} to {:?}",
            before.roll_back,
            after.roll_back
        );
    }
}

#[test]
fn a_loss_of_caches_is_told_by_the_opening_that_finds_it_and_stays() {
    let with = |caches_lost: Option<u64>| Membership {
        caches_lost: caches_lost.map(Epoch),
        ..record()
    };
    for (before, after, legal) in [
        (None, None, true),
        (None, Some(3), true),
        (None, Some(2), false),
        (Some(2), Some(2), true),
        (Some(2), Some(3), true),
        (Some(2), Some(1), false),
        (Some(2), None, false),
        (Some(3), Some(3), true),
        (Some(3), Some(2), false),
    ] {
        let next = with(after).next();
        let follows = next.check_follows(&with(before));
        assert_eq!(follows.is_ok(), legal, "{before:?} to {after:?}");
    }
    // The next opening knows of it.
    let opened = with(Some(3)).next_epoch();
    assert_eq!(opened.caches_lost, Some(Epoch(3)));
    assert_eq!(opened.check_follows(&with(Some(3))), Ok(()));
}

#[test]
fn a_replica_that_goes_takes_its_snapshots_along() {
    let both = with_snapshots(&[snapshot(1, 0b10, 0), snapshot(2, 0b01, 0b10)]);
    let joined = both.clone().with_state(slot(1), ReplicaState::InSync);
    assert_eq!(joined.snapshots, [snapshot(1, 0b10, 0), snapshot(2, 0b01, 0)]);
    for gone in [
        both.clone().without_replica(slot(1)),
        both.with_state(slot(1), ReplicaState::Empty),
    ] {
        assert_eq!(gone.snapshots, [snapshot(2, 0b01, 0)]);
        assert_eq!(gone.check(), Ok(()));
    }
}

#[test]
fn a_new_epoch_changes_nothing_else() {
    let before = record();
    assert_eq!(before.next_epoch().check_follows(&before), Ok(()));
    let shrunk = before.next_epoch().with_state(slot(1), ReplicaState::Behind);
    assert_eq!(
        shrunk.check_follows(&before),
        Err(MembershipError::Order("the epoch"))
    );
}

#[test]
fn an_empty_replica_cannot_be_in_sync_at_once() {
    let before = record();
    let after = before.next().with_state(slot(2), ReplicaState::InSync);
    assert!(matches!(
        after.check_follows(&before),
        Err(MembershipError::Step { .. })
    ));
    let behind = before.next().with_state(slot(2), ReplicaState::Behind);
    assert_eq!(behind.check_follows(&before), Ok(()));
    let joined = behind.next().with_state(slot(2), ReplicaState::InSync);
    assert_eq!(joined.check_follows(&behind), Ok(()));
}

#[test]
fn a_replica_leaves_the_set_before_it_goes_and_the_next_comes_in_empty() {
    let before = record();
    let mut gone = before.next();
    gone.replicas[1] = None;
    assert!(gone.check_follows(&before).is_err());
    let mut other = before.next();
    other.replicas[2] = entry(4, ReplicaState::Empty);
    assert!(other.check_follows(&before).is_err(), "another one in its slot");
    let mut gone = before.next();
    gone.replicas[2] = None;
    assert_eq!(gone.check_follows(&before), Ok(()));
    let mut next = gone.next();
    next.replicas[2] = entry(4, ReplicaState::Behind);
    assert!(next.check_follows(&gone).is_err());
    next.replicas[2] = entry(4, ReplicaState::Empty);
    assert_eq!(next.check_follows(&gone), Ok(()));
}

#[test]
fn of_two_swaps_one_wins() {
    let store = MemoryStore::default();
    assert_eq!(store.get(VOLUME), Err(StoreError::NoVolume(VOLUME)));
    let first = Membership {
        version: 1,
        ..record()
    };
    store.swap(first.clone()).unwrap();
    let (mine, theirs) = (first.next_epoch(), first.next_epoch());
    store.swap(mine.clone()).unwrap();
    assert_eq!(
        store.swap(theirs),
        Err(StoreError::Conflict(Box::new(mine.clone())))
    );
    // The one who lost cannot go on with what it knew.
    let shrunk = first.next().with_state(slot(1), ReplicaState::Behind);
    assert!(matches!(store.swap(shrunk), Err(StoreError::Conflict(_))));
    assert_eq!(store.get(VOLUME), Ok(mine));
}

fn state() -> impl Strategy<Value = Option<ReplicaState>> {
    let states = [ReplicaState::InSync, ReplicaState::Behind, ReplicaState::Empty];
    proptest::option::of(proptest::sample::select(states.to_vec()))
}

proptest! {
    /// Whatever is asked for: what a store holds is always a good record, and every set shares a replica with
    /// the one before.
    #[test]
    fn a_store_holds_good_records_only(
        steps in proptest::collection::vec((0..3u64, 0..3u64, proptest::array::uniform5(state())), 1..60),
    ) {
        let store = MemoryStore::default();
        store.swap(Membership { version: 1, ..record() }).unwrap();
        for (epochs, versions, states) in steps {
            let before = store.get(VOLUME).unwrap();
            let mut next = before.clone();
            next.epoch.0 += epochs;
            next.version += versions;
            for (index, state) in states.iter().enumerate() {
                next.replicas[index] = state.and_then(|state| entry(index as u128 + 1, state));
            }
            let done = store.swap(next).is_ok();
            let after = store.get(VOLUME).unwrap();
            prop_assert_eq!(after.check(), Ok(()));
            prop_assert!(!after.in_sync().and(before.in_sync()).is_empty());
            prop_assert_eq!(after.version, before.version + u64::from(done));
        }
    }
}
