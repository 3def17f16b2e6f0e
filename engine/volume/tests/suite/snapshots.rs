//! Snapshots at one instant, on every replica or on none; going back to them; volumes that grow and close.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Completion, IoError, Request};
use pollux_reactor::{sleep, spawn};
use pollux_volume::membership::{MembershipStore, MemoryStore, ReplicaState, SlotNumber};
use pollux_volume::mirror::{GrowError, Mirror, SnapshotError, Unreadable, snapshot_together};
use pollux_volume::replica::{CommandError, ReplicaAnswer, ReplicaCommand, ReplicaPort};
use uuid::Uuid;

use crate::common::{BLOCKS, Cluster, DATA_START, REGION, VOLUME, data, id, on_pools};

fn name(number: u128) -> Uuid {
    Uuid::from_u128(0x5000 + number)
}

/// The snapshots of a replica, as its host tells them.
fn cuts(cluster: &Cluster, index: usize, mirror: &Mirror) -> Vec<Uuid> {
    let (path, epoch) = (cluster.paths[index].clone(), mirror.membership().epoch);
    cluster.world.block_on(cluster.reactor, async move {
        match path.command(epoch, ReplicaCommand::ListSnapshots).await.unwrap() {
            ReplicaAnswer::Snapshots(cuts) => cuts,
            ReplicaAnswer::Done | ReplicaAnswer::BadBlocks(_) => panic!("no list"),
        }
    })
}

/// The first byte of a block in a snapshot of a replica.
fn peek_snapshot(cluster: &Cluster, index: usize, mirror: &Mirror, snapshot: Uuid, block: u64) -> u8 {
    let record = mirror.membership();
    let (path, cut) = (
        cluster.paths[index].clone(),
        record.snapshot(snapshot).unwrap().cut,
    );
    cluster.world.block_on(cluster.reactor, async move {
        let device = path.open_snapshot(record.epoch, cut).await.unwrap();
        device.read(DATA_START + block, data(0)).await.unwrap()[0]
    })
}

/// Runs something with a mirror that can be borrowed by it.
fn run<T: 'static>(
    cluster: &Cluster,
    mirror: &Rc<Mirror>,
    act: impl AsyncFnOnce(Rc<Mirror>) -> T + 'static,
) -> T {
    let mirror = mirror.clone();
    cluster
        .world
        .block_on(cluster.reactor, async move { act(mirror).await })
}

fn snapshot(cluster: &Cluster, mirror: &Rc<Mirror>, number: u128) -> Result<(), SnapshotError> {
    run(cluster, mirror, async move |mirror| {
        mirror.snapshot(name(number)).await
    })
}

fn slots(mirror: &Mirror, number: u128) -> (u8, u8) {
    let entry = mirror.membership().snapshot(name(number)).unwrap();
    (entry.held_by.bits(), entry.owed_to.bits())
}

#[test]
fn a_snapshot_is_on_all_replicas_and_does_not_change() {
    let cluster = on_pools(1, 3);
    let mirror = Rc::new(cluster.open());
    cluster.write(&mirror, 9, 1);
    snapshot(&cluster, &mirror, 1).unwrap();
    cluster.write(&mirror, 9, 2);
    snapshot(&cluster, &mirror, 2).unwrap();
    snapshot(&cluster, &mirror, 2).unwrap();
    cluster.write(&mirror, 9, 3);
    for replica in 0..3 {
        assert_eq!(peek_snapshot(&cluster, replica, &mirror, name(1), 9), 1);
        assert_eq!(peek_snapshot(&cluster, replica, &mirror, name(2), 9), 2);
        assert_eq!(cuts(&cluster, replica, &mirror).len(), 2);
    }
    run(&cluster, &mirror, async |mirror| {
        mirror.delete_snapshot(name(1)).await.unwrap();
        mirror.delete_snapshot(name(1)).await.unwrap();
    });
    cluster.world.run_for(Duration::from_secs(1));
    let left = mirror.membership().snapshots[0].cut;
    for replica in 0..3 {
        assert_eq!(cuts(&cluster, replica, &mirror), [left]);
    }
}

#[test]
fn a_snapshot_survives_that_all_power_is_lost() {
    let cluster = on_pools(2, 2);
    let mirror = Rc::new(cluster.open());
    cluster.write(&mirror, 9, 1);
    snapshot(&cluster, &mirror, 1).unwrap();
    drop(mirror);
    for (index, drive) in cluster.drives.iter().enumerate() {
        drive.power_loss(pollux_sim::PowerLoss::LoseAll);
        cluster.start_host(index);
    }
    let mirror = cluster.open();
    for replica in 0..2 {
        assert_eq!(peek_snapshot(&cluster, replica, &mirror, name(1), 9), 1);
    }
}

#[test]
fn nothing_is_left_of_a_snapshot_that_one_replica_could_not_make() {
    let cluster = on_pools(3, 2);
    let mirror = Rc::new(cluster.open());
    // No writes tell that it is away.
    cluster.paths[1].commands_fail.set(true);
    let error = snapshot(&cluster, &mirror, 1).unwrap_err();
    assert!(
        matches!(
            error,
            SnapshotError::Replica {
                error: CommandError::Unreachable,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(mirror.membership().snapshots, []);
    cluster.paths[1].commands_fail.set(false);
    cluster.world.run_for(Duration::from_secs(5));
    assert_eq!(
        (cuts(&cluster, 0, &mirror).len(), cuts(&cluster, 1, &mirror).len()),
        (0, 0)
    );
    snapshot(&cluster, &mirror, 1).unwrap();
    assert_eq!(slots(&mirror, 1), (0b11, 0));
}

/// It is cut after all, when nobody waits for it any more.
#[test]
fn nothing_is_left_of_a_snapshot_that_one_replica_made_too_late() {
    let cluster = on_pools(22, 2);
    let mirror = Rc::new(cluster.open());
    let take = cluster.options.hold_limit + Duration::from_secs(1);
    cluster.paths[1].cuts_take.set(take);
    assert!(snapshot(&cluster, &mirror, 1).is_err());
    cluster.world.run_for(2 * take);
    assert_eq!(cuts(&cluster, 1, &mirror).len(), 1, "it was too late");
    cluster.world.run_for(Duration::from_secs(60));
    for replica in 0..2 {
        assert_eq!(cuts(&cluster, replica, &mirror).len(), 0, "replica {replica}");
    }
}

#[test]
fn replicas_without_snapshots_say_so() {
    let cluster = Cluster::new(4, 2);
    let mirror = Rc::new(cluster.open());
    let error = snapshot(&cluster, &mirror, 1).unwrap_err();
    assert!(
        matches!(
            error,
            SnapshotError::Replica {
                error: CommandError::Unsupported,
                ..
            }
        ),
        "{error}"
    );
    cluster.write(&mirror, 9, 1);
}

#[test]
fn what_a_target_that_died_left_is_swept_away() {
    let cluster = on_pools(5, 2);
    let mirror = Rc::new(cluster.open());
    // The store is away: the snapshot is cut, and nobody can say that it is there.
    cluster.store.away.set(true);
    let attempt = {
        let mirror = mirror.clone();
        cluster
            .world
            .spawn(cluster.reactor, async move { mirror.snapshot(name(1)).await })
    };
    cluster.world.run_for(Duration::from_secs(1));
    assert!(!attempt.is_ended());
    assert_eq!(cuts(&cluster, 1, &mirror).len(), 1, "it is on the replicas");
    drop(mirror);
    drop(attempt);
    cluster.store.away.set(false);
    let next = cluster.open();
    cluster.world.run_for(Duration::from_secs(1));
    assert_eq!(next.membership().snapshots, []);
    assert_eq!(
        (cuts(&cluster, 0, &next).len(), cuts(&cluster, 1, &next).len()),
        (0, 0)
    );
}

/// A write of block 9 that is under way.
fn begin(device: &Rc<dyn BlockDevice>, byte: u8) -> Completion {
    device.submit(Request::Write {
        block: 9,
        from: data(byte).into(),
        force_unit_access: false,
    })
}

#[test]
fn a_hold_waits_for_writes_and_lets_none_begin() {
    let cluster = on_pools(6, 2);
    let mirror = Rc::new(cluster.open());
    run(&cluster, &mirror, async |mirror| {
        let device = mirror.device();
        let first = spawn(begin(&device, 1));
        sleep(Duration::from_micros(10)).await;
        let hold = mirror.hold(Duration::from_secs(1)).await.unwrap();
        assert_eq!(
            mirror.hold(Duration::from_secs(1)).await.err(),
            Some(SnapshotError::Busy)
        );
        first.await.unwrap();
        let ended = Rc::new(Cell::new(false));
        let (second, told) = (begin(&device, 2), ended.clone());
        let second = spawn(async move {
            second.await.unwrap();
            told.set(true);
        });
        sleep(Duration::from_millis(500)).await;
        assert!(!ended.get(), "it is held");
        assert_eq!(device.read(9, data(0)).await.unwrap()[0], 1, "reads go on");
        drop(hold);
        second.await;
        // A hold ends by itself, and nothing can be cut under it any more.
        let hold = mirror.hold(Duration::from_millis(100)).await.unwrap();
        device.write(9, data(3), false).await.unwrap();
        assert!(!hold.is_in_force());
        assert_eq!(hold.cut().await.err(), Some(SnapshotError::Expired));
        let next = mirror.hold(Duration::from_millis(100)).await.unwrap();
        drop(hold);
        assert!(next.is_in_force(), "the end of an older one does not end it");
    });
}

#[test]
fn a_replica_that_was_away_gets_the_snapshots_before_it_takes_writes() {
    let cluster = on_pools(7, 3);
    let mirror = Rc::new(cluster.open());
    cluster.write(&mirror, 9, 1);
    snapshot(&cluster, &mirror, 1).unwrap();
    cluster.paths[2].cut.set(true);
    cluster.write(&mirror, 9, 2);
    cluster.write(&mirror, 70, 2);
    snapshot(&cluster, &mirror, 2).unwrap();
    assert_eq!(slots(&mirror, 2), (0b011, 0b100));
    cluster.write(&mirror, 9, 3);
    snapshot(&cluster, &mirror, 3).unwrap();
    cluster.write(&mirror, 9, 4);
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(3);
    for (number, byte) in [(1, 1), (2, 2), (3, 3)] {
        assert_eq!(slots(&mirror, number), (0b111, 0));
        assert_eq!(peek_snapshot(&cluster, 2, &mirror, name(number), 9), byte);
    }
    assert_eq!(peek_snapshot(&cluster, 2, &mirror, name(1), 70), 0);
    assert_eq!(peek_snapshot(&cluster, 2, &mirror, name(2), 70), 2);
    assert_eq!(cluster.read(&mirror, 9), 4);
}

#[test]
fn a_new_replica_gets_all_snapshots() {
    let cluster = on_pools(8, 2);
    let record = cluster.store.inner.get(VOLUME).unwrap();
    let slot = SlotNumber::new(1).unwrap();
    cluster
        .store
        .inner
        .swap(record.next().with_state(slot, ReplicaState::Empty))
        .unwrap();
    cluster.paths[1].cut.set(true);
    let mirror = Rc::new(cluster.open());
    for (number, block) in [(1, 5), (2, 50), (3, 100)] {
        cluster.write(&mirror, block, number as u8);
        snapshot(&cluster, &mirror, number).unwrap();
        assert_eq!(
            slots(&mirror, number),
            (0b01, 0),
            "it is empty: nothing is owed to it yet"
        );
    }
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    for (number, block) in [(1, 5), (2, 50), (3, 100)] {
        assert_eq!(slots(&mirror, number), (0b11, 0));
        assert_eq!(
            peek_snapshot(&cluster, 1, &mirror, name(number), block),
            number as u8
        );
        if number > 1 {
            assert_eq!(peek_snapshot(&cluster, 1, &mirror, name(number - 1), block), 0);
        }
    }
}

#[test]
fn snapshots_of_two_volumes_are_of_one_moment() {
    const OTHER: Uuid = Uuid::from_u128(0x78);
    let cluster = on_pools(9, 4);
    for index in 2..4 {
        cluster.format(index, id(index), OTHER);
        cluster.start_host(index);
    }
    let store = MemoryStore::default();
    let mut record = cluster.store.inner.get(VOLUME).unwrap();
    let replicas = record.replicas;
    record.replicas = [replicas[0], replicas[1], None, None, None];
    store.swap(record.clone()).unwrap();
    record.volume = OTHER;
    record.replicas = [replicas[2], replicas[3], None, None, None];
    store.swap(record).unwrap();
    let (ports, options) = (cluster.ports(), cluster.options.clone());
    let mirrors = cluster.world.block_on(cluster.reactor, async move {
        let store: Rc<dyn MembershipStore> = Rc::new(store);
        let one = Mirror::open(options.clone(), store.clone(), VOLUME, &ports)
            .await
            .unwrap();
        let other = Mirror::open(options, store, OTHER, &ports).await.unwrap();
        (one, other)
    });
    let cuts = cluster.world.block_on(cluster.reactor, async move {
        let (one, other) = mirrors;
        // Every write of the first volume is followed by one of the second, which must not be seen without
        // it.
        let (first, second) = (one.device(), other.device());
        let client = spawn(async move {
            for byte in 1..=200 {
                first.write(9, data(byte), false).await.unwrap();
                second.write(9, data(byte), false).await.unwrap();
            }
        });
        for number in 1..6 {
            sleep(Duration::from_millis(3)).await;
            snapshot_together(&[(&one, name(number)), (&other, name(number))])
                .await
                .unwrap();
        }
        client.await;
        let twice = snapshot_together(&[(&one, name(8)), (&one, name(9))]).await;
        assert_eq!(twice, Err(SnapshotError::Busy));
        [one.membership(), other.membership()].map(|record| (record.epoch, record.snapshots))
    });
    let peek = |index: usize, volume: usize, cut| {
        let (path, epoch) = (cluster.paths[index].clone(), cuts[volume].0);
        cluster.world.block_on(cluster.reactor, async move {
            let device = path.open_snapshot(epoch, cut).await.unwrap();
            device.read(DATA_START + 9, data(0)).await.unwrap()[0]
        })
    };
    assert_eq!((cuts[0].1.len(), cuts[1].1.len()), (5, 5));
    for (one, other) in cuts[0].1.iter().zip(&cuts[1].1) {
        let (first, second) = (peek(0, 0, one.cut), peek(2, 1, other.cut));
        assert_eq!((peek(1, 0, one.cut), peek(3, 1, other.cut)), (first, second));
        assert!(first == second || first == second + 1, "{first} and {second}");
    }
    assert!(peek(0, 0, cuts[0].1[0].cut) < 200, "they were cut while it wrote");
}

/// A block of a snapshot is bad, on the only replica that has it: the other one comes back without the
/// snapshot, as it would never come back otherwise.
#[test]
fn a_snapshot_that_nobody_can_read_keeps_no_replica_away() {
    let cluster = on_pools(21, 2);
    let mirror = Rc::new(cluster.open());
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 0x5a);
    snapshot(&cluster, &mirror, 1).unwrap();
    let mut medium = vec![0; 16 << 20];
    cluster.drives[0].peek(0, &mut medium);
    let is_it = |block: &[u8]| block.iter().all(|byte| *byte == 0x5a);
    let place = medium.chunks(4096).position(is_it).unwrap();
    cluster.drives[0].flip_bit(place as u64 * 4096, 0);
    // What hosts have is good again.
    cluster.write(&mirror, 9, 2);
    assert_eq!(slots(&mirror, 1), (0b01, 0b10));
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    assert_eq!(slots(&mirror, 1), (0b01, 0));
    assert_eq!(cluster.read(&mirror, 9), 2);
}

#[test]
fn a_block_that_nobody_can_read_keeps_only_its_region_from_being_copied() {
    let cluster = Cluster::new(22, 2);
    let mirror = Rc::new(cluster.open());
    cluster.paths[1].cut.set(true);
    for region in 0..4 {
        cluster.write(&mirror, region * REGION + 1, 7);
    }
    // All else in its region is well.
    cluster.drives[0].make_unreadable(DATA_START + REGION + 1, 1);
    cluster.drives[0].make_unreadable(DATA_START + 3 * REGION + 1, 1);
    let unreadable = |mirror: &Mirror| mirror.resync_progress().unreadable;
    assert_eq!(unreadable(&mirror), None, "no resync has told yet");
    let missed = |mirror: &Mirror| mirror.resync_progress().missed_regions;
    assert!(missed(&mirror) >= 4);
    cluster.paths[1].cut.set(false);
    let limit = Duration::from_secs(60);
    let found = |first_block, blocks| Some(Unreadable { first_block, blocks });
    let stuck = || missed(&mirror) == 2 && unreadable(&mirror) == found(REGION + 1, 2);
    cluster.world.run_until(stuck, limit).unwrap();
    assert_eq!(cluster.in_sync(), 1, "nothing was made up");
    // Hosts are told of that block, and of no other.
    run(&cluster, &mirror, async |mirror| {
        let read = mirror.device().read(REGION + 1, data(0)).await;
        assert_eq!(read.unwrap_err(), IoError::MediaRead);
    });
    assert_eq!(cluster.read(&mirror, 2 * REGION + 1), 7);
    cluster.write(&mirror, REGION + 1, 8);
    let less = || missed(&mirror) == 1 && unreadable(&mirror) == found(3 * REGION + 1, 1);
    cluster.world.run_until(less, limit).unwrap();
    cluster.write(&mirror, 3 * REGION + 1, 8);
    let back = || cluster.in_sync() == 2 && unreadable(&mirror) == found(0, 0);
    cluster.world.run_until(back, limit).unwrap();
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn a_volume_goes_back_to_a_snapshot_on_all_replicas() {
    let cluster = on_pools(11, 2);
    let mirror = Rc::new(cluster.open());
    cluster.write(&mirror, 9, 1);
    cluster.write(&mirror, 20, 1);
    snapshot(&cluster, &mirror, 1).unwrap();
    for block in [9, 10, 127] {
        cluster.write(&mirror, block, 2);
    }
    run(&cluster, &mirror, async |mirror| {
        mirror.grow(BLOCKS + REGION).await
    })
    .unwrap();
    cluster.write(&mirror, BLOCKS + 1, 2);
    run(&cluster, &mirror, async |mirror| {
        mirror.roll_back(name(11), name(1)).await
    })
    .unwrap();
    let expected = [(9, 1), (10, 0), (20, 1), (127, 0), (BLOCKS + 1, 0)];
    for (block, byte) in expected {
        assert_eq!(cluster.read(&mirror, block), byte, "block {block}");
    }
    let missing = run(&cluster, &mirror, async |mirror| {
        mirror.roll_back(name(12), name(2)).await
    });
    assert_eq!(missing, Err(SnapshotError::NotFound(name(2))));
}

#[test]
fn a_volume_grows_while_it_is_used_and_so_does_a_replica_that_was_away() {
    let cluster = on_pools(12, 3);
    let mirror = Rc::new(cluster.open());
    let size = BLOCKS * 4;
    cluster.paths[2].cut.set(true);
    cluster.write(&mirror, 9, 1);
    run(&cluster, &mirror, async move |mirror| {
        let device = mirror.device();
        let busy = device.clone();
        let writer = spawn(async move {
            for block in 0..100 {
                busy.write(block, data(3), false).await.unwrap();
            }
        });
        assert_eq!(
            device.read(BLOCKS, data(0)).await.err(),
            Some(IoError::OutOfRange)
        );
        mirror.grow(size).await.unwrap();
        mirror.grow(size).await.unwrap();
        let smaller = mirror.grow(BLOCKS).await;
        assert_eq!(
            smaller,
            Err(GrowError::Size {
                from: size,
                to: BLOCKS
            })
        );
        assert_eq!(device.geometry().blocks, size);
        assert_eq!(device.read(size - 1, data(1)).await.unwrap()[0], 0);
        device.write(size - 1, data(7), false).await.unwrap();
        writer.await;
    });
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(3);
    drop(mirror);
    // The third one alone.
    cluster.paths[0].cut.set(true);
    cluster.paths[1].cut.set(true);
    let mirror = Rc::new(cluster.open());
    assert_eq!(
        (cluster.read(&mirror, size - 1), cluster.read(&mirror, 50)),
        (7, 3)
    );
    assert_eq!(mirror.membership().size_blocks, size);
}

#[test]
fn a_volume_whose_replica_cannot_grow_stays_what_it_is() {
    let cluster = Cluster::new(13, 2);
    let mirror = Rc::new(cluster.open());
    let error = run(&cluster, &mirror, async |mirror| mirror.grow(BLOCKS * 4).await).unwrap_err();
    assert!(
        matches!(error, GrowError::Replica(SnapshotError::Replica { .. })),
        "{error}"
    );
    assert_eq!((mirror.membership().size_blocks, cluster.in_sync()), (BLOCKS, 2));
    cluster.write(&mirror, 9, 1);
}

/// Who removes a volume removes its replicas next, which must not be in use any more.
#[test]
fn a_volume_that_was_closed_lets_go_of_its_replicas_at_once() {
    let cluster = Cluster::new(15, 2);
    let users = || -> Vec<usize> {
        let paths = cluster.paths.iter();
        paths.map(|path| std::rc::Rc::strong_count(&path.cut)).collect()
    };
    let before = users();
    let mirror = cluster.open();
    cluster.write(&mirror, 1, 7);
    cluster.world.block_on(cluster.reactor, async move {
        mirror.wind_down().await.unwrap();
        drop(mirror);
    });
    // Whatever was under way ends; no time that matters goes by.
    cluster.world.run_for(Duration::from_millis(1));
    assert_eq!(users(), before);
}

#[test]
fn a_volume_that_was_closed_opens_with_nothing_to_compare() {
    let cluster = Cluster::new(14, 2);
    let mirror = cluster.open();
    for block in [1, 50, 100] {
        cluster.write(&mirror, block, 7);
    }
    let device = mirror.device();
    cluster.world.block_on(cluster.reactor, async move {
        mirror.wind_down().await.unwrap();
        assert_eq!(device.write(1, data(0), false).await, Err(IoError::Gone));
    });
    let reads = cluster.drives[1].counters().reads;
    let mirror = cluster.open();
    // Label, promise, record and map; both slots of each.
    assert!(
        cluster.drives[1].counters().reads - reads < 16,
        "nothing is compared"
    );
    assert_eq!(cluster.read(&mirror, 50), 7);
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn replicas_come_and_go_while_the_volume_is_served() {
    let cluster = Cluster::new(15, 3);
    let (slot, third) = (SlotNumber::new(2).unwrap(), id(2));
    let record = cluster.store.inner.get(VOLUME).unwrap();
    cluster
        .store
        .inner
        .swap(record.next().with_state(slot, ReplicaState::Behind))
        .unwrap();
    let record = cluster.store.inner.get(VOLUME).unwrap();
    cluster
        .store
        .inner
        .swap(record.next().without_replica(slot))
        .unwrap();
    let mirror = Rc::new(cluster.open());
    cluster.write(&mirror, 9, 1);
    let edit = |change: &dyn Fn(&mut pollux_volume::membership::Membership)| {
        let mut next = cluster.store.inner.get(VOLUME).unwrap().next();
        change(&mut next);
        cluster.store.inner.swap(next).unwrap();
        let ports = cluster.ports();
        run(&cluster, &mirror, async move |mirror| {
            mirror.follow(&ports, &[]).await
        });
        cluster.world.run_for(Duration::from_secs(1));
    };
    let empty = |id| {
        Some(pollux_volume::membership::ReplicaEntry {
            id,
            state: ReplicaState::Empty,
        })
    };
    // One that nobody reaches comes, and goes; another one has its slot at once.
    edit(&|next| next.replicas[2] = empty(Uuid::from_u128(99)));
    assert_eq!(mirror.membership().members().len(), 3);
    cluster.write(&mirror, 9, 2);
    edit(&|next| next.replicas[2] = None);
    assert_eq!(mirror.membership().members().len(), 2);
    edit(&|next| next.replicas[2] = empty(third));
    cluster.wait_in_sync(3);
    cluster.assert_identical(&[0, 1, 2]);
    cluster.write(&mirror, 9, 3);
    cluster.assert_identical(&[0, 1, 2]);
    // It is taken out by the store's word: the target must not rely on it, nor stop.
    cluster.paths[2].cut.set(true);
    cluster.write(&mirror, 9, 4);
    edit(&|next| next.replicas[2] = None);
    cluster.write(&mirror, 9, 5);
    assert_eq!((mirror.membership().members().len(), mirror.stopped()), (2, None));
}
