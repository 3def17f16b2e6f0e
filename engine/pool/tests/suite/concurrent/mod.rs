//! Clients side by side on several volumes of one pool, whose drives take their time, while snapshots,
//! clones, deletions, changes of size and checkpoints go on. Every read is checked; a snapshot taken under
//! load holds what was legal at its moment; and after a power cut anywhere everything is as was promised.

mod late;
mod manager;
mod verify;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Bench, Drives};
use pollux_device::IoError;
use pollux_pool::{CreateOptions, Pool, PoolOptions, VolumeOptions};
use pollux_reactor::{sleep, spawn};
use pollux_sim::oracle::{CheckedDevice, Oracle, Pattern, SharedOracle, Value, Workload};
use pollux_sim::{CrashState, Fill, PowerLoss, Recorder, SimDrive, SimDriveOptions};

use manager::Manager;

const BLOCK: usize = 4096;
const PATTERN: Pattern = Pattern { block_bytes: BLOCK };

/// Blocks that clients use of each volume: three slots, so that they meet.
const USED_BLOCKS: u64 = 48;
const VOLUME_BLOCKS: u64 = 64;
/// Volumes with clients.
const VOLUMES: u64 = 3;
const CLIENTS: u64 = 3;
const REQUESTS: u64 = 80;
const MANAGERS: u64 = 3;
/// A block that no volume has: a write to it tells the oracle's number of the last write.
const MARK: u64 = 1 << 60;

/// When something was under way, in events of the recorder; `end` is the largest number while it is.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

/// A snapshot, or a clone of one.
#[derive(Clone)]
struct Branch {
    name: String,
    made: Span,
    deleted: Option<Span>,
    /// What it began with, once that is known.
    values: Option<Vec<Value>>,
    /// What was written to it since, if it is a clone.
    oracle: Option<SharedOracle>,
}

/// A volume with clients, or one that is made smaller and larger.
struct Live {
    name: String,
    oracle: SharedOracle,
    /// The sizes it was given.
    sizes: RefCell<Vec<(Span, u64)>>,
}

/// What is done to a pool, and all that is known of it.
struct Run {
    pool: Rc<Pool>,
    recorder: Arc<Recorder>,
    live: Vec<Live>,
    branches: RefCell<Vec<Branch>>,
    clients: Cell<u64>,
}

impl Run {
    /// Something begins; [`Run::end`] says when it has ended.
    fn begin(&self) -> Span {
        Span {
            start: self.recorder.position(),
            end: usize::MAX,
        }
    }

    fn end(&self, span: Span) -> Span {
        Span {
            end: self.recorder.position(),
            ..span
        }
    }
}

fn drive_options(bytes: u64) -> SimDriveOptions {
    let mut options = SimDriveOptions::new(bytes, 4096).unwrap();
    options.fill = Fill::Noise(3);
    options.cache_bytes = 256 << 10;
    options
}

fn pool_options(seed: u64) -> PoolOptions {
    PoolOptions {
        cache_bytes: [0, 64 << 10, 64 << 20][seed as usize % 3],
        dirty_bytes: [256 << 10, 1 << 20][seed as usize % 2],
        checkpoint_writes: [1, 4, 1, 64, 2][seed as usize % 5],
        commit_interval: Duration::from_millis(3),
        background: !seed.is_multiple_of(4),
        ..PoolOptions::default()
    }
}

/// Full is no mistake: snapshots take space.
fn is_full(error: IoError) -> bool {
    error == IoError::CapacityExceeded
}

async fn exercise(drives: Drives, recorder: Arc<Recorder>, seed: u64) -> Result<Rc<Run>, String> {
    let create = CreateOptions {
        journal_bytes: 512 << 10,
        ..CreateOptions::default()
    };
    let pool = Pool::create("tank", drives.attach().await, &create, pool_options(seed)).await;
    let pool = pool.map_err(|error| error.to_string())?;
    let mut live = Vec::new();
    for number in 0..=VOLUMES {
        let name = format!("v{number}");
        let made = Span {
            start: recorder.position(),
            end: usize::MAX,
        };
        let options = VolumeOptions {
            checksums: !(seed + number).is_multiple_of(5),
            thick: (seed + number).is_multiple_of(3),
            ..VolumeOptions::new(VOLUME_BLOCKS)
        };
        pool.create_volume(&name, &options)
            .await
            .map_err(|error| error.to_string())?;
        let made = Span {
            end: recorder.position(),
            ..made
        };
        live.push(Live {
            name,
            oracle: Rc::new(RefCell::new(Oracle::recorded(&recorder))),
            sizes: RefCell::new(vec![(made, VOLUME_BLOCKS)]),
        });
    }
    let run = Rc::new(Run {
        pool,
        recorder,
        live,
        branches: RefCell::default(),
        clients: Cell::new(0),
    });
    let mut tasks = Vec::new();
    for number in 0..VOLUMES * CLIENTS {
        let live = &run.live[(number % VOLUMES) as usize];
        let volume = run
            .pool
            .open_volume(&live.name)
            .map_err(|error| error.to_string())?;
        let device = CheckedDevice::new(volume, live.oracle.clone());
        let workload = Workload {
            pause: Duration::from_micros(50),
            ..Workload::mixed(0..USED_BLOCKS, REQUESTS)
        };
        run.clients.set(run.clients.get() + 1);
        let (run, mut stream) = (run.clone(), pollux_sim::Seed(seed).stream("client", number));
        tasks.push(spawn(async move {
            let result = workload.run(&device, &mut stream, is_full).await;
            run.clients.set(run.clients.get() - 1);
            result.map(drop).map_err(|error| error.to_string())
        }));
    }
    for number in 0..MANAGERS {
        let stream = pollux_sim::Seed(seed).stream("manager", number);
        let mut manager = Manager::new(run.clone(), number, stream);
        let run = run.clone();
        tasks.push(spawn(async move {
            while run.clients.get() > 0 {
                manager.step().await?;
                sleep(Duration::from_micros(100)).await;
            }
            manager.finish().await
        }));
    }
    for task in tasks {
        task.await?;
    }
    for live in &run.live {
        let volume = run
            .pool
            .open_volume(&live.name)
            .map_err(|error| error.to_string())?;
        // All of them, those that the size went below too: nobody may use one that is made smaller.
        let device = CheckedDevice::new(volume.clone(), live.oracle.clone());
        let size = live.sizes.borrow().last().map_or(0, |(_, size)| *size);
        for block in 0..size {
            let read = device.read(block, 1).await;
            read.map_err(|error| format!("{} at the end: {error}", live.name))?;
        }
    }
    Ok(run)
}

/// What was done in runs: a test that does nothing finds nothing.
#[derive(Debug, Default)]
struct Tally {
    states: u64,
    snapshots: usize,
    clones: usize,
    deletions: usize,
    sizes: usize,
    checkpoints: u64,
}

/// Runs one seed, and cuts the power of it at so many places.
fn check_run(seed: u64, cuts: u64, tally: &mut Tally) {
    let mut bench = Bench::new(seed, 0);
    let recorder = Recorder::new();
    let drives = 1 + seed % 3;
    bench.drives = Drives(
        (0..drives)
            .map(|number| {
                let drive = SimDrive::new("drive", drive_options((16 + 8 * number) << 20), seed * 7 + number);
                drive.record(&recorder);
                drive
            })
            .collect(),
    );
    let of_task = recorder.clone();
    let run = bench
        .run(move |drives| exercise(drives, of_task, seed))
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    check_cuts(&bench, &run, &recorder, seed, cuts);
    let branches = run.branches.borrow();
    tally.states += cuts;
    tally.snapshots += branches.iter().filter(|branch| branch.oracle.is_none()).count();
    tally.clones += branches.iter().filter(|branch| branch.oracle.is_some()).count();
    tally.deletions += branches.iter().filter(|branch| branch.deleted.is_some()).count();
    tally.sizes += run
        .live
        .iter()
        .map(|live| live.sizes.borrow().len() - 1)
        .sum::<usize>();
    tally.checkpoints += run.pool.counters().checkpoints;
}

/// Cuts the power at so many places of what was done.
fn check_cuts(bench: &Bench, run: &Rc<Run>, recorder: &Arc<Recorder>, seed: u64, cuts: u64) {
    let mut expected = verify::Expected::new(run);
    let mut random = bench.world.random("cuts", 0);
    let mut cursor = recorder.cursor();
    let first = run.live.last().unwrap().sizes.borrow()[0].0.end;
    let mut places: Vec<usize> = (0..cuts)
        .map(|_| random.within(first as u64..=cursor.len() as u64) as usize)
        .collect();
    places.sort_unstable();
    let losses = [
        PowerLoss::LoseAll,
        PowerLoss::Torn,
        PowerLoss::Reordered,
        PowerLoss::KeepAll,
    ];
    for (number, place) in (0..).zip(places) {
        cursor.advance_to(place);
        let loss = *random.pick(&losses).unwrap();
        let CrashState { position, images, .. } = cursor.state(loss, seed, number);
        expected.at(position);
        let drives = Drives(
            images
                .into_iter()
                .map(|image| image.into_drive("after", 1))
                .collect(),
        );
        let snapshot = expected.clone();
        let result = bench
            .world
            .block_on(bench.reactor, async move { snapshot.check(drives).await });
        if let Err(error) = result {
            panic!("seed {seed}, cut at {position}, {loss:?}: {error}");
        }
    }
}

fn check_seeds(seeds: std::ops::Range<u64>) {
    let mut tally = Tally::default();
    for seed in seeds {
        check_run(seed, 80, &mut tally);
    }
    let enough = tally.states >= 700
        && tally.snapshots >= 100
        && tally.clones >= 20
        && tally.deletions >= 80
        && tally.sizes >= 20
        && tally.checkpoints >= 200;
    assert!(enough, "{tally:?}");
}

#[test]
fn clients_and_management_side_by_side_leave_what_was_promised_1() {
    check_seeds(0..10);
}

#[test]
fn clients_and_management_side_by_side_leave_what_was_promised_2() {
    check_seeds(10..20);
}
