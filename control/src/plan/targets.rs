//! Who serves a volume, and what it is told.

use pollux_api::control::v1::{
    NodeState, ReplicaState, Severity, SnapshotState, TargetConfig, TargetHost, TargetRemoval, TargetReplica,
    Volume, VolumeSpec, VolumeStatus, engine_command::Command,
};

use crate::model::Record;

use super::context::Context;
use super::repair::{Fitness, fitness};
use super::volume::Draft;

/// Chooses a target where there is none, or where the one there is cannot serve or is to leave. A new one
/// has the next epoch: from then on the one before can change nothing.
pub(super) fn choose(context: &mut Context<'_>, draft: &mut Draft<'_>) {
    let current = draft.status.target_node.clone();
    let is_served = !current.is_empty() && context.is_online(&current);
    let is_leaving = context
        .world
        .nodes
        .get(&current)
        .and_then(|node| node.spec.as_ref())
        .is_some_and(|spec| spec.drained);
    if is_served && !is_leaving {
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
    let Some((rank, _, node)) = candidates.min() else {
        return;
    };
    // From one node that is drained to another one: nothing is gained.
    if is_served && rank > 0 {
        return;
    }
    if !current.is_empty() {
        let epoch = draft.status.epoch;
        remove(draft, &current, epoch);
        let why = match context.node_state(&current) {
            NodeState::Online => "is to leave it",
            NodeState::Unreachable | NodeState::Lost | NodeState::Unspecified => "cannot be reached there",
        };
        draft.events.push((
            Severity::Warning,
            format!("is served by node {node} instead of {current}: its target {why}"),
        ));
    }
    context.serve(&node);
    draft.status.epoch += 1;
    draft.status.target_node = node;
}

/// Has a target removed.
pub(super) fn remove(draft: &mut Draft<'_>, node: &str, epoch: u64) {
    let volume_uid = draft.uid().to_owned();
    let what = format!("target.{volume_uid}");
    draft.remove(
        node,
        &what,
        Command::RemoveTarget(TargetRemoval { volume_uid, epoch }),
    );
}

/// Whether the target that is on record serves, as its engine tells.
pub(super) fn serves(context: &Context<'_>, volume_uid: &str, status: &VolumeStatus) -> bool {
    let mut targets = context.targets(volume_uid).iter();
    targets.any(|(node, target)| *node == status.target_node && target.epoch == status.epoch)
}

/// Tells the target what it is to serve.
pub(super) fn send(context: &mut Context<'_>, volume: &Volume, spec: &VolumeSpec, status: &VolumeStatus) {
    if status.epoch == 0 || !context.is_online(&status.target_node) {
        return;
    }
    let config = config(context, volume, spec, status);
    let reported = context.targets(&volume.meta().uid);
    let is_told = reported
        .iter()
        .any(|(node, target)| *node == status.target_node && **target == config);
    if !is_told {
        context.command(&status.target_node, Command::EnsureTarget(config));
    }
}

/// What the target of a volume is told.
fn config(context: &Context<'_>, volume: &Volume, spec: &VolumeSpec, status: &VolumeStatus) -> TargetConfig {
    let policy = context.world.policy(volume);
    let address = |node: &str| {
        let spec = context.world.nodes.get(node).and_then(|node| node.spec.as_ref());
        spec.map_or_else(String::new, |spec| spec.address.clone())
    };
    let snapshot_uids = context
        .snapshots(&volume.meta().uid)
        .iter()
        .filter(|snapshot| {
            let state = snapshot.status.as_ref().map(|status| status.state());
            !snapshot.is_deleting() && state != Some(SnapshotState::Deleting)
        })
        .map(|snapshot| snapshot.meta().uid.clone())
        .collect();
    TargetConfig {
        volume_uid: volume.meta().uid.clone(),
        epoch: status.epoch,
        version: status.version,
        size_bytes: status.size_bytes,
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
            })
            .collect(),
        min_in_sync: policy.min_in_sync,
        hosts: spec
            .hosts
            .iter()
            .map(|host| TargetHost {
                host_nqn: host.host_nqn.clone(),
                read_only: host.read_only,
            })
            .collect(),
        iops_max: policy.qos.and_then(|qos| qos.iops_max),
        bandwidth_bytes_max: policy.qos.and_then(|qos| qos.bandwidth_bytes_max),
        snapshot_uids,
        volume: volume.name().to_owned(),
    }
}
