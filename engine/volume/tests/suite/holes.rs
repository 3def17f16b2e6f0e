//! What nothing is stored of is gone over in strides: with few requests, and with nothing of what is stored
//! overlooked.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDeviceExt, IoError};
use pollux_sim::{Fault, Operation, PowerLoss, SimDriveOptions};
use pollux_volume::mirror::Mirror;
use uuid::Uuid;

use crate::common::{BLOCKS, Cluster, REGION, VOLUME, data, id, on_pools};

const SNAPSHOTS: [Uuid; 2] = [Uuid::from_u128(0x5001), Uuid::from_u128(0x5002)];

/// Runs something with a mirror that can be borrowed by it.
fn run<T: 'static>(
    cluster: &Cluster,
    mirror: Mirror,
    act: impl AsyncFn(&Mirror) -> T + 'static,
) -> (Mirror, T) {
    cluster.world.block_on(cluster.reactor, async move {
        let done = act(&mirror).await;
        (mirror, done)
    })
}

/// The first byte of each block.
fn content(cluster: &Cluster, mirror: &Mirror) -> Vec<u8> {
    (0..BLOCKS).map(|block| cluster.read(mirror, block)).collect()
}

/// What a replica has on its own. All are in sync again afterwards.
fn alone(cluster: &Cluster, index: usize) -> Vec<u8> {
    for (other, path) in cluster.paths.iter().enumerate() {
        path.cut.set(other != index);
    }
    let mirror = cluster.open();
    let found = content(cluster, &mirror);
    drop(mirror);
    cluster.paths.iter().for_each(|path| path.cut.set(false));
    let mirror = cluster.open();
    cluster.wait_in_sync(cluster.paths.len());
    drop(mirror);
    found
}

/// What is expected where some blocks hold a number.
fn holding(blocks: &[(u64, u8)]) -> Vec<u8> {
    let mut expected = vec![0; BLOCKS as usize];
    for &(block, byte) in blocks {
        expected[block as usize] = byte;
    }
    expected
}

/// Everything is written, a replica goes away, and only some blocks are kept.
fn deallocated_while_one_is_away(cluster: &Cluster, kept: &[u64]) -> Mirror {
    let mirror = cluster.open();
    let kept = kept.to_vec();
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, 1);
    }
    cluster.paths[1].cut.set(true);
    cluster.with(&mirror, async move |device| {
        device.deallocate(0, BLOCKS).await.unwrap();
        for block in kept {
            device.write(block, data(2), false).await.unwrap();
        }
        device.flush().await.unwrap();
    });
    cluster.paths[1].changes.set(0);
    mirror
}

#[test]
fn a_resync_makes_holes_of_holes_with_few_requests() {
    let kept = [3, 100];
    let cluster = on_pools(1, 2);
    let mirror = deallocated_while_one_is_away(&cluster, &kept);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    drop(mirror);
    // Two regions with data, and sixteen altogether.
    let changes = cluster.paths[1].changes.get();
    assert!((3..=12).contains(&changes), "{changes} changes");
    assert_eq!(alone(&cluster, 1), holding(&[(3, 2), (100, 2)]));
}

#[test]
fn a_new_replica_of_an_empty_volume_takes_few_requests() {
    let cluster = on_pools(2, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, BLOCKS - 1, 7);
    // Another one in its place, under the same name.
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, BLOCKS - 1, 8);
    cluster.format(1, id(1), VOLUME);
    cluster.start_host(1);
    cluster.paths[1].changes.set(0);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    drop(mirror);
    // One block, and holes of one to eight regions; the region of the block is looked at by itself.
    let changes = cluster.paths[1].changes.get();
    assert!((2..=8).contains(&changes), "{changes} changes");
    assert_eq!(alone(&cluster, 1), holding(&[(BLOCKS - 1, 8)]));
}

/// What was asked when the replica was lost is answered after that: the regions do not count as copied when
/// it is back.
#[test]
fn a_replica_that_is_lost_while_holes_are_asked_for_is_copied_all_of_it() {
    for (kept, lost_within) in [(&[][..], 0), (&[3, 100], 0), (&[3, 100], 3)] {
        let cluster = on_pools(8, 2);
        let mirror = deallocated_while_one_is_away(&cluster, kept);
        cluster.paths[0].questions_hang.set(true);
        cluster.paths[1].cut.set(false);
        cluster.world.run_for(Duration::from_secs(1));
        for _ in 0..lost_within {
            // As many questions are answered before.
            cluster.paths[0].questions_hang.set(false);
            cluster.world.run_for(Duration::from_micros(1100));
            cluster.paths[0].questions_hang.set(true);
            cluster.world.run_for(Duration::from_millis(5));
        }
        assert_eq!(cluster.in_sync(), 1);
        cluster.paths[1].cut.set(true);
        // It is sent to the replica as well, and found out to be lost.
        cluster.with(&mirror, async |device| device.flush().await.unwrap());
        cluster.paths[0].questions_hang.set(false);
        cluster.world.run_for(Duration::from_millis(100));
        cluster.paths[1].cut.set(false);
        cluster.wait_in_sync(2);
        drop(mirror);
        let expected: Vec<(u64, u8)> = kept.iter().map(|&block| (block, 2)).collect();
        assert_eq!(alone(&cluster, 1), holding(&expected), "{kept:?}");
    }
}

/// A drive goes on showing what it was told to forget, after a flush that failed, and has the old data on its
/// medium.
#[test]
fn what_a_drive_shows_as_a_hole_is_cleared_anew() {
    let drive = SimDriveOptions {
        tells_holes: true,
        ..SimDriveOptions::new(4 << 20, 4096).unwrap()
    };
    let cluster = Cluster::on(9, 2, drive, false);
    let mirror = cluster.open();
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, 1);
    }
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.drives[1].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    cluster.with(&mirror, async |device| {
        device.deallocate(0, BLOCKS).await.unwrap();
        device.flush().await.unwrap();
    });
    cluster.wait_in_sync(2);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    drop(mirror);
    cluster.drives[1].power_loss(PowerLoss::LoseAll);
    for block in 0..BLOCKS {
        assert_eq!(cluster.peek(1, block)[0], 0, "block {block}");
    }
}

/// A host writes where all is a hole yet: what was asked before its write counts for nothing.
#[test]
fn what_is_written_meanwhile_is_copied() {
    let cluster = on_pools(3, 2);
    let mirror = deallocated_while_one_is_away(&cluster, &[]);
    // In the middle of a stride; the replica that is away does not have to have it.
    let block = 5 * REGION;
    cluster.paths[0].changes_wait.set(true);
    let device = mirror.device();
    let writing = cluster.world.spawn(cluster.reactor, async move {
        device.write(block, data(9), false).await
    });
    cluster.world.run_for(Duration::from_millis(5));
    cluster.paths[1].cut.set(false);
    // The resync has found holes by now, and waits for the write.
    cluster.world.run_for(Duration::from_secs(1));
    assert_eq!(cluster.in_sync(), 1);
    cluster.paths[0].changes_wait.set(false);
    cluster.world.block_on(cluster.reactor, writing).unwrap().unwrap();
    cluster.wait_in_sync(2);
    drop(mirror);
    assert_eq!(alone(&cluster, 1), holding(&[(block, 9)]));
}

/// A host writes to a hole that was copied, while the copy of something else goes on.
#[test]
fn what_is_written_behind_it_goes_to_the_copy_too() {
    let cluster = on_pools(6, 2);
    let mirror = deallocated_while_one_is_away(&cluster, &[100]);
    cluster.paths[0].reads_hang.set(true);
    cluster.paths[1].cut.set(false);
    // It waits for what is to be read of the last regions.
    cluster.world.run_for(Duration::from_secs(1));
    assert_eq!(cluster.in_sync(), 1);
    let behind: Vec<(u64, u8)> = (0..8).map(|region| (region * REGION, 9)).collect();
    for &(block, byte) in &behind {
        cluster.write(&mirror, block, byte);
    }
    cluster.paths[0].reads_hang.set(false);
    cluster.wait_in_sync(2);
    drop(mirror);
    assert_eq!(alone(&cluster, 1), holding(&[&behind[..], &[(100, 2)]].concat()));
}

/// The map has regions that hosts do not see yet, while the store does not say that the volume has grown.
#[test]
fn a_volume_grows_beside_it() {
    let cluster = on_pools(7, 2);
    let mirror = Rc::new(deallocated_while_one_is_away(&cluster, &[100]));
    cluster.store.away.set(true);
    let growing = mirror.clone();
    let growing = cluster.world.spawn(
        cluster.reactor,
        async move { growing.grow(BLOCKS + 4 * REGION).await },
    );
    cluster.world.run_for(Duration::from_millis(100));
    cluster.paths[1].cut.set(false);
    cluster.world.run_for(Duration::from_secs(1));
    assert_eq!(cluster.in_sync(), 1);
    cluster.store.away.set(false);
    cluster.world.block_on(cluster.reactor, growing).unwrap().unwrap();
    cluster.write(&mirror, BLOCKS + 2 * REGION, 5);
    cluster.wait_in_sync(2);
    drop(mirror);
    assert_eq!(alone(&cluster, 1), holding(&[(100, 2)]));
    cluster.paths[0].cut.set(true);
    assert_eq!(cluster.read(&cluster.open(), BLOCKS + 2 * REGION), 5);
}

/// Hosts write all over the volume while holes are copied: what they write is on both replicas in the end.
#[test]
fn hosts_write_beside_it() {
    for seed in 0..20 {
        let cluster = on_pools(100 + seed, 2);
        let mirror = deallocated_while_one_is_away(&cluster, &[40]);
        let device = mirror.device();
        cluster.paths[1].cut.set(false);
        let writing = cluster.world.spawn(cluster.reactor, async move {
            let mut expected = vec![0; BLOCKS as usize];
            expected[40] = 2;
            for round in 0..200_u64 {
                let block = (round * 37 + seed * 11) % BLOCKS;
                match round % 5 {
                    0 => {
                        device.deallocate(block, 1).await.unwrap();
                        expected[block as usize] = 0;
                    }
                    _ => {
                        device.write(block, data(round as u8 | 1), false).await.unwrap();
                        expected[block as usize] = round as u8 | 1;
                    }
                }
                pollux_reactor::sleep(Duration::from_micros(300)).await;
            }
            expected
        });
        let expected = cluster.world.block_on(cluster.reactor, writing).unwrap();
        cluster.wait_in_sync(2);
        drop(mirror);
        for index in 0..2 {
            assert_eq!(alone(&cluster, index), expected, "seed {seed}, replica {index}");
        }
    }
}

#[test]
fn snapshots_are_given_with_few_requests() {
    let cluster = on_pools(4, 2);
    let mirror = cluster.open();
    for block in 0..BLOCKS {
        cluster.write(&mirror, block, 1);
    }
    cluster.paths[1].cut.set(true);
    let (mirror, ()) = run(&cluster, mirror, async |mirror| {
        let device = mirror.device();
        device.deallocate(0, BLOCKS).await.unwrap();
        device.write(100, data(2), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[0]).await.unwrap();
        device.write(50, data(3), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[1]).await.unwrap();
        device.deallocate(100, 1).await.unwrap();
        device.flush().await.unwrap();
    });
    cluster.paths[1].changes.set(0);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    // Sixteen regions, for two snapshots and what is there now.
    let changes = cluster.paths[1].changes.get();
    assert!((4..=24).contains(&changes), "{changes} changes");
    let record = mirror.membership();
    let held = [[(100, 2), (50, 0)], [(100, 2), (50, 3)]];
    for (snapshot, held) in SNAPSHOTS.into_iter().zip(held) {
        let cut = record.snapshot(snapshot).unwrap().cut;
        let (path, epoch) = (cluster.paths[1].clone(), record.epoch);
        let found = cluster.world.block_on(cluster.reactor, async move {
            use pollux_volume::replica::ReplicaPort;
            let device = path.open_snapshot(epoch, cut).await.unwrap();
            let mut found = Vec::new();
            for block in 0..BLOCKS {
                let read = device.read(crate::common::DATA_START + block, data(0)).await;
                found.push(read.unwrap()[0]);
            }
            found
        });
        assert_eq!(found, holding(&held), "{snapshot}");
    }
    drop(mirror);
    assert_eq!(alone(&cluster, 1), holding(&[(50, 3)]));
}

#[test]
fn a_roll_back_passes_over_what_is_a_hole_in_both() {
    let cluster = on_pools(5, 2);
    let mirror = cluster.open();
    let (mirror, ()) = run(&cluster, mirror, async |mirror| {
        let device = mirror.device();
        device.write(0, data(1), false).await.unwrap();
        device.write(90, data(1), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[0]).await.unwrap();
        device.deallocate(90, 1).await.unwrap();
        // A hole in the snapshot, and not in the volume.
        device.write(60, data(2), false).await.unwrap();
        device.write(BLOCKS - 1, data(2), false).await.unwrap();
        device.flush().await.unwrap();
        mirror
            .roll_back(Uuid::from_u128(0x7001), SNAPSHOTS[0])
            .await
            .unwrap();
    });
    drop(mirror);
    for index in 0..2 {
        let found = alone(&cluster, index);
        assert_eq!(found, holding(&[(0, 1), (90, 1)]), "replica {index}");
    }
}

#[test]
fn a_source_that_never_tells_of_holes_does_not_hold_up_snapshots_that_are_given() {
    let mut cluster = on_pools(6, 2);
    cluster.options.request_timeout = Duration::from_millis(200);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    let (mirror, ()) = run(&cluster, mirror, async |mirror| {
        let device = mirror.device();
        device.write(3, data(1), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[0]).await.unwrap();
        device.write(100, data(2), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[1]).await.unwrap();
        device.flush().await.unwrap();
    });
    cluster.paths[0].questions_hang.set(true);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    assert_eq!(mirror.counters().snapshots_given, 2);
    drop(mirror);
    cluster.paths[0].questions_hang.set(false);
    assert_eq!(alone(&cluster, 1), holding(&[(3, 1), (100, 2)]));
}

#[test]
fn replicas_that_never_tell_of_holes_do_not_hold_up_a_roll_back() {
    let mut cluster = on_pools(7, 2);
    cluster.options.request_timeout = Duration::from_millis(200);
    let mirror = cluster.open();
    let paths = cluster.paths.clone();
    let (mirror, ()) = run(&cluster, mirror, async move |mirror| {
        let device = mirror.device();
        device.write(3, data(1), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[0]).await.unwrap();
        device.write(100, data(2), false).await.unwrap();
        paths.iter().for_each(|path| path.questions_hang.set(true));
        let going_back = mirror.roll_back(Uuid::from_u128(0x7002), SNAPSHOTS[0]);
        let limit = Duration::from_secs(60);
        pollux_reactor::timeout(limit, going_back).await.unwrap().unwrap();
        paths.iter().for_each(|path| path.questions_hang.set(false));
    });
    drop(mirror);
    for index in 0..2 {
        assert_eq!(alone(&cluster, index), holding(&[(3, 1)]), "replica {index}");
    }
}

/// Whoever does not answer is asked no more for a while: each question costs as long as an answer is waited
/// for.
#[test]
fn a_source_that_never_tells_of_holes_is_not_asked_at_each_stride() {
    let cluster = on_pools(10, 2);
    let mirror = cluster.open();
    cluster.paths[1].cut.set(true);
    let (mirror, ()) = run(&cluster, mirror, async |mirror| {
        let device = mirror.device();
        for block in 0..BLOCKS {
            device.write(block, data(1), false).await.unwrap();
        }
        mirror.snapshot(SNAPSHOTS[0]).await.unwrap();
        device.write(100, data(2), false).await.unwrap();
        mirror.snapshot(SNAPSHOTS[1]).await.unwrap();
    });
    cluster.paths[0].questions_hang.set(true);
    cluster.paths[1].cut.set(false);
    let limit = cluster.options.request_timeout + Duration::from_secs(2);
    cluster.world.run_until(|| cluster.in_sync() == 2, limit).unwrap();
    assert_eq!(mirror.counters().snapshots_given, 2);
}

/// Nor is who does not answer asked when another one can tell.
#[test]
fn another_replica_is_asked_for_holes_if_one_never_answers() {
    let cluster = on_pools(11, 3);
    let mirror = deallocated_while_one_is_away(&cluster, &[3, 100]);
    cluster.paths[0].questions_hang.set(true);
    cluster.paths[1].cut.set(false);
    let limit = cluster.options.request_timeout + Duration::from_secs(2);
    cluster.world.run_until(|| cluster.in_sync() == 3, limit).unwrap();
    let changes = cluster.paths[1].changes.get();
    assert!((3..=12).contains(&changes), "{changes} changes");
    drop(mirror);
    cluster.paths[0].questions_hang.set(false);
    assert_eq!(alone(&cluster, 1), holding(&[(3, 2), (100, 2)]));
}
