//! What closes the difference between what was asked for and what is: a pure function from a world to steps.
//!
//! A step is a transaction of the store or a command for one engine. Invariants:
//!
//! - A transaction has the condition that the records it replaces are those of the world. So steps of an
//!   outdated world do nothing.
//! - A replica is on record before an engine hears of it. Whatever is taken off the record while it may be
//!   on an engine becomes a [removal](pollux_api::control::v1::Removal) in the same transaction.
//! - A replica that is in sync is taken off the record only while at least `min_in_sync` others that can be
//!   used are in sync, or with its volume.
//! - Commands say what is to be. Sent twice they do nothing the second time; sent late they are refused by
//!   term or epoch.
//! - The same world gives the same steps; a world that is as it should be gives none.
//! - What engines have is judged once they are heard, or were silent for long enough. So a control plane that
//!   has just begun to lead decides nothing about what it has not heard of yet.

mod abandoned;
mod context;
mod group_snapshots;
mod nodes;
mod preview;
mod rebalance;
mod repair;
mod roll_backs;
mod snapshots;
mod targets;
mod unreadable;
mod volume;

use std::collections::HashSet;

use pollux_api::control::v1::{EngineCommand, Event, Removal, Severity, engine_command};

use crate::model::{Guarded, Kind, Record};
use crate::placement::PlacementLimits;
use crate::store::{Transaction, Write};
use crate::world::World;

use context::Context;

pub use preview::{explain_volume, preview};
pub use rebalance::propose;

/// What reconciling may do, and how long it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// An engine that is silent for so long counts as unreachable: its targets move.
    pub unreachable_after_us: u64,
    /// A node or pool that is away for so long counts as lost: its replicas are replaced.
    pub replace_after_us: u64,
    /// At most so many replicas are made anew at a time on a node, and from a node.
    pub rebuilds_per_node_max: u32,
    /// At most so many replicas are made anew at a time altogether.
    pub rebuilds_max: u32,
    /// For so long, a pool in which a replica could not be made gets no new ones.
    pub cool_down_us: u64,
    /// Steps of one pass.
    pub steps_max: usize,
    /// Events that are kept.
    pub events_max: usize,
    /// How full pools may be.
    pub placement: PlacementLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unreachable_after_us: 10_000_000,
            replace_after_us: 300_000_000,
            rebuilds_per_node_max: 2,
            rebuilds_max: 128,
            cool_down_us: 600_000_000,
            steps_max: 4_000,
            events_max: 10_000,
            placement: PlacementLimits::default(),
        }
    }
}

/// One thing to do.
#[allow(
    clippy::large_enum_variant,
    reason = "steps are few, and gone once they are done"
)]
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Change records.
    Commit(Transaction),
    /// Tell an engine what is to be.
    Command {
        /// Its node.
        node: String,
        /// What it is told.
        command: engine_command::Command,
    },
}

/// Old events that one transaction forgets, and transactions of one pass that do so.
const EVENTS_FORGOTTEN_AT_ONCE: usize = 100;
const EVENT_COMMITS_MAX: usize = 50;

/// What to do in a world, in this order, as far as limits go. Nothing: all is as it should be, or only time
/// or an engine can change that.
pub fn plan(world: &World, limits: &Limits) -> Vec<Step> {
    let mut context = Context::new(world, limits);
    nodes::plan_nodes(&mut context);
    nodes::plan_pools(&mut context);
    abandoned::plan_abandoned(&mut context);
    plan_removals(&mut context);
    snapshots::plan_snapshots(&mut context);
    group_snapshots::plan_group_snapshots(&mut context);
    volume::plan_volumes(&mut context);
    snapshots::plan_schedules(&mut context);
    rebalance::plan_rebalances(&mut context);
    plan_events(&mut context);
    let mut steps = context.into_steps();
    steps.truncate(limits.steps_max);
    steps
}

/// Sends removals until reports show them done, then forgets them.
///
/// What is served goes before what it is served from: a target without its replicas cannot end in good order.
/// So the replicas of a volume stay while an engine that can be told has yet to end it. One that cannot be
/// told is not waited for; it has nothing that would be missed.
fn plan_removals(context: &mut Context<'_>) {
    let world = context.world;
    let is_target = |removal: &&Removal| {
        let command = removal
            .command
            .as_ref()
            .and_then(|command| command.command.as_ref());
        matches!(command, Some(engine_command::Command::RemoveTarget(_)))
    };
    let (targets, others): (Vec<&Removal>, Vec<&Removal>) = world.removals.values().partition(is_target);
    let served: HashSet<&str> = targets
        .iter()
        .filter(|removal| context.is_online(&removal.node) || context.is_awaited(&removal.node))
        .map(|removal| removal.volume_uid.as_str())
        .collect();
    for removal in targets {
        plan_removal(context, removal);
    }
    for removal in others {
        if removal.volume_uid.is_empty() || !served.contains(removal.volume_uid.as_str()) {
            plan_removal(context, removal);
        }
    }
}

fn plan_removal(context: &mut Context<'_>, removal: &Removal) {
    let command = removal.command.as_ref();
    let command = command.and_then(|command| command.command.clone());
    let Some(command) = command else {
        context.forget(removal);
        return;
    };
    if !context.world.nodes.contains_key(&removal.node) {
        // With the node, what was on it is forgotten.
        context.forget(removal);
    } else if context.is_online(&removal.node) {
        match context.is_removed(&removal.node, &command) {
            true => context.forget(removal),
            false => context.command(&removal.node, command),
        }
    }
}

/// Forgets the oldest events.
fn plan_events(context: &mut Context<'_>) {
    let world = context.world;
    let surplus = world.events.len().saturating_sub(context.limits.events_max);
    if surplus == 0 {
        return;
    }
    let oldest: Vec<&String> = world.events.iter().take(surplus).collect();
    for names in oldest.chunks(EVENTS_FORGOTTEN_AT_ONCE).take(EVENT_COMMITS_MAX) {
        let writes = names.iter().map(|name| Write::Delete {
            key: Kind::Event.key(name),
        });
        context.commit(Transaction {
            conditions: Vec::new(),
            writes: writes.collect(),
        });
    }
}

/// A command as it is stored in a removal.
fn stored(command: engine_command::Command) -> Option<EngineCommand> {
    Some(EngineCommand {
        command: Some(command),
    })
}

/// Adds an event to a transaction.
pub(crate) fn add_event(
    transaction: &mut Transaction,
    world: &World,
    number: usize,
    severity: Severity,
    (subject, message): (String, String),
) {
    // The revision keeps decisions of the same microsecond apart.
    let unique = format!("{:x}-{number:x}", world.revision);
    transaction.put_always(&event(world.now_unix_us, &unique, severity, (subject, message)));
}

/// An event; what keeps it apart from others of the same microsecond is part of its name.
pub(crate) fn event(
    now_unix_us: u64,
    unique: &str,
    severity: Severity,
    (subject, message): (String, String),
) -> Event {
    let mut event = Event {
        metadata: None,
        unix_us: now_unix_us,
        severity: severity.into(),
        subject,
        message,
    };
    // Names have the order of time.
    event.meta_mut().name = format!("{now_unix_us:020}-{unique}");
    event.meta_mut().created_unix_us = now_unix_us;
    event
}
