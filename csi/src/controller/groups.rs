//! The group controller service: snapshots of several volumes at one instant.

use std::collections::BTreeSet;
use std::time::Duration;

use pollux_api::control::v1::{self as control, GroupSnapshotSpec, GroupSnapshotState, Metadata, Reason};
use pollux_api::csi::v1::group_controller_server::GroupController;
use pollux_api::csi::v1::group_controller_service_capability::{Rpc, Type as CapabilityType, rpc::Type};
use pollux_api::csi::v1::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
    GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse,
    GroupControllerServiceCapability, VolumeGroupSnapshot,
};
use tonic::{Request, Response, Status};

use crate::control::{WAIT_US, Waiting, reason};
use crate::error::CallError;
use crate::names::{group_name, is_resource_name, label};
use crate::parameters::snapshot_tags;

use super::ControllerService;
use super::answer::{self, is_deleting, is_lost, name_of, require_makeable};
use super::snapshots::lost;

/// How long is waited until snapshots are taken; after that the answer says that they are not ready yet.
const READY_PATIENCE: Duration = Duration::from_secs(10);

impl ControllerService {
    async fn take_together(
        &self,
        request: CreateVolumeGroupSnapshotRequest,
    ) -> Result<CreateVolumeGroupSnapshotResponse, CallError> {
        let volumes: BTreeSet<String> = request.source_volume_ids.into_iter().collect();
        if volumes.is_empty() {
            return Err(CallError::missing("source_volume_ids"));
        }
        let longest = volumes.iter().map(String::len).max().unwrap_or(0);
        let name = group_name(&request.name, longest)?;
        let mut labels = snapshot_tags(&request.parameters)?;
        labels.insert(label::NAME.to_owned(), request.name);
        labels.insert(
            label::CLUSTER.to_owned(),
            self.control.cluster().name().to_owned(),
        );
        // One that is there says so even if its volumes are gone.
        if let Some(found) = self.control.find_group_snapshot(&name).await? {
            require_of(&found, &volumes)?;
        } else {
            for volume in &volumes {
                require_makeable(&self.known_volume(volume).await?)?;
            }
            let group_snapshot = control::GroupSnapshot {
                metadata: Some(Metadata {
                    name: name.clone(),
                    labels,
                    ..Metadata::default()
                }),
                spec: Some(GroupSnapshotSpec {
                    group: String::new(),
                    volumes: volumes.iter().cloned().collect(),
                }),
                status: None,
            };
            let new = control::CreateGroupSnapshotRequest {
                group_snapshot: Some(group_snapshot),
                wait_us: Some(WAIT_US),
            };
            match self.control.group_snapshots().create_group_snapshot(new).await {
                Ok(_) => {}
                // Somebody was quicker; what there is now is looked at below.
                Err(status) if reason(&status) == Some(Reason::NameTaken) => {}
                Err(status) => return Err(status.into()),
            }
        }
        let mut waiting = Waiting::at_most(READY_PATIENCE);
        loop {
            let found = self.control.find_group_snapshot(&name).await?;
            let found = found.ok_or_else(|| pending(&name, "it was deleted meanwhile"))?;
            require_of(&found, &volumes)?;
            let status = found.status.clone().unwrap_or_default();
            if status.state() == GroupSnapshotState::Failed {
                // The next call begins anew.
                self.forget_together(&name).await?;
                return Err(pending(&name, &format!("it was not taken: {}", status.message)));
            }
            let is_taken = status.state() == GroupSnapshotState::Ready;
            if let Some(part) = self.lost_part(&found).await? {
                return Err(lost(&part));
            }
            if is_taken
                || waiting
                    .pause("group snapshot", &name, "it is being taken")
                    .await
                    .is_err()
            {
                return Ok(CreateVolumeGroupSnapshotResponse {
                    group_snapshot: Some(group_snapshot(&found)),
                });
            }
        }
    }

    /// A snapshot of it that is lost: it is not of all its volumes any more. The others are there by their
    /// own names.
    async fn lost_part(&self, found: &control::GroupSnapshot) -> Result<Option<String>, CallError> {
        for member in found.status.iter().flat_map(|status| &status.members) {
            let part = self.control.find_snapshot(&member.snapshot).await?;
            if part.as_ref().is_some_and(is_lost) {
                return Ok(Some(member.snapshot.clone()));
            }
        }
        Ok(None)
    }

    async fn forget_together(&self, name: &str) -> Result<(), CallError> {
        let old = control::DeleteGroupSnapshotRequest {
            name: name.to_owned(),
        };
        self.control.group_snapshots().delete_group_snapshot(old).await?;
        let mut waiting = Waiting::default();
        while self.control.find_group_snapshot(name).await?.is_some() {
            waiting
                .pause("group snapshot", name, "it is being deleted")
                .await?;
        }
        Ok(())
    }

    async fn drop_together(
        &self,
        request: DeleteVolumeGroupSnapshotRequest,
    ) -> Result<DeleteVolumeGroupSnapshotResponse, CallError> {
        let name = request.group_snapshot_id;
        if name.is_empty() {
            return Err(CallError::missing("group_snapshot_id"));
        }
        // What cannot be a name there is no group snapshot, and so is what belongs to others.
        if !is_resource_name(&name) {
            return Ok(DeleteVolumeGroupSnapshotResponse {});
        }
        if let Some(found) = self.control.find_group_snapshot(&name).await? {
            require_parts(&found, &request.snapshot_ids)?;
            self.forget_together(&name).await?;
        }
        Ok(DeleteVolumeGroupSnapshotResponse {})
    }

    async fn together(
        &self,
        request: GetVolumeGroupSnapshotRequest,
    ) -> Result<GetVolumeGroupSnapshotResponse, CallError> {
        let name = request.group_snapshot_id;
        if name.is_empty() {
            return Err(CallError::missing("group_snapshot_id"));
        }
        let found = match is_resource_name(&name) {
            true => self.control.find_group_snapshot(&name).await?,
            false => None,
        };
        let found = found.ok_or(CallError::NotFound {
            kind: "group snapshot",
            id: name,
        })?;
        require_parts(&found, &request.snapshot_ids)?;
        if let Some(part) = self.lost_part(&found).await? {
            return Err(CallError::Lost(part));
        }
        Ok(GetVolumeGroupSnapshotResponse {
            group_snapshot: Some(group_snapshot(&found)),
        })
    }
}

fn pending(name: &str, what: &str) -> CallError {
    CallError::Pending {
        kind: "group snapshot",
        id: name.to_owned(),
        what: what.to_owned(),
    }
}

/// Whether one that is there is one of these volumes.
fn require_of(found: &control::GroupSnapshot, volumes: &BTreeSet<String>) -> Result<(), CallError> {
    let id = name_of(found.metadata.as_ref());
    if is_deleting(found.metadata.as_ref()) {
        return Err(pending(id, "one of this name is being deleted"));
    }
    let own = found.spec.iter().flat_map(|spec| spec.volumes.iter().cloned());
    let own: BTreeSet<String> = own.collect();
    match own == *volumes {
        true => Ok(()),
        false => Err(CallError::Exists {
            kind: "group snapshot",
            id: id.to_owned(),
            difference: "it is one of other volumes".to_owned(),
        }),
    }
}

/// Whether a caller who names the parts knows them all, and no others.
fn require_parts(found: &control::GroupSnapshot, parts: &[String]) -> Result<(), CallError> {
    let status = found.status.clone().unwrap_or_default();
    let own: BTreeSet<&str> = status
        .members
        .iter()
        .map(|member| member.snapshot.as_str())
        .collect();
    let told: BTreeSet<&str> = parts.iter().map(String::as_str).collect();
    match told.is_empty() || told == own {
        true => Ok(()),
        false => Err(CallError::argument(
            "snapshot_ids",
            "are not the snapshots of this group snapshot; give all of them, or none",
        )),
    }
}

fn group_snapshot(found: &control::GroupSnapshot) -> VolumeGroupSnapshot {
    let metadata = found.metadata.clone().unwrap_or_default();
    let status = found.status.clone().unwrap_or_default();
    let is_ready = status.state() == GroupSnapshotState::Ready;
    let taken = status.taken_unix_us.unwrap_or(metadata.created_unix_us);
    let snapshots = status.members.iter().map(|member| pollux_api::csi::v1::Snapshot {
        size_bytes: answer::signed(member.size_bytes),
        snapshot_id: member.snapshot.clone(),
        source_volume_id: member.volume.clone(),
        creation_time: Some(answer::timestamp(taken)),
        ready_to_use: is_ready,
        group_snapshot_id: metadata.name.clone(),
    });
    VolumeGroupSnapshot {
        snapshots: snapshots.collect(),
        creation_time: Some(answer::timestamp(taken)),
        ready_to_use: is_ready,
        group_snapshot_id: metadata.name,
    }
}

#[tonic::async_trait]
impl GroupController for ControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let kind = Type::CreateDeleteGetVolumeGroupSnapshot;
        let capability = GroupControllerServiceCapability {
            r#type: Some(CapabilityType::Rpc(Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(GroupControllerGetCapabilitiesResponse {
            capabilities: vec![capability],
        }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        Ok(Response::new(self.take_together(request.into_inner()).await?))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        Ok(Response::new(self.drop_together(request.into_inner()).await?))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        Ok(Response::new(self.together(request.into_inner()).await?))
    }
}
