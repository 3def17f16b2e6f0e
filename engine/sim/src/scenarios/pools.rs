//! A pool with clients of several volumes, snapshots and deletions, on a machine that crashes again and
//! again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device, Geometry};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolError, PoolOptions, VolumeOptions};
use pollux_reactor::{sleep, spawn};

use super::drive::Wrap;
use crate::drive::{Fill, Latency, SimDrive, SimDriveOptions};
use crate::oracle::{CheckedDevice, Oracle, Pattern, SharedOracle, UnderWay, Value, Workload};
use crate::random::Random;
use crate::{Crash, Finished, MachineId, MachineOptions, Run, SimReactor, World, WorldOptions};

const BLOCK_BYTES: usize = 4096;
const PATTERN: Pattern = Pattern {
    block_bytes: BLOCK_BYTES,
};
const VOLUMES: u64 = 3;
const BLOCKS: u64 = 96;
const SNAPSHOTS_MAX: usize = 5;

pub(super) fn run(run: &Run) -> Result<Finished, String> {
    exercise_pool(run, Rc::new(|device| device))
}

/// A snapshot: whether it is sure to be there, and what it holds, once that was read.
#[derive(Clone, Default)]
struct Snapshot {
    is_certain: bool,
    values: Option<Vec<Value>>,
}

/// What is known of the pool, whatever crashes.
#[derive(Default)]
struct Book {
    is_made: Cell<bool>,
    volumes: RefCell<BTreeMap<String, SharedOracle>>,
    snapshots: RefCell<BTreeMap<String, Snapshot>>,
    next: Cell<u64>,
}

struct Exercise {
    world: World,
    machine: MachineId,
    reactor: SimReactor,
    drives: Vec<Arc<SimDrive>>,
    wrap: Wrap,
    book: Rc<Book>,
    options: PoolOptions,
}

/// Has clients use a pool on drives, through what `wrap` makes of these, while the machine crashes; checks
/// every read, and everything after each crash.
///
/// With a wrapper that does something wrong this must fail for most seeds.
///
/// # Errors
///
/// What was wrong.
pub fn exercise_pool(run: &Run, wrap: Wrap) -> Result<Finished, String> {
    let world = run.world(WorldOptions::default());
    let mut random = world.random("scenario", 0);
    let machine = world.add_machine_with("one", MachineOptions::seeded(&mut random));
    let reactor = world.add_reactor(machine);
    let drives = (0..random.within(1..=3))
        .map(|number| world.add_drive(machine, &format!("drive{number}"), drive_options(&mut random)))
        .collect();
    let exercise = Exercise {
        world,
        machine,
        reactor,
        drives,
        wrap,
        book: Rc::default(),
        options: PoolOptions {
            cache_bytes: 1 << random.within(12..=24),
            dirty_bytes: 1 << random.within(17..=24),
            checkpoint_writes: 1 << random.within(0..=6),
            commit_interval: random.duration(Duration::from_millis(1)..=Duration::from_millis(20)),
            background: true,
            ..PoolOptions::default()
        },
    };
    for round in 0..random.within(2..=4) {
        exercise.round(round, &mut random)?;
        exercise.check()?;
    }
    Ok(Finished::of(&exercise.world))
}

fn drive_options(random: &mut Random) -> SimDriveOptions {
    let block_bytes = if random.chance(0.3) { 512 } else { 4096 };
    let bytes = random.within(64..=256) * 65536;
    let options = SimDriveOptions::new(bytes, block_bytes).expect("the size and the block size are good");
    SimDriveOptions {
        geometry: Geometry {
            atomic_write_blocks: BLOCK_BYTES as u32 / block_bytes,
            volatile_write_cache: random.chance(0.9),
            ..options.geometry
        },
        fill: Fill::Noise(random.u64()),
        cache_bytes: random.within(0..=1 << 20),
        flush_latency: Latency::between(
            Duration::ZERO,
            random.duration(Duration::ZERO..=Duration::from_millis(1)),
        ),
        ..options
    }
}

/// What a pool says, as text.
fn told(error: PoolError) -> String {
    error.to_string()
}

impl Exercise {
    async fn attach(drives: Vec<Arc<SimDrive>>, wrap: Wrap) -> Result<Vec<Rc<dyn BlockDevice>>, String> {
        let mut devices = Vec::new();
        for drive in drives {
            let device = drive.attach().await.map_err(|error| error.to_string())?;
            devices.push(wrap(device));
        }
        Ok(devices)
    }

    /// Opens the pool, or makes it if that was not done.
    fn open(&self, options: PoolOptions) -> impl Future<Output = Result<Rc<Pool>, String>> + 'static {
        let (drives, wrap, book) = (self.drives.clone(), self.wrap.clone(), self.book.clone());
        async move {
            let devices = Self::attach(drives.clone(), wrap.clone()).await?;
            match Pool::import(devices, options.clone()).await {
                Ok((pool, _)) => {
                    book.is_made.set(true);
                    return Ok(pool);
                }
                Err(error) if book.is_made.get() => return Err(format!("it cannot be imported: {error}")),
                Err(_) => {}
            }
            let create = CreateOptions {
                overwrite: true,
                ..CreateOptions::default()
            };
            let devices = Self::attach(drives, wrap).await?;
            let pool = Pool::create("tank", devices, &create, options)
                .await
                .map_err(told)?;
            book.is_made.set(true);
            Ok(pool)
        }
    }

    /// Clients and a manager work until the machine crashes, or until they are done and the pool is exported.
    fn round(&self, round: u64, random: &mut Random) -> Result<(), String> {
        let (opening, book) = (self.open(self.options.clone()), self.book.clone());
        let streams: Vec<Random> = (0..7)
            .map(|number| self.world.random("round", round << 8 | number))
            .collect();
        let requests = random.within(20..=80);
        let task = self.world.spawn(self.reactor, async move {
            let pool = opening.await?;
            work(&pool, &book, streams, requests).await?;
            pool.export().await.map_err(told)
        });
        self.world
            .run_for(random.duration(Duration::ZERO..=Duration::from_millis(30)));
        if random.chance(0.9) {
            let crash = random
                .pick(&[Crash::Power, Crash::Power, Crash::Process])
                .copied();
            self.world.crash(self.machine, crash.unwrap_or(Crash::Power));
            self.world.restart(self.machine);
        } else {
            self.world.run_for(Duration::from_secs(600));
            if !task.is_ended() {
                return Err("the clients hang".to_owned());
            }
        }
        // What was acknowledged and not flushed was in the memory of the process.
        for oracle in self.book.volumes.borrow().values() {
            oracle.borrow_mut().power_cut(UnderWay::Lost);
        }
        match task.take() {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// Everything that is sure to be there is, with what it must hold, and nothing leaks.
    fn check(&self) -> Result<(), String> {
        let options = PoolOptions {
            background: false,
            ..self.options.clone()
        };
        let (opening, book) = (self.open(options), self.book.clone());
        self.world.block_on(self.reactor, async move {
            let pool = opening.await?;
            check_pool(&pool, &book).await?;
            for _ in 0..2 {
                let report = pool.check().await.map_err(told)?;
                if !report.is_sound() {
                    return Err(format!("it is not sound: {report:?}"));
                }
                pool.reclaim().await.map_err(told)?;
            }
            check_pool(&pool, &book).await?;
            pool.export().await.map_err(told)
        })
    }
}

async fn work(pool: &Rc<Pool>, book: &Rc<Book>, streams: Vec<Random>, requests: u64) -> Result<(), String> {
    let mut streams = streams.into_iter();
    let Some(mut own) = streams.next() else {
        return Ok(());
    };
    let clients = Rc::new(Cell::new(0));
    let mut tasks = Vec::new();
    for (number, mut stream) in streams.enumerate() {
        let name = format!("v{}", number as u64 % VOLUMES);
        if pool.volume(&name).is_err() {
            let made = pool.create_volume(&name, &VolumeOptions::new(BLOCKS)).await;
            made.map_err(told)?;
        }
        let oracle = book.volumes.borrow_mut().entry(name.clone()).or_default().clone();
        let device = CheckedDevice::new(pool.open_volume(&name).map_err(told)?, oracle);
        let workload = Workload {
            flushes: stream.within(1..=6),
            ..Workload::mixed(0..stream.within(10..=BLOCKS), requests)
        };
        clients.set(clients.get() + 1);
        let clients = clients.clone();
        tasks.push(spawn(async move {
            let is_full = |error| error == pollux_device::IoError::CapacityExceeded;
            let result = workload.run(&device, &mut stream, is_full).await;
            clients.set(clients.get() - 1);
            result.map(drop).map_err(|error| error.to_string())
        }));
    }
    while clients.get() > 0 {
        manage(pool, book, &mut own).await?;
        sleep(own.duration(Duration::ZERO..=Duration::from_micros(300))).await;
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// One thing that whoever manages the pool does.
async fn manage(pool: &Rc<Pool>, book: &Rc<Book>, random: &mut Random) -> Result<(), String> {
    let names: Vec<String> = book.snapshots.borrow().keys().cloned().collect();
    match random.below(6) {
        0..=2 if names.len() < SNAPSHOTS_MAX => {
            let volume = format!("v{}", random.below(VOLUMES));
            let name = format!("s{}", book.next.get());
            book.next.set(book.next.get() + 1);
            book.snapshots
                .borrow_mut()
                .insert(name.clone(), Snapshot::default());
            let Some(oracle) = book.volumes.borrow().get(&volume).cloned() else {
                return Ok(());
            };
            let ticket = oracle.borrow_mut().start_read(0, BLOCKS);
            pool.snapshot(&volume, &name, 0).await.map_err(told)?;
            if let Some(snapshot) = book.snapshots.borrow_mut().get_mut(&name) {
                snapshot.is_certain = true;
            }
            let values = values_of(pool, &name).await?;
            let legal = oracle.borrow_mut().end_read(ticket, &values);
            legal.map_err(|error| format!("{name}: {error}"))?;
            if let Some(snapshot) = book.snapshots.borrow_mut().get_mut(&name) {
                snapshot.values = Some(values);
            }
            Ok(())
        }
        0..=3 => {
            let Some(name) = random.pick(&names) else {
                return Ok(());
            };
            if let Some(snapshot) = book.snapshots.borrow_mut().get_mut(name) {
                snapshot.is_certain = false;
            }
            match pool.delete(name).await {
                // One that a crash left unmade.
                Ok(()) | Err(PoolError::NotFound { .. }) => {}
                Err(error) => return Err(told(error)),
            }
            book.snapshots.borrow_mut().remove(name);
            Ok(())
        }
        4 => pool.checkpoint().await.map_err(told),
        _ => pool.reclaim().await.map_err(told),
    }
}

async fn values_of(pool: &Rc<Pool>, name: &str) -> Result<Vec<Value>, String> {
    let volume = pool.open_volume(name).map_err(told)?;
    let mut values = Vec::new();
    for first in (0..BLOCKS).step_by(16) {
        let bytes = volume.read(first, Buffer::from_heap(16 * BLOCK_BYTES)).await;
        let bytes = bytes.map_err(|error| format!("{name} cannot be read: {error}"))?;
        let piece = PATTERN.values(&bytes, first);
        values.extend(piece.map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(values)
}

async fn check_pool(pool: &Rc<Pool>, book: &Rc<Book>) -> Result<(), String> {
    for entry in pool.volumes() {
        let is_known = book.snapshots.borrow().contains_key(&entry.name) || entry.name.starts_with('v');
        if !is_known {
            return Err(format!("{} was never made, or was deleted", entry.name));
        }
    }
    let volumes = book.volumes.borrow().clone();
    for (name, oracle) in volumes {
        let values = values_of(pool, &name).await?;
        let oracle: &Oracle = &oracle.borrow();
        for (block, value) in (0..).zip(values) {
            let legal = oracle.check_survivor(block, value);
            legal.map_err(|error| format!("{name}: {error}"))?;
        }
    }
    let snapshots = book.snapshots.borrow().clone();
    for (name, snapshot) in snapshots {
        if pool.volume(&name).is_err() {
            if snapshot.is_certain {
                return Err(format!("{name} is lost"));
            }
            book.snapshots.borrow_mut().remove(&name);
            continue;
        }
        let found = values_of(pool, &name).await?;
        if let Some(expected) = snapshot.values.filter(|expected| *expected != found) {
            return Err(format!("{name} holds {found:?}, and held {expected:?}"));
        }
        // A deletion that was not done is none; and what was found stays.
        let kept = Snapshot {
            is_certain: true,
            values: Some(found),
        };
        book.snapshots.borrow_mut().insert(name, kept);
    }
    Ok(())
}
