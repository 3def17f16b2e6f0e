//! Requests to make a volume what a snapshot of it has, as its status tells of them.
//!
//! Invariants:
//! - One request at most is under way, and it is the newest.
//! - What targets have on record is the request that was begun last. As long as that is not done the volume
//!   holds some of both, whatever became of the request: nobody may use it, and it has no snapshots taken.

use pollux_api::control::v1::{RollBackState, VolumeRollBack, VolumeStatus};

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

/// A new request, which takes the place of one that has begun.
pub fn add_roll_back(status: &mut VolumeStatus, new: VolumeRollBack) {
    if let Some(last) = status.roll_backs.last_mut().filter(|last| !is_over(last)) {
        last.set_state(RollBackState::Failed);
        last.ended_unix_us = Some(new.requested_unix_us);
        "another request took its place".clone_into(&mut last.message);
    }
    status.roll_backs.push(new);
    let surplus = status.roll_backs.len().saturating_sub(ROLL_BACKS_MAX);
    status.roll_backs.drain(..surplus);
}
