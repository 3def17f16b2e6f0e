//! The gRPC interface, over a real connection.

use std::sync::Arc;

use pollux_api::FieldMask;
use pollux_api::control::v1::events_client::EventsClient;
use pollux_api::control::v1::group_snapshots_client::GroupSnapshotsClient;
use pollux_api::control::v1::groups_client::GroupsClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::registry_client::RegistryClient;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use pollux_control::controller::{Clock, Controller, Observations, Parts};
use pollux_control::engines::GrpcEngines;
use pollux_control::model::Record;
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{Listening, ServiceParts, Services};
use pollux_control::store::{EmbeddedStore, MemoryStore, Store};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::common::fleet::Fleet;
use crate::common::{GIB, VirtualClock, named, volume};

/// A server with its planner and simulated engines.
pub(crate) struct Server {
    pub(crate) channel: Channel,
    _stop: watch::Sender<bool>,
}

impl Server {
    pub(crate) async fn start(store: Arc<dyn Store>, fleet: Fleet) -> Self {
        let observations = Arc::new(Observations::default());
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock::default());
        let (stop, stopped) = watch::channel(false);
        let parts = Parts {
            store: store.clone(),
            engines: Arc::new(fleet.clone()),
            clock: clock.clone(),
            limits: Limits::default(),
            observations: observations.clone(),
        };
        let leadership = store.lead("test").await.expect("nobody leads");
        let controller = Controller::start(parts, leadership)
            .await
            .expect("the store answers");
        tokio::spawn(controller.run(stopped.clone()));
        let services = Services::new(ServiceParts {
            store,
            observations,
            engines: Arc::new(GrpcEngines::default()),
            clock,
            limits: Limits::default(),
            guard: Guard::Local,
        });
        let address = "127.0.0.1:0".parse().expect("an address");
        let listening = Listening::bind(address, None).await.expect("a free port");
        let uri = format!("http://{}", listening.address());
        tokio::spawn(listening.serve(services, stopped));
        let endpoint = Channel::from_shared(uri).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        tokio::spawn(fleet.run(channel.clone()));
        Self { channel, _stop: stop }
    }

    pub(crate) async fn in_memory() -> Self {
        Self::start(Arc::new(MemoryStore::default()), Fleet::default()).await
    }

    pub(crate) fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone())
    }

    /// Waits until that many pools can be used.
    pub(crate) async fn until_online(&self, count: usize) {
        loop {
            let request = ListPoolsRequest::default();
            let pools = PoolsClient::new(self.channel.clone())
                .list_pools(request)
                .await
                .expect("pools");
            let pools = pools.into_inner().pools;
            let states = pools
                .iter()
                .filter_map(|pool| Some(pool.status.as_ref()?.state()));
            if states.filter(|state| *state == PoolState::Online).count() == count {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn add_node(&self, name: &str) {
        let spec = NodeSpec {
            address: format!("{name}:4430"),
            ..NodeSpec::default()
        };
        let node = Node {
            spec: Some(spec),
            ..Node::default()
        };
        let request = CreateNodeRequest {
            node: Some(named(node, name)),
        };
        NodesClient::new(self.channel.clone())
            .create_node(request)
            .await
            .expect("it is new");
        let spec = PoolSpec {
            node: name.to_owned(),
            devices: vec!["malloc:///x".to_owned()],
            ..PoolSpec::default()
        };
        let pool = Pool {
            spec: Some(spec),
            ..Pool::default()
        };
        let request = CreatePoolRequest {
            pool: Some(named(pool, &format!("{name}.p"))),
        };
        PoolsClient::new(self.channel.clone())
            .create_pool(request)
            .await
            .expect("it is new");
    }
}

pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_details_error_info().expect("every error has a reason");
    assert_eq!(details.domain, "control.pollux.io");
    details.reason
}

/// The fields that an answer calls wrong.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(reason(status), "FIELD_INVALID");
    let details = status.get_details_bad_request().expect("it names the fields");
    details
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

pub(crate) fn create(volume: Volume) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume: Some(volume),
        wait_us: None,
    }
}

pub(crate) fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask {
        paths: paths.iter().map(ToString::to_string).collect(),
    })
}

/// Calls with one wrong field each: what the answer has to name.
macro_rules! wrong {
    ($channel:expr, $($client:ident . $call:ident ( $request:expr ) => $field:literal),+ $(,)?) => {
        $({
            let answer = $client::new($channel.clone()).$call($request).await;
            let status = answer.err().unwrap_or_else(|| panic!("{} is taken: {}", stringify!($call), $field));
            assert_eq!(fields(&status), [$field], "{}", stringify!($call));
        })+
    };
}

fn with_name<R: Record>(name: &str) -> Option<R> {
    Some(named(R::default(), name))
}

#[tokio::test]
async fn wrong_fields_of_every_call_are_named() {
    let server = Server::in_memory().await;
    let channel = &server.channel;
    let bad = || "No!".to_owned();
    let spread = VolumePolicy {
        replicas: Some(9),
        ..VolumePolicy::default()
    };
    let with_policy = |policy| TemplateSpec { policy: Some(policy) };
    wrong!(
        channel,
        NodesClient.create_node(CreateNodeRequest { node: None }) => "node",
        NodesClient.create_node(CreateNodeRequest { node: with_name("n") }) => "node.spec",
        NodesClient.get_node(GetNodeRequest { name: bad() }) => "name",
        NodesClient.update_node(UpdateNodeRequest { node: None, update_mask: None }) => "node",
        NodesClient.update_node(UpdateNodeRequest { node: with_name("n"), update_mask: None })
            => "update_mask",
        NodesClient.update_node(UpdateNodeRequest { node: with_name("N"), update_mask: mask(&["x"]) })
            => "node.metadata.name",
        NodesClient.delete_node(DeleteNodeRequest { name: bad() }) => "name",
        PoolsClient.create_pool(CreatePoolRequest { pool: None }) => "pool",
        PoolsClient.create_pool(CreatePoolRequest { pool: with_name("p") }) => "pool.spec",
        PoolsClient.create_pool(CreatePoolRequest { pool: Some(Pool {
            spec: Some(PoolSpec {
                node: "none".to_owned(), devices: vec!["null:///x".to_owned()], ..PoolSpec::default()
            }),
            ..named(Pool::default(), "p")
        }) }) => "pool.spec.node",
        PoolsClient.get_pool(GetPoolRequest { name: bad() }) => "name",
        PoolsClient.update_pool(UpdatePoolRequest { pool: None, update_mask: None }) => "pool",
        PoolsClient.delete_pool(DeletePoolRequest { name: bad() }) => "name",
        VolumesClient.create_volume(CreateVolumeRequest { volume: None, wait_us: None }) => "volume",
        VolumesClient.create_volume(create(named(Volume::default(), "v"))) => "volume.spec",
        VolumesClient.create_volume(create(volume("v", 9))) => "volume.spec.policy.replicas",
        VolumesClient.get_volume(GetVolumeRequest { name: bad() }) => "name",
        VolumesClient.update_volume(UpdateVolumeRequest { volume: None, update_mask: None }) => "volume",
        VolumesClient.delete_volume(DeleteVolumeRequest { name: bad() }) => "name",
        VolumesClient.publish_volume(PublishVolumeRequest { name: bad(), ..Default::default() }) => "name",
        VolumesClient.publish_volume(PublishVolumeRequest { name: "v".to_owned(), ..Default::default() })
            => "host",
        VolumesClient.publish_volume(PublishVolumeRequest {
            name: "v".to_owned(), host: Some(HostAccess::default()), ..Default::default()
        }) => "host.host_nqn",
        VolumesClient.create_volume(CreateVolumeRequest { volume: None, wait_us: Some(30_000_001) })
            => "wait_us",
        VolumesClient.publish_volume(PublishVolumeRequest { wait_us: Some(u64::MAX), ..Default::default() })
            => "wait_us",
        VolumesClient.unpublish_volume(
            UnpublishVolumeRequest { wait_us: Some(u64::MAX), ..Default::default() }
        ) => "wait_us",
        VolumesClient.unpublish_volume(UnpublishVolumeRequest { name: bad(), ..Default::default() })
            => "name",
        VolumesClient.unpublish_volume(UnpublishVolumeRequest {
            name: "v".to_owned(), host_nqn: Some(String::new()), wait_us: None
        }) => "host_nqn",
        VolumesClient.plan_volume(PlanVolumeRequest { volume: None }) => "volume",
        VolumesClient.plan_volume(PlanVolumeRequest { volume: Some(volume("v", 0)) })
            => "volume.spec.policy.replicas",
        SnapshotsClient.create_snapshot(CreateSnapshotRequest { snapshot: None, wait_us: None })
            => "snapshot",
        SnapshotsClient.create_snapshot(CreateSnapshotRequest { snapshot: Some(Snapshot {
            spec: Some(SnapshotSpec { volume: "none".to_owned(), group_snapshot: String::new() }),
            ..named(Snapshot::default(), "s")
        }), wait_us: None }) => "snapshot.spec.volume",
        SnapshotsClient.create_snapshot(
            CreateSnapshotRequest { snapshot: None, wait_us: Some(30_000_001) }
        ) => "wait_us",
        SnapshotsClient.get_snapshot(GetSnapshotRequest { name: bad() }) => "name",
        SnapshotsClient.list_snapshots(ListSnapshotsRequest { page: None, volume: bad() }) => "volume",
        SnapshotsClient.delete_snapshot(DeleteSnapshotRequest { name: bad() }) => "name",
        TemplatesClient.create_template(CreateTemplateRequest { template: None }) => "template",
        TemplatesClient.create_template(CreateTemplateRequest { template: Some(Template {
            spec: Some(with_policy(spread)), ..named(Template::default(), "t")
        }) }) => "template.spec.policy.replicas",
        TemplatesClient.get_template(GetTemplateRequest { name: bad() }) => "name",
        TemplatesClient.update_template(UpdateTemplateRequest { template: None, update_mask: None })
            => "template",
        TemplatesClient.preview_template(UpdateTemplateRequest { template: None, update_mask: None })
            => "template",
        TemplatesClient.delete_template(DeleteTemplateRequest { name: bad() }) => "name",
        GroupsClient.create_group(CreateGroupRequest { group: None }) => "group",
        GroupsClient.get_group(GetGroupRequest { name: bad() }) => "name",
        GroupsClient.update_group(UpdateGroupRequest { group: None, update_mask: None }) => "group",
        GroupsClient.delete_group(DeleteGroupRequest { name: bad() }) => "name",
        GroupSnapshotsClient.create_group_snapshot(
            CreateGroupSnapshotRequest { group_snapshot: None, wait_us: None }
        ) => "group_snapshot",
        GroupSnapshotsClient.create_group_snapshot(
            CreateGroupSnapshotRequest { group_snapshot: None, wait_us: Some(30_000_001) }
        ) => "wait_us",
        GroupSnapshotsClient.get_group_snapshot(GetGroupSnapshotRequest { name: bad() }) => "name",
        GroupSnapshotsClient.delete_group_snapshot(DeleteGroupSnapshotRequest { name: bad() }) => "name",
        EventsClient.list_events(ListEventsRequest { page: None, subject: bad() }) => "subject",
        RegistryClient.report(EngineReport { node: bad(), ..EngineReport::default() }) => "name",
        RegistryClient.get_membership(
            GetMembershipRequest { volume: bad(), ..GetMembershipRequest::default() }
        ) => "volume",
        RegistryClient.swap_membership(
            SwapMembershipRequest { volume: bad(), ..SwapMembershipRequest::default() }
        ) => "volume",
        RegistryClient.get_reservations(
            GetReservationsRequest { volume: bad(), ..GetReservationsRequest::default() }
        ) => "volume",
        RegistryClient.swap_reservations(
            SwapReservationsRequest { volume: bad(), ..SwapReservationsRequest::default() }
        ) => "volume",
        RegistryClient.swap_reservations(
            SwapReservationsRequest {
                volume: "v".to_owned(),
                node: "n".to_owned(),
                next: vec![0; 4097],
                ..SwapReservationsRequest::default()
            }
        ) => "next",
    );
}

#[tokio::test]
async fn all_wrong_fields_are_told_at_once() {
    let server = Server::in_memory().await;
    let mut wrong = volume("Wrong", 9);
    wrong.spec.as_mut().expect("it has one").size_bytes = 1;
    let status = server
        .volumes()
        .create_volume(create(wrong))
        .await
        .expect_err("it is wrong");
    let expected = [
        "volume.metadata.name",
        "volume.spec.size_bytes",
        "volume.spec.policy.replicas",
    ];
    assert_eq!(fields(&status), expected);
    assert!(
        status.message().contains("volume.spec.size_bytes is 1"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn names_make_calls_idempotent() {
    let server = Server::in_memory().await;
    let mut volumes = server.volumes();
    let first = volumes
        .create_volume(create(volume("v", 1)))
        .await
        .expect("it is new")
        .into_inner();
    let again = volumes
        .create_volume(create(volume("v", 1)))
        .await
        .expect("it is the same")
        .into_inner();
    assert_eq!(first.meta().uid, again.meta().uid);
    let other = volumes
        .create_volume(create(volume("v", 2)))
        .await
        .expect_err("it is another");
    assert_eq!(
        (other.code(), reason(&other).as_str()),
        (Code::AlreadyExists, "NAME_TAKEN")
    );
    // Many at once have one result.
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let mut volumes = server.volumes();
            tokio::spawn(async move { volumes.create_volume(create(volume("race", 1))).await })
        })
        .collect();
    let mut uids = std::collections::BTreeSet::new();
    for task in tasks {
        let created = task
            .await
            .expect("it ends well")
            .expect("it is the same")
            .into_inner();
        uids.insert(created.meta().uid.clone());
    }
    assert_eq!(uids.len(), 1);
    // What is not there can be deleted, as often as wanted.
    for _ in 0..2 {
        let request = DeleteVolumeRequest {
            name: "none".to_owned(),
        };
        volumes.delete_volume(request).await.expect("it is not there");
    }
}

#[tokio::test]
async fn updates_change_what_they_name() {
    let server = Server::in_memory().await;
    let mut volumes = server.volumes();
    let created = volumes
        .create_volume(create(volume("v", 1)))
        .await
        .expect("it is new")
        .into_inner();
    let update = |size_bytes, revision, paths: &[&str]| {
        let mut volume = named(Volume::default(), "v");
        volume.meta_mut().revision = revision;
        volume.spec = Some(VolumeSpec {
            size_bytes,
            template: "not meant".to_owned(),
            ..VolumeSpec::default()
        });
        UpdateVolumeRequest {
            volume: Some(volume),
            update_mask: mask(paths),
        }
    };
    let size = ["spec.size_bytes"];
    let grown = volumes
        .update_volume(update(20 * GIB, 0, &size))
        .await
        .expect("it may grow")
        .into_inner();
    let spec = grown.spec.clone().expect("it has one");
    assert_eq!((spec.size_bytes, spec.template.as_str()), (20 * GIB, ""));
    let stale = volumes
        .update_volume(update(30 * GIB, created.meta().revision, &size))
        .await;
    let stale = stale.expect_err("it has changed");
    assert_eq!(
        (stale.code(), reason(&stale).as_str()),
        (Code::Aborted, "REVISION_STALE")
    );
    for (size, paths, field) in [
        (GIB, &["spec.size_bytes"][..], "volume.spec.size_bytes"),
        (GIB, &["spec.hosts"], "update_mask"),
        (GIB, &["status"], "update_mask"),
        (GIB, &["spec.template"], "volume.spec.template"),
    ] {
        let refused = volumes
            .update_volume(update(size, 0, paths))
            .await
            .expect_err(field);
        assert_eq!(fields(&refused), [field]);
    }
}

#[tokio::test]
async fn lists_have_pages_and_tokens_belong_to_them() {
    let server = Server::in_memory().await;
    let mut volumes = server.volumes();
    for number in 0..25 {
        let request = create(volume(&format!("v{number:02}"), 1));
        volumes.create_volume(request).await.expect("it is new");
    }
    let page = |size, token: &str| ListVolumesRequest {
        page: Some(PageRequest {
            size,
            token: token.to_owned(),
        }),
    };
    let mut names = Vec::new();
    let mut token = String::new();
    let mut pages = 0;
    loop {
        let answer = volumes
            .list_volumes(page(10, &token))
            .await
            .expect("a page")
            .into_inner();
        pages += 1;
        names.extend(answer.volumes.iter().map(|volume| volume.name().to_owned()));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..25).map(|number| format!("v{number:02}")).collect();
    assert_eq!((names, pages), (expected, 3));
    let answer = volumes
        .list_volumes(page(10, ""))
        .await
        .expect("a page")
        .into_inner();
    let foreign = ListNodesRequest {
        page: page(10, &answer.next_page_token).page,
    };
    let refused = NodesClient::new(server.channel.clone()).list_nodes(foreign).await;
    assert_eq!(
        reason(&refused.expect_err("it is of another list")),
        "PAGE_TOKEN_INVALID"
    );
    for token in ["x", "zzzzzzzzv01", "00000000v01", "ääääääää"] {
        let refused = volumes.list_volumes(page(10, token)).await.expect_err(token);
        assert_eq!(reason(&refused), "PAGE_TOKEN_INVALID");
    }
}

#[tokio::test]
async fn watches_tell_what_is_and_what_changes() {
    let server = Server::in_memory().await;
    let mut volumes = server.volumes();
    volumes
        .create_volume(create(volume("before", 1)))
        .await
        .expect("it is new");
    let mut changes = volumes
        .watch_volumes(WatchRequest::default())
        .await
        .expect("a watch")
        .into_inner();
    volumes
        .create_volume(create(volume("later", 1)))
        .await
        .expect("it is new");
    let mut seen = std::collections::BTreeSet::new();
    let mut last = 0;
    while !(seen.contains("before") && seen.contains("later")) {
        let change = changes.next().await.expect("more comes").expect("it is told");
        assert!(change.revision >= last);
        last = change.revision;
        if let Some(volume_change::Change::Put(volume)) = change.change {
            assert_eq!(volume.meta().revision, change.revision);
            seen.insert(volume.name().to_owned());
        }
    }
    let request = DeleteVolumeRequest {
        name: "later".to_owned(),
    };
    volumes.delete_volume(request).await.expect("nobody uses it");
    loop {
        let change = changes.next().await.expect("more comes").expect("it is told");
        if change.change == Some(volume_change::Change::Deleted("later".to_owned())) {
            break;
        }
    }
    let request = WatchRequest {
        after_revision: Some(0),
    };
    // The whole history of this young store is there.
    volumes.watch_volumes(request).await.expect("a watch");
}

/// From nothing to a volume that a host may use, and back, on the store that needs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_published_and_taken_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(&directory.path().join("store")).expect("it is new");
    let fleet = Fleet::new(["a", "b", "c"]);
    let server = Server::start(Arc::new(store), fleet.clone()).await;
    for node in ["a", "b", "c"] {
        server.add_node(node).await;
    }
    let mut volumes = server.volumes();
    let plan = PlanVolumeRequest {
        volume: Some(volume("v", 4)),
    };
    let plan = volumes.plan_volume(plan).await.expect("a plan").into_inner();
    assert!(!plan.fits);
    volumes
        .create_volume(create(volume("v", 3)))
        .await
        .expect("it is new");
    let publish = || PublishVolumeRequest {
        name: "v".to_owned(),
        host: Some(HostAccess {
            host_nqn: "nqn.2026-11.x:host".to_owned(),
            read_only: false,
            ..HostAccess::default()
        }),
        ..PublishVolumeRequest::default()
    };
    let published = loop {
        let answer = volumes
            .publish_volume(publish())
            .await
            .expect("it is there")
            .into_inner();
        if answer.ready {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(published.paths.len(), 3);
    assert!(published.subsystem_nqn.ends_with(&published.namespace_uuid));
    let mut otherwise = publish();
    otherwise.host.as_mut().expect("it has one").read_only = true;
    let refused = volumes
        .publish_volume(otherwise)
        .await
        .expect_err("it is published otherwise");
    assert_eq!(fields(&refused), ["host.read_only"]);
    let other = |read_only, sharing: HostSharing| {
        let mut request = publish();
        request.host = Some(HostAccess {
            host_nqn: "nqn.2026-11.x:other".to_owned(),
            read_only,
            ..HostAccess::default()
        });
        request.sharing = sharing.into();
        request
    };
    for sharing in [HostSharing::None, HostSharing::Readers] {
        let refused = volumes
            .publish_volume(other(true, sharing))
            .await
            .expect_err("another host may write");
        assert_eq!(reason(&refused), "IN_USE");
        let again = PublishVolumeRequest {
            sharing: sharing.into(),
            ..publish()
        };
        volumes
            .publish_volume(again)
            .await
            .expect("no other host may use it");
        // Those that come later are held to it.
        let refused = volumes
            .publish_volume(other(false, HostSharing::Unspecified))
            .await
            .expect_err("it cannot be borne");
        assert_eq!(reason(&refused), "IN_USE");
    }
    volumes
        .publish_volume(other(true, HostSharing::Unspecified))
        .await
        .expect("any other host may use it");
    let readers = PublishVolumeRequest {
        sharing: HostSharing::Readers.into(),
        ..publish()
    };
    volumes
        .publish_volume(readers)
        .await
        .expect("the other may not write");
    let spec = volumes
        .get_volume(GetVolumeRequest { name: "v".to_owned() })
        .await
        .expect("it is there")
        .into_inner()
        .spec
        .expect("it has one");
    assert_eq!(spec.sharing.len(), 1, "{:?}", spec.sharing);
    let unpublish = UnpublishVolumeRequest {
        name: "v".to_owned(),
        host_nqn: Some("nqn.2026-11.x:other".to_owned()),
        wait_us: None,
    };
    volumes.unpublish_volume(unpublish).await.expect("it is there");
    let delete = || DeleteVolumeRequest { name: "v".to_owned() };
    let refused = volumes
        .delete_volume(delete())
        .await
        .expect_err("it is published");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "IN_USE")
    );
    let unpublish = || UnpublishVolumeRequest {
        name: "v".to_owned(),
        host_nqn: Some("nqn.2026-11.x:host".to_owned()),
        wait_us: None,
    };
    while !volumes
        .unpublish_volume(unpublish())
        .await
        .expect("it is there")
        .into_inner()
        .ready
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    volumes.delete_volume(delete()).await.expect("nobody uses it");
    volumes.delete_volume(delete()).await.expect("as often as wanted");
    loop {
        let is_empty = {
            let engines = fleet.lock();
            engines
                .engines
                .values()
                .all(|engine| engine.replicas.is_empty() && engine.targets.is_empty())
        };
        if is_empty {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let request = ListEventsRequest {
        page: None,
        subject: "volume/v".to_owned(),
    };
    let events = EventsClient::new(server.channel.clone())
        .list_events(request)
        .await
        .expect("events");
    let messages: Vec<String> = events
        .into_inner()
        .events
        .into_iter()
        .map(|event| event.message)
        .collect();
    assert!(
        messages.iter().any(|message| message == "is healthy"),
        "{messages:?}"
    );
    assert!(
        messages.iter().any(|message| message == "is deleted"),
        "{messages:?}"
    );
    let request = DeleteNodeRequest { name: "a".to_owned() };
    let refused = NodesClient::new(server.channel.clone())
        .delete_node(request)
        .await;
    assert_eq!(reason(&refused.expect_err("its pool is there")), "IN_USE");
}
