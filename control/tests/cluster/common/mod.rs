//! A whole cluster in memory and in virtual time.

pub mod fleet;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pollux_api::control::v1::{
    Node, NodeSpec, Pool, PoolSpec, ReplicaState, Snapshot, SnapshotSpec, SnapshotState, SnapshotStatus,
    Volume, VolumePolicy, VolumeSpec, VolumeState,
};
use pollux_control::controller::{Clock, Controller, Observations, Parts};
use pollux_control::engines::EngineClient;
use pollux_control::model::{Guarded, Record};
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{ServiceParts, Services};
use pollux_control::store::{MemoryStore, Store, Transaction};
use pollux_control::world::World;
use uuid::Uuid;

use fleet::Fleet;

pub const GIB: u64 = 1 << 30;
pub const SECOND_US: u64 = 1_000_000;

/// Passes and ticks after which a cluster that has not settled never will.
const TICKS_MAX: usize = 2_000;

#[derive(Debug, Clone, Default)]
pub struct VirtualClock {
    passed_us: Arc<AtomicU64>,
    /// How far it was set back since.
    behind_us: Arc<AtomicU64>,
}

impl Clock for VirtualClock {
    fn now_unix_us(&self) -> u64 {
        let behind_us = self.behind_us.load(Ordering::Relaxed);
        self.steady_us().saturating_sub(behind_us)
    }

    fn steady_us(&self) -> u64 {
        self.passed_us.load(Ordering::Relaxed)
    }
}

impl VirtualClock {
    pub fn advance(&self, us: u64) {
        self.passed_us.fetch_add(us, Ordering::Relaxed);
    }

    pub fn set_back(&self, us: u64) {
        self.behind_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// A control plane with simulated engines.
pub struct Cluster {
    pub store: MemoryStore,
    pub fleet: Fleet,
    pub clock: VirtualClock,
    pub limits: Limits,
    /// What engines told the controller.
    pub observations: Arc<Observations>,
    pub controller: Controller,
}

/// What is to be where: nodes as (name, zone, rack).
pub type Layout = Vec<(String, String, String)>;

/// Nodes spread evenly over zones, and there over racks of ten.
pub fn layout(zones: usize, nodes_per_zone: usize) -> Layout {
    (0..zones)
        .flat_map(|zone| {
            (0..nodes_per_zone).map(move |node| {
                let rack = node / 10;
                (format!("n{zone}-{node}"), format!("z{zone}"), format!("r{rack}"))
            })
        })
        .collect()
}

pub async fn put<R: Record>(store: &dyn Store, record: &R) {
    let mut transaction = Transaction::default();
    transaction.put(record);
    store
        .commit(transaction)
        .await
        .expect("it is new, or as it was read");
}

/// The UUID of a record of this name.
pub fn uid<R: Record>(name: &str) -> String {
    let name = format!("{}-{name}", R::KIND);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
}

pub fn named<R: Record>(mut record: R, name: &str) -> R {
    let metadata = record.meta_mut();
    metadata.name = name.to_owned();
    metadata.uid = uid::<R>(name);
    record
}

pub fn volume(name: &str, replicas: u32) -> Volume {
    let spec = VolumeSpec {
        size_bytes: 10 * GIB,
        policy: Some(VolumePolicy {
            replicas: Some(replicas),
            ..VolumePolicy::default()
        }),
        ..VolumeSpec::default()
    };
    let volume = Volume {
        spec: Some(spec),
        ..Volume::default()
    };
    named(volume, name)
}

pub fn snapshot(name: &str, volume: &Volume) -> Snapshot {
    let snapshot = Snapshot {
        metadata: None,
        spec: Some(SnapshotSpec {
            volume: volume.name().to_owned(),
            group_snapshot: String::new(),
        }),
        status: Some(SnapshotStatus {
            state: SnapshotState::Pending.into(),
            volume_uid: volume.meta().uid.clone(),
            size_bytes: volume.spec.as_ref().map_or(0, |spec| spec.size_bytes),
            ..SnapshotStatus::default()
        }),
    };
    named(snapshot, name)
}

/// What answers calls, beside the planner of a cluster.
pub fn services(cluster: &Cluster) -> Services {
    Services::new(ServiceParts {
        store: Arc::new(cluster.store.clone()),
        observations: cluster.observations.clone(),
        engines: Arc::new(cluster.fleet.clone()),
        clock: Arc::new(cluster.clock.clone()),
        limits: Limits::default(),
        guard: Guard::Local,
    })
}

async fn start(parts: Parts) -> Controller {
    let leadership = parts.store.lead("test").await.expect("nobody else leads");
    Controller::start(parts, leadership)
        .await
        .expect("the store answers")
}

impl Cluster {
    /// With one pool on each node, all of them online.
    pub async fn new(layout: &Layout, limits: Limits) -> Self {
        let store = MemoryStore::default();
        for (name, zone, rack) in layout {
            let spec = NodeSpec {
                address: format!("{name}:4430"),
                zone: zone.clone(),
                rack: rack.clone(),
                ..NodeSpec::default()
            };
            let node = Node {
                spec: Some(spec),
                ..Node::default()
            };
            put(&store, &named(node, name)).await;
            let spec = PoolSpec {
                node: name.clone(),
                devices: vec!["malloc:///x".to_owned()],
                ..PoolSpec::default()
            };
            let pool = Pool {
                spec: Some(spec),
                ..Pool::default()
            };
            put(&store, &named(pool, &format!("{name}.p"))).await;
        }
        let fleet = Fleet::new(layout.iter().map(|(name, _, _)| name.as_str()));
        let clock = VirtualClock::default();
        clock.advance(1_000_000 * SECOND_US);
        let parts = Parts {
            store: Arc::new(store.clone()),
            engines: Arc::new(fleet.clone()),
            clock: Arc::new(clock.clone()),
            limits: limits.clone(),
            observations: Arc::default(),
        };
        let mut cluster = Self {
            store,
            fleet,
            clock,
            limits,
            observations: parts.observations.clone(),
            controller: start(parts).await,
        };
        cluster.settle().await;
        cluster
    }

    /// The control plane ends, and another one begins.
    pub async fn restart(&mut self) {
        let store = Arc::new(self.store.clone());
        let engines = Arc::new(self.fleet.clone());
        self.restart_with(store, engines).await;
    }

    /// The control plane ends, and another one begins that sees store and engines by other means.
    pub async fn restart_with(&mut self, store: Arc<dyn Store>, engines: Arc<dyn EngineClient>) {
        self.observations = Arc::default();
        let parts = Parts {
            store,
            engines,
            clock: Arc::new(self.clock.clone()),
            limits: self.limits.clone(),
            observations: self.observations.clone(),
        };
        self.controller = start(parts).await;
    }

    /// A second of virtual time. Returns the steps that were done.
    pub async fn tick(&mut self) -> usize {
        self.clock.advance(SECOND_US);
        self.fleet.tick(&self.store).await;
        self.controller.pull_reports().await;
        self.controller.pass().await.expect("the store answers")
    }

    pub async fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick().await;
        }
    }

    /// Ticks until nothing was to be done for a while, and returns how many that took.
    pub async fn settle(&mut self) -> usize {
        let mut quiet = 0;
        for ticks in 1..=TICKS_MAX {
            quiet = match self.tick().await {
                0 => quiet + 1,
                _ => 0,
            };
            if quiet > 8 {
                return ticks;
            }
        }
        panic!(
            "it does not settle: {:?}",
            pollux_control::plan::plan(self.world(), &self.limits)
        );
    }

    pub fn world(&self) -> &World {
        self.controller.world()
    }

    /// A record as it is now.
    pub async fn get<R: Record>(&self, name: &str) -> Option<R> {
        let entry = self
            .store
            .get(&R::KIND.key(name))
            .await
            .expect("the store answers")?;
        Some(R::read(&entry).expect("it can be read"))
    }

    pub async fn update<R: Record>(&self, name: &str, change: impl FnOnce(&mut R)) {
        let mut record = self.get::<R>(name).await.expect("it is there");
        change(&mut record);
        put(&self.store, &record).await;
    }

    /// What must hold at any time.
    pub fn check(&self) {
        let engines = self.fleet.lock();
        for volume in self.world().volumes.values() {
            let Some(status) = &volume.status else { continue };
            let nodes: BTreeSet<&str> = status
                .replicas
                .iter()
                .map(|replica| replica.node.as_str())
                .collect();
            assert_eq!(
                nodes.len(),
                status.replicas.len(),
                "two replicas of a volume share a node"
            );
            let Some(acknowledged) = engines.acknowledged.get(&volume.meta().uid) else {
                continue;
            };
            for replica in &status.replicas {
                let engine = engines.engines.get(&replica.node);
                let found = engine.and_then(|engine| engine.replicas.get(&replica.uid));
                if replica.state() == ReplicaState::InSync {
                    let found = found.unwrap_or_else(|| panic!("{} in sync and not there", replica.uid));
                    assert_eq!(
                        found.written,
                        *acknowledged,
                        "{}: in sync and stale",
                        volume.name()
                    );
                }
            }
        }
    }

    /// What must hold once all has settled: every volume is whole, and engines hold what is on record and
    /// no more.
    pub fn check_settled(&self) {
        self.check();
        let world = self.world();
        assert_eq!(world.removals.len(), 0, "{:?}", world.removals);
        let mut replicas = BTreeSet::new();
        let mut targets = BTreeSet::new();
        for volume in world.volumes.values() {
            let status = volume.status.as_ref().expect("it has been planned for");
            assert_eq!(
                status.state(),
                VolumeState::Healthy,
                "{}: {}",
                volume.name(),
                status.message
            );
            let wanted = world.policy(volume).replicas as usize;
            assert_eq!(status.replicas.len(), wanted, "{}", volume.name());
            let uids = status
                .replicas
                .iter()
                .map(|replica| (replica.node.clone(), replica.uid.clone()));
            replicas.extend(uids);
            targets.insert((status.target_node.clone(), volume.meta().uid.clone()));
            let is_published = volume.spec.as_ref().is_some_and(|spec| !spec.hosts.is_empty());
            for replica in status.replicas.iter().filter(|_| is_published) {
                // As the target, or as a standby.
                targets.insert((replica.node.clone(), volume.meta().uid.clone()));
            }
        }
        let engines = self.fleet.lock();
        let up = || engines.engines.iter().filter(|(_, engine)| engine.up);
        let held: BTreeSet<(String, String)> = up()
            .flat_map(|(node, engine)| engine.replicas.keys().map(|uid| (node.clone(), uid.clone())))
            .collect();
        let served: BTreeSet<(String, String)> = up()
            .flat_map(|(node, engine)| engine.targets.keys().map(|uid| (node.clone(), uid.clone())))
            .collect();
        assert_eq!(held, replicas, "replicas on engines and on record");
        assert_eq!(served, targets, "targets on engines and on record");
    }
}
