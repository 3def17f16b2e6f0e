//! CreateSnapshot and DeleteSnapshot.

use std::time::Duration;

use pollux_api::control::v1::{self as control, Metadata, Reason, SnapshotSpec, SnapshotState};
use pollux_api::csi::v1::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
};

use crate::control::{WAIT_US, Waiting, reason};
use crate::error::CallError;
use crate::names::{is_resource_name, label, resource_name};
use crate::parameters::snapshot_tags;

use super::ControllerService;
use super::answer::{self, is_deleting, is_internal, is_lost, name_of, require_makeable};

/// How long is waited until a snapshot is taken; after that the answer says that it is not ready yet.
const READY_PATIENCE: Duration = Duration::from_secs(10);

/// What was promised under a name is lost. To say that it is not ready yet would have orchestrators ask for
/// ever, and another one of a later instant is not what was asked for.
pub(super) fn lost(name: &str) -> CallError {
    CallError::Precondition(format!(
        "snapshot {name} was taken, and is lost, as no replica has it any more: delete it, and take another"
    ))
}

impl ControllerService {
    pub(super) async fn take_snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<CreateSnapshotResponse, CallError> {
        let name = resource_name(&request.name)?;
        if request.source_volume_id.is_empty() {
            return Err(CallError::missing("source_volume_id"));
        }
        let mut labels = snapshot_tags(&request.parameters)?;
        labels.insert(label::NAME.to_owned(), request.name);
        labels.insert(
            label::CLUSTER.to_owned(),
            self.control.cluster().name().to_owned(),
        );
        // One that is there says so even if its volume is gone.
        if let Some(snapshot) = self.control.find_snapshot(&name).await? {
            self.require_of(&snapshot, &request.source_volume_id)?;
        } else {
            require_makeable(&self.known_volume(&request.source_volume_id).await?)?;
            let snapshot = control::Snapshot {
                metadata: Some(Metadata {
                    name: name.clone(),
                    labels,
                    ..Metadata::default()
                }),
                spec: Some(SnapshotSpec {
                    volume: request.source_volume_id.clone(),
                    group_snapshot: String::new(),
                }),
                status: None,
            };
            let new = control::CreateSnapshotRequest {
                snapshot: Some(snapshot),
                wait_us: Some(WAIT_US),
            };
            match self.control.snapshots().create_snapshot(new).await {
                Ok(_) => {}
                // Somebody was quicker; what there is now is looked at below.
                Err(status) if reason(&status) == Some(Reason::NameTaken) => {}
                Err(status) => return Err(status.into()),
            }
        }
        let mut waiting = Waiting::at_most(READY_PATIENCE);
        loop {
            let snapshot = self.control.find_snapshot(&name).await?;
            let snapshot = snapshot.ok_or_else(|| CallError::Pending {
                kind: "snapshot",
                id: name.clone(),
                what: "it was deleted meanwhile".to_owned(),
            })?;
            self.require_of(&snapshot, &request.source_volume_id)?;
            if is_lost(&snapshot) {
                return Err(lost(&name));
            }
            let state = snapshot.status.as_ref().map(control::SnapshotStatus::state);
            let is_taken = state == Some(SnapshotState::Ready);
            if is_taken
                || waiting
                    .pause("snapshot", &name, "it is being taken")
                    .await
                    .is_err()
            {
                return Ok(CreateSnapshotResponse {
                    snapshot: Some(answer::snapshot(&snapshot)),
                });
            }
        }
    }

    /// Whether a snapshot that is there is one of this volume.
    fn require_of(&self, snapshot: &control::Snapshot, volume: &str) -> Result<(), CallError> {
        let id = name_of(snapshot.metadata.as_ref()).to_owned();
        if is_deleting(snapshot.metadata.as_ref()) {
            return Err(CallError::Pending {
                kind: "snapshot",
                id,
                what: "one of this name is being deleted".to_owned(),
            });
        }
        let own = snapshot.spec.as_ref().map_or("", |spec| spec.volume.as_str());
        if own == volume && !is_internal(snapshot) {
            return Ok(());
        }
        Err(CallError::Exists {
            kind: "snapshot",
            id,
            difference: format!("it is one of the volume {own}"),
        })
    }

    pub(super) async fn drop_snapshot(
        &self,
        request: DeleteSnapshotRequest,
    ) -> Result<DeleteSnapshotResponse, CallError> {
        let name = request.snapshot_id;
        if name.is_empty() {
            return Err(CallError::missing("snapshot_id"));
        }
        // What cannot be a name there is no snapshot, and so is what belongs to others.
        let found = match is_resource_name(&name) {
            true => self.control.find_snapshot(&name).await?,
            false => None,
        };
        let Some(found) = found else {
            return Ok(DeleteSnapshotResponse {});
        };
        let together = found.spec.map_or_else(String::new, |spec| spec.group_snapshot);
        if !together.is_empty() {
            let problem = format!("is a part of group snapshot {together}: delete that");
            return Err(CallError::argument("snapshot_id", problem));
        }
        let old = control::DeleteSnapshotRequest { name: name.clone() };
        self.control.snapshots().delete_snapshot(old).await?;
        let mut waiting = Waiting::default();
        while self.control.find_snapshot(&name).await?.is_some() {
            waiting.pause("snapshot", &name, "it is being deleted").await?;
        }
        Ok(DeleteSnapshotResponse {})
    }
}
