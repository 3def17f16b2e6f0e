//! ControllerPublishVolume and ControllerUnpublishVolume: which hosts a volume admits.

use std::collections::{HashMap, HashSet};

use pollux_api::control::v1::{
    HostAccess, HostSecrets, HostSharing, PublishVolumeRequest, PublishVolumeResponse, Reason,
    UnpublishVolumeRequest, Volume, VolumeState,
};
use pollux_api::csi::v1::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse,
};

use crate::capability::{Capability, Sharing};
use crate::control::{WAIT_US, Waiting, reason};
use crate::error::CallError;
use crate::names::Host;
use crate::node::context;
use crate::secrets;

use super::ControllerService;
use super::answer::{is_deleting, name_of, never_made, require_makeable};

/// A node that may use a volume.
struct Publication {
    id: String,
    host: Host,
    read_only: bool,
    sharing: HostSharing,
    /// By what the node authenticates, if it is said.
    secrets: Option<HostSecrets>,
}

impl Publication {
    fn known<'a>(&self, volume: &'a Volume) -> Option<&'a HostAccess> {
        let hosts = volume.spec.as_ref().map_or(&[][..], |spec| &spec.hosts);
        hosts.iter().find(|host| host.host_nqn == self.host.nqn)
    }

    fn request(&self, wait_us: Option<u64>) -> PublishVolumeRequest {
        PublishVolumeRequest {
            name: self.id.clone(),
            host: Some(HostAccess {
                host_nqn: self.host.nqn.clone(),
                read_only: self.read_only,
                ..HostAccess::default()
            }),
            sharing: self.sharing.into(),
            wait_us,
            secrets: self.secrets.clone(),
        }
    }

    fn otherwise(&self) -> CallError {
        CallError::Exists {
            kind: "publication of volume",
            id: self.id.clone(),
            difference: "the node may write to it if it was asked to read only, or the other way round"
                .to_owned(),
        }
    }
}

/// Who else may use a volume that is published so.
fn sharing(asked: Sharing, read_only: bool) -> HostSharing {
    match asked {
        Sharing::OneWriter | Sharing::OnePlace | Sharing::OneReader => HostSharing::None,
        Sharing::Readers => HostSharing::Readers,
        Sharing::WriterAndReaders if !read_only => HostSharing::Readers,
        Sharing::WriterAndReaders | Sharing::Writers => HostSharing::Unspecified,
    }
}

/// What the node service is told.
fn publish_context(answer: &PublishVolumeResponse, read_only: bool) -> HashMap<String, String> {
    // Those of the node that serves come first, as they came, because nodes try them first; the others in one
    // order, so that the same is told again as long as it is the same.
    let serves = answer.paths.first().map(|path| path.node.as_str());
    let mut paths: Vec<_> = answer.paths.iter().collect();
    paths.sort_unstable_by_key(|path| (Some(path.node.as_str()) != serves, path.address.as_str()));
    let mut told = HashSet::new();
    let addresses = paths.into_iter().map(|path| path.address.as_str());
    let paths: Vec<&str> = addresses.filter(|address| told.insert(*address)).collect();
    let pairs = [
        (context::SUBSYSTEM_NQN, answer.subsystem_nqn.clone()),
        (context::NAMESPACE_UUID, answer.namespace_uuid.clone()),
        (context::PATHS, paths.join(",")),
        (context::READ_ONLY, read_only.to_string()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

impl ControllerService {
    pub(super) async fn publish(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<ControllerPublishVolumeResponse, CallError> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        if request.node_id.is_empty() {
            return Err(CallError::missing("node_id"));
        }
        let capability = Capability::read("volume_capability", request.volume_capability.as_ref())?;
        let secrets = secrets::read(&request.secrets)?;
        let volume = self.control.volume(&id).await?;
        let host = self.control.cluster().host_of_id(&request.node_id);
        let host = host.ok_or_else(|| CallError::NotFound {
            kind: "node",
            id: request.node_id.clone(),
        })?;
        let read_only = request.readonly || capability.sharing.is_read_only();
        let publication = Publication {
            id,
            host,
            read_only,
            sharing: sharing(capability.sharing, read_only),
            secrets,
        };
        if is_deleting(volume.metadata.as_ref()) {
            return Err(CallError::no_volume(&publication.id));
        }
        require_makeable(&volume)?;
        match publication.known(&volume) {
            Some(known) if known.read_only != read_only => return Err(publication.otherwise()),
            _ => {}
        }
        if self.volumes_max > 0 && publication.known(&volume).is_none() {
            self.admit_one_more(&publication).await?;
        }
        let answer = self.admitted(&publication).await?;
        self.note_published(&publication.id);
        Ok(ControllerPublishVolumeResponse {
            publish_context: publish_context(&answer, read_only),
        })
    }

    /// Admits a host, unless it has as many volumes as it can have. That its target does is not waited for.
    async fn admit_one_more(&self, publication: &Publication) -> Result<(), CallError> {
        let _counting = self.counting.lock().await;
        let is_other_of_host = |volume: &Volume| {
            let is_other = name_of(volume.metadata.as_ref()) != publication.id;
            (is_other && publication.known(volume).is_some()).then_some(())
        };
        let (others, _) = self.told_of_volumes(0, String::new(), is_other_of_host).await?;
        if others.len() >= self.volumes_max as usize {
            return Err(CallError::NoPlace(format!(
                "node {} has {} volumes, and cannot use more",
                publication.host.nqn,
                others.len()
            )));
        }
        let request = publication.request(None);
        match self.control.volumes().publish_volume(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.refused(publication, status).await),
        }
    }

    /// Admits a host, and waits until the target does.
    async fn admitted(&self, publication: &Publication) -> Result<PublishVolumeResponse, CallError> {
        let mut waiting = Waiting::default();
        loop {
            let request = publication.request(Some(WAIT_US));
            let answer = match self.control.volumes().publish_volume(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return Err(self.refused(publication, status).await),
            };
            if answer.ready {
                return Ok(answer);
            }
            if answer.state() == VolumeState::Failed {
                return Err(never_made(&publication.id, &answer.message));
            }
            waiting.pause("volume", &publication.id, &answer.message).await?;
        }
    }

    /// Why a host was not admitted.
    async fn refused(&self, publication: &Publication, status: tonic::Status) -> CallError {
        match reason(&status) {
            Some(Reason::NotFound) => CallError::no_volume(&publication.id),
            Some(Reason::FieldInvalid) => match self.control.volume(&publication.id).await {
                // Somebody has published it in the other way meanwhile.
                Ok(volume)
                    if publication
                        .known(&volume)
                        .is_some_and(|known| known.read_only != publication.read_only) =>
                {
                    publication.otherwise()
                }
                _ => status.into(),
            },
            _ => status.into(),
        }
    }

    pub(super) async fn unpublish(
        &self,
        request: ControllerUnpublishVolumeRequest,
    ) -> Result<ControllerUnpublishVolumeResponse, CallError> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        let hosts = match request.node_id.as_str() {
            "" => self.hosts(&id).await?,
            // What is no node of this cluster was never admitted.
            node_id => self.control.cluster().host_of_id(node_id).into_iter().collect(),
        };
        if self.control.any_volume(&id).await?.is_none() {
            return Ok(ControllerUnpublishVolumeResponse {});
        }
        let mut waiting = Waiting::default();
        for host in hosts {
            loop {
                let request = UnpublishVolumeRequest {
                    name: id.clone(),
                    host_nqn: Some(host.nqn.clone()),
                    wait_us: Some(WAIT_US),
                };
                if self
                    .control
                    .volumes()
                    .unpublish_volume(request)
                    .await?
                    .into_inner()
                    .ready
                {
                    break;
                }
                let state = "its target still admits the node";
                waiting.pause("volume", &id, state).await?;
            }
        }
        self.note_published(&id);
        Ok(ControllerUnpublishVolumeResponse {})
    }

    /// The nodes of this cluster that a volume admits.
    async fn hosts(&self, id: &str) -> Result<Vec<Host>, CallError> {
        let volume = self.control.any_volume(id).await?.unwrap_or_default();
        let hosts = volume.spec.unwrap_or_default().hosts;
        let own = hosts.iter();
        Ok(own
            .filter_map(|host| self.control.cluster().host_of_id(&host.host_nqn))
            .collect())
    }
}
