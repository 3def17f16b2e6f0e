//! Calls that wait until what they asked for is so, with simulated engines in real time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_api::control::v1::group_snapshots_server::GroupSnapshots;
use pollux_api::control::v1::snapshots_server::Snapshots;
use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::{
    CreateGroupSnapshotRequest, CreateSnapshotRequest, CreateVolumeRequest, GetSnapshotRequest,
    GetVolumeRequest, GroupSnapshot, GroupSnapshotSpec, GroupSnapshotState, HostAccess, Node, NodeSpec, Pool,
    PoolSpec, PublishVolumeRequest, PublishVolumeResponse, Snapshot, SnapshotSpec, SnapshotState,
    UnpublishVolumeRequest, Volume, VolumeState,
};
use pollux_control::controller::{Clock, Controller, Observations, Parts, SystemClock};
use pollux_control::model::Record;
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{Listening, ServiceParts, Services};
use pollux_control::store::MemoryStore;
use tokio::sync::watch;
use tonic::{Request, Status};
use tonic_types::StatusExt;

use crate::common::fleet::Fleet;
use crate::common::{named, put, volume};

const HOST: &str = "nqn.2026-11.x:host";

/// The longest wait there is: whoever is answered sooner did not wait until it was over.
const LONG_US: u64 = 30_000_000;

/// What is answered within this did not wait so long.
const SOON: Duration = Duration::from_secs(20);

/// One instance of a control plane. Several share a store.
struct Instance {
    services: Services,
    parts: Parts,
}

impl Instance {
    fn new(store: &MemoryStore, fleet: &Fleet) -> Self {
        let observations = Arc::new(Observations::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let parts = Parts {
            store: Arc::new(store.clone()),
            engines: Arc::new(fleet.clone()),
            clock: clock.clone(),
            limits: Limits::default(),
            observations: observations.clone(),
        };
        let services = Services::new(ServiceParts {
            store: Arc::new(store.clone()),
            observations,
            engines: Arc::new(fleet.clone()),
            clock,
            limits: Limits::default(),
            guard: Guard::Local,
        });
        Self { services, parts }
    }

    /// Leads, until the sender is gone.
    async fn lead(&self) -> watch::Sender<bool> {
        let (stop, stopped) = watch::channel(false);
        let leadership = self.parts.store.lead("test").await.expect("the lead");
        let controller = Controller::start(self.parts.clone(), leadership).await;
        tokio::spawn(controller.expect("the store answers").run(stopped));
        stop
    }

    /// Engines tell this instance what they have, and ask it who takes part.
    async fn hears(&self, fleet: &Fleet) -> watch::Sender<bool> {
        let (stop, stopped) = watch::channel(false);
        let address = "127.0.0.1:0".parse().expect("an address");
        let listening = Listening::bind(address, None).await.expect("a free port");
        let uri = format!("http://{}", listening.address());
        tokio::spawn(listening.serve(self.services.clone(), stopped));
        let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("an address");
        tokio::spawn(fleet.clone().run(endpoint.connect_lazy()));
        stop
    }

    async fn publish(&self, wait_us: u64) -> Result<PublishVolumeResponse, Status> {
        let request = PublishVolumeRequest {
            name: "v".to_owned(),
            host: Some(HostAccess {
                host_nqn: HOST.to_owned(),
                read_only: false,
                ..HostAccess::default()
            }),
            wait_us: Some(wait_us),
            ..PublishVolumeRequest::default()
        };
        let answer = self.services.publish_volume(Request::new(request)).await?;
        Ok(answer.into_inner())
    }

    async fn unpublish(&self, wait_us: u64) -> bool {
        let request = UnpublishVolumeRequest {
            name: "v".to_owned(),
            host_nqn: None,
            wait_us: Some(wait_us),
        };
        let answer = self.services.unpublish_volume(Request::new(request)).await;
        answer.expect("an answer").into_inner().ready
    }

    async fn create(&self, wait_us: Option<u64>) -> VolumeState {
        let request = CreateVolumeRequest {
            volume: Some(volume("v", 3)),
            wait_us,
        };
        let answer = self.services.create_volume(Request::new(request)).await;
        let made = answer.expect("it is new").into_inner();
        made.status.expect("it has one").state()
    }

    async fn snapshot(&self, wait_us: u64) -> Result<SnapshotState, Status> {
        let snapshot = Snapshot {
            spec: Some(SnapshotSpec {
                volume: "v".to_owned(),
                ..SnapshotSpec::default()
            }),
            ..Snapshot::default()
        };
        let request = CreateSnapshotRequest {
            snapshot: Some(named(snapshot, "s")),
            wait_us: Some(wait_us),
        };
        let answer = self.services.create_snapshot(Request::new(request)).await?;
        Ok(answer.into_inner().status.expect("it has one").state())
    }

    async fn snapshot_together(&self, wait_us: u64) -> GroupSnapshotState {
        let group_snapshot = GroupSnapshot {
            spec: Some(GroupSnapshotSpec {
                volumes: vec!["v".to_owned()],
                ..GroupSnapshotSpec::default()
            }),
            ..GroupSnapshot::default()
        };
        let request = CreateGroupSnapshotRequest {
            group_snapshot: Some(named(group_snapshot, "together")),
            wait_us: Some(wait_us),
        };
        let answer = self.services.create_group_snapshot(Request::new(request)).await;
        let taken = answer.expect("it is new, or the same").into_inner();
        taken.status.expect("it has one").state()
    }

    async fn get(&self) -> Volume {
        let request = GetVolumeRequest { name: "v".to_owned() };
        let answer = self.services.get_volume(Request::new(request)).await;
        answer.expect("it is there").into_inner()
    }

    /// Returns once the host is listed: whoever publishes has begun to wait then.
    async fn until_listed(&self) {
        while self.get().await.spec.expect("it has one").hosts.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Three nodes, each with a pool.
async fn add_nodes(store: &MemoryStore) {
    for name in ["a", "b", "c"] {
        let node = Node {
            spec: Some(NodeSpec {
                address: format!("{name}:4430"),
                ..NodeSpec::default()
            }),
            ..Node::default()
        };
        put(store, &named(node, name)).await;
        let pool = Pool {
            spec: Some(PoolSpec {
                node: name.to_owned(),
                devices: vec!["malloc:///x".to_owned()],
                ..PoolSpec::default()
            }),
            ..Pool::default()
        };
        put(store, &named(pool, &format!("{name}.p"))).await;
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_error_details().error_info().cloned();
    info.map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn calls_return_once_it_is_so() {
    let (store, fleet) = (MemoryStore::default(), Fleet::new(["a", "b", "c"]));
    let instance = Instance::new(&store, &fleet);
    let _lead = instance.lead().await;
    let _hears = instance.hears(&fleet).await;
    add_nodes(&store).await;
    let began = Instant::now();
    let state = instance.create(Some(LONG_US)).await;
    assert!(
        matches!(state, VolumeState::Healthy | VolumeState::Degraded),
        "{state:?}"
    );
    // The first call waits, and the second has nothing to wait for.
    for _ in 0..2 {
        let answer = instance.publish(LONG_US).await.expect("it is there");
        assert!(answer.ready && answer.message.is_empty(), "{answer:?}");
        assert_eq!((answer.state(), answer.paths.len()), (VolumeState::Healthy, 3));
    }
    assert!(instance.publish(0).await.expect("it is there").ready);
    for _ in 0..2 {
        let state = instance.snapshot(LONG_US).await.expect("the volume is there");
        assert_eq!(state, SnapshotState::Ready);
        let state = instance.snapshot_together(LONG_US).await;
        assert_eq!(state, GroupSnapshotState::Ready);
    }
    for _ in 0..2 {
        assert!(instance.unpublish(LONG_US).await);
    }
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn calls_return_when_the_time_is_over() {
    let (store, fleet) = (MemoryStore::default(), Fleet::new(["a"]));
    let instance = Instance::new(&store, &fleet);
    let _lead = instance.lead().await;
    let began = Instant::now();
    // There is no node for it.
    assert_eq!(instance.create(Some(300_000)).await, VolumeState::Pending);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let answer = instance.publish(300_000).await.expect("it is there");
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(!answer.ready && !answer.message.is_empty(), "{answer:?}");
    assert_eq!(answer.state(), VolumeState::Pending);
    // Whoever wants an answer before that gets one before that.
    let mut request = Request::new(PublishVolumeRequest {
        name: "v".to_owned(),
        host: Some(HostAccess {
            host_nqn: HOST.to_owned(),
            read_only: false,
            ..HostAccess::default()
        }),
        wait_us: Some(LONG_US),
        ..PublishVolumeRequest::default()
    });
    request.set_timeout(Duration::from_millis(400));
    let answer = instance
        .services
        .publish_volume(request)
        .await
        .expect("it is there");
    assert!(!answer.into_inner().ready);
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn another_instance_may_begin_to_lead_meanwhile() {
    let (store, fleet) = (MemoryStore::default(), Fleet::new(["a", "b", "c"]));
    let (first, second) = (Instance::new(&store, &fleet), Instance::new(&store, &fleet));
    let lead = first.lead().await;
    first.create(None).await;
    let waiting = async {
        let began = Instant::now();
        let answer = first.publish(LONG_US).await.expect("it is there");
        assert!(answer.ready, "{answer:?}");
        assert!(began.elapsed() < SOON);
    };
    let changing = async {
        first.until_listed().await;
        drop(lead);
        let lead = second.lead().await;
        // Nobody tells the first one anything from here on.
        let hears = second.hears(&fleet).await;
        add_nodes(&store).await;
        (lead, hears)
    };
    let ((), _kept) = tokio::join!(waiting, changing);
}

#[tokio::test]
async fn a_volume_may_go_meanwhile() {
    let (store, fleet) = (MemoryStore::default(), Fleet::new(["a"]));
    let instance = Instance::new(&store, &fleet);
    instance.create(None).await;
    let began = Instant::now();
    let unpublishing = async {
        instance.until_listed().await;
        assert!(instance.unpublish(LONG_US).await);
    };
    let (answer, ()) = tokio::join!(instance.publish(LONG_US), unpublishing);
    let answer = answer.expect("it is there");
    assert!(
        !answer.ready && answer.message.contains("unpublished"),
        "{answer:?}"
    );

    let deleting = async {
        instance.until_listed().await;
        let mut volume = instance.get().await;
        volume.meta_mut().deleted_unix_us = Some(1);
        put(&store, &volume).await;
    };
    let (answer, ()) = tokio::join!(instance.publish(LONG_US), deleting);
    let refused = answer.expect_err("it is being deleted");
    assert_eq!(reason(&refused), "DELETING");
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn snapshots_may_take_longer_or_go_meanwhile() {
    let (store, fleet) = (MemoryStore::default(), Fleet::new(["a", "b", "c"]));
    let instance = Instance::new(&store, &fleet);
    let lead = instance.lead().await;
    let hears = instance.hears(&fleet).await;
    add_nodes(&store).await;
    instance.create(Some(LONG_US)).await;
    // Nobody plans any more.
    drop((lead, hears));
    let began = Instant::now();
    let state = instance.snapshot(300_000).await.expect("the volume is there");
    assert_eq!(state, SnapshotState::Pending);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let deleting = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let name = "s".to_owned();
        let found = instance
            .services
            .get_snapshot(Request::new(GetSnapshotRequest { name }));
        let mut found = found.await.expect("it is there").into_inner();
        found.meta_mut().deleted_unix_us = Some(1);
        put(&store, &found).await;
    };
    let (answer, ()) = tokio::join!(instance.snapshot(LONG_US), deleting);
    assert_eq!(reason(&answer.expect_err("it is being deleted")), "DELETING");
    assert!(began.elapsed() < SOON);
}
