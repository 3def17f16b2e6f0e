//! Blocks that the pool of a replica has found bad are written anew from another replica, though nobody reads
//! them there.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::Device;
use pollux_pool::{Pool, PoolOptions, ScrubOptions};
use pollux_sim::SimDriveOptions;

use crate::common::{BLOCK, Cluster};

const DRIVE_BYTES: u64 = 16 << 20;

/// Longer than the hosts are not asked.
const A_WHILE: Duration = Duration::from_secs(130);

/// Does something with the pool of a replica whose host is away, and exports it.
fn with_pool<T: 'static>(
    cluster: &Cluster,
    index: usize,
    act: impl AsyncFnOnce(Rc<Pool>) -> T + 'static,
) -> T {
    cluster.stop_host(index);
    let drive = cluster.drives[index].clone();
    cluster.world.block_on(cluster.reactor, async move {
        let queue = drive.attach().await.unwrap();
        let (pool, _) = Pool::import(vec![queue], PoolOptions::default()).await.unwrap();
        let done = act(pool.clone()).await;
        pool.export().await.unwrap();
        done
    })
}

/// Flips a bit of what a drive has of blocks that are one byte over and over, and scrubs its pool.
fn spoil_and_scrub(cluster: &Cluster, index: usize, bytes: &[u8]) {
    // In good order: an import after a crash takes what does not match in some regions for newer data.
    with_pool(cluster, index, async |_| ());
    let drive = &cluster.drives[index];
    let mut data = vec![0; BLOCK];
    for at in (0..DRIVE_BYTES).step_by(BLOCK) {
        drive.peek(at, &mut data);
        if bytes.contains(&data[0]) && data.iter().all(|found| *found == data[0]) {
            drive.flip_bit(at + 77, 3);
        }
    }
    assert_eq!(scrub(cluster, index), bytes.len() as u64);
}

/// How many bad blocks the pool of a replica has.
fn scrub(cluster: &Cluster, index: usize) -> u64 {
    let report = with_pool(cluster, index, async |pool| {
        pool.scrub(ScrubOptions::default(), &mut |_| ()).await.unwrap()
    });
    cluster.start_host(index);
    report.bad_block_count
}

fn cluster_with_data(seed: u64) -> Cluster {
    let drive = SimDriveOptions::new(DRIVE_BYTES, BLOCK as u32).unwrap();
    let cluster = Cluster::on(seed, 3, drive, true);
    let mirror = cluster.open();
    for block in 0..40 {
        cluster.write(&mirror, block, 1 + block as u8);
    }
    // Until no region has an intent, of which the next target would compare everything.
    cluster.world.run_for(A_WHILE);
    drop(mirror);
    cluster
}

#[test]
fn what_a_scrub_finds_is_written_anew_from_another_replica() {
    let cluster = cluster_with_data(1);
    // Of a replica that nobody reads from, and of the one that all is read from.
    for index in [1, 0] {
        spoil_and_scrub(&cluster, index, &[7, 8, 30]);
        let mirror = cluster.open();
        cluster.wait_in_sync(3);
        assert_eq!(mirror.counters().repairs, 0);
        cluster.world.run_for(A_WHILE);
        assert_eq!(mirror.counters().repairs, 3, "replica {index}");
        // Told again they are good, and nothing happens.
        cluster.world.run_for(3 * A_WHILE);
        assert_eq!(mirror.counters().repairs, 3, "replica {index}");
        for block in 0..40 {
            assert_eq!(cluster.read(&mirror, block), 1 + block as u8);
        }
        drop(mirror);
        assert_eq!(scrub(&cluster, index), 0, "replica {index}");
    }
}

/// Nobody has it any more: it stays an error, and nobody is out for it.
#[test]
fn what_is_bad_on_all_replicas_stays_so() {
    let cluster = cluster_with_data(2);
    for index in 0..3 {
        spoil_and_scrub(&cluster, index, &[9]);
    }
    let mirror = cluster.open();
    cluster.wait_in_sync(3);
    cluster.world.run_for(4 * A_WHILE);
    assert_eq!(cluster.in_sync(), 3);
    assert_eq!(mirror.counters().failures, 0);
    assert_eq!(cluster.read(&mirror, 7), 8);
    cluster.write(&mirror, 8, 9);
    assert_eq!(cluster.read(&mirror, 8), 9);
}
