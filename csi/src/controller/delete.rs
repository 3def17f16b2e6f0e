//! DeleteVolume.

use pollux_api::control::v1::{
    DeleteSnapshotRequest, DeleteVolumeRequest as OldVolume, ListSnapshotsRequest,
};
use pollux_api::csi::v1::{DeleteVolumeRequest, DeleteVolumeResponse};

use crate::control::{Pages, Waiting};
use crate::error::CallError;
use crate::names::label;

use super::ControllerService;
use super::answer::{is_internal, label_of, name_of};

impl ControllerService {
    pub(super) async fn delete(
        &self,
        request: DeleteVolumeRequest,
    ) -> Result<DeleteVolumeResponse, CallError> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        let volume = match self.control.any_volume(&id).await? {
            Some(volume) => volume,
            // A copy that was never finished may have left a snapshot of its source behind.
            None => match self.forget_clone(&id).await {
                Ok(()) => return Ok(DeleteVolumeResponse {}),
                // Whoever was cut off may have got as far as the copy meanwhile: then that goes first.
                Err(refused) => self.control.any_volume(&id).await?.ok_or(refused)?,
            },
        };
        if !self.control.is_own(volume.metadata.as_ref()) {
            let cluster = label_of(volume.metadata.as_ref(), label::CLUSTER).unwrap_or_default();
            return Err(CallError::Precondition(format!(
                "volume {id} is of the cluster {cluster}: it is deleted there"
            )));
        }
        self.forget_clones_of(&id).await?;
        let request = OldVolume { name: id.clone() };
        self.control.volumes().delete_volume(request).await?;
        let uid = volume.metadata.as_ref().map(|metadata| metadata.uid.clone());
        let mut waiting = Waiting::default();
        while let Some(present) = self.control.any_volume(&id).await? {
            // Another one may have the name by now, and its source with it.
            if present.metadata.map(|metadata| metadata.uid) != uid {
                return Ok(DeleteVolumeResponse {});
            }
            waiting
                .pause("volume", &id, "its copies are being deleted")
                .await?;
        }
        // A copy needs its source until it is made, or gone.
        self.forget_clone(&id).await?;
        Ok(DeleteVolumeResponse {})
    }

    /// Deletes the snapshots of a volume that were taken for copies that are there by now, or were given
    /// up. Those of which a copy is being made stay, and the volume with them.
    async fn forget_clones_of(&self, id: &str) -> Result<(), CallError> {
        let mut pages = Pages::all();
        while let Some(page) = pages.request() {
            let request = ListSnapshotsRequest {
                page: Some(page),
                volume: id.to_owned(),
            };
            let answer = self
                .control
                .snapshots()
                .list_snapshots(request)
                .await?
                .into_inner();
            for snapshot in answer.snapshots.iter().filter(|snapshot| is_internal(snapshot)) {
                let name = name_of(snapshot.metadata.as_ref()).to_owned();
                let request = DeleteSnapshotRequest { name };
                self.control.snapshots().delete_snapshot(request).await?;
            }
            pages.came(answer.next_page_token);
        }
        Ok(())
    }
}
