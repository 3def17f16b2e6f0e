//! Writes that the drive says have failed, though it did all of them, some or none: what was overwritten is
//! what was there before or what was to be there, and can be read, also from a snapshot that is cut before
//! anything is written anew.

use std::collections::{BTreeMap, BTreeSet};

use pollux_device::{BlockDeviceExt, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, Volume};
use pollux_sim::{Fault, Operation, SimDrive, SimDriveOptions};

use crate::common::{Bench, DRIVE_BYTES, Drives, new_volume, options};
use crate::history::{BLOCK, data, value_of};

/// Blocks that are used: three slots and a half.
const USED: u64 = 56;

/// What may be in the blocks of a volume.
type Legal = BTreeMap<u64, BTreeSet<u64>>;

/// Reads all blocks; what is in them is all that they may hold from then on.
async fn check(volume: &Volume, legal: &mut Legal, what: &str) {
    for block in 0..USED {
        let read = volume.read(block, Buffer::from_heap(BLOCK)).await;
        let bytes = read.unwrap_or_else(|error| panic!("{what}: block {block}: {error}"));
        let value = value_of(&bytes).unwrap_or_else(|error| panic!("{what}: block {block}: {error:?}"));
        assert!(
            legal[&block].contains(&value),
            "{what}: block {block}: {value} of {:?}",
            legal[&block]
        );
        legal.insert(block, [value].into());
    }
}

/// How many writes failed.
async fn fail_writes(drives: Drives, seed: u64, mut random: pollux_sim::Random) -> u64 {
    let pool = drives.pool(&CreateOptions::default()).await;
    let volume = new_volume(&pool, "a", 64).await;
    volume.write(0, data(1, USED), false).await.unwrap();
    volume.flush().await.unwrap();
    let mut legal: Legal = (0..USED).map(|block| (block, [1].into())).collect();
    let mut failed = 0;
    for value in 2..40 {
        let first = random.below(USED);
        let blocks = random.within(1..=24).min(USED - first);
        // Fresh extents, and the intent of the region, are there by then: what fails is the data.
        for _ in 0..2 {
            volume
                .write(first, data(value * 100, blocks), false)
                .await
                .unwrap();
            volume.flush().await.unwrap();
        }
        drives.0[0].fail_nth(Operation::Write, 1, Fault::Error(IoError::MediaWrite));
        let written = volume.write(first, data(value, blocks), false).await;
        failed += u64::from(written.is_err());
        for block in first..first + blocks {
            let mut values: BTreeSet<u64> = [value].into();
            if written.is_err() {
                values.insert(value * 100);
            }
            legal.insert(block, values);
        }
        let what = format!("seed {seed}, write {value} of {blocks} from {first}");
        if random.chance(0.5) {
            check(&volume, &mut legal, &what).await;
        }
        pool.snapshot("a", "s", 0).await.unwrap();
        check(
            &pool.open_volume("s").unwrap(),
            &mut legal,
            &format!("{what}, snapshot"),
        )
        .await;
        check(&volume, &mut legal, &what).await;
        pool.delete("s").await.unwrap();
    }
    drop(volume);
    drop(pool);
    let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
    check(&pool.open_volume("a").unwrap(), &mut legal, "imported").await;
    failed
}

#[test]
fn a_block_whose_write_failed_can_be_read() {
    let mut failed = 0;
    for seed in 0..20 {
        let mut bench = Bench::new(seed, 1);
        if seed % 2 == 1 {
            // One that takes its time, so that requests are waited for.
            let options = SimDriveOptions::new(DRIVE_BYTES, 4096).unwrap();
            bench.drives = Drives(vec![SimDrive::new("drive", options, seed)]);
        }
        let random = bench.world.random("writes", 0);
        failed += bench.run(move |drives| fail_writes(drives, seed, random));
    }
    assert!(failed > 300, "{failed} writes failed");
}

/// Whoever looks after pools hears of it at once: nothing that is written is durable any more.
#[test]
fn a_pool_whose_journal_cannot_be_written_is_stopped() {
    Bench::new(1, 1).run(async |drives| {
        let pool = drives.pool(&CreateOptions::default()).await;
        let volume = new_volume(&pool, "a", 64).await;
        volume.write(0, data(1, 4), false).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(pool.stopped(), None);
        // The data is on the drive, and the record of it cannot get there.
        volume.write(16, data(2, 4), false).await.unwrap();
        drives.0[0].fail_nth(Operation::Write, 1, Fault::Error(IoError::MediaWrite));
        assert_eq!(volume.flush().await, Err(IoError::MediaWrite));
        assert_eq!(pool.stopped(), Some(IoError::MediaWrite));
    });
}
