//! What the parts of a plan share: look-ups in the world, the budget of rebuilds, and the steps so far.

use std::collections::{BTreeMap, HashMap, HashSet};

use pollux_api::control::v1::{
    NodeState, Pool, PoolHealth, PoolReport, PoolState, Removal, ReplicaReport, ReplicaState, Severity,
    Snapshot, TargetConfig, UnreadableBlocks, engine_command::Command,
};

use crate::model::{Guarded, Record};
use crate::placement::{Closed, Fleet};
use crate::store::Transaction;
use crate::world::World;

use super::rebalance::Moves;
use super::repair::Fitness;
use super::{Limits, Step, add_event};

/// Decisions on places in one plan: it takes about a second then, in a large fleet.
const DECISIONS_MAX: usize = 2_000;

/// What the parts of a plan share.
pub(super) struct Context<'a> {
    pub(super) world: &'a World,
    pub(super) limits: &'a Limits,
    /// Pools, with what is on them and what this plan puts there.
    pub(super) fleet: Fleet,
    pub(super) budget: Budget,
    /// What committed plans move.
    pub(super) moves: Moves<'a>,
    /// Replicas that online engines tell of, by UUID.
    replicas: HashMap<&'a str, &'a ReplicaReport>,
    /// Pools that online engines tell of, by UUID.
    pools: HashMap<&'a str, &'a PoolReport>,
    /// Replicas that targets of online engines have given up, by UUID.
    given_up: HashSet<&'a str>,
    /// What online engines tell that cannot be read, by volume, each with the node.
    unreadable: HashMap<&'a str, Vec<(&'a str, UnreadableBlocks)>>,
    /// Targets that online engines tell of, by volume.
    targets: HashMap<&'a str, Vec<(&'a str, &'a TargetConfig)>>,
    /// What can be expected of replicas as far as their pool and its node go, by pool.
    places: HashMap<&'a str, Place<'a>>,
    /// Snapshots by volume, by name.
    snapshots: HashMap<&'a str, Vec<&'a Snapshot>>,
    /// Snapshots that are being taken together with those of other volumes, by volume.
    attempted: BTreeMap<String, Vec<String>>,
    /// How many volumes each node serves.
    served: HashMap<String, u32>,
    steps: Vec<Step>,
    events: usize,
    decisions: usize,
}

/// What can be expected of the replicas in a pool as far as the pool and its node go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Its node.
    pub(super) node: &'a str,
    /// Whether it can be used.
    pub(super) fitness: Fitness,
    /// Whether its engine would tell of a replica that is there.
    pub(super) tells: bool,
    /// Whether a replica could not be made there lately.
    pub(super) has_failed: bool,
}

/// Rebuilds under way, against their limits.
#[derive(Debug, Default)]
pub(super) struct Budget {
    by_node: HashMap<String, u32>,
    total: u32,
}

impl Budget {
    /// How many rebuilds a node takes part in.
    fn of(&self, node: &str) -> u32 {
        self.by_node.get(node).copied().unwrap_or(0)
    }

    /// Whether a node can take part in one more.
    pub(super) fn admits(&self, node: &str, limits: &Limits) -> bool {
        self.total < limits.rebuilds_max && self.of(node) < limits.rebuilds_per_node_max
    }

    /// One more, to a node and from another.
    pub(super) fn take(&mut self, to: &str, from: &str) {
        self.total += 1;
        *self.by_node.entry(to.to_owned()).or_default() += 1;
        if from != to && !from.is_empty() {
            *self.by_node.entry(from.to_owned()).or_default() += 1;
        }
    }
}

impl<'a> Context<'a> {
    pub(super) fn new(world: &'a World, limits: &'a Limits) -> Self {
        let mut context = Self::of_places(world, limits);
        context.attempted = super::group_snapshots::attempted(world);
        context.read_reports();
        context.moves = Moves::read(world, &context.fleet);
        for snapshot in world.snapshots.values() {
            if let Some(status) = &snapshot.status {
                context
                    .snapshots
                    .entry(status.volume_uid.as_str())
                    .or_default()
                    .push(snapshot);
            }
        }
        context
    }

    /// The same without what is on engines, and without snapshots and moves: for decisions on places alone,
    /// which somebody waits for.
    pub(super) fn of_places(world: &'a World, limits: &'a Limits) -> Self {
        let mut context = Self {
            world,
            limits,
            fleet: Fleet::new(world.nodes.values(), world.pools.values(), limits.placement),
            budget: Budget::default(),
            moves: Moves::default(),
            replicas: HashMap::new(),
            given_up: HashSet::new(),
            unreadable: HashMap::new(),
            pools: HashMap::new(),
            targets: HashMap::new(),
            places: HashMap::new(),
            snapshots: HashMap::new(),
            attempted: BTreeMap::new(),
            served: HashMap::new(),
            steps: Vec::new(),
            events: 0,
            decisions: 0,
        };
        context.read_pools();
        context.read_places();
        context.read_volumes();
        for (pool, at_unix_us) in &world.failures {
            if world.now_unix_us < at_unix_us.saturating_add(limits.cool_down_us) {
                context.fleet.close(pool, Closed::CoolingDown);
            }
        }
        context
    }

    fn read_pools(&mut self) {
        let world = self.world;
        for (node, observation) in &world.reports {
            if self.is_online(node) {
                let pools = observation.report.pools.iter();
                self.pools.extend(pools.map(|pool| (pool.uid.as_str(), pool)));
            }
        }
    }

    fn read_reports(&mut self) {
        let world = self.world;
        for (node, observation) in &world.reports {
            if !self.is_online(node) {
                continue;
            }
            for replica in &observation.report.replicas {
                if let Some(config) = &replica.config {
                    self.replicas.insert(&config.uid, replica);
                }
            }
            self.given_up
                .extend(observation.report.given_up.iter().map(String::as_str));
            for told in &observation.report.unreadable {
                let all = self.unreadable.entry(&told.volume_uid).or_default();
                all.push((node.as_str(), told.blocks.unwrap_or_default()));
            }
            for target in &observation.report.targets {
                let targets = self.targets.entry(target.volume_uid.as_str()).or_default();
                targets.push((node.as_str(), target));
            }
        }
    }

    fn read_places(&mut self) {
        let world = self.world;
        for pool in world.pools.values() {
            let node = pool.spec.as_ref().map_or("", |spec| spec.node.as_str());
            let reported = self.pool(&pool.meta().uid);
            let failed = world.failures.get(pool.name());
            let place = Place {
                node,
                fitness: self.place_fitness(pool, node),
                tells: reported.is_some_and(|pool| pool.health() != PoolHealth::Failed),
                has_failed: failed
                    .is_some_and(|at| world.now_unix_us < at.saturating_add(self.limits.cool_down_us)),
            };
            self.places.insert(pool.name(), place);
        }
    }

    fn place_fitness(&self, pool: &Pool, node: &str) -> Fitness {
        let Some(node_record) = self.world.nodes.get(node) else {
            return Fitness::Gone;
        };
        match (self.node_state(node), self.pool_state(pool.name())) {
            (NodeState::Lost, _) | (_, PoolState::Failed) => return Fitness::Gone,
            (NodeState::Unreachable | NodeState::Unspecified, _)
            | (_, PoolState::Unreachable | PoolState::Unspecified) => return Fitness::Away,
            (NodeState::Online, PoolState::Online | PoolState::Sick) => {}
        }
        let is_drained = node_record.spec.as_ref().is_some_and(|spec| spec.drained)
            || pool.spec.as_ref().is_some_and(|spec| spec.drained)
            || pool.is_deleting();
        if !self.is_online(node) {
            Fitness::Away
        } else if is_drained || self.pool_state(pool.name()) == PoolState::Sick {
            Fitness::Leaving
        } else {
            Fitness::Good
        }
    }

    /// What can be expected of the replicas in a pool, if it is known.
    pub(super) fn place(&self, pool: &str) -> Option<Place<'a>> {
        self.places.get(pool).copied()
    }

    fn read_volumes(&mut self) {
        let world = self.world;
        for volume in world.volumes.values() {
            let (Some(spec), Some(status)) = (&volume.spec, &volume.status) else {
                continue;
            };
            if !status.target_node.is_empty() {
                self.serve(&status.target_node);
            }
            if status.replicas.is_empty() {
                continue;
            }
            let groups = &world.policy(volume).placement.affinity_groups;
            for replica in &status.replicas {
                if let Some(site) = self.fleet.find(&replica.pool) {
                    self.fleet.occupy(site, spec.size_bytes, groups);
                }
                let is_rebuild = match replica.state() {
                    // Before the first epoch there is nothing to copy.
                    ReplicaState::Assigned => status.epoch > 0,
                    ReplicaState::Rebuilding => true,
                    // What it missed is being copied, be it a little or everything.
                    ReplicaState::Stale => self
                        .place(&replica.pool)
                        .is_some_and(|place| place.fitness.is_usable()),
                    ReplicaState::Unspecified | ReplicaState::InSync => false,
                };
                if is_rebuild {
                    self.take_rebuild(&replica.node, &status.target_node);
                }
            }
        }
    }

    /// A replica is made anew on a node, from another one.
    pub(super) fn take_rebuild(&mut self, to: &str, from: &str) {
        self.budget.take(to, from);
        for node in [to, from] {
            if self.budget.of(node) >= self.limits.rebuilds_per_node_max {
                self.fleet.mark_busy(node);
            }
        }
    }

    /// Whether one more decision on places may be made in this plan. The rest has to wait for the next.
    pub(super) fn may_decide(&mut self) -> bool {
        self.decisions += 1;
        self.decisions <= DECISIONS_MAX
    }

    /// A node serves one more volume.
    pub(super) fn serve(&mut self, node: &str) {
        *self.served.entry(node.to_owned()).or_default() += 1;
    }

    /// Whether reports of a node are as new as they should be.
    pub(super) fn is_online(&self, node: &str) -> bool {
        self.node_state(node) == NodeState::Online
            && self.world.reports.get(node).is_some_and(|observation| {
                let silent_since = observation
                    .at_unix_us
                    .saturating_add(self.limits.unreachable_after_us);
                silent_since > self.world.now_unix_us
            })
    }

    /// Whether nothing can be said of a node yet: it was online, and since this instance began to listen
    /// there was too little time for its silence to mean anything. A report of before that is none.
    pub(super) fn is_awaited(&self, node: &str) -> bool {
        let listened_until = self
            .world
            .observing_since_unix_us
            .saturating_add(self.limits.unreachable_after_us);
        self.node_state(node) == NodeState::Online
            && !self.is_online(node)
            && self.world.now_unix_us < listened_until
    }

    pub(super) fn node_state(&self, node: &str) -> NodeState {
        let status = self.world.nodes.get(node).and_then(|node| node.status.as_ref());
        status.map_or(NodeState::Unspecified, |status| status.state())
    }

    pub(super) fn pool_state(&self, pool: &str) -> PoolState {
        let status = self.world.pools.get(pool).and_then(|pool| pool.status.as_ref());
        status.map_or(PoolState::Unspecified, |status| status.state())
    }

    /// A replica as an online engine tells of it.
    pub(super) fn replica(&self, uid: &str) -> Option<&'a ReplicaReport> {
        self.replicas.get(uid).copied()
    }

    /// Whether the target of a replica has given it up.
    pub(super) fn is_given_up(&self, uid: &str) -> bool {
        self.given_up.contains(uid)
    }

    /// What of a volume cannot be read, as the engine on a node tells; nothing if it does not know.
    pub(super) fn unreadable(&self, volume_uid: &str, node: &str) -> Option<UnreadableBlocks> {
        let mut told = self.unreadable.get(volume_uid)?.iter();
        told.find(|(other, _)| *other == node).map(|(_, blocks)| *blocks)
    }

    /// A pool as an online engine tells of it.
    pub(super) fn pool(&self, uid: &str) -> Option<&'a PoolReport> {
        self.pools.get(uid).copied()
    }

    /// Who serves a volume, as online engines tell.
    pub(super) fn targets(&self, volume_uid: &str) -> &[(&'a str, &'a TargetConfig)] {
        self.targets.get(volume_uid).map_or(&[], Vec::as_slice)
    }

    /// The snapshots of a volume.
    pub(super) fn snapshots(&self, volume_uid: &str) -> &[&'a Snapshot] {
        self.snapshots.get(volume_uid).map_or(&[], Vec::as_slice)
    }

    /// The snapshots of a volume that are being taken together with those of others, as UUIDs.
    pub(super) fn attempted(&self, volume_uid: &str) -> &[String] {
        self.attempted.get(volume_uid).map_or(&[], Vec::as_slice)
    }

    /// How many volumes a node serves.
    pub(super) fn served(&self, node: &str) -> u32 {
        self.served.get(node).copied().unwrap_or(0)
    }

    /// Whether the report of an online node shows that a removal has been done.
    pub(super) fn is_removed(&self, node: &str, command: &Command) -> bool {
        match command {
            Command::RemovePool(uid) => !self.pools.contains_key(uid.as_str()),
            // An engine that has just started tells of no replicas before it has opened its pools.
            Command::RemoveReplica(uid) => {
                self.tells_of_all_pools(node) && !self.replicas.contains_key(uid.as_str())
            }
            Command::RemoveTarget(removal) => !self
                .targets(&removal.volume_uid)
                .iter()
                .any(|(other, target)| *other == node && target.epoch <= removal.epoch),
            // Nothing that is to be is a removal: such a record is of no use.
            Command::EnsurePool(_)
            | Command::EnsureReplica(_)
            | Command::EnsureTarget(_)
            | Command::CutTargets(_) => true,
        }
    }

    /// Whether an engine tells of every pool that its node has on record, and so of every replica.
    fn tells_of_all_pools(&self, node: &str) -> bool {
        let mut pools = self.world.pools.values().filter(|pool| {
            let spec = pool.spec.as_ref();
            spec.is_some_and(|spec| spec.node == node)
        });
        pools.all(|pool| self.pools.contains_key(pool.meta().uid.as_str()))
    }

    /// Tells an engine.
    pub(super) fn command(&mut self, node: &str, command: Command) {
        self.steps.push(Step::Command {
            node: node.to_owned(),
            command,
        });
    }

    /// Changes records.
    pub(super) fn commit(&mut self, transaction: Transaction) {
        self.steps.push(Step::Commit(transaction));
    }

    /// Deletes one record.
    pub(super) fn forget(&mut self, removal: &Removal) {
        let mut transaction = Transaction::default();
        transaction.delete(removal);
        self.commit(transaction);
    }

    /// Adds to a transaction what happened and why.
    pub(super) fn event(
        &mut self,
        transaction: &mut Transaction,
        severity: Severity,
        subject: String,
        message: String,
    ) {
        add_event(transaction, self.world, self.events, severity, (subject, message));
        self.events += 1;
    }

    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= self.limits.steps_max
    }

    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }
}
