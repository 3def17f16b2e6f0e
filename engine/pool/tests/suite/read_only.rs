//! Pools that are imported read-only: what a crash left is seen as an import would see it, and no device is
//! written to, whatever is tried.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::common::{self, Bench, Drives, drive_options, options};
use crate::history::{self, BLOCK, contents, data, record, verify_imported};
use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Geometry, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolError, PoolOptions, ScrubOptions, Unreadable, VolumeOptions};
use pollux_sim::{CutPoints, PowerLoss, SimDrive};

/// A device that nobody may write to, nor flush; and it promises nothing of writes.
struct NeverWritten(Rc<dyn BlockDevice>);

impl BlockDevice for NeverWritten {
    fn geometry(&self) -> Geometry {
        Geometry {
            atomic_write_blocks: 0,
            ..self.0.geometry()
        }
    }

    fn submit(&self, request: Request) -> Completion {
        match request {
            Request::Read { .. } | Request::Compare { .. } => self.0.submit(request),
            Request::Write { .. }
            | Request::Flush
            | Request::Deallocate { .. }
            | Request::WriteZeroes { .. } => panic!("something is written"),
        }
    }
}

async fn never_written(drives: &Drives) -> Vec<Rc<dyn BlockDevice>> {
    let attached = drives.attach().await.into_iter();
    attached
        .map(|device| Rc::new(NeverWritten(device)) as Rc<dyn BlockDevice>)
        .collect()
}

async fn make(drives: &Drives) -> Rc<Pool> {
    let devices = drives.attach().await;
    let pool = Pool::create("tank", devices, &CreateOptions::default(), options()).await;
    pool.unwrap()
}

type Values = BTreeMap<String, (bool, Vec<u64>)>;

async fn values(pool: &Rc<Pool>) -> Result<Values, String> {
    let all = contents(pool).await?.volumes.into_iter();
    Ok(all
        .map(|(name, volume)| (name, (volume.is_snapshot, volume.values())))
        .collect())
}

#[test]
fn what_a_crash_left_is_read_as_an_import_would_see_it() {
    let losses = [PowerLoss::LoseAll, PowerLoss::Reordered, PowerLoss::Torn];
    let (mut states, mut with_records, mut newer_blocks) = (0, 0, 0);
    for seed in 40..46 {
        let bench = Bench::new(seed, 1 + seed as usize % 2);
        let recorded = record(&bench, 50);
        let cuts = recorded
            .recorder
            .crash_states(seed, CutPoints::Writes, &losses[seed as usize % 3..]);
        for state in cuts {
            if state.position < recorded.created || state.position % 3 != 0 {
                continue;
            }
            let context = format!("seed {seed}, cut at {}, {:?}", state.position, state.loss);
            let model = history::model_at(&recorded, state.position);
            let images = state.images.into_iter();
            let drives = Drives(images.map(|image| image.into_drive("after", 1)).collect());
            let judged = bench.world.block_on(bench.reactor, async move {
                let told = |error: PoolError| error.to_string();
                let given = never_written(&drives).await;
                let (pool, report) = Pool::import_read_only(given, options()).await.map_err(told)?;
                assert!(report.read_only && report.unknown_features == 0);
                let seen = values(&pool).await?;
                let check = pool.check().await.map_err(told)?;
                assert!(check.is_sound(), "{check:?}");
                pool.export().await.map_err(told)?;
                drop(pool);
                let imported = Pool::import(drives.attach().await, options()).await;
                let (pool, again) = imported.map_err(told)?;
                assert_eq!(
                    (report.records, report.newer_blocks, report.was_exported),
                    (again.records, again.newer_blocks, again.was_exported)
                );
                assert_eq!(seen, values(&pool).await?);
                verify_imported(&pool, &model).await?;
                Ok::<_, String>(report)
            });
            let report = judged.unwrap_or_else(|error| panic!("{context}: {error}"));
            states += 1;
            with_records += u64::from(report.records > 0);
            newer_blocks += report.newer_blocks;
        }
    }
    assert!(states > 400, "{states}");
    assert!(with_records > 200, "{with_records} of {states} had a journal");
    assert!(newer_blocks > 0, "no write in place was under way");
}

#[test]
fn every_change_is_refused_and_no_device_is_touched() {
    let bench = Bench::new(1, 3);
    bench.run(|drives| async move {
        let spare = Drives(drives.0[2..].to_vec());
        let drives = Drives(drives.0[..2].to_vec());
        let background = PoolOptions {
            background: true,
            scrub_interval: std::time::Duration::from_secs(1),
            ..options()
        };
        let pool = make(&drives).await;
        pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        volume.write(3, data(5, 2), true).await.unwrap();
        pool.snapshot("a", "s", 0).await.unwrap();
        volume.write(4, data(6, 2), true).await.unwrap();
        // In the middle of a deletion.
        pool.clone_snapshot("s", "c", 0).await.unwrap();
        pool.delete("c").await.unwrap();
        drop((volume, pool));

        let imported = Pool::import_read_only(never_written(&drives).await, background).await;
        let (pool, report) = imported.unwrap();
        assert!(pool.is_read_only() && report.records > 0);
        let device = spare.attach().await.remove(0);
        let thick = VolumeOptions {
            thick: true,
            ..VolumeOptions::new(10)
        };
        let other = device.clone();
        let refused = [
            pool.create_volume("b", &VolumeOptions::new(10)).await.map(drop),
            pool.create_volume("b", &thick).await.map(drop),
            pool.snapshot("a", "t", 0).await.map(drop),
            pool.clone_snapshot("s", "t", 0).await.map(drop),
            pool.roll_back("a", "s").await.map(drop),
            pool.delete("a").await,
            pool.delete("s").await,
            pool.rename("a", "b").await,
            pool.resize("a", 200, false).await,
            pool.resize("a", 50, true).await,
            pool.checkpoint().await,
            pool.add_device(device, true).await.map(drop),
            pool.replace_device(0, other, true, &mut |_| {}).await.map(drop),
            pool.drain_device(0, Unreadable::Stay, &mut |_| {})
                .await
                .map(drop),
            pool.cancel_drain(0).await,
            pool.spread_metadata().await,
            pool.grow().await.map(drop),
        ];
        for (at, result) in refused.into_iter().enumerate() {
            assert_eq!(result, Err(PoolError::ReadOnly), "{at}");
        }
        pool.reclaim().await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        assert!(volume.geometry().read_only);
        assert_eq!(volume.write(3, data(9, 1), false).await, Err(IoError::ReadOnly));
        assert_eq!(volume.deallocate(3, 1).await, Err(IoError::ReadOnly));
        volume.flush().await.unwrap();
        // Nothing begins by itself either.
        pollux_reactor::sleep(std::time::Duration::from_secs(100)).await;
        for (block, value) in [(3, 5), (4, 6), (5, 6), (6, 0)] {
            let bytes = volume.read(block, Buffer::from_heap(BLOCK)).await.unwrap();
            assert_eq!(history::value_of(&bytes), Ok(value));
        }
        let scrubbed = pool.scrub(ScrubOptions::default(), &mut |_| {}).await.unwrap();
        assert!(
            scrubbed.blocks > 0 && scrubbed.bad_block_count == 0,
            "{scrubbed:?}"
        );
        assert!(pool.usage("a").await.unwrap().used_bytes > 0);
        assert!(pool.check().await.unwrap().is_sound());
        drop(volume);
        pool.export().await.unwrap();
        drop(pool);
        let pool = Pool::import(drives.attach().await, options()).await.unwrap().0;
        pool.delete("a").await.unwrap();
    });
}

/// A device of which nothing can be written says so itself.
#[test]
fn a_pool_on_devices_that_refuse_writes_can_be_read() {
    let bench = Bench::new(2, 1);
    bench.run(|drives| async move {
        let spare = SimDrive::new("other", drive_options(common::DRIVE_BYTES), 3);
        let pool = make(&drives).await;
        pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
        pool.export().await.unwrap();
        let error = Pool::import_read_only(Drives(vec![spare]).attach().await, options()).await;
        assert!(matches!(error.err(), Some(PoolError::NoPool { .. })));
        let error = Pool::import(never_written(&drives).await, options()).await;
        assert_eq!(error.err(), Some(PoolError::TornWrites { device: 0 }));
        // The first of the label areas is spoiled, which an import would write again.
        for device in drives.attach().await {
            let mut noise = Buffer::from_heap(16 * BLOCK);
            noise.fill(0xa5);
            device.write(0, noise, true).await.unwrap();
        }
        let imported = Pool::import_read_only(never_written(&drives).await, options()).await;
        assert_eq!(imported.unwrap().0.volumes().len(), 1);
    });
}
