//! A device that takes no writes any more is replaced while its pool is open read-only: after power cuts,
//! with one beside the replacement, and after a pool has stopped for it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Geometry, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolError, Replaced, VolumeOptions};
use pollux_sim::{CutPoints, DriveImage, PowerLoss, Recorder, SimDrive};

use crate::changes::import_members;
use crate::common::{Bench, DRIVE_BYTES, Drives, drive_options, options};
use crate::history::{BLOCK, data, model_at, record, value_of, verify_imported};
use crate::missing::verify_readable;
use crate::model::PoolModel;

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::LoseAll,
    PowerLoss::KeepAll,
    PowerLoss::Reordered,
    PowerLoss::Torn,
];

/// A device that refuses all writes from some moment on, and can be read.
struct WornOut {
    device: Rc<dyn BlockDevice>,
    is_worn_out: Rc<Cell<bool>>,
}

impl BlockDevice for WornOut {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        match request {
            Request::Read { .. } | Request::Compare { .. } => self.device.submit(request),
            _ if self.is_worn_out.get() => Completion::failed(IoError::MediaWrite),
            _ => self.device.submit(request),
        }
    }
}

/// Drives, of which one takes no writes.
async fn attach(drives: &Drives, worn_out: u8) -> Vec<Rc<dyn BlockDevice>> {
    let mut devices = drives.attach().await;
    let device = devices[usize::from(worn_out)].clone();
    devices[usize::from(worn_out)] = Rc::new(WornOut {
        device,
        is_worn_out: Rc::new(Cell::new(true)),
    });
    devices
}

fn blank() -> Arc<SimDrive> {
    SimDrive::new("new", drive_options(DRIVE_BYTES), 5)
}

fn drives_of(images: &[DriveImage]) -> Drives {
    let drives = images.iter().map(|image| image.clone().into_drive("left", 1));
    Drives(drives.collect())
}

/// Opens the pool read-only, and replaces a device that takes no writes.
async fn replace(
    drives: &Drives,
    number: u8,
    new: &Arc<SimDrive>,
) -> Result<(Rc<Pool>, Replaced), PoolError> {
    let devices = attach(drives, number).await;
    let (pool, _) = Pool::import_read_only(devices.clone(), options()).await?;
    let new = Drives(vec![new.clone()]).attach().await.remove(0);
    let mut copied = 0;
    let total = &mut 0;
    let replaced = pool
        .replace_device_read_only(number, new, devices, false, &mut |progress| {
            assert!(progress.copied_bytes > copied, "{progress:?}");
            copied = progress.copied_bytes;
            *total = progress.total_bytes;
        })
        .await?;
    assert_eq!(copied, *total, "all of it is copied, and nothing besides");
    Ok((pool, replaced))
}

fn with(drives: &Drives, number: u8, new: &Arc<SimDrive>) -> Drives {
    let mut drives = drives.clone();
    drives.0[usize::from(number)] = new.clone();
    drives
}

#[test]
fn after_any_power_cut_nothing_is_lost() {
    let (mut states, mut with_journal) = (0, 0);
    for seed in 80..84 {
        let members = 1 + seed as usize % 2;
        let bench = Bench::new(seed, members);
        let recorded = record(&bench, 40);
        let losses = &LOSSES[seed as usize % 4..=seed as usize % 4];
        for state in recorded.recorder.crash_states(seed, CutPoints::Writes, losses) {
            if state.position < recorded.created || state.position % 3 != 0 {
                continue;
            }
            states += 1;
            let number = (states % members) as u8;
            let context = format!("seed {seed}, cut at {}, device {number}", state.position);
            let model = model_at(&recorded, state.position);
            let drives = drives_of(&state.images);
            let done = bench.world.block_on(bench.reactor, async move {
                let refused = Pool::import(attach(&drives, number).await, options()).await;
                assert!(refused.is_err(), "it has to write");
                let new = blank();
                let (pool, replaced) = replace(&drives, number, &new)
                    .await
                    .map_err(|error| error.to_string())?;
                assert!(replaced.keeps_label, "nothing can be written to it");
                let seen = verify_readable(&pool, &model).await?;
                assert_eq!(seen.lost, 0);
                drop(pool);
                if members > 1 {
                    let old = Pool::import(drives.attach().await, options()).await;
                    assert!(matches!(old.err(), Some(PoolError::Foreign { .. })));
                }
                let drives = with(&drives, number, &new);
                let imported = Pool::import(drives.attach().await, options()).await;
                let (pool, report) = imported.map_err(|error| error.to_string())?;
                verify_imported(&pool, &model).await?;
                Ok::<_, String>(report.journal_blocks > 0)
            });
            with_journal += u64::from(done.unwrap_or_else(|error| panic!("{context}: {error}")));
        }
    }
    assert!(states > 150 && with_journal > 100, "{states}, {with_journal}");
}

/// Opens what may be a whole pool, and looks whether it is what it was.
async fn open(drives: Drives, model: PoolModel) -> Result<bool, String> {
    match import_members(&drives).await {
        Ok(pool) => verify_imported(&pool, &model).await.map(|()| true),
        Err(_) => Ok(false),
    }
}

#[test]
fn a_power_cut_beside_it_leaves_the_pool_with_either_device_and_then_with_that_one() {
    let (mut with_old, mut with_new, mut states) = (0, 0, 0);
    for seed in 90..94 {
        let members = 1 + seed as usize % 3;
        let number = (seed as usize / 2 % members) as u8;
        let bench = Bench::new(seed, members);
        let history = record(&bench, 30);
        let image = history
            .recorder
            .crash_states(seed, CutPoints::Writes, &[PowerLoss::Reordered])
            .last()
            .unwrap();
        let model = model_at(&history, image.position);
        let drives = drives_of(&image.images);
        let recorder = Recorder::new();
        let recording = recorder.clone();
        bench.world.block_on(bench.reactor, async move {
            let new = blank();
            // In the order of their numbers, and the new one last.
            drives.0.iter().for_each(|drive| drive.record(&recording));
            new.record(&recording);
            replace(&drives, number, &new).await.unwrap();
        });
        let losses = &LOSSES[seed as usize % 4..=seed as usize % 4];
        for state in recorder.crash_states(seed, CutPoints::Writes, losses) {
            states += 1;
            let mut opened = Vec::new();
            for with_new in [false, true] {
                let model = model.clone();
                let mut drives = drives_of(&state.images);
                let new = drives.0.pop().unwrap();
                let (chosen, other) = match with_new {
                    true => (with(&drives, number, &new), drives),
                    false => (drives.clone(), with(&drives, number, &new)),
                };
                let found = bench.world.block_on(bench.reactor, async move {
                    let opened = open(chosen, model.clone()).await?;
                    // From then on there is no way back to the other one.
                    if opened && other.0.len() > 1 {
                        let other = Pool::import(other.attach().await, options()).await.map(drop);
                        assert!(
                            matches!(
                                other,
                                Err(PoolError::Foreign { .. }
                                    | PoolError::NoPool { .. }
                                    | PoolError::Missing { .. })
                            ),
                            "{other:?}"
                        );
                    }
                    Ok::<_, String>(opened)
                });
                opened.push(found.unwrap_or_else(|error| panic!("seed {seed}, {}: {error}", state.position)));
            }
            assert!(opened.contains(&true), "seed {seed}, cut at {}", state.position);
            with_old += u64::from(opened[0]);
            with_new += u64::from(opened[1]);
        }
    }
    assert!(
        states > 60 && with_old > 10 && with_new > 4,
        "{states}: {with_old} {with_new}"
    );
}

#[test]
fn a_pool_that_stopped_for_a_device_goes_on_with_another_one() {
    for members in [1, 2, 3] {
        let bench = Bench::new(95, members);
        bench.run(move |drives| async move {
            let is_worn_out = Rc::new(Cell::new(false));
            let mut devices = drives.attach().await;
            let device = devices[0].clone();
            devices[0] = Rc::new(WornOut {
                device,
                is_worn_out: is_worn_out.clone(),
            });
            let made = Pool::create("tank", devices.clone(), &CreateOptions::default(), options()).await;
            let pool = made.unwrap();
            pool.create_volume("a", &VolumeOptions::new(1_000)).await.unwrap();
            let volume = pool.open_volume("a").unwrap();
            let mut acknowledged = [0; 64];
            for value in 1..200 {
                is_worn_out.set(value > 100);
                let block = value * 7 % 64;
                let written = volume.write(block * 15, data(value, 1), true).await;
                if written.is_ok() {
                    acknowledged[block as usize] = value;
                }
                assert!(written.is_ok() || is_worn_out.get(), "{written:?}");
            }
            assert!(matches!(
                pool.checkpoint().await,
                Err(PoolError::Stopped(_) | PoolError::Device(_))
            ));
            drop((volume, pool));
            assert!(Pool::import(devices.clone(), options()).await.is_err());

            let (pool, _) = Pool::import_read_only(devices.clone(), options()).await.unwrap();
            let new = blank();
            let device = Drives(vec![new.clone()]).attach().await.remove(0);
            let replaced = pool
                .replace_device_read_only(0, device, devices, false, &mut |_| {})
                .await;
            assert_eq!(replaced, Ok(Replaced { keeps_label: true }));
            assert!(pool.is_read_only());
            drop(pool);
            let drives = with(&drives, 0, &new);
            let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
            let volume = pool.open_volume("a").unwrap();
            for (block, value) in (0..).zip(acknowledged) {
                let bytes = volume.read(block * 15, Buffer::from_heap(BLOCK)).await.unwrap();
                let found = value_of(&bytes).unwrap();
                // What was not acknowledged may be there.
                assert!(
                    found == value || found > 100,
                    "block {block}: {found}, not {value}"
                );
                volume
                    .write(block * 15, data(500 + block, 1), true)
                    .await
                    .unwrap();
            }
            assert!(pool.check().await.unwrap().is_sound());
        });
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_the_pool_with_the_old_device() {
    let bench = Bench::of_sizes(96, &[DRIVE_BYTES, DRIVE_BYTES, DRIVE_BYTES / 2, DRIVE_BYTES]);
    bench.run(|drives| async move {
        let members = Drives(drives.0[..2].to_vec());
        let devices = members.attach().await;
        let made = Pool::create("tank", devices.clone(), &CreateOptions::default(), options()).await;
        let pool = made.unwrap();
        pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        volume.write(3, data(5, 2), true).await.unwrap();
        let spare = async |at: usize| Drives(vec![drives.0[at].clone()]).attach().await.remove(0);
        let new = spare(3).await;
        let mut told = |_| {};
        let done = pool.replace_device_read_only(0, new.clone(), devices.clone(), true, &mut told);
        assert_eq!(done.await, Err(PoolError::ReadWrite));
        drop((volume, pool));

        let (pool, _) = Pool::import_read_only(devices.clone(), options()).await.unwrap();
        let small = spare(2).await;
        let done = pool.replace_device_read_only(0, small, devices.clone(), true, &mut told);
        assert!(matches!(done.await, Err(PoolError::TooSmall { .. })));
        let done = pool.replace_device_read_only(2, new.clone(), devices.clone(), true, &mut told);
        assert_eq!(done.await, Err(PoolError::NoDevice { number: 2 }));
        let own = devices[1].clone();
        let done = pool.replace_device_read_only(0, own, devices.clone(), true, &mut told);
        assert!(matches!(done.await, Err(PoolError::Member { number: 1 })));
        let done = pool.replace_device_read_only(0, new.clone(), devices[..1].to_vec(), true, &mut told);
        assert!(matches!(done.await, Err(PoolError::Missing { number: 1, .. })));
        let worn_out = attach(&Drives(vec![drives.0[3].clone()]), 0).await.remove(0);
        let done = pool.replace_device_read_only(0, worn_out, devices.clone(), true, &mut told);
        assert_eq!(done.await, Err(PoolError::Device(IoError::MediaWrite)));
        let done = pool.replace_device_read_only(0, new.clone(), devices.clone(), true, &mut told);
        assert_eq!(done.await, Ok(Replaced { keeps_label: false }));
        drop(pool);

        // The old one holds no pool any more.
        let gone = Pool::import(members.attach().await, options()).await.map(drop);
        assert!(
            matches!(gone, Err(PoolError::NoPool { device: 0, .. })),
            "{gone:?}"
        );
        let drives = Drives(vec![drives.0[3].clone(), drives.0[1].clone()]);
        let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
        let bytes = pool
            .open_volume("a")
            .unwrap()
            .read(3, Buffer::from_heap(BLOCK))
            .await;
        assert_eq!(value_of(&bytes.unwrap()), Ok(5));
    });
}
