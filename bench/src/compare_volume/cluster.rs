//! A cluster of processes on loopback, as an operator has it: a control plane, and engines with a pool and
//! one reactor each. It ends, and leaves nothing behind, when it is dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pollux_api::FieldMask;
use pollux_api::control::v1::events_client::EventsClient;
use pollux_api::control::v1::measurements_client::MeasurementsClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    CreateNodeRequest, CreatePoolRequest, CreateVolumeRequest, DeviceRole, Event, GetMeasurementsRequest,
    GetVolumeRequest, HostAccess, LabelRule, ListEventsRequest, ListNodesRequest, ListPoolsRequest,
    MediaClass, Metadata, Node, NodeSpec, OperationKind, PageRequest, PlacementPolicy, Pool, PoolSpec,
    PoolState, PublishVolumeRequest, PublishVolumeResponse, UpdateNodeRequest, UpdateVolumeRequest, Volume,
    VolumePolicy, VolumeSpec, VolumeState, VolumeStatus,
};
use pollux_ports::KeptPorts;
use tonic::transport::{Channel, Endpoint};

use super::Error;

/// Engines of a cluster, and so the most replicas of a volume.
pub const ENGINES: usize = 3;

/// Who uses the volumes.
pub const HOST: &str = "nqn.2026-11.io.pollux:bench-host";

/// The label by which a volume is kept on one node.
const NODE_LABEL: &str = "bench-node";

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(40);

/// The pause before it is looked again whether something is so.
const PAUSE: Duration = Duration::from_millis(5);

/// Seconds without a report after which an engine counts as dead.
const UNREACHABLE_AFTER_SECONDS: u64 = 2;

/// Events that are looked at.
const EVENTS_MAX: u32 = 1000;

/// What engines keep their pools on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Memory, which is gone with the engine.
    Memory {
        /// The size of each pool.
        bytes: u64,
    },
    /// A sparse file.
    File {
        /// The size of each pool.
        bytes: u64,
    },
}

/// The programs and the place of a cluster.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `pollux-engine`.
    pub engine: PathBuf,
    /// `pollux-control`.
    pub control: PathBuf,
    /// Where directories are made.
    pub directory: PathBuf,
    /// The core of each engine's reactor, if they are pinned.
    pub cores: Vec<usize>,
}

/// A process, killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Engine {
    name: String,
    agent: SocketAddr,
    nvmf: SocketAddr,
    process: Option<Process>,
}

/// See the module.
pub struct Cluster {
    setup: Setup,
    engines: Vec<Engine>,
    control_address: SocketAddr,
    /// Nobody else is given the ports of processes that are away.
    _ports: KeptPorts,
    channel: Channel,
    _control: Process,
    directory: tempfile::TempDir,
}

fn start(program: &Path, arguments: &[&str], log: &Path) -> Result<Process, Error> {
    let log = File::options().create(true).append(true).open(log)?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn();
    child.map(Process).map_err(|error| Error::Run {
        program: program.display().to_string(),
        error,
    })
}

fn named(name: &str, label: Option<&str>) -> Option<Metadata> {
    let labels = label.map(|value| (NODE_LABEL.to_owned(), value.to_owned()));
    Some(Metadata {
        name: name.to_owned(),
        labels: labels.into_iter().collect(),
        ..Metadata::default()
    })
}

impl Cluster {
    /// Starts everything, and waits until volumes can be made.
    pub async fn start(setup: &Setup, backing: Backing) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("pollux-bench-")
            .tempdir_in(&setup.directory)?;
        let ports = KeptPorts::draw(1 + 2 * ENGINES)?;
        let (control_address, rest) = ports
            .addresses()
            .split_first()
            .ok_or_else(|| Error::Odd("there are no ports".to_owned()))?;
        let store = format!("file:{}", directory.path().join("store").display());
        let unreachable_after = UNREACHABLE_AFTER_SECONDS.to_string();
        let control = start(
            &setup.control,
            &[
                "serve",
                "--store",
                &store,
                "--http",
                "none",
                "--listen",
                &control_address.to_string(),
                "--unreachable-after",
                &unreachable_after,
            ],
            &directory.path().join("control.log"),
        )?;
        let engines = (1..).zip(rest.chunks_exact(2)).filter_map(|(number, pair)| {
            let [agent, nvmf] = pair else { return None };
            Some(Engine {
                name: format!("n{number}"),
                agent: *agent,
                nvmf: *nvmf,
                process: None,
            })
        });
        let endpoint = Endpoint::from_shared(format!("http://{control_address}"))?;
        let mut cluster = Self {
            setup: setup.clone(),
            engines: engines.collect(),
            control_address: *control_address,
            _ports: ports,
            channel: endpoint.connect_lazy(),
            _control: control,
            directory,
        };
        for at in 0..cluster.engines.len() {
            cluster.start_engine(at)?;
        }
        cluster.register(backing).await?;
        Ok(cluster)
    }

    fn folder(&self, engine: &str) -> PathBuf {
        self.directory.path().join(engine)
    }

    fn start_engine(&mut self, at: usize) -> Result<(), Error> {
        let core = self.setup.cores.get(at).map(ToString::to_string);
        let Some(engine) = self.engines.get(at) else {
            return Ok(());
        };
        let folder = self.folder(&engine.name);
        std::fs::create_dir_all(&folder)?;
        let settings = format!(
            "[nvmf]\nlisten = [\"{}\"]\nsubsystem = \"nqn.2026-11.io.pollux:{}\"\n\n[reactors]\ncores = \
             [{}]\n\n[cluster]\nnode = \"{}\"\ncontrol = [\"{}\"]\nlisten = \"{}\"\nstate = {:?}\n",
            engine.nvmf,
            engine.name,
            core.unwrap_or_default(),
            engine.name,
            self.control_address,
            engine.agent,
            folder.join("state"),
        );
        let file = folder.join("engine.toml");
        std::fs::write(&file, settings)?;
        let arguments = ["serve", "--config", &file.display().to_string()];
        let process = start(&self.setup.engine, &arguments, &folder.join("log"))?;
        if let Some(engine) = self.engines.get_mut(at) {
            engine.process = Some(process);
        }
        Ok(())
    }

    async fn register(&self, backing: Backing) -> Result<(), Error> {
        let nodes = NodesClient::new(self.channel.clone());
        self.until("the control plane answers", async || {
            Ok(nodes.clone().list_nodes(ListNodesRequest::default()).await.ok())
        })
        .await?;
        let mut pools = PoolsClient::new(self.channel.clone());
        for engine in &self.engines {
            let node = Node {
                metadata: named(&engine.name, Some(&engine.name)),
                spec: Some(NodeSpec {
                    address: engine.agent.to_string(),
                    ..NodeSpec::default()
                }),
                status: None,
            };
            nodes
                .clone()
                .create_node(CreateNodeRequest { node: Some(node) })
                .await?;
            let device = match backing {
                Backing::Memory { bytes } => format!("malloc:///pool?size={bytes}&block=4096"),
                Backing::File { bytes } => {
                    let file = self.folder(&engine.name).join("pool");
                    File::create(&file)?.set_len(bytes)?;
                    format!("uring://{}?block=4096", file.display())
                }
            };
            let pool = Pool {
                metadata: named(&format!("{}.pool", engine.name), Some(&engine.name)),
                spec: Some(PoolSpec {
                    node: engine.name.clone(),
                    devices: vec![device],
                    media: MediaClass::Scratch.into(),
                    ..PoolSpec::default()
                }),
                status: None,
            };
            pools.create_pool(CreatePoolRequest { pool: Some(pool) }).await?;
        }
        self.until("all pools are online", async || {
            let listed = pools.clone().list_pools(ListPoolsRequest::default()).await?;
            let is_online = |pool: &Pool| {
                let status = pool.status.as_ref();
                status.is_some_and(|status| status.state() == PoolState::Online)
            };
            Ok(listed.into_inner().pools.iter().all(is_online).then_some(()))
        })
        .await
    }

    /// Waits until something is so.
    pub async fn until<T>(
        &self,
        what: &str,
        look: impl AsyncFn() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Patience {
                    what: what.to_owned(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone())
    }

    /// Makes a volume, on one node alone if it is named, and publishes it.
    pub async fn create(
        &self,
        name: &str,
        bytes: u64,
        replicas: u32,
        only: Option<&str>,
    ) -> Result<PublishVolumeResponse, Error> {
        let require = only.map(|node| LabelRule {
            key: NODE_LABEL.to_owned(),
            values: vec![node.to_owned()],
            ..LabelRule::default()
        });
        let policy = VolumePolicy {
            replicas: Some(replicas),
            placement: Some(PlacementPolicy {
                require: require.into_iter().collect(),
                ..PlacementPolicy::default()
            }),
            ..VolumePolicy::default()
        };
        self.create_with(name, bytes, policy).await
    }

    /// Makes a volume by a policy, and publishes it.
    pub async fn create_with(
        &self,
        name: &str,
        bytes: u64,
        policy: VolumePolicy,
    ) -> Result<PublishVolumeResponse, Error> {
        let volume = Volume {
            metadata: named(name, None),
            spec: Some(VolumeSpec {
                size_bytes: bytes,
                policy: Some(policy),
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = CreateVolumeRequest {
            volume: Some(volume),
            wait_us: None,
        };
        self.volumes().create_volume(request).await?;
        self.until_healthy(name).await?;
        self.publish(name).await
    }

    async fn publish(&self, name: &str) -> Result<PublishVolumeResponse, Error> {
        let request = PublishVolumeRequest {
            name: name.to_owned(),
            host: Some(HostAccess {
                host_nqn: HOST.to_owned(),
                read_only: false,
                ..HostAccess::default()
            }),
            ..PublishVolumeRequest::default()
        };
        let answer = self
            .until("a volume is published", async || {
                let answer = self.volumes().publish_volume(request.clone()).await?.into_inner();
                Ok(answer.ready.then_some(answer))
            })
            .await?;
        // Not only where it is served: all paths are there before anything is measured.
        self.until_healthy(name).await?;
        Ok(answer)
    }

    /// How a volume is.
    pub async fn status(&self, name: &str) -> Result<VolumeStatus, Error> {
        let name = name.to_owned();
        let volume = self.volumes().get_volume(GetVolumeRequest { name }).await?;
        Ok(volume.into_inner().status.unwrap_or_default())
    }

    /// Waits until a volume is so.
    pub async fn until_status(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&VolumeStatus) -> bool,
    ) -> Result<VolumeStatus, Error> {
        let what = format!("volume {name}: {what}");
        self.until(&what, async || Ok(Some(self.status(name).await?).filter(&is_so)))
            .await
    }

    /// Waits until all replicas are in sync.
    pub async fn until_healthy(&self, name: &str) -> Result<VolumeStatus, Error> {
        self.until_status(name, "all replicas are in sync", |status| {
            status.state() == VolumeState::Healthy
        })
        .await
    }

    /// Has a volume keep another number of replicas.
    pub async fn set_replicas(&self, name: &str, replicas: u32) -> Result<(), Error> {
        let request = UpdateVolumeRequest {
            volume: Some(Volume {
                metadata: named(name, None),
                spec: Some(VolumeSpec {
                    policy: Some(VolumePolicy {
                        replicas: Some(replicas),
                        ..VolumePolicy::default()
                    }),
                    ..VolumeSpec::default()
                }),
                status: None,
            }),
            update_mask: Some(FieldMask {
                paths: vec!["spec.policy".to_owned()],
            }),
        };
        self.volumes().update_volume(request).await?;
        Ok(())
    }

    /// Has everything leave a node, or lets it come back.
    pub async fn drain(&self, node: &str, drained: bool) -> Result<(), Error> {
        let request = UpdateNodeRequest {
            node: Some(Node {
                metadata: named(node, None),
                spec: Some(NodeSpec {
                    drained,
                    ..NodeSpec::default()
                }),
                status: None,
            }),
            update_mask: Some(FieldMask {
                paths: vec!["spec.drained".to_owned()],
            }),
        };
        NodesClient::new(self.channel.clone())
            .update_node(request)
            .await?;
        Ok(())
    }

    /// What happened to a volume, oldest first.
    pub async fn events(&self, volume: &str) -> Result<Vec<Event>, Error> {
        let request = ListEventsRequest {
            page: Some(PageRequest {
                size: EVENTS_MAX,
                ..PageRequest::default()
            }),
            subject: format!("volume/{volume}"),
        };
        let listed = EventsClient::new(self.channel.clone())
            .list_events(request)
            .await?;
        Ok(listed.into_inner().events)
    }

    /// Bytes that the engine of a node has written to its drives since it was started.
    pub async fn written_bytes(&self, node: &str) -> Result<u64, Error> {
        let request = GetMeasurementsRequest {
            node: node.to_owned(),
        };
        let mut client = MeasurementsClient::new(self.channel.clone());
        let answer = client.get_measurements(request).await?.into_inner();
        let devices = answer
            .nodes
            .into_iter()
            .filter_map(|node| node.measurements)
            .flat_map(|engine| engine.devices)
            .filter(|device| device.role() == DeviceRole::Drive);
        let writes = devices
            .flat_map(|device| device.operations)
            .filter(|operation| operation.operation() == OperationKind::Write);
        Ok(writes.map(|operation| operation.bytes).sum())
    }

    fn position(&self, node: &str) -> Result<usize, Error> {
        let found = self.engines.iter().position(|engine| engine.name == node);
        found.ok_or_else(|| Error::Odd(format!("there is no node {node:?}")))
    }

    /// Kills the engine of a node.
    pub fn kill(&mut self, node: &str) -> Result<(), Error> {
        let at = self.position(node)?;
        if let Some(engine) = self.engines.get_mut(at) {
            engine.process = None;
        }
        Ok(())
    }

    /// Starts the engine of a node again.
    pub fn restart(&mut self, node: &str) -> Result<(), Error> {
        self.start_engine(self.position(node)?)
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.engines.iter().map(|engine| engine.name.as_str())
    }
}
