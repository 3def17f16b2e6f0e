//! Engines with a replica each, the record of the volume, and targets.

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pollux_api::engine::v1 as api;
use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_engine::replicas::RemoteReplica;
use pollux_hugepages::Buffer;
use pollux_pool::shared::{Owned, OwnedDevice};
use pollux_volume::membership::{
    Epoch, Membership, MembershipStore, REPLICAS_MAX, ReplicaEntry, ReplicaState, SlotNumber, StoreError,
    StoreFuture,
};
use pollux_volume::metadata::{AreaLayout, REGION_BLOCKS};
use pollux_volume::mirror::{GrowError, Mirror, MirrorOptions, OpenError, SnapshotError, StopReason};
use pollux_volume::replica::ReplicaPort;
use tempfile::TempDir;
use uuid::Uuid;

use crate::common::content::BLOCK_BYTES;
use crate::common::pool::{PoolFile, succeed};
use crate::common::target::{TargetThreads, VOLUME, in_tank, replica, replicas};
use crate::common::{EngineProcess, PATIENCE};
use crate::load::{BLOCKS, Load, Model};

/// Engines, each with a replica.
pub const ENGINES: usize = 3;

/// Bytes of the file of a pool.
const POOL_BYTES: u64 = 256 << 20;

/// Blocks by which the volume grows each time, and what its last block holds then.
const GROWTH_BLOCKS: u64 = REGION_BLOCKS;
const END_BYTE: u8 = 0xe7;

/// Attempts to open a volume whose replicas are just being started.
const OPENINGS_MAX: u32 = 20;

/// The pause when waiting.
const PAUSE: Duration = Duration::from_millis(5);

/// Records of the log of an engine that are told when something does not happen.
const RECORDS_TOLD: usize = 20;

/// Waits until something is so.
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(is_in_time(is_so), "{what}: not within {PATIENCE:?}");
}

/// Whether something is so in time.
fn is_in_time(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// The record, as a store that is always there has it.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Membership>>);

impl Store {
    pub fn get(&self) -> Membership {
        self.lock().clone()
    }

    pub fn in_sync(&self) -> usize {
        self.lock().in_sync().len()
    }

    /// Changes the record as whoever runs the cluster does.
    pub fn change(&self, change: impl Fn(Membership) -> Membership) {
        loop {
            let next = change(self.get().next());
            match self.swap(next) {
                Ok(()) => return,
                Err(StoreError::Conflict(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn swap(&self, next: Membership) -> Result<(), StoreError> {
        let mut current = self.lock();
        if Some(next.version) != current.version.checked_add(1) {
            return Err(StoreError::Conflict(Box::new(current.clone())));
        }
        next.check_follows(&current)?;
        *current = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Membership> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MembershipStore for Store {
    fn load(&self, _volume: Uuid) -> StoreFuture<Membership> {
        Box::pin(std::future::ready(Ok(self.get())))
    }

    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()> {
        Box::pin(std::future::ready(self.swap(next)))
    }
}

/// An engine that may run or not, and its replica.
struct Node {
    directory: TempDir,
    file: PoolFile,
    process: Option<EngineProcess>,
    /// The number of its replica.
    number: u128,
}

impl Node {
    fn start(&mut self) {
        let uri = self.file.uri();
        let process = EngineProcess::start_in(self.directory.path(), &["--pool", &uri]);
        self.process = Some(process);
    }

    fn address(directory: &Path) -> String {
        format!("unix:{}", directory.join("engine.sock").display())
    }

    fn running(&self) -> &EngineProcess {
        self.process.as_ref().expect("it runs")
    }
}

/// A target: its threads, its mirror, and those who use it.
pub struct Target {
    pub load: Load,
    threads: TargetThreads,
    mirror: Arc<Owned<Mirror>>,
    device: Arc<OwnedDevice>,
}

impl Target {
    /// Why it does no more, if so.
    pub fn stopped(&self) -> Option<StopReason> {
        let mirror = self.mirror.clone();
        self.threads
            .run(move || async move { mirror.call(|mirror| async move { mirror.stopped() }).await })
            .expect("it runs")
    }

    /// Starts clients.
    pub fn start_load(&self, seed: u64) {
        let (load, device) = (self.load.clone(), self.device.clone());
        self.threads
            .run(move || async move { load.start(&device.attach().await.expect("a queue"), seed) });
    }

    /// Ends clients, each after what it does.
    pub fn stop_load(&self) {
        self.load.stop();
        wait_until("clients end", || self.load.has_ended());
    }

    /// Makes the volume larger.
    fn grow(&self, blocks: u64) -> Result<(), GrowError> {
        let (mirror, device) = (self.mirror.clone(), self.device.clone());
        self.threads.run(move || async move {
            let grown = mirror.call(move |mirror| async move { mirror.grow(blocks).await });
            let grown = grown.await.expect("it runs");
            if grown.is_ok() {
                device.resized(blocks);
            }
            grown
        })
    }

    /// What a block of the end holds, and then other content.
    fn exchange(&self, block: u64, byte: u8) -> Result<u8, IoError> {
        let device = self.device.clone();
        self.threads.run(move || async move {
            let device = device.attach().await?;
            let found = device.read(block, Buffer::from_heap(BLOCK_BYTES)).await?;
            let mut data = Buffer::from_heap(BLOCK_BYTES);
            data.fill(byte);
            device.write(block, data, true).await?;
            let first = found.first().copied().unwrap_or_default();
            let is_uniform = found.iter().all(|byte| *byte == first);
            is_uniform.then_some(first).ok_or(IoError::Internal)
        })
    }

    fn follow(&self, ports: Vec<(Uuid, RemoteReplica)>, leaving: Vec<Uuid>) {
        let mirror = self.mirror.clone();
        self.threads.run(move || async move {
            let told = mirror.call(move |mirror| async move { mirror.follow(&local(ports), &leaving).await });
            told.await.expect("it runs");
        });
    }
}

fn local(ports: Vec<(Uuid, RemoteReplica)>) -> Vec<(Uuid, Rc<dyn ReplicaPort>)> {
    ports
        .into_iter()
        .map(|(id, port)| (id, Rc::new(port) as Rc<dyn ReplicaPort>))
        .collect()
}

/// See the module.
pub struct Cluster {
    nodes: Vec<Node>,
    pub store: Store,
    pub model: Model,
    next_number: u128,
}

impl Cluster {
    /// Engines with empty replicas of one volume.
    pub fn new() -> Self {
        let threads = TargetThreads::start();
        let nodes = (1..=ENGINES as u128).map(|number| {
            let file = PoolFile::new(POOL_BYTES);
            succeed(&["pool", "create", "tank", &file.uri()]);
            let mut node = Node {
                directory: tempfile::tempdir().expect("a directory"),
                file,
                process: None,
                number,
            };
            node.start();
            threads.runtime.block_on(create(&node));
            node
        });
        let nodes: Vec<Node> = nodes.collect();
        let mut entries = [None; REPLICAS_MAX];
        for (entry, node) in entries.iter_mut().zip(&nodes) {
            let (id, state) = (replica(node.number), ReplicaState::InSync);
            *entry = Some(ReplicaEntry { id, state });
        }
        let record = Membership {
            volume: VOLUME,
            epoch: Epoch(1),
            version: 1,
            size_blocks: BLOCKS,
            block_bytes: BLOCK_BYTES as u32,
            min_in_sync: 1,
            replicas: entries,
            snapshots: Vec::new(),
            roll_back: None,
            caches_lost: None,
        };
        record.check().expect("it is a record");
        Self {
            nodes,
            store: Store(Arc::new(Mutex::new(record))),
            model: Model::new(),
            next_number: ENGINES as u128 + 1,
        }
    }

    fn options() -> MirrorOptions {
        MirrorOptions {
            lease: Duration::from_millis(500),
            rejoin_pause: Duration::from_millis(20),
            retire_interval: Duration::from_millis(300),
            ..MirrorOptions::default()
        }
    }

    fn ports(&self, threads: &TargetThreads, host: &str) -> Vec<(Uuid, RemoteReplica)> {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| {
                let address = Node::address(node.directory.path());
                (replica(node.number), threads.port_at(&address, node.number, host))
            })
            .collect()
    }

    /// Opens the volume by a new target, and compares all of it with what is known.
    pub fn open(&self) -> Target {
        let threads = TargetThreads::start();
        let mut attempts = 0;
        let (mirror, device) = loop {
            attempts += 1;
            let (ports, store) = (self.ports(&threads, "target"), self.store.clone());
            let opened = threads.run(move || async move {
                let store: Rc<dyn MembershipStore> = Rc::new(store);
                let mirror = Mirror::open(Self::options(), store, VOLUME, &local(ports)).await?;
                let device = OwnedDevice::new("volume".to_owned(), Some(VOLUME), mirror.device());
                Ok::<_, OpenError>((Owned::new(Rc::new(mirror)), device))
            });
            match opened {
                Ok(opened) => break opened,
                Err(error) if attempts >= OPENINGS_MAX => panic!("the volume does not open: {error}"),
                Err(_) => std::thread::sleep(PAUSE * 20),
            }
        };
        let generation = self.model.take_over();
        let (model, attached) = (self.model.clone(), device.clone());
        let compared = threads.run(move || async move {
            let device = attached.attach().await.expect("a queue");
            model
                .compare(&format!("target {generation} at its start"), &device)
                .await
        });
        if let Err(error) = compared {
            self.model
                .mismatch(format!("target {generation} cannot be read: {error}"));
        }
        Target {
            load: Load::new(self.model.clone(), generation),
            threads,
            mirror,
            device,
        }
    }

    /// Kills an engine.
    pub fn kill(&mut self, index: usize) {
        let process = self.nodes.get_mut(index).and_then(|node| node.process.take());
        process.expect("it runs").kill();
    }

    /// Kills all engines at one moment.
    pub fn kill_all(&mut self) {
        let processes: Vec<EngineProcess> = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.process.take())
            .collect();
        for process in &processes {
            process.signal("KILL");
        }
        for mut process in processes {
            process.wait();
        }
    }

    /// Starts an engine again.
    pub fn start(&mut self, index: usize) {
        self.nodes.get_mut(index).expect("there is one").start();
    }

    /// Waits until all replicas are in sync.
    pub fn wait_in_sync(&mut self) {
        if is_in_time(|| self.store.in_sync() == ENGINES) {
            return;
        }
        for node in &mut self.nodes {
            let log = node
                .process
                .as_mut()
                .map(EngineProcess::log_so_far)
                .unwrap_or_default();
            for record in log.iter().skip(log.len().saturating_sub(RECORDS_TOLD)) {
                crate::tell(format_args!("replica {}: {record}", node.number));
            }
        }
        panic!(
            "not all replicas are in sync after {PATIENCE:?}: {:#?}",
            self.store.get()
        );
    }

    /// Puts a new replica in the place of that of an engine, while the volume is served.
    pub fn replace(&mut self, index: usize, target: &Target) {
        let old = replica(self.nodes[index].number);
        target.follow(self.ports(&target.threads, "target"), vec![old]);
        wait_until("the replica leaves the set", || {
            self.store.in_sync() == ENGINES - 1
        });
        self.store.change(|record| {
            let slot =
                SlotNumber::all().find(|&slot| record.replica(slot).is_some_and(|entry| entry.id == old));
            record.without_replica(slot.expect("it is there"))
        });
        self.nodes[index].number = self.next_number;
        self.next_number += 1;
        let new = replica(self.nodes[index].number);
        self.store.change(|mut record| {
            let place = record
                .replicas
                .iter_mut()
                .find(|entry| entry.is_none())
                .expect("a slot is free");
            *place = Some(ReplicaEntry {
                id: new,
                state: ReplicaState::Empty,
            });
            record
        });
        let node = &self.nodes[index];
        target.threads.runtime.block_on(async {
            let mut client = replicas(node.running()).await;
            let request = api::RemoveReplicaRequest {
                replica: old.to_string(),
            };
            let removed = client.remove_replica(request).await.expect("it is removed");
            assert!(removed.into_inner().removed, "it was there");
            create(node).await;
        });
        // A target that is just changing the record itself hears of the new one when it is told once more.
        wait_until("the new replica is in sync", || {
            target.follow(self.ports(&target.threads, "target"), Vec::new());
            std::thread::sleep(PAUSE * 20);
            self.store.in_sync() == ENGINES
        });
    }

    /// Makes the volume larger by a region while it is used. What was its last block is still there, and the
    /// new one holds zeros.
    pub fn grow(&mut self, target: &Target) {
        let before = self.store.get().size_blocks;
        let blocks = before + GROWTH_BLOCKS;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match target.grow(blocks) {
                Ok(()) => break,
                // One has just failed, or come back.
                Err(GrowError::Replica(SnapshotError::SetChanged)) if attempts < OPENINGS_MAX => {
                    std::thread::sleep(PAUSE * 20);
                }
                Err(error) => panic!("the volume does not grow: {error}"),
            }
        }
        assert_eq!(self.store.get().size_blocks, blocks);
        let (model, last) = (self.model.clone(), before - 1);
        let check = |block: u64, wanted: u8, byte: u8| match target.exchange(block, byte) {
            Ok(found) if found == wanted => {}
            found => model.mismatch(format!(
                "block {block} of a volume that has grown holds {found:?}, and is to hold {wanted}"
            )),
        };
        // The model has its own blocks, and this has the last one of each size.
        if before > BLOCKS {
            check(last, END_BYTE, END_BYTE);
        }
        check(blocks - 1, 0, END_BYTE);
    }

    /// Compares the replicas byte by byte, while there is no target.
    pub fn compare_replicas(&self) {
        let threads = TargetThreads::start();
        let epoch = self.store.get().epoch;
        let layout = AreaLayout::for_data(BLOCKS, REGION_BLOCKS).expect("it has a size");
        let data_begins = layout.area_blocks();
        let ports = self.ports(&threads, "judge");
        let contents: Vec<Result<Vec<u8>, String>> = ports
            .iter()
            .map(|(_, port)| {
                let read = threads.promised(port, epoch.0, move |granted| async move {
                    let mut all = Vec::with_capacity(BLOCKS as usize * BLOCK_BYTES);
                    for first in (0..BLOCKS).step_by(32) {
                        let data = granted
                            .session
                            .read(data_begins + first, Buffer::from_heap(32 * BLOCK_BYTES))
                            .await?;
                        all.extend_from_slice(&data);
                    }
                    Ok::<_, IoError>(all)
                });
                let read = read.map_err(|error| error.to_string())?;
                read.map_err(|error| error.to_string())
            })
            .collect();
        for ((id, _), content) in ports.iter().zip(&contents) {
            match (content, &contents[0]) {
                (Ok(content), Ok(first)) => {
                    let blocks = content.chunks(BLOCK_BYTES).zip(first.chunks(BLOCK_BYTES));
                    for (block, (one, other)) in blocks.enumerate() {
                        if one != other {
                            self.model.mismatch(format!(
                                "block {block} of replica {id} differs from that of the first"
                            ));
                        }
                    }
                }
                (Err(error), _) | (_, Err(error)) => {
                    self.model
                        .mismatch(format!("replica {id} cannot be compared: {error}"));
                }
            }
        }
    }

    /// Stops all engines, and checks their pools.
    pub fn end(mut self) {
        for node in &mut self.nodes {
            node.process.take().expect("it runs").stop();
            node.file.check();
        }
    }
}

async fn create(node: &Node) {
    let mut client = replicas(node.running()).await;
    let created = client
        .create_replica(in_tank(node.number, BLOCKS * BLOCK_BYTES as u64))
        .await;
    created.expect("it is made");
}
