//! Volumes that go back to snapshots: begun on the record once nothing else is to be taken of them, and done
//! when their target says so there.
//!
//! What is begun is a part of the record of who takes part, and so of one transaction with it: whichever
//! target has the volume then goes on with it, and only the newest one can end it.

use pollux_api::control::v1::{RecordedRollBack, RollBackState, Severity, SnapshotState, VolumeRollBack};

use crate::model::{Record, has_snapshot, is_being_taken_of, is_over, not_whole};

use super::context::Context;
use super::volume::Draft;

/// Brings the newest request forward.
pub(super) fn advance(context: &Context<'_>, draft: &mut Draft<'_>) {
    let Some(mut newest) = draft.status.roll_backs.last().cloned() else {
        return;
    };
    let event = match newest.state() {
        RollBackState::Requested => begin(context, draft, &mut newest),
        RollBackState::Running => follow(draft, &mut newest),
        RollBackState::Done | RollBackState::Failed | RollBackState::Unspecified => None,
    };
    if event.is_some() && is_over(&newest) {
        newest.ended_unix_us = Some(context.world.now_unix_us);
    }
    draft.events.extend(event);
    if let Some(last) = draft.status.roll_backs.last_mut() {
        *last = newest;
    }
    if let Some(why) = not_whole(&draft.status)
        && draft.status.message.is_empty()
    {
        draft.status.message = why;
    }
}

fn begin(
    context: &Context<'_>,
    draft: &mut Draft<'_>,
    newest: &mut VolumeRollBack,
) -> Option<(Severity, String)> {
    let name = &newest.snapshot;
    if !has_snapshot(&draft.status, &newest.snapshot_uid) {
        let why = format!("cannot go back to snapshot {name}: it is on no replica any more");
        newest.message.clone_from(&why);
        newest.set_state(RollBackState::Failed);
        return Some((Severity::Error, why));
    }
    // What was asked for before is of what was there before.
    if let Some(taken) = being_taken(context, draft.uid()) {
        newest.message = format!("it begins once {taken} is taken");
        return None;
    }
    draft.status.roll_back = Some(RecordedRollBack {
        request_uid: newest.request_uid.clone(),
        snapshot_uid: newest.snapshot_uid.clone(),
        done: false,
    });
    let event = format!("goes back to snapshot {name}");
    newest.message.clear();
    newest.set_state(RollBackState::Running);
    Some((Severity::Info, event))
}

fn follow(draft: &Draft<'_>, newest: &mut VolumeRollBack) -> Option<(Severity, String)> {
    let recorded = draft.status.roll_back.as_ref();
    let is_done =
        recorded.is_some_and(|recorded| recorded.request_uid == newest.request_uid && recorded.done);
    if is_done {
        newest.message.clear();
        newest.set_state(RollBackState::Done);
        let name = &newest.snapshot;
        return Some((Severity::Info, format!("is what it was in snapshot {name}")));
    }
    let is_lost = !has_snapshot(&draft.status, &newest.snapshot_uid);
    if is_lost && newest.message.is_empty() {
        let name = &newest.snapshot;
        newest.message = format!("snapshot {name} is lost: roll the volume back to another one");
        return Some((
            Severity::Error,
            format!("cannot be used: snapshot {name} was lost while it went back to it"),
        ));
    }
    None
}

/// A snapshot of a volume that was asked for and is not taken yet.
fn being_taken(context: &Context<'_>, volume_uid: &str) -> Option<String> {
    let mut alone = context.snapshots(volume_uid).iter();
    let pending = alone.find(|snapshot| {
        let state = snapshot.status.as_ref().map(|status| status.state());
        state == Some(SnapshotState::Pending) && !snapshot.is_deleting()
    });
    if let Some(snapshot) = pending {
        return Some(format!("snapshot {}", snapshot.name()));
    }
    let mut together = context.world.group_snapshots.values();
    let taking = together.find(|group_snapshot| is_being_taken_of(group_snapshot, volume_uid));
    taking.map(|group_snapshot| format!("group snapshot {}", group_snapshot.name()))
}
