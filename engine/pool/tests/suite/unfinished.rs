//! Writes that are at the drive when something else happens to the pool: whatever becomes of them, a block is
//! what it was or what was to be there, and can be read.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDeviceExt, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, Volume, VolumeOptions};
use pollux_reactor::{sleep, spawn};
use pollux_sim::{Fault, Operation, SimDrive, SimDriveOptions};

use crate::common::{Bench, DRIVE_BYTES, Drives, options};
use crate::history::{BLOCK, data, value_of};

/// How long the write takes that is at the drive.
const LONG: Duration = Duration::from_millis(200);

/// The smallest device: 64 extents.
const TINY: u64 = 64 * 65536;

/// A drive that takes its time, so that requests are waited for.
fn bench(seed: u64, bytes: u64) -> Bench {
    let mut bench = Bench::new(seed, 1);
    let options = SimDriveOptions::new(bytes, 4096).unwrap();
    bench.drives = Drives(vec![SimDrive::new("drive", options, seed)]);
    bench
}

async fn value(volume: &Volume, block: u64, what: &str) -> u64 {
    let read = volume.read(block, Buffer::from_heap(BLOCK)).await;
    let bytes = read.unwrap_or_else(|error| panic!("{what}: {error}"));
    value_of(&bytes).unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

/// Blocks that were written and flushed, and one more write of the first of them: their intent is durable.
async fn overwritten(pool: &Rc<Pool>, volume: &Volume) {
    volume.write(0, data(1, 16), false).await.unwrap();
    volume.flush().await.unwrap();
    volume.write(0, data(2, 1), false).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(pool.stopped(), None);
}

async fn export_beside_a_write(drives: Drives) {
    let create = CreateOptions::default();
    let pool = Pool::create("tank", drives.attach().await, &create, options())
        .await
        .unwrap();
    pool.create_volume("a", &VolumeOptions::new(64)).await.unwrap();
    let volume = pool.open_volume("a").unwrap();
    overwritten(&pool, &volume).await;
    drives.0[0].fail_nth(Operation::Write, 1, Fault::Delay(LONG));
    let writing = volume.clone();
    let writing = spawn(async move { writing.write(0, data(3, 1), false).await });
    sleep(LONG / 4).await;
    pool.export().await.unwrap();
    let written = writing.await;
    drop((volume, pool));
    let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
    let found = value(&pool.open_volume("a").unwrap(), 0, "imported").await;
    let legal: &[u64] = if written.is_ok() { &[3] } else { &[2, 3] };
    assert!(legal.contains(&found), "{found} after {written:?}");
}

#[test]
fn what_is_being_overwritten_when_a_pool_is_exported_can_be_read() {
    bench(1, DRIVE_BYTES).run(export_beside_a_write);
}

/// Overwrites a block of each of some slots of a full pool side by side, some with FUA, again and again; with
/// snapshots cut meanwhile, for which there is no room beside the writes.
async fn overwrite_side_by_side(drives: Drives, seed: u64, with_snapshots: bool) {
    let create = CreateOptions {
        journal_bytes: 1,
        ..CreateOptions::default()
    };
    let pool = Pool::create("tank", drives.attach().await, &create, options())
        .await
        .unwrap();
    pool.create_volume("a", &VolumeOptions::new(1 << 12))
        .await
        .unwrap();
    let volume = pool.open_volume("a").unwrap();
    let mut slots = 0;
    loop {
        match volume.write(slots * 16, data(1, 1), false).await {
            Ok(()) => slots += 1,
            Err(IoError::CapacityExceeded) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(slots > 20, "{slots}");
    let mut values = vec![1; slots as usize];
    for round in 2..10 {
        let mut writing = Vec::new();
        for slot in 0..slots {
            let volume = volume.clone();
            let force_unit_access = (slot + round) % 3 == seed % 3;
            writing.push(spawn(async move {
                volume.write(slot * 16, data(round, 1), force_unit_access).await
            }));
        }
        if with_snapshots {
            pool.snapshot("a", "s", 0).await.unwrap();
        }
        for (slot, writing) in (0..slots).zip(writing) {
            let written = writing.await;
            let what = format!("seed {seed}, round {round}, slot {slot}, {written:?}");
            let found = value(&volume, slot * 16, &what).await;
            let before = std::mem::replace(&mut values[slot as usize], found);
            assert!(
                found == round || written.is_err() && found == before,
                "{what}: {found}"
            );
            assert!(written.is_ok() || with_snapshots, "{what}");
        }
        if with_snapshots {
            pool.delete("s").await.unwrap();
            pool.reclaim().await.unwrap();
        }
    }
    assert!(pool.check().await.unwrap().is_sound());
}

#[test]
fn a_full_pool_is_overwritten_side_by_side() {
    for seed in 0..6 {
        bench(seed, TINY).run(move |drives| overwrite_side_by_side(drives, seed, seed >= 3));
    }
}
