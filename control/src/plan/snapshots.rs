//! Snapshots: taken and deleted by targets, lost with their replicas, and taken again and again by schedules.

use std::collections::BTreeMap;

use pollux_api::control::v1::{
    Group, GroupSnapshot, GroupSnapshotState, GroupStatus, Severity, Snapshot, SnapshotSchedule,
    SnapshotState, SnapshotStatus, TargetConfig, Volume,
};

use crate::model::{GROUP_SNAPSHOT_VOLUMES_MAX, Guarded, Record, SCHEDULE_LABEL, goes_back_to, not_whole};
use crate::store::Transaction;

use super::context::Context;
use super::group_snapshots;

/// Instants, at most, that a schedule takes for the volumes of a large group: so many fit into one
/// transaction.
const INSTANTS_MAX: usize = 100;

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
            (Some(volume), false, SnapshotState::Ready) => note_lost(context, snapshot, status, volume),
            (_, false, _) => {}
        }
    }
}

/// Whether a volume has a snapshot on record.
pub(super) fn is_on_record(volume: &Volume, uid: &str) -> bool {
    let status = volume.status.as_ref();
    status.is_some_and(|status| status.snapshots.iter().any(|recorded| recorded.uid == uid))
}

/// A snapshot is taken once the target of its volume has it on record: it is on every replica in sync then.
fn note_taken(context: &mut Context<'_>, snapshot: &Snapshot, status: &SnapshotStatus, volume: &Volume) {
    if !is_on_record(volume, &snapshot.meta().uid) {
        return;
    }
    let taken = SnapshotStatus {
        state: SnapshotState::Ready.into(),
        taken_unix_us: Some(context.world.now_unix_us),
        ..status.clone()
    };
    let message = format!("is taken of {}", volume.subject());
    note(context, snapshot, taken, Severity::Info, message);
}

/// A snapshot that was taken, and is not on record any more though nobody deletes it: all replicas that had
/// it are gone.
fn note_lost(context: &mut Context<'_>, snapshot: &Snapshot, status: &SnapshotStatus, volume: &Volume) {
    if is_on_record(volume, &snapshot.meta().uid) {
        return;
    }
    let lost = SnapshotStatus {
        state: SnapshotState::Lost.into(),
        ..status.clone()
    };
    let message = format!("is lost: no replica of {} has it any more", volume.subject());
    note(context, snapshot, lost, Severity::Error, message);
}

/// A snapshot is something else from now on, and an event tells so.
fn note(
    context: &mut Context<'_>,
    snapshot: &Snapshot,
    status: SnapshotStatus,
    severity: Severity,
    message: String,
) {
    let mut changed = snapshot.clone();
    changed.status = Some(status);
    let mut transaction = Transaction::default();
    transaction.put(&changed);
    context.event(&mut transaction, severity, snapshot.subject(), message);
    context.commit(transaction);
}

/// A snapshot is forgotten once the target of its volume has taken it off the record, or has never heard of
/// it. Targets see to replicas that still have something of it, when these return. One of a volume that is
/// being deleted waits for nobody, as its target may never come back: it goes with the replicas.
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
        volume.is_deleting()
            || !is_on_record(volume, uid) && !targets.iter().any(|(_, target)| is_told(target))
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

/// Whether a volume is being made of it, or goes back to it.
pub(super) fn is_source(context: &Context<'_>, snapshot: &Snapshot) -> bool {
    let own = snapshot.spec.as_ref().map_or("", |spec| spec.volume.as_str());
    let own = context.world.volumes.get(own).and_then(|own| own.status.as_ref());
    if own.is_some_and(|own| goes_back_to(own, &snapshot.meta().uid)) {
        return true;
    }
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
        forget_old_together(context, group, schedule);
        for volume in members {
            forget_old(context, group, schedule, volume);
        }
    }
}

/// Takes snapshots of all members at one instant, in the transaction that notes when.
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
    let served = members.iter().copied().filter(|volume| {
        // One that goes back to a snapshot is left out this time.
        let status = volume.status.as_ref();
        status.is_some_and(|status| status.epoch > 0 && not_whole(status).is_none())
    });
    let served: Vec<&Volume> = served.collect();
    // All of a group at one instant, if they are not too many for that.
    for (number, members) in served
        .chunks(GROUP_SNAPSHOT_VOLUMES_MAX)
        .take(INSTANTS_MAX)
        .enumerate()
    {
        let name = match number {
            0 => format!("{}.{}", group.name(), now / 1_000_000),
            number => format!("{}.{}.{number}", group.name(), now / 1_000_000),
        };
        transaction.put(&group_snapshots::scheduled(name, group.name(), members, now));
    }
    context.event(
        &mut transaction,
        Severity::Info,
        group.subject(),
        "its schedule takes snapshots".to_owned(),
    );
    context.commit(transaction);
}

/// Marks those for deletion that are too many, or that failed. Only those count of which nothing is lost:
/// what is left of the others goes once enough whole ones are newer.
fn forget_old_together(context: &mut Context<'_>, group: &Group, schedule: &SnapshotSchedule) {
    let mut taken: BTreeMap<u64, Vec<&GroupSnapshot>> = BTreeMap::new();
    let mut surplus = Vec::new();
    for group_snapshot in context.world.group_snapshots.values() {
        let is_own = group_snapshot
            .meta()
            .labels
            .get(SCHEDULE_LABEL)
            .map(String::as_str)
            == Some(group.name());
        if !is_own || group_snapshot.is_deleting() {
            continue;
        }
        match group_snapshot.status.as_ref().map(|status| status.state()) {
            Some(GroupSnapshotState::Ready) => taken
                .entry(group_snapshot.meta().created_unix_us)
                .or_default()
                .push(group_snapshot),
            Some(GroupSnapshotState::Failed) => surplus.push(group_snapshot),
            _ => {}
        }
    }
    let snapshots = &context.world.snapshots;
    let is_whole = |together: &[&GroupSnapshot]| {
        let statuses = together.iter().filter_map(|one| one.status.as_ref());
        let mut members = statuses.flat_map(|status| &status.members);
        members.all(|member| !snapshots.get(&member.snapshot).is_some_and(is_lost))
    };
    surplus.extend(too_old(taken, schedule, |together| is_whole(together)).flatten());
    for group_snapshot in surplus {
        let mut changed = group_snapshot.clone();
        changed.meta_mut().deleted_unix_us = Some(context.world.now_unix_us);
        let mut transaction = Transaction::default();
        transaction.put(&changed);
        context.commit(transaction);
    }
}

/// Those that are older than as many whole ones as a schedule keeps, by when they were asked for.
fn too_old<K, T>(
    taken: BTreeMap<K, T>,
    schedule: &SnapshotSchedule,
    is_whole: impl Fn(&T) -> bool,
) -> impl Iterator<Item = T> {
    let kept = usize::try_from(schedule.kept_max).unwrap_or(usize::MAX);
    let mut newer = 0;
    taken.into_values().rev().filter(move |one| {
        let is_surplus = newer >= kept;
        newer += usize::from(is_whole(one));
        is_surplus
    })
}

/// Whether nothing is left of a snapshot.
fn is_lost(snapshot: &Snapshot) -> bool {
    let status = snapshot.status.as_ref();
    status.is_some_and(|status| status.state() == SnapshotState::Lost)
}

/// Marks a snapshot for deletion.
pub(super) fn mark(transaction: &mut Transaction, snapshot: &Snapshot, now_unix_us: u64) {
    let mut changed = snapshot.clone();
    changed.meta_mut().deleted_unix_us = Some(now_unix_us);
    if let Some(status) = &mut changed.status {
        status.state = SnapshotState::Deleting.into();
    }
    transaction.put(&changed);
}

/// Marks the oldest snapshots of a schedule for deletion. Only those that are taken, and not lost, count: a
/// volume that cannot take snapshots keeps what it has.
fn forget_old(context: &mut Context<'_>, group: &Group, schedule: &SnapshotSchedule, volume: &Volume) {
    let mut taken: BTreeMap<(u64, &str), &Snapshot> = BTreeMap::new();
    for snapshot in context.snapshots(&volume.meta().uid) {
        // Those that were taken together go together.
        let spec = snapshot.spec.as_ref();
        let is_alone = spec.is_some_and(|spec| spec.group_snapshot.is_empty());
        let is_own = snapshot.meta().labels.get(SCHEDULE_LABEL).map(String::as_str) == Some(group.name());
        let state = snapshot.status.as_ref().map(|status| status.state());
        let is_taken = matches!(state, Some(SnapshotState::Ready | SnapshotState::Lost));
        if is_alone && is_own && !snapshot.is_deleting() && is_taken {
            taken.insert((snapshot.meta().created_unix_us, snapshot.name()), snapshot);
        }
    }
    let surplus: Vec<&Snapshot> = too_old(taken, schedule, |snapshot| !is_lost(snapshot)).collect();
    for snapshot in surplus {
        if is_source(context, snapshot) {
            continue;
        }
        let mut transaction = Transaction::default();
        mark(&mut transaction, snapshot, context.world.now_unix_us);
        context.commit(transaction);
    }
}
