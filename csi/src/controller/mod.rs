//! The controller service.
//!
//! It keeps nothing: whatever it has to know later is a label of a volume or snapshot in the control plane. A
//! call that was cut off left records there in some step; the same call again goes on from them.

mod answer;
mod capacity;
mod change;
mod create;
mod delete;
mod groups;
mod list;
mod metadata;
mod publish;
mod snapshots;

use std::sync::Arc;

use pollux_api::csi::v1::controller_server::Controller;
use pollux_api::csi::v1::controller_service_capability::rpc::Type;
use pollux_api::csi::v1::controller_service_capability::{Rpc, Type as CapabilityType};
use pollux_api::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerListVolumeHealthRequest,
    ControllerListVolumeHealthResponse, ControllerModifyVolumeRequest, ControllerModifyVolumeResponse,
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerServiceCapability,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest,
    CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest,
    DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest,
    GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use crate::control::ControlPlane;
use crate::pods::PodNotes;

/// What the service can do.
const CAPABILITIES: [Type; 17] = [
    Type::CreateDeleteVolume,
    Type::PublishUnpublishVolume,
    Type::ListVolumes,
    Type::GetCapacity,
    Type::CreateDeleteSnapshot,
    Type::ListSnapshots,
    Type::CloneVolume,
    Type::PublishReadonly,
    Type::ExpandVolume,
    Type::ListVolumesPublishedNodes,
    Type::VolumeCondition,
    Type::GetVolume,
    Type::SingleNodeMultiWriter,
    Type::ModifyVolume,
    Type::GetSnapshot,
    Type::GetVolumeHealth,
    Type::ListVolumeHealth,
];

/// Answers calls of orchestrators by asking the control plane.
#[derive(Debug, Clone)]
pub struct ControllerService {
    control: ControlPlane,
    /// Volumes that a node can use at a time; 0 for any number.
    volumes_max: u32,
    /// Held from when the volumes of a node are counted until one more is its own.
    counting: Arc<Mutex<()>>,
    /// Who labels volumes with the pods that use them, if anybody does.
    pods: Option<PodNotes>,
}

impl ControllerService {
    /// By this control plane.
    pub fn new(control: ControlPlane) -> Self {
        Self {
            control,
            volumes_max: 0,
            counting: Arc::default(),
            pods: None,
        }
    }

    /// The same, and no node gets more volumes at a time than this; 0 for any number. Services of one
    /// cluster that answer at the same time may each give it the last one.
    #[must_use]
    pub fn with_volumes_max(self, volumes_max: u32) -> Self {
        Self { volumes_max, ..self }
    }

    /// The same, and it is noted here which volumes are published elsewhere than before.
    #[must_use]
    pub fn with_pods(self, pods: Option<PodNotes>) -> Self {
        Self { pods, ..self }
    }

    fn note_published(&self, id: &str) {
        if let Some(pods) = &self.pods {
            pods.note(id);
        }
    }
}

/// One call: what is inside, in the words of the service.
macro_rules! call {
    ($self:ident.$method:ident($request:ident)) => {
        Ok(Response::new($self.$method($request.into_inner()).await?))
    };
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        call!(self.create(request))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        call!(self.delete(request))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        call!(self.publish(request))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        call!(self.unpublish(request))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        call!(self.validate(request))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        call!(self.volumes(request))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        call!(self.capacity(request))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: Type| ControllerServiceCapability {
            r#type: Some(CapabilityType::Rpc(Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        call!(self.take_snapshot(request))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        call!(self.drop_snapshot(request))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        call!(self.snapshots(request))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        call!(self.snapshot(request))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        call!(self.expand(request))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        call!(self.volume(request))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        call!(self.modify(request))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        call!(self.health_of_all(request))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        call!(self.health(request))
    }
}
