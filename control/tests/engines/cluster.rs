//! A cluster of processes, ended with the test.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pollux_api::control::v1::agent_client::AgentClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::*;
use pollux_control::security::{Authority, Issued, Role};
use pollux_control::store::{EmbeddedStore, EtcdSettings, EtcdStore, Store, restore, write_backup};
use pollux_ports::KeptPorts;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

use crate::calls::named;
use crate::channels::{certificate, is_online, plain_channel, trusted_channel};
use crate::host::Host;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long one look may take: what is asked may have died, and left the question open.
const LOOK: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(20);

/// What a process ends with that says why it cannot go on.
const CANNOT_GO_ON: i32 = 1;

/// The pause before a process is started again that has ended by itself.
const KEEP_PAUSE: Duration = Duration::from_millis(200);

/// How long a slow drive takes.
const SLOW: &str = "write.delay=300ms&flush.delay=300ms";

/// How long a replica may be unfit before it is replaced, in clusters with a slow drive.
const REPLACE_AFTER: &str = "--replace-after=5";

/// The size of a pool.
pub const POOL_BYTES: u64 = 1 << 30;

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
fn start(log: &Path, arguments: &[String]) -> Process {
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
    /// Metrics, by TLS.
    http: SocketAddr,
    process: Slot,
}

/// A process that is to run, and how it is started.
struct Kept {
    process: Process,
    start: Box<dyn Fn() -> Process + Send>,
}

/// A process that comes and goes: nothing while it is to be away.
type Place = Mutex<Option<Kept>>;

fn lock(place: &Place) -> MutexGuard<'_, Option<Kept>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of a process.
#[derive(Default)]
struct Slot(Arc<Place>);

impl Slot {
    /// Starts it; the one before is killed.
    fn start(&self, start: impl Fn() -> Process + Send + 'static) {
        let mut kept = lock(&self.0);
        *kept = None;
        *kept = Some(Kept {
            process: start(),
            start: Box::new(start),
        });
    }

    fn kill(&self) {
        *lock(&self.0) = None;
    }

    fn is_empty(&self) -> bool {
        lock(&self.0).is_none()
    }

    fn signal(&self, signal: Signal) {
        if let Some(kept) = &*lock(&self.0) {
            // One that has ended by itself needs no telling.
            let _ = kill_process(Pid::from_child(&kept.process.0), signal);
        }
    }
}

/// Starts processes again that say that they cannot go on, as a service manager does: one that was killed may
/// hold its address longer than the next one waits for it, and the control plane ends when it finds no etcd.
/// What ended in any other way has a fault, and stays away.
fn keep(places: &[Weak<Place>]) {
    loop {
        std::thread::sleep(KEEP_PAUSE);
        let there: Vec<_> = places.iter().filter_map(Weak::upgrade).collect();
        if there.is_empty() {
            return;
        }
        for place in there {
            if let Some(kept) = lock(&place).as_mut()
                && let Ok(Some(status)) = kept.process.0.try_wait()
                && status.code() == Some(CANNOT_GO_ON)
            {
                kept.process = (kept.start)();
            }
        }
    }
}

/// Where the control plane keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// In a file.
    Embedded,
    /// In an etcd of its own.
    Etcd,
}

/// An etcd, at these ports.
struct Etcd {
    clients: SocketAddr,
    peers: SocketAddr,
    process: Slot,
}

/// How a cluster is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub engines: usize,
    pub records: Records,
    /// By mutual TLS, everything but data.
    pub is_trusted: bool,
    /// The size of each pool.
    pub pool_bytes: u64,
    /// Where traces are sent.
    pub collector: Option<SocketAddr>,
    /// The engine whose drive takes its time.
    pub slow: Option<&'static str>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            engines: 3,
            records: Records::Embedded,
            is_trusted: false,
            pool_bytes: POOL_BYTES,
            collector: None,
            slow: None,
        }
    }
}

pub struct Cluster {
    /// Whom all trust.
    pub authority: Option<Authority>,
    directory: tempfile::TempDir,
    control_address: SocketAddr,
    /// REST and JSON.
    control_http: SocketAddr,
    control: Slot,
    etcd: Option<Etcd>,
    engines: Vec<Engine>,
    collector: Option<SocketAddr>,
    slow: Option<&'static str>,
    pub channel: Channel,
    /// Nobody else is given the ports of processes that are away.
    _ports: KeptPorts,
}

/// Waits until something is so.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Ok(Some(found)) = tokio::time::timeout(LOOK, look()).await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

impl Cluster {
    /// So many engines, each with a pool, ready for volumes.
    pub async fn new(count: usize) -> Self {
        Self::with(Layout {
            engines: count,
            ..Layout::default()
        })
        .await
    }

    /// The same, in some other way.
    pub async fn with(layout: Layout) -> Self {
        let Layout {
            engines: count,
            records,
            is_trusted,
            pool_bytes,
            collector,
            slow,
        } = layout;
        let authority = is_trusted.then(|| Authority::new("test").expect("it can be made"));
        let directory = tempfile::tempdir().expect("a directory");
        let kept = KeptPorts::draw(4 + 3 * count).expect("there are so many");
        let mut ports = kept.addresses().iter().copied();
        let control_address = ports.next().expect("one more");
        let control_http = ports.next().expect("one more");
        let engines = (1..=count).map(|number| Engine {
            name: format!("n{number}"),
            agent: ports.next().expect("one more"),
            nvmf: ports.next().expect("one more"),
            http: ports.next().expect("one more"),
            process: Slot::default(),
        });
        let engines = engines.collect();
        let etcd = (records == Records::Etcd).then(|| Etcd {
            clients: ports.next().expect("one more"),
            peers: ports.next().expect("one more"),
            process: Slot::default(),
        });
        let channel = match &authority {
            Some(authority) => {
                let own = certificate(authority, "test", Role::Admin, 1);
                trusted_channel(control_address, authority, Some(&own))
            }
            None => plain_channel(control_address),
        };
        let cluster = Self {
            authority,
            directory,
            control_address,
            control_http,
            control: Slot::default(),
            etcd,
            engines,
            collector,
            slow,
            channel,
            _ports: kept,
        };
        if let Some(authority) = &cluster.authority {
            cluster.give(
                "control",
                &certificate(authority, "control", Role::Admin, 1),
                authority,
            );
            for engine in &cluster.engines {
                let own = certificate(authority, &engine.name, Role::Engine, 1);
                cluster.give(&engine.name, &own, authority);
            }
        }
        let places = cluster.engines.iter().map(|engine| &engine.process);
        let places = places
            .chain([&cluster.control])
            .chain(cluster.etcd.iter().map(|etcd| &etcd.process));
        let places: Vec<_> = places.map(|slot| Arc::downgrade(&slot.0)).collect();
        std::thread::spawn(move || keep(&places));
        cluster.start_etcd();
        cluster.start_control();
        for at in 0..count {
            let folder = cluster.directory.path().join(&cluster.engines[at].name);
            std::fs::create_dir_all(&folder).expect("a folder");
            let file = std::fs::File::create(folder.join("pool")).expect("a file");
            file.set_len(pool_bytes).expect("a size");
            cluster.start_engine(at);
        }
        cluster.register().await;
        cluster
    }

    /// Gives a process certificates, and an authority to trust. They are read when it is started.
    pub fn give(&self, process: &str, own: &Issued, trusted: &Authority) {
        let folder = self.directory.path().join(process).join("certificates");
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in [
            ("authority.pem", &trusted.issued().certificate),
            ("own.pem", &own.certificate),
            ("own.key", &own.key),
        ] {
            std::fs::write(folder.join(name), text).expect("it can be written");
        }
    }

    /// Where the certificates of a process are, if they are used.
    fn certificates(&self, process: &str) -> Option<PathBuf> {
        let folder = self.directory.path().join(process).join("certificates");
        self.authority.is_some().then_some(folder)
    }

    /// A connection to an engine, as the control plane has it.
    fn agent(&self, engine: &Engine) -> AgentClient<Channel> {
        AgentClient::new(match &self.authority {
            Some(authority) => {
                let own = certificate(authority, "test", Role::Admin, 1);
                trusted_channel(engine.agent, authority, Some(&own))
            }
            None => plain_channel(engine.agent),
        })
    }

    /// Where an engine is called.
    pub fn agent_address(&self, name: &str) -> SocketAddr {
        self.engines[self.position(name)].agent
    }

    /// Where the metrics of an engine are.
    pub fn http_address(&self, name: &str) -> SocketAddr {
        self.engines[self.position(name)].http
    }

    /// Where the control plane is called.
    pub fn control_address(&self) -> SocketAddr {
        self.control_address
    }

    /// Where the control plane is asked by REST.
    pub fn control_http(&self) -> SocketAddr {
        self.control_http
    }

    /// Whether a node is online, if the control plane answers.
    pub async fn is_online(&self, name: &str) -> Option<bool> {
        is_online(self.channel.clone(), name).await
    }

    /// The control plane loses its records: it is started with none but the nodes.
    pub async fn lose_store(&self) {
        self.kill_control();
        std::fs::remove_file(self.directory.path().join("store")).expect("a file");
        self.start_control();
        self.register_nodes().await;
    }

    /// A backup of the records. The control plane is stopped for it.
    pub async fn backup(&self) -> Vec<u8> {
        self.kill_control();
        let store = EmbeddedStore::open(&self.directory.path().join("store")).expect("a store");
        let bytes = write_backup(&store).await.expect("it can be read");
        drop(store);
        self.start_control();
        bytes
    }

    /// The control plane goes on with the records of a backup.
    pub async fn restore(&self, backup: &[u8]) {
        self.kill_control();
        let path = self.directory.path().join("store");
        std::fs::remove_file(&path).expect("a file");
        let store = EmbeddedStore::open(&path).expect("it is new");
        restore(&store, backup).await.expect("it is empty");
        drop(store);
        self.start_control();
    }

    /// The keys of all records. The control plane is stopped for the look.
    pub async fn keys(&self) -> Vec<String> {
        self.kill_control();
        let listed = match &self.etcd {
            Some(etcd) => {
                let settings = EtcdSettings {
                    endpoints: vec![format!("http://{}", etcd.clients)],
                    ..EtcdSettings::default()
                };
                let store = EtcdStore::connect(settings).await.expect("it is there");
                store.list_all("/").await
            }
            None => {
                let store = EmbeddedStore::open(&self.directory.path().join("store")).expect("a store");
                store.list_all("/").await
            }
        };
        self.start_control();
        let entries = listed.expect("it can be read").entries.into_iter();
        entries.map(|entry| entry.key).collect()
    }

    /// The device of the pool of an engine.
    pub fn device(&self, name: &str) -> String {
        let file = self.directory.path().join(name).join("pool");
        match self.slow == Some(name) {
            true => format!("faulty:///uring://{}?inner.block=4096&{SLOW}", file.display()),
            false => format!("uring://{}?block=4096", file.display()),
        }
    }

    async fn register_nodes(&self) {
        let nodes = NodesClient::new(self.channel.clone());
        until("the control plane answers", || async {
            nodes.clone().list_nodes(ListNodesRequest::default()).await.ok()
        })
        .await;
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
        }
    }

    async fn register(&self) {
        self.register_nodes().await;
        let pools = PoolsClient::new(self.channel.clone());
        for engine in &self.engines {
            let pool = Pool {
                metadata: named(&format!("{}.pool", engine.name)),
                spec: Some(PoolSpec {
                    node: engine.name.clone(),
                    devices: vec![self.device(&engine.name)],
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

    /// Starts etcd again, if there is one.
    pub fn start_etcd(&self) {
        let Some(etcd) = &self.etcd else { return };
        let (clients, peers) = (
            format!("http://{}", etcd.clients),
            format!("http://{}", etcd.peers),
        );
        let data = self.directory.path().join("etcd");
        etcd.process.start(move || {
            let child = Command::new("etcd")
                .arg("--data-dir")
                .arg(&data)
                .args(["--listen-client-urls", &clients])
                .args(["--advertise-client-urls", &clients])
                .args(["--listen-peer-urls", &peers])
                .args(["--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            Process(child.expect("it can be started"))
        });
    }

    /// Kills etcd, if there is one; whether there is.
    pub fn kill_etcd(&self) -> bool {
        if let Some(etcd) = &self.etcd {
            etcd.process.kill();
        }
        self.etcd.is_some()
    }

    pub fn start_control(&self) {
        let store = match &self.etcd {
            Some(etcd) => format!("etcd://{}", etcd.clients),
            None => format!("file:{}", self.directory.path().join("store").display()),
        };
        let mut arguments = vec![
            "pollux-control".to_owned(),
            "serve".to_owned(),
            format!("--store={store}"),
            format!("--http={}", self.control_http),
            format!("--listen={}", self.control_address),
            "--unreachable-after=2".to_owned(),
        ];
        if self.slow.is_some() {
            arguments.push(REPLACE_AFTER.to_owned());
        }
        if let Some(collector) = self.collector {
            arguments.push(format!("--tracing-otlp=http://{collector}"));
        }
        if let Some(folder) = self.certificates("control") {
            arguments.push(format!("--certificates={}", folder.display()));
        }
        let log = self.directory.path().join("control.log");
        self.control.start(move || start(&log, &arguments));
    }

    /// Kills the control plane.
    pub fn kill_control(&self) {
        self.control.kill();
    }

    /// All engines stop where they are, and are heard no more, or go on.
    pub fn pause_engines(&self, is_paused: bool) {
        let signal = if is_paused { Signal::STOP } else { Signal::CONT };
        for engine in &self.engines {
            engine.process.signal(signal);
        }
    }

    fn start_engine(&self, at: usize) {
        let engine = &self.engines[at];
        let folder = self.directory.path().join(&engine.name);
        let certificates = self.certificates(&engine.name);
        let certificates = certificates.map_or_else(String::new, |folder| {
            format!(
                "certificates = {folder:?}\n\n[http]\nlisten = \"{}\"\ncertificates = {folder:?}\n",
                engine.http
            )
        });
        let tracing = self.collector.map_or_else(String::new, |collector| {
            format!("[tracing]\notlp = \"http://{collector}\"\n\n")
        });
        let settings = format!(
            "{tracing}[nvmf]\nlisten = [\"{}\"]\nsubsystem = \"nqn.2026-11.io.pollux:{}\"\n\n\
             [reactors]\nmemory = \"16MiB\"\n\n[log]\nformat = \"json\"\n\n\
             [cluster]\nnode = \"{}\"\ncontrol = [\"{}\"]\nlisten = \"{}\"\nstate = {:?}\n{certificates}",
            engine.nvmf,
            engine.name,
            engine.name,
            self.control_address,
            engine.agent,
            folder.join("state"),
        );
        let file = folder.join("engine.toml");
        std::fs::write(&file, settings).expect("a file");
        let arguments = [
            "pollux-engine".to_owned(),
            "serve".to_owned(),
            format!("--config={}", file.display()),
        ];
        let log = folder.join("log");
        engine.process.start(move || start(&log, &arguments));
    }

    fn position(&self, name: &str) -> usize {
        let mut engines = self.engines.iter();
        engines.position(|engine| engine.name == name).expect("an engine")
    }

    /// Kills an engine, as a loss of power would.
    pub fn kill(&self, name: &str) {
        self.engines[self.position(name)].process.kill();
    }

    /// Starts an engine again.
    pub fn restart(&self, name: &str) {
        self.start_engine(self.position(name));
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.engines.iter().map(|engine| engine.name.clone()).collect()
    }

    /// The way to a volume by whichever engine shows it, now or later.
    pub fn anywhere(&self, published: &PublishVolumeResponse) -> PublishVolumeResponse {
        let paths = self.engines.iter().map(|engine| VolumePath {
            node: engine.name.clone(),
            address: engine.nvmf.to_string(),
        });
        PublishVolumeResponse {
            paths: paths.collect(),
            ..published.clone()
        }
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
        for engine in self.engines.iter().filter(|engine| !engine.process.is_empty()) {
            let report = until("a report", || async {
                self.agent(engine).get_report(GetReportRequest {}).await.ok()
            });
            reports.push(report.await.into_inner());
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
        let request = ExecuteRequest {
            term,
            command: Some(EngineCommand {
                command: Some(command),
            }),
        };
        let done = self.agent(engine).execute(request).await;
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
        Host::of(child.expect("it can be started"))
    }

    /// The file of a text.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("it can be written");
        path.display().to_string()
    }

    /// Writes to a volume, and waits until all of its replicas are in sync. Whoever was killed is missed only
    /// when something is written, and until then the volume counts as healthy.
    pub async fn until_whole(&self, volume: &str, state: &str) {
        let published = self.publish(volume, HOST, false).await;
        let host = self.host(&published, state, 1);
        host.finished().await;
        self.until_healthy(volume).await;
    }

    /// What everybody has logged.
    pub fn logs(&self) -> Vec<(&'static str, String)> {
        let names = ["control.log", "n1/log", "n2/log", "n3/log", "n4/log"];
        let read = |name| std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        names.map(|name| (name, read(name))).to_vec()
    }

    /// Tells what everybody has logged: for tests that fail.
    pub fn tell_logs(&self) {
        for (name, text) in self.logs() {
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(60);
            // There is nobody to tell that nobody can be told.
            let _ = writeln!(std::io::stderr(), "--- {name}\n{}", lines[from..].join("\n"));
        }
    }
}
