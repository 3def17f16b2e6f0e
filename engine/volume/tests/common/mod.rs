//! A volume with replicas on simulated drives of one machine, and paths to them that can be cut.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{
    AllocationQuery, BlockDevice, BlockDeviceExt, Completion, Device, Geometry, IoError, Request,
};
use pollux_hugepages::Buffer;
use pollux_pool::shared::SharedPool;
use pollux_pool::{CreateOptions, Pool, PoolOptions, VolumeOptions};
use pollux_reactor::{Unabandoned, sleep};
use pollux_sim::{PowerLoss, SimDrive, SimDriveOptions, SimReactor, World};
use pollux_volume::membership::{
    Epoch, Membership, MembershipStore, MemoryStore, REPLICAS_MAX, ReplicaEntry, ReplicaState, StoreError,
    StoreFuture,
};
use pollux_volume::metadata::{Area, FormatOptions};
use pollux_volume::mirror::{Mirror, MirrorOptions, OpenError};
use pollux_volume::replica::{
    CommandError, Commanding, Granted, OpeningSnapshot, PlainMedium, PoolMedium, PromiseError, Promising,
    ReplicaCommand, ReplicaHost, ReplicaMedium, ReplicaPort,
};
use uuid::Uuid;

pub const BLOCK: usize = 4096;
pub const VOLUME: Uuid = Uuid::from_u128(0x77);
/// Blocks of the volume, and of a region.
pub const BLOCKS: u64 = 128;
pub const REGION: u64 = 8;
/// Where data begins on the drives.
pub const DATA_START: u64 = 16;

pub fn id(index: usize) -> Uuid {
    Uuid::from_u128(index as u128 + 1)
}

/// A path to a host, which may be cut: requests fail then, and those under way do too.
#[derive(Clone)]
pub struct Path {
    host: Rc<RefCell<Option<ReplicaHost>>>,
    pub cut: Rc<Cell<bool>>,
    /// Commands, and nothing else, get no answer.
    pub commands_fail: Rc<Cell<bool>>,
    /// How long a command to cut a snapshot takes before it reaches the host.
    pub cuts_take: Rc<Cell<Duration>>,
    /// Reads of data get no answer until it is false again.
    pub reads_hang: Rc<Cell<bool>>,
    /// Reads of snapshots get no answer until it is false again.
    pub snapshots_hang: Rc<Cell<bool>>,
    /// Reads of snapshots that were asked for.
    pub snapshot_reads: Rc<Cell<u64>>,
    /// Questions for holes get no answer until it is false again.
    pub questions_hang: Rc<Cell<bool>>,
    /// Changes of data are refused as long as this is so, by a device that is not ready for them.
    pub not_ready: Rc<Cell<bool>>,
    /// Writes of data find no room.
    pub no_room: Rc<Cell<bool>>,
    /// Changes of data wait before they reach the host, until it is false again.
    pub changes_wait: Rc<Cell<bool>>,
    /// Changes of data that were asked for.
    pub changes: Rc<Cell<u64>>,
    pub is_local: bool,
}

impl Path {
    /// The host, while the path to it works.
    fn host(&self) -> Option<ReplicaHost> {
        self.host.borrow().clone().filter(|_| !self.cut.get())
    }
}

impl ReplicaPort for Path {
    fn promise(&self, epoch: Epoch) -> Promising {
        let path = self.clone();
        Box::pin(async move {
            let host = path.host().ok_or(PromiseError::Unreachable)?;
            let granted = host.promise(epoch).await?;
            let session: Rc<dyn BlockDevice> = Rc::new(Cuttable {
                device: granted.session.clone(),
                path: path.clone(),
                is_snapshot: false,
            });
            Ok(Granted { session, ..granted })
        })
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        let path = self.clone();
        Box::pin(async move {
            let host = path.host().ok_or(CommandError::Unreachable)?;
            let take = match command {
                ReplicaCommand::CutSnapshot { .. } => path.cuts_take.get(),
                _ => Duration::ZERO,
            };
            // It is on its way, whether or not anybody waits.
            let doing = async move {
                sleep(take).await;
                host.command(epoch, command).await
            };
            let answer = Unabandoned::new(doing).await;
            match path.commands_fail.get() || path.cut.get() {
                true => Err(CommandError::Unreachable),
                false => answer,
            }
        })
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        let path = self.clone();
        Box::pin(async move {
            let host = path.host().ok_or(CommandError::Unreachable)?;
            let device = host.open_snapshot(epoch, cut).await?;
            let is_snapshot = true;
            Ok(Rc::new(Cuttable {
                device,
                path,
                is_snapshot,
            }) as Rc<dyn BlockDevice>)
        })
    }

    fn is_local(&self) -> bool {
        self.is_local
    }
}

struct Cuttable {
    device: Rc<dyn BlockDevice>,
    path: Path,
    is_snapshot: bool,
}

impl Cuttable {
    /// Whether reads of data get no answer.
    fn reads_hang(&self) -> impl Fn() -> bool + 'static {
        let (path, is_snapshot) = (self.path.clone(), self.is_snapshot);
        move || path.reads_hang.get() || is_snapshot && path.snapshots_hang.get()
    }
}

impl BlockDevice for Cuttable {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let path = self.path.clone();
        if path.cut.get() {
            return Completion::failed(IoError::PathDown);
        }
        let is_write = matches!(&request, Request::Write { block, .. } if *block >= DATA_START);
        if is_write && path.no_room.get() {
            return Completion::failed(IoError::CapacityExceeded);
        }
        let is_data = matches!(&request, Request::Read { block, .. } if *block >= DATA_START);
        if is_data && self.is_snapshot {
            path.snapshot_reads.set(path.snapshot_reads.get() + 1);
        }
        let is_change = is_write
            || matches!(
                &request,
                Request::WriteZeroes { block, .. } | Request::Deallocate { block, .. } if *block >= DATA_START
            );
        if is_change {
            path.changes.set(path.changes.get() + 1);
            if path.not_ready.get() {
                return Completion::failed(IoError::NotReady);
            }
            if path.changes_wait.get() {
                let device = self.device.clone();
                return Completion::from_future(async move {
                    while path.changes_wait.get() {
                        sleep(Duration::from_millis(1)).await;
                    }
                    device.submit(request).await
                });
            }
        }
        let completion = self.device.submit(request);
        let reads_hang = self.reads_hang();
        Completion::from_future(async move {
            let result = completion.await;
            while is_data && reads_hang() && !path.cut.get() {
                sleep(Duration::from_millis(1)).await;
            }
            if path.cut.get() {
                Err(IoError::PathDown)
            } else {
                result
            }
        })
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        match self.path.cut.get() {
            true => Box::pin(async { Err(IoError::PathDown) }),
            false => {
                let asked = self.device.allocation(block, blocks, runs_max);
                let path = self.path.clone();
                Box::pin(async move {
                    while path.questions_hang.get() && !path.cut.get() {
                        sleep(Duration::from_millis(1)).await;
                    }
                    asked.await
                })
            }
        }
    }
}

/// A store that may be away.
#[derive(Clone, Default)]
pub struct Store {
    pub inner: MemoryStore,
    pub away: Rc<Cell<bool>>,
    /// The next swap is done, and nobody hears of it.
    pub deaf: Rc<Cell<bool>>,
}

impl MembershipStore for Store {
    fn load(&self, volume: Uuid) -> StoreFuture<Membership> {
        let store = self.clone();
        Box::pin(async move {
            if store.away.get() {
                return Err(StoreError::Unavailable);
            }
            store.inner.get(volume)
        })
    }

    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()> {
        let store = self.clone();
        Box::pin(async move {
            if store.away.get() {
                return Err(StoreError::Unavailable);
            }
            let result = store.inner.swap(next);
            if store.deaf.replace(false) {
                Err(StoreError::Unavailable)
            } else {
                result
            }
        })
    }
}

pub struct Cluster {
    pub world: World,
    pub reactor: SimReactor,
    pub drives: Vec<Arc<SimDrive>>,
    pub paths: Vec<Path>,
    pub store: Store,
    pub options: MirrorOptions,
    /// Each replica is a volume of a pool.
    on_pools: bool,
}

async fn make_pool(drive: &Arc<SimDrive>, options: &FormatOptions) {
    let queue = drive.clone().attach().await.unwrap();
    let create = CreateOptions {
        overwrite: true,
        ..CreateOptions::default()
    };
    let pool = Pool::create("tank", vec![queue], &create, PoolOptions::default());
    let pool = pool.await.unwrap();
    let size = VolumeOptions::new(DATA_START + BLOCKS);
    pool.create_volume("replica", &size).await.unwrap();
    let volume = pool.open_volume("replica").unwrap();
    Area::format(volume, options).await.map(drop).unwrap();
    // Nothing of it goes on beside the engine that comes.
    pool.export().await.unwrap();
}

/// The device of a replica, and what it is part of.
async fn medium_of(
    drive: Arc<SimDrive>,
    is_pool: bool,
    replica: Uuid,
) -> (Rc<dyn BlockDevice>, Rc<dyn ReplicaMedium>) {
    let queue = drive.clone().attach().await.unwrap();
    if !is_pool {
        return (queue, Rc::new(PlainMedium::new(drive)));
    }
    let (pool, _) = Pool::import(vec![queue], PoolOptions::default()).await.unwrap();
    let device = SharedPool::new(pool).device("replica").await.unwrap();
    let medium = PoolMedium::new(device.clone(), replica);
    (device.attach().await.unwrap(), Rc::new(medium))
}

/// Replicas on volumes of pools.
pub fn on_pools(seed: u64, replicas: usize) -> Cluster {
    let drive = SimDriveOptions::new(16 << 20, BLOCK as u32).unwrap();
    Cluster::on(seed, replicas, drive, true)
}

pub fn times() -> MirrorOptions {
    MirrorOptions {
        rejoin_pause: Duration::from_millis(50),
        retire_interval: Duration::from_millis(500),
        ..MirrorOptions::default()
    }
}

impl Cluster {
    pub fn new(seed: u64, replicas: usize) -> Self {
        let drive = SimDriveOptions::new(1 << 20, BLOCK as u32).unwrap();
        Self::with_drives(seed, replicas, drive)
    }

    /// Formatted drives with hosts, and a record that has them all in sync.
    pub fn with_drives(seed: u64, replicas: usize, options: SimDriveOptions) -> Self {
        Self::on(seed, replicas, options, false)
    }

    /// The same, and the replicas may be volumes of pools on the drives.
    pub fn on(seed: u64, replicas: usize, options: SimDriveOptions, on_pools: bool) -> Self {
        let world = World::new(seed);
        let machine = world.add_machine("one");
        let reactor = world.add_reactor(machine);
        let drives: Vec<_> = (0..replicas)
            .map(|_| world.add_drive(machine, "drive", options.clone()))
            .collect();
        let mut entries = [None; REPLICAS_MAX];
        for (index, entry) in entries.iter_mut().enumerate().take(replicas) {
            let state = ReplicaState::InSync;
            *entry = Some(ReplicaEntry { id: id(index), state });
        }
        let record = Membership {
            volume: VOLUME,
            epoch: Epoch(1),
            version: 1,
            size_blocks: BLOCKS,
            block_bytes: BLOCK as u32,
            min_in_sync: 1,
            replicas: entries,
            snapshots: Vec::new(),
            roll_back: None,
            caches_lost: None,
        };
        let store = Store::default();
        store.inner.swap(record).unwrap();
        let paths = (0..replicas)
            .map(|index| Path {
                host: Rc::default(),
                cut: Rc::default(),
                commands_fail: Rc::default(),
                cuts_take: Rc::default(),
                reads_hang: Rc::default(),
                snapshots_hang: Rc::default(),
                snapshot_reads: Rc::default(),
                questions_hang: Rc::default(),
                not_ready: Rc::default(),
                no_room: Rc::default(),
                changes_wait: Rc::default(),
                changes: Rc::default(),
                is_local: index == 0,
            })
            .collect();
        let cluster = Self {
            world,
            reactor,
            drives,
            paths,
            store,
            options: times(),
            on_pools,
        };
        for index in 0..replicas {
            cluster.format(index, id(index), VOLUME);
            cluster.start_host(index);
        }
        cluster
    }

    pub fn format(&self, index: usize, replica: Uuid, volume: Uuid) {
        let (drive, is_pool) = (self.drives[index].clone(), self.on_pools);
        let options = FormatOptions {
            volume,
            replica,
            region_blocks: REGION,
        };
        self.world.block_on(self.reactor, async move {
            match is_pool {
                true => make_pool(&drive, &options).await,
                false => {
                    let device = drive.attach().await.unwrap();
                    Area::format(device, &options).await.map(drop).unwrap();
                }
            }
        });
    }

    /// A host is gone, and its pool with it.
    pub fn stop_host(&self, index: usize) {
        *self.paths[index].host.borrow_mut() = None;
        if self.on_pools {
            self.world.run_for(Duration::from_millis(1));
        }
    }

    /// A host as of a new process.
    pub fn start_host(&self, index: usize) {
        let (drive, is_pool) = (self.drives[index].clone(), self.on_pools);
        self.stop_host(index);
        let host = self.world.block_on(self.reactor, async move {
            let (device, medium) = medium_of(drive, is_pool, id(index)).await;
            ReplicaHost::open(device, medium).await.unwrap()
        });
        *self.paths[index].host.borrow_mut() = Some(host);
    }

    pub fn try_open(&self) -> Result<Mirror, OpenError> {
        let opened = self.try_open_within(Duration::MAX);
        opened.expect("that takes as long as it wants")
    }

    /// Nothing if it takes longer: then the target is given up.
    pub fn try_open_within(&self, limit: Duration) -> Option<Result<Mirror, OpenError>> {
        let (ports, options) = (self.ports(), self.options.clone());
        let store: Rc<dyn MembershipStore> = Rc::new(self.store.clone());
        self.world.block_on(self.reactor, async move {
            let opening = Mirror::open(options, store, VOLUME, &ports);
            match limit {
                Duration::MAX => Some(opening.await),
                limit => pollux_reactor::timeout(limit, opening).await.ok(),
            }
        })
    }

    pub fn ports(&self) -> Vec<(Uuid, Rc<dyn ReplicaPort>)> {
        let ports = self.paths.iter().enumerate();
        ports
            .map(|(index, path)| (id(index), Rc::new(path.clone()) as Rc<dyn ReplicaPort>))
            .collect()
    }

    pub fn open(&self) -> Mirror {
        self.try_open().unwrap()
    }

    /// Runs something with the device of a mirror.
    pub fn with<T: 'static>(
        &self,
        mirror: &Mirror,
        act: impl AsyncFnOnce(Rc<dyn BlockDevice>) -> T + 'static,
    ) -> T {
        let device = mirror.device();
        self.world
            .block_on(self.reactor, async move { act(device).await })
    }

    /// Writes a block of one byte, over and over.
    pub fn write(&self, mirror: &Mirror, block: u64, byte: u8) {
        self.with(mirror, async move |device| {
            device.write(block, data(byte), false).await.unwrap()
        });
    }

    /// The first byte of a block.
    pub fn read(&self, mirror: &Mirror, block: u64) -> u8 {
        self.with(mirror, async move |device| {
            device.read(block, data(0)).await.unwrap()[0]
        })
    }

    /// All machines stop and start again.
    pub fn power_cycle(&self) {
        (0..self.drives.len()).for_each(|index| self.power_cycle_one(index));
    }

    /// A machine loses its power, and is started again.
    pub fn power_cycle_one(&self, index: usize) {
        self.drives[index].power_loss(PowerLoss::LoseAll);
        self.start_host(index);
    }

    /// The data of a block on one drive, without asking anybody.
    pub fn peek(&self, index: usize, block: u64) -> Vec<u8> {
        let mut data = vec![0; BLOCK];
        self.drives[index].peek((DATA_START + block) * BLOCK as u64, &mut data);
        data
    }

    /// Whether all data is the same on some drives.
    pub fn assert_identical(&self, drives: &[usize]) {
        for block in 0..BLOCKS {
            let first = self.peek(drives[0], block);
            for &other in &drives[1..] {
                assert!(
                    first == self.peek(other, block),
                    "block {block} differs on drive {other}"
                );
            }
        }
    }

    /// How many are in sync, as the store says.
    pub fn in_sync(&self) -> usize {
        self.store.inner.get(VOLUME).unwrap().in_sync().len()
    }

    /// Waits until so many are in sync.
    pub fn wait_in_sync(&self, count: usize) {
        let limit = Duration::from_secs(60);
        self.world.run_until(|| self.in_sync() == count, limit).unwrap();
    }
}

pub fn data(byte: u8) -> Buffer {
    blocks(byte, 1)
}

pub fn blocks(byte: u8, count: usize) -> Buffer {
    let mut buffer = Buffer::from_heap(count * BLOCK);
    buffer.fill(byte);
    buffer
}
