//! ListVolumes, ControllerGetVolume, ControllerListVolumeHealth, ControllerGetVolumeHealth, ListSnapshots,
//! GetSnapshot.
//!
//! A page here is as many pages of the control plane as it takes, since what others made for themselves is
//! left out. Tokens are those of the control plane.

use pollux_api::control::v1::{self as control, PageRequest, Reason};
use pollux_api::csi::v1::{
    ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse, ControllerGetVolumeRequest,
    ControllerGetVolumeResponse, ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest,
    ListVolumesResponse, controller_get_volume_response, list_snapshots_response, list_volumes_response,
};

use crate::control::{PAGE_SIZE, reason};
use crate::error::CallError;
use crate::names::is_resource_name;

use super::ControllerService;
use super::answer::{self, is_deleting, is_internal, is_lost};

/// Entries of one answer if the caller takes any number: an answer must fit into a message.
const ENTRIES_MAX: usize = 10_000;

/// How many entries are wanted.
fn wanted(max_entries: i32) -> Result<usize, CallError> {
    match usize::try_from(max_entries) {
        Ok(0) => Ok(ENTRIES_MAX),
        Ok(count) => Ok(count.min(ENTRIES_MAX)),
        Err(_) => Err(CallError::argument("max_entries", "is less than nothing")),
    }
}

/// The page to ask the control plane for, if so many entries are missing.
fn page(missing: usize, token: String) -> Option<PageRequest> {
    let size = u32::try_from(missing).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
    Some(PageRequest { size, token })
}

fn refused(status: tonic::Status) -> CallError {
    match reason(&status) {
        Some(Reason::PageTokenInvalid) => CallError::Token,
        _ => status.into(),
    }
}

impl ControllerService {
    fn is_node(&self, nqn: &str) -> bool {
        self.control.cluster().host_of_id(nqn).is_some()
    }

    /// What is told of volumes that orchestrators know of, at most so many, and the token for more.
    pub(super) async fn told_of_volumes<T>(
        &self,
        max_entries: i32,
        mut token: String,
        tell: impl Fn(&control::Volume) -> Option<T>,
    ) -> Result<(Vec<T>, String), CallError> {
        let wanted = wanted(max_entries)?;
        let mut told = Vec::new();
        loop {
            let request = control::ListVolumesRequest {
                page: page(wanted - told.len(), token),
            };
            let answer = self
                .control
                .volumes()
                .list_volumes(request)
                .await
                .map_err(refused)?;
            let answer = answer.into_inner();
            let known = answer.volumes.iter().filter(|volume| {
                let metadata = volume.metadata.as_ref();
                !is_deleting(metadata) && self.control.is_own(metadata)
            });
            told.extend(known.filter_map(&tell));
            token = answer.next_page_token;
            if token.is_empty() || told.len() >= wanted {
                return Ok((told, token));
            }
        }
    }

    pub(super) async fn volumes(
        &self,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse, CallError> {
        let entry = |volume: &control::Volume| {
            Some(list_volumes_response::Entry {
                volume: Some(answer::volume(volume, Vec::new())),
                status: Some(list_volumes_response::VolumeStatus {
                    published_node_ids: answer::published_node_ids(volume, |nqn| self.is_node(nqn)),
                    volume_condition: Some(answer::condition(volume)),
                }),
            })
        };
        let told = self.told_of_volumes(request.max_entries, request.starting_token, entry);
        let (entries, next_token) = told.await?;
        Ok(ListVolumesResponse { entries, next_token })
    }

    pub(super) async fn health_of_all(
        &self,
        request: ControllerListVolumeHealthRequest,
    ) -> Result<ControllerListVolumeHealthResponse, CallError> {
        let ill = |volume: &control::Volume| {
            let health = answer::health(volume);
            Some(health).filter(|health| !health.health_statuses.is_empty())
        };
        let told = self.told_of_volumes(request.max_entries, request.starting_token, ill);
        let (entries, next_token) = told.await?;
        Ok(ControllerListVolumeHealthResponse { entries, next_token })
    }

    pub(super) async fn health(
        &self,
        request: ControllerGetVolumeHealthRequest,
    ) -> Result<ControllerGetVolumeHealthResponse, CallError> {
        if request.volume_id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        let volume = self.known_volume(&request.volume_id).await?;
        Ok(ControllerGetVolumeHealthResponse {
            volume_health: Some(answer::health(&volume)),
        })
    }

    pub(super) async fn volume(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, CallError> {
        if request.volume_id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        let volume = self.known_volume(&request.volume_id).await?;
        Ok(ControllerGetVolumeResponse {
            volume: Some(answer::volume(&volume, Vec::new())),
            status: Some(controller_get_volume_response::VolumeStatus {
                published_node_ids: answer::published_node_ids(&volume, |nqn| self.is_node(nqn)),
                volume_condition: Some(answer::condition(&volume)),
            }),
        })
    }

    /// A volume that orchestrators know of.
    pub(super) async fn known_volume(&self, id: &str) -> Result<control::Volume, CallError> {
        let volume = self.control.volume(id).await?;
        match is_deleting(volume.metadata.as_ref()) {
            true => Err(CallError::no_volume(id)),
            false => Ok(volume),
        }
    }

    /// Whether orchestrators know of a snapshot. One that is lost is none for them: "not ready to use" would
    /// mean that it will be.
    fn is_told(&self, snapshot: &control::Snapshot) -> bool {
        let metadata = snapshot.metadata.as_ref();
        !is_internal(snapshot)
            && !is_deleting(metadata)
            && !is_lost(snapshot)
            && self.control.is_own(metadata)
    }

    /// A snapshot that orchestrators know of.
    ///
    /// # Errors
    ///
    /// [`CallError::Lost`] for one that they may have known, and of which nothing is left.
    pub(super) async fn known_snapshot(&self, id: &str) -> Result<Option<control::Snapshot>, CallError> {
        let snapshot = self.control.find_snapshot(id).await?;
        match snapshot {
            Some(snapshot) if self.is_told(&snapshot) => Ok(Some(snapshot)),
            Some(snapshot) if is_lost(&snapshot) && !is_internal(&snapshot) => {
                Err(CallError::Lost(id.to_owned()))
            }
            _ => Ok(None),
        }
    }

    pub(super) async fn snapshot(
        &self,
        request: GetSnapshotRequest,
    ) -> Result<GetSnapshotResponse, CallError> {
        if request.snapshot_id.is_empty() {
            return Err(CallError::missing("snapshot_id"));
        }
        let snapshot = self.known_snapshot(&request.snapshot_id).await?;
        let snapshot = snapshot.ok_or(CallError::NotFound {
            kind: "snapshot",
            id: request.snapshot_id,
        })?;
        Ok(GetSnapshotResponse {
            snapshot: Some(answer::snapshot(&snapshot)),
        })
    }

    pub(super) async fn snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse, CallError> {
        let entry = |snapshot: &control::Snapshot| list_snapshots_response::Entry {
            snapshot: Some(answer::snapshot(snapshot)),
        };
        let wanted = wanted(request.max_entries)?;
        let volume = request.source_volume_id;
        if !request.snapshot_id.is_empty() {
            let snapshot = match self.known_snapshot(&request.snapshot_id).await {
                Err(CallError::Lost(_)) => None,
                known => known?,
            };
            let of_volume = |snapshot: &control::Snapshot| {
                let spec = snapshot.spec.as_ref();
                volume.is_empty() || spec.is_some_and(|spec| spec.volume == volume)
            };
            return Ok(ListSnapshotsResponse {
                entries: snapshot.filter(of_volume).iter().map(entry).collect(),
                next_token: String::new(),
            });
        }
        // What cannot be a name there has no snapshots.
        if !volume.is_empty() && !is_resource_name(&volume) {
            return Ok(ListSnapshotsResponse::default());
        }
        let mut entries = Vec::new();
        let mut token = request.starting_token;
        loop {
            let request = control::ListSnapshotsRequest {
                page: page(wanted - entries.len(), token),
                volume: volume.clone(),
            };
            let answer = self
                .control
                .snapshots()
                .list_snapshots(request)
                .await
                .map_err(refused)?;
            let answer = answer.into_inner();
            let known = answer.snapshots.iter().filter(|snapshot| self.is_told(snapshot));
            entries.extend(known.map(entry));
            token = answer.next_page_token;
            if token.is_empty() || entries.len() >= wanted {
                return Ok(ListSnapshotsResponse {
                    entries,
                    next_token: token,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_entries_has_an_end() {
        assert_eq!(wanted(0).ok(), Some(ENTRIES_MAX));
        assert_eq!(wanted(7).ok(), Some(7));
        assert_eq!(wanted(i32::MAX).ok(), Some(ENTRIES_MAX));
        assert!(wanted(-1).is_err());
        assert_eq!(page(7, String::new()).map(|page| page.size), Some(7));
        assert_eq!(
            page(ENTRIES_MAX, String::new()).map(|page| page.size),
            Some(PAGE_SIZE)
        );
    }
}
