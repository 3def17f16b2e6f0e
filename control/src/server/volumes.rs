//! Calls about volumes.

use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest, Group, GroupSnapshot,
    HostAccess, HostSharing, ListVolumesRequest, ListVolumesResponse, NodeState, PlanVolumeRequest,
    PlanVolumeResponse, PublishVolumeRequest, PublishVolumeResponse, Replica, ReplicaState,
    RollBackVolumeRequest, RollBackVolumeResponse, Snapshot, TargetConfig, Template, UnpublishVolumeRequest,
    UnpublishVolumeResponse, UpdateVolumeRequest, Volume, VolumeChange, VolumePath, VolumePolicy, VolumeSpec,
    VolumeState, VolumeStatus, WatchRequest,
};
use tonic::{Request, Response, Status};

use crate::model::{
    Checker, FieldError, HOSTS_MAX, Kind, Record, Validate, host_nqn, is_being_taken_of, not_whole,
};
use crate::plan::explain_volume;
use crate::security::Action;
use crate::store::Condition;
use crate::world::World;

use super::errors::CallError;
use super::host_secrets;
use super::records::{ChangeStream, Managed, require_name};
use super::snapshots::require_not_lost;
use super::waiting::{Look, Nodes, Wait};
use super::{Services, answer, change_message};

/// What is wrong with a field that users cannot set.
const SET_HERE: &str = "is set by the control plane; leave it empty";

/// What the names of subsystems begin with; one for each volume, so that hosts see only what they may use.
const SUBSYSTEM_PREFIX: &str = "nqn.2026-11.io.pollux:volume:";

#[tonic::async_trait]
impl Managed for Volume {
    fn sanitize(&mut self) {
        self.status = Some(VolumeStatus {
            state: VolumeState::Pending.into(),
            ..VolumeStatus::default()
        });
    }

    fn set(&mut self, update: &Self, path: &str) -> bool {
        let spec = self.spec.get_or_insert_default();
        let VolumeSpec {
            size_bytes,
            template,
            policy,
            group,
            ..
        } = update.spec.clone().unwrap_or_default();
        match path {
            "spec.size_bytes" => spec.size_bytes = size_bytes,
            "spec.template" => spec.template = template,
            "spec.policy" => spec.policy = policy,
            "spec.policy.qos" => {
                let mut own = spec.policy.take().unwrap_or_default();
                own.qos = policy.and_then(|policy| policy.qos);
                // A policy that says nothing is none.
                spec.policy = Some(own).filter(|own| *own != VolumePolicy::default());
            }
            "spec.group" => spec.group = group,
            _ => return false,
        }
        true
    }

    async fn refer(
        &mut self,
        before: Option<&Self>,
        services: &Services,
    ) -> Result<Vec<Condition>, CallError> {
        let size = |volume: &Self| volume.spec.as_ref().map_or(0, |spec| spec.size_bytes);
        match before {
            None => services.new_volume_references(self).await,
            Some(before) if size(self) < size(before) => {
                let description = format!("is less than now, {}: a volume can only grow", size(before));
                Err(CallError::field("volume.spec.size_bytes", &description))
            }
            Some(_) => services.volume_references(self).await,
        }
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let in_use = |by: String| CallError::InUse {
            kind: Kind::Volume,
            name: self.name().to_owned(),
            by,
        };
        let host = self.spec.as_ref().and_then(|spec| spec.hosts.first());
        if let Some(host) = host {
            let by = format!("it is published to {}: unpublish it first", host.host_nqn);
            return Err(in_use(by));
        }
        let snapshots = services.all::<Snapshot>().await?;
        let own = snapshots.iter().find(|snapshot| {
            let status = snapshot.status.as_ref();
            status.is_some_and(|status| status.volume_uid == self.meta().uid) && !snapshot.is_deleting()
        });
        if let Some(snapshot) = own {
            let by = format!("it has the snapshot {}: delete that first", snapshot.name());
            return Err(in_use(by));
        }
        let together = services.all::<GroupSnapshot>().await?;
        let uid = &self.meta().uid;
        let mut together = together.iter();
        match together.find(|group_snapshot| is_being_taken_of(group_snapshot, uid)) {
            Some(group_snapshot) => {
                let name = group_snapshot.name();
                Err(in_use(format!(
                    "group snapshot {name} is being taken of it: wait for that"
                )))
            }
            None => Ok(()),
        }
    }
}

impl Services {
    /// Looks at what a volume names, and returns the conditions that it stays so.
    async fn volume_references(&self, volume: &Volume) -> Result<Vec<Condition>, CallError> {
        let spec = volume.spec.clone().unwrap_or_default();
        let mut conditions = Vec::new();
        if !spec.template.is_empty() {
            let (_, condition) = self
                .refer::<Template>("volume.spec.template", &spec.template)
                .await?;
            conditions.push(condition);
        }
        if !spec.group.is_empty() {
            let (_, condition) = self.refer::<Group>("volume.spec.group", &spec.group).await?;
            conditions.push(condition);
        }
        Ok(conditions)
    }

    async fn new_volume_references(&self, volume: &Volume) -> Result<Vec<Condition>, CallError> {
        let spec = volume.spec.clone().unwrap_or_default();
        let is_secret = |host: &HostAccess| !host.secret_uid.is_empty();
        if let Some(index) = spec.hosts.iter().position(is_secret) {
            let field = format!("volume.spec.hosts[{index}].secret_uid");
            return Err(CallError::field(&field, SET_HERE));
        }
        let mut conditions = self.volume_references(volume).await?;
        if !spec.source_snapshot.is_empty() {
            let field = "volume.spec.source_snapshot";
            let (snapshot, condition) = self.refer::<Snapshot>(field, &spec.source_snapshot).await?;
            require_not_lost(&snapshot)?;
            let least = snapshot.status.as_ref().map_or(0, |status| status.size_bytes);
            if spec.size_bytes < least {
                let description = format!("is less than the {least} bytes of its source");
                return Err(CallError::field("volume.spec.size_bytes", &description));
            }
            conditions.push(condition);
        }
        Ok(conditions)
    }

    /// What the target of a volume serves, as its engine told last.
    fn served(&self, volume: &Volume) -> Option<TargetConfig> {
        let status = volume.status.as_ref()?;
        let shown = self.shown(volume, &status.target_node);
        shown.filter(|target| !target.standby && target.epoch >= status.epoch)
    }

    /// What a node shows of a volume, as its engine told last.
    fn shown(&self, volume: &Volume, node: &str) -> Option<TargetConfig> {
        let observation = self.parts.observations.get(node)?;
        let mut targets = observation.report.targets.iter();
        targets
            .find(|target| target.volume_uid == volume.meta().uid)
            .cloned()
    }

    /// What is still to happen until every node that can be asked shows a volume to a host, standbys
    /// included, and the target serves it; nothing if it is so.
    fn missing(&self, volume: &Volume, nodes: &Nodes, host_nqn: &str) -> Option<String> {
        let mut hosts = volume.spec.iter().flat_map(|spec| &spec.hosts);
        let host = hosts.find(|host| host.host_nqn == host_nqn);
        let secret_uid = host.map_or("", |host| &host.secret_uid);
        let admits = |target: &TargetConfig| {
            let mut hosts = target.hosts.iter();
            hosts.any(|admitted| admitted.host_nqn == host_nqn && admitted.secret_uid == secret_uid)
        };
        let status = volume.status.clone().unwrap_or_default();
        if !is_listed(volume, host_nqn) {
            return Some("it was unpublished meanwhile: publish it again".to_owned());
        }
        let target = &status.target_node;
        if target.is_empty() {
            return Some(match status.message.is_empty() {
                true => "its replicas are being made".to_owned(),
                false => status.message,
            });
        }
        match self.served(volume) {
            None => return Some(format!("node {target} does not serve it yet")),
            Some(served) if !admits(&served) => {
                return Some(format!(
                    "its target on node {target} has not admitted the host yet"
                ));
            }
            Some(_) => {}
        }
        let mut standbys = status.replicas.iter().filter(|replica| {
            let node = nodes.get(&replica.node).and_then(|node| node.status.as_ref());
            let is_online = node.is_some_and(|node| node.state() == NodeState::Online);
            is_online && replica.node != *target && replica.state() != ReplicaState::Assigned
        });
        let is_hidden = |replica: &&Replica| {
            let shown = self.shown(volume, &replica.node);
            !shown.as_ref().is_some_and(admits)
        };
        match standbys.find(is_hidden) {
            Some(hidden) => Some(format!("node {} does not show it to the host yet", hidden.node)),
            None if paths(volume, nodes).is_empty() => Some("no engine has told where it listens".to_owned()),
            None => None,
        }
    }

    /// Whether a volume is there and published to a host.
    async fn is_admitted(&self, name: &str, host_nqn: &str) -> Result<bool, CallError> {
        match self.find::<Volume>(name).await {
            Ok(volume) => Ok(is_listed(&volume, host_nqn)),
            Err(CallError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether no node of a volume shows it to a host that is meant, as engines told last.
    fn is_unpublished(&self, volume: &Volume, is_meant: impl Fn(&str) -> bool) -> bool {
        let status = volume.status.clone().unwrap_or_default();
        let replicas = status.replicas.iter().map(|replica| replica.node.as_str());
        let mut nodes = replicas.chain([status.target_node.as_str()]);
        nodes.all(|node| {
            let shown = self.shown(volume, node);
            shown.is_none_or(|target| !target.hosts.iter().any(|host| is_meant(&host.host_nqn)))
        })
    }
}

/// Whether a volume is published to a host.
fn is_listed(volume: &Volume, host_nqn: &str) -> bool {
    let mut hosts = volume.spec.iter().flat_map(|spec| &spec.hosts);
    hosts.any(|host| host.host_nqn == host_nqn)
}

/// All paths to a volume. The node of the target comes first; the others are standbys.
fn paths(volume: &Volume, nodes: &Nodes) -> Vec<VolumePath> {
    let status = volume.status.clone().unwrap_or_default();
    let replicas = status.replicas.iter().map(|replica| replica.node.as_str());
    let mut paths: Vec<VolumePath> = Vec::new();
    for name in [status.target_node.as_str()].into_iter().chain(replicas) {
        if paths.iter().any(|path| path.node == name) {
            continue;
        }
        let listeners = nodes.get(name).and_then(|node| node.status.as_ref());
        let listeners = listeners.map_or(&[][..], |status| &status.nvmf_listeners);
        paths.extend(listeners.iter().map(|address| VolumePath {
            node: name.to_owned(),
            address: address.clone(),
        }));
    }
    paths
}

/// The host of a request.
fn checked_host(host: Option<HostAccess>) -> Result<HostAccess, CallError> {
    let host = host.ok_or_else(|| CallError::field("host", "is missing"))?;
    let mut errors = Vec::new();
    host_nqn(&host.host_nqn, &mut Checker::new("host.host_nqn", &mut errors));
    if !host.secret_uid.is_empty() {
        errors.push(FieldError {
            field: "host.secret_uid".to_owned(),
            description: SET_HERE.to_owned(),
        });
    }
    match errors.is_empty() {
        true => Ok(host),
        false => Err(CallError::Fields(errors)),
    }
}

/// Whether a host that shares so can bear another one beside it.
fn bears(sharing: HostSharing, other: &HostAccess) -> bool {
    match sharing {
        HostSharing::Unspecified => true,
        HostSharing::None => false,
        HostSharing::Readers => other.read_only,
    }
}

/// Whether a host may use a volume beside those that do: it has to bear them, and they it.
fn require_sharing(
    name: &str,
    spec: &VolumeSpec,
    host: &HostAccess,
    sharing: HostSharing,
) -> Result<(), CallError> {
    let mut others = spec.hosts.iter().filter(|other| other.host_nqn != host.host_nqn);
    let asked_by = |other: &HostAccess| {
        let asked = spec.sharing.get(&other.host_nqn).copied().unwrap_or_default();
        HostSharing::try_from(asked).unwrap_or_default()
    };
    match others.find(|other| !bears(sharing, other) || !bears(asked_by(other), host)) {
        None => Ok(()),
        Some(other) => Err(CallError::InUse {
            kind: Kind::Volume,
            name: name.to_owned(),
            by: format!("it is published to {}: unpublish it there first", other.host_nqn),
        }),
    }
}

/// Whether the replicas of a volume are made.
fn has_replicas(volume: &Volume) -> bool {
    let state = volume.status.as_ref().map(VolumeStatus::state);
    let is_begun = matches!(
        state,
        None | Some(VolumeState::Unspecified | VolumeState::Pending | VolumeState::Creating)
    );
    !is_begun
}

#[tonic::async_trait]
impl Volumes for Services {
    type WatchVolumesStream = ChangeStream<VolumeChange>;

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        self.permit(&request, Action::Provision)?;
        let wait = Wait::of(request.get_ref().wait_us, request.metadata())?;
        let volume = self.create(request.into_inner().volume).await?;
        answer!(self.await_record(wait, volume, has_replicas).await?)
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListVolumesResponse {
            volumes: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn update_volume(&self, request: Request<UpdateVolumeRequest>) -> Result<Response<Volume>, Status> {
        self.permit(&request, Action::Provision)?;
        let UpdateVolumeRequest { volume, update_mask } = request.into_inner();
        answer!(self.update(volume, update_mask).await?)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        self.permit(&request, Action::Provision)?;
        self.mark_gone::<Volume>(&request.into_inner().name).await?;
        answer!(DeleteVolumeResponse {})
    }

    async fn publish_volume(
        &self,
        request: Request<PublishVolumeRequest>,
    ) -> Result<Response<PublishVolumeResponse>, Status> {
        self.permit(&request, Action::Provision)?;
        let wait = Wait::of(request.get_ref().wait_us, request.metadata())?;
        let request = request.into_inner();
        let sharing = request.sharing();
        let PublishVolumeRequest {
            name, host, secrets, ..
        } = request;
        require_name(&name)?;
        let host = checked_host(host)?;
        host_secrets::check(secrets.as_ref())?;
        let admit = |volume: &mut Volume| {
            if volume.is_deleting() {
                return Err(CallError::Deleting {
                    kind: Kind::Volume,
                    name: name.clone(),
                });
            }
            if let Some(why) = volume.status.as_ref().and_then(not_whole) {
                return Err(CallError::NotReady {
                    name: name.clone(),
                    why,
                });
            }
            let spec = volume.spec.get_or_insert_default();
            require_sharing(&name, spec, &host, sharing)?;
            match sharing {
                HostSharing::Unspecified => spec.sharing.remove(&host.host_nqn),
                asked => spec.sharing.insert(host.host_nqn.clone(), asked.into()),
            };
            let hosts = &mut spec.hosts;
            match hosts.iter().find(|known| known.host_nqn == host.host_nqn) {
                Some(known) if known.read_only == host.read_only => {}
                Some(_) => {
                    let description = "is not as it was published to that host: unpublish it first";
                    return Err(CallError::field("host.read_only", description));
                }
                None if hosts.len() >= HOSTS_MAX => {
                    return Err(CallError::field(
                        "host",
                        &format!("is one more than {HOSTS_MAX} hosts"),
                    ));
                }
                None => hosts.push(host.clone()),
            }
            Ok(())
        };
        let volume = self.admit(&name, &host.host_nqn, secrets.as_ref(), admit).await?;
        // Once somebody has unpublished it, or it will never be made, there is nothing to wait for.
        let is_over = |volume: &Volume, nodes: &Nodes| {
            !is_listed(volume, &host.host_nqn)
                || volume.status.as_ref().map(VolumeStatus::state) == Some(VolumeState::Failed)
                || self.missing(volume, nodes, &host.host_nqn).is_none()
        };
        let Look { volume, nodes, .. } = self.await_volume(wait, volume, is_over).await?;
        let missing = self.missing(&volume, &nodes, &host.host_nqn);
        answer!(PublishVolumeResponse {
            subsystem_nqn: format!("{SUBSYSTEM_PREFIX}{}", volume.meta().uid),
            namespace_uuid: volume.meta().uid.clone(),
            paths: paths(&volume, &nodes),
            ready: missing.is_none(),
            state: volume.status.as_ref().map_or(0, |status| status.state),
            message: missing.unwrap_or_default(),
        })
    }

    async fn unpublish_volume(
        &self,
        request: Request<UnpublishVolumeRequest>,
    ) -> Result<Response<UnpublishVolumeResponse>, Status> {
        self.permit(&request, Action::Provision)?;
        let wait = Wait::of(request.get_ref().wait_us, request.metadata())?;
        let UnpublishVolumeRequest {
            name, host_nqn: nqn, ..
        } = request.into_inner();
        require_name(&name)?;
        if let Some(nqn) = &nqn {
            let mut errors = Vec::new();
            host_nqn(nqn, &mut Checker::new("host_nqn", &mut errors));
            // It may have been admitted when names were not looked at as closely.
            if !errors.is_empty() && !self.is_admitted(&name, nqn).await? {
                return Err(CallError::Fields(errors).into());
            }
        }
        let is_meant = |host: &str| nqn.as_ref().is_none_or(|nqn| nqn == host);
        let volume = match self.refuse(&name, is_meant).await {
            Err(CallError::NotFound { .. }) => return answer!(UnpublishVolumeResponse { ready: true }),
            changed => changed?,
        };
        let is_unpublished = |volume: &Volume, _: &Nodes| self.is_unpublished(volume, is_meant);
        match self.await_volume(wait, volume, is_unpublished).await {
            Ok(look) => answer!(UnpublishVolumeResponse { ready: look.done }),
            // Deleted meanwhile: nobody uses it.
            Err(CallError::NotFound { .. }) => answer!(UnpublishVolumeResponse { ready: true }),
            // Engines may show it still.
            Err(CallError::Deleting { .. }) => answer!(UnpublishVolumeResponse { ready: false }),
            Err(error) => Err(error.into()),
        }
    }

    async fn roll_back_volume(
        &self,
        request: Request<RollBackVolumeRequest>,
    ) -> Result<Response<RollBackVolumeResponse>, Status> {
        self.permit(&request, Action::Provision)?;
        let wait = Wait::of(request.get_ref().wait_us, request.metadata())?;
        answer!(self.roll_back(wait, request.into_inner()).await?)
    }

    async fn plan_volume(
        &self,
        request: Request<PlanVolumeRequest>,
    ) -> Result<Response<PlanVolumeResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let volume = request.into_inner().volume;
        let mut volume = volume.ok_or_else(|| CallError::field("volume", "is missing"))?;
        let errors = volume.field_errors();
        if !errors.is_empty() {
            return Err(CallError::Fields(errors).into());
        }
        volume.sanitize();
        self.new_volume_references(&volume).await?;
        let explain = |world: &World| explain_volume(world, &self.parts.limits, &volume);
        answer!(self.view(explain).await?)
    }

    async fn watch_volumes(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchVolumesStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(VolumeChange, volume_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}
