//! Pools of which devices are missing, imported read-only: what is on the others is what was acknowledged,
//! the rest is an error, and a device that knows an older pool only is not opened. After power cuts, after
//! copies of the journal were given up, and once devices have left or were replaced.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::changes::{Plan, Setup, record_plan};
use crate::common::{Bench, DRIVE_BYTES, Drives, options};
use crate::history::{BLOCK, below, data, model_at, record, value_of};
use crate::model::{BlockModel, PoolModel};
use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Geometry, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_pool::layout::label::Label;
use pollux_pool::{CreateOptions, Pool, PoolError, ScrubOptions, VolumeOptions};
use pollux_sim::{CrashState, CutPoints, DriveImage, PowerLoss, Recorder};

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::LoseAll,
    PowerLoss::KeepAll,
    PowerLoss::Reordered,
    PowerLoss::Torn,
];

/// Blocks that could be read, and blocks that could not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub read: u64,
    pub lost: u64,
}

/// Whether all that can be read is what it must be, and all else an error of its own.
pub async fn verify_readable(pool: &Rc<Pool>, model: &PoolModel) -> Result<Seen, String> {
    let found = pool.volumes();
    let mut seen = Seen::default();
    for entry in &found {
        if !model.volumes.contains_key(&entry.name) {
            return Err(format!("{} was never made, or was deleted", entry.name));
        }
    }
    for (name, volume) in &model.volumes {
        let Some(entry) = found.iter().find(|entry| entry.name == *name) else {
            match volume.certain {
                true => return Err(format!("{name} is lost")),
                false => continue,
            }
        };
        let size = entry.size_blocks;
        if size != volume.blocks.len() as u64 && Some(size) != volume.other_size {
            return Err(format!("{name} has {size} blocks"));
        }
        let opened = pool.open_volume(name).map_err(|error| error.to_string())?;
        for block in 0..size {
            let nothing = BlockModel::default();
            let legal = volume.blocks.get(block as usize).unwrap_or(&nothing);
            match opened.read(block, Buffer::from_heap(BLOCK)).await {
                Ok(bytes) => {
                    let found = value_of(&bytes).map_err(|error| format!("{name} block {block}: {error}"))?;
                    if !legal.allows(found) {
                        return Err(format!("{name} block {block} holds {found}, legal {legal:?}"));
                    }
                    seen.read += 1;
                }
                Err(IoError::MediaRead) => seen.lost += 1,
                Err(error) => return Err(format!("{name} block {block}: {error}")),
            }
        }
    }
    Ok(seen)
}

fn drives_of<'a>(images: impl IntoIterator<Item = &'a DriveImage>) -> Drives {
    let drives = images
        .into_iter()
        .map(|image| image.clone().into_drive("left", 1));
    Drives(drives.collect())
}

/// Imports those of some drives that are of the pool, read-only, and looks at them.
pub fn look(bench: &Bench, drives: Drives, model: PoolModel) -> Result<Result<Seen, String>, PoolError> {
    bench.world.block_on(bench.reactor, async move {
        let mut drives = drives;
        let (pool, report) = loop {
            match Pool::import_read_only(drives.attach().await, options()).await {
                Err(PoolError::NoPool { device, .. } | PoolError::Foreign { device, .. })
                    if drives.0.len() > 1 =>
                {
                    drives.0.remove(device);
                }
                result => break result?,
            }
        };
        assert!(report.read_only);
        Ok(verify_readable(&pool, &model).await)
    })
}

/// All but one of the drives, for each of them.
pub fn without_one(state: &CrashState) -> impl Iterator<Item = Drives> + '_ {
    (0..state.images.len()).map(|without| {
        let others = state
            .images
            .iter()
            .enumerate()
            .filter(move |(at, _)| *at != without);
        drives_of(others.map(|(_, image)| image))
    })
}

#[test]
fn what_is_on_the_others_is_what_it_was_at_any_power_cut() {
    let mut all = Seen::default();
    let mut states = 0;
    for seed in 60..64 {
        let drives = 2 + seed as usize % 2;
        let bench = Bench::new(seed, drives);
        let recorded = record(&bench, 50);
        let losses = &LOSSES[seed as usize % 4..=seed as usize % 4];
        for state in recorded.recorder.crash_states(seed, CutPoints::Writes, losses) {
            if state.position < recorded.created || state.position % 3 != 0 {
                continue;
            }
            for (missing, drives) in without_one(&state).enumerate() {
                let context = format!("seed {seed}, cut at {}, without {missing}", state.position);
                let model = model_at(&recorded, state.position);
                match look(&bench, drives, model) {
                    Ok(Ok(seen)) => {
                        all.read += seen.read;
                        all.lost += seen.lost;
                    }
                    Ok(Err(error)) => panic!("{context}: {error}"),
                    Err(error) => panic!("{context}: {error}"),
                }
                states += 1;
            }
        }
    }
    assert!(states > 300, "{states}");
    assert!(all.read > 10_000 && all.lost > 4_000, "{all:?}");
}

/// A device whose journal cannot be written from some moment on.
struct BadRing {
    device: Rc<dyn BlockDevice>,
    is_bad: Rc<Cell<bool>>,
    ring: Rc<Cell<(u64, u64)>>,
}

impl BlockDevice for BadRing {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let (first, end) = self.ring.get();
        match &request {
            Request::Write { block, .. } if self.is_bad.get() && (first..end).contains(block) => {
                Completion::failed(IoError::MediaWrite)
            }
            _ => self.device.submit(request),
        }
    }
}

/// What was acknowledged as durable: at which event, of which block, and which value.
type Acknowledged = Rc<RefCell<Vec<(usize, u64, u64)>>>;

/// Slots that are written, and how many blocks of each.
const SLOTS: u64 = 20;
const USED: u64 = 2;

/// The number of a block among those that are written.
fn place_of(block: u64) -> usize {
    (block / 16 * USED + block % 16) as usize
}

/// The blocks that are written, in the order of their numbers.
fn used_blocks() -> impl Iterator<Item = u64> {
    (0..SLOTS * USED).map(|number| number / USED * 16 + number % USED)
}

/// Writes and flushes, while one copy of the journal is given up at some moment.
fn give_up_a_copy(seed: u64) -> (Bench, std::sync::Arc<Recorder>, Acknowledged, usize) {
    let bench = Bench::new(seed, 2 + seed as usize % 2);
    let recorder = Recorder::new();
    let acknowledged = Acknowledged::default();
    let (recording, acknowledging) = (recorder.clone(), acknowledged.clone());
    let created = bench.run(move |drives| async move {
        drives.0.iter().for_each(|drive| drive.record(&recording));
        let (is_bad, ring) = (Rc::new(Cell::new(false)), Rc::new(Cell::new((0, 0))));
        let bad = seed as usize / 2 % 2;
        let mut devices = drives.attach().await;
        let device = devices[bad].clone();
        devices[bad] = Rc::new(BadRing {
            device,
            is_bad: is_bad.clone(),
            ring: ring.clone(),
        });
        let pool = Pool::create("tank", devices, &CreateOptions::default(), options()).await;
        let pool = pool.unwrap();
        let mut label = [0; BLOCK];
        drives.0[bad].peek(0, &mut label);
        let label = Label::decode(&label).unwrap();
        let end = label.journal_first + label.journal_extents;
        ring.set((label.journal_first * 16, end * 16));
        pool.create_volume("a", &VolumeOptions::new(SLOTS * 16))
            .await
            .unwrap();
        let volume = pool.open_volume("a").unwrap();
        let created = recording.position();
        let bad_from = 6 + below(12);
        for value in 1..30 {
            is_bad.set(value >= bad_from);
            let block = below(SLOTS) * 16 + below(USED);
            volume.write(block, data(value, 1), false).await.unwrap();
            // Some become durable with a checkpoint, beside which the copy is given up.
            if below(5) == 0 {
                pool.checkpoint().await.unwrap();
            }
            volume.flush().await.unwrap();
            acknowledging
                .borrow_mut()
                .push((recording.position(), block, value));
        }
        created
    });
    (bench, recorder, acknowledged, created)
}

#[test]
fn a_copy_of_the_journal_that_was_given_up_does_not_count_after_any_power_cut() {
    let (mut opened, mut refused, mut late) = (0, 0, 0);
    for seed in 0..6 {
        let (bench, recorder, acknowledged, created) = give_up_a_copy(seed);
        let losses = &LOSSES[seed as usize % 4..=seed as usize % 4];
        for state in recorder.crash_states(seed, CutPoints::Writes, losses) {
            if state.position < created || state.position % 3 != 0 {
                continue;
            }
            let mut least = vec![0; (SLOTS * USED) as usize];
            for (position, block, value) in acknowledged.borrow().iter() {
                if *position <= state.position {
                    least[place_of(*block)] = *value;
                }
            }
            let single = state.images.iter().map(|image| drives_of([image]));
            for (at, drives) in without_one(&state).chain(single).enumerate() {
                let context = format!("seed {seed}, cut at {}, {at}", state.position);
                let least = least.clone();
                let looked = bench.world.block_on(bench.reactor, async move {
                    let (pool, _) = Pool::import_read_only(drives.attach().await, options()).await?;
                    let volume = pool.open_volume("a")?;
                    let mut newer = 0;
                    for block in used_blocks() {
                        match volume.read(block, Buffer::from_heap(BLOCK)).await {
                            Ok(bytes) => {
                                let found = value_of(&bytes).unwrap();
                                // Of an older pool it would be an older one.
                                assert!(
                                    found >= least[place_of(block)],
                                    "{context}: block {block}, {found}"
                                );
                                newer += u64::from(found > 0);
                            }
                            Err(error) => assert_eq!(error, IoError::MediaRead, "{context}: block {block}"),
                        }
                    }
                    Ok::<_, PoolError>(newer)
                });
                match looked {
                    Ok(newer) => {
                        opened += 1;
                        late += newer;
                    }
                    Err(PoolError::JournalMissing { .. }) => refused += 1,
                    // Of three devices two may have both copies of a page.
                    Err(PoolError::Page(_)) if state.images.len() == 3 => {}
                    Err(error) => panic!("seed {seed}, cut at {}: {error}", state.position),
                }
            }
            // With all of them it is whole, and both copies count again.
            let whole = drives_of(&state.images);
            bench.world.block_on(bench.reactor, async move {
                let pool = Pool::import(whole.attach().await, options()).await.unwrap().0;
                let volume = pool.open_volume("a").unwrap();
                for (block, least) in used_blocks().zip(least) {
                    let bytes = volume.read(block, Buffer::from_heap(BLOCK)).await.unwrap();
                    assert!(value_of(&bytes).unwrap() >= least, "block {block}");
                }
                drop((volume, pool));
                for drive in whole.0.iter().take(2) {
                    let one = Drives(vec![drive.clone()]);
                    let opened = Pool::import_read_only(one.attach().await, options()).await;
                    assert!(opened.is_ok() || whole.0.len() == 3, "{:?}", opened.err());
                }
            });
        }
    }
    assert!(opened > 300 && refused > 60, "{opened} {refused}");
    assert!(late > 1_000, "{late}");
}

/// A device is replaced or leaves, the power is cut anywhere, and the pool goes on without it: then it must
/// not be taken for what is left of the pool.
#[test]
fn a_device_that_the_pool_went_on_without_is_not_opened() {
    let (mut gone_on, mut refused) = (0, 0);
    for (seed, plan) in [
        (70, Plan::Replace(0, 0)),
        (71, Plan::Replace(1, 0)),
        (72, Plan::Drain(0)),
        (73, Plan::Drain(1)),
    ] {
        let is_drain = matches!(plan, Plan::Drain(_));
        let setup = Setup {
            seed,
            members: 2,
            spares: usize::from(!is_drain),
            hidden_extents: 0,
        };
        let (Plan::Replace(left, _) | Plan::Drain(left)) = plan else {
            unreachable!()
        };
        let bench = Bench::of_sizes(seed, &vec![DRIVE_BYTES; setup.members + setup.spares]);
        let (recorded, changed) = record_plan(&bench, &setup, 14, vec![(8, plan)]);
        assert_eq!(changed[0].result, Ok(()));
        let states = recorded.recorder.crash_states(
            seed,
            CutPoints::Writes,
            &LOSSES[seed as usize % 4..=seed as usize % 4],
        );
        for state in states.filter(|state| state.position >= changed[0].start) {
            let left = usize::from(left);
            let images = state.images.iter().enumerate();
            let others = drives_of(images.filter(|(at, _)| *at != left).map(|(_, image)| image));
            let context = format!("{plan:?}, cut at {}, {:?}", state.position, state.loss);
            let goes_on = bench.world.block_on(bench.reactor, async move {
                let imported = Pool::import(others.attach().await, options()).await;
                imported.is_ok()
            });
            if !goes_on {
                continue;
            }
            gone_on += 1;
            let old = drives_of([&state.images[left]]);
            let opened = bench.world.block_on(bench.reactor, async move {
                Pool::import_read_only(old.attach().await, options()).await.err()
            });
            match opened {
                Some(
                    PoolError::JournalMissing { .. }
                    | PoolError::NoPool { .. }
                    | PoolError::Foreign { .. }
                    | PoolError::DeviceCount { .. },
                ) => refused += 1,
                other => panic!("{context}: {other:?}"),
            }
        }
    }
    assert!(gone_on > 40 && refused == gone_on, "{gone_on} {refused}");
}

/// A scrub that only looks: it tells what is bad, writes nothing, and remembers nothing.
#[test]
fn a_scrub_looks_at_what_is_there_and_leaves_it() {
    let bench = Bench::new(5, 2);
    bench.run(|drives| async move {
        let devices = drives.attach().await;
        let pool = Pool::create("tank", devices, &CreateOptions::default(), options()).await;
        let pool = pool.unwrap();
        pool.create_volume("a", &VolumeOptions::new(64 * 16))
            .await
            .unwrap();
        let volume = pool.open_volume("a").unwrap();
        for slot in 0..64 {
            volume
                .write(slot * 16, data(1000 + slot, 1), false)
                .await
                .unwrap();
        }
        drop(volume);
        pool.export().await.unwrap();
        drop(pool);
        let find = |value: u64| {
            let blocks = drives
                .0
                .iter()
                .enumerate()
                .flat_map(|(drive, _)| (0..DRIVE_BYTES / BLOCK as u64).map(move |block| (drive, block)));
            let is_it = |(drive, block): &(usize, u64)| {
                let mut bytes = vec![0; BLOCK];
                drives.0[*drive].peek(block * BLOCK as u64, &mut bytes);
                value_of(&bytes) == Ok(value)
            };
            blocks.into_iter().find(is_it).unwrap()
        };
        let (drive, block) = find(1010);
        drives.0[drive].flip_bit(block * BLOCK as u64 + 7, 1);
        // One copy of a page of the map.
        let map = (0..DRIVE_BYTES / BLOCK as u64).find(|block| {
            let mut magic = [0; 8];
            drives.0[0].peek(block * BLOCK as u64, &mut magic);
            magic == *b"PLXPAGE\x01"
        });
        let page_at = map.unwrap() * BLOCK as u64;
        drives.0[0].flip_bit(page_at + 200, 3);
        let before: Vec<_> = drives.0.iter().map(|drive| drive.image()).collect();

        let (pool, _) = Pool::import_read_only(drives.attach().await, options())
            .await
            .unwrap();
        let report = pool.scrub(ScrubOptions::default(), &mut |_| {}).await.unwrap();
        assert_eq!((report.blocks, report.bad_block_count), (64, 1));
        assert_eq!(report.bad_blocks[0].block, 160);
        assert_eq!(
            (report.unrepaired_pages, report.repaired_pages, report.lost_pages),
            (1, 0, 0)
        );
        assert_eq!(pool.last_scrub(), Default::default());
        drop(pool);
        for (drive, before) in drives.0.iter().zip(&before) {
            let after = drive.image();
            for block in 0..DRIVE_BYTES / BLOCK as u64 {
                let (mut was, mut is) = (vec![0; BLOCK], vec![0; BLOCK]);
                before.read(block * BLOCK as u64, &mut was);
                after.read(block * BLOCK as u64, &mut is);
                assert!(was == is, "block {block} was written");
            }
        }

        drives.0[0].flip_bit(page_at + 200, 3);
        // Without the other device: what was there is not looked at, and is not called bad.
        let one = Drives(vec![drives.0[1 - drive].clone()]);
        let (pool, report) = Pool::import_read_only(one.attach().await, options())
            .await
            .unwrap();
        assert_eq!(report.missing, [drive as u8]);
        let report = pool.scrub(ScrubOptions::default(), &mut |_| {}).await.unwrap();
        assert_eq!(report.bad_block_count, 0);
        assert!(report.unchecked_blocks > 10 && report.blocks > 10, "{report:?}");
        assert_eq!(report.blocks + report.unchecked_blocks, 64);
        let check = pool.check().await.unwrap();
        assert!(check.is_sound(), "{check:?}");
        let refused = pool.create_volume("b", &VolumeOptions::new(10)).await;
        assert_eq!(refused.err(), Some(PoolError::ReadOnly));
    });
}
