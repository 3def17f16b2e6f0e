//! Clients of one drive, whose machine crashes again and again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, Device, Geometry};

use crate::drive::{Latency, SimDrive, SimDriveOptions};
use crate::oracle::{CheckError, CheckedDevice, SharedOracle, UnderWay, Workload};
use crate::random::Random;
use crate::{Crash, Finished, MachineId, MachineOptions, Run, SimTask, World, WorldOptions};

pub(super) fn run(run: &Run) -> Result<Finished, String> {
    exercise_drive(run, Rc::new(|device| device))
}

/// What stands between the clients and the drive.
pub(super) type Wrap = Rc<dyn Fn(Rc<dyn BlockDevice>) -> Rc<dyn BlockDevice>>;

/// Has clients use a drive, through what `wrap` makes of it, while its machine crashes; checks every read.
///
/// With a wrapper that does something wrong this must fail for most seeds: that is how the checks are
/// checked.
///
/// # Errors
///
/// What was wrong.
pub fn exercise_drive(run: &Run, wrap: Wrap) -> Result<Finished, String> {
    let world = run.world(WorldOptions::default());
    let mut random = world.random("scenario", 0);
    let machine = world.add_machine_with("one", MachineOptions::seeded(&mut random));
    for _ in 0..random.within(1..=2) {
        world.add_reactor(machine);
    }
    let drive = world.add_drive(machine, "drive", drive_options(&mut random));
    let exercise = Exercise {
        world,
        machine,
        drive,
        wrap,
        oracle: SharedOracle::default(),
    };
    for round in 0..random.within(2..=5) {
        exercise.round(round, &mut random)?;
    }
    exercise.check()?;
    Ok(Finished::of(&exercise.world))
}

fn drive_options(random: &mut Random) -> SimDriveOptions {
    let block_bytes = if random.chance(0.5) { 512 } else { 4096 };
    let options = SimDriveOptions::new(256 * u64::from(block_bytes), block_bytes);
    let options = options.expect("the size and the block size are good");
    SimDriveOptions {
        geometry: Geometry {
            // The oracle looks at whole blocks, and so they must not be torn.
            atomic_write_blocks: random.within(1..=4) as u32,
            volatile_write_cache: random.chance(0.9),
            ..options.geometry
        },
        cache_bytes: random.within(0..=1 << 20),
        flush_latency: Latency::between(
            Duration::ZERO,
            random.duration(Duration::ZERO..=Duration::from_millis(2)),
        ),
        ..options
    }
}

struct Exercise {
    world: World,
    machine: MachineId,
    drive: Arc<SimDrive>,
    wrap: Wrap,
    oracle: SharedOracle,
}

impl Exercise {
    /// Clients work until the machine crashes, or until they are done.
    fn round(&self, round: u64, random: &mut Random) -> Result<(), String> {
        self.check()?;
        let blocks = random.within(1..=32);
        let start = random.below(256 - blocks);
        let reactors = self.world.reactors(self.machine);
        let mut clients = Vec::new();
        for client in 0..random.within(1..=4) {
            let Some(&reactor) = random.pick(&reactors) else {
                break;
            };
            let workload = Workload {
                flushes: random.within(1..=6),
                ..Workload::mixed(start..start + blocks, random.within(1..=100))
            };
            let mut stream = self.world.random("client", round << 8 | client);
            let attaching = self.attach();
            clients.push(self.world.spawn(reactor, async move {
                let device = attaching.await?;
                workload.run(&device, &mut stream, |_| false).await
            }));
        }
        self.world
            .run_for(random.duration(Duration::ZERO..=Duration::from_millis(20)));
        let crash = random
            .pick(&[Crash::Power, Crash::Power, Crash::Process])
            .copied();
        match crash.filter(|_| random.chance(0.9)) {
            Some(crash) => self.crash(crash),
            None => self.world.run_for(Duration::from_secs(60)),
        }
        clients.into_iter().try_for_each(|client| verdict(&client))
    }

    fn crash(&self, crash: Crash) {
        self.world.crash(self.machine, crash);
        match crash {
            Crash::Power => self.oracle.borrow_mut().power_cut(UnderWay::Lost),
            Crash::Process => self.oracle.borrow_mut().clients_lost(),
        }
        self.world.restart(self.machine);
    }

    fn attach(&self) -> impl Future<Output = Result<CheckedDevice, CheckError>> + 'static {
        let (drive, wrap, oracle) = (self.drive.clone(), self.wrap.clone(), self.oracle.clone());
        async move {
            let queue = drive.attach().await?;
            Ok(CheckedDevice::new(wrap(queue), oracle))
        }
    }

    /// Reads all that was ever written.
    fn check(&self) -> Result<(), String> {
        let reactors = self.world.reactors(self.machine);
        let Some(&reactor) = reactors.first() else {
            return Err("the machine has no reactor".to_owned());
        };
        let attaching = self.attach();
        let result = self
            .world
            .block_on(reactor, async move { attaching.await?.read_all().await });
        result.map_err(|error: CheckError| error.to_string())
    }
}

/// What a client found, if it came to an end.
fn verdict<T>(client: &SimTask<Result<T, CheckError>>) -> Result<(), String> {
    match client.take() {
        Some(Ok(Err(error))) => Err(error.to_string()),
        Some(Ok(Ok(_)) | Err(_)) | None => Ok(()),
    }
}
