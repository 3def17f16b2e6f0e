//! The node service.
//!
//! What is done for a volume is done one after the other: a second call for the same volume waits. It is
//! done on threads of its own, to its end even if the caller went away; the same call again finds it done.

mod access;
pub mod context;
mod expand;
mod paths;
mod publish;
mod record;
mod stage;
mod stats;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pollux_api::csi::v1::node_server::Node;
use pollux_api::csi::v1::node_service_capability::rpc::Type;
use pollux_api::csi::v1::node_service_capability::{Rpc, Type as CapabilityType};
use pollux_api::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetStorageHealthRequest,
    NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse,
};
use tonic::{Request, Response, Status};

use crate::error::CallError;
use crate::host::{Host, PathTimes};
use crate::names;
use crate::secrets::Kept;
use crate::topology::Place;

pub use record::{Record, Records};

/// What the service can do.
const CAPABILITIES: [Type; 7] = [
    Type::StageUnstageVolume,
    Type::GetVolumeStats,
    Type::ExpandVolume,
    Type::VolumeCondition,
    Type::SingleNodeMultiWriter,
    Type::GetVolumeHealth,
    Type::GetStorageHealth,
];

/// How long a call waits for another one that is under way with its volume.
const TURN_PATIENCE: Duration = Duration::from_secs(30);

/// How long connecting the other paths may hold up a volume that is there by one: as a rule they are all
/// there by then, and what is found wrong with several is told. The kernel connects one after the other;
/// where that takes longer, it goes on while the device is looked at and formatted.
pub const OTHER_PATHS_PATIENCE: Duration = Duration::from_millis(100);

/// Between two flushes by which a host hears that caches were lost: more than the second for which a target
/// takes them for what was on its way when the first one failed.
pub const FLUSH_PAUSE: Duration = Duration::from_millis(1_100);

/// Longest id of a volume (CSI specification, "Size Limits").
const VOLUME_ID_BYTES_MAX: usize = 128;

/// Longest path: PATH_MAX of Linux.
const PATH_BYTES_MAX: usize = 4096;

/// What a node is.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// The host that it is.
    pub host: names::Host,
    /// Where it stands.
    pub place: Place,
    /// Volumes that it can use at a time; 0: not said.
    pub volumes_max: u32,
    /// Where it is written down what was done.
    pub records: PathBuf,
    /// How long the kernel waits for a path.
    pub times: PathTimes,
    /// How long a device may take to appear after a path to it is connected.
    pub device_timeout: Duration,
    /// How long other paths are waited for once there is one: [`OTHER_PATHS_PATIENCE`] but in tests.
    pub other_paths_patience: Duration,
    /// Between two flushes by which a host hears that caches were lost: [`FLUSH_PAUSE`] but in tests.
    pub flush_pause: Duration,
}

/// Who does one thing with a volume at a time.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        // Nothing that is done with the lock held can leave it half done.
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(id).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        turns.insert(id.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// What calls work with.
#[derive(Debug)]
struct Parts {
    machine: Arc<dyn Host>,
    settings: NodeSettings,
    records: Records,
    /// Of staged volumes.
    secrets: Kept,
    /// What targets tell of where volumes are.
    told: paths::Told,
    turns: Arc<Turns>,
}

/// Answers calls about volumes on this node. Clones share all of it.
#[derive(Debug, Clone)]
pub struct NodeService {
    parts: Arc<Parts>,
}

impl NodeService {
    /// On a machine.
    ///
    /// # Errors
    ///
    /// Why the records cannot be kept.
    pub fn new(machine: Arc<dyn Host>, settings: NodeSettings) -> Result<Self, CallError> {
        let records = Records::open(&settings.records)?;
        let parts = Parts {
            machine,
            settings,
            records,
            secrets: Kept::default(),
            told: paths::Told::default(),
            turns: Arc::default(),
        };
        Ok(Self {
            parts: Arc::new(parts),
        })
    }

    /// Does something with a volume when nothing else is done with it.
    async fn exclusively<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&Parts) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let turn = tokio::time::timeout(TURN_PATIENCE, self.parts.turns.of(id).lock_owned()).await;
        let turn = turn.map_err(|_| CallError::Pending {
            kind: "volume",
            id: id.to_owned(),
            what: "another call is under way with it on this node".to_owned(),
        })?;
        let parts = self.parts.clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&parts);
            drop(turn);
            result
        });
        // A panic is a mistake of ours; the caller is told so, and the volume stays as it is.
        done.await.unwrap_or_else(|error| {
            Err(CallError::Control {
                code: tonic::Code::Internal,
                message: error.to_string(),
            })
        })
    }
}

/// A field that has to be there.
fn required(field: &'static str, text: String) -> Result<String, CallError> {
    match text.is_empty() {
        true => Err(CallError::missing(field)),
        false => Ok(text),
    }
}

/// The volume that a call is about. No volume has a longer id, and what is written down of one is bounded.
fn volume_id(text: String) -> Result<String, CallError> {
    const FIELD: &str = "volume_id";
    match text.len() {
        0..=VOLUME_ID_BYTES_MAX => required(FIELD, text),
        bytes => {
            let problem = format!("has {bytes} bytes, and no volume has more than {VOLUME_ID_BYTES_MAX}");
            Err(CallError::argument(FIELD, problem))
        }
    }
}

/// A path that has to be absolute, and without steps upwards.
fn absolute(field: &'static str, text: String) -> Result<PathBuf, CallError> {
    let text = required(field, text)?;
    let path = PathBuf::from(&text);
    let is_plain = path
        .components()
        .all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && is_plain && !text.contains('\0') && text.len() <= PATH_BYTES_MAX {
        // Without what is not needed, so that the same place has one name.
        return Ok(path.components().collect());
    }
    Err(CallError::argument(
        field,
        "is no absolute path without steps upwards",
    ))
}

/// Something with a file or directory failed.
fn file_error(what: &'static str, path: &Path, error: &std::io::Error) -> CallError {
    crate::host::HostError::kernel(what, path.display(), error).into()
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let staging = stage::Staging::read(request.into_inner())?;
        let id = staging.volume_id().to_owned();
        self.exclusively(&id, move |parts| parts.stage(&staging)).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let NodeUnstageVolumeRequest {
            volume_id,
            staging_target_path,
        } = request.into_inner();
        let id = self::volume_id(volume_id)?;
        let path = absolute("staging_target_path", staging_target_path)?;
        self.exclusively(&id.clone(), move |parts| parts.unstage(&id, &path))
            .await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let publishing = publish::Publishing::read(request.into_inner())?;
        let id = publishing.volume_id().to_owned();
        self.exclusively(&id, move |parts| parts.publish(&publishing))
            .await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let NodeUnpublishVolumeRequest {
            volume_id,
            target_path,
        } = request.into_inner();
        let id = self::volume_id(volume_id)?;
        let path = absolute("target_path", target_path)?;
        self.exclusively(&id.clone(), move |parts| parts.unpublish(&id, &path))
            .await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(request.volume_id)?;
        let path = PathBuf::from(required("volume_path", request.volume_path)?);
        let answer = self
            .exclusively(&id.clone(), move |parts| parts.stats(&id, &path))
            .await?;
        Ok(Response::new(answer))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let expansion = expand::Expansion::read(request.into_inner())?;
        let id = expansion.volume_id().to_owned();
        let answer = self
            .exclusively(&id, move |parts| parts.expand(&expansion))
            .await?;
        Ok(Response::new(answer))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: Type| NodeServiceCapability {
            r#type: Some(CapabilityType::Rpc(Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let id = volume_id(request.into_inner().volume_id)?;
        let answer = self
            .exclusively(&id.clone(), move |parts| parts.health(&id))
            .await?;
        Ok(Response::new(answer))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        // Nothing is changed, so nobody is waited for.
        let parts = self.parts.clone();
        let answer = tokio::task::spawn_blocking(move || parts.storage_health()).await;
        let answer = answer.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(answer?))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let settings = &self.parts.settings;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: settings.host.nqn.clone(),
            max_volumes_per_node: settings.volumes_max.into(),
            accessible_topology: settings.place.message(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_name() {
        let path = |text: &str| absolute("path", text.to_owned()).ok();
        assert_eq!(path("/a//b/./c/"), Some(PathBuf::from("/a/b/c")));
        for wrong in [
            "",
            "a",
            "./a",
            "/a/../b",
            "/a\0b",
            &format!("/{}", "a".repeat(PATH_BYTES_MAX)),
        ] {
            assert_eq!(path(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn ids_of_volumes_are_bounded() {
        let longest = "v".repeat(VOLUME_ID_BYTES_MAX);
        assert_eq!(volume_id(longest.clone()).ok(), Some(longest.clone()));
        for wrong in [String::new(), longest + "v"] {
            assert!(matches!(volume_id(wrong), Err(CallError::Argument { .. })));
        }
    }

    #[tokio::test]
    async fn turns_are_taken_for_each_volume() {
        let turns = Turns::default();
        let first = turns.of("a").lock_owned().await;
        assert!(turns.of("a").try_lock().is_err());
        assert!(turns.of("b").try_lock().is_ok());
        drop(first);
        assert!(turns.of("a").try_lock().is_ok());
        // What nobody waits for is forgotten.
        turns.of("c");
        assert_eq!(turns.0.lock().expect("nobody panicked").len(), 1);
    }
}
