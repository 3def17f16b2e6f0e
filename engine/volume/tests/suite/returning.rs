//! Replicas on their way back, and who must not be held up by them.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::BlockDeviceExt;
use pollux_reactor::timeout;
use pollux_volume::membership::SlotNumber;
use pollux_volume::mirror::Mirror;
use uuid::Uuid;

use crate::common::{BLOCKS, Cluster, REGION, VOLUME, data, id, on_pools};

/// The first of three is alone, and all of the volume was written since.
fn two_are_away(cluster: &Cluster) -> Rc<Mirror> {
    let mirror = Rc::new(cluster.open());
    cluster.paths[1].cut.set(true);
    cluster.paths[2].cut.set(true);
    for region in 0..BLOCKS / REGION {
        cluster.write(&mirror, region * REGION, 1);
    }
    mirror
}

fn is_in_sync(cluster: &Cluster, index: usize) -> bool {
    let record = cluster.store.inner.get(VOLUME).unwrap();
    record.in_sync().contains(SlotNumber::new(index).unwrap())
}

#[test]
fn a_replica_that_is_never_ready_holds_up_neither_hosts_nor_others_that_return() {
    let cluster = Cluster::new(1, 3);
    let mirror = two_are_away(&cluster);
    let (sick, well) = (&cluster.paths[1], &cluster.paths[2]);
    sick.changes.set(0);
    sick.cut.set(false);
    let limit = Duration::from_secs(60);
    cluster
        .world
        .run_until(|| sick.changes.get() >= 2, limit)
        .unwrap();
    sick.not_ready.set(true);
    // It was copied, and so this goes to it as well.
    cluster.with(&mirror, async move |device| {
        let writing = timeout(limit, device.write(0, data(2), false));
        writing.await.unwrap().unwrap();
    });
    well.cut.set(false);
    cluster
        .world
        .run_until(|| is_in_sync(&cluster, 2), limit)
        .unwrap();
    assert!(!is_in_sync(&cluster, 1));
    sick.not_ready.set(false);
    cluster.wait_in_sync(3);
    drop(mirror);
    cluster.with(&cluster.open(), async |device| device.flush().await.unwrap());
    cluster.assert_identical(&[0, 1, 2]);
}

#[test]
fn nor_does_it_while_it_is_given_a_snapshot() {
    let cluster = on_pools(2, 3);
    let mirror = two_are_away(&cluster);
    let taking = mirror.clone();
    cluster
        .world
        .block_on(cluster.reactor, async move {
            taking.snapshot(Uuid::from_u128(0x5001)).await
        })
        .unwrap();
    cluster.paths[1].not_ready.set(true);
    cluster.paths[1].cut.set(false);
    cluster.world.run_for(Duration::from_secs(1));
    cluster.paths[2].cut.set(false);
    let limit = Duration::from_secs(60);
    cluster
        .world
        .run_until(|| is_in_sync(&cluster, 2), limit)
        .unwrap();
    cluster.paths[1].not_ready.set(false);
    cluster.wait_in_sync(3);
    assert_eq!(mirror.membership().snapshots[0].held_by.bits(), 0b111);
}

/// It has its turn while another one is brought back, and is to leave by then.
#[test]
fn a_replica_that_is_to_leave_is_not_brought_back() {
    let cluster = Cluster::new(3, 3);
    let mirror = two_are_away(&cluster);
    cluster.paths[0].reads_hang.set(true);
    cluster.paths[1].cut.set(false);
    cluster.paths[2].cut.set(false);
    cluster.world.run_for(Duration::from_secs(1));
    let (leaving, ports) = (mirror.clone(), cluster.ports());
    cluster.world.block_on(cluster.reactor, async move {
        leaving.follow(&ports, &[id(2)]).await;
    });
    cluster.paths[0].reads_hang.set(false);
    cluster.world.run_for(Duration::from_secs(30));
    assert!(is_in_sync(&cluster, 1));
    assert!(!is_in_sync(&cluster, 2));
}

/// All of the set are lost at once, and the last one stays away. The first one lacks nothing that was
/// acknowledged, but only another opening can tell: nobody waits for the last one for ever.
#[test]
fn a_target_that_waits_for_the_last_one_in_vain_stops_if_another_one_is_there() {
    for is_restarted in [false, true] {
        let cluster = Cluster::new(4, 2);
        let mirror = Rc::new(cluster.open());
        cluster.write(&mirror, 9, 1);
        cluster.paths.iter().for_each(|path| path.cut.set(true));
        let device = mirror.device();
        let writing = async move { timeout(Duration::from_secs(1), device.write(9, data(2), false)).await };
        let written = cluster.world.block_on(cluster.reactor, writing);
        assert!(written.is_err(), "it waits");
        // Nobody else would do better.
        cluster.world.run_for(Duration::from_secs(60));
        assert_eq!(mirror.stopped(), None);
        if is_restarted {
            // Nor would this one: what it had may be gone, and the last one may have it.
            cluster.start_host(0);
        }
        cluster.paths[0].cut.set(false);
        cluster.world.run_for(Duration::from_secs(5));
        assert_eq!(mirror.stopped(), None, "the last one may be about to be back");
        cluster.world.run_for(Duration::from_secs(25));
        assert_eq!(mirror.stopped().is_some(), !is_restarted);
        drop(mirror);
        if is_restarted {
            continue;
        }
        let mirror = cluster.open();
        assert!([1, 2].contains(&cluster.read(&mirror, 9)));
        cluster.paths[1].cut.set(false);
        cluster.wait_in_sync(2);
        cluster.with(&mirror, async |device| device.flush().await.unwrap());
        cluster.assert_identical(&[0, 1]);
    }
}
