//! Who serves a volume, who else shows it to hosts, and what they are told.
//!
//! The node that is to serve is chosen here; the epoch is raised by the target itself, when it opens the
//! volume. Between the two nobody can change who takes part: the old target is not the node that may, and the
//! new one has not opened it yet.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use pollux_api::control::v1::{
    NodeState, Replica, ReplicaState, Severity, SnapshotState, TargetConfig, TargetHost, TargetRemoval,
    TargetReplica, Volume, VolumeSpec, VolumeState, VolumeStatus, engine_command::Command,
};
use pollux_api::qos::{Counted, Direction, Limit};

use crate::model::{Record, SLOTS, goes_back_to, has_snapshot};

use super::context::Context;
use super::repair::{Fitness, fitness};
use super::snapshots::is_on_record;
use super::volume::Draft;

/// Chooses a target where there is none, or where the one there is cannot serve or is to leave. From then on
/// the one before can change nothing on record.
pub(super) fn choose(context: &mut Context<'_>, draft: &mut Draft<'_>) {
    let current = draft.status.target_node.clone();
    let is_served = !current.is_empty() && context.is_online(&current);
    let is_leaving = context
        .world
        .nodes
        .get(&current)
        .and_then(|node| node.spec.as_ref())
        .is_some_and(|spec| spec.drained);
    // A plan to rebalance moves what is well, and nothing else.
    let is_healthy = draft.status.state() == VolumeState::Healthy;
    let moved = context
        .moves
        .target(draft.volume.name())
        .filter(|_| is_served && is_healthy);
    if is_served && !is_leaving && moved.is_none() {
        return;
    }
    let candidates = draft
        .status
        .replicas
        .iter()
        .filter(|replica| replica.state() == ReplicaState::InSync)
        .filter(|replica| context.is_online(&replica.node) && replica.node != current)
        .filter_map(|replica| {
            let rank = match fitness(context, replica) {
                Fitness::Good => 0,
                Fitness::Leaving => 1,
                Fitness::Away | Fitness::Gone => return None,
            };
            Some((rank, context.served(&replica.node), replica.node.clone()))
        });
    let chosen = match moved.filter(|_| !is_leaving) {
        Some(node) => candidates.filter(|(_, _, candidate)| candidate == node).min(),
        None => candidates.min(),
    };
    let Some((rank, _, node)) = chosen else {
        return;
    };
    // From one node that is drained to another one: nothing is gained.
    if is_served && rank > 0 {
        return;
    }
    if !current.is_empty() {
        // Beside a replica it stays, as a standby.
        if draft
            .status
            .replicas
            .iter()
            .all(|replica| replica.node != current)
        {
            let epoch = draft.status.epoch;
            remove(draft, &current, epoch);
        }
        let (severity, why) = match context.node_state(&current) {
            NodeState::Online => (Severity::Info, "is to leave it"),
            NodeState::Unreachable | NodeState::Lost | NodeState::Unspecified => {
                (Severity::Warning, "cannot be reached there")
            }
        };
        let text = format!("is served by node {node} instead of {current}: its target {why}");
        draft.events.push((severity, text));
    }
    context.serve(&node);
    draft.status.target_node = node;
    let is_well = matches!(draft.status.state(), VolumeState::Healthy | VolumeState::Degraded);
    draft.status.moving_since_unix_us = (is_served && is_well).then_some(context.world.now_unix_us);
}

/// Whether the target is on its way from one node to another one, as was planned: for as long as an engine
/// may be silent. Hosts wait for it then, and nothing is wrong.
pub(super) fn is_moving(context: &Context<'_>, status: &VolumeStatus) -> bool {
    let patience_us = context.limits.unreachable_after_us;
    status.moving_since_unix_us.is_some_and(|since| {
        context.is_online(&status.target_node)
            && context.world.now_unix_us < since.saturating_add(patience_us)
    })
}

/// What a removal of a volume from a node is called there.
fn removal_of(volume_uid: &str) -> String {
    format!("target.{volume_uid}")
}

/// Has a target or standby removed.
pub(super) fn remove(draft: &mut Draft<'_>, node: &str, epoch: u64) {
    let volume_uid = draft.uid().to_owned();
    let what = removal_of(&volume_uid);
    draft.remove(
        node,
        &what,
        Command::RemoveTarget(TargetRemoval { volume_uid, epoch }),
    );
}

/// Whether the target that is on record serves, as its engine tells.
pub(super) fn serves(context: &Context<'_>, volume_uid: &str, status: &VolumeStatus) -> bool {
    let mut targets = context.targets(volume_uid).iter();
    targets
        .any(|(node, target)| *node == status.target_node && !target.standby && target.epoch >= status.epoch)
}

/// Tells the target what it is to serve, and the others with a replica what they are to show.
pub(super) fn send(context: &mut Context<'_>, volume: &Volume, spec: &VolumeSpec, status: &VolumeStatus) {
    if status.epoch == 0 {
        return;
    }
    if context.is_online(&status.target_node) && !is_left_elsewhere(context, volume, status) {
        let config = config(context, volume, spec, status);
        let reported = reported(context, volume, &status.target_node);
        if reported != Some(&config) {
            context.command(&status.target_node, Command::EnsureTarget(config));
        }
    }
    for replica in &status.replicas {
        let is_shown = replica.state() != ReplicaState::Assigned && replica.node != status.target_node;
        if is_shown && context.is_online(&replica.node) {
            send_standby(context, volume, (spec, status), replica);
        }
    }
}

/// Whether another node serves the volume still, and can be told to stop: the new target waits for that, so
/// that it finds nothing to make good. One that is gone is not waited for, nor one that was superseded.
fn is_left_elsewhere(context: &Context<'_>, volume: &Volume, status: &VolumeStatus) -> bool {
    let volume_uid = &volume.meta().uid;
    let mut targets = context.targets(volume_uid).iter();
    let is_served = targets
        .any(|(node, target)| *node != status.target_node && !target.standby && context.is_online(node));
    is_served && !serves(context, volume_uid, status)
}

/// What a node tells of a volume.
fn reported<'a>(context: &Context<'a>, volume: &Volume, node: &str) -> Option<&'a TargetConfig> {
    let mut targets = context.targets(&volume.meta().uid).iter();
    targets
        .find(|(other, _)| *other == node)
        .map(|(_, target)| *target)
}

/// A volume that no host uses is shown nowhere but at its target.
fn send_standby(
    context: &mut Context<'_>,
    volume: &Volume,
    (spec, status): (&VolumeSpec, &VolumeStatus),
    replica: &Replica,
) {
    let volume_uid = volume.meta().uid.clone();
    let epoch = status.epoch;
    // One that is being removed there, of another replica, goes first.
    let removal = format!("{}.{}", replica.node, removal_of(&volume_uid));
    if context.world.removals.contains_key(&removal) {
        return;
    }
    let reported = reported(context, volume, &replica.node);
    let config = TargetConfig {
        volume_uid: volume_uid.clone(),
        // It is no matter to a standby, but tells an old target that it is none any more.
        epoch: reported
            .filter(|target| target.standby)
            .map_or(epoch, |target| target.epoch),
        size_bytes: status.size_bytes,
        hosts: hosts(context, spec, reported),
        other_paths: other_paths(context, (spec, status), &replica.node),
        volume: volume.name().to_owned(),
        standby: true,
        path: replica.slot,
        ..TargetConfig::default()
    };
    let command = match (reported, config.hosts.is_empty()) {
        (None, true) => return,
        (Some(_), true) => Command::RemoveTarget(TargetRemoval { volume_uid, epoch }),
        (Some(target), false) if *target == config => return,
        (_, false) => Command::EnsureTarget(config),
    };
    context.command(&replica.node, command);
}

/// The hosts that an engine is to admit. Their secrets are added when it is told. Of a host whose secrets are
/// lost nobody is told who does not have them already.
fn hosts(context: &Context<'_>, spec: &VolumeSpec, reported: Option<&TargetConfig>) -> Vec<TargetHost> {
    let hosts = spec.hosts.iter().map(|host| TargetHost {
        host_nqn: host.host_nqn.clone(),
        read_only: host.read_only,
        secret_uid: host.secret_uid.clone(),
        secrets: None,
    });
    let has = |target: &TargetConfig, host: &TargetHost| {
        let mut known = target.hosts.iter();
        known.any(|known| known.host_nqn == host.host_nqn && known.secret_uid == host.secret_uid)
    };
    hosts
        .filter(|host| {
            host.secret_uid.is_empty()
                || context.world.host_secrets.contains(&host.secret_uid)
                || reported.is_some_and(|target| has(target, host))
        })
        .collect()
}

/// Where the engines on other nodes than one that show a volume listen, once a host may use it.
fn other_paths(
    context: &Context<'_>,
    (spec, status): (&VolumeSpec, &VolumeStatus),
    node: &str,
) -> Vec<String> {
    if spec.hosts.is_empty() {
        return Vec::new();
    }
    let shown = status
        .replicas
        .iter()
        .filter(|replica| replica.state() != ReplicaState::Assigned);
    let nodes = shown
        .map(|replica| replica.node.as_str())
        .chain([status.target_node.as_str()]);
    // A node that is deleted or was never heard of listens nowhere. What is no address is of no use to hosts.
    let listeners = nodes
        .filter(|other| *other != node)
        .filter_map(|other| context.world.nodes.get(other)?.status.as_ref())
        .flat_map(|status| &status.nvmf_listeners)
        .filter(|address| address.parse::<SocketAddr>().is_ok());
    let addresses: BTreeSet<&String> = listeners.collect();
    addresses.into_iter().cloned().collect()
}

/// What the target of a volume is told.
fn config(context: &Context<'_>, volume: &Volume, spec: &VolumeSpec, status: &VolumeStatus) -> TargetConfig {
    let reported = reported(context, volume, &status.target_node);
    let policy = context.world.policy(volume);
    // For engines that know totals only.
    let total = |counted| {
        let rate = policy.qos?.rate(Limit::new(Direction::Total, counted))?;
        Some(rate.per_second).filter(|per_second| *per_second > 0)
    };
    let address = |node: &str| {
        let spec = context.world.nodes.get(node).and_then(|node| node.spec.as_ref());
        spec.map_or_else(String::new, |spec| spec.address.clone())
    };
    // Those that are taken together with others are not taken by being told of, but must stay once they are.
    let attempted = context.attempted(&volume.meta().uid).iter();
    let attempted = attempted.filter(|uid| is_on_record(volume, uid)).cloned();
    let snapshot_uids = context
        .snapshots(&volume.meta().uid)
        .iter()
        .filter(|snapshot| {
            let state = snapshot.status.as_ref().map(|status| status.state());
            let uid = &snapshot.meta().uid;
            let is_left = !snapshot.is_deleting() && state != Some(SnapshotState::Deleting);
            // One that was taken and is lost would be taken anew: of another moment, under its name.
            let is_takeable = state == Some(SnapshotState::Pending) || has_snapshot(status, uid);
            (is_left || goes_back_to(status, uid)) && is_takeable
        })
        .map(|snapshot| snapshot.meta().uid.clone())
        .chain(attempted)
        .collect();
    TargetConfig {
        volume_uid: volume.meta().uid.clone(),
        epoch: status.epoch,
        version: status.version,
        size_bytes: spec.size_bytes.max(status.size_bytes),
        replicas: status
            .replicas
            .iter()
            // What is not made yet is no use to the target.
            .filter(|replica| replica.state() != ReplicaState::Assigned)
            .map(|replica| TargetReplica {
                uid: replica.uid.clone(),
                node: replica.node.clone(),
                address: address(&replica.node),
                in_sync: replica.state() == ReplicaState::InSync,
                slot: replica.slot,
                leaving: replica.leaving,
            })
            .collect(),
        min_in_sync: status.min_in_sync,
        hosts: hosts(context, spec, reported),
        other_paths: other_paths(context, (spec, status), &status.target_node),
        iops_max: total(Counted::Operations),
        bandwidth_bytes_max: total(Counted::Bytes),
        qos: policy.qos.copied(),
        snapshot_uids,
        volume: volume.name().to_owned(),
        standby: false,
        path: status
            .replicas
            .iter()
            .find(|replica| replica.node == status.target_node)
            .map_or(SLOTS, |replica| replica.slot),
    }
}
