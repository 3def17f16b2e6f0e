//! What a cluster is asked by its users, again and again until it is so: whom they ask may be away.

use pollux_api::FieldMask;
use pollux_api::control::v1::group_snapshots_client::GroupSnapshotsClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use tonic::Code;
use tonic::transport::Channel;

use crate::cluster::{Cluster, until};

/// How long the control plane waits before it answers: less than a look may take.
const WAIT_US: u64 = 5_000_000;

/// The size of a volume.
pub const VOLUME_BYTES: u64 = 64 << 20;

/// An answer; nothing if nobody answers, or something else is under way: it is asked again.
fn tolerated<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            let is_wrong = matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied);
            assert!(!is_wrong, "{status}");
            None
        }
    }
}

/// Whether something is not there, as the control plane says.
fn is_gone<T>(answer: &Result<T, tonic::Status>) -> Option<()> {
    let status = answer.as_ref().err()?;
    (status.code() == Code::NotFound).then_some(())
}

/// Metadata with a name alone.
pub fn named(name: &str) -> Option<Metadata> {
    Some(Metadata {
        name: name.to_owned(),
        ..Metadata::default()
    })
}

fn limits_alone() -> Option<FieldMask> {
    Some(FieldMask {
        paths: vec!["spec.policy.qos".to_owned()],
    })
}

impl Cluster {
    pub fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone())
    }

    pub async fn create(&self, name: &str, policy: VolumePolicy) {
        self.create_of(name, policy, "").await;
    }

    /// Makes a volume that begins as a snapshot, if one is named.
    pub async fn create_of(&self, name: &str, policy: VolumePolicy, source_snapshot: &str) {
        self.create_sized(name, policy, source_snapshot, VOLUME_BYTES)
            .await;
    }

    /// The same, of a size that is not less than that of the snapshot.
    pub async fn create_sized(
        &self,
        name: &str,
        policy: VolumePolicy,
        source_snapshot: &str,
        size_bytes: u64,
    ) {
        let volume = Volume {
            metadata: named(name),
            spec: Some(VolumeSpec {
                size_bytes,
                policy: Some(policy),
                source_snapshot: source_snapshot.to_owned(),
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = CreateVolumeRequest {
            volume: Some(volume),
            wait_us: None,
        };
        until("a volume", || async {
            let answer = self.volumes().create_volume(request.clone()).await;
            tolerated(answer)
        })
        .await;
    }

    /// Makes a volume that follows a template in all.
    pub async fn create_following(&self, name: &str, template: &str) {
        let volume = Volume {
            metadata: named(name),
            spec: Some(VolumeSpec {
                size_bytes: VOLUME_BYTES,
                template: template.to_owned(),
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = CreateVolumeRequest {
            volume: Some(volume),
            wait_us: None,
        };
        until("a volume", || async {
            tolerated(self.volumes().create_volume(request.clone()).await)
        })
        .await;
    }

    pub async fn create_template(&self, name: &str, policy: VolumePolicy) {
        let template = Template {
            metadata: named(name),
            spec: Some(TemplateSpec { policy: Some(policy) }),
        };
        let request = CreateTemplateRequest {
            template: Some(template),
        };
        until("a template", || async {
            let mut templates = TemplatesClient::new(self.channel.clone());
            tolerated(templates.create_template(request.clone()).await)
        })
        .await;
    }

    /// Gives a template other limits, and leaves the rest of it alone.
    pub async fn limit_template(&self, name: &str, qos: Qos) {
        let policy = VolumePolicy {
            qos: Some(qos),
            ..VolumePolicy::default()
        };
        let request = UpdateTemplateRequest {
            template: Some(Template {
                metadata: named(name),
                spec: Some(TemplateSpec { policy: Some(policy) }),
            }),
            update_mask: limits_alone(),
        };
        until("a template", || async {
            let mut templates = TemplatesClient::new(self.channel.clone());
            tolerated(templates.update_template(request.clone()).await)
        })
        .await;
    }

    /// Gives a volume limits of its own, or none of its own.
    pub async fn limit(&self, name: &str, qos: Option<Qos>) {
        let request = UpdateVolumeRequest {
            volume: Some(Volume {
                metadata: named(name),
                spec: Some(VolumeSpec {
                    policy: Some(VolumePolicy {
                        qos,
                        ..VolumePolicy::default()
                    }),
                    ..VolumeSpec::default()
                }),
                status: None,
            }),
            update_mask: limits_alone(),
        };
        until("a volume", || async {
            tolerated(self.volumes().update_volume(request.clone()).await)
        })
        .await;
    }

    /// The status of a volume, if it is there and the control plane answers.
    pub async fn status(&self, name: &str) -> Option<VolumeStatus> {
        let name = name.to_owned();
        let found = self.volumes().get_volume(GetVolumeRequest { name }).await.ok()?;
        found.into_inner().status
    }

    /// What a volume was asked to be.
    pub async fn spec(&self, name: &str) -> VolumeSpec {
        until("a volume", || async {
            let name = name.to_owned();
            let found = self.volumes().get_volume(GetVolumeRequest { name }).await.ok()?;
            found.into_inner().spec
        })
        .await
    }

    pub async fn until_status(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&VolumeStatus) -> bool,
    ) -> VolumeStatus {
        until(what, || async {
            self.status(name).await.filter(|status| is_so(status))
        })
        .await
    }

    pub async fn until_healthy(&self, name: &str) -> VolumeStatus {
        self.until_status(name, "it is healthy", |status| {
            status.state() == VolumeState::Healthy
        })
        .await
    }

    /// Publishes a volume to a host, and waits until all paths are there.
    pub async fn publish(&self, name: &str, host_nqn: &str, read_only: bool) -> PublishVolumeResponse {
        self.publish_with(name, host_nqn, read_only, None).await
    }

    /// The same, to a host that has to authenticate.
    pub async fn publish_with(
        &self,
        name: &str,
        host_nqn: &str,
        read_only: bool,
        secrets: Option<HostSecrets>,
    ) -> PublishVolumeResponse {
        let request = PublishVolumeRequest {
            name: name.to_owned(),
            host: Some(HostAccess {
                host_nqn: host_nqn.to_owned(),
                read_only,
                ..HostAccess::default()
            }),
            wait_us: Some(WAIT_US),
            secrets,
            ..PublishVolumeRequest::default()
        };
        until("it is published", || async {
            let answer = self
                .volumes()
                .publish_volume(request.clone())
                .await
                .ok()?
                .into_inner();
            answer.ready.then_some(answer)
        })
        .await
    }

    pub async fn unpublish(&self, name: &str, host_nqn: Option<&str>) {
        let request = UnpublishVolumeRequest {
            name: name.to_owned(),
            host_nqn: host_nqn.map(str::to_owned),
            wait_us: Some(WAIT_US),
        };
        until("it is unpublished", || async {
            let answer = self
                .volumes()
                .unpublish_volume(request.clone())
                .await
                .ok()?
                .into_inner();
            answer.ready.then_some(())
        })
        .await;
    }

    pub async fn delete(&self, name: &str) {
        let name = name.to_owned();
        let request = DeleteVolumeRequest { name };
        until("it is deleted", || async {
            tolerated(self.volumes().delete_volume(request.clone()).await)
        })
        .await;
    }

    pub fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// Takes a snapshot, and waits until there is one.
    pub async fn snapshot(&self, name: &str, volume: &str) {
        let snapshot = Snapshot {
            metadata: named(name),
            spec: Some(SnapshotSpec {
                volume: volume.to_owned(),
                ..SnapshotSpec::default()
            }),
            status: None,
        };
        let request = CreateSnapshotRequest {
            snapshot: Some(snapshot),
            wait_us: Some(WAIT_US),
        };
        until("a snapshot", || async {
            tolerated(self.snapshots().create_snapshot(request.clone()).await)
        })
        .await;
        until("it is taken", || async {
            let name = name.to_owned();
            let found = self
                .snapshots()
                .get_snapshot(GetSnapshotRequest { name })
                .await
                .ok()?;
            let state = found.into_inner().status?.state();
            (state == SnapshotState::Ready).then_some(())
        })
        .await;
    }

    /// Deletes a snapshot, and waits until it is gone.
    pub async fn delete_snapshot(&self, name: &str) {
        let name = name.to_owned();
        let request = DeleteSnapshotRequest { name: name.clone() };
        until("it is deleted", || async {
            tolerated(self.snapshots().delete_snapshot(request.clone()).await)
        })
        .await;
        until("it is gone", || async {
            let request = GetSnapshotRequest { name: name.clone() };
            is_gone(&self.snapshots().get_snapshot(request).await)
        })
        .await;
    }

    fn group_snapshots(&self) -> GroupSnapshotsClient<Channel> {
        GroupSnapshotsClient::new(self.channel.clone())
    }

    /// Takes snapshots of several volumes at one instant, and waits until they are there, or could not be
    /// taken: then why.
    pub async fn snapshot_together(&self, name: &str, volumes: &[&str]) -> Result<(), String> {
        let group_snapshot = GroupSnapshot {
            metadata: named(name),
            spec: Some(GroupSnapshotSpec {
                volumes: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
                ..GroupSnapshotSpec::default()
            }),
            status: None,
        };
        let request = CreateGroupSnapshotRequest {
            group_snapshot: Some(group_snapshot),
            wait_us: Some(WAIT_US),
        };
        until("snapshots", || async {
            let mut client = self.group_snapshots();
            tolerated(client.create_group_snapshot(request.clone()).await)
        })
        .await;
        until("they are taken", || async {
            let name = name.to_owned();
            let request = GetGroupSnapshotRequest { name };
            let found = self.group_snapshots().get_group_snapshot(request).await.ok()?;
            let status = found.into_inner().status?;
            match status.state() {
                GroupSnapshotState::Ready => Some(Ok(())),
                GroupSnapshotState::Failed => Some(Err(status.message)),
                _ => None,
            }
        })
        .await
    }

    /// Deletes snapshots of several volumes, and waits until they are gone.
    pub async fn delete_together(&self, name: &str) {
        let name = name.to_owned();
        let request = DeleteGroupSnapshotRequest { name: name.clone() };
        until("they are deleted", || async {
            let mut client = self.group_snapshots();
            tolerated(client.delete_group_snapshot(request.clone()).await)
        })
        .await;
        until("they are gone", || async {
            let request = GetGroupSnapshotRequest { name: name.clone() };
            is_gone(&self.group_snapshots().get_group_snapshot(request).await)
        })
        .await;
    }

    /// All volumes, if the control plane answers.
    pub async fn all_volumes(&self) -> Option<Vec<Volume>> {
        let listed = self
            .volumes()
            .list_volumes(ListVolumesRequest::default())
            .await
            .ok()?;
        Some(listed.into_inner().volumes)
    }

    /// The names of all snapshots, if the control plane answers.
    pub async fn all_snapshots(&self) -> Option<Vec<String>> {
        let listed = self
            .snapshots()
            .list_snapshots(ListSnapshotsRequest::default())
            .await
            .ok()?;
        let snapshots = listed.into_inner().snapshots.into_iter();
        Some(
            snapshots
                .filter_map(|snapshot| Some(snapshot.metadata?.name))
                .collect(),
        )
    }

    /// Lets a volume grow.
    pub async fn resize(&self, name: &str, size_bytes: u64) {
        let volume = Volume {
            metadata: named(name),
            spec: Some(VolumeSpec {
                size_bytes,
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = UpdateVolumeRequest {
            volume: Some(volume),
            update_mask: Some(pollux_api::FieldMask {
                paths: vec!["spec.size_bytes".to_owned()],
            }),
        };
        until("it is to grow", || async {
            tolerated(self.volumes().update_volume(request.clone()).await)
        })
        .await;
    }

    /// Lets all that is on a node go elsewhere, or stay again.
    pub async fn drain(&self, name: &str, drained: bool) {
        let node = Node {
            metadata: named(name),
            spec: Some(NodeSpec {
                drained,
                ..NodeSpec::default()
            }),
            status: None,
        };
        let request = UpdateNodeRequest {
            node: Some(node),
            update_mask: Some(pollux_api::FieldMask {
                paths: vec!["spec.drained".to_owned()],
            }),
        };
        until("it is drained or not", || async {
            let mut nodes = NodesClient::new(self.channel.clone());
            tolerated(nodes.update_node(request.clone()).await)
        })
        .await;
    }
}
