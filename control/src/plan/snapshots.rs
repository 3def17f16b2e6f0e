//! Snapshots: taken and deleted by targets, and taken again and again by schedules.

use std::collections::BTreeMap;

use pollux_api::control::v1::{
    Group, GroupStatus, Severity, Snapshot, SnapshotSchedule, SnapshotSpec, SnapshotState, SnapshotStatus,
    TargetConfig, Volume,
};
use uuid::Uuid;

use crate::model::{Guarded, Record};
use crate::store::{TRANSACTION_OPERATIONS_MAX, Transaction};

use super::context::Context;

/// The label of snapshots that a schedule took: the name of its group.
pub(crate) const SCHEDULE_LABEL: &str = "pollux.io/schedule";

/// Notes which snapshots are taken, and has those removed that are to go.
pub(super) fn plan_snapshots(context: &mut Context<'_>) {
    let world = context.world;
    for snapshot in world.snapshots.values() {
        let (Some(spec), Some(status)) = (&snapshot.spec, &snapshot.status) else {
            continue;
        };
        let volume = world
            .volumes
            .get(&spec.volume)
            .filter(|volume| volume.meta().uid == status.volume_uid);
        match (volume, snapshot.is_deleting(), status.state()) {
            (volume, true, _) => plan_removal(context, snapshot, volume),
            (Some(volume), false, SnapshotState::Pending) => note_taken(context, snapshot, status, volume),
            (_, false, _) => {}
        }
    }
}

/// Whether a volume has a snapshot on record.
fn is_on_record(volume: &Volume, uid: &str) -> bool {
    let status = volume.status.as_ref();
    status.is_some_and(|status| status.snapshots.iter().any(|recorded| recorded.uid == uid))
}

/// A snapshot is taken once the target of its volume has it on record: it is on every replica in sync then.
fn note_taken(context: &mut Context<'_>, snapshot: &Snapshot, status: &SnapshotStatus, volume: &Volume) {
    if !is_on_record(volume, &snapshot.meta().uid) {
        return;
    }
    let mut changed = snapshot.clone();
    changed.status = Some(SnapshotStatus {
        state: SnapshotState::Ready.into(),
        taken_unix_us: Some(context.world.now_unix_us),
        ..status.clone()
    });
    let mut transaction = Transaction::default();
    transaction.put(&changed);
    context.event(
        &mut transaction,
        Severity::Info,
        snapshot.subject(),
        format!("is taken of {}", volume.subject()),
    );
    context.commit(transaction);
}

/// A snapshot is forgotten once the target of its volume has taken it off the record, or has never heard of
/// it. Targets see to replicas that still have something of it, when these return.
fn plan_removal(context: &mut Context<'_>, snapshot: &Snapshot, volume: Option<&Volume>) {
    // It came to be the source of a volume while its deletion was asked for: that is finished first.
    if is_source(context, snapshot) {
        return;
    }
    let uid = &snapshot.meta().uid;
    // Its target may be about to take it: it has to know that the snapshot is not wanted any more.
    let is_gone = volume.is_none_or(|volume| {
        let targets = context.targets(&volume.meta().uid);
        let is_told = |target: &TargetConfig| target.snapshot_uids.contains(uid);
        !is_on_record(volume, uid) && !targets.iter().any(|(_, target)| is_told(target))
    });
    if !is_gone {
        return;
    }
    let mut transaction = Transaction::default();
    transaction.delete(snapshot);
    context.event(
        &mut transaction,
        Severity::Info,
        snapshot.subject(),
        "is deleted".to_owned(),
    );
    context.commit(transaction);
}

/// Whether a volume is being made of it.
fn is_source(context: &Context<'_>, snapshot: &Snapshot) -> bool {
    context.world.volumes.values().any(|volume| {
        let is_begun = volume.status.as_ref().is_some_and(|status| status.epoch > 0);
        let source = volume.spec.as_ref().map(|spec| spec.source_snapshot.as_str());
        !is_begun && source == Some(snapshot.name())
    })
}

/// Takes the snapshots of schedules that are due, and deletes those that are too many.
pub(super) fn plan_schedules(context: &mut Context<'_>) {
    let world = context.world;
    let has_schedule = |group: &Group| group.spec.as_ref().is_some_and(|spec| spec.schedule.is_some());
    if !world.groups.values().any(has_schedule) {
        return;
    }
    let mut members: BTreeMap<&str, Vec<&Volume>> = BTreeMap::new();
    for volume in world.volumes.values().filter(|volume| !volume.is_deleting()) {
        if let Some(spec) = volume.spec.as_ref().filter(|spec| !spec.group.is_empty()) {
            members.entry(&spec.group).or_default().push(volume);
        }
    }
    for group in world.groups.values() {
        let schedule = group.spec.as_ref().and_then(|spec| spec.schedule.as_ref());
        let Some(schedule) = schedule else { continue };
        let members = members.get(group.name()).map_or(&[][..], Vec::as_slice);
        take_due(context, group, schedule, members);
        for volume in members {
            forget_old(context, group, schedule, volume);
        }
    }
}

/// Takes one snapshot of each member, all in the transaction that notes when.
fn take_due(context: &mut Context<'_>, group: &Group, schedule: &SnapshotSchedule, members: &[&Volume]) {
    let now = context.world.now_unix_us;
    let last = group
        .status
        .as_ref()
        .and_then(|status| status.last_snapshot_unix_us);
    let due = last
        .unwrap_or(group.meta().created_unix_us)
        .saturating_add(schedule.interval_us);
    if now < due || members.is_empty() {
        return;
    }
    let mut transaction = Transaction::default();
    let mut changed = group.clone();
    changed.status = Some(GroupStatus {
        last_snapshot_unix_us: Some(now),
    });
    transaction.put(&changed);
    let served = members.iter().filter(|volume| {
        let epoch = volume.status.as_ref().map(|status| status.epoch);
        epoch.is_some_and(|epoch| epoch > 0)
    });
    // Room for the group itself and the event.
    for volume in served.take(TRANSACTION_OPERATIONS_MAX - 2) {
        let name = format!("{}.{}", volume.name(), now / 1_000_000);
        let uid = Uuid::new_v5(
            &Uuid::NAMESPACE_OID,
            format!("{}/{now}", volume.meta().uid).as_bytes(),
        );
        let mut snapshot = Snapshot {
            metadata: None,
            spec: Some(SnapshotSpec {
                volume: volume.name().to_owned(),
                group_snapshot: String::new(),
            }),
            status: Some(SnapshotStatus {
                state: SnapshotState::Pending.into(),
                volume_uid: volume.meta().uid.clone(),
                size_bytes: volume.status.as_ref().map_or(0, |status| status.size_bytes),
                taken_unix_us: None,
            }),
        };
        let metadata = snapshot.meta_mut();
        metadata.name = name;
        metadata.uid = uid.to_string();
        metadata.created_unix_us = now;
        metadata
            .labels
            .insert(SCHEDULE_LABEL.to_owned(), group.name().to_owned());
        transaction.put(&snapshot);
    }
    context.event(
        &mut transaction,
        Severity::Info,
        group.subject(),
        "its schedule takes snapshots".to_owned(),
    );
    context.commit(transaction);
}

/// Marks the oldest snapshots of a schedule for deletion. Only those that are taken count: a volume that
/// cannot take snapshots keeps what it has.
fn forget_old(context: &mut Context<'_>, group: &Group, schedule: &SnapshotSchedule, volume: &Volume) {
    let mut taken: Vec<&Snapshot> = context
        .snapshots(&volume.meta().uid)
        .iter()
        .copied()
        .filter(|snapshot| {
            let is_own = snapshot.meta().labels.get(SCHEDULE_LABEL).map(String::as_str) == Some(group.name());
            let state = snapshot.status.as_ref().map(|status| status.state());
            is_own && !snapshot.is_deleting() && state == Some(SnapshotState::Ready)
        })
        .collect();
    taken.sort_by_key(|snapshot| snapshot.meta().created_unix_us);
    let kept = usize::try_from(schedule.kept_max).unwrap_or(usize::MAX);
    let surplus = taken.len().saturating_sub(kept);
    for snapshot in taken.into_iter().take(surplus) {
        if is_source(context, snapshot) {
            continue;
        }
        let mut changed = snapshot.clone();
        changed.meta_mut().deleted_unix_us = Some(context.world.now_unix_us);
        if let Some(status) = &mut changed.status {
            status.state = SnapshotState::Deleting.into();
        }
        let mut transaction = Transaction::default();
        transaction.put(&changed);
        context.commit(transaction);
    }
}
