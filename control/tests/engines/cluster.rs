//! A cluster of processes, ended with the test.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pollux_api::control::v1::agent_client::AgentClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

/// The size of a pool.
const POOL_BYTES: u64 = 1 << 30;

pub const HOST: &str = "nqn.2026-11.io.pollux:test-host";

/// A process, killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It is gone already, or goes now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this program as another one.
fn start(log: &Path, arguments: &[&str]) -> Process {
    let open = || {
        let file = std::fs::File::options().create(true).append(true).open(log);
        Stdio::from(file.expect("a log"))
    };
    let own = std::env::current_exe().expect("this program");
    let child = Command::new(own)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(open())
        .stderr(open())
        .spawn();
    Process(child.expect("it can be started"))
}

struct Engine {
    name: String,
    agent: SocketAddr,
    nvmf: SocketAddr,
    process: Option<Process>,
}

pub struct Cluster {
    directory: tempfile::TempDir,
    control_address: SocketAddr,
    control: Option<Process>,
    engines: Vec<Engine>,
    channel: Channel,
}

/// Waits until something is so.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn named(name: &str) -> Option<Metadata> {
    Some(Metadata {
        name: name.to_owned(),
        ..Metadata::default()
    })
}

impl Cluster {
    /// So many engines, each with a pool, ready for volumes.
    pub async fn new(count: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let free: Vec<TcpListener> = (0..=2 * count)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"))
            .collect();
        let mut ports = free.iter().map(|port| port.local_addr().expect("an address"));
        let control_address = ports.next().expect("one more");
        let engines = (1..=count).map(|number| Engine {
            name: format!("n{number}"),
            agent: ports.next().expect("one more"),
            nvmf: ports.next().expect("one more"),
            process: None,
        });
        let engines = engines.collect();
        drop(free);
        let endpoint = Endpoint::from_shared(format!("http://{control_address}")).expect("an address");
        let mut cluster = Self {
            directory,
            control_address,
            control: None,
            engines,
            channel: endpoint.connect_lazy(),
        };
        cluster.start_control();
        for at in 0..count {
            let folder = cluster.directory.path().join(&cluster.engines[at].name);
            std::fs::create_dir(&folder).expect("a folder");
            let file = std::fs::File::create(folder.join("pool")).expect("a file");
            file.set_len(POOL_BYTES).expect("a size");
            cluster.start_engine(at);
        }
        cluster.register().await;
        cluster
    }

    async fn register(&self) {
        let nodes = NodesClient::new(self.channel.clone());
        until("the control plane answers", || async {
            nodes.clone().list_nodes(ListNodesRequest::default()).await.ok()
        })
        .await;
        let pools = PoolsClient::new(self.channel.clone());
        for engine in &self.engines {
            let node = Node {
                metadata: named(&engine.name),
                spec: Some(NodeSpec {
                    address: engine.agent.to_string(),
                    ..NodeSpec::default()
                }),
                status: None,
            };
            let request = CreateNodeRequest { node: Some(node) };
            nodes.clone().create_node(request).await.expect("a node");
            let file = self.directory.path().join(&engine.name).join("pool");
            let pool = Pool {
                metadata: named(&format!("{}.pool", engine.name)),
                spec: Some(PoolSpec {
                    node: engine.name.clone(),
                    devices: vec![format!("uring://{}?block=4096", file.display())],
                    media: MediaClass::Scratch.into(),
                    ..PoolSpec::default()
                }),
                status: None,
            };
            let request = CreatePoolRequest { pool: Some(pool) };
            pools.clone().create_pool(request).await.expect("a pool");
        }
        until("all pools are online", || async {
            let listed = pools.clone().list_pools(ListPoolsRequest::default()).await.ok()?;
            let pools = listed.into_inner().pools;
            let is_online = |pool: &Pool| {
                let status = pool.status.as_ref();
                status.is_some_and(|status| status.state() == PoolState::Online)
            };
            pools.iter().all(is_online).then_some(())
        })
        .await;
    }

    pub fn start_control(&mut self) {
        let store = format!("file:{}", self.directory.path().join("store").display());
        let address = self.control_address.to_string();
        let arguments = [
            "pollux-control",
            "serve",
            "--store",
            &store,
            "--http",
            "none",
            "--listen",
            &address,
            "--unreachable-after",
            "2",
        ];
        self.control = Some(start(&self.directory.path().join("control.log"), &arguments));
    }

    /// Kills the control plane.
    pub fn kill_control(&mut self) {
        self.control = None;
    }

    fn start_engine(&mut self, at: usize) {
        let engine = &mut self.engines[at];
        let folder = self.directory.path().join(&engine.name);
        let settings = format!(
            "[nvmf]\nlisten = [\"{}\"]\nsubsystem = \"nqn.2026-11.io.pollux:{}\"\n\n[reactors]\nmemory = \
             \"16MiB\"\n\n[log]\nformat = \"json\"\n\n[cluster]\nnode = \"{}\"\ncontrol = [\"{}\"]\nlisten = \
             \"{}\"\nstate = {:?}\n",
            engine.nvmf,
            engine.name,
            engine.name,
            self.control_address,
            engine.agent,
            folder.join("state"),
        );
        let file = folder.join("engine.toml");
        std::fs::write(&file, settings).expect("a file");
        let file = file.to_str().expect("UTF-8");
        let arguments = ["pollux-engine", "serve", "--config", file];
        engine.process = Some(start(&folder.join("log"), &arguments));
    }

    fn position(&self, name: &str) -> usize {
        let mut engines = self.engines.iter();
        engines.position(|engine| engine.name == name).expect("an engine")
    }

    /// Kills an engine, as a loss of power would.
    pub fn kill(&mut self, name: &str) {
        let at = self.position(name);
        self.engines[at].process = None;
    }

    /// Starts an engine again.
    pub fn restart(&mut self, name: &str) {
        self.start_engine(self.position(name));
    }

    pub fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone())
    }

    pub async fn create(&self, name: &str, policy: VolumePolicy) {
        self.create_of(name, policy, "").await;
    }

    /// Makes a volume that begins as a snapshot, if one is named.
    pub async fn create_of(&self, name: &str, policy: VolumePolicy, source_snapshot: &str) {
        let volume = Volume {
            metadata: named(name),
            spec: Some(VolumeSpec {
                size_bytes: 64 << 20,
                policy: Some(policy),
                source_snapshot: source_snapshot.to_owned(),
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = CreateVolumeRequest { volume: Some(volume) };
        self.volumes().create_volume(request).await.expect("a volume");
    }

    /// The status of a volume, if it is there and the control plane answers.
    pub async fn status(&self, name: &str) -> Option<VolumeStatus> {
        let name = name.to_owned();
        let found = self.volumes().get_volume(GetVolumeRequest { name }).await.ok()?;
        found.into_inner().status
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
        let request = PublishVolumeRequest {
            name: name.to_owned(),
            host: Some(HostAccess {
                host_nqn: host_nqn.to_owned(),
                read_only,
            }),
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
        self.volumes()
            .delete_volume(request)
            .await
            .expect("it is deleted");
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
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
        };
        self.snapshots()
            .create_snapshot(request)
            .await
            .expect("a snapshot");
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
        self.snapshots()
            .delete_snapshot(request)
            .await
            .expect("it is deleted");
        until("it is gone", || async {
            let request = GetSnapshotRequest { name: name.clone() };
            self.snapshots()
                .get_snapshot(request)
                .await
                .is_err()
                .then_some(())
        })
        .await;
    }

    /// The ranges of a snapshot that hold data, or in which it may differ from another one: offset and end of
    /// each, with the size of the volume.
    pub async fn blocks(
        &self,
        name: &str,
        since: &str,
        offset_bytes: u64,
    ) -> Result<(u64, Vec<(u64, u64)>), tonic::Status> {
        let request = StreamSnapshotBlocksRequest {
            name: name.to_owned(),
            since: since.to_owned(),
            offset_bytes,
        };
        let mut blocks = self
            .snapshots()
            .stream_snapshot_blocks(request)
            .await?
            .into_inner();
        let (mut size_bytes, mut ranges) = (0, Vec::new());
        while let Some(page) = blocks.message().await? {
            size_bytes = page.size_bytes;
            let told = page.ranges.iter();
            ranges.extend(told.map(|range| (range.offset_bytes, range.offset_bytes + range.length_bytes)));
        }
        Ok((size_bytes, ranges))
    }

    /// What a host wrote up to now, under another name.
    pub fn copy_state(&self, from: &str, to: &str) {
        let folder = self.directory.path();
        std::fs::copy(folder.join(from), folder.join(to)).expect("it can be copied");
    }

    /// What all engines that run tell of themselves.
    pub async fn reports(&self) -> Vec<EngineReport> {
        let mut reports = Vec::new();
        for engine in self.engines.iter().filter(|engine| engine.process.is_some()) {
            let endpoint = Endpoint::from_shared(format!("http://{}", engine.agent)).expect("an address");
            let mut client = AgentClient::new(endpoint.connect_lazy());
            let report = client.get_report(GetReportRequest {}).await.expect("a report");
            reports.push(report.into_inner());
        }
        reports
    }

    /// A command for an engine, as a leader of some term would give it.
    pub async fn execute(
        &self,
        name: &str,
        term: u64,
        command: engine_command::Command,
    ) -> Result<(), tonic::Status> {
        let engine = &self.engines[self.position(name)];
        let endpoint = Endpoint::from_shared(format!("http://{}", engine.agent)).expect("an address");
        let request = ExecuteRequest {
            term,
            command: Some(EngineCommand {
                command: Some(command),
            }),
        };
        let done = AgentClient::new(endpoint.connect_lazy()).execute(request).await;
        done.map(drop)
    }

    /// A host of a volume: writes for some seconds, and reads everything back; goes on from what was written
    /// before.
    pub fn host(&self, published: &PublishVolumeResponse, name: &str, seconds: u64) -> Host {
        self.host_with(published, name, seconds, &[])
    }

    /// A host of a volume, with more arguments.
    pub fn host_with(
        &self,
        published: &PublishVolumeResponse,
        name: &str,
        seconds: u64,
        more: &[&str],
    ) -> Host {
        let own = std::env::current_exe().expect("this program");
        let state = self.directory.path().join(name);
        let child = Command::new(own)
            .args(["pollux-engine", "verify", "--subsystem", &published.subsystem_nqn])
            .args([
                "--host",
                HOST,
                "--seconds",
                &seconds.to_string(),
                "--blocks",
                "2048",
            ])
            .args(more)
            .arg("--state")
            .arg(state)
            .args(published.paths.iter().map(|path| path.address.as_str()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Host(child.expect("it can be started"))
    }

    /// What everybody has logged: for tests that fail.
    pub fn tell_logs(&self) {
        for name in ["control.log", "n1/log", "n2/log", "n3/log"] {
            let text = std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(60);
            // There is nobody to tell that nobody can be told.
            let _ = writeln!(std::io::stderr(), "--- {name}\n{}", lines[from..].join("\n"));
        }
    }
}

/// A host that writes and reads.
pub struct Host(Child);

impl Host {
    /// Whether it finds no way to the volume, and gives up.
    pub fn fails(&mut self) -> bool {
        !self.0.wait().expect("it ends").success()
    }

    /// What it tells; it has found what it wrote.
    pub fn finished(self) -> serde_json::Value {
        let output = self.0.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the host: {errors}");
        serde_json::from_slice(&output.stdout).expect("a report")
    }
}
