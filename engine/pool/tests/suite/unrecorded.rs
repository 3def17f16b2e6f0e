//! A power cut that keeps what was written and loses the records of it: what the pool has to have made sure
//! of before it wrote.

use std::rc::Rc;

use pollux_device::{BlockDeviceExt, ZeroOptions};
use pollux_pool::{CreateOptions, Pool, Volume};
use pollux_sim::PowerLoss;

use crate::common::{Bench, Drives, new_volume, options};
use crate::history::{data, value};

/// A volume with a slot that is written, and more than once: its intent is known.
async fn make(drives: &Drives) -> (Rc<Pool>, Rc<Volume>) {
    let pool = drives.pool(&CreateOptions::default()).await;
    let volume = new_volume(&pool, "a", 64).await;
    for value in 1..4 {
        volume.write(0, data(value, 16), false).await.unwrap();
        volume.write(5, data(10 * value, 1), false).await.unwrap();
        volume.flush().await.unwrap();
    }
    (pool, volume)
}

/// What is in block 5 after the power cut.
async fn cut(drives: &Drives, opened: (Rc<Pool>, Rc<Volume>), what: &str) -> u64 {
    drives.0[0].power_loss(PowerLoss::KeepAll);
    drop(opened);
    let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
    let volume = pool.open_volume("a").unwrap();
    value(&volume, 5, what).await
}

async fn overwrite(drives: Drives, checkpoints: u32) {
    let (pool, volume) = make(&drives).await;
    for _ in 0..checkpoints {
        pool.checkpoint().await.unwrap();
    }
    // Its slot has the same leaf, which can be changed then, and this needs no intent.
    volume.write(40, data(7, 1), false).await.unwrap();
    volume.write(5, data(99, 1), false).await.unwrap();
    let what = format!("after {checkpoints} checkpoints");
    let value = cut(&drives, (pool, volume), &what).await;
    assert!([30, 99].contains(&value), "{what}: {value}");
}

#[test]
fn what_is_overwritten_can_be_read_after_any_number_of_checkpoints() {
    for checkpoints in 0..5 {
        Bench::new(checkpoints.into(), 1).run(|drives| overwrite(drives, checkpoints));
    }
}

async fn write_to_emptied(drives: Drives, with_zeroes: bool, checkpoints: u32) {
    let (pool, volume) = make(&drives).await;
    // Where a region has an intent, whatever is found in it is taken.
    for _ in 0..checkpoints {
        pool.checkpoint().await.unwrap();
    }
    if with_zeroes {
        let options = ZeroOptions {
            may_deallocate: true,
            ..ZeroOptions::default()
        };
        volume.write_zeroes(5, 1, options).await.unwrap();
    } else {
        volume.deallocate(5, 1).await.unwrap();
    }
    volume.write(5, data(99, 1), false).await.unwrap();
    let what = format!("emptied after {checkpoints} checkpoints");
    let value = cut(&drives, (pool, volume), &what).await;
    assert!([0, 30, 99].contains(&value), "{what}: {value}");
}

#[test]
fn what_is_written_where_a_place_was_emptied_can_be_read() {
    for with_zeroes in [false, true] {
        for checkpoints in 0..5 {
            Bench::new(checkpoints.into(), 1)
                .run(|drives| write_to_emptied(drives, with_zeroes, checkpoints));
        }
    }
}
