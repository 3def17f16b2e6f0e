//! Calls about snapshots of several volumes.

use pollux_api::control::v1::group_snapshots_server::GroupSnapshots;
use pollux_api::control::v1::{
    CreateGroupSnapshotRequest, DeleteGroupSnapshotRequest, DeleteGroupSnapshotResponse,
    GetGroupSnapshotRequest, Group, GroupSnapshot, GroupSnapshotChange, GroupSnapshotMember,
    GroupSnapshotState, GroupSnapshotStatus, ListGroupSnapshotsRequest, ListGroupSnapshotsResponse, Snapshot,
    Volume, WatchRequest,
};
use tonic::{Request, Response, Status};

use crate::model::{GROUP_SNAPSHOT_VOLUMES_MAX, NAME_CHARACTERS_MAX, Record, is_settled};
use crate::security::Action;
use crate::store::Condition;

use super::errors::CallError;
use super::records::{ChangeStream, Managed};
use super::snapshots::{Copied, whole};
use super::waiting::Wait;
use super::{Services, answer, change_message};

#[tonic::async_trait]
impl Managed for GroupSnapshot {
    fn sanitize(&mut self) {
        self.status = None;
    }

    async fn refer(
        &mut self,
        before: Option<&Self>,
        services: &Services,
    ) -> Result<Vec<Condition>, CallError> {
        if before.is_some() {
            return Ok(Vec::new());
        }
        let spec = self.spec.clone().unwrap_or_default();
        let mut conditions = Vec::new();
        let mut volumes = Vec::new();
        if spec.group.is_empty() {
            for (index, name) in spec.volumes.iter().enumerate() {
                let field = format!("group_snapshot.spec.volumes[{index}]");
                let (volume, condition) = services.refer::<Volume>(&field, name).await?;
                volumes.push(volume);
                conditions.push(condition);
            }
        } else {
            let field = "group_snapshot.spec.group";
            let (_, condition) = services.refer::<Group>(field, &spec.group).await?;
            conditions.push(condition);
            let all = services.all::<Volume>().await?;
            let is_in = |volume: &Volume| {
                let named = volume.spec.as_ref().map(|spec| spec.group.as_str());
                named == Some(spec.group.as_str()) && !volume.is_deleting()
            };
            volumes = all.into_iter().filter(is_in).collect();
            if !(1..=GROUP_SNAPSHOT_VOLUMES_MAX).contains(&volumes.len()) {
                let description = format!(
                    "has {} volumes; 1 to {GROUP_SNAPSHOT_VOLUMES_MAX} can be taken at one instant",
                    volumes.len()
                );
                return Err(CallError::field(field, &description));
            }
        }
        let mut members = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let status = whole(&volume)?;
            let snapshot = format!("{}.{}", self.name(), volume.name());
            if snapshot.chars().count() > NAME_CHARACTERS_MAX {
                let description = format!(
                    "is too long: the snapshot {snapshot:?} would have more than {NAME_CHARACTERS_MAX} \
                     characters"
                );
                return Err(CallError::field("group_snapshot.metadata.name", &description));
            }
            members.push(GroupSnapshotMember {
                volume: volume.name().to_owned(),
                volume_uid: volume.meta().uid.clone(),
                snapshot,
                size_bytes: status.size_bytes,
            });
        }
        self.status = Some(GroupSnapshotStatus {
            state: GroupSnapshotState::Pending.into(),
            members,
            ..GroupSnapshotStatus::default()
        });
        Ok(conditions)
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let members = self.status.iter().flat_map(|status| &status.members);
        for member in members {
            match services.find::<Snapshot>(&member.snapshot).await {
                Ok(snapshot) if is_part(&snapshot, self.name()) => {
                    snapshot.require_no_copy(services).await?;
                }
                Ok(_) | Err(CallError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_part(snapshot: &Snapshot, group_snapshot: &str) -> bool {
    let spec = snapshot.spec.as_ref();
    spec.is_some_and(|spec| spec.group_snapshot == group_snapshot)
}

#[tonic::async_trait]
impl GroupSnapshots for Services {
    type WatchGroupSnapshotsStream = ChangeStream<GroupSnapshotChange>;

    async fn create_group_snapshot(
        &self,
        request: Request<CreateGroupSnapshotRequest>,
    ) -> Result<Response<GroupSnapshot>, Status> {
        self.permit(&request, Action::Provision)?;
        let wait = Wait::of(request.get_ref().wait_us, request.metadata())?;
        let group_snapshot = self.create(request.into_inner().group_snapshot).await?;
        answer!(self.await_record(wait, group_snapshot, is_settled).await?)
    }

    async fn get_group_snapshot(
        &self,
        request: Request<GetGroupSnapshotRequest>,
    ) -> Result<Response<GroupSnapshot>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_group_snapshots(
        &self,
        request: Request<ListGroupSnapshotsRequest>,
    ) -> Result<Response<ListGroupSnapshotsResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListGroupSnapshotsResponse {
            group_snapshots: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn delete_group_snapshot(
        &self,
        request: Request<DeleteGroupSnapshotRequest>,
    ) -> Result<Response<DeleteGroupSnapshotResponse>, Status> {
        self.permit(&request, Action::Provision)?;
        self.mark_gone::<GroupSnapshot>(&request.into_inner().name)
            .await?;
        answer!(DeleteGroupSnapshotResponse {})
    }

    async fn watch_group_snapshots(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchGroupSnapshotsStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(GroupSnapshotChange, group_snapshot_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}
