//! Devices with blocks that cannot be read leave a pool, or are replaced.

use std::time::Duration;

use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::{Pool, PoolError, ScrubOptions, Unreadable, Volume};
use pollux_reactor::{sleep, spawn};
use pollux_sim::{Fault, Operation, PowerLoss, SimDrive};

use crate::common::{Bench, Drives, TINY, new_volume, options, short_journal};
use crate::history::{BLOCK, data, value, value_of};

/// How long a read takes that is overtaken.
const LONG: Duration = Duration::from_millis(200);

/// Each block has a value of its own.
pub async fn written(volume: &Volume, blocks: u64) {
    for block in 0..blocks {
        volume.write(block, data(100 + block, 1), false).await.unwrap();
    }
    volume.flush().await.unwrap();
}

/// The place of a block with a value on a drive.
pub fn place_of(drive: &SimDrive, value: u64) -> u64 {
    let mut bytes = [0; BLOCK];
    let mut places = (0..TINY / BLOCK as u64).filter(|place| {
        drive.peek(place * BLOCK as u64, &mut bytes);
        value_of(&bytes) == Ok(value)
    });
    places.next_back().unwrap()
}

/// A device that leaves gives away all that can be read of it, and keeps the rest; that is an error to who
/// reads it, and once it is written anew the device can go.
async fn drain_with_bad_blocks(drives: Drives, with_snapshot: bool) {
    let (from, to) = (drives.0[0].clone(), drives.0[1].clone());
    let pool = Drives(vec![from.clone()]).pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    let blocks = 10 * 16;
    written(&volume, blocks).await;
    if with_snapshot {
        pool.snapshot("a", "s", 0).await.unwrap();
    }
    pool.checkpoint().await.unwrap();
    pool.add_device(to.clone().attach().await.unwrap(), false)
        .await
        .unwrap();
    let bad = [5, 7, 40];
    for block in bad {
        from.make_unreadable(place_of(&from, 100 + block), 1);
    }
    let drained = pool.drain_device(0, Unreadable::Stay, &mut |_| ()).await;
    assert!(
        matches!(drained, Err(PoolError::CannotCopy { number: 0, .. })),
        "{drained:?}"
    );
    // Asked for again it ends as before.
    let again = pool.drain_device(0, Unreadable::Stay, &mut |_| ()).await;
    assert!(matches!(again, Err(PoolError::CannotCopy { .. })), "{again:?}");
    pool.checkpoint().await.unwrap();
    assert!(pool.check().await.unwrap().is_sound());
    drop(volume);
    for drive in &drives.0 {
        drive.power_loss(PowerLoss::LoseAll);
    }
    drop(pool);
    let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
    let volume = pool.open_volume("a").unwrap();
    let reads = from.counters().reads;
    for block in 0..blocks {
        match bad.contains(&block) {
            true => assert_eq!(
                volume.read(block, Buffer::from_heap(BLOCK)).await.unwrap_err(),
                IoError::MediaRead
            ),
            false => assert_eq!(value(&volume, block, "moved").await, 100 + block),
        }
    }
    // Blocks beside bad ones stay with them.
    assert!(
        from.counters().reads - reads <= 32,
        "more was left than two extents"
    );
    let report = pool.scrub(ScrubOptions::default(), &mut |_| ()).await.unwrap();
    assert_eq!(report.bad_block_count, 3);
    for block in bad {
        volume.write(block, data(1000 + block, 1), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    if with_snapshot {
        let drained = pool.drain_device(0, Unreadable::Stay, &mut |_| ()).await;
        assert!(
            matches!(drained, Err(PoolError::CannotCopy { .. })),
            "{drained:?}"
        );
        pool.delete("s").await.unwrap();
        pool.reclaim().await.unwrap();
    }
    pool.drain_device(0, Unreadable::Stay, &mut |_| ()).await.unwrap();
    assert_eq!(pool.devices().len(), 1);
    for block in 0..blocks {
        let expected = 100 + block + if bad.contains(&block) { 900 } else { 0 };
        assert_eq!(value(&volume, block, "drained").await, expected);
    }
    assert!(pool.check().await.unwrap().is_sound());
}

#[test]
fn a_device_with_bad_blocks_gives_away_all_that_can_be_read() {
    for seed in 0..2 {
        let bench = Bench::of_sizes(seed, &[TINY, TINY]);
        bench.run(move |drives| drain_with_bad_blocks(drives, seed == 1));
    }
}

/// What cannot be read once, and then can, keeps no device.
#[test]
fn an_error_that_goes_away_keeps_no_device() {
    for nth in 1..40 {
        for is_replaced in [false, true] {
            let bench = Bench::of_sizes(nth, &[TINY, TINY]);
            bench.run(move |drives| async move {
                let (from, to) = (drives.0[0].clone(), drives.0[1].clone());
                let pool = Drives(vec![from.clone()]).pool(&short_journal()).await;
                let volume = new_volume(&pool, "a", 1 << 12).await;
                written(&volume, 10 * 16).await;
                let to = to.attach().await.unwrap();
                let fault = Fault::Error(IoError::MediaRead);
                if is_replaced {
                    from.fail_nth(Operation::Read, nth, fault);
                    pool.replace_device(0, to, false, &mut |_| ()).await.unwrap();
                } else {
                    pool.add_device(to, false).await.unwrap();
                    from.fail_nth(Operation::Read, nth, fault);
                    pool.drain_device(0, Unreadable::Stay, &mut |_| ()).await.unwrap();
                }
                from.heal();
                for block in 0..10 * 16 {
                    assert_eq!(value(&volume, block, "moved").await, 100 + block);
                }
                assert!(pool.check().await.unwrap().is_sound());
            });
        }
    }
}

/// A read of a scrub takes so long that what it looks at is deleted, and others write where it was.
async fn scrub_and_delete(drives: Drives, nth: u64, is_snapshot: bool) {
    let pool = drives.pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    written(&volume, 10 * 16).await;
    if is_snapshot {
        pool.snapshot("a", "s", 0).await.unwrap();
        for block in 0..10 {
            volume.write(block * 16, data(7, 16), false).await.unwrap();
        }
    }
    drop(volume);
    let other = new_volume(&pool, "b", 1 << 12).await;
    pool.checkpoint().await.unwrap();
    drives.0[0].fail_nth(Operation::Read, nth, Fault::Delay(LONG));
    let scrubbed = pool.clone();
    let scrubbing = spawn(async move { scrubbed.scrub(ScrubOptions::default(), &mut |_| ()).await });
    sleep(LONG / 4).await;
    pool.delete(if is_snapshot { "s" } else { "a" }).await.unwrap();
    pool.reclaim().await.unwrap();
    for _ in 0..2 {
        pool.checkpoint().await.unwrap();
    }
    let mut slots = 0;
    while slots < 200 && other.write(slots * 16, data(8, 16), false).await.is_ok() {
        slots += 1;
    }
    assert!((10..200).contains(&slots), "{slots}");
    let report = scrubbing.await.unwrap();
    assert_eq!(
        (report.bad_block_count, report.lost_pages),
        (0, 0),
        "read {nth}, snapshot: {is_snapshot}"
    );
    assert_eq!(report.repaired_pages, 0, "read {nth}, snapshot: {is_snapshot}");
}

#[test]
fn a_scrub_tells_no_bad_blocks_of_what_is_deleted_meanwhile() {
    for nth in 1..60 {
        for is_snapshot in [false, true] {
            Bench::of_sizes(nth, &[TINY]).run(move |drives| scrub_and_delete(drives, nth, is_snapshot));
        }
    }
}
