//! Pools on simulated drives: what users do with them, and what they hold after an import.

use crate::common::{Bench, options};
use pollux_device::{BlockDevice, BlockDeviceExt};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolError, VolumeOptions};

#[test]
fn a_volume_keeps_what_is_written_over_an_export() {
    let bench = Bench::new(1, 1);
    bench.run(|drives| async move {
        let pool = Pool::create(
            "tank",
            drives.attach().await,
            &CreateOptions::default(),
            options(),
        )
        .await
        .unwrap();
        pool.create_volume("a", &VolumeOptions::new(1000)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        let mut data = Buffer::from_heap(40 * 4096);
        for (block, bytes) in (1..).zip(data.chunks_mut(4096)) {
            bytes.fill(block);
        }
        volume.write(5, data, false).await.unwrap();
        let read = volume.read(0, Buffer::from_heap(64 * 4096)).await.unwrap();
        for (block, bytes) in (0u8..).zip(read.chunks(4096)) {
            let expected = if (5..45).contains(&block) { block - 4 } else { 0 };
            assert!(bytes.iter().all(|byte| *byte == expected), "block {block}");
        }
        drop(volume);
        assert!(pool.check().await.unwrap().is_sound());
        pool.export().await.unwrap();
        let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert!(report.was_exported);
        assert_eq!(report.records, 0);
        let volume = pool.open_volume("a").unwrap();
        let read = volume.read(0, Buffer::from_heap(64 * 4096)).await.unwrap();
        for (block, bytes) in (0u8..).zip(read.chunks(4096)) {
            let expected = if (5..45).contains(&block) { block - 4 } else { 0 };
            assert!(bytes.iter().all(|byte| *byte == expected), "block {block}");
        }
        let check = pool.check().await.unwrap();
        assert!(check.is_sound(), "{check:?}");
        assert_eq!(volume.geometry().blocks, 1000);
        assert!(matches!(
            pool.create_volume("a", &VolumeOptions::new(1)).await,
            Err(PoolError::Exists { .. })
        ));
    });
}

/// What was acknowledged and not flushed is gone with the memory of a process that ends without an export.
#[test]
fn volumes_tell_that_they_may_lack_what_was_not_flushed() {
    let bench = Bench::new(1, 1);
    bench.run(|drives| async move {
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options());
        let pool = pool.await.unwrap();
        pool.create_volume("a", &VolumeOptions::new(1000)).await.unwrap();
        pool.snapshot("a", "s", 0).await.unwrap();
        let has_lost = |pool: &std::rc::Rc<Pool>, name: &str| {
            let volume = pool.open_volume(name).unwrap();
            volume.has_lost_caches()
        };
        assert!(!has_lost(&pool, "a"));
        drop(pool);
        let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert!(!report.was_exported);
        assert!(has_lost(&pool, "a"));
        // Nobody wrote to these then.
        assert!(!has_lost(&pool, "s"));
        pool.create_volume("b", &VolumeOptions::new(1000)).await.unwrap();
        assert!(!has_lost(&pool, "b"));
        drop(pool);
        let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert!(has_lost(&pool, "a") && has_lost(&pool, "b"));
        pool.export().await.unwrap();
        let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert!(report.was_exported);
        assert!(!has_lost(&pool, "a") && !has_lost(&pool, "b"));
    });
}

#[test]
fn a_check_tells_how_far_it_is() {
    let bench = Bench::new(9, 1);
    bench.run(|drives| async move {
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options());
        let pool = pool.await.unwrap();
        pool.create_volume("a", &VolumeOptions::new(1 << 20))
            .await
            .unwrap();
        let volume = pool.open_volume("a").unwrap();
        for leaf in 0..100 {
            // Each in a page of the map of its own.
            volume
                .write(leaf * 512, Buffer::from_heap(4096), false)
                .await
                .unwrap();
        }
        pool.snapshot("a", "s", 0).await.unwrap();
        let mut told = Vec::new();
        let report = pool.check_and_tell(&mut |progress| told.push(progress)).await;
        let report = report.unwrap();
        assert!(report.is_sound(), "{report:?}");
        let told: Vec<_> = told
            .iter()
            .map(|progress| (progress.volumes_done, progress.volumes, progress.pages))
            .collect();
        assert_eq!(told.first().map(|first| (first.0, first.1)), Some((0, 2)));
        assert_eq!(told.last(), Some(&(2, 2, report.pages)));
        assert!(told.is_sorted() && report.pages > 100, "{told:?}");
        assert!(
            told.iter().any(|(done, _, pages)| *done == 0 && *pages == 64),
            "{told:?}"
        );
    });
}

#[test]
fn writes_that_nobody_flushes_go_on_when_the_journal_is_full() {
    let bench = Bench::new(5, 1);
    bench.run(|drives| async move {
        let create = CreateOptions::default();
        let pool = Pool::create("tank", drives.attach().await, &create, options())
            .await
            .unwrap();
        pool.create_volume("a", &VolumeOptions::new(1000)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        // A record of a slot for each block: several laps of a ring of 128 blocks.
        for round in 0..20_000u64 {
            let data = Buffer::from_heap(7 * 4096);
            volume.write(round * 7 % 990, data, false).await.unwrap();
        }
        assert!(pool.counters().checkpoints > 4);
        assert!(pool.check().await.unwrap().is_sound());
    });
}
