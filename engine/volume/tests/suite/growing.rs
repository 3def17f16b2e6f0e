//! Volumes that are to become larger, and do not, or are not waited for.

use std::rc::Rc;
use std::time::Duration;

use pollux_reactor::timeout;
use pollux_volume::mirror::Mirror;

use crate::common::{BLOCKS, Cluster, REGION, on_pools};

/// More than a drive has room for.
const TOO_LARGE: u64 = 1 << 20;

fn grow(cluster: &Cluster, mirror: &Rc<Mirror>, size_blocks: u64) -> bool {
    let mirror = mirror.clone();
    let growing = async move { mirror.grow(size_blocks).await };
    cluster.world.block_on(cluster.reactor, growing).is_ok()
}

#[test]
fn a_replica_that_cannot_grow_comes_back_to_a_volume_that_has_not_grown() {
    let cluster = Cluster::new(1, 2);
    let mirror = Rc::new(cluster.open());
    assert!(!grow(&cluster, &mirror, TOO_LARGE));
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    assert_eq!(cluster.in_sync(), 1);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
}

/// Whoever wants it asks again and again.
#[test]
fn a_volume_that_cannot_grow_goes_on_with_a_resync() {
    let cluster = Cluster::new(3, 2);
    let mirror = Rc::new(cluster.open());
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, 9, 7);
    cluster.paths[0].reads_hang.set(true);
    cluster.paths[1].cut.set(false);
    cluster.world.run_for(Duration::from_secs(1));
    assert!(!grow(&cluster, &mirror, TOO_LARGE));
    cluster.paths[0].reads_hang.set(false);
    cluster.wait_in_sync(2);
    assert_eq!(mirror.counters().failures, 1);
}

/// Nobody waits for it any more when the store gets to know: the volume is as large as the record says, and
/// so is whoever comes back, whatever else fails meanwhile.
#[test]
fn a_volume_that_has_grown_is_served_as_large_whoever_waits() {
    let cluster = on_pools(2, 2);
    let mirror = Rc::new(cluster.open());
    cluster.store.away.set(true);
    let growing = mirror.clone();
    cluster.world.block_on(cluster.reactor, async move {
        let growing = growing.grow(BLOCKS + 4 * REGION);
        assert!(timeout(Duration::from_secs(1), growing).await.is_err());
    });
    // This one comes to nothing, as a replica does not answer.
    cluster.paths[1].commands_fail.set(true);
    assert!(!grow(&cluster, &mirror, BLOCKS + REGION));
    cluster.paths[1].commands_fail.set(false);
    cluster.store.away.set(false);
    cluster.world.run_for(Duration::from_secs(1));
    assert_eq!(mirror.membership().size_blocks, BLOCKS + 4 * REGION);
    assert_eq!(mirror.device().geometry().blocks, BLOCKS + 4 * REGION);
    cluster.paths[1].cut.set(true);
    cluster.write(&mirror, BLOCKS + 3 * REGION, 7);
    cluster.paths[1].cut.set(false);
    cluster.wait_in_sync(2);
    drop(mirror);
    cluster.paths[0].cut.set(true);
    assert_eq!(cluster.read(&cluster.open(), BLOCKS + 3 * REGION), 7);
}
