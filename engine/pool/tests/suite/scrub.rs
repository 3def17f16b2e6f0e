//! What a scrub finds, and what it repairs.

use std::rc::Rc;
use std::time::Duration;

use crate::common::{Bench, DRIVE_BYTES, new_volume, options};
use pollux_device::BlockDeviceExt;
use pollux_hugepages::Buffer;
use pollux_pool::layout::scrub::ScrubState;
use pollux_pool::{
    CreateOptions, LostBlock, Pool, PoolError, PoolOptions, ScrubOptions, ScrubReport, VolumeOptions,
};
use pollux_sim::{PowerLoss, SimDrive};

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
        let pool = drives.pool(&CreateOptions::default()).await;
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
        let pool = drives.pool(&CreateOptions::default()).await;
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
        let pool = drives.pool(&CreateOptions::default()).await;
        let volume = new_volume(&pool, "a", 1000).await;
        volume.write(0, data(1, 1000), true).await.unwrap();
        let begun = pollux_reactor::now();
        let scrubbed = pool.clone();
        let limit = ScrubOptions {
            bytes_per_second: 1 << 20,
            ..ScrubOptions::default()
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

fn opened_at(seconds: u64) -> PoolOptions {
    PoolOptions {
        opened_seconds: seconds,
        ..options()
    }
}

/// One that is interrupted goes on where the last checkpoint has it, after an export or a power cut, and
/// counts every block once; what it found is remembered.
#[test]
fn an_interrupted_scrub_goes_on_and_the_last_report_is_kept() {
    for exported in [true, false] {
        let bench = Bench::new(4, 1);
        bench.run(move |drives| async move {
            let drive = drives.0[0].clone();
            let create = CreateOptions::default();
            let pool = Pool::create("tank", drives.attach().await, &create, opened_at(1_000_000))
                .await
                .unwrap();
            assert_eq!(pool.last_scrub().state, ScrubState::Never);
            let mut volumes = Vec::new();
            for (name, value) in [("a", 1), ("b", 2), ("c", 3)] {
                let entry = pool.create_volume(name, &VolumeOptions::new(1000)).await.unwrap();
                volumes.push(entry.id);
                let volume = pool.open_volume(name).unwrap();
                volume.write(0, data(value, 1000), true).await.unwrap();
            }
            pool.checkpoint().await.unwrap();
            let bad = places_of(&drive, 1);
            drive.flip_bit(bad[5] + 100, 1);
            let slow = ScrubOptions {
                bytes_per_second: 4 << 20,
                ..ScrubOptions::default()
            };
            let scrubbed = pool.clone();
            let scrub_task = pollux_reactor::spawn(async move { scrubbed.scrub(slow, &mut |_| {}).await });
            let is_at = |volume_wanted: u64| match pool.last_scrub().state {
                ScrubState::UnderWay { volume, .. } => volume == volume_wanted,
                ScrubState::Never | ScrubState::Ended { .. } => false,
            };
            while !is_at(volumes[1]) {
                pollux_reactor::sleep(Duration::from_millis(10)).await;
            }
            let other = pool.scrub(slow, &mut |_| {}).await;
            assert!(
                matches!(other, Err(PoolError::Busy { .. })),
                "one at a time: {other:?}"
            );
            drop(scrub_task);
            pollux_reactor::yield_now().await;
            let kept = pool.last_scrub();
            if exported {
                pool.export().await.unwrap();
            } else {
                pool.checkpoint().await.unwrap();
                drop(pool);
                drive.power_loss(PowerLoss::LoseAll);
                drive.restore();
            }
            let (pool, _) = Pool::import(drives.attach().await, opened_at(2_000_000))
                .await
                .unwrap();
            assert_eq!(pool.last_scrub(), kept);
            assert_eq!((kept.started_seconds, kept.bad_block_count), (1_000_000, 1));
            assert!(kept.blocks >= 1000 && kept.blocks < 3000, "{kept:?}");
            let mut first = None;
            let report = pool
                .scrub(ScrubOptions::default(), &mut |progress| {
                    first.get_or_insert(progress);
                })
                .await
                .unwrap();
            assert_eq!((report.blocks, report.bad_block_count), (3000, 1));
            assert!(first.unwrap().volumes_done >= 1);
            drop(pool);
            let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
            let last = pool.last_scrub();
            assert_eq!(last.state, ScrubState::Ended { seconds: 2_000_000 });
            assert_eq!((last.blocks, last.bad_block_count), (3000, 1));
            assert_eq!(last.bad_blocks[0].0, volumes[0]);
            // The next one begins at the beginning.
            assert_eq!(scrub(&pool).await.blocks, 3000);
        });
    }
}

/// With an interval, a scrub begins when the last one is long enough ago, whatever was restarted meanwhile.
#[test]
fn scrubs_begin_by_themselves() {
    let bench = Bench::new(5, 1);
    bench.run(|drives| async move {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let options = |opened_seconds| PoolOptions {
            background: true,
            scrub_interval: minutes(20),
            opened_seconds,
            ..options()
        };
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options(1000)).await;
        let pool = pool.unwrap();
        pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
        pollux_reactor::sleep(minutes(5)).await;
        let ended_at = |pool: &Rc<Pool>| match pool.last_scrub().state {
            ScrubState::Ended { seconds } => seconds,
            state => panic!("{state:?}"),
        };
        let first = ended_at(&pool);
        assert!((1000..1100).contains(&first), "the first one at once: {first}");
        pollux_reactor::sleep(minutes(14)).await;
        assert_eq!(ended_at(&pool), first, "not yet");
        pool.export().await.unwrap();
        let exported = Rc::downgrade(&pool);
        drop(pool);
        pollux_reactor::sleep(Duration::from_secs(1)).await;
        assert!(exported.upgrade().is_none(), "what waits holds no device");
        let interval = minutes(20).as_secs();
        // Only five minutes are left, wherever the pool was meanwhile.
        let (pool, _) = Pool::import(drives.attach().await, options(first + interval - 300))
            .await
            .unwrap();
        pollux_reactor::sleep(minutes(4)).await;
        assert_eq!(ended_at(&pool), first, "not yet");
        pollux_reactor::sleep(minutes(4)).await;
        let second = ended_at(&pool);
        assert!(
            (first + interval..first + interval + 120).contains(&second),
            "{second}"
        );
    });
}
