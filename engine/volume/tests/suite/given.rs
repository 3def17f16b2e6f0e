//! Snapshots that are read, for replicas that were away or to go back, while those that have them are
//! silent.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::BlockDeviceExt;
use pollux_reactor::timeout;
use pollux_volume::mirror::Mirror;
use pollux_volume::replica::ReplicaPort;
use uuid::Uuid;

use crate::common::{BLOCKS, Cluster, DATA_START, REGION, data, on_pools};

const SNAPSHOTS: [Uuid; 2] = [Uuid::from_u128(0x5001), Uuid::from_u128(0x5002)];

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

/// The last replica is away, and misses two snapshots: of ones everywhere, and with some twos. Threes are
/// there since.
fn two_are_missed(seed: u64, replicas: usize) -> (Cluster, Rc<Mirror>) {
    let cluster = on_pools(seed, replicas);
    let mirror = Rc::new(cluster.open());
    cluster.paths[replicas - 1].cut.set(true);
    run(&cluster, &mirror, async |mirror| {
        let device = mirror.device();
        for block in 0..BLOCKS {
            device.write(block, data(1), false).await.unwrap();
        }
        mirror.snapshot(SNAPSHOTS[0]).await.unwrap();
        for block in (0..BLOCKS).step_by(3) {
            device.write(block, data(2), false).await.unwrap();
        }
        mirror.snapshot(SNAPSHOTS[1]).await.unwrap();
        for block in 0..BLOCKS {
            device.write(block, data(3), false).await.unwrap();
        }
        device.flush().await.unwrap();
    });
    (cluster, mirror)
}

/// Whether a replica has both, as they are to be.
fn assert_has_both(cluster: &Cluster, mirror: &Mirror, index: usize) {
    let record = mirror.membership();
    for (number, snapshot) in SNAPSHOTS.into_iter().enumerate() {
        let entry = record.snapshot(snapshot).unwrap();
        let slot = pollux_volume::membership::SlotNumber::new(index).unwrap();
        assert!(entry.held_by.contains(slot), "{entry:?}");
        let path = cluster.paths[index].clone();
        cluster.world.block_on(cluster.reactor, async move {
            let device = path.open_snapshot(record.epoch, entry.cut).await.unwrap();
            for block in 0..BLOCKS {
                let held = device.read(DATA_START + block, data(0)).await.unwrap();
                let expected = if number == 1 && block % 3 == 0 { 2 } else { 1 };
                assert_eq!(held[0], expected, "snapshot {number}, block {block}");
            }
        });
    }
}

#[test]
fn another_source_goes_on_where_the_one_before_fell_silent() {
    let (cluster, mirror) = two_are_missed(1, 3);
    let (silent, other) = (&cluster.paths[0], &cluster.paths[1]);
    cluster.paths[2].cut.set(false);
    let limit = Duration::from_secs(10);
    cluster
        .world
        .run_until(|| silent.snapshot_reads.get() > 6, limit)
        .unwrap();
    silent.snapshots_hang.set(true);
    cluster.world.run_until(|| cluster.in_sync() == 3, limit).unwrap();
    assert_eq!(mirror.counters().snapshots_given, 2);
    // One half of the first one was read of the other source, and all of the second, which is compared with
    // the first one.
    let regions = BLOCKS / REGION;
    let reads = other.snapshot_reads.get();
    assert!((2 * regions..3 * regions - 5).contains(&reads), "{reads} reads");
    silent.snapshots_hang.set(false);
    assert_has_both(&cluster, &mirror, 2);
}

#[test]
fn a_source_that_answers_again_before_long_gives_all() {
    let (cluster, mirror) = two_are_missed(2, 2);
    cluster.paths[0].snapshots_hang.set(true);
    cluster.paths[1].cut.set(false);
    cluster.world.run_for(Duration::from_secs(8));
    assert_eq!(cluster.in_sync(), 1);
    cluster.paths[0].snapshots_hang.set(false);
    cluster.wait_in_sync(2);
    let counters = mirror.counters();
    assert_eq!((counters.snapshots_given, counters.snapshots_forgiven), (2, 0));
    assert_has_both(&cluster, &mirror, 1);
}

#[test]
fn a_source_that_never_answers_keeps_no_replica_away() {
    let (cluster, mirror) = two_are_missed(3, 2);
    cluster.paths[0].snapshots_hang.set(true);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    assert_eq!(mirror.counters().snapshots_forgiven, 1);
    assert_eq!(mirror.membership().snapshots[0].held_by.bits(), 0b01);
    assert_eq!(cluster.read(&mirror, 9), 3);
}

#[test]
fn a_roll_back_asks_a_silent_source_once() {
    let (cluster, mirror) = two_are_missed(4, 3);
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(3);
    cluster.paths[0].snapshots_hang.set(true);
    run(&cluster, &mirror, async |mirror| {
        let going_back = mirror.roll_back(Uuid::from_u128(0x7001), SNAPSHOTS[1]);
        timeout(Duration::from_secs(8), going_back)
            .await
            .unwrap()
            .unwrap();
    });
    for block in 0..BLOCKS {
        assert_eq!(
            cluster.read(&mirror, block),
            if block % 3 == 0 { 2 } else { 1 },
            "block {block}"
        );
    }
}
