//! Deletions that somebody began and did not end: of nodes, templates and groups.
//!
//! The one who deletes marks the record, looks whether anything names it, and then deletes it or takes the
//! mark off. Who dies in between leaves the mark. From the mark on nothing new can name the record, and a
//! world that holds the mark holds all that came before it: so what is seen here is what is so.

use pollux_api::control::v1::{Group, Node, Severity, Template};

use crate::model::{Guarded, Record};
use crate::store::Transaction;

use super::context::Context;

/// For so long, the one who began may still be about to end it.
const ABANDONED_AFTER_US: u64 = 30_000_000;

/// Ends them.
pub(super) fn plan_abandoned(context: &mut Context<'_>) {
    let world = context.world;
    for node in world.nodes.values() {
        let names = |name: &str| {
            let mut pools = world.pools.values();
            pools.any(|pool| pool.spec.as_ref().is_some_and(|spec| spec.node == name))
        };
        end(context, node, names);
    }
    for template in world.templates.values() {
        let names = |name: &str| {
            let mut volumes = world.volumes.values();
            volumes.any(|volume| volume.spec.as_ref().is_some_and(|spec| spec.template == name))
        };
        end(context, template, names);
    }
    for group in world.groups.values() {
        let names = |name: &str| {
            let mut volumes = world.volumes.values();
            volumes.any(|volume| volume.spec.as_ref().is_some_and(|spec| spec.group == name))
        };
        end(context, group, names);
    }
}

/// What can be deleted at once.
trait Plain: Record {}

impl Plain for Node {}
impl Plain for Template {}
impl Plain for Group {}

fn end<R: Plain>(context: &mut Context<'_>, record: &R, is_named: impl Fn(&str) -> bool) {
    let Some(marked_unix_us) = record.meta().deleted_unix_us else {
        return;
    };
    if context.world.now_unix_us < marked_unix_us.saturating_add(ABANDONED_AFTER_US) {
        return;
    }
    let mut transaction = Transaction::default();
    let message = if is_named(record.name()) {
        let mut changed = record.clone();
        changed.meta_mut().deleted_unix_us = None;
        transaction.put(&changed);
        "stays: its deletion was not ended, and it is in use"
    } else {
        transaction.delete(record);
        "is deleted"
    };
    context.event(
        &mut transaction,
        Severity::Info,
        record.subject(),
        message.to_owned(),
    );
    context.commit(transaction);
}
