//! The control plane, as the controller service asks it.
//!
//! Names that cannot be names there are of nothing; so are volumes and snapshots of other clusters.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pollux_api::FieldMask;
use pollux_api::control::v1::group_snapshots_client::GroupSnapshotsClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    GetGroupSnapshotRequest, GetSnapshotRequest, GetVolumeRequest, GroupSnapshot, ListNodesRequest, Node,
    PageRequest, Reason, Snapshot, UpdateVolumeRequest, Volume,
};
use pollux_tls::{Certificates, TlsError};
use pollux_trace::Calls;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::error::CallError;
use crate::names::{Cluster, is_resource_name, label};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the connection may be silent before the control plane is asked whether it is there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// The first pause of those who wait for something; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(4);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long is waited for something, if the caller waits as long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the control plane is asked to wait for what is asked of it before it answers, in microseconds:
/// less than a call may take.
pub const WAIT_US: u64 = 5_000_000;

/// Records that are asked for at a time.
pub const PAGE_SIZE: u32 = 1000;

/// How often a change is tried against others.
pub const ATTEMPTS_MAX: u32 = 8;

/// The pages of a list, one after the other, to its end.
#[derive(Debug)]
pub struct Pages {
    /// Of the next page; of the first one it is empty.
    token: Option<String>,
}

impl Pages {
    /// From the first one on.
    pub fn all() -> Self {
        Self {
            token: Some(String::new()),
        }
    }

    /// What to ask for next. Nothing after the last page, and before the one that was asked for is there.
    pub fn request(&mut self) -> Option<PageRequest> {
        let token = self.token.take()?;
        Some(PageRequest {
            size: PAGE_SIZE,
            token,
        })
    }

    /// A page has come, with the token of the next one; empty if it was the last.
    pub fn came(&mut self, next_page_token: String) {
        self.token = Some(next_page_token).filter(|token| !token.is_empty());
    }
}

/// Why the control plane cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("{address} is no address of a control plane: give HOST:PORT, or several with commas between")]
    Address {
        /// What was given.
        address: String,
    },
    /// A certificate or key cannot be read.
    #[error(transparent)]
    File(#[from] TlsError),
    /// A certificate or key cannot be used.
    #[error("the certificates in {directory} cannot be used: {source}")]
    Certificates {
        /// Where they are.
        directory: PathBuf,
        /// Why not.
        source: tonic::transport::Error,
    },
}

/// Whether an address is HOST:PORT, and nothing that would be without effect, or lead elsewhere.
fn is_host_and_port(uri: &Uri, address: &str) -> bool {
    uri.authority().is_some_and(|authority| {
        authority.as_str() == address
            && !address.contains('@')
            && !authority.host().is_empty()
            && authority.port_u16().is_some_and(|port| port > 0)
    })
}

/// How it is called: each call is part of the trace of what the orchestrator asked.
type Connection = Calls<Channel>;

/// The control plane. Clones share the connection.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    channel: Connection,
    certificates: Option<Certificates>,
    cluster: Cluster,
}

impl ControlPlane {
    /// At one or several addresses, with the certificates of a directory if one is given. Connects when it is
    /// first asked, and again when the connection is lost.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn new(addresses: &str, certificates: Option<&Path>, cluster: Cluster) -> Result<Self, ConnectError> {
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let directory = certificates;
        let open = |directory| Certificates::open(directory, |_| Ok(()));
        let certificates = directory.map(open).transpose()?;
        let mut endpoints = Vec::new();
        for address in addresses.split(',') {
            let wrong = || ConnectError::Address {
                address: address.to_owned(),
            };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| wrong())?;
            if !is_host_and_port(endpoint.uri(), address) {
                return Err(wrong());
            }
            let endpoint = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(CALL_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .keep_alive_while_idle(true);
            endpoints.push(endpoint);
        }
        let channel = match (&certificates, endpoints.as_slice()) {
            (Some(certificates), _) => {
                let channel = certificates.channel(endpoints);
                channel.map_err(|source| ConnectError::Certificates {
                    directory: directory.unwrap_or(Path::new("")).to_owned(),
                    source,
                })?
            }
            (None, [one]) => one.connect_lazy(),
            _ => Channel::balance_list(endpoints.into_iter()),
        };
        let channel = Calls::new(channel, "control");
        Ok(Self {
            channel,
            certificates,
            cluster,
        })
    }

    /// The certificates by which it is called, if there are any.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The cluster that asks.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Calls about volumes.
    pub fn volumes(&self) -> VolumesClient<Connection> {
        VolumesClient::new(self.channel.clone())
    }

    /// Calls about snapshots.
    pub fn snapshots(&self) -> SnapshotsClient<Connection> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// Calls about snapshots of several volumes.
    pub fn group_snapshots(&self) -> GroupSnapshotsClient<Connection> {
        GroupSnapshotsClient::new(self.channel.clone())
    }

    /// Calls about pools.
    pub fn pools(&self) -> PoolsClient<Connection> {
        PoolsClient::new(self.channel.clone())
    }

    /// Calls about templates.
    pub fn templates(&self) -> TemplatesClient<Connection> {
        TemplatesClient::new(self.channel.clone())
    }

    /// Whether it answers.
    ///
    /// # Errors
    ///
    /// [`CallError::Control`].
    pub async fn probe(&self) -> Result<(), CallError> {
        let request = ListNodesRequest {
            page: Some(PageRequest {
                size: 1,
                token: String::new(),
            }),
        };
        NodesClient::new(self.channel.clone()).list_nodes(request).await?;
        Ok(())
    }

    /// All nodes.
    ///
    /// # Errors
    ///
    /// [`CallError::Control`].
    pub async fn nodes(&self) -> Result<Vec<Node>, CallError> {
        let mut client = NodesClient::new(self.channel.clone());
        let mut nodes = Vec::new();
        let mut pages = Pages::all();
        while let Some(page) = pages.request() {
            let request = ListNodesRequest { page: Some(page) };
            let answer = client.list_nodes(request).await?.into_inner();
            nodes.extend(answer.nodes);
            pages.came(answer.next_page_token);
        }
        Ok(nodes)
    }

    /// Changes what paths name of a volume as it was read; nothing if somebody else has changed it since.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn try_update(&self, changed: Volume, paths: &[&str]) -> Result<Option<Volume>, Status> {
        let request = UpdateVolumeRequest {
            volume: Some(changed),
            update_mask: Some(FieldMask {
                paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            }),
        };
        match self.volumes().update_volume(request).await {
            Ok(updated) => Ok(Some(updated.into_inner())),
            Err(status) if reason(&status) == Some(Reason::RevisionStale) => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// A volume, whosesoever it is.
    ///
    /// # Errors
    ///
    /// [`CallError::Control`].
    pub async fn any_volume(&self, id: &str) -> Result<Option<Volume>, CallError> {
        if !is_resource_name(id) {
            return Ok(None);
        }
        let name = id.to_owned();
        found(self.volumes().get_volume(GetVolumeRequest { name }).await)
    }

    /// A volume of this cluster, or of none.
    ///
    /// # Errors
    ///
    /// [`CallError::NotFound`], [`CallError::Control`].
    pub async fn volume(&self, id: &str) -> Result<Volume, CallError> {
        let volume = self.any_volume(id).await?;
        let own = volume.filter(|volume| self.is_own(volume.metadata.as_ref()));
        own.ok_or_else(|| CallError::no_volume(id))
    }

    /// A snapshot of this cluster, or of none; nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`CallError::Control`].
    pub async fn find_snapshot(&self, id: &str) -> Result<Option<Snapshot>, CallError> {
        if !is_resource_name(id) {
            return Ok(None);
        }
        let name = id.to_owned();
        let snapshot = found(self.snapshots().get_snapshot(GetSnapshotRequest { name }).await)?;
        Ok(snapshot.filter(|snapshot: &Snapshot| self.is_own(snapshot.metadata.as_ref())))
    }

    /// A snapshot of several volumes of this cluster, or of none; nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`CallError::Control`].
    pub async fn find_group_snapshot(&self, id: &str) -> Result<Option<GroupSnapshot>, CallError> {
        if !is_resource_name(id) {
            return Ok(None);
        }
        let request = GetGroupSnapshotRequest { name: id.to_owned() };
        let snapshot = found(self.group_snapshots().get_group_snapshot(request).await)?;
        Ok(snapshot.filter(|snapshot: &GroupSnapshot| self.is_own(snapshot.metadata.as_ref())))
    }

    /// Whether something is of this cluster, or of none.
    pub fn is_own(&self, metadata: Option<&pollux_api::control::v1::Metadata>) -> bool {
        let cluster = metadata.and_then(|metadata| metadata.labels.get(label::CLUSTER));
        cluster.is_none_or(|cluster| cluster == self.cluster.name())
    }
}

/// What was found; nothing if it is not there.
fn found<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if reason(&status) == Some(Reason::NotFound) => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// The reason that the control plane gives.
pub fn reason(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain != pollux_api::CONTROL_ERROR_DOMAIN {
        return None;
    }
    Reason::from_str_name(&format!("REASON_{}", info.reason))
}

impl From<Status> for CallError {
    /// What the control plane refused, in the codes of CSI.
    fn from(status: Status) -> Self {
        let code = match reason(&status) {
            Some(Reason::FieldInvalid | Reason::PageTokenInvalid) => Code::InvalidArgument,
            // Of a snapshot that is lost nothing will ever be made: for orchestrators it is gone.
            Some(Reason::NotFound | Reason::SnapshotLost) => Code::NotFound,
            Some(Reason::NameTaken) => Code::AlreadyExists,
            Some(Reason::RevisionStale | Reason::Contended | Reason::Deleting) => Code::Aborted,
            Some(Reason::InUse) => Code::FailedPrecondition,
            Some(Reason::NoPlace) => Code::ResourceExhausted,
            Some(
                Reason::NotReady | Reason::StoreUnavailable | Reason::NotLeader | Reason::RecordsRestored,
            ) => Code::Unavailable,
            Some(Reason::Unauthenticated | Reason::RoleInsufficient) => Code::PermissionDenied,
            // Nothing is known of it that an orchestrator could act on.
            Some(_) => Code::Internal,
            // Without a reason it does not come from the control plane but from the way to it.
            None => match status.code() {
                Code::DeadlineExceeded | Code::Cancelled => Code::DeadlineExceeded,
                Code::Unimplemented => Code::Internal,
                _ => Code::Unavailable,
            },
        };
        let message = match status.message() {
            "" => "the connection to the control plane was lost".to_owned(),
            message => format!("control plane: {message}"),
        };
        Self::Control { code, message }
    }
}

/// Pauses of somebody who waits for something: short ones at first.
#[derive(Debug)]
pub struct Waiting {
    began: Instant,
    pause: Duration,
    patience: Duration,
}

impl Default for Waiting {
    fn default() -> Self {
        Self::at_most(PATIENCE)
    }
}

impl Waiting {
    /// For at most this long.
    pub fn at_most(patience: Duration) -> Self {
        Self {
            began: Instant::now(),
            pause: PAUSE_FIRST,
            patience,
        }
    }

    /// A pause.
    ///
    /// # Errors
    ///
    /// [`CallError::Patience`] if it has taken too long.
    pub async fn pause(&mut self, kind: &'static str, id: &str, state: &str) -> Result<(), CallError> {
        if self.began.elapsed() >= self.patience {
            return Err(CallError::Patience {
                kind,
                id: id.to_owned(),
                seconds: self.patience.as_secs(),
                state: state.to_owned(),
            });
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(reason: &str, domain: &str) -> Code {
        let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
        let status = Status::with_error_details(Code::FailedPrecondition, "no", details);
        CallError::from(status).code()
    }

    #[test]
    fn refusals_have_codes_that_orchestrators_understand() {
        let domain = pollux_api::CONTROL_ERROR_DOMAIN;
        for (reason, code) in [
            ("IN_USE", Code::FailedPrecondition),
            ("DELETING", Code::Aborted),
            ("CONTENDED", Code::Aborted),
            ("NO_PLACE", Code::ResourceExhausted),
            ("FIELD_INVALID", Code::InvalidArgument),
            ("STORE_DAMAGED", Code::Internal),
            ("SOMETHING_NEW", Code::Unavailable),
        ] {
            assert_eq!(refused(reason, domain), code, "{reason}");
        }
        assert_eq!(refused("IN_USE", "elsewhere"), Code::Unavailable);
    }

    #[test]
    fn addresses_are_checked_when_they_are_given() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let _inside = runtime.as_ref().expect("a runtime").enter();
        let cluster = || Cluster::new("c").expect("a name");
        for (addresses, fits) in [
            ("127.0.0.1:1", true),
            ("a:1,b:2", true),
            ("[::1]:4440", true),
            ("", false),
            ("a b", false),
            ("a", false),
            ("a:", false),
            ("a:0", false),
            ("a:99999", false),
            (":1", false),
            ("::1:4440", false),
            ("a:1,", false),
            ("a:1/path", false),
            ("a:1?query", false),
            ("user@a:1", false),
            ("http://a:1", false),
        ] {
            assert_eq!(
                ControlPlane::new(addresses, None, cluster()).is_ok(),
                fits,
                "{addresses:?}"
            );
        }
        let nowhere = ControlPlane::new("a:1", Some(Path::new("/nonexistent")), cluster());
        assert!(matches!(nowhere, Err(ConnectError::File { .. })));
    }

    #[tokio::test]
    async fn waiting_ends() {
        let mut waiting = Waiting::at_most(Duration::from_millis(20));
        let mut pauses = 0;
        while waiting.pause("volume", "v", "so").await.is_ok() {
            pauses += 1;
        }
        assert!((1..=20).contains(&pauses), "{pauses}");
    }
}
