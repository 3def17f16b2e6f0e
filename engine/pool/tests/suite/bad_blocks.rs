//! Devices with blocks that cannot be read leave a pool, or are replaced.

use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::{Pool, PoolError, ScrubOptions, Volume};
use pollux_sim::{Fault, Operation, PowerLoss, SimDrive};

use crate::common::{Bench, Drives, TINY, new_volume, options, short_journal};
use crate::history::{BLOCK, data, value, value_of};

/// Each block has a value of its own.
async fn written(volume: &Volume, blocks: u64) {
    for block in 0..blocks {
        volume.write(block, data(100 + block, 1), false).await.unwrap();
    }
    volume.flush().await.unwrap();
}

/// The place of a block with a value on a drive.
fn place_of(drive: &SimDrive, value: u64) -> u64 {
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
    let drained = pool.drain_device(0, &mut |_| ()).await;
    assert!(
        matches!(drained, Err(PoolError::CannotCopy { number: 0, .. })),
        "{drained:?}"
    );
    // Asked for again it ends as before.
    let again = pool.drain_device(0, &mut |_| ()).await;
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
        let drained = pool.drain_device(0, &mut |_| ()).await;
        assert!(
            matches!(drained, Err(PoolError::CannotCopy { .. })),
            "{drained:?}"
        );
        pool.delete("s").await.unwrap();
        pool.reclaim().await.unwrap();
    }
    pool.drain_device(0, &mut |_| ()).await.unwrap();
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
                    pool.drain_device(0, &mut |_| ()).await.unwrap();
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
