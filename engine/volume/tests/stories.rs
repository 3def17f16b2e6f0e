//! Known ways in which replicated storage lost data, each played once:
//!
//! | how data was lost | story |
//! | --- | --- |
//! | a clean shutdown wipes the survivor's map of what was missed | `a_clean_shutdown_...` |
//! | two of three away for hours, then back | `two_of_three_...` |
//! | the old target writes on after failover | `an_old_target_...`, `a_late_request_...` |
//! | a write across regions, under resync, missed in part, or done in part | `what_is_written_across_...` |
//! | a replica goes in the middle of a rebuild | `a_replica_that_goes_...`, `a_source_...` |
//! | the last one is lost just as another one joins | `the_last_one_that_is_lost_...` |
//! | a write fails where it counts, and not where it is copied to | `a_write_that_fails_...` |
//! | a write counts where it was taken back | `a_replica_without_room_...` in `mirror.rs` |
//! | a rebuild reaches another volume at a reused address | `a_rebuild_that_reaches_...` |
//! | a replica is faulted because memory was short | `a_replica_is_not_faulted_...` |
//! | a failed fsync is tried again as if it had worked | `what_a_drive_forgot_...`, `a_flush_that_...` |
//! | what is read after a takeover is another value later | `what_is_read_after_...`, `what_hosts_lost_...` |
//! | what a takeover undid is back after a power cut | `what_was_undone_...` |
//! | a host outlives all caches, and hears nothing of it | `suite/losses.rs` |
//! | a tie-breaker lets a stale drive back | `no_tie_breaker_lets_a_stale_drive_back` |
//!
//! What each of them comes down to for one request is in `mirror.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::{BLOCKS, Cluster, REGION, VOLUME, blocks, data};
use pollux_device::{BlockDevice, BlockDeviceExt, Device, IoError, Request, ZeroOptions};
use pollux_sim::{Fault, Faults, Operation, PowerLoss};
use pollux_volume::membership::{Epoch, MembershipStore, ReplicaState, SlotNumber};
use pollux_volume::mirror::{Mirror, OpenError, SnapshotError, StopReason, WindDownError};
use uuid::Uuid;

#[test]
fn a_clean_shutdown_does_not_forget_what_an_absent_replica_missed() {
    let cluster = Cluster::new(1, 2);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    // All intents are retired; only the missed bit is left.
    cluster.world.run_for(Duration::from_secs(60));
    drop(mirror);
    cluster.power_cycle();
    let mirror = cluster.open();
    drop(mirror);
    cluster.power_cycle();
    cluster.paths[1].cut.set(false);
    let mirror = cluster.open();
    cluster.wait_in_sync(2);
    assert_eq!(cluster.read(&mirror, 9), 7);
    cluster.assert_identical(&[0, 1]);
    assert_eq!(
        mirror.resync_progress().copied_bytes,
        REGION * 4096,
        "and nothing else was copied"
    );
}

/// A drive is lost, and whoever keeps things as they are to be makes an empty replica of the old name.
fn make_anew(cluster: &Cluster, index: usize) {
    make_another(cluster, index, common::id(index), VOLUME);
}

/// A drive is emptied, and is a replica of some volume then.
fn make_another(cluster: &Cluster, index: usize, replica: Uuid, volume: Uuid) {
    let drive = cluster.drives[index].clone();
    drive.power_loss(PowerLoss::LoseAll);
    cluster.world.block_on(cluster.reactor, async move {
        let queue = drive.attach().await.unwrap();
        let blocks = queue.geometry().blocks;
        let options = ZeroOptions {
            force_unit_access: true,
            may_deallocate: true,
        };
        queue.write_zeroes(0, blocks, options).await.unwrap();
    });
    cluster.format(index, replica, volume);
    cluster.start_host(index);
}

#[test]
fn a_replica_that_was_made_anew_while_it_was_behind_gets_everything() {
    let cluster = Cluster::new(21, 3);
    let mirror = cluster.open();
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, block as u8 | 1);
    }
    // All intents are retired: the maps tell of nothing but what is missed from now on.
    cluster.world.run_for(Duration::from_secs(60));
    cluster.paths[2].cut.set(true);
    cluster.write(&mirror, 5, 99);
    cluster.wait_in_sync(2);
    make_anew(&cluster, 2);
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(3);
    cluster.assert_identical(&[0, 1, 2]);
    assert_eq!(cluster.read(&mirror, 5), 99);
    let copied = mirror.resync_progress().copied_bytes;
    assert!(copied >= BLOCKS * 4096, "{copied}");
}

#[test]
fn a_replica_that_was_made_anew_is_not_in_sync_whatever_the_record_says() {
    let cluster = Cluster::new(22, 3);
    let mirror = cluster.open();
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, block as u8 | 1);
    }
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.world.run_for(Duration::from_secs(60));
    drop(mirror);
    // The local one, which would be read first.
    make_anew(&cluster, 0);
    let mirror = cluster.open();
    for block in 0..BLOCKS {
        assert_eq!(cluster.read(&mirror, block), block as u8 | 1);
    }
    cluster.wait_in_sync(3);
    cluster.assert_identical(&[0, 1, 2]);
    drop(mirror);
    // Alone it serves nothing, and once another one is back it is brought up to date.
    make_anew(&cluster, 0);
    cluster.paths[1].cut.set(true);
    cluster.paths[2].cut.set(true);
    assert!(matches!(cluster.try_open(), Err(OpenError::Blank)));
    cluster.paths[2].cut.set(false);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(3);
    assert_eq!(cluster.read(&mirror, 7), 7);
    cluster.assert_identical(&[0, 1, 2]);
}

#[test]
fn two_of_three_are_away_for_hours_one_after_the_other_and_come_back() {
    let cluster = Cluster::new(2, 3);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 1, 1);
    cluster.world.run_for(Duration::from_secs(3600));
    cluster.paths[2].cut.set(true);
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, block as u8);
    }
    cluster.world.run_for(Duration::from_secs(3600));
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(2);
    cluster.write(&mirror, 5, 99);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(3);
    cluster.assert_identical(&[0, 1, 2]);
    assert_eq!(cluster.peek(1, 5)[0], 99);
}

#[test]
fn what_is_written_across_regions_under_resync_and_flushed_is_on_the_replica_that_joins() {
    for seed in 0..8 {
        let mut cluster = Cluster::new(seed, 2);
        // A region takes 0.3 s.
        cluster.options.resync_bytes_per_second = Some(100_000);
        let mirror = cluster.open();
        cluster.paths[1].cut.set(true);
        for region in 0..6 {
            cluster.write(&mirror, region * REGION, 1);
        }
        cluster.paths[1].cut.set(false);
        let span = Duration::from_millis(200 * seed);
        cluster.world.run_for(span);
        for border in 1..6 {
            cluster.with(&mirror, async move |device| {
                device
                    .write(border * REGION - 1, blocks(50 + border as u8, 2), false)
                    .await
                    .unwrap();
                device.flush().await.unwrap();
                device.write(border * REGION + 3, data(90), true).await.unwrap();
            });
        }
        cluster.wait_in_sync(2);
        cluster.with(&mirror, async |device| device.flush().await.unwrap());
        drop(mirror);
        // The first one is gone for good, and the second loses its power.
        cluster.power_cycle_one(1);
        cluster.paths[0].cut.set(true);
        let mirror = cluster.open();
        for border in 1..6 {
            assert_eq!(cluster.read(&mirror, border * REGION - 1), 50 + border as u8);
            assert_eq!(cluster.read(&mirror, border * REGION), 50 + border as u8);
            assert_eq!(cluster.read(&mirror, border * REGION + 3), 90);
        }
    }
}

/// Of a write that goes on into a region in which nothing else is written, both parts count as missed by a
/// replica that is away.
#[test]
fn what_is_written_across_regions_while_a_replica_is_away_is_brought_to_it() {
    let cluster = Cluster::new(52, 2);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    cluster.with(&mirror, async |device| {
        let border = 4 * REGION;
        device.write(border - 1, blocks(7, 2), false).await.unwrap();
        device.flush().await.unwrap();
    });
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    cluster.assert_identical(&[0, 1]);
    drop(mirror);
}

/// Such a write is done by one replica and hangs at the other one, in its first part or in the second, when
/// its target ends: both parts are in doubt.
#[test]
fn what_is_written_across_regions_on_one_replica_only_is_the_same_after_a_takeover() {
    for (delayed, number) in [(0, 1), (0, 3), (1, 1), (1, 2), (1, 3)] {
        let cluster = Cluster::new(53, 2);
        let mirror = cluster.open();
        // The first region has its intent, so that writes are data, an intent and data.
        cluster.write(&mirror, 4 * REGION - 2, 1);
        let span = Duration::from_secs(1);
        cluster.drives[delayed].fail_nth(Operation::Write, number, Fault::Delay(span));
        let device = mirror.device();
        let hanging = cluster.world.spawn(cluster.reactor, async move {
            device.write(4 * REGION - 1, blocks(7, 2), false).await
        });
        cluster.world.run_for(Duration::from_millis(100));
        assert!(!hanging.is_ended());
        drop(mirror);
        cluster.power_cycle_one(delayed);
        let mirror = cluster.open();
        cluster.world.run_for(Duration::from_secs(5));
        cluster.assert_identical(&[0, 1]);
        drop(mirror);
    }
}

#[test]
fn a_replica_that_goes_in_the_middle_of_a_rebuild_and_loses_its_cache_misses_what_was_not_flushed() {
    for moment in 0..12 {
        let mut cluster = Cluster::new(moment, 2);
        cluster.options.resync_bytes_per_second = Some(200_000);
        let mirror = cluster.open();
        cluster.paths[1].cut.set(true);
        for region in 0..BLOCKS / REGION {
            cluster.write(&mirror, region * REGION + 1, 7);
        }
        cluster.paths[1].cut.set(false);
        cluster.world.run_for(Duration::from_millis(250 * moment));
        cluster.write(&mirror, 2, 8);
        cluster.power_cycle_one(1);
        cluster.write(&mirror, 3, 9);
        // Also the target goes, and another one takes up what is left.
        drop(mirror);
        let mirror = cluster.open();
        cluster.wait_in_sync(2);
        cluster.with(&mirror, async |device| device.flush().await.unwrap());
        cluster.assert_identical(&[0, 1]);
    }
}

#[test]
fn a_source_that_goes_in_the_middle_of_a_rebuild_does_not_leave_a_half_copied_replica_in_its_place() {
    let mut cluster = Cluster::new(5, 2);
    let slot = SlotNumber::new(1).unwrap();
    let record = cluster.store.inner.get(VOLUME).unwrap().next();
    cluster
        .store
        .inner
        .swap(record.with_state(slot, ReplicaState::Empty))
        .unwrap();
    cluster.options.resync_bytes_per_second = Some(50_000);
    let mirror = cluster.open();
    cluster.write(&mirror, 100, 7);
    cluster.world.run_for(Duration::from_secs(2));
    assert!(mirror.resync_progress().copied_bytes > 0);
    drop(mirror);
    cluster.paths[0].cut.set(true);
    assert!(cluster.try_open().is_err(), "the half-copied one alone");
    cluster.paths[0].cut.set(false);
    let mirror = cluster.open();
    cluster.wait_in_sync(2);
    cluster.assert_identical(&[0, 1]);
    assert_eq!(cluster.read(&mirror, 100), 7);
}

#[test]
fn the_last_one_that_is_lost_while_another_joins_misses_what_is_being_written() {
    let cluster = Cluster::new(17, 2);
    let mirror = cluster.open();
    cluster.paths[0].cut.set(true);
    cluster.write(&mirror, 40, 1);
    // The other one has everything, and is to join as soon as the store answers.
    cluster.store.away.set(true);
    cluster.paths[0].cut.set(false);
    cluster.world.run_for(Duration::from_secs(2));
    assert_eq!(cluster.in_sync(), 1);
    cluster.write(&mirror, 9, 2);
    cluster.paths[1].cut.set(true);
    let device = mirror.device();
    let written = cluster.world.spawn(cluster.reactor, async move {
        device.write(9, data(3), false).await.unwrap();
    });
    cluster.world.run_for(Duration::from_millis(100));
    cluster.store.away.set(false);
    let limit = Duration::from_secs(10);
    cluster.world.run_until(|| written.is_ended(), limit).unwrap();
    // Nothing tells of the write any more but that the one that is away missed it.
    cluster.world.run_for(cluster.options.retire_interval * 4);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.assert_identical(&[0, 1]);
    assert_eq!(cluster.peek(1, 9)[0], 3);
}

#[test]
fn a_write_that_fails_on_the_source_of_a_rebuild_is_not_kept_by_its_copy() {
    let mut cluster = Cluster::new(18, 2);
    // A region takes 0.3 s.
    cluster.options.resync_bytes_per_second = Some(100_000);
    let mirror = cluster.open();
    cluster.paths[0].cut.set(true);
    for region in 0..BLOCKS / REGION {
        cluster.write(&mirror, region * REGION, 1);
    }
    cluster.paths[0].cut.set(false);
    let is_copied = || cluster.peek(0, 2 * REGION)[0] == 1;
    let limit = Duration::from_secs(10);
    cluster.world.run_until(is_copied, limit).unwrap();
    cluster.write(&mirror, 1, 2);
    cluster.drives[1].fail_nth(Operation::Write, 1, Fault::Error(IoError::MediaWrite));
    let result = cluster.with(&mirror, async |device| device.write(1, data(3), false).await);
    assert_eq!(result, Err(IoError::MediaWrite));
    cluster.wait_in_sync(2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn a_rebuild_that_reaches_another_volume_at_a_reused_address_writes_nothing_there() {
    for moment in 0..4 {
        let mut cluster = Cluster::new(40 + moment, 3);
        cluster.options.resync_bytes_per_second = Some(100_000);
        let mirror = cluster.open();
        cluster.paths[2].cut.set(true);
        for block in 0..BLOCKS {
            cluster.write(&mirror, block, 7);
        }
        cluster.paths[2].cut.set(false);
        cluster.world.run_for(Duration::from_millis(400 * moment));
        // The engine with the replica goes, and what answers at its address has a replica of somebody else.
        cluster.paths[2].cut.set(true);
        cluster.world.run_for(Duration::from_secs(10));
        let (other, foreign) = (Uuid::from_u128(0xbeef), Uuid::from_u128(0xf00d));
        make_another(&cluster, 2, foreign, other);
        let before: Vec<_> = (0..BLOCKS).map(|block| cluster.peek(2, block)).collect();
        cluster.paths[2].cut.set(false);
        cluster.write(&mirror, 3, 8);
        cluster.world.run_for(Duration::from_secs(60));
        assert_eq!(cluster.in_sync(), 2);
        // Also a target that is just opening the volume finds it there.
        drop(mirror);
        let mirror = cluster.open();
        cluster.world.run_for(Duration::from_secs(60));
        for (block, content) in (0..BLOCKS).zip(&before) {
            assert!(
                cluster.peek(2, block) == *content,
                "block {block} of another volume"
            );
        }
        make_anew(&cluster, 2);
        cluster.wait_in_sync(3);
        cluster.assert_identical(&[0, 1, 2]);
        assert_eq!(cluster.read(&mirror, 3), 8);
    }
}

#[test]
fn a_replica_is_not_faulted_because_memory_was_short() {
    let cluster = Cluster::new(50, 3);
    let mirror = cluster.open();
    cluster.paths[2].cut.set(true);
    cluster.write(&mirror, 1, 1);
    assert_eq!(cluster.in_sync(), 2);
    let failures = mirror.counters().failures;
    let short = Faults {
        shortage_probability: 0.6,
        ..Faults::default()
    };
    for drive in &cluster.drives {
        drive.set_faults(short);
    }
    // Writes, reads, flushes and a resync: each request is refused more often than not.
    cluster.paths[2].cut.set(false);
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, block as u8);
        assert_eq!(cluster.read(&mirror, block), block as u8);
    }
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.wait_in_sync(3);
    assert_eq!(mirror.counters().failures, failures);
    // And a takeover, which has regions to make the same.
    drop(mirror);
    let mirror = cluster.open();
    assert_eq!(cluster.in_sync(), 3);
    for drive in &cluster.drives {
        drive.set_faults(Faults::default());
    }
    assert_eq!(mirror.counters().failures, 0);
    cluster.assert_identical(&[0, 1, 2]);
}

#[test]
fn no_tie_breaker_lets_a_stale_drive_back() {
    let cluster = Cluster::new(51, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 1);
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    drop(mirror);
    cluster.power_cycle();
    // The stale one is back, alone; half of two, and nobody to ask. However often, and however long.
    cluster.paths[1].cut.set(false);
    cluster.paths[0].cut.set(true);
    for _ in 0..5 {
        assert!(matches!(cluster.try_open(), Err(OpenError::NoReplica)));
        cluster.world.run_for(Duration::from_secs(3600));
        cluster.start_host(1);
    }
    cluster.paths[0].cut.set(false);
    let mirror = cluster.open();
    assert_eq!(cluster.read(&mirror, 9), 2);
    cluster.wait_in_sync(2);
    assert_eq!(cluster.read(&mirror, 9), 2);
    cluster.assert_identical(&[0, 1]);
    assert_eq!(cluster.peek(1, 9)[0], 2);
}

#[test]
fn a_write_that_reached_one_replica_only_is_on_all_or_none_after_a_takeover() {
    for delayed in 0..3 {
        let cluster = Cluster::new(20 + delayed as u64, 3);
        let mirror = cluster.open();
        cluster.write(&mirror, 9, 1);
        let span = Duration::from_secs(1);
        cluster.drives[delayed].fail_nth(Operation::Write, 1, Fault::Delay(span));
        let device = mirror.device();
        let hanging = cluster.world.spawn(
            cluster.reactor,
            async move { device.write(9, data(2), false).await },
        );
        cluster.world.run_for(Duration::from_millis(100));
        assert!(!hanging.is_ended());
        drop(mirror);
        let mirror = cluster.open();
        cluster.assert_identical(&[0, 1, 2]);
        let first = cluster.peek(0, 9)[0];
        assert_eq!(cluster.read(&mirror, 9), first);
        cluster.world.run_for(Duration::from_secs(60));
        assert_eq!(cluster.read(&mirror, 9), first);
    }
}

/// An old target ends while it writes in all regions but the last three; the last of these writes is on the
/// local replica only. Reads of the other one hang from then on.
fn die_while_writing(seed: u64) -> Cluster {
    let cluster = Cluster::new(seed, 2);
    let mirror = cluster.open();
    for region in 0..BLOCKS / REGION - 3 {
        cluster.write(&mirror, region * REGION, 1);
    }
    let last = BLOCKS - 4 * REGION;
    cluster.drives[1].fail_nth(Operation::Write, 1, Fault::Delay(Duration::from_secs(1)));
    let device = mirror.device();
    let hanging = cluster.world.spawn(cluster.reactor, async move {
        device.write(last, data(2), false).await
    });
    cluster.world.run_for(Duration::from_millis(100));
    assert!(!hanging.is_ended());
    drop(mirror);
    cluster.paths[1].reads_hang.set(true);
    cluster
}

#[test]
fn what_is_read_after_a_takeover_is_on_all_replicas_before_it_is_told() {
    let cluster = die_while_writing(36);
    let mirror = Rc::new(cluster.open());
    let start = |block: u64| {
        let device = mirror.device();
        let read = async move { device.read(block, data(0)).await.unwrap()[0] };
        cluster.world.spawn(cluster.reactor, read)
    };
    // More regions are in doubt than are looked at in a time.
    let doubtful: Vec<_> = (0..BLOCKS / REGION - 3)
        .map(|region| start(region * REGION))
        .collect();
    let (last, calm) = (start(BLOCKS - 4 * REGION), start(BLOCKS - 1));
    cluster.world.run_for(Duration::from_millis(500));
    assert!(calm.is_ended(), "nothing was written there");
    assert!(!doubtful.iter().any(|read| read.is_ended()) && !last.is_ended());
    // Nor is a snapshot cut, nor a replica brought back.
    let holder = mirror.clone();
    let held = cluster.world.block_on(cluster.reactor, async move {
        holder.hold(Duration::from_millis(100)).await.map(drop)
    });
    assert_eq!(held, Err(SnapshotError::Expired));
    cluster.paths[1].reads_hang.set(false);
    let found = cluster.world.finish(&last);
    cluster.world.run_for(Duration::from_secs(5));
    cluster.assert_identical(&[0, 1]);
    assert!(doubtful.iter().all(|read| read.is_ended()));
    // The one that it was read from goes.
    cluster.paths[0].cut.set(true);
    assert_eq!(cluster.read(&mirror, BLOCKS - 4 * REGION), found);
}

#[test]
fn what_was_undone_at_a_takeover_and_told_stays_undone_after_a_power_cut() {
    let cluster = Cluster::new(38, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 1);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    // The last write of the old target reaches the medium of one replica, and nobody is told of it.
    cluster.store.away.set(true);
    cluster.paths[0].cut.set(true);
    let device = mirror.device();
    let last = async move { device.write(9, data(2), true).await };
    let last = cluster.world.spawn(cluster.reactor, last);
    cluster.world.run_for(Duration::from_millis(100));
    assert!(!last.is_ended() && cluster.peek(1, 9)[0] == 2);
    drop(mirror);
    cluster.store.away.set(false);
    cluster.paths[0].cut.set(false);
    let mirror = cluster.open();
    assert_eq!(cluster.read(&mirror, 9), 1);
    drop(mirror);
    cluster.power_cycle();
    // The one that the old content was taken from is gone.
    cluster.paths[0].cut.set(true);
    let mirror = cluster.open();
    assert_eq!(cluster.read(&mirror, 9), 1);
}

#[test]
fn what_is_in_doubt_when_a_target_ends_is_in_doubt_for_the_next_one() {
    let cluster = die_while_writing(37);
    let mirror = cluster.open();
    // The write that hung got to the second replica, and is taken from it again.
    let last = (common::DATA_START + BLOCKS - 4 * REGION) * common::BLOCK as u64;
    cluster.drives[1].poke(last, &data(1));
    // Long enough for intents of regions in which nothing goes on to be retired.
    cluster.world.run_for(Duration::from_secs(2));
    let ended = cluster.world.block_on(cluster.reactor, async move {
        let ended = mirror.wind_down().await;
        drop(mirror);
        ended
    });
    assert_eq!(ended, Err(WindDownError::Busy));
    cluster.paths[1].reads_hang.set(false);
    let mirror = cluster.open();
    cluster.world.run_for(Duration::from_secs(5));
    cluster.assert_identical(&[0, 1]);
    drop(mirror);
}

/// A host that was started since may have lost what only a flush would have kept: what is in doubt is written
/// anew before the volume is served, so that a flush reaches it.
#[test]
fn what_hosts_lost_is_made_good_before_the_volume_is_served() {
    let cluster = die_while_writing(38);
    cluster.start_host(1);
    let (ports, options) = (cluster.ports(), cluster.options.clone());
    let store: Rc<dyn MembershipStore> = Rc::new(cluster.store.clone());
    let opening = cluster.world.spawn(cluster.reactor, async move {
        let mirror = Mirror::open(options, store, VOLUME, &ports).await.unwrap();
        mirror.close();
    });
    cluster.world.run_for(Duration::from_secs(1));
    assert!(!opening.is_ended());
    cluster.paths[1].reads_hang.set(false);
    cluster.world.finish(&opening);
    cluster.assert_identical(&[0, 1]);
}

/// What cannot be made good keeps the volume from being opened, and whoever opens it hears why.
#[test]
fn what_cannot_be_made_good_is_told_to_whoever_opens_the_volume() {
    let mut refused = 0;
    for number in 1..=8 {
        let cluster = Cluster::new(39, 1);
        let mirror = cluster.open();
        cluster.write(&mirror, 9, 7);
        drop(mirror);
        cluster.start_host(0);
        cluster.drives[0].fail_nth(Operation::Write, number, Fault::Error(IoError::MediaWrite));
        let (ports, options) = (cluster.ports(), cluster.options.clone());
        let store: Rc<dyn MembershipStore> = Rc::new(cluster.store.clone());
        let opening = cluster.world.spawn(cluster.reactor, async move {
            Mirror::open(options, store, VOLUME, &ports).await.map(drop)
        });
        cluster.world.run_for(Duration::from_secs(10));
        assert!(opening.is_ended(), "write {number}");
        let opened = cluster.world.finish(&opening);
        refused += usize::from(opened == Err(OpenError::Io(IoError::MediaWrite)));
        // What has not failed yet may fail now.
        let mirror = cluster.try_open().unwrap_or_else(|_| cluster.open());
        assert_eq!(cluster.read(&mirror, 9), 7);
    }
    assert!(refused > 0, "no write of what was in doubt failed");
}

#[test]
fn a_late_request_of_an_old_session_does_not_land_after_the_resync() {
    let cluster = Cluster::new(30, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 1);
    // The second replica takes ten seconds for a write, and is given up after five.
    cluster.drives[1].fail_nth(Operation::Write, 1, Fault::Delay(Duration::from_secs(10)));
    cluster.write(&mirror, 9, 2);
    assert_eq!(cluster.in_sync(), 1);
    cluster.write(&mirror, 9, 3);
    cluster.wait_in_sync(2);
    cluster.write(&mirror, 9, 4);
    cluster.world.run_for(Duration::from_secs(60));
    cluster.assert_identical(&[0, 1]);
    assert_eq!(cluster.peek(1, 9)[0], 4);
}

#[test]
fn an_old_target_that_reaches_one_replica_writes_nothing_that_stays() {
    let cluster = Cluster::new(31, 2);
    let old = cluster.open();
    // The intent of the region stays for a while.
    cluster.write(&old, 9, 1);
    cluster.paths[0].cut.set(true);
    let new = cluster.open();
    cluster.paths[0].cut.set(false);
    // The old one still has a session of replica 0, which promised nobody else.
    let device: Rc<dyn BlockDevice> = old.device();
    let ghost = cluster.world.block_on(
        cluster.reactor,
        async move { device.write(10, data(66), false).await },
    );
    assert_eq!(ghost, Err(IoError::Fenced));
    assert_eq!(old.stopped(), Some(StopReason::Superseded));
    cluster.wait_in_sync(2);
    cluster.assert_identical(&[0, 1]);
    assert_eq!(cluster.read(&new, 10), 0);
}

/// Nothing keeps the old target from its replicas, and its lease has not run out: it is the sessions that are
/// not served any more.
#[test]
fn an_old_target_that_reaches_all_replicas_neither_writes_nor_reads() {
    let cluster = Cluster::new(54, 2);
    let old = cluster.open();
    cluster.write(&old, 9, 1);
    let new = cluster.open();
    cluster.write(&new, 11, 2);
    let device = old.device();
    let ghosts = cluster.world.block_on(cluster.reactor, async move {
        let read = device.read(11, data(0)).await.map(drop);
        (device.write(10, data(66), false).await, read)
    });
    assert_eq!(ghosts, (Err(IoError::Fenced), Err(IoError::Fenced)));
    assert_eq!(old.stopped(), Some(StopReason::Superseded));
    assert_eq!(cluster.read(&new, 10), 0);
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn of_the_replicas_that_promise_the_one_that_kept_its_cache_is_the_source() {
    let cluster = Cluster::new(32, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 7);
    drop(mirror);
    // Acknowledged, not flushed; the local one loses it, the other one has it.
    cluster.power_cycle_one(0);
    let mirror = cluster.open();
    assert_eq!(cluster.read(&mirror, 9), 7);
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn what_nobody_waits_for_any_more_is_ended_all_the_same() {
    let cluster = Cluster::new(33, 2);
    let mirror = cluster.open();
    for block in 0..40 {
        cluster.with(&mirror, async move |device| {
            drop(device.submit(Request::Write {
                block,
                from: data(5).into(),
                force_unit_access: false,
            }));
        });
    }
    cluster.world.run_for(Duration::from_secs(1));
    cluster.assert_identical(&[0, 1]);
    cluster.write(&mirror, 3, 6);
    assert_eq!(cluster.read(&mirror, 3), 6);
}

#[test]
fn what_a_drive_forgot_after_a_failed_flush_is_written_anew_and_not_only_flushed_again() {
    let cluster = Cluster::new(34, 2);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    cluster.drives[0].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    let failed = cluster.with(&mirror, async |device| device.flush().await);
    assert_eq!(failed, Err(IoError::MediaWrite));
    drop(mirror);
    // Reads show the block all the while. The host is the same, or another one.
    cluster.drives[0].disconnect();
    cluster.start_host(0);
    cluster.paths[1].cut.set(false);
    let mirror = cluster.open();
    cluster.wait_in_sync(2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.drives[0].power_loss(PowerLoss::LoseAll);
    assert_eq!(cluster.peek(0, 9)[0], 7);
    cluster.assert_identical(&[0, 1]);
}

#[test]
fn a_flush_that_failed_unheard_is_not_made_good_by_the_next_one() {
    let cluster = Cluster::new(35, 1);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 7);
    // It fails while the path is down, and the path comes back to the same host.
    cluster.drives[0].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    let before = cluster.drives[0].counters().flushes;
    let device = mirror.device();
    let flush = cluster
        .world
        .spawn(cluster.reactor, async move { device.flush().await });
    let sent = || cluster.drives[0].counters().flushes > before;
    cluster.world.run_until(sent, Duration::from_secs(1)).unwrap();
    cluster.paths[0].cut.set(true);
    cluster.world.run_for(Duration::from_secs(10));
    cluster.paths[0].cut.set(false);
    assert_eq!(cluster.world.finish(&flush), Err(IoError::Gone));
    assert_eq!(mirror.stopped(), Some(StopReason::CacheLost));
}

/// Whoever asks again in the same session may not have heard of the failure, and hears of it now.
#[test]
fn a_flush_that_failed_is_not_made_good_by_the_next_one_of_its_session() {
    let cluster = Cluster::new(55, 1);
    let (_, port) = cluster.ports().remove(0);
    cluster.drives[0].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    let results = cluster.world.block_on(cluster.reactor, async move {
        let session = port.promise(Epoch(5)).await.unwrap().session;
        let first = session.flush().await;
        // The drive says that all is well now.
        let second = session.flush().await;
        let next = port.promise(Epoch(6)).await.unwrap();
        (first, second, next.flush_failures, next.session.flush().await)
    });
    let failed = Err(IoError::MediaWrite);
    assert_eq!(results, (failed, failed, 1, Ok(())));
}
