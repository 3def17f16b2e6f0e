//! The mirror against simulated drives: what is acknowledged when, and what becomes of replicas that fail.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::{BLOCK, BLOCKS, Cluster, DATA_START, REGION, VOLUME, blocks, data, id};
use pollux_device::{BlockDeviceExt, IoError};
use pollux_sim::{Fault, Operation, PowerLoss};
use pollux_volume::membership::{ReplicaEntry, ReplicaState};
use pollux_volume::mirror::{OpenError, StopReason};
use uuid::Uuid;

#[test]
fn a_write_is_on_every_replica_and_survives_the_power() {
    let cluster = Cluster::new(1, 3);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        // Across a border of regions.
        device.write(REGION - 1, blocks(7, 3), false).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(device.read(REGION, data(0)).await.unwrap()[0], 7);
        assert_eq!(device.read(50, data(1)).await.unwrap()[0], 0, "never written");
    });
    for (index, drive) in cluster.drives.iter().enumerate() {
        drive.power_loss(PowerLoss::LoseAll);
        for block in REGION - 1..REGION + 2 {
            assert_eq!(cluster.peek(index, block), [7; BLOCK]);
        }
    }
}

#[test]
fn a_replica_that_fails_leaves_the_set_before_the_write_is_acknowledged_and_comes_back() {
    let cluster = Cluster::new(2, 3);
    let mirror = cluster.open();
    cluster.paths[2].cut.set(true);
    cluster.write(&mirror, 9, 7);
    assert_eq!(cluster.in_sync(), 2);
    assert_eq!(cluster.peek(2, 9), [0; BLOCK]);
    cluster.write(&mirror, 60, 8);
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(3);
    assert_eq!(cluster.peek(2, 9), [7; BLOCK]);
    cluster.assert_identical(&[0, 1, 2]);
    let progress = mirror.resync_progress();
    assert_eq!(progress.missed_regions, 0);
    assert_eq!(
        progress.copied_bytes,
        2 * REGION * BLOCK as u64,
        "only what it missed is copied"
    );
}

#[test]
fn with_the_store_away_a_write_that_misses_a_replica_waits_and_others_go_on() {
    let cluster = Cluster::new(3, 2);
    let mirror = cluster.open();
    cluster.store.away.set(true);
    cluster.write(&mirror, 0, 1);
    cluster.world.run_for(Duration::from_secs(60));
    cluster.with(&mirror, async |device| {
        assert_eq!(device.read(0, data(0)).await.unwrap()[0], 1)
    });
    cluster.paths[1].cut.set(true);
    let device = mirror.device();
    let write = cluster.world.spawn(
        cluster.reactor,
        async move { device.write(9, data(7), false).await },
    );
    cluster.world.run_for(Duration::from_secs(60));
    assert!(!write.is_ended(), "acknowledged without the store");
    cluster.store.away.set(false);
    assert_eq!(cluster.world.finish(&write), Ok(()));
    assert_eq!(cluster.in_sync(), 1);
}

#[test]
fn a_swap_whose_answer_is_lost_is_found_out() {
    let cluster = Cluster::new(4, 2);
    let mirror = cluster.open();
    cluster.store.deaf.set(true);
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    assert_eq!(cluster.in_sync(), 1);
    cluster.store.deaf.set(true);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    cluster.write(&mirror, 9, 8);
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn an_old_target_is_fenced_reads_too() {
    let cluster = Cluster::new(5, 2);
    let old = cluster.open();
    cluster.write(&old, 0, 1);
    let new = cluster.open();
    cluster.write(&new, 0, 2);
    cluster.with(&old, async |device| {
        assert_eq!(device.read(0, data(0)).await.map(drop), Err(IoError::Fenced));
        assert_eq!(device.write(0, data(3), false).await, Err(IoError::Fenced));
        assert_eq!(device.flush().await, Err(IoError::Fenced));
    });
    assert_eq!(old.stopped(), Some(StopReason::Superseded));
    cluster.with(&new, async |device| {
        assert_eq!(device.read(0, data(0)).await.unwrap()[0], 2)
    });
}

#[test]
fn an_old_target_with_a_replica_of_its_own_reads_nothing_stale() {
    let cluster = Cluster::new(6, 2);
    let old = cluster.open();
    cluster.write(&old, 0, 1);
    // The new target does not reach replica 0, which is local to the old one.
    cluster.paths[0].cut.set(true);
    let new = cluster.open();
    cluster.paths[0].cut.set(false);
    cluster.write(&new, 0, 2);
    let stale = cluster.with(&old, async |device| {
        device.read(0, data(0)).await.map(|data| data[0])
    });
    assert_eq!(stale, Err(IoError::Fenced));
}

/// How long a target takes to open the volume, without a replica that was had by another one, which the
/// others have not heard of for some time.
fn takeover_after(silence: Duration) -> Duration {
    let cluster = Cluster::new(61, 2);
    let old = cluster.open();
    cluster.with(&old, async |device| {
        device.write(0, data(1), false).await.unwrap();
        device.read(0, data(0)).await.map(drop).unwrap()
    });
    cluster.paths[0].cut.set(true);
    cluster.world.run_for(silence);
    let began = cluster.world.now();
    let new = cluster.open();
    let took = cluster.world.now().saturating_since(began);
    cluster.paths[0].cut.set(false);
    cluster.write(&new, 0, 2);
    let stale = cluster.with(&old, async |device| {
        device.read(0, data(0)).await.map(|data| data[0])
    });
    assert_eq!(stale, Err(IoError::Fenced));
    took
}

#[test]
fn a_lease_is_waited_for_only_as_far_as_it_can_still_last() {
    let lease = common::times().lease;
    // As long as clocks may make it, and hardly longer.
    let whole = takeover_after(Duration::ZERO);
    assert!(whole > lease * 17 / 15 && whole < lease * 5 / 4, "{whole:?}");
    // Intents are retired after a while, which replicas hear of.
    let half = takeover_after(lease / 8);
    assert!(half < whole && half > lease / 2, "{half:?}");
    let none = takeover_after(Duration::from_secs(60));
    assert!(none < lease / 8, "{none:?}");
}

/// One takes over without a replica of the old one, and is taken over from while it waits for that one's
/// lease: the next one, of which all is there that is in the set then, has to wait as well.
#[test]
fn a_lease_is_waited_for_also_after_a_takeover_that_did_not_end() {
    let cluster = Cluster::new(62, 2);
    let old = cluster.open();
    cluster.with(&old, async |device| {
        device.write(0, data(1), false).await.unwrap();
        device.read(0, data(0)).await.map(drop).unwrap()
    });
    cluster.paths[0].cut.set(true);
    // Before the old one has anything to do that tells it.
    let given_up = cluster.try_open_within(Duration::from_millis(20));
    assert!(given_up.is_none());
    let new = cluster.open();
    cluster.write(&new, 0, 2);
    // The old one has its replica again before the new one has.
    cluster.paths[0].cut.set(false);
    let stale = cluster.with(&old, async |device| {
        device.read(0, data(0)).await.map(|data| data[0])
    });
    assert_eq!(stale, Err(IoError::Fenced));
}

#[test]
fn a_bad_block_is_read_elsewhere_and_repaired() {
    let cluster = Cluster::new(7, 2);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        device.write(3, data(7), true).await.unwrap()
    });
    for error in [IoError::MediaRead, IoError::ChecksumMismatch] {
        cluster.drives[0].fail_nth(Operation::Read, 1, Fault::Error(error));
        cluster.with(&mirror, async |device| {
            assert_eq!(device.read(3, data(0)).await.unwrap()[0], 7);
        });
    }
    cluster.drives[0].make_unreadable(DATA_START + 3, 1);
    cluster.with(&mirror, async |device| {
        assert_eq!(device.read(3, data(0)).await.unwrap()[0], 7)
    });
    assert_eq!((mirror.counters().repairs, cluster.in_sync()), (3, 2));
    let reads = cluster.drives[1].counters().reads;
    cluster.with(&mirror, async |device| {
        assert_eq!(device.read(3, data(0)).await.unwrap()[0], 7)
    });
    assert_eq!(
        cluster.drives[1].counters().reads,
        reads,
        "the local one is well again"
    );
}

#[test]
fn with_no_good_copy_a_read_is_an_error() {
    let cluster = Cluster::new(8, 2);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        device.write(3, data(7), true).await.unwrap()
    });
    for drive in &cluster.drives {
        drive.make_unreadable(DATA_START + 3, 1);
    }
    let read = cluster.with(&mirror, async |device| device.read(3, data(0)).await.map(drop));
    assert_eq!(read, Err(IoError::MediaRead));
    assert_eq!(cluster.in_sync(), 2);
}

#[test]
fn short_of_resources_is_no_fault() {
    let cluster = Cluster::new(9, 2);
    let mirror = cluster.open();
    for drive in &cluster.drives {
        drive.change_faults(|faults| faults.shortage_probability = 0.7);
    }
    cluster.with(&mirror, async |device| {
        for block in 0..BLOCKS {
            device.write(block, data(block as u8), false).await.unwrap();
            assert_eq!(device.read(block, data(0)).await.unwrap()[0], block as u8);
        }
        device.flush().await.unwrap();
    });
    assert_eq!((mirror.counters().failures, cluster.in_sync()), (0, 2));
}

#[test]
fn no_space_on_one_replica_is_an_error_and_leaves_them_the_same() {
    let cluster = Cluster::new(10, 3);
    let mirror = cluster.open();
    cluster.write(&mirror, 3, 1);
    for drive in [1, 2] {
        cluster.drives[drive].fail_nth(Operation::Write, 1, Fault::Error(IoError::CapacityExceeded));
        let full = cluster.with(&mirror, async |device| device.write(3, data(2), false).await);
        assert_eq!(full, Err(IoError::CapacityExceeded));
        cluster.assert_identical(&[0, 1, 2]);
    }
    assert_eq!(cluster.in_sync(), 3);
}

/// The one without room goes while the others are given back what it has: the write is done again, by those
/// too that had done it before.
#[test]
fn a_replica_without_room_that_goes_takes_no_acknowledged_write_with_it() {
    for last in [1, 2] {
        let cluster = Cluster::new(30 + last as u64, 3);
        let mirror = cluster.open();
        cluster.with(&mirror, async |device| {
            device.write(3, data(1), false).await.unwrap();
        });
        cluster.drives[0].fail_nth(Operation::Write, 1, Fault::Error(IoError::CapacityExceeded));
        let late = Fault::Delay(Duration::from_millis(500));
        cluster.drives[last].fail_nth(Operation::Write, 2, late);
        let device = mirror.device();
        let result = Rc::new(Cell::new(None));
        let told = result.clone();
        let written = cluster.world.spawn(cluster.reactor, async move {
            told.set(Some(device.write(3, data(2), false).await));
        });
        cluster.world.run_for(Duration::from_millis(100));
        assert!(
            !written.is_ended(),
            "what the first one has is being put on the others"
        );
        cluster.paths[0].cut.set(true);
        cluster.with(&mirror, async |device| {
            device.write(3 + REGION, data(7), false).await.unwrap();
        });
        let limit = Duration::from_secs(10);
        cluster.world.run_until(|| written.is_ended(), limit).unwrap();
        assert_eq!(result.get(), Some(Ok(())));
        let found = cluster.with(&mirror, async |device| device.read(3, data(0)).await.unwrap()[0]);
        assert_eq!(found, 2);
        cluster.assert_identical(&[1, 2]);
    }
}

#[test]
fn a_write_without_room_does_not_come_back_after_a_power_cut() {
    let cluster = Cluster::new(33, 2);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        device.write(3, data(1), true).await.unwrap();
    });
    cluster.paths[0].no_room.set(true);
    let late = Fault::Delay(Duration::from_millis(200));
    cluster.drives[0].fail_nth(Operation::Read, 1, late);
    let device = mirror.device();
    let written = cluster.world.spawn(cluster.reactor, async move {
        assert_eq!(
            device.write(3, data(2), false).await,
            Err(IoError::CapacityExceeded)
        );
    });
    cluster.world.run_for(Duration::from_millis(100));
    // Another host flushes, and what the second one has done is on its medium.
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    assert!(!written.is_ended() && cluster.peek(1, 3)[0] == 2);
    cluster.world.finish(&written);
    drop(mirror);
    for (index, drive) in cluster.drives.iter().enumerate() {
        drive.power_loss(PowerLoss::LoseAll);
        cluster.start_host(index);
    }
    // The one that told of it is gone.
    cluster.paths[0].cut.set(true);
    let mirror = cluster.open();
    let found = cluster.with(&mirror, async |device| device.read(3, data(0)).await.unwrap()[0]);
    assert_eq!(found, 1);
}

#[test]
fn what_is_in_doubt_on_the_last_replica_stays_as_it_is_there_without_room() {
    let cluster = Cluster::new(34, 2);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        device.write(9, data(1), true).await.unwrap();
    });
    // The last write of the old target gets to one replica, and nobody is told of it.
    cluster.store.away.set(true);
    cluster.paths[1].cut.set(true);
    let device = mirror.device();
    let last = async move { device.write(9, data(2), false).await };
    let last = cluster.world.spawn(cluster.reactor, last);
    cluster.world.run_for(Duration::from_millis(100));
    assert!(!last.is_ended());
    drop(mirror);
    cluster.store.away.set(false);
    cluster.paths[1].cut.set(false);
    // The one that it is copied from goes while the other one is looked at, which has no room then.
    cluster.paths[1].reads_hang.set(true);
    let mirror = cluster.open();
    cluster.paths[0].cut.set(true);
    cluster.with(&mirror, async |device| {
        device.write(40, data(7), false).await.unwrap();
    });
    cluster.paths[1].no_room.set(true);
    cluster.paths[1].reads_hang.set(false);
    let found = cluster.with(&mirror, async |device| {
        let reading = pollux_reactor::timeout(Duration::from_secs(2), device.read(9, data(0)));
        reading.await.expect("it is in doubt no more").unwrap()[0]
    });
    assert_eq!(found, 1);
    cluster.paths[1].no_room.set(false);
    cluster.paths[0].cut.set(false);
    cluster.wait_in_sync(2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn a_failed_flush_takes_the_replica_out_and_what_it_lost_is_copied_again() {
    let cluster = Cluster::new(11, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 3, 7);
    cluster.drives[1].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.wait_in_sync(2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.drives[1].power_loss(PowerLoss::LoseAll);
    assert_eq!(cluster.peek(1, 3), [7; BLOCK]);
}

#[test]
fn a_failed_flush_of_the_last_replica_is_not_tried_again_as_if_it_had_worked() {
    let cluster = Cluster::new(12, 1);
    let mirror = cluster.open();
    cluster.write(&mirror, 3, 7);
    cluster.drives[0].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    cluster.with(&mirror, async |device| {
        assert_eq!(device.flush().await, Err(IoError::MediaWrite));
        assert_eq!(device.flush().await, Err(IoError::Gone));
    });
    assert_eq!(mirror.stopped(), Some(StopReason::CacheLost));
    drop(mirror);
    let again = cluster.open();
    cluster.with(&again, async |device| device.flush().await.unwrap());
}

#[test]
fn the_last_replica_is_waited_for_unless_it_lost_its_cache() {
    let cluster = Cluster::new(13, 1);
    let mirror = cluster.open();
    cluster.paths[0].cut.set(true);
    let device = mirror.device();
    let write = cluster.world.spawn(
        cluster.reactor,
        async move { device.write(9, data(7), false).await },
    );
    cluster.world.run_for(Duration::from_secs(60));
    assert!(!write.is_ended());
    cluster.paths[0].cut.set(false);
    assert_eq!(cluster.world.finish(&write), Ok(()));
    cluster.drives[0].power_loss(PowerLoss::LoseAll);
    cluster.start_host(0);
    let lost = cluster.with(&mirror, async |device| device.read(9, data(0)).await.map(drop));
    assert_eq!(lost, Err(IoError::Gone));
    assert_eq!(mirror.stopped(), Some(StopReason::CacheLost));
}

#[test]
fn a_stale_replica_alone_does_not_open() {
    let cluster = Cluster::new(14, 2);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    drop(mirror);
    cluster.paths[0].cut.set(true);
    cluster.paths[1].cut.set(false);
    assert!(matches!(cluster.try_open(), Err(OpenError::NoReplica)));
}

#[test]
fn a_device_of_another_volume_at_the_address_is_left_untouched() {
    let cluster = Cluster::new(15, 2);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    cluster.format(1, id(1), Uuid::from_u128(0x99));
    cluster.drives[1].poke((DATA_START + 5) * BLOCK as u64, &[3; BLOCK]);
    cluster.start_host(1);
    cluster.paths[1].cut.set(false);
    cluster.world.run_for(Duration::from_secs(30));
    assert_eq!(cluster.in_sync(), 1);
    assert_eq!(
        (cluster.peek(1, 5), cluster.peek(1, 9)),
        (vec![3; BLOCK], vec![0; BLOCK])
    );
}

#[test]
fn a_new_replica_on_a_used_drive_is_copied_in_full() {
    let cluster = Cluster::new(16, 3);
    let mut record = cluster.store.inner.get(VOLUME).unwrap().next();
    record = record.with_state(
        pollux_volume::membership::SlotNumber::new(2).unwrap(),
        ReplicaState::Empty,
    );
    cluster.store.inner.swap(record).unwrap();
    for block in 0..BLOCKS {
        cluster.drives[2].poke((DATA_START + block) * BLOCK as u64, &[0xee; BLOCK]);
    }
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 7);
    cluster.wait_in_sync(3);
    cluster.assert_identical(&[0, 1, 2]);
    assert_eq!(cluster.peek(2, 100), [0; BLOCK]);
}

#[test]
fn a_replica_that_is_added_while_the_volume_is_served_is_brought_in() {
    let cluster = Cluster::new(17, 3);
    let slot = pollux_volume::membership::SlotNumber::new(2).unwrap();
    let record = cluster.store.inner.get(VOLUME).unwrap().next();
    cluster
        .store
        .inner
        .swap(record.with_state(slot, ReplicaState::Empty))
        .unwrap();
    let mut record = cluster.store.inner.get(VOLUME).unwrap().next();
    record.replicas[2] = None;
    cluster.store.inner.swap(record).unwrap();
    let mirror = cluster.open();
    let mut record = cluster.store.inner.get(VOLUME).unwrap().next();
    record.replicas[2] = Some(ReplicaEntry {
        id: id(2),
        state: ReplicaState::Empty,
    });
    cluster.store.inner.swap(record).unwrap();
    // The target hears of it when it changes the set itself, or is opened anew.
    drop(mirror);
    let mirror = cluster.open();
    cluster.wait_in_sync(3);
    cluster.write(&mirror, 9, 7);
    cluster.assert_identical(&[0, 1, 2]);
}

#[test]
fn writes_wait_for_enough_replicas() {
    let cluster = Cluster::new(18, 2);
    let mut record = cluster.store.inner.get(VOLUME).unwrap().next();
    record.min_in_sync = 2;
    cluster.store.inner.swap(record).unwrap();
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    let device = mirror.device();
    let write = cluster.world.spawn(
        cluster.reactor,
        async move { device.write(9, data(7), false).await },
    );
    cluster.world.run_for(Duration::from_secs(60));
    assert!(!write.is_ended());
    cluster.with(&mirror, async |device| {
        device.read(50, data(0)).await.map(drop).unwrap()
    });
    cluster.paths[1].cut.set(false);
    assert_eq!(cluster.world.finish(&write), Ok(()));
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn an_idle_volume_ends_its_intents_and_a_busy_region_costs_one_write() {
    let cluster = Cluster::new(19, 2);
    let mirror = cluster.open();
    let before = mirror.counters().map_writes;
    cluster.with(&mirror, async |device| {
        for _ in 0..50 {
            device.write(9, data(7), false).await.unwrap();
        }
    });
    assert_eq!(mirror.counters().map_writes - before, 2);
    cluster.world.run_for(Duration::from_secs(5));
    assert_eq!(mirror.counters().map_writes - before, 4);
    cluster.world.run_for(Duration::from_secs(60));
    assert_eq!(mirror.counters().map_writes - before, 4);
}

#[test]
fn a_target_that_takes_over_writes_the_region_map_only_where_it_may_be_lost() {
    let cluster = Cluster::new(20, 3);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        device.write(9, data(7), false).await.unwrap();
    });
    cluster.world.run_for(Duration::from_secs(5));
    drop(mirror);
    let mirror = cluster.open();
    assert_eq!(mirror.counters().map_writes, 0);
    // The drive of a host that was started anew may show what it will never flush.
    drop(mirror);
    cluster.start_host(1);
    let mirror = cluster.open();
    assert_eq!(mirror.counters().map_writes, 3);
}
