//! Writes that the drive completes later and in any order, while something comes in between: mostly of the
//! short way, to free places of own extents and in place.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, IoError, ZeroOptions};
use pollux_pool::{CreateOptions, Pool, PoolError, PoolOptions, ScrubOptions, VolumeOptions};
use pollux_reactor::{sleep, spawn, yield_now};
use pollux_sim::oracle::{CheckError, CheckedDevice, Oracle};
use pollux_sim::{Fault, Latency, Operation, Random, Recorder, Seed, SimDrive, SimDriveOptions};

use super::manager::Manager;
use super::{Live, Run, Span, USED_BLOCKS, VOLUME_BLOCKS, VOLUMES, check_cuts, drive_options, pool_options};
use crate::common::{Bench, Drives};

const SLOT_BLOCKS: u64 = 16;

/// Bursts of writes to each volume.
const ROUNDS: u64 = 24;

/// Blocks of the volume without clients: it takes all that there is on all drives but the last.
const FILLER_BLOCKS: u64 = 64 * SLOT_BLOCKS;

/// Drives so small that pools are full now and then, and one that is not.
const DRIVE_BYTES: [u64; 3] = [4 << 20, 5 << 20, 16 << 20];

/// What was done: a test that does nothing finds nothing.
#[derive(Debug, Default)]
struct Tally {
    /// Writes that had not ended when something came in between.
    outstanding: u64,
    failed: u64,
    full: u64,
    snapshots: usize,
    scrubs: u64,
    stopped: u64,
    states: u64,
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A client of one volume.
struct Bursts {
    run: Rc<Run>,
    device: CheckedDevice,
    drive: Arc<SimDrive>,
    manager: Manager,
    random: Random,
    with_failures: bool,
    tally: Tally,
}

impl Bursts {
    /// A few blocks of one slot.
    fn part(&mut self) -> (u64, u64) {
        let blocks = self.random.within(1..=3);
        let slot = self.random.below(USED_BLOCKS / SLOT_BLOCKS);
        let first = self.random.below(SLOT_BLOCKS - blocks + 1);
        (slot * SLOT_BLOCKS + first, blocks)
    }

    /// Whether a change was done; reads must not fail, and nothing may be wrong.
    fn is_done(&mut self, result: Result<(), CheckError>) -> Result<bool, String> {
        let Err(error) = result else { return Ok(true) };
        match error.io().map_err(told)? {
            IoError::CapacityExceeded => self.tally.full += 1,
            IoError::MediaWrite if self.with_failures => self.tally.failed += 1,
            _ if self.run.pool.stopped().is_some() => {}
            error => return Err(format!("a change failed: {error}")),
        }
        Ok(false)
    }

    fn managed(&self, result: Result<(), PoolError>) -> Result<(), String> {
        match result {
            // One scrub at a time.
            Ok(()) | Err(PoolError::NoSpace | PoolError::Busy { .. }) => Ok(()),
            Err(_) if self.run.pool.stopped().is_some() => Ok(()),
            Err(error) => Err(told(error)),
        }
    }

    async fn burst(&mut self) -> Result<(), String> {
        let mut writes = Vec::new();
        for _ in 0..self.random.within(2..=8) {
            let ((block, blocks), forced) = (self.part(), self.random.chance(0.1));
            let device = self.device.clone();
            writes.push(spawn(async move { device.write(block, blocks, forced).await }));
        }
        if self.with_failures && self.random.chance(0.2) {
            let nth = self.random.within(1..=3);
            self.drive
                .fail_nth(Operation::Write, nth, Fault::Error(IoError::MediaWrite));
        }
        yield_now().await;
        if self.random.chance(0.5) {
            sleep(self.random.duration(Duration::ZERO..=Duration::from_micros(500))).await;
        }
        self.tally.outstanding += writes.iter().filter(|write| !write.is_finished()).count() as u64;
        for _ in 0..self.random.within(1..=2) {
            self.between().await?;
        }
        for write in writes {
            let written = write.await;
            self.is_done(written)?;
        }
        let read = self.device.read(0, USED_BLOCKS).await;
        read.map_err(told)
    }

    /// Something that comes in between.
    async fn between(&mut self) -> Result<(), String> {
        let pool = self.run.pool.clone();
        let (block, blocks) = self.part();
        let options = ZeroOptions {
            force_unit_access: self.random.chance(0.5),
            may_deallocate: self.random.chance(0.7),
        };
        let result = match self.random.below(11) {
            0 | 1 => {
                let cut = self.manager.snapshot().await;
                let is_full = cut
                    .as_ref()
                    .is_err_and(|error| *error == told(PoolError::NoSpace));
                self.tally.full += u64::from(is_full);
                return cut.or_else(|error| (is_full || pool.stopped().is_some()).then_some(()).ok_or(error));
            }
            2 | 3 => return self.managed(pool.checkpoint().await),
            4 => {
                let report = pool.scrub(ScrubOptions::default(), &mut |_| ()).await;
                self.tally.scrubs += 1;
                // A failure may be that of the copy of a page, and of its repair.
                let is_lost = |lost_pages| lost_pages > 0 && !self.with_failures;
                return match report {
                    Ok(report) if report.bad_block_count > 0 || is_lost(report.lost_pages) => {
                        Err(format!("scrub: {report:?}"))
                    }
                    report => self.managed(report.map(drop)),
                };
            }
            5 => self.device.deallocate(block, blocks).await,
            6 => {
                // A slot, and what is around it.
                let slot = block / SLOT_BLOCKS * SLOT_BLOCKS;
                self.device.deallocate(slot, SLOT_BLOCKS).await
            }
            7 => self.device.write_zeroes(block, blocks, options).await,
            8 => self.device.flush().await,
            9 => self.device.write(block, blocks, false).await,
            _ => return self.device.read(block, blocks).await.map_err(told),
        };
        self.is_done(result).map(drop)
    }
}

/// Takes all room but that of some extents.
async fn fill(run: &Run, mut random: Random) -> Result<(), String> {
    let live = run.live.last().ok_or("no volume")?;
    let volume: Rc<dyn BlockDevice> = run.pool.open_volume(&live.name).map_err(told)?;
    let device = CheckedDevice::new(volume, live.oracle.clone());
    let mut slots = 0;
    while slots * SLOT_BLOCKS < FILLER_BLOCKS
        && device
            .write(slots * SLOT_BLOCKS, SLOT_BLOCKS, false)
            .await
            .is_ok()
    {
        slots += 1;
    }
    let left = random.within(8..=20).min(slots);
    device.deallocate(0, left * SLOT_BLOCKS).await.map_err(told)?;
    for _ in 0..2 {
        run.pool.checkpoint().await.map_err(told)?;
    }
    Ok(())
}

async fn exercise(drives: Drives, recorder: Arc<Recorder>, seed: u64) -> Result<(Rc<Run>, Tally), String> {
    let create = CreateOptions {
        journal_bytes: 512 << 10,
        ..CreateOptions::default()
    };
    let options = PoolOptions {
        background: false,
        ..pool_options(seed)
    };
    let pool = Pool::create("tank", drives.attach().await, &create, options).await;
    let pool = pool.map_err(told)?;
    let mut live = Vec::new();
    for number in 0..=VOLUMES {
        let (name, start) = (format!("v{number}"), recorder.position());
        let blocks = if number == VOLUMES {
            FILLER_BLOCKS
        } else {
            VOLUME_BLOCKS
        };
        let options = VolumeOptions {
            checksums: !(seed + number).is_multiple_of(5),
            ..VolumeOptions::new(blocks)
        };
        pool.create_volume(&name, &options).await.map_err(told)?;
        let end = recorder.position();
        live.push(Live {
            name,
            oracle: Rc::new(Oracle::recorded(&recorder).into()),
            sizes: vec![(Span { start, end }, blocks)].into(),
        });
    }
    let run = Rc::new(Run {
        pool,
        recorder,
        live,
        branches: Vec::new().into(),
        clients: 0.into(),
    });
    if seed % 3 != 2 {
        fill(&run, Seed(seed).stream("fill", 0)).await?;
    }
    let mut tasks = Vec::new();
    for (number, live) in (0..VOLUMES).zip(&run.live) {
        let volume = run.pool.open_volume(&live.name).map_err(told)?;
        let device: Rc<dyn BlockDevice> = volume;
        let mut bursts = Bursts {
            run: run.clone(),
            device: CheckedDevice::new(device, live.oracle.clone()),
            drive: drives.0[0].clone(),
            manager: Manager::new(run.clone(), number, Seed(seed).stream("late manager", number)),
            random: Seed(seed).stream("late", number),
            with_failures: seed.is_multiple_of(2),
            tally: Tally::default(),
        };
        tasks.push(spawn(async move {
            for round in 0..ROUNDS {
                let done = bursts.burst().await;
                done.map_err(|error| format!("volume {number}, round {round}: {error}"))?;
            }
            Ok::<_, String>(bursts.tally)
        }));
    }
    let mut all = Tally::default();
    for task in tasks {
        let tally = task.await?;
        all.outstanding += tally.outstanding;
        all.failed += tally.failed;
        all.full += tally.full;
        all.scrubs += tally.scrubs;
    }
    all.snapshots = run.branches.borrow().len();
    all.stopped = u64::from(run.pool.stopped().is_some());
    Ok((run, all))
}

fn check_seeds(seeds: std::ops::Range<u64>, cuts: u64) {
    let mut all = Tally::default();
    for seed in seeds {
        let mut bench = Bench::new(seed, 0);
        let recorder = Recorder::new();
        let micros = Duration::from_micros;
        let drive = SimDriveOptions {
            write_latency: Latency::between(micros(20), micros(2000)),
            ..drive_options(DRIVE_BYTES[seed as usize % 3])
        };
        let drive = SimDrive::new("drive", drive, seed);
        drive.record(&recorder);
        bench.drives = Drives(vec![drive]);
        let of_task = recorder.clone();
        let (run, tally) = bench
            .run(move |drives| exercise(drives, of_task, seed))
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        check_cuts(&bench, &run, &recorder, seed, cuts);
        all.outstanding += tally.outstanding;
        all.failed += tally.failed;
        all.full += tally.full;
        all.snapshots += tally.snapshots;
        all.scrubs += tally.scrubs;
        all.stopped += tally.stopped;
        all.states += cuts;
    }
    let seeds = all.states / cuts;
    let enough = all.outstanding > 100 * seeds
        && all.snapshots as u64 > 5 * seeds
        && all.scrubs > 2 * seeds
        && all.failed > seeds / 3
        && all.full > seeds;
    assert!(enough, "{all:?}");
}

#[test]
fn what_comes_in_between_writes_that_end_later_changes_nothing_1() {
    check_seeds(0..12, 40);
}

#[test]
fn what_comes_in_between_writes_that_end_later_changes_nothing_2() {
    check_seeds(12..24, 40);
}
