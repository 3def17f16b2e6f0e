//! Requests to make a volume what a snapshot of it has, as its status tells of them.
//!
//! Invariants:
//! - One request at most is under way, and it is the newest.
//! - What targets have on record is the request that was begun last. As long as that is not done the volume
//!   holds some of both, whatever became of the request: nobody may use it, and it has no snapshots taken.

use pollux_api::control::v1::{RecordedRollBack, RollBackState, VolumeRollBack, VolumeStatus};

/// Requests of a volume that are remembered.
const ROLL_BACKS_MAX: usize = 16;

/// The request that has not come to its end.
pub fn roll_back_under_way(status: &VolumeStatus) -> Option<&VolumeRollBack> {
    let newest = status.roll_backs.last();
    newest.filter(|newest| !is_over(newest))
}

/// Why a volume may neither be used nor have snapshots taken now, for people, if it may not.
pub fn not_whole(status: &VolumeStatus) -> Option<String> {
    if let Some(newest) = roll_back_under_way(status) {
        let snapshot = &newest.snapshot;
        return Some(format!(
            "it is going back to snapshot {snapshot}: wait until it has"
        ));
    }
    let is_half = status.roll_back.as_ref().is_some_and(|recorded| !recorded.done);
    is_half.then(|| "its snapshot was lost while it went back to it: roll it back to another one".to_owned())
}

/// Whether a volume goes back to a snapshot, which has to stay until it has.
pub fn goes_back_to(status: &VolumeStatus, snapshot_uid: &str) -> bool {
    let recorded = status.roll_back.as_ref().filter(|recorded| !recorded.done);
    let newest = roll_back_under_way(status);
    recorded.is_some_and(|recorded| recorded.snapshot_uid == snapshot_uid)
        || newest.is_some_and(|newest| newest.snapshot_uid == snapshot_uid)
}

/// A request by its name.
pub fn roll_back<'a>(status: &'a VolumeStatus, request_uid: &str) -> Option<&'a VolumeRollBack> {
    let mut known = status.roll_backs.iter();
    known.find(|known| known.request_uid == request_uid)
}

/// Whether a request has come to its end.
pub fn is_over(known: &VolumeRollBack) -> bool {
    matches!(known.state(), RollBackState::Done | RollBackState::Failed)
}

/// Whether a snapshot is on record with the targets of a volume.
pub fn has_snapshot(status: &VolumeStatus, snapshot_uid: &str) -> bool {
    let mut recorded = status.snapshots.iter();
    recorded.any(|recorded| recorded.uid == snapshot_uid)
}

/// The requests of a volume whose record replicas tell anew, by what else is known of them. That which they
/// have is as far as they say: what they have done must not begin again, as hosts have written since. One
/// that had begun and that they know nothing of had changed nothing yet, and begins anew.
pub fn recovered_roll_backs(
    known: Vec<VolumeRollBack>,
    recorded: Option<&RecordedRollBack>,
    name_of: impl Fn(&str) -> String,
    now_unix_us: u64,
) -> Vec<VolumeRollBack> {
    let mut all = known;
    let Some(recorded) = recorded else {
        all.last_mut().into_iter().for_each(begin_anew);
        return all;
    };
    let at = all
        .iter()
        .position(|known| known.request_uid == recorded.request_uid);
    let at = at.unwrap_or_else(|| {
        // It came after all that are known.
        for open in all.iter_mut().filter(|open| !is_over(open)) {
            end_replaced(open, now_unix_us);
        }
        all.push(VolumeRollBack {
            request_uid: recorded.request_uid.clone(),
            snapshot: name_of(&recorded.snapshot_uid),
            snapshot_uid: recorded.snapshot_uid.clone(),
            ..VolumeRollBack::default()
        });
        all.len() - 1
    });
    let is_newest = at + 1 == all.len();
    if let Some(found) = all.get_mut(at) {
        if recorded.done {
            if found.state() != RollBackState::Done {
                found.set_state(RollBackState::Done);
                found.ended_unix_us = Some(now_unix_us);
                found.message.clear();
            }
        } else if is_newest {
            // One that another request has taken the place of is that no less.
            found.set_state(RollBackState::Running);
            found.ended_unix_us = None;
        }
    }
    if !is_newest {
        all.last_mut().into_iter().for_each(begin_anew);
    }
    all
}

fn begin_anew(known: &mut VolumeRollBack) {
    if known.state() == RollBackState::Running {
        known.set_state(RollBackState::Requested);
        known.message.clear();
    }
}

fn end_replaced(known: &mut VolumeRollBack, now_unix_us: u64) {
    known.set_state(RollBackState::Failed);
    known.ended_unix_us = Some(now_unix_us);
    "another request took its place".clone_into(&mut known.message);
}

/// A new request, which takes the place of one that has begun.
pub fn add_roll_back(status: &mut VolumeStatus, new: VolumeRollBack) {
    if let Some(last) = status.roll_backs.last_mut().filter(|last| !is_over(last)) {
        end_replaced(last, new.requested_unix_us);
    }
    status.roll_backs.push(new);
    let surplus = status.roll_backs.len().saturating_sub(ROLL_BACKS_MAX);
    status.roll_backs.drain(..surplus);
}
