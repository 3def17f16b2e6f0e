//! Nodes and pools: whether they are heard from, and what that means.

use pollux_api::control::v1::{
    Node, NodeState, NodeStatus, Pool, PoolConfig, PoolHealth, PoolReport, PoolState, PoolStatus, Removal,
    Replica, Severity, engine_command::Command,
};

use crate::model::{Guarded, Record, VOLATILE, is_volatile};
use crate::store::Transaction;

use super::context::Context;
use super::stored;

/// Used bytes are stored again when they have changed by this part of the capacity: they are for people and
/// placement, and no reason to write all the time.
const USED_STEP_PERCENT: u64 = 1;

/// Volumes that are named of those that keep a node or pool from being emptied.
const KEPT_TOLD_MAX: usize = 3;

/// Notes who is heard from, and since when not.
pub(super) fn plan_nodes(context: &mut Context<'_>) {
    let world = context.world;
    for node in world.nodes.values() {
        let old = node.status.clone().unwrap_or_default();
        let new = node_status(context, node, &old);
        if new == old {
            continue;
        }
        let mut changed = node.clone();
        changed.status = Some(new.clone());
        let mut transaction = Transaction::default();
        transaction.put(&changed);
        if new.state != old.state {
            let (severity, message) = match new.state() {
                NodeState::Online => (Severity::Info, "is online"),
                NodeState::Unreachable => (Severity::Warning, "does not report: its targets move elsewhere"),
                NodeState::Lost => (Severity::Error, "is lost: its replicas are replaced elsewhere"),
                NodeState::Unspecified => (Severity::Info, "was never heard from"),
            };
            context.event(&mut transaction, severity, node.subject(), message.to_owned());
        }
        if new.state() == NodeState::Online && old.message.is_empty() && !new.message.is_empty() {
            let message = format!("cannot be emptied: {}", new.message);
            context.event(&mut transaction, Severity::Warning, node.subject(), message);
        }
        context.commit(transaction);
    }
}

fn node_status(context: &Context<'_>, node: &Node, old: &NodeStatus) -> NodeStatus {
    let world = context.world;
    let limits = context.limits;
    let now = world.now_unix_us;
    let observation = world.reports.get(node.name());
    let heard_unix_us = observation.map_or(0, |observation| observation.at_unix_us);
    let silent_since = heard_unix_us.max(world.observing_since_unix_us);
    let is_silent = now >= silent_since.saturating_add(limits.unreachable_after_us);
    let state = match (old.state(), is_silent, observation.is_some()) {
        (_, false, true) => NodeState::Online,
        // Nothing is known of it here yet: it stays what it was.
        (state, false, false) => state,
        (NodeState::Unspecified, true, _) => NodeState::Unspecified,
        (NodeState::Online, true, _) => NodeState::Unreachable,
        (NodeState::Unreachable, true, _) => {
            match now >= old.state_since_unix_us.saturating_add(limits.replace_after_us) {
                true => NodeState::Lost,
                false => NodeState::Unreachable,
            }
        }
        (NodeState::Lost, true, _) => NodeState::Lost,
    };
    let mut status = old.clone();
    if state != old.state() {
        status.state = state.into();
        status.state_since_unix_us = now;
    }
    if let Some(observation) = observation.filter(|_| state == NodeState::Online) {
        status.version.clone_from(&observation.report.version);
        status
            .nvmf_listeners
            .clone_from(&observation.report.nvmf_listeners);
    }
    let is_drained = node.spec.as_ref().is_some_and(|spec| spec.drained);
    status.empty = is_drained
        && context
            .fleet
            .sites()
            .all(|(_, site)| site.node != node.name() || site.replicas == 0)
        && context.served(node.name()) == 0;
    status.message = match (state, is_drained) {
        (NodeState::Online, true) => kept(context, |replica| replica.node == node.name()),
        (NodeState::Online, false) => String::new(),
        (NodeState::Unspecified | NodeState::Unreachable | NodeState::Lost, _) => {
            world.silent.get(node.name()).cloned().unwrap_or_default()
        }
    };
    status
}

/// Which volumes keep replicas where none is to be, and why those cannot go; empty if all are on their way.
fn kept(context: &Context<'_>, is_there: impl Fn(&Replica) -> bool) -> String {
    let volumes = context.world.volumes.values();
    let mut stuck = volumes.filter_map(|volume| {
        let status = volume.status.as_ref()?;
        let is_stuck = !status.message.is_empty() && status.replicas.iter().any(&is_there);
        is_stuck.then(|| format!("volume {} stays: {}", volume.name(), status.message))
    });
    let mut told: Vec<String> = stuck.by_ref().take(KEPT_TOLD_MAX).collect();
    match stuck.count() {
        0 => {}
        more => told.push(format!("and {more} more")),
    }
    told.join("; ")
}

/// Makes pools, notes whether they can be used, and takes them apart.
pub(super) fn plan_pools(context: &mut Context<'_>) {
    let world = context.world;
    for pool in world.pools.values() {
        let Some(spec) = &pool.spec else { continue };
        if pool.is_deleting() {
            plan_pool_removal(context, pool);
            continue;
        }
        let old = pool.status.clone().unwrap_or_default();
        if context.is_online(&spec.node) && context.pool(&pool.meta().uid).is_none() {
            let config = PoolConfig {
                uid: pool.meta().uid.clone(),
                devices: spec.devices.clone(),
                made: old.state() != PoolState::Unspecified,
            };
            context.command(&spec.node, Command::EnsurePool(config));
        }
        let new = pool_status(context, pool, &old);
        if !is_worth_storing(&old, &new) {
            continue;
        }
        let mut changed = pool.clone();
        changed.status = Some(new.clone());
        let mut transaction = Transaction::default();
        transaction.put(&changed);
        if new.state != old.state {
            let (severity, message) = match new.state() {
                PoolState::Online => (Severity::Info, "is online".to_owned()),
                PoolState::Unreachable => (Severity::Warning, "cannot be reached".to_owned()),
                PoolState::Sick => (
                    Severity::Warning,
                    format!("is sick ({}): replicas leave it", new.message),
                ),
                PoolState::Failed => (
                    Severity::Error,
                    format!("has failed ({}): its replicas are replaced", new.message),
                ),
                PoolState::Unspecified => (Severity::Info, "is not made yet".to_owned()),
            };
            context.event(&mut transaction, severity, pool.subject(), message);
            if old.state() == PoolState::Unspecified && is_volatile(&spec.devices) {
                let message = VOLATILE.to_owned();
                context.event(&mut transaction, Severity::Warning, pool.subject(), message);
            }
        } else if new.state() == PoolState::Online && spec.drained && is_newly_told(&old, &new) {
            let message = format!("cannot be emptied: {}", new.message);
            context.event(&mut transaction, Severity::Warning, pool.subject(), message);
        } else if new.state() == PoolState::Unspecified && !new.message.is_empty() {
            let message = format!("is not made: {}", new.message);
            context.event(&mut transaction, Severity::Warning, pool.subject(), message);
        }
        context.commit(transaction);
    }
}

/// A pool goes when nothing is on it any more.
fn plan_pool_removal(context: &mut Context<'_>, pool: &Pool) {
    let Some(spec) = &pool.spec else { return };
    let site = context
        .fleet
        .find(pool.name())
        .and_then(|id| context.fleet.site(id));
    if site.is_some_and(|site| site.replicas > 0) {
        return;
    }
    let mut transaction = Transaction::default();
    transaction.delete(pool);
    let mut removal = Removal {
        metadata: None,
        node: spec.node.clone(),
        command: stored(Command::RemovePool(pool.meta().uid.clone())),
        volume_uid: String::new(),
    };
    removal.meta_mut().name = format!("{}.pool.{}", spec.node, pool.meta().uid);
    transaction.put_always(&removal);
    context.event(
        &mut transaction,
        Severity::Info,
        pool.subject(),
        "is deleted".to_owned(),
    );
    context.commit(transaction);
}

fn pool_status(context: &Context<'_>, pool: &Pool, old: &PoolStatus) -> PoolStatus {
    let node = pool.spec.as_ref().map_or("", |spec| spec.node.as_str());
    let now = context.world.now_unix_us;
    let mut status = old.clone();
    let report = context.pool(&pool.meta().uid);
    let refusal = context.world.pool_refusals.get(&pool.meta().uid);
    let (state, message) = match (report, context.node_state(node)) {
        (Some(report), _) => {
            status.capacity_bytes = report.capacity_bytes;
            status.used_bytes = report.used_bytes;
            let state = match report.health() {
                PoolHealth::Good => PoolState::Online,
                PoolHealth::Sick => PoolState::Sick,
                PoolHealth::Failed | PoolHealth::Unspecified => PoolState::Failed,
            };
            (state, online_message(context, pool, report))
        }
        // Not made yet: there is nothing that could be lost.
        (None, _) if old.state() == PoolState::Unspecified => {
            status.message = refusal.cloned().unwrap_or_default();
            return status;
        }
        (None, _) if context.is_awaited(node) => return status,
        (None, NodeState::Lost) => (PoolState::Failed, "its node is lost".to_owned()),
        (None, NodeState::Online) if context.is_online(node) => {
            // An engine that has just started takes a moment to find its pools.
            let waited = old.state() == PoolState::Unreachable
                && now
                    >= old
                        .state_since_unix_us
                        .saturating_add(context.limits.replace_after_us);
            let state = match waited || old.state() == PoolState::Failed {
                true => PoolState::Failed,
                false => PoolState::Unreachable,
            };
            let message = match refusal {
                Some(refusal) => format!("its engine does not find it: {refusal}"),
                None => "its engine does not find it".to_owned(),
            };
            (state, message)
        }
        (None, _) if old.state() == PoolState::Failed => return status,
        (None, _) => (PoolState::Unreachable, "its node does not report".to_owned()),
    };
    if state != old.state() {
        status.state = state.into();
        status.state_since_unix_us = now;
    }
    status.message = message;
    if let Some(site) = context
        .fleet
        .find(pool.name())
        .and_then(|id| context.fleet.site(id))
    {
        status.provisioned_bytes = site.provisioned_bytes;
        status.replicas = site.replicas;
    }
    status
}

/// What is to be said of a pool that its engine tells of.
fn online_message(context: &Context<'_>, pool: &Pool, report: &PoolReport) -> String {
    let spec = pool.spec.as_ref();
    let kept = match spec.is_some_and(|spec| spec.drained) {
        true => kept(context, |replica| replica.pool == pool.name()),
        false => String::new(),
    };
    let is_volatile = spec.is_some_and(|spec| is_volatile(&spec.devices));
    match (report.message.is_empty(), kept.is_empty(), is_volatile) {
        (false, ..) => report.message.clone(),
        (true, false, _) => kept,
        (true, true, true) => VOLATILE.to_owned(),
        (true, true, false) => String::new(),
    }
}

/// Whether there is something to tell that was not told before.
fn is_newly_told(old: &PoolStatus, new: &PoolStatus) -> bool {
    let is_nothing = |message: &str| message.is_empty() || message == VOLATILE;
    is_nothing(&old.message) && !is_nothing(&new.message)
}

/// Whether more has changed than how full it is, or that by much.
fn is_worth_storing(old: &PoolStatus, new: &PoolStatus) -> bool {
    let step = new.capacity_bytes / 100 * USED_STEP_PERCENT;
    let comparable = |status: &PoolStatus| PoolStatus {
        used_bytes: 0,
        ..status.clone()
    };
    comparable(old) != comparable(new) || old.used_bytes.abs_diff(new.used_bytes) > step
}
