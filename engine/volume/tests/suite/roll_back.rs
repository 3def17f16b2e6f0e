//! Going back to a snapshot: all of it or nothing, once, whoever crashes meanwhile.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use pollux_reactor::timeout;
use pollux_sim::PowerLoss;
use pollux_volume::membership::RollBack;
use pollux_volume::mirror::{Mirror, SnapshotError};
use uuid::Uuid;

use crate::common::{BLOCKS, Cluster, REGION, VOLUME, data, on_pools};

const SNAPSHOT: Uuid = Uuid::from_u128(0x5001);
const OTHER: Uuid = Uuid::from_u128(0x5002);

/// Blocks in several regions, of which some are no more than the snapshot has, and some are holes in it.
const USED: [u64; 6] = [0, 3, 9, 40, 41, BLOCKS - 1];

fn request(number: u128) -> Uuid {
    Uuid::from_u128(0x7000 + number)
}

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

async fn put(mirror: &Mirror, byte: u8, blocks: &[u64]) {
    for &block in blocks {
        mirror.device().write(block, data(byte), false).await.unwrap();
    }
}

/// What is in the blocks that are used, or why that is not told.
async fn look(device: &Rc<dyn BlockDevice>) -> Result<Vec<u8>, IoError> {
    let mut bytes = Vec::new();
    for block in USED {
        bytes.push(device.read(block, data(0)).await?[0]);
    }
    Ok(bytes)
}

/// A volume with a snapshot of ones in every second block, and twos everywhere since.
fn changed(cluster: &Cluster) -> Rc<Mirror> {
    let mirror = Rc::new(cluster.open());
    run(cluster, &mirror, async |mirror| {
        put(&mirror, 1, &[USED[0], USED[2], USED[4]]).await;
        mirror.snapshot(SNAPSHOT).await.unwrap();
        put(&mirror, 2, &USED).await;
        mirror.device().flush().await.unwrap();
    });
    mirror
}

const BEFORE: [u8; 6] = [2; 6];
const AFTER: [u8; 6] = [1, 0, 1, 0, 1, 0];

fn goes_back(cluster: &Cluster, mirror: &Rc<Mirror>, number: u128) -> Result<(), SnapshotError> {
    run(cluster, mirror, async move |mirror| {
        mirror.roll_back(request(number), SNAPSHOT).await
    })
}

fn seen(cluster: &Cluster, mirror: &Rc<Mirror>) -> Result<Vec<u8>, IoError> {
    run(cluster, mirror, async |mirror| look(&mirror.device()).await)
}

/// The roll-back as the store has it.
fn recorded(cluster: &Cluster) -> Option<RollBack> {
    cluster.store.inner.get(VOLUME).unwrap().roll_back
}

#[test]
fn it_is_done_once_under_a_name() {
    let cluster = on_pools(1, 2);
    let mirror = changed(&cluster);
    goes_back(&cluster, &mirror, 1).unwrap();
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
    run(&cluster, &mirror, async |mirror| {
        put(&mirror, 3, &USED).await;
        mirror.device().flush().await.unwrap();
    });
    goes_back(&cluster, &mirror, 1).unwrap();
    assert_eq!(seen(&cluster, &mirror).unwrap(), [3; 6], "asked twice");
    drop(mirror);
    let mirror = Rc::new(cluster.open());
    goes_back(&cluster, &mirror, 1).unwrap();
    assert_eq!(
        seen(&cluster, &mirror).unwrap(),
        [3; 6],
        "asked of the next target"
    );
    goes_back(&cluster, &mirror, 2).unwrap();
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
}

/// Reads of data do not end: a roll-back is begun, and comes to nothing.
fn stuck(cluster: &Cluster, mirror: &Rc<Mirror>) {
    cluster.paths.iter().for_each(|path| path.reads_hang.set(true));
    run(cluster, mirror, async |mirror| {
        let wait = Duration::from_secs(1);
        let going = mirror.roll_back(request(1), SNAPSHOT);
        assert!(timeout(wait, going).await.is_err());
    });
    assert!(recorded(cluster).is_some_and(|roll_back| !roll_back.is_done));
}

#[test]
fn nobody_uses_the_volume_meanwhile() {
    let cluster = on_pools(2, 2);
    let mirror = changed(&cluster);
    stuck(&cluster, &mirror);
    run(&cluster, &mirror, async |mirror| {
        let device = mirror.device();
        let not_ready = Some(IoError::NotReady);
        assert_eq!(device.read(0, data(0)).await.err(), not_ready);
        assert_eq!(device.write(0, data(4), false).await.err(), not_ready);
        assert_eq!(device.deallocate(0, 1).await.err(), not_ready);
        assert_eq!(mirror.snapshot(OTHER).await, Err(SnapshotError::RollingBack));
        assert_eq!(
            mirror.delete_snapshot(SNAPSHOT).await,
            Err(SnapshotError::RollingBack)
        );
    });
    assert_eq!(mirror.membership().snapshots.len(), 1);
    cluster.paths.iter().for_each(|path| path.reads_hang.set(false));
    goes_back(&cluster, &mirror, 1).unwrap();
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
    run(&cluster, &mirror, async |mirror| {
        mirror.snapshot(OTHER).await.unwrap();
        mirror.delete_snapshot(SNAPSHOT).await.unwrap();
    });
}

#[test]
fn how_far_it_is_is_told_until_it_is_done() {
    let cluster = on_pools(9, 2);
    let mirror = changed(&cluster);
    assert_eq!(mirror.roll_back_progress(), None);
    stuck(&cluster, &mirror);
    let size_bytes = mirror.device().geometry().bytes();
    let told = mirror.roll_back_progress().unwrap();
    assert_eq!((told.id, told.snapshot), (request(1), SNAPSHOT));
    assert_eq!((told.compared_bytes, told.size_bytes), (0, size_bytes));
    assert_eq!((told.bytes_per_second, told.time_left), (None, None));
    cluster.paths.iter().for_each(|path| path.reads_hang.set(false));
    let mut seen = vec![0];
    while let Some(told) = mirror.roll_back_progress() {
        assert!(told.compared_bytes >= seen[seen.len() - 1] && told.compared_bytes <= size_bytes);
        seen.push(told.compared_bytes);
        cluster.world.run_for(Duration::from_micros(10));
    }
    seen.dedup();
    assert!(seen.len() > 3 && seen.last() == Some(&size_bytes), "{seen:?}");
    assert!(recorded(&cluster).is_some_and(|roll_back| roll_back.is_done));
    // The next one is told from the start, as is that of another target.
    cluster.paths.iter().for_each(|path| path.reads_hang.set(true));
    run(&cluster, &mirror, async |mirror| {
        let wait = Duration::from_millis(10);
        let going = mirror.roll_back(request(2), SNAPSHOT);
        assert!(timeout(wait, going).await.is_err());
    });
    let told = mirror.roll_back_progress().unwrap();
    assert_eq!((told.id, told.compared_bytes), (request(2), 0));
    drop(mirror);
    let mirror = cluster.open();
    let told = mirror.roll_back_progress().unwrap();
    assert_eq!((told.id, told.compared_bytes), (request(2), 0));
}

#[test]
fn what_was_read_while_it_began_is_not_told() {
    let cluster = on_pools(3, 2);
    let mirror = changed(&cluster);
    cluster.paths.iter().for_each(|path| path.reads_hang.set(true));
    let device = mirror.device();
    let reading = async move { device.read(0, data(0)).await.map(|data| data[0]) };
    let reading = cluster.world.spawn(cluster.reactor, reading);
    cluster.world.run_for(Duration::from_millis(10));
    stuck(&cluster, &mirror);
    cluster.paths.iter().for_each(|path| path.reads_hang.set(false));
    goes_back(&cluster, &mirror, 1).unwrap();
    let read = cluster.world.block_on(cluster.reactor, reading);
    assert_eq!(read, Ok(Err(IoError::NotReady)));
}

#[test]
fn the_next_target_goes_on_with_it() {
    let cluster = on_pools(4, 3);
    let mirror = changed(&cluster);
    stuck(&cluster, &mirror);
    drop(mirror);
    cluster.paths.iter().for_each(|path| path.reads_hang.set(false));
    let mirror = Rc::new(cluster.open());
    // Nobody asks for it again.
    cluster.world.run_for(Duration::from_secs(2));
    assert!(recorded(&cluster).is_some_and(|roll_back| roll_back.is_done));
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
}

#[test]
fn another_snapshot_may_take_its_place() {
    let cluster = on_pools(5, 2);
    let mirror = changed(&cluster);
    run(&cluster, &mirror, async |mirror| mirror.snapshot(OTHER).await).unwrap();
    stuck(&cluster, &mirror);
    let waiting = mirror.clone();
    let waiting = cluster.world.spawn(cluster.reactor, async move {
        waiting.roll_back(request(1), SNAPSHOT).await
    });
    cluster.world.run_for(Duration::from_millis(1));
    cluster.paths.iter().for_each(|path| path.reads_hang.set(false));
    run(&cluster, &mirror, async |mirror| {
        mirror.roll_back(request(2), OTHER).await
    })
    .unwrap();
    assert_eq!(seen(&cluster, &mirror).unwrap(), BEFORE);
    let first = cluster.world.block_on(cluster.reactor, waiting);
    assert_eq!(first, Ok(Err(SnapshotError::SetChanged)));
}

#[test]
fn a_replica_that_is_away_gets_what_it_missed_and_brings_nothing_back() {
    let cluster = on_pools(6, 3);
    let mirror = changed(&cluster);
    cluster.paths[2].cut.set(true);
    goes_back(&cluster, &mirror, 1).unwrap();
    cluster.paths[2].cut.set(false);
    cluster.wait_in_sync(3);
    drop(mirror);
    // It alone.
    cluster.paths[0].cut.set(true);
    cluster.paths[1].cut.set(true);
    let mirror = Rc::new(cluster.open());
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
}

#[test]
fn a_snapshot_that_one_replica_cannot_read_is_read_from_another() {
    let cluster = on_pools(7, 2);
    let mirror = changed(&cluster);
    // The local one, which is asked first.
    cluster.paths[0].reads_hang.set(true);
    goes_back(&cluster, &mirror, 1).unwrap();
    cluster.paths[0].reads_hang.set(false);
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
}

#[test]
fn a_volume_that_grew_has_zeros_behind_what_the_snapshot_has() {
    let cluster = on_pools(8, 2);
    let mirror = changed(&cluster);
    run(&cluster, &mirror, async |mirror| {
        mirror.grow(BLOCKS + REGION).await.unwrap();
        put(&mirror, 2, &[BLOCKS, BLOCKS + REGION - 1]).await;
    });
    goes_back(&cluster, &mirror, 1).unwrap();
    run(&cluster, &mirror, async |mirror| {
        for block in [BLOCKS, BLOCKS + REGION - 1] {
            assert_eq!(mirror.device().read(block, data(9)).await.unwrap()[0], 0);
        }
    });
    assert_eq!(seen(&cluster, &mirror).unwrap(), AFTER);
}

/// The target ends after any time, and with it every drive may lose its power: the volume is as it was, or as
/// the snapshot has it. What is read in between is one or the other.
#[test]
fn a_crash_at_any_moment_ends_in_all_or_nothing() {
    let mut ends = [0, 0];
    for step in 0..60_u64 {
        let cluster = on_pools(100 + step, 2);
        let mirror = changed(&cluster);
        let going = mirror.clone();
        let going = cluster.world.spawn(cluster.reactor, async move {
            going.roll_back(request(1), SNAPSHOT).await
        });
        cluster.world.run_for(Duration::from_micros(step * step * 6));
        mirror.close();
        drop((going, mirror));
        if step % 2 == 0 {
            for (index, drive) in cluster.drives.iter().enumerate() {
                drive.power_loss(PowerLoss::LoseAll);
                cluster.start_host(index);
            }
        }
        if step % 3 == 0 {
            cluster.paths[1].cut.set(true);
        }
        let begun = recorded(&cluster).is_some();
        let expected = if begun { AFTER } else { BEFORE };
        ends[usize::from(begun)] += 1;
        let mirror = Rc::new(cluster.open());
        let found = loop {
            match seen(&cluster, &mirror) {
                Ok(found) => break found,
                Err(error) => assert_eq!(error, IoError::NotReady, "step {step}"),
            }
            cluster.world.run_for(Duration::from_micros(100));
        };
        assert_eq!(found, expected, "step {step}");
        cluster.paths[1].cut.set(false);
        cluster.wait_in_sync(2);
        drop(mirror);
        cluster.paths[0].cut.set(true);
        let mirror = Rc::new(cluster.open());
        cluster.world.run_for(Duration::from_secs(1));
        assert_eq!(
            seen(&cluster, &mirror).unwrap(),
            expected,
            "step {step}, the other replica"
        );
    }
    assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
}
