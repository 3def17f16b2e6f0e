//! Engines in memory, in virtual time: what they are told they do, and what targets have to do they do at
//! each tick.
//!
//! Data is one number for each volume: how many writes were acknowledged. A replica has the number of the
//! last write that it took. So it can be checked that what the control plane calls in sync is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use pollux_api::control::v1::{
    ChangeInSyncRequest, EngineReport, PoolHealth, PoolReport, ReplicaConfig, ReplicaReport, TargetConfig,
    engine_command::Command,
};
use pollux_control::engines::{EngineAddress, EngineClient, EngineError};
use pollux_control::registry::{InSyncError, change_in_sync};
use pollux_control::store::Store;

/// Ticks that a rebuild takes.
const REBUILD_TICKS: u32 = 3;

pub const TIB: u64 = 1 << 40;

#[derive(Debug, Clone)]
pub struct Replica {
    pub config: ReplicaConfig,
    pub snapshots: BTreeSet<String>,
    /// The last write that it took.
    pub written: u64,
    /// It refuses targets of older epochs.
    promised: u64,
    rebuilt_ticks: u32,
}

#[derive(Debug, Clone, Default)]
pub struct Engine {
    pub up: bool,
    pub term: u64,
    pub pools: BTreeMap<String, PoolHealth>,
    pub replicas: BTreeMap<String, Replica>,
    pub targets: BTreeMap<String, TargetConfig>,
    /// Pools in which no replica can be made.
    pub refusing: bool,
    report: Option<Arc<EngineReport>>,
}

#[derive(Debug, Default)]
pub struct Engines {
    pub engines: BTreeMap<String, Engine>,
    /// How many writes of each volume were acknowledged, by UUID.
    pub acknowledged: BTreeMap<String, u64>,
    /// Most rebuilds that a node took part in at a time, and most altogether.
    pub rebuilds_seen: (usize, usize),
}

/// Engines in memory. Clones are the same engines.
#[derive(Debug, Clone, Default)]
pub struct Fleet(Arc<Mutex<Engines>>);

impl Fleet {
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let fleet = Self::default();
        for node in nodes {
            let engine = Engine {
                up: true,
                ..Engine::default()
            };
            fleet.lock().engines.insert(node.to_owned(), engine);
        }
        fleet
    }

    pub fn lock(&self) -> MutexGuard<'_, Engines> {
        self.0.lock().expect("no test panics with it")
    }

    /// An engine dies, or comes back with what is on its drives.
    pub fn set_up(&self, node: &str, up: bool) {
        let mut engines = self.lock();
        let engine = engines.engines.get_mut(node).expect("a node");
        engine.up = up;
        if !up {
            engine.targets.clear();
            engine.report = None;
        }
    }

    /// Targets take writes, let go of replicas that they cannot reach, and copy to those that lack something.
    pub async fn tick(&self, store: &dyn Store) {
        let mut requests = Vec::new();
        {
            let mut engines = self.lock();
            let serving: Vec<(String, TargetConfig)> = engines
                .engines
                .iter()
                .filter(|(_, engine)| engine.up)
                .flat_map(|(node, engine)| {
                    engine
                        .targets
                        .values()
                        .map(|target| (node.clone(), target.clone()))
                })
                .collect();
            let mut by_node: BTreeMap<String, usize> = BTreeMap::new();
            let mut total = 0;
            for (node, target) in serving {
                let rebuilds = engines.serve(&target, &mut requests);
                for to in &rebuilds {
                    total += 1;
                    *by_node.entry(to.clone()).or_default() += 1;
                    if *to != node {
                        *by_node.entry(node.clone()).or_default() += 1;
                    }
                }
            }
            let most = by_node.values().copied().max().unwrap_or(0);
            let seen = &mut engines.rebuilds_seen;
            *seen = (seen.0.max(most), seen.1.max(total));
        }
        for request in requests {
            match change_in_sync(store, None, &request).await {
                // The new configuration comes from the control plane.
                Ok(_) | Err(InSyncError::Stale { .. } | InSyncError::NotFound(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Engines {
    fn replica(&mut self, node: &str, uid: &str) -> Option<&mut Replica> {
        let engine = self.engines.get_mut(node).filter(|engine| engine.up)?;
        engine.replicas.get_mut(uid)
    }

    /// What an engine would tell is another thing now.
    fn changed(&mut self, node: &str) {
        if let Some(engine) = self.engines.get_mut(node) {
            engine.report = None;
        }
    }

    /// One tick of one target. Returns the nodes to which whole replicas are being copied.
    fn serve(&mut self, target: &TargetConfig, requests: &mut Vec<ChangeInSyncRequest>) -> Vec<String> {
        let mut reached = Vec::new();
        let mut copied = Vec::new();
        let mut all_reached = true;
        for replica in &target.replicas {
            let found = self.replica(&replica.node, &replica.uid);
            let Some(found) = found.filter(|found| found.promised <= target.epoch) else {
                all_reached &= !replica.in_sync;
                continue;
            };
            found.promised = target.epoch;
            reached.push(replica);
        }
        let in_sync: Vec<_> = reached.iter().filter(|replica| replica.in_sync).collect();
        let Some(first) = in_sync.first() else {
            return copied;
        };
        let request = |uids: Vec<String>| ChangeInSyncRequest {
            volume_uid: target.volume_uid.clone(),
            volume: target.volume.clone(),
            epoch: target.epoch,
            version: target.version,
            in_sync_uids: uids,
        };
        if !all_reached {
            // The set shrinks in the store first; until then nothing is acknowledged.
            requests.push(request(
                in_sync.iter().map(|replica| replica.uid.clone()).collect(),
            ));
            return copied;
        }
        if in_sync.len() >= target.min_in_sync as usize {
            let written = self.acknowledged.entry(target.volume_uid.clone()).or_default();
            *written += 1;
            let written = *written;
            for replica in &in_sync {
                self.replica(&replica.node, &replica.uid)
                    .expect("reached")
                    .written = written;
            }
        }
        for uid in &target.snapshot_uids {
            let is_taken = in_sync.iter().any(|replica| {
                let found = self.replica(&replica.node, &replica.uid).expect("reached");
                found.snapshots.contains(uid)
            });
            for replica in in_sync.iter().filter(|_| !is_taken) {
                let found = self.replica(&replica.node, &replica.uid).expect("reached");
                found.snapshots.insert(uid.clone());
                self.changed(&replica.node);
            }
        }
        let source = self.replica(&first.node, &first.uid).expect("reached").clone();
        let mut joined: Vec<String> = in_sync.iter().map(|replica| replica.uid.clone()).collect();
        let count = joined.len();
        for replica in reached.iter().filter(|replica| !replica.in_sync) {
            let found = self.replica(&replica.node, &replica.uid).expect("reached");
            let is_whole = found.written == 0;
            found.rebuilt_ticks += 1;
            if found.rebuilt_ticks >= REBUILD_TICKS {
                found.written = source.written;
                found.snapshots.clone_from(&source.snapshots);
                joined.push(replica.uid.clone());
                self.changed(&replica.node);
            } else if is_whole {
                copied.push(replica.node.clone());
            }
        }
        if joined.len() > count {
            requests.push(request(joined));
        }
        copied
    }
}

#[tonic::async_trait]
impl EngineClient for Fleet {
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError> {
        let mut engines = self.lock();
        let node = engine.node.clone();
        let refused = |reason: &str| {
            Err(EngineError::Refused {
                node: node.clone(),
                reason: reason.to_owned(),
            })
        };
        let unreachable = EngineError::Unreachable {
            node: node.clone(),
            reason: "it is down".to_owned(),
        };
        let known = engines.engines.get(&node).filter(|engine| engine.up);
        if known.is_none() {
            return Err(unreachable);
        }
        if let Command::EnsureTarget(config) = &command {
            // In-sync replicas promise the epoch before anything is acknowledged in it.
            for replica in config.replicas.iter().filter(|replica| replica.in_sync) {
                if let Some(found) = engines.replica(&replica.node, &replica.uid) {
                    found.promised = found.promised.max(config.epoch);
                }
            }
        }
        let engine = engines.engines.get_mut(&node).ok_or(unreachable)?;
        if term < engine.term {
            return Err(EngineError::TermStale { node });
        }
        engine.term = term;
        engine.report = None;
        match command {
            Command::EnsurePool(config) => {
                engine.pools.entry(config.uid).or_insert(PoolHealth::Good);
            }
            Command::RemovePool(uid) => {
                assert!(
                    !engine
                        .replicas
                        .values()
                        .any(|replica| replica.config.pool_uid == uid),
                    "a pool is taken apart that holds replicas"
                );
                engine.pools.remove(&uid);
            }
            Command::EnsureReplica(config) => {
                if engine.refusing || engine.pools.get(&config.pool_uid) != Some(&PoolHealth::Good) {
                    return refused("the pool takes nothing");
                }
                let source = engine
                    .replicas
                    .values()
                    .find(|other| {
                        other.config.pool_uid == config.pool_uid
                            && other.snapshots.contains(&config.source_snapshot_uid)
                    })
                    .map(|other| other.written);
                if source.is_none() && !config.source_snapshot_uid.is_empty() {
                    return refused("the pool does not hold the source");
                }
                engine
                    .replicas
                    .entry(config.uid.clone())
                    .or_insert_with(|| Replica {
                        config: config.clone(),
                        snapshots: BTreeSet::new(),
                        written: 0,
                        promised: 0,
                        rebuilt_ticks: 0,
                    })
                    .config
                    .size_bytes = config.size_bytes;
            }
            Command::RemoveReplica(uid) => {
                engine.replicas.remove(&uid);
            }
            Command::EnsureTarget(config) => {
                let current = engine
                    .targets
                    .get(&config.volume_uid)
                    .map_or(0, |target| target.epoch);
                if config.epoch < current {
                    return refused("a later epoch is served");
                }
                engine.targets.insert(config.volume_uid.clone(), config);
            }
            Command::RemoveTarget(removal) => {
                let current = engine
                    .targets
                    .get(&removal.volume_uid)
                    .map_or(0, |target| target.epoch);
                if current <= removal.epoch {
                    engine.targets.remove(&removal.volume_uid);
                }
            }
            Command::RemoveSnapshot(removal) => {
                if let Some(replica) = engine.replicas.get_mut(&removal.replica_uid) {
                    replica.snapshots.remove(&removal.snapshot_uid);
                }
            }
        }
        Ok(())
    }

    async fn report(&self, engine: &EngineAddress) -> Result<Arc<EngineReport>, EngineError> {
        let mut engines = self.lock();
        let node = engine.node.clone();
        let found = engines.engines.get_mut(&node).filter(|engine| engine.up);
        let Some(found) = found else {
            let reason = "it is down".to_owned();
            return Err(EngineError::Unreachable { node, reason });
        };
        if let Some(report) = &found.report {
            return Ok(report.clone());
        }
        let report = EngineReport {
            node: node.clone(),
            version: "0.1.0".to_owned(),
            nvmf_listeners: vec![format!("{node}:4420")],
            pools: found
                .pools
                .iter()
                .map(|(uid, health)| PoolReport {
                    uid: uid.clone(),
                    health: (*health).into(),
                    message: String::new(),
                    capacity_bytes: 10 * TIB,
                    used_bytes: TIB,
                })
                .collect(),
            replicas: found
                .replicas
                .values()
                .map(|replica| ReplicaReport {
                    config: Some(replica.config.clone()),
                    snapshot_uids: replica.snapshots.iter().cloned().collect(),
                })
                .collect(),
            targets: found.targets.values().cloned().collect(),
        };
        let report = Arc::new(report);
        found.report = Some(report.clone());
        Ok(report)
    }
}
