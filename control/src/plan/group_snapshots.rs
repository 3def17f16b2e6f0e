//! Snapshots of several volumes, each of them of one instant.
//!
//! Invariants:
//! - Targets are told to commit only after all were seen to be held for the same attempt, and that is on
//!   record. A target holds a volume for an attempt once, and commits only while it does. So if all commit,
//!   there was an instant at which all were held, and all snapshots are of it.
//! - Each attempt has UUIDs of its own. What one that failed has left on a record is not in what targets are
//!   told, and is deleted by them.
//! - Snapshots are told of once all are there, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use pollux_api::control::v1::{
    CutPhase, CutState, CutTarget, CutTargets, GroupSnapshot, GroupSnapshotMember, GroupSnapshotState,
    GroupSnapshotStatus, Severity, Snapshot, SnapshotSpec, SnapshotState, SnapshotStatus, Volume,
    engine_command::Command,
};
use uuid::Uuid;

use crate::model::{Guarded, Record, SCHEDULE_LABEL};
use crate::store::Transaction;
use crate::world::World;

use super::context::Context;
use super::{snapshots, targets};

/// For how long targets hold changes at most.
const HOLD_US: u64 = 3_000_000;

/// When an attempt has not come to its end by then, it has failed.
const ATTEMPT_US_MAX: u64 = 20_000_000;

/// From the begin of an attempt to that of the next: longer than a hold, so that what waited for one goes on
/// before the next.
const RETRY_US: u64 = 2 * HOLD_US;

/// Attempts before it is given up.
const ATTEMPTS_MAX: u32 = 5;

/// For so long it is waited until all volumes are served.
const WAIT_US_MAX: u64 = 120_000_000;

/// The attempt under way, as a UUID.
fn attempt_of(group_snapshot: &GroupSnapshot, status: &GroupSnapshotStatus) -> Uuid {
    let name = format!("{}/{}", group_snapshot.meta().uid, status.attempts_failed);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

/// What the snapshot of a volume is called in an attempt.
fn snapshot_uid(attempt: Uuid, volume_uid: &str) -> String {
    Uuid::new_v5(&attempt, volume_uid.as_bytes()).to_string()
}

/// Whether targets may have been told of the attempt.
fn is_begun(state: GroupSnapshotState) -> bool {
    matches!(
        state,
        GroupSnapshotState::Holding | GroupSnapshotState::Committing
    )
}

/// The snapshots of attempts under way, by volume: targets must not delete them.
pub(super) fn attempted(world: &World) -> BTreeMap<String, Vec<String>> {
    let mut attempted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for group_snapshot in world.group_snapshots.values() {
        let Some(status) = &group_snapshot.status else {
            continue;
        };
        if !is_begun(status.state()) || group_snapshot.is_deleting() {
            continue;
        }
        let attempt = attempt_of(group_snapshot, status);
        for member in &status.members {
            let uid = snapshot_uid(attempt, &member.volume_uid);
            attempted.entry(member.volume_uid.clone()).or_default().push(uid);
        }
    }
    attempted
}

/// Brings those forward that are not taken yet, removes those that are to go, and releases what is held for
/// nothing.
pub(super) fn plan_group_snapshots(context: &mut Context<'_>) {
    let world = context.world;
    let mut attempts = BTreeSet::new();
    for group_snapshot in world.group_snapshots.values() {
        let Some(status) = &group_snapshot.status else {
            continue;
        };
        if group_snapshot.is_deleting() {
            plan_removal(context, group_snapshot);
            continue;
        }
        if is_begun(status.state()) {
            attempts.insert(attempt_of(group_snapshot, status).to_string());
        }
        match status.state() {
            GroupSnapshotState::Pending | GroupSnapshotState::Holding | GroupSnapshotState::Committing => {
                advance(context, group_snapshot, status);
            }
            GroupSnapshotState::Ready | GroupSnapshotState::Failed | GroupSnapshotState::Unspecified => {}
        }
    }
    for (node, observation) in &world.reports {
        for cut in &observation.report.cuts {
            let is_held = matches!(cut.state(), CutState::Holding | CutState::Held);
            if is_held && !attempts.contains(&cut.attempt) && context.is_online(node) {
                let target = CutTarget {
                    volume_uid: cut.volume_uid.clone(),
                    snapshot_uid: Uuid::nil().to_string(),
                };
                context.command(
                    node,
                    Command::CutTargets(CutTargets {
                        attempt: cut.attempt.clone(),
                        phase: CutPhase::Release.into(),
                        targets: vec![target],
                        hold_us: 0,
                    }),
                );
            }
        }
    }
}

/// A volume of a snapshot that is being taken.
struct Part<'a> {
    member: &'a GroupSnapshotMember,
    volume: &'a Volume,
    /// Who is to serve it.
    node: &'a str,
    snapshot_uid: String,
    /// How far it is, as its engine tells.
    held: CutState,
}

impl Part<'_> {
    fn is_committed(&self) -> bool {
        snapshots::is_on_record(self.volume, &self.snapshot_uid)
    }
}

/// What is to become of the record.
enum Next {
    /// It stays.
    Wait,
    /// All is served: targets are told to hold.
    Hold,
    /// All is held: targets are told to commit.
    Commit,
    /// All is committed.
    Ready,
    /// This attempt comes to nothing.
    Again(String),
    /// It cannot be.
    Fail(String),
}

fn advance(context: &mut Context<'_>, group_snapshot: &GroupSnapshot, status: &GroupSnapshotStatus) {
    let attempt = attempt_of(group_snapshot, status);
    let next = match parts(context, status, attempt) {
        Ok(parts) => {
            let next = decide(context, group_snapshot, status, &parts);
            if matches!(next, Next::Wait) {
                tell(context, status.state(), attempt, &parts);
            }
            next
        }
        Err(why) => Next::Fail(why),
    };
    let mut changed = group_snapshot.clone();
    let now = context.world.now_unix_us;
    let new = changed.status.get_or_insert_default();
    let event = match next {
        Next::Wait => return,
        Next::Hold => {
            new.set_state(GroupSnapshotState::Holding);
            new.attempt_unix_us = now;
            None
        }
        Next::Commit => {
            new.set_state(GroupSnapshotState::Committing);
            None
        }
        Next::Ready => {
            new.set_state(GroupSnapshotState::Ready);
            new.taken_unix_us = Some(now);
            new.message.clear();
            let count = new.members.len();
            Some((
                Severity::Info,
                format!("is taken of {count} volumes at one instant"),
            ))
        }
        Next::Again(why) if status.attempts_failed + 1 < ATTEMPTS_MAX => {
            new.set_state(GroupSnapshotState::Pending);
            new.attempts_failed += 1;
            new.message.clone_from(&why);
            Some((Severity::Info, format!("is tried again: {why}")))
        }
        Next::Again(why) | Next::Fail(why) => {
            new.set_state(GroupSnapshotState::Failed);
            new.message.clone_from(&why);
            Some((Severity::Warning, format!("is not taken: {why}")))
        }
    };
    let state = new.state();
    let mut transaction = Transaction::default();
    transaction.put(&changed);
    if state == GroupSnapshotState::Ready {
        add_snapshots(context.world, &mut transaction, group_snapshot, status, attempt);
    }
    if let Some((severity, message)) = event {
        context.event(&mut transaction, severity, group_snapshot.subject(), message);
    }
    context.commit(transaction);
}

/// The volumes, and how far each is; or why there will never be such a snapshot.
fn parts<'a>(
    context: &Context<'a>,
    status: &'a GroupSnapshotStatus,
    attempt: Uuid,
) -> Result<Vec<Part<'a>>, String> {
    let world = context.world;
    let mut parts = Vec::with_capacity(status.members.len());
    for member in &status.members {
        let volume = world.volumes.get(&member.volume);
        let volume = volume.filter(|volume| volume.meta().uid == member.volume_uid && !volume.is_deleting());
        let volume = volume.ok_or_else(|| format!("volume {} is gone", member.volume))?;
        let snapshot_uid = snapshot_uid(attempt, &member.volume_uid);
        let named = world.snapshots.get(&member.snapshot);
        if named.is_some_and(|named| named.meta().uid != snapshot_uid) {
            return Err(format!("there is another snapshot {} already", member.snapshot));
        }
        let node = volume
            .status
            .as_ref()
            .map_or("", |status| status.target_node.as_str());
        let held = match context.is_online(node) {
            true => world.reports.get(node).and_then(|observation| {
                let mut cuts = observation.report.cuts.iter();
                let wanted = attempt.to_string();
                cuts.find(|cut| cut.attempt == wanted && cut.volume_uid == member.volume_uid)
            }),
            false => None,
        };
        parts.push(Part {
            member,
            volume,
            node,
            snapshot_uid,
            held: held.map_or(CutState::Unspecified, |cut| cut.state()),
        });
    }
    Ok(parts)
}

fn decide(
    context: &Context<'_>,
    group_snapshot: &GroupSnapshot,
    status: &GroupSnapshotStatus,
    parts: &[Part<'_>],
) -> Next {
    let now = context.world.now_unix_us;
    let is_late = now > status.attempt_unix_us.saturating_add(ATTEMPT_US_MAX);
    let late = |what: &str| Next::Again(format!("volumes were not {what} in time"));
    match status.state() {
        GroupSnapshotState::Pending => {
            let absent = parts.iter().find(|part| {
                let status = part.volume.status.clone().unwrap_or_default();
                status.epoch == 0 || !targets::serves(context, &part.member.volume_uid, &status)
            });
            let since = group_snapshot.meta().created_unix_us.max(status.attempt_unix_us);
            let is_soon = status.attempts_failed > 0 && now.abs_diff(status.attempt_unix_us) < RETRY_US;
            match absent {
                None if is_soon => Next::Wait,
                None => Next::Hold,
                Some(part) if now > since.saturating_add(WAIT_US_MAX) => {
                    Next::Fail(format!("volume {} is not served", part.member.volume))
                }
                Some(_) => Next::Wait,
            }
        }
        GroupSnapshotState::Holding => {
            if parts.iter().all(|part| part.held == CutState::Held) {
                return Next::Commit;
            }
            let ended = parts.iter().find(|part| part.held == CutState::Ended);
            match ended {
                Some(part) => Next::Again(format!("volume {} could not be held", part.member.volume)),
                None if is_late => late("held"),
                None => Next::Wait,
            }
        }
        GroupSnapshotState::Committing => {
            let mut left = parts.iter().filter(|part| !part.is_committed()).peekable();
            if left.peek().is_none() {
                return Next::Ready;
            }
            match left.find(|part| part.held == CutState::Ended) {
                Some(part) => Next::Again(format!("volume {} was not held to the end", part.member.volume)),
                None if is_late => late("committed"),
                None => Next::Wait,
            }
        }
        GroupSnapshotState::Ready | GroupSnapshotState::Failed | GroupSnapshotState::Unspecified => {
            Next::Wait
        }
    }
}

/// Tells targets what is to be done next in an attempt.
fn tell(context: &mut Context<'_>, state: GroupSnapshotState, attempt: Uuid, parts: &[Part<'_>]) {
    let phase = match state {
        GroupSnapshotState::Holding => CutPhase::Hold,
        GroupSnapshotState::Committing => CutPhase::Commit,
        _ => return,
    };
    let mut by_node: BTreeMap<&str, Vec<CutTarget>> = BTreeMap::new();
    for part in parts {
        let is_due = match phase {
            CutPhase::Hold => part.held == CutState::Unspecified,
            _ => part.held == CutState::Held && !part.is_committed(),
        };
        if is_due && context.is_online(part.node) {
            by_node.entry(part.node).or_default().push(CutTarget {
                volume_uid: part.member.volume_uid.clone(),
                snapshot_uid: part.snapshot_uid.clone(),
            });
        }
    }
    for (node, targets) in by_node {
        context.command(
            node,
            Command::CutTargets(CutTargets {
                attempt: attempt.to_string(),
                phase: phase.into(),
                targets,
                hold_us: HOLD_US,
            }),
        );
    }
}

/// Tells of the snapshots, each with the condition that its volume is as it was seen.
fn add_snapshots(
    world: &World,
    transaction: &mut Transaction,
    group_snapshot: &GroupSnapshot,
    status: &GroupSnapshotStatus,
    attempt: Uuid,
) {
    for member in &status.members {
        let mut snapshot = Snapshot {
            metadata: None,
            spec: Some(SnapshotSpec {
                volume: member.volume.clone(),
                group_snapshot: group_snapshot.name().to_owned(),
            }),
            status: Some(SnapshotStatus {
                state: SnapshotState::Ready.into(),
                volume_uid: member.volume_uid.clone(),
                size_bytes: member.size_bytes,
                taken_unix_us: Some(world.now_unix_us),
            }),
        };
        let metadata = snapshot.meta_mut();
        metadata.name.clone_from(&member.snapshot);
        metadata.uid = snapshot_uid(attempt, &member.volume_uid);
        metadata.created_unix_us = world.now_unix_us;
        metadata.labels.clone_from(&group_snapshot.meta().labels);
        transaction.put(&snapshot);
        if let Some(volume) = world.volumes.get(&member.volume) {
            transaction.require(volume);
        }
    }
}

/// It is forgotten once its snapshots are; those go as others do.
fn plan_removal(context: &mut Context<'_>, group_snapshot: &GroupSnapshot) {
    let world = context.world;
    let members = group_snapshot.status.iter().flat_map(|status| &status.members);
    let own: Vec<&Snapshot> = members
        .filter_map(|member| world.snapshots.get(&member.snapshot))
        .filter(|snapshot| {
            let spec = snapshot.spec.as_ref();
            spec.is_some_and(|spec| spec.group_snapshot == group_snapshot.name())
        })
        .collect();
    let mut transaction = Transaction::default();
    if own.is_empty() {
        transaction.delete(group_snapshot);
        let message = "is deleted".to_owned();
        context.event(
            &mut transaction,
            Severity::Info,
            group_snapshot.subject(),
            message,
        );
        context.commit(transaction);
        return;
    }
    for snapshot in own.into_iter().filter(|snapshot| !snapshot.is_deleting()) {
        if snapshots::is_source(context, snapshot) {
            continue;
        }
        snapshots::mark(&mut transaction, snapshot, world.now_unix_us);
    }
    if !transaction.writes.is_empty() {
        context.commit(transaction);
    }
}

/// A snapshot of several volumes that a schedule takes, not begun yet.
pub(super) fn scheduled(name: String, group: &str, members: &[&Volume], now_unix_us: u64) -> GroupSnapshot {
    let part = |volume: &&Volume| GroupSnapshotMember {
        volume: volume.name().to_owned(),
        volume_uid: volume.meta().uid.clone(),
        snapshot: format!("{}.{}", volume.name(), now_unix_us / 1_000_000),
        size_bytes: volume.status.as_ref().map_or(0, |status| status.size_bytes),
    };
    let mut group_snapshot = GroupSnapshot {
        metadata: None,
        spec: Some(pollux_api::control::v1::GroupSnapshotSpec {
            group: group.to_owned(),
            volumes: Vec::new(),
        }),
        status: Some(GroupSnapshotStatus {
            state: GroupSnapshotState::Pending.into(),
            members: members.iter().map(part).collect(),
            ..GroupSnapshotStatus::default()
        }),
    };
    let uid = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{name}/{now_unix_us}").as_bytes());
    let metadata = group_snapshot.meta_mut();
    metadata.name = name;
    metadata.uid = uid.to_string();
    metadata.created_unix_us = now_unix_us;
    metadata
        .labels
        .insert(SCHEDULE_LABEL.to_owned(), group.to_owned());
    group_snapshot
}
