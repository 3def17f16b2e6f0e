//! Simulated drives for pools.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, Device};
use pollux_pool::{CreateOptions, Pool, PoolOptions, Volume, VolumeOptions};
use pollux_sim::{Fill, SimDrive, SimDriveOptions, SimReactor, World};

/// Bytes of a drive.
pub const DRIVE_BYTES: u64 = 16 << 20;

/// Bytes of the smallest device: 64 extents.
pub const TINY: u64 = 64 * 65536;

/// With the shortest journal that there is.
pub fn short_journal() -> CreateOptions {
    CreateOptions {
        journal_bytes: 1,
        ..CreateOptions::default()
    }
}

/// Nothing happens by itself.
pub fn options() -> PoolOptions {
    PoolOptions {
        cache_bytes: 0,
        background: false,
        ..PoolOptions::default()
    }
}

/// A drive full of noise, whose writes tear at 512 bytes only where nothing promises that they do not.
pub fn drive_options(bytes: u64) -> SimDriveOptions {
    let mut options = SimDriveOptions::new(bytes, 4096).unwrap().instant();
    options.fill = Fill::Noise(7);
    options
}

/// Drives that are there for a while.
#[derive(Clone)]
pub struct Drives(pub Vec<Arc<SimDrive>>);

impl Drives {
    /// A queue pair to each.
    pub async fn attach(&self) -> Vec<Rc<dyn BlockDevice>> {
        let mut devices = Vec::new();
        for drive in &self.0 {
            devices.push(drive.clone().attach().await.unwrap());
        }
        devices
    }

    /// A new pool on them.
    pub async fn pool(&self, create: &CreateOptions) -> Rc<Pool> {
        let pool = Pool::create("tank", self.attach().await, create, options()).await;
        pool.unwrap()
    }
}

/// A new volume of a pool.
pub async fn new_volume(pool: &Rc<Pool>, name: &str, blocks: u64) -> Rc<Volume> {
    let options = VolumeOptions::new(blocks);
    pool.create_volume(name, &options).await.unwrap();
    pool.open_volume(name).unwrap()
}

/// A world with one reactor, and drives.
pub struct Bench {
    pub world: World,
    pub reactor: SimReactor,
    pub drives: Drives,
}

impl Bench {
    pub fn new(seed: u64, drives: usize) -> Self {
        Self::of_sizes(seed, &vec![DRIVE_BYTES; drives])
    }

    /// With drives of so many bytes.
    pub fn of_sizes(seed: u64, sizes: &[u64]) -> Self {
        let world = World::new(seed);
        let machine = world.add_machine("engine");
        let reactor = world.add_reactor(machine);
        let drives = sizes.iter().enumerate();
        let drives = drives
            .map(|(number, bytes)| SimDrive::new(&format!("drive{number}"), drive_options(*bytes), seed));
        Self {
            world,
            reactor,
            drives: Drives(drives.collect()),
        }
    }

    pub fn run<F>(&self, act: impl FnOnce(Drives) -> F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.world.block_on(self.reactor, act(self.drives.clone()))
    }
}
