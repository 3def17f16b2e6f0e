//! How far snapshots of several volumes at one instant are.

use pollux_api::control::v1::{GroupSnapshot, GroupSnapshotState};

use super::Record;

/// Whether it is taken, or has failed.
pub fn is_settled(group_snapshot: &GroupSnapshot) -> bool {
    let state = group_snapshot.status.as_ref().map(|status| status.state());
    matches!(
        state,
        Some(GroupSnapshotState::Ready | GroupSnapshotState::Failed)
    )
}

/// Whether it is to be taken of a volume, and is not yet.
pub fn is_being_taken_of(group_snapshot: &GroupSnapshot, volume_uid: &str) -> bool {
    let mut members = group_snapshot.status.iter().flat_map(|status| &status.members);
    let is_in = members.any(|member| member.volume_uid == volume_uid);
    is_in && !is_settled(group_snapshot) && !group_snapshot.is_deleting()
}
