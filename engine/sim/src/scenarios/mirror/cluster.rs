//! Machines with replicas, a store, and targets with their clients.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Geometry};
use pollux_hugepages::Buffer;
use pollux_reactor::sleep;
use pollux_volume::membership::{
    Epoch, Membership, MembershipStore, MemoryStore, REPLICAS_MAX, ReplicaEntry, ReplicaState,
};
use pollux_volume::metadata::FormatOptions;
use pollux_volume::mirror::{MirrorOptions, SlowOptions};
use pollux_volume::replica::ReplicaPort;
use uuid::Uuid;

use super::Parts;
use super::backing::Backing;
use super::coverage::{Coverage, Event};
use super::replicas::{Plan, Way};
use super::snapshots::Book;
use super::store::SimStore;
use super::target::Target;
use super::wire::{HostSlot, serve};
use crate::drive::{Latency, SimDrive, SimDriveOptions};
use crate::oracle::SharedOracle;
use crate::random::Random;
use crate::{MachineId, MachineOptions, SimReactor, SimTask, World};

pub(super) const VOLUME: Uuid = Uuid::from_u128(0x706f_6c6c_7578);
const PORT: u16 = 4420;

/// Replicas that take no longer than this are not slow, however fast the others are.
const SLOW_FLOOR: Duration = Duration::from_millis(10);

/// The latency of bad links, one way. They stay when other faults are over, and a volume is to get well with
/// them: so there and back again, with a durable write between, takes less than [`SLOW_FLOOR`].
pub(super) const BAD_LATENCY_MAX: Duration = Duration::from_millis(3);

/// Within this time after the last fault all replicas have to be in sync.
const RECOVERY_LIMIT: Duration = Duration::from_secs(300);

/// Blocks of the volume, at first.
pub(super) const BLOCKS: u64 = 96;

/// Blocks that it grows to, at most, where it does.
pub(super) const GROWN_BLOCKS_MAX: u64 = 160;

/// Where data begins on drives so small.
const DATA_START_BYTES: u64 = 16 * 4096;

/// A machine with a replica.
pub(super) struct Node {
    pub(super) machine: MachineId,
    pub(super) reactor: SimReactor,
    pub(super) drive: Arc<SimDrive>,
    pub(super) backing: Backing,
    pub(super) host: HostSlot,
    /// There is a replica on the drive, which is opened when the engine starts.
    pub(super) has_replica: Rc<Cell<bool>>,
    /// What had the replica that was there may still do something.
    pub(super) is_ending: Rc<Cell<bool>>,
}

impl Node {
    /// Whether a replica may be made on the drive.
    pub(super) fn is_unused(&self) -> bool {
        !self.has_replica.get() && !self.is_ending.get()
    }
}

/// How far the clocks of machines may be off at most: a sixteenth, and a little less.
const DRIFT_PPB_MAX: u64 = 60_000_000;

/// What targets on all machines share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) oracle: SharedOracle,
    parts: Parts,
    /// The target that the control plane wants; older ones may not know.
    pub(super) generation: Rc<Cell<u64>>,
    /// The last opening that told clients of lost caches, of those that they have heard of.
    pub(super) loss_heard: Rc<Cell<Option<Epoch>>>,
    /// Clients that have not ended, or died with their machine.
    pub(super) clients: Rc<RefCell<Vec<SimTask<()>>>>,
    /// The first thing that was wrong.
    pub(super) wrong: Rc<RefCell<Option<String>>>,
    /// No more faults.
    pub(super) calm: Rc<Cell<bool>>,
    pub(super) settled: Rc<Cell<bool>>,
    pub(super) options: MirrorOptions,
    region_blocks: u64,
    min_in_sync: u8,
    /// The replicas as they are to be.
    pub(super) plan: Rc<Plan>,
    /// How machines are reached, in the order of the nodes.
    pub(super) ways: Rc<RefCell<Vec<Way>>>,
    pub(super) store_machine: MachineId,
    /// What is known of snapshots; `None` where replicas have none.
    pub(super) book: Option<Rc<Book>>,
    /// How often a target that another one follows ends in good order.
    pub(super) orderly: Rc<Cell<f64>>,
    /// Changes meant for the machine that serves: the node of the newest target.
    pub(super) serving: Rc<Cell<usize>>,
    pub(super) coverage: Rc<Coverage>,
    /// The newest target copies data to a replica, as far as it has told.
    pub(super) is_resyncing: Rc<Cell<bool>>,
}

pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) nodes: Vec<Node>,
    pub(super) store_machine: MachineId,
    pub(super) records: MemoryStore,
    pub(super) shared: Shared,
    /// Replicas come and go.
    pub(super) is_changing: bool,
    targets: Cell<u64>,
}

fn id(index: usize) -> Uuid {
    Uuid::from_u128(index as u128 + 1)
}

fn drive_options(random: &mut Random, block_bytes: u32, on_pools: bool) -> SimDriveOptions {
    let bytes = if on_pools { 12 << 20 } else { 1 << 20 };
    let options = SimDriveOptions::new(bytes, block_bytes).expect("the size and the block size are good");
    SimDriveOptions {
        geometry: Geometry {
            volatile_write_cache: random.chance(0.9),
            // Pools take no drives that tear 4 KiB.
            atomic_write_blocks: 4096 / block_bytes,
            ..options.geometry
        },
        tells_holes: random.chance(0.8),
        cache_bytes: random.within(0..=1 << 20),
        flush_latency: Latency::between(
            Duration::ZERO,
            random.duration(Duration::ZERO..=Duration::from_millis(2)),
        ),
        ..options
    }
}

impl Cluster {
    pub(super) fn new(world: World, random: &mut Random, parts: Parts, on_pools: bool) -> Self {
        let store_machine = world.add_machine("store");
        let drive_block_bytes = if random.chance(0.3) { 512 } else { 4096 };
        let block_bytes = if on_pools { 4096 } else { drive_block_bytes };
        // Clocks that run as wrong as they may, now and then.
        let drift_ppb = if random.chance(0.4) {
            DRIFT_PPB_MAX
        } else {
            100_000
        };
        // One more machine than replicas now and then: its targets have no replica of their own.
        let replicas = random.within(1..=4).max(2) as usize;
        let machines = replicas + usize::from(random.chance(0.3));
        let add_node = |index: usize, random: &mut Random| {
            let machine = world.add_machine_with("engine", MachineOptions::seeded(random));
            world.set_clock_drift(
                machine,
                random.within(0..=2 * drift_ppb) as i32 - drift_ppb as i32,
            );
            let options = drive_options(random, drive_block_bytes, on_pools);
            let drive = world.add_drive(machine, "drive", options);
            Node {
                machine,
                reactor: world.add_reactor(machine),
                backing: Backing::new(drive.clone(), on_pools, id(index)),
                drive,
                host: HostSlot::default(),
                has_replica: Rc::new(Cell::new(index < replicas)),
                is_ending: Rc::default(),
            }
        };
        let mut nodes: Vec<Node> = (0..machines).map(|index| add_node(index, random)).collect();
        // Machines on which replicas come in some runs.
        let mut spares = world.random("spares", 0);
        let is_changing = spares.chance(0.5);
        if is_changing {
            for index in machines..machines + spares.within(1..=2) as usize {
                nodes.push(add_node(index, &mut spares));
            }
        }
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
            block_bytes,
            min_in_sync: if random.chance(0.2) { 2 } else { 1 },
            replicas: entries,
            snapshots: Vec::new(),
            roll_back: None,
            caches_lost: None,
        };
        let min_in_sync = record.min_in_sync;
        let records = MemoryStore::default();
        records.swap(record).expect("the record is good");
        let millis = Duration::from_millis;
        let options = MirrorOptions {
            lease: random.duration(millis(100)..=millis(1500)),
            request_timeout: random.duration(millis(200)..=millis(2000)),
            // Often shorter than the lease: then it is the lease that an old target is waited for.
            promise_timeout: match random.chance(0.4) {
                true => random.duration(millis(150)..=millis(400)),
                false => random.duration(millis(300)..=millis(3000)),
            },
            store_timeout: millis(400),
            retry_pause: millis(5),
            rejoin_pause: random.duration(millis(10)..=millis(500)),
            retire_interval: random.duration(millis(50)..=millis(2000)),
            hold_limit: random.duration(millis(20)..=millis(1000)),
            resync_bytes_per_second: random.chance(0.5).then(|| random.within(1 << 18..=1 << 24)),
            resync_bytes_per_second_min: 1 << 20,
            bad_blocks_interval: millis(150),
            slow: SlowOptions {
                factor: if random.chance(0.7) { 5 } else { 0 },
                floor: SLOW_FLOOR,
                window: random.duration(millis(20)..=millis(200)),
                windows: random.within(1..=3) as u32,
                test_pause: random.duration(millis(20)..=millis(500)),
                outs_max: random.within(1..=5) as u32,
                outs_within: Duration::from_secs(60),
            },
        };
        let way = |node: &Node| Way {
            machine: node.machine,
            address: world.tcp(node.machine, PORT),
            backing: node.backing.clone(),
            host: node.host.clone(),
        };
        let ways: Vec<Way> = nodes.iter().map(way).collect();
        let shared = Shared {
            oracle: SharedOracle::default(),
            parts,
            generation: Rc::default(),
            loss_heard: Rc::default(),
            clients: Rc::default(),
            wrong: Rc::default(),
            calm: Rc::default(),
            settled: Rc::default(),
            options,
            region_blocks: 1 << random.within(0..=3),
            min_in_sync,
            plan: Rc::new(Plan::new((0..replicas).map(id))),
            ways: Rc::new(RefCell::new(ways)),
            store_machine,
            book: on_pools.then(Rc::default),
            orderly: Rc::default(),
            serving: Rc::default(),
            coverage: Rc::new(Coverage::new(on_pools)),
            is_resyncing: Rc::default(),
        };
        let cluster = Self {
            world,
            nodes,
            store_machine,
            records,
            shared,
            is_changing,
            targets: Cell::new(0),
        };
        cluster.format();
        cluster
    }

    pub(super) fn format_options(&self, replica: Uuid) -> FormatOptions {
        FormatOptions {
            volume: VOLUME,
            replica,
            region_blocks: self.shared.region_blocks,
        }
    }

    pub(super) fn min_in_sync(&self) -> usize {
        usize::from(self.shared.min_in_sync)
    }

    fn format(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.has_replica.get() {
                let (backing, options) = (node.backing.clone(), self.format_options(id(index)));
                self.world.block_on(node.reactor, async move {
                    backing
                        .format(&options)
                        .await
                        .expect("a good drive can be formatted");
                });
                // What formatted it ends.
                self.world.run_for(Duration::from_millis(1));
            }
            self.start_host(node);
        }
    }

    /// The engine of a machine, after a start.
    fn start_host(&self, node: &Node) {
        node.is_ending.set(false);
        self.open_host(node);
        let address = self.world.tcp(node.machine, PORT);
        drop(self.world.spawn(node.reactor, serve(address, node.host.clone())));
    }

    /// The engine takes charge of the replica on its drive, if there is one.
    pub(super) fn open_host(&self, node: &Node) {
        let (backing, host, has_replica) =
            (node.backing.clone(), node.host.clone(), node.has_replica.clone());
        *host.borrow_mut() = None;
        if !has_replica.get() {
            return;
        }
        drop(self.world.spawn(node.reactor, async move {
            while has_replica.get() {
                if let Ok(opened) = backing.open().await
                    && has_replica.get()
                {
                    *host.borrow_mut() = Some(opened);
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        }));
    }

    pub(super) fn restart(&self, node: &Node) {
        self.world.restart(node.machine);
        self.start_host(node);
    }

    pub(super) fn crash(&self, node: &Node, crash: crate::Crash) {
        *node.host.borrow_mut() = None;
        node.backing.close();
        self.world.crash(node.machine, crash);
    }

    /// Has some machine that runs be the target. An older one is told, or not.
    pub(super) fn start_target(&self, random: &mut Random) {
        let is_up = |index: &usize| {
            self.nodes
                .get(*index)
                .is_some_and(|node| self.world.is_up(node.machine))
        };
        let up: Vec<usize> = (0..self.nodes.len()).filter(is_up).collect();
        if let Some(&index) = random.pick(&up) {
            self.start_target_on(index, random);
        }
    }

    /// Has a machine be the target.
    pub(super) fn start_target_on(&self, index: usize, random: &mut Random) {
        let Some(node) = self.nodes.get(index) else {
            return;
        };
        self.shared.serving.set(index);
        if self.shared.is_resyncing.replace(false) {
            self.shared.coverage.reach(Event::TakenOverInResync);
        }
        self.shared.generation.set(self.shared.generation.get() + 1);
        self.targets.set(self.targets.get() + 1);
        let store: Rc<dyn MembershipStore> = Rc::new(SimStore {
            records: self.records.clone(),
            control: self.world.control(),
            machine: self.store_machine,
            client: node.machine,
            random: Rc::new(RefCell::new(self.world.random("store", self.targets.get()))),
            calm: self.shared.calm.clone(),
        });
        let target = Target {
            lease: (self.shared.parts.lease)(self.targets.get(), self.shared.options.lease),
            shared: self.shared.clone(),
            store: (self.shared.parts.store)(store),
            machine: node.machine,
            followed: 0,
            generation: self.shared.generation.get(),
            leaves_when_told: random.chance(0.3),
            control: self.world.control(),
            reactor: node.reactor,
            random: self.world.random("target", self.targets.get()),
        };
        drop(self.world.spawn(node.reactor, target.run()));
    }

    /// What was wrong up to now.
    pub(super) fn verdict(&self) -> Result<(), String> {
        self.shared.wrong.borrow().clone().map_or(Ok(()), Err)
    }

    /// The faults stop: the volume gets well, has all data, and all replicas are the same.
    pub(super) fn finish(&self) -> Result<(), String> {
        self.world.heal();
        for node in &self.nodes {
            node.drive.heal();
            // A pool whose journal could not be written has to be imported again.
            if self.shared.book.is_some() && self.world.is_up(node.machine) {
                self.crash(node, crate::Crash::Process);
            }
            if !self.world.is_up(node.machine) {
                self.restart(node);
            }
        }
        self.shared.calm.set(true);
        // Older targets find out, or their clients come to an end.
        self.world.run_for(Duration::from_secs(20));
        self.verdict()?;
        self.start_target(&mut self.world.random("finish", 0));
        let over = || self.shared.settled.get() || self.shared.wrong.borrow().is_some();
        let settled = match self.is_changing {
            true => self.settle_plan(over),
            false => self.world.run_until(over, RECOVERY_LIMIT),
        };
        self.verdict()?;
        settled.map_err(|limit| {
            let record = self.records.get(VOLUME);
            format!("not well after the faults: {limit}; the record is {record:?}")
        })?;
        self.compare()?;
        self.compare_snapshots()
    }

    /// Has the record follow the plan until all is over.
    fn settle_plan(&self, over: impl Fn() -> bool) -> Result<(), crate::TimeLimit> {
        let end = self.world.now() + RECOVERY_LIMIT;
        loop {
            self.follow_plan();
            let settled = self.world.run_until(&over, Duration::from_secs(1));
            if settled.is_ok() || self.world.now() >= end {
                return settled;
            }
        }
    }

    /// The machines with replicas.
    fn with_replicas(&self) -> impl Iterator<Item = (usize, &Node)> {
        let planned = self.shared.plan.replicas().into_iter();
        planned.filter_map(|replica| Some((replica.node, self.nodes.get(replica.node)?)))
    }

    /// All replicas hold the same. They are asked as their hosts have them, with all that is in caches.
    fn compare(&self) -> Result<(), String> {
        let mut first: Option<Vec<u8>> = None;
        let blocks = self
            .records
            .get(VOLUME)
            .map_or(BLOCKS, |record| record.size_blocks);
        for (index, node) in self.with_replicas() {
            let device = node.backing.device().ok_or("a replica is not open")?;
            let data = self.world.block_on(node.reactor, read_data(device, blocks))?;
            let first = first.get_or_insert_with(|| data.clone());
            if let Some(byte) = first.iter().zip(&data).position(|(one, other)| one != other) {
                let block = byte / self.block_bytes();
                return Err(format!("replica {index} differs from the first in block {block}"));
            }
        }
        Ok(())
    }

    fn block_bytes(&self) -> usize {
        self.nodes
            .first()
            .map_or(4096, |node| node.backing.geometry().block_bytes as usize)
    }

    /// Every snapshot is on the replicas that the record names, as it was when it was cut, and nothing else
    /// is.
    fn compare_snapshots(&self) -> Result<(), String> {
        let Some(book) = &self.shared.book else {
            return Ok(());
        };
        let record = self.records.get(VOLUME).map_err(|error| error.to_string())?;
        book.check_record(&record)?;
        for (index, node) in self.with_replicas() {
            let Some(host) = node.host.borrow().clone() else {
                return Err("a host is gone".to_owned());
            };
            let (book, record) = (book.clone(), record.clone());
            let checked = self.world.block_on(node.reactor, async move {
                book.check_replica(&host, &record, index).await
            });
            checked.map_err(|error| format!("replica {index}: {error}"))?;
        }
        Ok(())
    }
}

/// All data of a replica, or of a snapshot: so many blocks.
pub(super) async fn read_data(device: Rc<dyn BlockDevice>, blocks: u64) -> Result<Vec<u8>, String> {
    let geometry = device.geometry();
    let block_bytes = u64::from(geometry.block_bytes);
    let first = DATA_START_BYTES / block_bytes;
    let mut data = Vec::new();
    for block in 0..blocks {
        let into = Buffer::from_heap(block_bytes as usize);
        let read = device.read(first + block, into).await;
        data.extend_from_slice(&read.map_err(|error| format!("block {block}: {error}"))?);
    }
    Ok(data)
}

impl Shared {
    /// What was wrong first is told.
    pub(super) fn accuse(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }

    pub(super) fn wrap_port(&self, port: Rc<dyn ReplicaPort>) -> Rc<dyn ReplicaPort> {
        (self.parts.port)(port)
    }
}

impl Cluster {
    /// Whether replicas are volumes of pools.
    pub(super) fn on_pools(&self) -> bool {
        self.shared.book.is_some()
    }

    /// The machine of the newest target.
    pub(super) fn serving(&self) -> usize {
        self.shared.serving.get()
    }
}
