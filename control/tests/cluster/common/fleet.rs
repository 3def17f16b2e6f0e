//! Engines in memory, in virtual time: what they are told they do, and what targets have to do they do at
//! each tick.
//!
//! Data is one number for each volume: how many writes were acknowledged. A replica has the number of the
//! last write that it took. So it can be checked that what the control plane calls in sync is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pollux_api::control::v1::registry_client::RegistryClient;
use pollux_api::control::v1::{
    EngineReport, EngineSurvey, GetMembershipRequest, HostSecrets, Membership, PoolHealth, PoolReport,
    RecordedRollBack, RecordedSnapshot, ReplicaConfig, ReplicaReport, ReplicaState, SurveyRequest,
    SurveyedPool, SurveyedReplica, SwapMembershipRequest, SwapMembershipResponse, TargetConfig,
    UnreadableBlocks, UnreadableReport, engine_command::Command,
};
use pollux_control::engines::{EngineAddress, EngineClient, EngineError};
use pollux_control::registry::{RegistryError, get_membership, swap_membership};
use pollux_control::store::Store;
use tonic::Response;
use tonic::transport::Channel;

#[path = "cuts.rs"]
pub mod cuts;

use cuts::{Cuts, HOLD_TICKS, Instants};

/// Ticks that a rebuild takes.
const REBUILD_TICKS: u32 = 3;

/// Ticks that going back to a snapshot takes.
pub const ROLL_BACK_TICKS: u32 = 4;

/// A tick in real time.
const TICK: Duration = Duration::from_millis(5);

pub const TIB: u64 = 1 << 40;

#[derive(Debug, Clone)]
pub struct Replica {
    pub config: ReplicaConfig,
    pub snapshots: BTreeSet<String>,
    /// The last write that it took.
    pub written: u64,
    /// It refuses targets of older epochs.
    pub promised: u64,
    /// Its copy of the record of who takes part.
    pub record: Option<Membership>,
    rebuilt_ticks: u32,
}

/// A volume as an engine was told to serve or show it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub config: TargetConfig,
    /// Who takes part, once it is open.
    pub record: Option<Membership>,
    /// What hosts authenticate by, by the names of the secrets.
    pub secrets: BTreeMap<String, HostSecrets>,
}

impl Target {
    /// As the engine tells of it: until the volume is open, it is a standby.
    fn report(&self) -> TargetConfig {
        let mut config = self.config.clone();
        if config.standby {
            return config;
        }
        let Some(record) = &self.record else {
            return TargetConfig {
                volume_uid: config.volume_uid,
                volume: config.volume,
                epoch: config.epoch,
                size_bytes: config.size_bytes,
                hosts: config.hosts,
                other_paths: config.other_paths,
                path: config.path,
                standby: true,
                ..TargetConfig::default()
            };
        };
        config.epoch = record.epoch;
        config.version = record.version;
        config.size_bytes = record.size_bytes;
        config.snapshot_uids = record
            .snapshots
            .iter()
            .map(|recorded| recorded.uid.clone())
            .collect();
        config.snapshot_uids.sort_by_key(|uid| {
            let mut told = self.config.snapshot_uids.iter();
            told.position(|other| other == uid)
        });
        for replica in &mut config.replicas {
            let mut members = record.members.iter();
            let member = members.find(|member| member.uid == replica.uid);
            replica.in_sync = member.is_some_and(|member| member.state() == ReplicaState::InSync);
        }
        config
    }
}

/// Blocks that cannot be read of a volume, from its second mebibyte on.
fn unreadable((volume, blocks): (&String, &u64)) -> UnreadableReport {
    UnreadableReport {
        volume_uid: volume.clone(),
        blocks: Some(UnreadableBlocks {
            blocks: *blocks,
            first_offset_bytes: u64::from(*blocks > 0) << 20,
        }),
    }
}

/// Where an engine listens for hosts.
fn listener(node: &str) -> String {
    let number = node
        .bytes()
        .fold(0, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let address = std::net::Ipv4Addr::from(0x0a00_0000 | (number & 0x00ff_ffff));
    format!("{address}:4420")
}

/// What a target admits, and the secrets by which: a host whose secrets are neither told nor known is not
/// admitted.
fn with_secrets(
    mut config: TargetConfig,
    known: &BTreeMap<String, HostSecrets>,
) -> (TargetConfig, BTreeMap<String, HostSecrets>) {
    let mut secrets = BTreeMap::new();
    config.hosts.retain_mut(|host| {
        if host.secret_uid.is_empty() {
            assert!(host.secrets.is_none(), "secrets have a name");
            return true;
        }
        let told = host.secrets.take();
        let found = told.or_else(|| known.get(&host.secret_uid).cloned());
        found
            .map(|found| secrets.insert(host.secret_uid.clone(), found))
            .is_some()
    });
    (config, secrets)
}

#[derive(Debug, Clone, Default)]
pub struct Engine {
    pub up: bool,
    pub term: u64,
    pub pools: BTreeMap<String, PoolHealth>,
    pub replicas: BTreeMap<String, Replica>,
    pub targets: BTreeMap<String, Target>,
    /// What it remembers of snapshots of several volumes.
    pub cuts: Cuts,
    /// Replicas that its targets have given up as slow.
    pub given_up: BTreeSet<String>,
    /// Of how many blocks its targets tell, by volume, that they cannot be read.
    pub unreadable: BTreeMap<String, u64>,
    /// Pools in which no replica can be made.
    pub refusing: bool,
    /// It reports, and nobody can tell it anything.
    pub deaf: bool,
    report: Option<Arc<EngineReport>>,
}

#[derive(Debug, Default)]
pub struct Engines {
    pub engines: BTreeMap<String, Engine>,
    /// How many writes of each volume were acknowledged, by UUID.
    pub acknowledged: BTreeMap<String, u64>,
    /// When volumes were held for snapshots of several.
    pub instants: Instants,
    /// Ticks that a hold lasts at most.
    pub hold_ticks: u64,
    ticks: u64,
    /// How often each request to go back to a snapshot was done, by UUID.
    pub rolled_back: BTreeMap<String, u32>,
    /// For how many ticks a target has gone back, by volume and epoch.
    going_back: BTreeMap<(String, u64), u32>,
    /// Most rebuilds that a node took part in at a time, and most altogether.
    pub rebuilds_seen: (usize, usize),
}

/// Engines in memory. Clones are the same engines.
#[derive(Debug, Clone, Default)]
pub struct Fleet(Arc<Mutex<Engines>>);

/// How targets reach the records of who takes part.
enum Records<'a> {
    Store(&'a dyn Store),
    Calls(RegistryClient<Channel>),
}

impl Records<'_> {
    /// The record; nothing if this is not the target.
    async fn get(&self, request: GetMembershipRequest) -> Option<Membership> {
        match self {
            Self::Store(store) => get_membership(*store, &request).await.ok(),
            Self::Calls(client) => {
                let answer = client.clone().get_membership(request).await;
                answer.ok().map(Response::into_inner)
            }
        }
    }

    /// What became of a change; nothing if this is not the target. An error if nobody can tell now.
    async fn swap(&self, request: SwapMembershipRequest) -> Result<Option<SwapMembershipResponse>, ()> {
        match self {
            Self::Store(store) => match swap_membership(*store, &request, 1).await {
                Ok(answer) => Ok(Some(answer)),
                Err(RegistryError::NotTarget { .. } | RegistryError::NotFound(_)) => Ok(None),
                Err(RegistryError::Restored) => Err(()),
                Err(error) => panic!("{error}"),
            },
            Self::Calls(client) => {
                let answer = client.clone().swap_membership(request).await;
                Ok(answer.ok().map(Response::into_inner))
            }
        }
    }
}

impl Fleet {
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let fleet = Self::default();
        fleet.lock().hold_ticks = HOLD_TICKS;
        for node in nodes {
            let engine = Engine {
                up: true,
                ..Engine::default()
            };
            fleet.lock().engines.insert(node.to_owned(), engine);
        }
        fleet
    }

    /// The drives of a pool are others from now on, which hold nothing.
    pub fn lose_pool(&self, node: &str, uid: &str) {
        let mut engines = self.lock();
        let engine = engines.engines.get_mut(node).expect("a node");
        engine.report = None;
        assert!(engine.pools.remove(uid).is_some(), "it has no such pool");
    }

    pub fn lock(&self) -> MutexGuard<'_, Engines> {
        self.0.lock().expect("no test panics with it")
    }

    /// A target gives a replica up as slow, or takes it back.
    pub fn give_up(&self, node: &str, replica: &str, is_given_up: bool) {
        let mut engines = self.lock();
        let engine = engines.engines.get_mut(node).expect("a node");
        match is_given_up {
            true => engine.given_up.insert(replica.to_owned()),
            false => engine.given_up.remove(replica),
        };
        engine.report = None;
    }

    /// A target finds out that so many blocks of its volume cannot be read.
    pub fn set_unreadable(&self, node: &str, volume_uid: &str, blocks: u64) {
        let mut engines = self.lock();
        let engine = engines.engines.get_mut(node).expect("a node");
        engine.unreadable.insert(volume_uid.to_owned(), blocks);
        engine.report = None;
    }

    /// An engine dies, or comes back with what is on its drives.
    pub fn set_up(&self, node: &str, up: bool) {
        let mut engines = self.lock();
        let engine = engines.engines.get_mut(node).expect("a node");
        engine.up = up;
        if !up {
            engine.targets.clear();
            engine.cuts = Cuts::default();
            engine.unreadable.clear();
            engine.report = None;
        }
    }

    /// Targets open their volumes, take writes, let go of replicas that they cannot reach, and copy to those
    /// that lack something.
    pub async fn tick(&self, store: &dyn Store) {
        self.tick_with(&Records::Store(store)).await;
    }

    /// Ticks in real time, with a control plane that is called.
    pub async fn run(self, channel: Channel) {
        let records = Records::Calls(RegistryClient::new(channel));
        loop {
            self.tick_with(&records).await;
            tokio::time::sleep(TICK).await;
        }
    }

    async fn tick_with(&self, records: &Records<'_>) {
        let serving: Vec<(String, String)> = {
            let mut engines = self.lock();
            engines.ticks += 1;
            let (now, hold_ticks) = (engines.ticks, engines.hold_ticks);
            for engine in engines.engines.values_mut() {
                if engine.cuts.tick(now, hold_ticks) {
                    engine.report = None;
                }
            }
            let up = engines.engines.iter().filter(|(_, engine)| engine.up);
            up.flat_map(|(node, engine)| {
                let targets = engine.targets.iter().filter(|(_, target)| !target.config.standby);
                targets.map(|(volume, _)| (node.clone(), volume.clone()))
            })
            .collect()
        };
        let mut by_node: BTreeMap<String, usize> = BTreeMap::new();
        let mut total = 0;
        for (node, volume) in serving {
            for to in self.serve(records, &node, &volume).await {
                total += 1;
                *by_node.entry(to.clone()).or_default() += 1;
                if to != node {
                    *by_node.entry(node.clone()).or_default() += 1;
                }
            }
        }
        let most = by_node.values().copied().max().unwrap_or(0);
        let seen = &mut self.lock().rebuilds_seen;
        *seen = (seen.0.max(most), seen.1.max(total));
    }

    /// One tick of one target. Returns the nodes to which whole replicas are being copied.
    async fn serve(&self, records: &Records<'_>, node: &str, volume: &str) -> Vec<String> {
        let found = self.lock().target(node, volume).cloned();
        let Some(target) = found else {
            return Vec::new();
        };
        let Some(record) = &target.record else {
            self.open(records, node, &target.config).await;
            return Vec::new();
        };
        if record.version < target.config.version {
            self.refresh(records, node, &target.config).await;
            return Vec::new();
        }
        let (next, copied) = self.lock().serve(node, &target.config, record);
        if let Some(next) = next {
            self.swap(records, node, &target.config, next).await;
        }
        copied
    }

    /// Takes the next epoch, and then the promises of all of the set that can be reached.
    async fn open(&self, records: &Records<'_>, node: &str, config: &TargetConfig) {
        let request = GetMembershipRequest {
            volume: config.volume.clone(),
            volume_uid: config.volume_uid.clone(),
            node: node.to_owned(),
        };
        let Some(before) = records.get(request).await else {
            return;
        };
        let next = Membership {
            epoch: before.epoch + 1,
            version: before.version + 1,
            ..before
        };
        self.swap(records, node, config, next).await;
    }

    /// Reads the record anew, since it was told of a newer one.
    async fn refresh(&self, records: &Records<'_>, node: &str, config: &TargetConfig) {
        let request = GetMembershipRequest {
            volume: config.volume.clone(),
            volume_uid: config.volume_uid.clone(),
            node: node.to_owned(),
        };
        let current = records.get(request).await;
        let mut engines = self.lock();
        if let Some(target) = engines.target(node, &config.volume_uid) {
            let epoch = target.record.as_ref().map(|record| record.epoch);
            target.record = current.filter(|current| Some(current.epoch) == epoch);
        }
        engines.changed(node);
    }

    async fn swap(&self, records: &Records<'_>, node: &str, config: &TargetConfig, next: Membership) {
        let request = SwapMembershipRequest {
            volume: config.volume.clone(),
            node: node.to_owned(),
            next: Some(next.clone()),
        };
        let Ok(answer) = records.swap(request).await else {
            return;
        };
        let record = match answer {
            Some(SwapMembershipResponse { swapped: true, .. }) => Some(next),
            // Others may add replicas and take those away that do not count.
            Some(SwapMembershipResponse { current, .. }) => {
                current.filter(|current| current.epoch == next.epoch)
            }
            None => None,
        };
        let mut engines = self.lock();
        let ended = record.as_ref().and_then(|record| record.roll_back.clone());
        if let Some(ended) = ended.filter(|ended| ended.done) {
            let target = engines.target(node, &config.volume_uid);
            let before = target.and_then(|target| target.record.as_ref()?.roll_back.clone());
            if before.is_some_and(|before| !before.done) {
                *engines.rolled_back.entry(ended.request_uid).or_default() += 1;
            }
        }
        let recorded = record.iter().flat_map(|record| &record.snapshots);
        let recorded: Vec<String> = recorded.map(|recorded| recorded.uid.clone()).collect();
        if let Some(target) = engines.target(node, &config.volume_uid) {
            target.record = record;
        }
        if let Some(engine) = engines.engines.get_mut(node) {
            for uid in &recorded {
                engine.cuts.committed(uid);
            }
        }
        engines.changed(node);
    }
}

impl Engines {
    fn replica(&mut self, node: &str, uid: &str) -> Option<&mut Replica> {
        let engine = self.engines.get_mut(node).filter(|engine| engine.up)?;
        engine.replicas.get_mut(uid)
    }

    fn target(&mut self, node: &str, volume: &str) -> Option<&mut Target> {
        let engine = self.engines.get_mut(node).filter(|engine| engine.up)?;
        engine.targets.get_mut(volume)
    }

    /// What an engine would tell is another thing now.
    fn changed(&mut self, node: &str) {
        if let Some(engine) = self.engines.get_mut(node) {
            engine.report = None;
        }
    }

    /// What a target does in a tick: the record that it wants next, and the nodes to which whole replicas are
    /// being copied.
    fn serve(
        &mut self,
        own: &str,
        config: &TargetConfig,
        record: &Membership,
    ) -> (Option<Membership>, Vec<String>) {
        let cuts: Vec<_> = self.engines[own].cuts.of(&config.volume_uid).cloned().collect();
        let is_held = cuts.iter().any(|cut| cut.is_held());
        let mut next = Membership {
            version: record.version + 1,
            ..record.clone()
        };
        let node_of = |uid: &str| {
            let told = config.replicas.iter().find(|replica| replica.uid == uid);
            told.map(|replica| replica.node.clone())
        };
        let is_leaving = |uid: &str| {
            let mut told = config.replicas.iter();
            told.any(|replica| replica.uid == uid && replica.leaving)
        };
        let given_up = self.engines[own].given_up.clone();
        let is_slow = |uid: &str| given_up.contains(uid);
        let unreadable = self.engines[own].unreadable.get(&config.volume_uid);
        let is_copied = unreadable.is_none_or(|blocks| *blocks == 0);
        let mut reached = Vec::new();
        let mut all_reached = true;
        for (at, member) in record.members.iter().enumerate() {
            let node = node_of(&member.uid).unwrap_or_default();
            let found = self.replica(&node, &member.uid);
            match found.filter(|found| found.promised <= record.epoch) {
                Some(found) => {
                    found.promised = record.epoch;
                    reached.push((at, node, member.clone()));
                }
                None if member.state() == ReplicaState::InSync => {
                    all_reached = false;
                    next.members[at].set_state(ReplicaState::Stale);
                }
                None => {}
            }
        }
        let in_sync: Vec<_> = reached
            .iter()
            .filter(|(.., member)| member.state() == ReplicaState::InSync)
            .cloned()
            .collect();
        let Some((_, first, source)) = in_sync.first() else {
            return (None, Vec::new());
        };
        if !all_reached {
            // The set shrinks in the store first; until then nothing is acknowledged.
            return (Some(next), Vec::new());
        }
        // It counts once all of the set have a copy.
        for (_, node, member) in &in_sync {
            self.replica(node, &member.uid).expect("reached").record = Some(record.clone());
        }
        let going_back = record.roll_back.as_ref().filter(|recorded| !recorded.done);
        if let Some(going_back) = going_back {
            let is_there = record
                .snapshots
                .iter()
                .any(|recorded| recorded.uid == going_back.snapshot_uid);
            let key = (record.volume_uid.clone(), record.epoch);
            let ticks = self.going_back.entry(key.clone()).or_default();
            *ticks += 1;
            if is_there && *ticks >= ROLL_BACK_TICKS {
                self.going_back.remove(&key);
                next.roll_back = Some(RecordedRollBack {
                    done: true,
                    ..going_back.clone()
                });
            }
        }
        if in_sync.len() >= record.min_in_sync as usize && !is_held && going_back.is_none() {
            let written = self.acknowledged.entry(record.volume_uid.clone()).or_default();
            *written += 1;
            let written = *written;
            for (_, node, member) in &in_sync {
                self.replica(node, &member.uid).expect("reached").written = written;
            }
        }
        let slots = |state: ReplicaState| {
            let members = record.members.iter().filter(|member| member.state() == state);
            members.fold(0, |bits, member| bits | 1_u32 << member.slot)
        };
        let committing = cuts.iter().filter(|cut| cut.is_committing());
        let committing = committing.map(|cut| &cut.snapshot_uid);
        for uid in config.snapshot_uids.iter().chain(committing.clone()) {
            if record.snapshots.iter().any(|recorded| recorded.uid == *uid) {
                continue;
            }
            for (_, node, member) in &in_sync {
                let found = self.replica(node, &member.uid).expect("reached");
                found.snapshots.insert(uid.clone());
            }
            next.snapshots.push(RecordedSnapshot {
                uid: uid.clone(),
                cut: format!("cut of {uid}"),
                held_by: slots(ReplicaState::InSync),
                owed_to: slots(ReplicaState::Stale),
            });
        }
        // Only what whoever said so knew of.
        if config.version >= record.version {
            next.snapshots.retain(|recorded| {
                let is_new = committing.clone().any(|uid| *uid == recorded.uid);
                is_new || config.snapshot_uids.contains(&recorded.uid)
            });
        }
        for (_, node, member) in &reached {
            let found = self.replica(node, &member.uid).expect("reached");
            found
                .snapshots
                .retain(|uid| next.snapshots.iter().any(|recorded| recorded.uid == *uid));
            if found.config.size_bytes < config.size_bytes {
                found.config.size_bytes = config.size_bytes;
                self.changed(node);
            }
        }
        next.size_bytes = next.size_bytes.max(config.size_bytes);
        let source = self.replica(first, &source.uid).expect("reached").clone();
        let mut copied = Vec::new();
        let mut staying = in_sync.len();
        for (at, node, member) in &reached {
            let leaves = is_leaving(&member.uid);
            match member.state() {
                ReplicaState::InSync if (leaves || is_slow(&member.uid)) && staying > 1 => {
                    staying -= 1;
                    next.members[*at].set_state(ReplicaState::Stale);
                }
                ReplicaState::Rebuilding => {
                    next.members[*at].set_state(ReplicaState::Stale);
                    for recorded in &mut next.snapshots {
                        recorded.owed_to |= 1 << member.slot;
                    }
                }
                ReplicaState::Stale if !leaves && !is_slow(&member.uid) && is_copied => {
                    let found = self.replica(node, &member.uid).expect("reached");
                    found.rebuilt_ticks += 1;
                    if found.rebuilt_ticks >= REBUILD_TICKS {
                        found.rebuilt_ticks = 0;
                        found.written = source.written;
                        found.snapshots.clone_from(&source.snapshots);
                        next.members[*at].set_state(ReplicaState::InSync);
                        for recorded in &mut next.snapshots {
                            recorded.held_by |= recorded.owed_to & 1 << member.slot;
                            recorded.owed_to &= !(1 << member.slot);
                        }
                        self.changed(node);
                    } else if found.written == 0 {
                        copied.push(node.clone());
                    }
                }
                _ => {}
            }
        }
        let is_changed = next.members != record.members
            || next.snapshots != record.snapshots
            || next.size_bytes != record.size_bytes
            || next.roll_back != record.roll_back;
        (is_changed.then_some(next), copied)
    }
}

#[tonic::async_trait]
impl EngineClient for Fleet {
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError> {
        let mut engines = self.lock();
        let engines = &mut *engines;
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
        let known = engines
            .engines
            .get(&node)
            .filter(|engine| engine.up && !engine.deaf);
        if known.is_none() {
            return Err(unreachable);
        }
        let engine = engines.engines.get_mut(&node).ok_or(unreachable)?;
        if term < engine.term {
            return Err(EngineError::TermStale { node });
        }
        engine.term = term;
        engine.report = None;
        match command {
            Command::EnsurePool(config) => {
                if engine.refusing && !engine.pools.contains_key(&config.uid) {
                    return refused("the drive holds an ext file system");
                }
                if config.made && !engine.pools.contains_key(&config.uid) {
                    return refused("the drive holds no pool");
                }
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
                        record: None,
                        rebuilt_ticks: 0,
                    })
                    .config
                    .size_bytes = config.size_bytes;
            }
            Command::RemoveReplica(uid) => {
                engine.replicas.remove(&uid);
            }
            Command::EnsureTarget(config) => {
                let before = engine.targets.get(&config.volume_uid);
                let record = before.and_then(|target| target.record.clone());
                if record.as_ref().is_some_and(|record| record.epoch > config.epoch) {
                    return refused("a later epoch is served");
                }
                // What it knows is kept while nobody else has opened the volume since.
                let record = record.filter(|record| !config.standby && record.epoch == config.epoch);
                let volume = config.volume_uid.clone();
                let known = before.map(|target| target.secrets.clone()).unwrap_or_default();
                let (config, secrets) = with_secrets(config, &known);
                let target = Target {
                    config,
                    record,
                    secrets,
                };
                engine.targets.insert(volume, target);
            }
            Command::CutTargets(told) => {
                let targets = &engine.targets;
                let serves = |volume: &str| targets.get(volume).is_some_and(|target| target.record.is_some());
                let (now, instants) = (engines.ticks, &mut engines.instants);
                if let Err(reason) = engine.cuts.step(&told, now, serves, instants) {
                    return refused(reason);
                }
            }
            Command::RemoveTarget(removal) => {
                let current = engine
                    .targets
                    .get(&removal.volume_uid)
                    .and_then(|target| target.record.as_ref());
                if current.is_none_or(|record| record.epoch <= removal.epoch) {
                    engine.targets.remove(&removal.volume_uid);
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
            nvmf_listeners: vec![listener(&node)],
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
                })
                .collect(),
            targets: found.targets.values().map(Target::report).collect(),
            cuts: found.cuts.report(),
            given_up: found.given_up.iter().cloned().collect(),
            unreadable: found.unreadable.iter().map(unreadable).collect(),
        };
        let report = Arc::new(report);
        found.report = Some(report.clone());
        Ok(report)
    }

    async fn survey(
        &self,
        engine: &EngineAddress,
        _request: SurveyRequest,
    ) -> Result<EngineSurvey, EngineError> {
        let report = self.report(engine).await?;
        let engines = self.lock();
        let found = &engines.engines[&engine.node];
        let pools = report.pools.iter().map(|pool| SurveyedPool {
            pool: Some(pool.clone()),
            devices: vec!["malloc:///x".to_owned()],
        });
        let replicas = found.replicas.values().map(|replica| SurveyedReplica {
            config: Some(replica.config.clone()),
            promised_epoch: replica.promised,
            record: replica.record.clone(),
            problem: String::new(),
        });
        Ok(EngineSurvey {
            node: report.node.clone(),
            term: found.term,
            pools: pools.collect(),
            replicas: replicas.collect(),
            targets: report.targets.clone(),
            problems: Vec::new(),
        })
    }
}
