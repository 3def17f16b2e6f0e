//! Devices that do not belong together, or are not what they were; drives that fail, hang and go away; and
//! callers that go away, or come at the wrong moment.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Bench, DRIVE_BYTES, Drives, drive_options, options};
use crate::history::{BLOCK, contents, data};
use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Geometry, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_pool::layout::label::{Label, area_blocks};
use pollux_pool::{CreateOptions, Pool, PoolError, PoolOptions, Volume, VolumeOptions};
use pollux_reactor::{sleep, spawn, timeout, yield_now};
use pollux_sim::oracle::{CheckedDevice, SharedOracle, UnderWay, Workload};
use pollux_sim::{PowerLoss, Seed, SimDrive};

async fn make(drives: &Drives, name: &str) -> Rc<Pool> {
    let pool = Pool::create(name, drives.attach().await, &CreateOptions::default(), options()).await;
    let pool = pool.unwrap();
    pool.create_volume("a", &VolumeOptions::new(200)).await.unwrap();
    write(&pool, 1).await;
    pool
}

async fn write(pool: &Rc<Pool>, value: u64) {
    let volume = pool.open_volume("a").unwrap();
    volume.write(value, data(value, 100), true).await.unwrap();
}

async fn import(drives: &Drives) -> Result<Rc<Pool>, PoolError> {
    let imported = Pool::import(drives.attach().await, options()).await;
    imported.map(|(pool, _)| pool)
}

/// The error, after a look that nothing was written.
async fn refused(drives: &Drives) -> PoolError {
    let writes = || drives.0.iter().map(|drive| drive.counters().writes).sum::<u64>();
    let before = writes();
    let error = import(drives).await.err().unwrap();
    assert_eq!(writes(), before, "{error}");
    assert!(error.to_string().len() > 20, "{error}");
    error
}

fn copy(drive: &SimDrive) -> Arc<SimDrive> {
    drive.image().into_drive("copy", 1)
}

#[test]
fn devices_that_do_not_belong_together_are_refused() {
    let bench = Bench::new(1, 3);
    let others = Bench::new(2, 2).drives;
    bench.run(move |drives| async move {
        let pool = make(&drives, "tank").await;
        let older = copy(&drives.0[1]);
        pool.checkpoint().await.unwrap();
        write(&pool, 2).await;
        let not_so_old = copy(&drives.0[1]);
        pool.checkpoint().await.unwrap();
        write(&pool, 3).await;
        pool.export().await.unwrap();
        drop(make(&others, "other").await);
        let [one, two, three] = &drives.0[..] else { return };
        let given = |drives: &[&Arc<SimDrive>]| Drives(drives.iter().map(|drive| (*drive).clone()).collect());

        let error = refused(&given(&[one, two, &others.0[0]])).await;
        assert!(matches!(error, PoolError::OtherPool { device: 2, .. }), "{error}");
        let error = refused(&given(&[one, three])).await;
        assert!(matches!(error, PoolError::Missing { number: 1, .. }), "{error}");
        let error = refused(&given(&[one, two, three, two])).await;
        assert!(
            matches!(error, PoolError::Twice { first: 1, second: 3 }),
            "{error}"
        );
        let error = refused(&given(&[one, two, three, &copy(two)])).await;
        assert!(
            matches!(error, PoolError::Twice { first: 1, second: 3 }),
            "{error}"
        );
        let error = refused(&given(&[])).await;
        assert!(matches!(error, PoolError::DeviceCount { found: 0 }), "{error}");
        let empty = SimDrive::new("empty", drive_options(DRIVE_BYTES), 5);
        let error = refused(&given(&[one, &empty, three])).await;
        assert!(matches!(error, PoolError::NoPool { device: 1, .. }), "{error}");
        for old in [&older, &not_so_old] {
            let error = refused(&given(&[one, old, three])).await;
            assert!(matches!(error, PoolError::Stale { device: 1, .. }), "{error}");
        }
        // Smaller than it was; with the same content, as far as there is room.
        let smaller = SimDrive::new("smaller", drive_options(DRIVE_BYTES - 65536), 5);
        let mut bytes = vec![0; smaller.geometry_bytes() as usize];
        two.peek(0, &mut bytes);
        smaller.poke(0, &bytes);
        let error = refused(&given(&[one, &smaller, three])).await;
        assert!(matches!(error, PoolError::Shrunk { device: 1, .. }), "{error}");
        // In any order, with one that is larger now.
        two.grow(DRIVE_BYTES / 4096 + 100);
        for order in [[two, three, one], [three, one, two], [one, two, three]] {
            let pool = import(&given(&order)).await.unwrap();
            assert_eq!(contents(&pool).await.unwrap().volumes["a"].values()[3], 3);
            assert!(pool.check().await.unwrap().is_sound());
            pool.export().await.unwrap();
        }
    });
}

trait Size {
    fn geometry_bytes(&self) -> u64;
}

impl Size for SimDrive {
    fn geometry_bytes(&self) -> u64 {
        pollux_device::Device::geometry(self).bytes()
    }
}

/// An older copy of a device of a pool that was never exported, and that has checkpoints of its own.
#[test]
fn an_older_copy_is_refused_after_a_crash_too() {
    for old in 0..2 {
        let bench = Bench::new(3, 2);
        bench.run(move |drives| async move {
            let pool = make(&drives, "tank").await;
            pool.checkpoint().await.unwrap();
            let older = copy(&drives.0[old]);
            write(&pool, 2).await;
            pool.checkpoint().await.unwrap();
            write(&pool, 3).await;
            drives
                .0
                .iter()
                .for_each(|drive| drive.power_loss(PowerLoss::LoseAll));
            let mut given = drives.clone();
            given.0[old] = older;
            let error = refused(&given).await;
            assert!(matches!(error, PoolError::Stale { .. }), "{error}");
            assert!(import(&drives).await.is_ok());
        });
    }
}

#[test]
fn features_that_are_not_known_are_treated_by_their_class() {
    let bench = Bench::new(4, 1);
    bench.run(|drives| async move {
        make(&drives, "tank").await.export().await.unwrap();
        let drive = &drives.0[0];
        let mut bytes = [0; BLOCK];
        drive.peek(0, &mut bytes);
        let label = Label::decode(&bytes).unwrap();
        let put = |label: &Label| {
            for block in area_blocks(label.extents) {
                drive.poke(block * BLOCK as u64, &label.encode().unwrap());
            }
        };
        for bit in [2, 5, 63] {
            let mut changed = label.clone();
            changed.features.incompatible = 1 << bit;
            put(&changed);
            let error = refused(&drives).await;
            assert!(
                matches!(error, PoolError::Features { unknown } if unknown == 1 << bit),
                "{error}"
            );
            let mut changed = label.clone();
            changed.features.read_only_compatible = 1 << bit;
            put(&changed);
            let imported = Pool::import(drives.attach().await, options()).await;
            let (pool, report) = imported.unwrap();
            assert!(pool.is_read_only() && report.read_only);
            assert_eq!(report.unknown_features, 1 << bit);
            assert_eq!(contents(&pool).await.unwrap().volumes["a"].values()[1], 1);
            let error = pool.check().await.unwrap_err();
            assert!(
                matches!(error, PoolError::Features { unknown } if unknown == 1 << bit),
                "{error}"
            );
            pool.export().await.unwrap();
            let mut changed = label.clone();
            changed.features.compatible = 1 << bit;
            put(&changed);
            let pool = import(&drives).await.unwrap();
            assert_eq!(contents(&pool).await.unwrap().volumes["a"].values()[1], 1);
            pool.export().await.unwrap();
            drive.peek(0, &mut bytes);
            assert_eq!(Label::decode(&bytes).unwrap().features.compatible, 1 << bit);
        }
        // A label of a version to come.
        drive.peek(0, &mut bytes);
        bytes[8] += 1;
        let crc = pollux_pool::layout::crc32c(&bytes[..BLOCK - 4]);
        bytes[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        for block in area_blocks(label.extents) {
            drive.poke(block * BLOCK as u64, &bytes);
        }
        let error = refused(&drives).await;
        assert!(error.to_string().contains("use a newer program"), "{error}");
    });
}

/// Notes the blocks of writes that fail.
struct Noting {
    volume: Rc<Volume>,
    failed: Rc<RefCell<BTreeSet<u64>>>,
}

impl BlockDevice for Noting {
    fn geometry(&self) -> Geometry {
        self.volume.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let blocks = match &request {
            Request::Write { block, from, .. } => *block..block + (from.len_bytes() / BLOCK) as u64,
            _ => 0..0,
        };
        let (completion, failed) = (self.volume.submit(request), self.failed.clone());
        Completion::from_future(async move {
            let result = completion.await;
            if result.is_err() {
                failed.borrow_mut().extend(blocks);
            }
            result
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    Writes,
    Reads,
    Flushes,
    Everything,
    Removed,
    Stuck,
}

/// A drive fails while clients work. They get errors and no hang; the pool is stopped, with a reason, when
/// nothing can be durable; and everything durable is there when the drive is well again.
#[test]
fn a_drive_that_fails_gives_errors_and_loses_nothing() {
    use Failure::{Everything, Flushes, Reads, Removed, Stuck, Writes};
    for (seed, failure) in (0..36).zip(
        [Writes, Reads, Flushes, Everything, Removed, Stuck]
            .into_iter()
            .cycle(),
    ) {
        let mut bench = Bench::new(seed, 0);
        let drives = 1 + seed / 6 % 2;
        let drive = |number| {
            let options = pollux_sim::SimDriveOptions::new(DRIVE_BYTES, 4096).unwrap();
            SimDrive::new("drive", options, seed * 3 + number)
        };
        bench.drives = Drives((0..drives).map(drive).collect());
        let oracle = SharedOracle::default();
        let (drives, of_task) = (bench.drives.clone(), oracle.clone());
        bench.world.block_on(bench.reactor, async move {
            let options = PoolOptions {
                background: seed % 4 > 0,
                commit_interval: Duration::from_millis(2),
                ..options()
            };
            let pool = Pool::create("tank", drives.attach().await, &CreateOptions::default(), options).await;
            let pool = pool.unwrap();
            pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
            let mut clients = Vec::new();
            let written_in_vain = Rc::new(RefCell::new(BTreeSet::new()));
            for client in 0..4 {
                let volume = Rc::new(Noting {
                    volume: pool.open_volume("a").unwrap(),
                    failed: written_in_vain.clone(),
                });
                let device = CheckedDevice::new(volume, of_task.clone());
                let mut stream = Seed(seed).stream("client", client);
                let workload = Workload::mixed(0..90, 150);
                clients.push(spawn(async move {
                    workload.run(&device, &mut stream, |_| true).await
                }));
            }
            sleep(Duration::from_millis(3)).await;
            let failing = &drives.0[seed as usize / 12 % drives.0.len()];
            match failure {
                Writes => failing.change_faults(|faults| faults.write_error_probability = 1.0),
                Reads => failing.change_faults(|faults| faults.read_error_probability = 0.5),
                Flushes => failing.change_faults(|faults| faults.flush_error_probability = 1.0),
                Everything => failing.change_faults(|faults| {
                    faults.read_error_probability = 1.0;
                    faults.write_error_probability = 1.0;
                    faults.flush_error_probability = 1.0;
                }),
                Removed => failing.remove(PowerLoss::Reordered),
                Stuck => failing.change_faults(|faults| faults.stuck = true),
            }
            let changes = spawn({
                let pool = pool.clone();
                async move {
                    let _ = pool.snapshot("a", "s", 0).await;
                    let _ = pool.checkpoint().await;
                    let _ = pool.reclaim().await;
                }
            });
            if matches!(failure, Stuck) {
                sleep(Duration::from_millis(50)).await;
                // It hangs, and then is gone: whoever waited gets an error.
                failing.remove(PowerLoss::LoseAll);
            }
            let mut failed = 0;
            for client in clients {
                let ended = timeout(Duration::from_secs(300), client).await;
                failed += ended
                    .unwrap_or_else(|_| panic!("seed {seed}, {failure:?}: a client hangs"))
                    .unwrap();
            }
            timeout(Duration::from_secs(300), changes).await.unwrap();
            assert!(failed > 0, "seed {seed}, {failure:?}");
            if matches!(failure, Everything | Removed | Stuck) {
                assert!(pool.stopped().is_some(), "seed {seed}, {failure:?}");
                assert!(pool.create_volume("b", &VolumeOptions::new(1)).await.is_err());
                assert!(pool.export().await.is_err());
            }
            drop(pool);
            // All of it comes to an end before the drive is well again.
            sleep(Duration::from_secs(100)).await;
            for drive in &drives.0 {
                drive.set_faults(Default::default());
                drive.power_loss(PowerLoss::Any);
                drive.restore();
            }
            of_task.borrow_mut().power_cut(UnderWay::Lost);
            let pool = import(&drives).await.unwrap();
            let device = CheckedDevice::new(pool.open_volume("a").unwrap(), of_task);
            for block in 0..90 {
                match device.read(block, 1).await.map_err(|error| error.io()) {
                    Ok(()) => {}
                    // What a write that failed has left of a block in place is neither what was there nor
                    // what was to come, as far as anybody knows, and a snapshot may have come to share it:
                    // it is an error until it is written again. No other block is.
                    Err(Ok(IoError::ChecksumMismatch)) => assert!(
                        written_in_vain.borrow().contains(&block) && matches!(failure, Writes | Everything),
                        "seed {seed}, {failure:?}: block {block}"
                    ),
                    Err(error) => panic!("seed {seed}, {failure:?}: {error:?}"),
                }
            }
            drop(device);
            let check = pool.check().await.unwrap();
            assert!(check.is_sound(), "seed {seed}, {failure:?}: {check:?}");
        });
    }
}

/// Whoever reclaims may go away: others do it then.
#[test]
fn a_reclaim_that_nobody_waits_for_any_more_stops_no_other() {
    let bench = Bench::new(7, 1);
    bench.run(|drives| async move {
        let pool = make(&drives, "tank").await;
        pool.delete("a").await.unwrap();
        for polls in 0..6 {
            let mut reclaim = Box::pin(pool.reclaim());
            for _ in 0..polls {
                if futures_util::poll!(&mut reclaim).is_ready() {
                    break;
                }
                yield_now().await;
            }
        }
        timeout(Duration::from_secs(10), pool.reclaim())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(pool.deleting(), 0);
    });
}

/// An export while volumes are deleted, written and checkpoints made in the background: nothing is written
/// once it is done, and what it left is in order.
#[test]
fn nothing_is_written_after_an_export() {
    for seed in 0..150 {
        let mut bench = Bench::new(seed, 0);
        let drive = SimDrive::new(
            "drive",
            pollux_sim::SimDriveOptions::new(DRIVE_BYTES, 4096).unwrap(),
            seed,
        );
        bench.drives = Drives(vec![drive.clone()]);
        let mut random = bench.world.random("export", 0);
        bench.run(move |drives| async move {
            let options = PoolOptions {
                commit_interval: Duration::from_micros(500),
                background: true,
                ..options()
            };
            let create = CreateOptions {
                journal_bytes: 1,
                ..CreateOptions::default()
            };
            let pool = Pool::create("tank", drives.attach().await, &create, options)
                .await
                .unwrap();
            for name in ["a", "b", "c"] {
                pool.create_volume(name, &VolumeOptions::new(4000)).await.unwrap();
                let volume = pool.open_volume(name).unwrap();
                for slot in 0..4 {
                    volume.write(slot * 600, data(1 + slot, 4), false).await.unwrap();
                }
                drop(volume);
                pool.snapshot(name, &format!("{name}s"), 0).await.unwrap();
            }
            for name in ["a", "as", "b"] {
                pool.delete(name).await.unwrap();
            }
            let volume = pool.open_volume("c").unwrap();
            let writer = spawn(async move {
                let mut result = Ok(());
                for number in 0.. {
                    if result.is_err() {
                        break;
                    }
                    result = volume.write(number % 40 * 16, data(7, 2), false).await;
                }
                result
            });
            sleep(random.duration(Duration::ZERO..=Duration::from_micros(3000))).await;
            pool.export().await.unwrap();
            let writes = drive.counters().writes;
            sleep(Duration::from_secs(30)).await;
            assert_eq!(drive.counters().writes, writes, "seed {seed}");
            assert_eq!(writer.await, Err(IoError::Gone));
            assert!(matches!(pool.checkpoint().await, Err(PoolError::Closed)));
            let (pool, report) = Pool::import(drives.attach().await, crate::common::options())
                .await
                .unwrap();
            assert!(report.was_exported);
            assert_eq!(report.records, 0, "seed {seed}");
            contents(&pool).await.unwrap();
            pool.reclaim().await.unwrap();
            let check = pool.check().await.unwrap();
            assert!(check.is_sound(), "seed {seed}: {check:?}");
        });
    }
}

/// Somebody opens a volume while it is made smaller, and writes past the end that it will have.
#[test]
fn what_is_past_the_end_of_a_volume_that_was_made_smaller_is_zeros() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed, 0);
        let slow = pollux_sim::SimDriveOptions::new(DRIVE_BYTES, 4096).unwrap();
        bench.drives = Drives(vec![SimDrive::new("drive", slow, seed)]);
        let mut random = bench.world.random("resize", 0);
        bench.run(move |drives| async move {
            let pool = make(&drives, "tank").await;
            let smaller = spawn({
                let pool = pool.clone();
                async move { pool.resize("a", 50, true).await }
            });
            sleep(random.duration(Duration::ZERO..=Duration::from_micros(1500))).await;
            let volume = pool.open_volume("a").unwrap();
            let written = volume.write(150, data(9, 1), false).await;
            drop(volume);
            match smaller.await {
                Ok(()) => {
                    pool.resize("a", 200, false).await.unwrap();
                    let volume = pool.open_volume("a").unwrap();
                    let read = volume.read(50, Buffer::from_heap(150 * BLOCK)).await.unwrap();
                    let is_zeros = read.iter().all(|byte| *byte == 0);
                    // Written after it was larger again is another matter, and does not happen here.
                    assert!(is_zeros, "seed {seed}: the write was {written:?}");
                }
                Err(error) => assert!(matches!(error, PoolError::Busy { .. }), "seed {seed}: {error}"),
            }
        });
    }
}
