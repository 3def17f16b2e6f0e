//! What a scrub finds, and what it repairs.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::{Bench, DRIVE_BYTES, options};
use pollux_device::BlockDeviceExt;
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, LostBlock, Pool, ScrubOptions, ScrubReport, VolumeOptions};
use pollux_sim::SimDrive;

const BLOCK: usize = 4096;

fn data(value: u8, blocks: usize) -> Buffer {
    let mut data = Buffer::from_heap(blocks * BLOCK);
    data.fill(value);
    data
}

/// Places of a drive that hold a block of one value.
fn places_of(drive: &SimDrive, value: u8) -> Vec<u64> {
    let mut block = [0; BLOCK];
    (0..DRIVE_BYTES)
        .step_by(BLOCK)
        .filter(|place| {
            drive.peek(*place, &mut block);
            block.iter().all(|byte| *byte == value)
        })
        .collect()
}

/// Places of a drive that hold a page.
fn pages(drive: &SimDrive) -> Vec<u64> {
    let mut block = [0; BLOCK];
    (0..DRIVE_BYTES)
        .step_by(BLOCK)
        .filter(|place| {
            drive.peek(*place, &mut block);
            block.starts_with(b"PLXPAGE")
        })
        .collect()
}

async fn scrub(pool: &Rc<Pool>) -> ScrubReport {
    let mut told = 0;
    let report = pool
        .scrub(ScrubOptions::default(), &mut |_| told += 1)
        .await
        .unwrap();
    assert!(told > 0);
    report
}

#[test]
fn a_sound_pool_is_read_once_whatever_its_snapshots_share() {
    let bench = Bench::new(1, 2);
    bench.run(|drives| async move {
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options())
            .await
            .unwrap();
        pool.create_volume("a", &VolumeOptions::new(500)).await.unwrap();
        let plain = VolumeOptions {
            checksums: false,
            ..VolumeOptions::new(100)
        };
        pool.create_volume("plain", &plain).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        volume.write(3, data(1, 200), false).await.unwrap();
        pool.snapshot("a", "s", 0).await.unwrap();
        pool.clone_snapshot("s", "b", 0).await.unwrap();
        volume.write(100, data(2, 10), false).await.unwrap();
        pool.open_volume("plain")
            .unwrap()
            .write(0, data(3, 7), true)
            .await
            .unwrap();
        pool.checkpoint().await.unwrap();
        let report = scrub(&pool).await;
        assert_eq!((report.blocks, report.unchecked_blocks), (210, 7));
        assert_eq!(
            (report.bad_block_count, report.repaired_pages, report.lost_pages),
            (0, 0, 0)
        );
        assert!(report.pages > 10);
    });
}

#[test]
fn bad_blocks_are_told_and_bad_copies_of_pages_are_repaired() {
    let bench = Bench::new(2, 1);
    bench.run(|drives| async move {
        let drive = drives.0[0].clone();
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options())
            .await
            .unwrap();
        let entry = pool.create_volume("a", &VolumeOptions::new(500)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        volume.write(3, data(0x11, 200), false).await.unwrap();
        volume.write(77, data(0x22, 1), false).await.unwrap();
        volume.write(99, data(0x33, 1), false).await.unwrap();
        drop(volume);
        pool.export().await.unwrap();
        let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
        let flipped = places_of(&drive, 0x22);
        drive.flip_bit(flipped[0] + 1000, 3);
        let unreadable = places_of(&drive, 0x33);
        drive.make_unreadable(unreadable[0] / BLOCK as u64, 1);
        let told = |block| LostBlock {
            volume: entry.id,
            block,
        };
        let report = scrub(&pool).await;
        assert_eq!(report.bad_blocks, [told(77), told(99)]);
        assert_eq!(report.repaired_pages, 0);
        // Every page that is in use, one copy at a time: all of them are well again.
        let mut repaired = 0;
        for page in pages(&drive) {
            drive.flip_bit(page + 2000, 1);
            let report = scrub(&pool).await;
            assert_eq!(report.lost_pages, 0);
            repaired += report.repaired_pages;
            assert_eq!(scrub(&pool).await.repaired_pages, 0, "it was repaired");
        }
        assert!(repaired >= 16, "{repaired} copies were in use");
        assert!(pool.check().await.unwrap().is_sound());
        // What is written anew is good again.
        let volume = pool.open_volume("a").unwrap();
        volume.write(77, data(0x44, 1), false).await.unwrap();
        volume.write(99, data(0x44, 1), true).await.unwrap();
        assert_eq!(scrub(&pool).await.bad_block_count, 0);
    });
}

#[test]
fn the_limit_is_kept_and_writes_go_on_meanwhile() {
    let bench = Bench::new(3, 1);
    bench.run(|drives| async move {
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options())
            .await
            .unwrap();
        pool.create_volume("a", &VolumeOptions::new(1000)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        volume.write(0, data(1, 1000), true).await.unwrap();
        let begun = pollux_reactor::now();
        let scrubbed = pool.clone();
        let limit = ScrubOptions {
            bytes_per_second: 1 << 20,
        };
        let scrub = pollux_reactor::spawn(async move { scrubbed.scrub(limit, &mut |_| {}).await });
        for round in 0..200u64 {
            volume.write(round * 37 % 990, data(2, 5), false).await.unwrap();
            pollux_reactor::sleep(Duration::from_millis(15)).await;
            if round % 20 == 0 {
                pool.checkpoint().await.unwrap();
            }
        }
        let report = scrub.await.unwrap();
        assert_eq!(
            (report.bad_block_count, report.lost_pages, report.blocks),
            (0, 0, 1000)
        );
        let took = pollux_reactor::now() - begun;
        assert!(
            took >= Duration::from_millis(3900),
            "{took:?} for 4 MB at 1 MiB/s"
        );
    });
}
