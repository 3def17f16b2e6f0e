//! A control plane with simulated engines, and the driver in front of it.

pub mod api_server;
#[path = "../../../../control/tests/cluster/common/fleet.rs"]
#[allow(dead_code, reason = "the tests of the control plane use more of it")]
pub mod fleet;
pub mod machine;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pollux_api::control::v1::engine_command::Command;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    self as control, BlockRange, CreateNodeRequest, CreatePoolRequest, CreateTemplateRequest, EngineReport,
    ListReplicaBlocksRequest, ListReplicaBlocksResponse, ListSnapshotsRequest, ListVolumesRequest, Metadata,
    Node, NodeSpec, Pool, PoolSpec, Template, TemplateSpec, VolumePolicy, VolumeSpec,
};
use pollux_api::csi::v1::controller_client::ControllerClient;
use pollux_api::csi::v1::controller_server::ControllerServer;
use pollux_api::csi::v1::group_controller_client::GroupControllerClient;
use pollux_api::csi::v1::group_controller_server::GroupControllerServer;
use pollux_api::csi::v1::identity_server::IdentityServer;
use pollux_api::csi::v1::node_client::NodeClient;
use pollux_api::csi::v1::node_server::NodeServer;
use pollux_api::csi::v1::snapshot_metadata_client::SnapshotMetadataClient;
use pollux_api::csi::v1::snapshot_metadata_server::SnapshotMetadataServer;
use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use pollux_api::csi::v1::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, NodeStageVolumeRequest,
    VolumeCapability,
};
use pollux_control::controller::{Clock, Controller, Observations, Parts, SystemClock};
use pollux_control::engines::{EngineAddress, EngineClient, EngineError};
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{Listening, ServiceParts, Services};
use pollux_control::store::{MemoryStore, Store};
use pollux_csi::control::ControlPlane;
use pollux_csi::controller::ControllerService;
use pollux_csi::host::PathTimes;
use pollux_csi::identity::IdentityService;
use pollux_csi::metrics::Metrics;
use pollux_csi::names::Cluster;
use pollux_csi::node::{NodeService, NodeSettings};
use pollux_csi::pods::PodNotes;
use pollux_csi::serve::{listen, serve};
use pollux_csi::topology::Place;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use fleet::Fleet;
use machine::Machine;

/// For how long volumes are held at most, in ticks of 5 ms: long enough for a busy machine.
const HOLD_TICKS: u64 = 1000;

/// Volumes that a node can use at a time.
pub const VOLUMES_MAX: u32 = 6;

pub const MIB: i64 = 1 << 20;
pub const GIB: i64 = 1 << 30;

/// Engines whose targets have addresses.
#[derive(Debug, Clone)]
struct Addressed(Fleet);

/// Where the targets of a node listen: nodes are called `a`, `b` and so on.
fn listener(node: &str) -> SocketAddr {
    let number = node.bytes().next().unwrap_or(b'a') - b'a' + 1;
    SocketAddr::from(([127, 0, 0, number], 4420))
}

#[tonic::async_trait]
impl EngineClient for Addressed {
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError> {
        self.0.execute(engine, term, command).await
    }

    async fn report(&self, engine: &EngineAddress) -> Result<Arc<EngineReport>, EngineError> {
        let report = self.0.report(engine).await?;
        let mut report = report.as_ref().clone();
        report.nvmf_listeners = vec![listener(&engine.node).to_string()];
        Ok(Arc::new(report))
    }

    /// Two pages, of which the second has what is new. The engine on node a knows nothing.
    async fn blocks(
        &self,
        engine: &EngineAddress,
        request: ListReplicaBlocksRequest,
    ) -> Result<ListReplicaBlocksResponse, EngineError> {
        if engine.node == "a" {
            return Err(EngineError::Refused {
                node: engine.node.clone(),
                reason: "it has no such snapshot".to_owned(),
            });
        }
        let range = |offset_bytes, length_bytes| BlockRange {
            offset_bytes,
            length_bytes,
        };
        let first = request.offset_bytes < 1 << 20;
        Ok(ListReplicaBlocksResponse {
            ranges: match (first, request.since_cut.is_empty()) {
                (true, true) => vec![range(0, 4096), range(8192, 8192), range(65_536, 4096)],
                (true, false) => Vec::new(),
                (false, _) => vec![range(1 << 20, 65_536)],
            },
            next_offset_bytes: first.then_some(1 << 20),
        })
    }
}

/// A control plane with engines a, b and c, each in a zone of its own.
pub struct Pollux {
    pub fleet: Fleet,
    pub address: SocketAddr,
    pub channel: Channel,
    stop: watch::Sender<bool>,
}

impl Drop for Pollux {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl Pollux {
    pub async fn start() -> Self {
        Self::start_on(Arc::new(MemoryStore::default())).await
    }

    pub async fn start_on(store: Arc<dyn Store>) -> Self {
        let nodes = ["a", "b", "c"];
        let fleet = Fleet::new(nodes);
        fleet.lock().hold_ticks = HOLD_TICKS;
        let observations = Arc::new(Observations::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let engines = Addressed(fleet.clone());
        let parts = Parts {
            store: store.clone(),
            engines: Arc::new(engines.clone()),
            clock: clock.clone(),
            limits: Limits::default(),
            observations: observations.clone(),
        };
        let (stop, stopped) = watch::channel(false);
        let leadership = store.lead("test").await.expect("nobody leads");
        let controller = Controller::start(parts, leadership).await;
        tokio::spawn(controller.expect("the store answers").run(stopped.clone()));
        let services = Services::new(ServiceParts {
            store: store.clone(),
            observations: observations.clone(),
            engines: Arc::new(engines.clone()),
            clock: clock.clone(),
            limits: Limits::default(),
            guard: Guard::Local,
        });
        let anywhere = "127.0.0.1:0".parse().expect("an address");
        let listening = Listening::bind(anywhere, None).await.expect("a port");
        let address = listening.address();
        tokio::spawn(listening.serve(services, stopped.clone()));
        // Targets do what they have to, and tell of it as soon as it is so.
        let ticking = fleet.clone();
        tokio::spawn(async move {
            while !*stopped.borrow() {
                ticking.tick(store.as_ref()).await;
                for node in nodes {
                    let engine = EngineAddress {
                        node: node.to_owned(),
                        address: String::new(),
                    };
                    if let Ok(report) = engines.report(&engine).await {
                        observations.put(report, clock.steady_us());
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let pollux = Self {
            fleet,
            address,
            channel: endpoint.connect_lazy(),
            stop,
        };
        for node in nodes {
            pollux.add(node).await;
        }
        pollux
    }

    async fn add(&self, name: &str) {
        let metadata = |name: &str| {
            Some(Metadata {
                name: name.to_owned(),
                ..Metadata::default()
            })
        };
        let node = Node {
            metadata: metadata(name),
            spec: Some(NodeSpec {
                address: format!("{name}:4430"),
                zone: format!("z{name}"),
                ..NodeSpec::default()
            }),
            status: None,
        };
        let request = CreateNodeRequest { node: Some(node) };
        NodesClient::new(self.channel.clone())
            .create_node(request)
            .await
            .expect("it is new");
        let pool = Pool {
            metadata: metadata(&format!("{name}.p")),
            spec: Some(PoolSpec {
                node: name.to_owned(),
                devices: vec!["malloc:///x".to_owned()],
                ..PoolSpec::default()
            }),
            status: None,
        };
        let request = CreatePoolRequest { pool: Some(pool) };
        PoolsClient::new(self.channel.clone())
            .create_pool(request)
            .await
            .expect("it is new");
    }

    /// Waits until the pools of all engines take volumes.
    pub async fn ready(self) -> Self {
        let mut driver = self.controller("default").await;
        for _ in 0..1000 {
            let asked = pollux_api::csi::v1::GetCapacityRequest {
                parameters: [("replicas".to_owned(), "3".to_owned())].into(),
                ..Default::default()
            };
            let answer = driver
                .get_capacity(asked)
                .await
                .expect("it can be asked")
                .into_inner();
            if answer.maximum_volume_size.is_some_and(|size| size.value > 0) {
                return self;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the pools do not come up");
    }

    pub async fn template(&self, name: &str, replicas: u32) {
        let template = Template {
            metadata: Some(Metadata {
                name: name.to_owned(),
                ..Metadata::default()
            }),
            spec: Some(TemplateSpec {
                policy: Some(VolumePolicy {
                    replicas: Some(replicas),
                    ..VolumePolicy::default()
                }),
            }),
        };
        let request = CreateTemplateRequest {
            template: Some(template),
        };
        let mut client = TemplatesClient::new(self.channel.clone());
        client.create_template(request).await.expect("it is new");
    }

    /// Has a volume of a GiB made without the driver.
    pub async fn by_hand(&self, name: &str, labels: BTreeMap<String, String>, policy: Option<VolumePolicy>) {
        let volume = control::Volume {
            metadata: Some(Metadata {
                name: name.to_owned(),
                labels,
                ..Metadata::default()
            }),
            spec: Some(VolumeSpec {
                size_bytes: 1 << 30,
                policy,
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = control::CreateVolumeRequest {
            volume: Some(volume),
            wait_us: None,
        };
        let made = VolumesClient::new(self.channel.clone())
            .create_volume(request)
            .await;
        made.expect("it is new");
    }

    pub fn control(&self, cluster: &str) -> ControlPlane {
        let cluster = Cluster::new(cluster).expect("a name");
        ControlPlane::new(&self.address.to_string(), None, cluster).expect("an address")
    }

    /// A controller service of its own.
    pub async fn controller(&self, cluster: &str) -> ControllerClient<Channel> {
        self.controller_of(cluster, ControllerService::new(self.control(cluster)))
            .await
    }

    /// One that gives a node no more volumes than it can use.
    pub async fn counting_controller(&self, cluster: &str) -> ControllerClient<Channel> {
        let service = ControllerService::new(self.control(cluster)).with_volumes_max(VOLUMES_MAX);
        self.controller_of(cluster, service).await
    }

    /// One that notes which volumes are published elsewhere than before.
    pub async fn noting_controller(&self, cluster: &str, notes: PodNotes) -> ControllerClient<Channel> {
        let service = ControllerService::new(self.control(cluster)).with_pods(Some(notes));
        self.controller_of(cluster, service).await
    }

    async fn controller_of(&self, cluster: &str, service: ControllerService) -> ControllerClient<Channel> {
        let identity = IdentityService::new(false, Some(self.control(cluster)));
        let routes = Routes::new(IdentityServer::new(identity)).add_service(ControllerServer::new(service));
        ControllerClient::new(connect(served(routes).await).await)
    }

    /// A service that takes snapshots of several volumes.
    pub async fn groups(&self, cluster: &str) -> GroupControllerClient<Channel> {
        let service = ControllerService::new(self.control(cluster));
        let routes = Routes::new(GroupControllerServer::new(service));
        GroupControllerClient::new(connect(served(routes).await).await)
    }

    /// A service that tells blocks of snapshots.
    pub async fn metadata(&self, cluster: &str) -> SnapshotMetadataClient<Channel> {
        let service = ControllerService::new(self.control(cluster));
        let routes = Routes::new(SnapshotMetadataServer::new(service));
        SnapshotMetadataClient::new(connect(served(routes).await).await)
    }

    /// What there is in the control plane, by name: volumes and snapshots.
    pub async fn names(&self) -> (Vec<String>, Vec<String>) {
        let name = |metadata: Option<Metadata>| metadata.unwrap_or_default().name;
        let volumes = VolumesClient::new(self.channel.clone())
            .list_volumes(ListVolumesRequest::default())
            .await
            .expect("it answers")
            .into_inner();
        let snapshots = SnapshotsClient::new(self.channel.clone())
            .list_snapshots(ListSnapshotsRequest::default())
            .await
            .expect("it answers")
            .into_inner();
        (
            volumes
                .volumes
                .into_iter()
                .map(|volume| name(volume.metadata))
                .collect(),
            snapshots
                .snapshots
                .into_iter()
                .map(|snapshot| name(snapshot.metadata))
                .collect(),
        )
    }

    /// Waits until engines hold nothing any more, as nothing is on record.
    pub async fn require_empty(&self) {
        for _ in 0..1000 {
            let (volumes, snapshots) = self.names().await;
            let held: usize = {
                let engines = self.fleet.lock();
                let all = engines.engines.values();
                all.map(|engine| engine.replicas.len() + engine.targets.len())
                    .sum()
            };
            if volumes.is_empty() && snapshots.is_empty() && held == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("something is left behind: {:?}", self.names().await);
    }
}

/// Serves at a socket of its own until the test ends, and returns its path.
pub async fn served(routes: Routes) -> PathBuf {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("csi.sock");
    let listener = listen(&path).await.expect("nothing is there");
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let done = serve(listener, routes, Metrics::default(), stopped).await;
        drop((stop, directory));
        done
    });
    path
}

pub async fn connect(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://socket");
    endpoint.connect_with_connector_lazy(connector)
}

/// A node service on a machine in memory.
pub struct Driver {
    pub service: NodeService,
    pub client: NodeClient<Channel>,
    pub machine: Arc<Machine>,
    pub directory: tempfile::TempDir,
    pub node_id: String,
}

pub fn settings(node: &str, records: PathBuf) -> NodeSettings {
    let cluster = Cluster::new("default").expect("a name");
    NodeSettings {
        host: cluster.host(node).expect("a name"),
        place: Place::default(),
        volumes_max: VOLUMES_MAX,
        records,
        times: PathTimes::default(),
        device_timeout: Duration::from_secs(5),
        // All are there when a call is answered, however busy this machine is.
        other_paths_patience: Duration::from_secs(60),
        flush_pause: Duration::from_millis(1),
    }
}

impl Driver {
    pub async fn start(pollux: &Pollux, node: &str) -> Self {
        Self::start_with(pollux, node, |_| {}).await
    }

    pub async fn start_with(pollux: &Pollux, node: &str, change: impl FnOnce(&mut NodeSettings)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let machine = Arc::new(Machine::new(pollux.fleet.clone()));
        let mut settings = settings(node, directory.path().join("records"));
        change(&mut settings);
        let node_id = settings.host.nqn.clone();
        let service = NodeService::new(machine.clone(), settings).expect("it can be made");
        let identity = IdentityService::new(false, None);
        let routes = Routes::new(IdentityServer::new(identity)).add_service(NodeServer::new(service.clone()));
        let client = NodeClient::new(connect(served(routes).await).await);
        Self {
            service,
            client,
            machine,
            directory,
            node_id,
        }
    }
}

impl Driver {
    /// Has a volume made and published to this node; how it is to be staged.
    pub async fn published(&self, pollux: &Pollux, volume: CreateVolumeRequest) -> NodeStageVolumeRequest {
        let mut controller = pollux.controller("default").await;
        let (id, capability) = (volume.name.clone(), volume.volume_capabilities.first().cloned());
        controller.create_volume(volume).await.expect("it is new");
        let publish = ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: self.node_id.clone(),
            volume_capability: capability.clone(),
            ..Default::default()
        };
        let published = controller.controller_publish_volume(publish).await;
        NodeStageVolumeRequest {
            volume_id: id,
            publish_context: published.expect("nobody uses it").into_inner().publish_context,
            staging_target_path: self.directory.path().join("staging").display().to_string(),
            volume_capability: capability,
            ..Default::default()
        }
    }
}

pub fn capability(access_type: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(access_type),
    }
}

pub fn mount(fs_type: &str) -> VolumeCapability {
    let mount = MountVolume {
        fs_type: fs_type.to_owned(),
        ..MountVolume::default()
    };
    capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

pub fn block(mode: Mode) -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), mode)
}

pub fn bytes(required_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange {
        required_bytes,
        limit_bytes: 0,
    })
}

/// How often a call is made again that another one is in the way of, 20 ms apart.
pub const ATTEMPTS_MAX: usize = 2000;

/// A request for a volume of a GiB with one copy.
pub fn new_volume(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: bytes(GIB),
        volume_capabilities: vec![mount("")],
        ..CreateVolumeRequest::default()
    }
}

/// A request for a volume of a GiB with a copy on each engine.
pub fn new_mirror(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        parameters: parameters(&[("replicas", "3")]),
        ..new_volume(name)
    }
}

/// Makes a call until no other one is under way.
pub async fn again<T, F>(what: &str, call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    for _ in 0..ATTEMPTS_MAX {
        match call().await {
            Ok(answer) => return answer.into_inner(),
            Err(status) if status.code() == Code::Aborted => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(status) => panic!("{what}: {status}"),
        }
    }
    panic!("{what}: something is under way for ever");
}

pub fn parameters(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}
