//! Calls about snapshots.

use pollux_api::control::v1::snapshots_server::Snapshots;
use pollux_api::control::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, DeleteSnapshotResponse, GetSnapshotRequest,
    ListSnapshotsRequest, ListSnapshotsResponse, Snapshot, SnapshotBlocks, SnapshotChange, SnapshotState,
    SnapshotStatus, StreamSnapshotBlocksRequest, Volume, VolumeState, VolumeStatus, WatchRequest,
};
use tonic::{Request, Response, Status};

use crate::model::{Kind, Record, goes_back_to, not_whole};
use crate::security::Action;
use crate::store::Condition;

use super::errors::CallError;
use super::records::{ChangeStream, Managed, require_name};
use super::waiting::Wait;
use super::{Services, answer, change_message};

#[tonic::async_trait]
impl Managed for Snapshot {
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
        let volume = self.spec.as_ref().map_or("", |spec| spec.volume.as_str());
        let (volume, condition) = services.refer::<Volume>("snapshot.spec.volume", volume).await?;
        let status = whole(&volume)?;
        self.status = Some(SnapshotStatus {
            state: SnapshotState::Pending.into(),
            volume_uid: volume.meta().uid.clone(),
            size_bytes: status.size_bytes,
            taken_unix_us: None,
        });
        Ok(vec![condition])
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let together = self.spec.as_ref().map_or("", |spec| spec.group_snapshot.as_str());
        if !together.is_empty() {
            return Err(CallError::InUse {
                kind: Kind::Snapshot,
                name: self.name().to_owned(),
                by: format!("it is a part of group snapshot {together}: delete that"),
            });
        }
        self.require_no_copy(services).await
    }
}

/// The status of a volume that has been made, and that does not go back to a snapshot: only of such a one
/// snapshots can be taken.
pub(super) fn whole(volume: &Volume) -> Result<&VolumeStatus, CallError> {
    let status = made(volume)?;
    match not_whole(status) {
        None => Ok(status),
        Some(why) => Err(CallError::NotReady {
            name: volume.name().to_owned(),
            why,
        }),
    }
}

/// The status of a volume that has been made: only of such a one there are snapshots.
pub(super) fn made(volume: &Volume) -> Result<&VolumeStatus, CallError> {
    let status = volume.status.as_ref();
    let why = match status {
        Some(status) if status.epoch > 0 => return Ok(status),
        Some(status) if status.state() == VolumeState::Failed => {
            format!("it will never be made: {}", status.message)
        }
        _ => "it is still being made".to_owned(),
    };
    Err(CallError::NotReady {
        name: volume.name().to_owned(),
        why,
    })
}

/// Refuses a snapshot of which nothing is left.
pub(super) fn require_not_lost(snapshot: &Snapshot) -> Result<(), CallError> {
    let state = snapshot.status.as_ref().map(SnapshotStatus::state);
    match state {
        Some(SnapshotState::Lost) => Err(CallError::SnapshotLost {
            name: snapshot.name().to_owned(),
        }),
        _ => Ok(()),
    }
}

/// What snapshots have to say for themselves.
#[tonic::async_trait]
pub(super) trait Copied {
    /// Refuses while a volume is being made of it, or goes back to it.
    async fn require_no_copy(&self, services: &Services) -> Result<(), CallError>;
}

#[tonic::async_trait]
impl Copied for Snapshot {
    async fn require_no_copy(&self, services: &Services) -> Result<(), CallError> {
        let volumes = services.all::<Volume>().await?;
        let uid = &self.meta().uid;
        let goes_back = |volume: &&Volume| {
            let status = volume.status.as_ref();
            status.is_some_and(|status| goes_back_to(status, uid))
        };
        if let Some(volume) = volumes.iter().find(goes_back) {
            return Err(CallError::InUse {
                kind: Kind::Snapshot,
                name: self.name().to_owned(),
                by: format!("volume {} is going back to it: wait for that", volume.name()),
            });
        }
        // Once it serves, a copy does not need its source any more.
        let copy = volumes.iter().find(|volume| {
            let is_made = volume.status.as_ref().is_some_and(|status| status.epoch > 0);
            let source = volume.spec.as_ref().map(|spec| spec.source_snapshot.as_str());
            !is_made && source == Some(self.name())
        });
        let Some(copy) = copy else { return Ok(()) };
        // Were the snapshot gone, another one of its name would be taken for it.
        let state = copy.status.as_ref().map(VolumeStatus::state);
        let by = match state {
            Some(VolumeState::Failed) => format!("volume {} was to be made of it: delete that", copy.name()),
            _ => format!("volume {} is being made of it: wait for that", copy.name()),
        };
        Err(CallError::InUse {
            kind: Kind::Snapshot,
            name: self.name().to_owned(),
            by,
        })
    }
}

#[tonic::async_trait]
impl Snapshots for Services {
    type WatchSnapshotsStream = ChangeStream<SnapshotChange>;
    type StreamSnapshotBlocksStream = ChangeStream<SnapshotBlocks>;

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        self.permit(&request, Action::Provision)?;
        let wait = Wait::of(request.get_ref().wait_us, request.metadata())?;
        let snapshot = self.create(request.into_inner().snapshot).await?;
        let is_taken = |snapshot: &Snapshot| {
            let status = snapshot.status.as_ref();
            status.is_some_and(|status| matches!(status.state(), SnapshotState::Ready | SnapshotState::Lost))
        };
        answer!(self.await_record(wait, snapshot, is_taken).await?)
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Result<Response<Snapshot>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let ListSnapshotsRequest { page, volume } = request.into_inner();
        if !volume.is_empty() {
            require_name(&volume).map_err(|_| CallError::field("volume", "is no name of a volume"))?;
        }
        let wanted = |snapshot: &Snapshot| {
            let spec = snapshot.spec.as_ref();
            volume.is_empty() || spec.is_some_and(|spec| spec.volume == volume)
        };
        let page = self.page(page, &volume, wanted).await?;
        answer!(ListSnapshotsResponse {
            snapshots: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        self.permit(&request, Action::Provision)?;
        self.mark_gone::<Snapshot>(&request.into_inner().name).await?;
        answer!(DeleteSnapshotResponse {})
    }

    async fn watch_snapshots(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchSnapshotsStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(SnapshotChange, snapshot_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }

    async fn stream_snapshot_blocks(
        &self,
        request: Request<StreamSnapshotBlocksRequest>,
    ) -> Result<Response<Self::StreamSnapshotBlocksStream>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.blocks(request.into_inner()).await?)
    }
}
