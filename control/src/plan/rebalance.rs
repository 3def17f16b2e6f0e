//! Rebalancing: proposes moves that make pools and nodes more alike, and has those done that were committed.
//!
//! A move of a replica is what repair does with one that is to leave: another one first, then this one goes;
//! only the place is given. So nothing of it can lose data that repair would not lose, and it is bounded by
//! the same limits. A move of a target is a failover to a node that has all the data.
//!
//! Moves are not remembered in any other way than by the plan: one is done when its replica is gone from
//! where it was, or its target is another one. A plan that is deleted leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};

use pollux_api::control::v1::{
    NodeState, Rebalance, RebalanceSpec, RebalanceState, RebalanceStatus, ReplicaMove, ReplicaState,
    Severity, TargetMove, Volume, VolumeState,
};

use crate::model::{Guarded, Record};
use crate::placement::{Fleet, PlacementRequest, SiteId, decide};
use crate::store::Transaction;
use crate::world::World;

use super::Limits;
use super::context::Context;

/// Moves of each kind, and how much pools may differ, if nothing else is said.
const MOVES_DEFAULT: u32 = 100;
const TOLERANCE_PERCENT_DEFAULT: u32 = 5;

/// Where things are to go that a committed plan moves, by volume.
#[derive(Debug, Default)]
pub(super) struct Moves<'a> {
    replicas: BTreeMap<&'a str, (&'a str, SiteId)>,
    targets: BTreeMap<&'a str, &'a str>,
}

impl<'a> Moves<'a> {
    /// Those that are not done yet. Of two for one volume the first counts.
    pub(super) fn read(world: &'a World, fleet: &Fleet) -> Self {
        let mut moves = Self::default();
        for rebalance in world.rebalances.values() {
            let Some(status) = committed(rebalance) else {
                continue;
            };
            for one in &status.replica_moves {
                if let Some(site) = pending_replica(world, fleet, one) {
                    let to = (one.replica_uid.as_str(), site);
                    moves.replicas.entry(one.volume.as_str()).or_insert(to);
                }
            }
            for one in status
                .target_moves
                .iter()
                .filter(|one| is_pending_target(world, one))
            {
                moves
                    .targets
                    .entry(one.volume.as_str())
                    .or_insert(one.to_node.as_str());
            }
        }
        moves
    }

    /// The replica of a volume that is to go, and where.
    pub(super) fn replica(&self, volume: &str) -> Option<(&'a str, SiteId)> {
        self.replicas.get(volume).copied()
    }

    /// The node that is to serve a volume.
    pub(super) fn target(&self, volume: &str) -> Option<&'a str> {
        self.targets.get(volume).copied()
    }
}

fn committed(rebalance: &Rebalance) -> Option<&RebalanceStatus> {
    let status = rebalance.status.as_ref();
    status.filter(|status| status.state() == RebalanceState::Committed && !rebalance.is_deleting())
}

/// A volume that is still the one that was planned for.
fn same_volume<'a>(world: &'a World, name: &str, uid: &str) -> Option<&'a Volume> {
    let volume = world.volumes.get(name)?;
    (volume.meta().uid == uid && !volume.is_deleting()).then_some(volume)
}

/// Where a replica is to go, as long as it is where it was.
fn pending_replica(world: &World, fleet: &Fleet, one: &ReplicaMove) -> Option<SiteId> {
    let volume = same_volume(world, &one.volume, &one.volume_uid)?;
    let mut replicas = volume.status.iter().flat_map(|status| &status.replicas);
    let is_there = replicas.any(|replica| replica.uid == one.replica_uid && replica.pool == one.from_pool);
    fleet.find(&one.to_pool).filter(|_| is_there)
}

fn is_pending_target(world: &World, one: &TargetMove) -> bool {
    let volume = same_volume(world, &one.volume, &one.volume_uid);
    let status = volume.and_then(|volume| volume.status.as_ref());
    status.is_some_and(|status| {
        let has_replica = status.replicas.iter().any(|replica| replica.node == one.to_node);
        status.target_node == one.from_node && has_replica
    })
}

/// Notes how far plans are.
pub(super) fn plan_rebalances(context: &mut Context<'_>) {
    let world = context.world;
    for rebalance in world.rebalances.values() {
        let Some(status) = committed(rebalance) else {
            continue;
        };
        let replicas = status.replica_moves.iter();
        let replicas = replicas.filter(|one| pending_replica(world, &context.fleet, one).is_none());
        let targets = status
            .target_moves
            .iter()
            .filter(|one| !is_pending_target(world, one));
        let done = u32::try_from(replicas.count() + targets.count()).unwrap_or(u32::MAX);
        let all = status.replica_moves.len() + status.target_moves.len();
        let is_done = usize::try_from(done).is_ok_and(|done| done >= all);
        if done == status.moves_done && !is_done {
            continue;
        }
        let mut changed = rebalance.clone();
        let new = changed.status.get_or_insert_default();
        new.moves_done = done;
        let mut transaction = Transaction::default();
        if is_done {
            new.state = RebalanceState::Done.into();
            let message = format!("is done: {all} moves");
            context.event(&mut transaction, Severity::Info, rebalance.subject(), message);
        }
        transaction.put(&changed);
        context.commit(transaction);
    }
}

/// What would make pools and nodes more alike. Changes nothing.
pub fn propose(world: &World, limits: &Limits, spec: &RebalanceSpec) -> RebalanceStatus {
    let mut context = Context::new(world, limits);
    let moves_max = usize::try_from(spec.moves_max.unwrap_or(MOVES_DEFAULT)).unwrap_or(usize::MAX);
    let (fullest, emptiest) = extremes(&context.fleet);
    let mut status = RebalanceStatus {
        state: RebalanceState::Planned.into(),
        fullest_percent_before: fullest,
        emptiest_percent_before: emptiest,
        ..RebalanceStatus::default()
    };
    if spec.replicas {
        let tolerance_percent = spec.tolerance_percent.unwrap_or(TOLERANCE_PERCENT_DEFAULT);
        status.replica_moves = replica_moves(&mut context, moves_max, tolerance_percent);
    }
    (status.fullest_percent_after, status.emptiest_percent_after) = extremes(&context.fleet);
    let copied = status.replica_moves.iter().map(|one| one.size_bytes);
    status.copied_bytes_max = copied.fold(0, u64::saturating_add);
    if spec.targets {
        let moved: BTreeSet<&str> = status
            .replica_moves
            .iter()
            .map(|one| one.volume.as_str())
            .collect();
        status.target_moves = target_moves(&context, moves_max, &moved);
    }
    status
}

/// How much of a pool is given out, in parts of a million of its capacity.
fn fill(provisioned_bytes: u64, capacity_bytes: u64) -> u64 {
    let parts = u128::from(provisioned_bytes) * 1_000_000 / u128::from(capacity_bytes.max(1));
    u64::try_from(parts).unwrap_or(u64::MAX)
}

/// The pools that can take part, with how much of each is given out.
fn open_sites(fleet: &Fleet) -> Vec<(SiteId, u64)> {
    fleet
        .sites()
        .filter(|(_, site)| site.closed.is_none() && site.capacity_bytes > 0)
        .map(|(id, site)| (id, fill(site.provisioned_bytes, site.capacity_bytes)))
        .collect()
}

/// How much of the fullest and of the emptiest pool is given out, in percent.
fn extremes(fleet: &Fleet) -> (u32, u32) {
    let fills: Vec<u64> = open_sites(fleet).into_iter().map(|(_, fill)| fill).collect();
    let percent = |fill: Option<&u64>| u32::try_from(fill.copied().unwrap_or(0) / 10_000).unwrap_or(u32::MAX);
    (percent(fills.iter().max()), percent(fills.iter().min()))
}

/// Whether all is well with a volume, so that something of it can be moved.
fn is_movable(volume: &Volume) -> bool {
    let status = volume.status.as_ref();
    !volume.is_deleting()
        && status.is_some_and(|status| {
            let mut replicas = status.replicas.iter();
            status.state() == VolumeState::Healthy
                && replicas.all(|replica| replica.state() == ReplicaState::InSync && !replica.leaving)
        })
}

/// Takes from the fullest pool what another one can have without being fuller then, again and again. Each
/// volume is moved once at most: the next plan may go on.
fn replica_moves(context: &mut Context<'_>, moves_max: usize, tolerance_percent: u32) -> Vec<ReplicaMove> {
    let world = context.world;
    let mut by_pool: BTreeMap<&str, Vec<(&Volume, &str)>> = BTreeMap::new();
    for volume in world.volumes.values().filter(|volume| is_movable(volume)) {
        for replica in volume.status.iter().flat_map(|status| &status.replicas) {
            let there = by_pool.entry(replica.pool.as_str()).or_default();
            there.push((volume, replica.uid.as_str()));
        }
    }
    let size = |volume: &Volume| volume.spec.as_ref().map_or(0, |spec| spec.size_bytes);
    for there in by_pool.values_mut() {
        there.sort_by_key(|(volume, _)| (std::cmp::Reverse(size(volume)), volume.name()));
    }
    let mut moved: BTreeSet<&str> = BTreeSet::new();
    let mut exhausted: BTreeSet<SiteId> = BTreeSet::new();
    let mut moves = Vec::new();
    while moves.len() < moves_max {
        let sites = open_sites(&context.fleet);
        let emptiest = sites.iter().map(|(_, fill)| *fill).min().unwrap_or(0);
        let fullest = sites
            .iter()
            .filter(|(id, _)| !exhausted.contains(id))
            .max_by_key(|(id, fill)| (*fill, std::cmp::Reverse(*id)));
        let Some((from, from_fill)) = fullest.copied() else {
            break;
        };
        if from_fill.saturating_sub(emptiest) <= u64::from(tolerance_percent) * 10_000 {
            break;
        }
        let pool = context
            .fleet
            .site(from)
            .map(|site| site.pool.clone())
            .unwrap_or_default();
        let found = by_pool
            .get(pool.as_str())
            .into_iter()
            .flatten()
            .find_map(|(volume, replica_uid)| {
                if moved.contains(volume.name()) || !context.may_decide() {
                    return None;
                }
                let to = better_place(context, volume, from, from_fill, &sites)?;
                Some((*volume, *replica_uid, to))
            });
        let Some((volume, replica_uid, to)) = found else {
            // Nothing of it can go: others may still be made more alike.
            exhausted.insert(from);
            continue;
        };
        let groups = world.policy(volume).placement.affinity_groups.clone();
        context.fleet.vacate(from, size(volume), &groups);
        context.fleet.occupy(to, size(volume), &groups);
        moved.insert(volume.name());
        moves.push(ReplicaMove {
            volume: volume.name().to_owned(),
            volume_uid: volume.meta().uid.clone(),
            replica_uid: replica_uid.to_owned(),
            from_pool: pool,
            to_pool: context
                .fleet
                .site(to)
                .map(|site| site.pool.clone())
                .unwrap_or_default(),
            size_bytes: size(volume),
        });
    }
    moves
}

/// Where a replica can go so that the pool there is less full afterwards than the one here is now.
fn better_place(
    context: &Context<'_>,
    volume: &Volume,
    from: SiteId,
    from_fill: u64,
    sites: &[(SiteId, u64)],
) -> Option<SiteId> {
    let size_bytes = volume.spec.as_ref()?.size_bytes;
    let better: Vec<SiteId> = sites
        .iter()
        .filter(|(id, _)| {
            let site = context.fleet.site(*id);
            site.is_some_and(|site| {
                let after = site.provisioned_bytes.saturating_add(size_bytes);
                fill(after, site.capacity_bytes) < from_fill
            })
        })
        .map(|(id, _)| *id)
        .collect();
    let replicas = volume.status.iter().flat_map(|status| &status.replicas);
    let own: Vec<SiteId> = replicas
        .filter_map(|replica| context.fleet.find(&replica.pool))
        .collect();
    let kept: Vec<SiteId> = own.iter().copied().filter(|site| *site != from).collect();
    let request = PlacementRequest {
        volume_uid: &volume.meta().uid,
        size_bytes,
        policy: context.world.policy(volume).placement,
        kept: &kept,
        own: &own,
        count: 1,
        only: Some(&better),
        is_rebuild: false,
    };
    let decision = decide(&context.fleet, &request);
    decision.placed.first().map(|placed| placed.site)
}

/// Takes from the node that serves most what another one can serve that serves two less at least, again and
/// again.
fn target_moves(context: &Context<'_>, moves_max: usize, moved: &BTreeSet<&str>) -> Vec<TargetMove> {
    let world = context.world;
    let takes = |name: &str| {
        let spec = world.nodes.get(name).and_then(|node| node.spec.as_ref());
        context.node_state(name) == NodeState::Online
            && spec.is_some_and(|spec| !spec.drained && !spec.cordoned)
    };
    let mut served: BTreeMap<&str, Vec<&Volume>> = world
        .nodes
        .keys()
        .map(|name| (name.as_str(), Vec::new()))
        .collect();
    for volume in world.volumes.values() {
        let target = volume
            .status
            .as_ref()
            .map_or("", |status| status.target_node.as_str());
        if let Some(volumes) = served.get_mut(target) {
            volumes.push(volume);
        }
    }
    let mut counts: BTreeMap<&str, usize> = served
        .iter()
        .map(|(name, volumes)| (*name, volumes.len()))
        .collect();
    let mut exhausted: BTreeSet<&str> = BTreeSet::new();
    let mut moves = Vec::new();
    while moves.len() < moves_max {
        let most = counts
            .iter()
            .filter(|(name, _)| !exhausted.contains(*name))
            .max_by_key(|(name, count)| (**count, std::cmp::Reverse(**name)));
        let Some((from, from_count)) = most.map(|(name, count)| (*name, *count)) else {
            break;
        };
        let volumes = served.get_mut(from);
        let found = volumes.as_ref().and_then(|volumes| {
            volumes.iter().enumerate().find_map(|(index, volume)| {
                if moved.contains(volume.name()) || !is_movable(volume) {
                    return None;
                }
                let replicas = volume.status.iter().flat_map(|status| &status.replicas);
                let others = replicas
                    .map(|replica| replica.node.as_str())
                    .filter(|node| takes(node));
                let to = others.min_by_key(|node| (counts.get(node).copied().unwrap_or(0), *node))?;
                let is_better = counts.get(to).copied().unwrap_or(0) + 2 <= from_count;
                is_better.then_some((index, *volume, to))
            })
        });
        let Some((index, volume, to)) = found else {
            exhausted.insert(from);
            continue;
        };
        // Once moved, it is not looked at again.
        if let Some(volumes) = volumes {
            volumes.remove(index);
        }
        *counts.entry(from).or_default() -= 1;
        *counts.entry(to).or_default() += 1;
        moves.push(TargetMove {
            volume: volume.name().to_owned(),
            volume_uid: volume.meta().uid.clone(),
            from_node: from.to_owned(),
            to_node: to.to_owned(),
        });
    }
    moves
}
