//! Machines with replicas, a store, and targets with their clients.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{Device, Geometry, IoError};
use pollux_reactor::sleep;
use pollux_volume::membership::{
    Epoch, Membership, MembershipStore, MemoryStore, REPLICAS_MAX, ReplicaEntry, ReplicaState,
};
use pollux_volume::metadata::{Area, FormatOptions};
use pollux_volume::mirror::{Mirror, MirrorOptions, OpenError, StopReason};
use pollux_volume::replica::{PlainMedium, ReplicaHost, ReplicaPort};
use uuid::Uuid;

use super::Parts;
use super::store::SimStore;
use super::wire::{HostSlot, LocalPort, RemotePort, serve};
use crate::drive::{Latency, SimDrive, SimDriveOptions};
use crate::oracle::{CheckError, CheckedDevice, SharedOracle, UnderWay, Workload};
use crate::random::Random;
use crate::{Control, MachineId, MachineOptions, SimReactor, SimTask, World};

const VOLUME: Uuid = Uuid::from_u128(0x706f_6c6c_7578);
const PORT: u16 = 4420;

/// Within this time after the last fault all replicas have to be in sync.
const RECOVERY_LIMIT: Duration = Duration::from_secs(300);

/// Blocks of the volume.
const BLOCKS: u64 = 96;

/// Where data begins on drives so small.
const DATA_START_BYTES: u64 = 16 * 4096;

/// A machine with a replica.
pub(super) struct Node {
    pub(super) machine: MachineId,
    pub(super) reactor: SimReactor,
    pub(super) drive: Arc<SimDrive>,
    host: HostSlot,
}

/// What targets on all machines share.
#[derive(Clone)]
struct Shared {
    oracle: SharedOracle,
    parts: Parts,
    /// The target that the control plane wants; older ones may not know.
    generation: Rc<Cell<u64>>,
    /// The power of a replica was cut since the volume was opened.
    power_lost: Rc<Cell<bool>>,
    /// Clients that have not ended, or died with their machine.
    clients: Rc<RefCell<Vec<SimTask<()>>>>,
    /// The first thing that was wrong.
    wrong: Rc<RefCell<Option<String>>>,
    /// No more faults.
    calm: Rc<Cell<bool>>,
    settled: Rc<Cell<bool>>,
    options: MirrorOptions,
    region_blocks: u64,
    replicas: usize,
}

pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) nodes: Vec<Node>,
    pub(super) store_machine: MachineId,
    records: MemoryStore,
    shared: Shared,
    targets: Cell<u64>,
}

fn id(index: usize) -> Uuid {
    Uuid::from_u128(index as u128 + 1)
}

fn drive_options(random: &mut Random, block_bytes: u32) -> SimDriveOptions {
    let options = SimDriveOptions::new(1 << 20, block_bytes).expect("the size and the block size are good");
    SimDriveOptions {
        geometry: Geometry {
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

impl Cluster {
    pub(super) fn new(world: World, random: &mut Random, parts: Parts) -> Self {
        let store_machine = world.add_machine("store");
        let block_bytes = if random.chance(0.3) { 512 } else { 4096 };
        // One more machine than replicas now and then: its targets have no replica of their own.
        let replicas = random.within(1..=4).max(2) as usize;
        let machines = replicas + usize::from(random.chance(0.3));
        let nodes: Vec<Node> = (0..machines)
            .map(|_| {
                let machine = world.add_machine_with("engine", MachineOptions::seeded(random));
                Node {
                    machine,
                    reactor: world.add_reactor(machine),
                    drive: world.add_drive(machine, "drive", drive_options(random, block_bytes)),
                    host: HostSlot::default(),
                }
            })
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
            block_bytes,
            min_in_sync: if random.chance(0.2) { 2 } else { 1 },
            replicas: entries,
            snapshots: Vec::new(),
        };
        let records = MemoryStore::default();
        records.swap(record).expect("the record is good");
        let millis = Duration::from_millis;
        let options = MirrorOptions {
            lease: random.duration(millis(100)..=millis(1000)),
            request_timeout: random.duration(millis(200)..=millis(2000)),
            promise_timeout: random.duration(millis(500)..=millis(3000)),
            store_timeout: millis(400),
            retry_pause: millis(5),
            rejoin_pause: random.duration(millis(10)..=millis(500)),
            retire_interval: random.duration(millis(50)..=millis(2000)),
            hold_limit: random.duration(millis(20)..=millis(1000)),
            resync_bytes_per_second: random.chance(0.5).then(|| random.within(1 << 18..=1 << 24)),
        };
        let shared = Shared {
            oracle: SharedOracle::default(),
            parts,
            generation: Rc::default(),
            power_lost: Rc::default(),
            clients: Rc::default(),
            wrong: Rc::default(),
            calm: Rc::default(),
            settled: Rc::default(),
            options,
            region_blocks: 1 << random.within(0..=3),
            replicas,
        };
        let cluster = Self {
            world,
            nodes,
            store_machine,
            records,
            shared,
            targets: Cell::new(0),
        };
        cluster.format();
        cluster
    }

    fn format(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let drive = node.drive.clone();
            let options = FormatOptions {
                volume: VOLUME,
                replica: id(index),
                region_blocks: self.shared.region_blocks,
            };
            self.world.block_on(node.reactor, async move {
                let queue = drive.attach().await.expect("a new drive attaches");
                drop(
                    Area::format(queue, &options)
                        .await
                        .expect("a good drive can be formatted"),
                );
            });
            self.start_host(node);
        }
    }

    /// The engine of a machine, after a start.
    fn start_host(&self, node: &Node) {
        let (drive, host) = (node.drive.clone(), node.host.clone());
        *host.borrow_mut() = None;
        drop(self.world.spawn(node.reactor, async move {
            loop {
                let medium = Rc::new(PlainMedium::new(drive.clone()));
                if let Ok(queue) = drive.clone().attach().await
                    && let Ok(opened) = ReplicaHost::open(queue, medium).await
                {
                    *host.borrow_mut() = Some(opened);
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        }));
        let address = self.world.tcp(node.machine, PORT);
        drop(self.world.spawn(node.reactor, serve(address, node.host.clone())));
    }

    pub(super) fn restart(&self, node: &Node) {
        self.world.restart(node.machine);
        self.start_host(node);
    }

    pub(super) fn crash(&self, node: &Node, crash: crate::Crash) {
        if crash == crate::Crash::Power {
            self.shared.power_lost.set(true);
        }
        *node.host.borrow_mut() = None;
        self.world.crash(node.machine, crash);
    }

    fn ports(&self, from: &Node) -> Vec<(Uuid, Rc<dyn ReplicaPort>)> {
        let replicas = self.nodes.iter().enumerate().take(self.shared.replicas);
        replicas
            .map(|(index, node)| {
                let port: Rc<dyn ReplicaPort> = match node.machine == from.machine {
                    true => Rc::new(LocalPort(node.host.clone())),
                    false => Rc::new(RemotePort {
                        address: self.world.tcp(node.machine, PORT),
                        geometry: node.drive.geometry(),
                    }),
                };
                (id(index), (self.shared.parts.port)(port))
            })
            .collect()
    }

    /// Has some machine that runs be the target. An older one is told, or not.
    pub(super) fn start_target(&self, random: &mut Random) {
        let up: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|node| self.world.is_up(node.machine))
            .collect();
        let Some(&node) = random.pick(&up) else {
            return;
        };
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
            shared: self.shared.clone(),
            store: (self.shared.parts.store)(store),
            ports: self.ports(node),
            generation: self.shared.generation.get(),
            leaves_when_told: random.chance(0.5),
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
            node.drive.set_faults(crate::Faults::default());
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
        let settled = self.world.run_until(over, RECOVERY_LIMIT);
        self.verdict()?;
        settled.map_err(|limit| {
            let record = self.records.get(VOLUME);
            format!("not well after the faults: {limit}; the record is {record:?}")
        })?;
        self.compare()
    }

    fn compare(&self) -> Result<(), String> {
        let block_bytes = u64::from(
            self.nodes
                .first()
                .map_or(4096, |node| node.drive.geometry().block_bytes),
        );
        let content = |node: &Node| {
            let mut data = vec![0; (BLOCKS * block_bytes) as usize];
            node.drive.peek(DATA_START_BYTES, &mut data);
            data
        };
        let mut replicas = self.nodes.iter().take(self.shared.replicas).map(content);
        let first = replicas.next().unwrap_or_default();
        for (index, other) in replicas.enumerate() {
            if let Some(byte) = first.iter().zip(&other).position(|(one, other)| one != other) {
                let block = byte as u64 / block_bytes;
                return Err(format!(
                    "replica {} differs from the first in block {block}",
                    index + 1
                ));
            }
        }
        Ok(())
    }
}

/// A target of the volume, and its clients.
struct Target {
    shared: Shared,
    store: Rc<dyn MembershipStore>,
    ports: Vec<(Uuid, Rc<dyn ReplicaPort>)>,
    generation: u64,
    /// It stops when another one is wanted, before that finds a way to tell.
    leaves_when_told: bool,
    control: Control,
    reactor: SimReactor,
    random: Random,
}

impl Target {
    async fn run(mut self) {
        while self.generation == self.shared.generation.get() {
            let opening = Mirror::open(
                self.shared.options.clone(),
                self.store.clone(),
                VOLUME,
                &self.ports,
            );
            match opening.await {
                Ok(mirror) => {
                    if self.serve(mirror).await == Some(StopReason::Superseded) {
                        return;
                    }
                }
                Err(OpenError::Superseded) if !self.shared.calm.get() => return,
                Err(_) => {}
            }
            let pause = self.random.duration(Duration::ZERO..=Duration::from_millis(500));
            sleep(pause).await;
        }
    }

    async fn serve(&mut self, mirror: Mirror) -> Option<StopReason> {
        self.opened();
        let device = mirror.device();
        if self.shared.calm.get() {
            self.settle(&mirror).await;
        }
        for _ in 0..self.random.within(1..=3) {
            let checked = CheckedDevice::remote(device.clone(), self.shared.oracle.clone());
            let mut random = self.control.random("client", self.random.u64());
            let shared = self.shared.clone();
            let client = async move {
                // Few blocks and no pause make clients meet.
                let is_close = random.chance(0.4);
                let blocks = random.within(1..=if is_close { 4 } else { BLOCKS / 2 });
                let start = if is_close {
                    0
                } else {
                    random.below(BLOCKS - blocks)
                };
                let pause = Duration::from_millis(if is_close { 1 } else { 20 });
                let mixed = Workload {
                    flushes: random.within(1..=6),
                    pause: random.duration(Duration::ZERO..=pause),
                    ..Workload::mixed(start..start + blocks, 1)
                };
                // Some only read: no write keeps them from going on when the target is cut off.
                let workload = match random.chance(0.4) {
                    true => Workload {
                        writes: 0,
                        forced_writes: 0,
                        flushes: 0,
                        zeroes: 0,
                        deallocates: 0,
                        ..mixed
                    },
                    false => mixed,
                };
                for _ in 0..random.within(1..=if is_close { 600 } else { 400 }) {
                    match workload.run(&checked, &mut random, |error| !is_end(error)).await {
                        Ok(_) => {}
                        Err(CheckError::Io(_)) => return,
                        Err(wrong) => {
                            shared.wrong.borrow_mut().get_or_insert(wrong.to_string());
                            return;
                        }
                    }
                }
            };
            self.shared
                .clients
                .borrow_mut()
                .push(self.control.spawn(self.reactor, client));
        }
        loop {
            sleep(Duration::from_millis(20)).await;
            let is_wanted = self.generation == self.shared.generation.get();
            if mirror.stopped().is_some() || (!is_wanted && self.leaves_when_told) {
                return mirror.stopped();
            }
        }
    }

    /// The volume is open: what it means for what was before.
    fn opened(&self) {
        let mut clients = self.shared.clients.borrow_mut();
        clients.retain(|client| !client.is_ended());
        let mut oracle = self.shared.oracle.borrow_mut();
        if self.shared.power_lost.replace(false) {
            oracle.power_cut(UnderWay::Remains);
        }
        if clients.is_empty() {
            // Nobody is left who could do it, and what was on its way was drained.
            oracle.clients_lost();
        }
    }

    /// All replicas are back, everything is there, and nothing is left to do.
    async fn settle(&mut self, mirror: &Mirror) {
        while mirror.membership().in_sync().len() < self.shared.replicas {
            if mirror.stopped().is_some() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        let checked = CheckedDevice::remote(mirror.device(), self.shared.oracle.clone());
        let read = checked.read_all().await;
        match read {
            Ok(()) => {
                sleep(self.shared.options.retire_interval * 3).await;
                self.shared.settled.set(true);
            }
            Err(CheckError::Io(error)) if is_end(error) => {}
            Err(wrong) => {
                self.shared.wrong.borrow_mut().get_or_insert(wrong.to_string());
            }
        }
        // Nothing may be changed any more by those who compare the replicas.
        std::future::pending().await
    }
}

/// The target is of no more use to its clients.
fn is_end(error: IoError) -> bool {
    matches!(error, IoError::Fenced | IoError::Gone)
}
