//! `pollux up`: a whole cluster on this machine, in one directory: a control plane on the embedded store, and
//! engines with a pool in a file each, all on the loopback interface.
//!
//! Everything is a process of its own, as in a cluster of several machines. What is kept is in the directory:
//! `cluster.json` (the ports, chosen when the cluster is made), `control/`, and a folder for each engine.

mod children;
pub(in crate::cli) mod demo;

use std::fs::{File, TryLockError};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::{
    CreateNodeRequest, CreatePoolRequest, GetPoolRequest, MediaClass, Metadata, Node, NodeSpec, Pool,
    PoolSpec, PoolState,
};
use pollux_ports::KeptPorts;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connection::{Access, Channel, CommandError, connect};
use crate::size::Size;
use children::{Child, Program};
pub(in crate::cli) use children::{UnderArguments, under};

/// Engines of a cluster on one machine, if nothing else is said.
const ENGINES_DEFAULT: u32 = 3;

/// Engines of a cluster on one machine.
const ENGINES_MAX: u32 = 9;

/// Characters of a path that mean something else in a URI.
const ENCODED_IN_PATHS: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#');

/// What a control plane tells once it listens.
const CONTROL_ANSWERS: &str = "pollux-control answers at ";

/// How often it is looked whether everything runs still.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Where a control plane answers unless told otherwise.
const CONTROL_PORT: u16 = 4440;

/// How long the cluster may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it waits for a pool before it says so.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause before it is looked again whether something is ready.
const PAUSE: Duration = Duration::from_millis(50);

/// `up`.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct UpArguments {
    /// Where everything of the cluster is kept; made if it is not there.
    #[arg(long, value_name = "DIRECTORY", default_value = "pollux-cluster")]
    directory: PathBuf,

    /// How many engines it has, 1 to 9, when it is made [default: 3].
    #[arg(long, value_name = "N")]
    engines: Option<u32>,

    /// The size of each engine's pool when the cluster is made; files take no more space than what is in
    /// them.
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    size: Size,

    /// Seconds without a report after which an engine counts as unreachable, and its targets move.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    unreachable_after: u64,

    /// So much of a pool's capacity the sizes of its replicas may add up to: space is only taken when it is
    /// written.
    #[arg(long, value_name = "PERCENT", default_value_t = 200)]
    overcommit: u32,
}

/// Where everything listens: the same for as long as the directory is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    control: SocketAddr,
    engines: Vec<EngineLayout>,
}

/// Where one engine listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EngineLayout {
    name: String,
    /// For the control plane and other engines.
    agent: SocketAddr,
    /// For hosts.
    nvmf: SocketAddr,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> CommandError {
    let path = path.to_owned();
    move |error| CommandError::File {
        path: path.clone(),
        reason: error.to_string(),
    }
}

impl Layout {
    /// That of the directory, chosen now if there is none, and its ports as long as they are kept.
    fn of(arguments: &UpArguments, control: &str) -> Result<(Self, KeptPorts), CommandError> {
        let path = arguments.directory.join("cluster.json");
        let fail = failed(&path);
        match std::fs::read(&path) {
            Ok(text) => {
                let layout: Self = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
                let engines = layout.engines.len();
                if arguments.engines.is_some_and(|wanted| wanted as usize != engines) {
                    return Err(CommandError::Refused(format!(
                        "the cluster in {} was made with --engines {engines}, and keeps them: leave that \
                         out, or give another --directory",
                        arguments.directory.display()
                    )));
                }
                let kept = KeptPorts::again(layout.addresses());
                layout.addresses().try_for_each(require_free)?;
                return Ok((layout, kept));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let engines = arguments.engines.unwrap_or(ENGINES_DEFAULT);
        if !(1..=ENGINES_MAX).contains(&engines) {
            return Err(CommandError::Refused(format!("--engines is 1 to {ENGINES_MAX}")));
        }
        let wanted: SocketAddr = control
            .parse()
            .map_err(|_| CommandError::Refused(format!("--control {control} is no ADDRESS:PORT")))?;
        require_free(wanted)?;
        let mut kept = KeptPorts::again([wanted].into_iter().filter(|wanted| wanted.port() != 0));
        let drawn = KeptPorts::draw(1 + 2 * engines as usize).map_err(&fail)?;
        let (first, rest) = drawn
            .addresses()
            .split_first()
            .ok_or_else(|| fail(std::io::ErrorKind::Other.into()))?;
        let engines = (1..).zip(rest.chunks_exact(2)).filter_map(|(number, pair)| {
            let [agent, nvmf] = pair else { return None };
            Some(EngineLayout {
                name: format!("n{number}"),
                agent: *agent,
                nvmf: *nvmf,
            })
        });
        let layout = Self {
            control: match wanted.port() {
                0 => *first,
                _ => wanted,
            },
            engines: engines.collect(),
        };
        kept.add(drawn);
        let text = serde_json::to_vec_pretty(&layout).map_err(|error| fail(error.into()))?;
        std::fs::write(&path, text).map_err(&fail)?;
        Ok((layout, kept))
    }

    /// Where its processes listen.
    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let engines = self.engines.iter().flat_map(|engine| [engine.agent, engine.nvmf]);
        engines.chain([self.control])
    }
}

/// An error if somebody listens there: who does would be taken for a part of this cluster, and told to make
/// nodes and pools.
fn require_free(address: SocketAddr) -> Result<(), CommandError> {
    let listened = TcpListener::bind(address);
    listened.map(drop).map_err(|error| {
        let port = address.port();
        let mend = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "see who does with `ss -ltnp sport = :{port}` and end that, or make another cluster with \
                 --directory and --control"
            ),
            _ => "give an address of this machine with --control".to_owned(),
        };
        CommandError::Refused(format!(
            "nothing of this cluster can listen at {address}: {error}; {mend}"
        ))
    })
}

/// Makes a directory, and takes it for one cluster: as long as the file is there, nobody else gets it.
fn take(directory: &Path) -> Result<File, CommandError> {
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    let path = directory.join("lock");
    let open = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let lock = open.map_err(failed(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(CommandError::Refused(format!(
            "the cluster in {} runs already: end that, or give another --directory and --control",
            directory.display()
        ))),
        Err(TryLockError::Error(error)) => Err(failed(&path)(error)),
    }
}

/// What ends a command: Ctrl-C, SIGTERM, or that its terminal is closed.
struct Signals([Signal; 3]);

impl Signals {
    fn watch() -> Result<Self, CommandError> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one.
    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// A cluster that runs. What is still running is killed when it is dropped.
struct LocalCluster {
    layout: Layout,
    directory: PathBuf,
    control: Child,
    engines: Vec<Child>,
    channel: Channel,
    /// Nobody else is given the ports of processes that are away.
    _ports: KeptPorts,
    /// Nobody else has the directory.
    _lock: File,
}

impl LocalCluster {
    /// Starts everything, and waits until it is ready for volumes.
    async fn start(arguments: &UpArguments, control: &str) -> Result<Self, CommandError> {
        let directory = std::path::absolute(&arguments.directory).map_err(failed(&arguments.directory))?;
        let lock = take(&directory)?;
        let (layout, ports) = Layout::of(arguments, control)?;
        let store = directory.join("control");
        std::fs::create_dir_all(&store).map_err(failed(&store))?;
        let mut control = Child::start(
            Program::Control,
            &[
                "serve".to_owned(),
                "--store".to_owned(),
                format!("file:{}", store.join("store.redb").display()),
                "--listen".to_owned(),
                layout.control.to_string(),
                "--http".to_owned(),
                http_beside(layout.control).to_string(),
                "--unreachable-after".to_owned(),
                arguments.unreachable_after.to_string(),
                "--overcommit".to_owned(),
                arguments.overcommit.to_string(),
            ],
            &store.join("log"),
        )?;
        let mut engines = Vec::new();
        for engine in &layout.engines {
            engines.push(start_engine(&directory, &layout, engine, arguments.size.0)?);
        }
        let channel = reach(layout.control, &mut control).await?;
        let mut cluster = Self {
            layout,
            directory,
            control,
            engines,
            channel,
            _ports: ports,
            _lock: lock,
        };
        cluster.register().await?;
        Ok(cluster)
    }

    /// Has the control plane know all engines and their pools, and waits until these can be used.
    async fn register(&mut self) -> Result<(), CommandError> {
        let mut nodes = NodesClient::new(self.channel.clone());
        let mut pools = PoolsClient::new(self.channel.clone());
        for engine in &self.layout.engines {
            let node = Node {
                metadata: metadata(&engine.name),
                spec: Some(NodeSpec {
                    address: engine.agent.to_string(),
                    ..NodeSpec::default()
                }),
                status: None,
            };
            nodes.create_node(CreateNodeRequest { node: Some(node) }).await?;
            let file = self.directory.join(&engine.name).join("pool.img");
            let pool = Pool {
                metadata: metadata(&pool_of(&engine.name)),
                spec: Some(PoolSpec {
                    node: engine.name.clone(),
                    devices: vec![device_uri(&file)?],
                    media: MediaClass::Scratch.into(),
                    ..PoolSpec::default()
                }),
                status: None,
            };
            pools.create_pool(CreatePoolRequest { pool: Some(pool) }).await?;
        }
        let began = Instant::now();
        for (engine, process) in self.layout.engines.iter().zip(&mut self.engines) {
            let name = pool_of(&engine.name);
            let mut is_told = false;
            loop {
                process.require_running()?;
                let pool = pools.get_pool(GetPoolRequest { name: name.clone() }).await?;
                let status = pool.into_inner().status.unwrap_or_default();
                if status.state() == PoolState::Online {
                    break;
                }
                if !is_told && began.elapsed() > PATIENCE {
                    is_told = true;
                    // There is nobody to tell that nobody can be told.
                    let _ = writeln!(std::io::stderr(), "waiting for pool {name} {}", status.message);
                }
                if began.elapsed() > READY_TIMEOUT {
                    return Err(CommandError::Refused(format!(
                        "pool {name} is not online: {}; look at {}",
                        status.message,
                        self.directory.join(&engine.name).join("log").display()
                    )));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Kills an engine, as a loss of power would.
    async fn kill(&mut self, name: &str) -> Result<(), CommandError> {
        let at = self.position(name)?;
        match self.engines.get_mut(at) {
            Some(engine) => engine.kill().await,
            None => Ok(()),
        }
    }

    /// Starts an engine again.
    fn restart(&mut self, name: &str) -> Result<(), CommandError> {
        let at = self.position(name)?;
        if let (Some(engine), Some(layout)) = (self.engines.get_mut(at), self.layout.engines.get(at)) {
            *engine = start_engine(&self.directory, &self.layout, layout, 0)?;
        }
        Ok(())
    }

    fn position(&self, name: &str) -> Result<usize, CommandError> {
        let mut engines = self.layout.engines.iter();
        let found = engines.position(|engine| engine.name == name);
        found.ok_or_else(|| CommandError::Refused(format!("there is no engine {name}")))
    }

    /// What has ended since the last time, which nobody had asked for.
    fn newly_ended(&mut self) -> Vec<String> {
        let engines = self.layout.engines.iter().zip(&mut self.engines);
        let mut told = Vec::new();
        for (engine, process) in engines {
            if let Some(ended) = process.newly_ended() {
                let settings = self.directory.join(&engine.name).join("engine.toml");
                told.push(format!(
                    "{}: {ended}; `pollux-engine serve --config {}` starts it again, and so does the next \
                     `pollux up`",
                    engine.name,
                    settings.display()
                ));
            }
        }
        told.extend(self.control.newly_ended().map(|ended| ended.to_string()));
        told
    }

    /// Ends everything in good order: engines first, which report that to the control plane.
    async fn stop(mut self) -> Result<(), CommandError> {
        for engine in &self.engines {
            engine.terminate();
        }
        let mut done = Ok(());
        for engine in &mut self.engines {
            // One that failed is no reason to kill the others, which are about to flush.
            done = done.and(engine.wait().await);
        }
        self.control.terminate();
        done.and(self.control.wait().await)
    }
}

/// The URI of a file that holds a pool.
fn device_uri(file: &Path) -> Result<String, CommandError> {
    let path = file.to_str().ok_or_else(|| CommandError::File {
        path: file.to_owned(),
        reason: "is not in UTF-8: give another --directory".to_owned(),
    })?;
    let path = utf8_percent_encode(path, ENCODED_IN_PATHS);
    Ok(format!("uring://{path}?block=4096"))
}

fn pool_of(engine: &str) -> String {
    format!("{engine}.pool")
}

fn metadata(name: &str) -> Option<Metadata> {
    Some(Metadata {
        name: name.to_owned(),
        ..Metadata::default()
    })
}

/// Starts an engine, with a file for its pool if there is none yet.
fn start_engine(
    directory: &Path,
    layout: &Layout,
    engine: &EngineLayout,
    pool_bytes: u64,
) -> Result<Child, CommandError> {
    let own = directory.join(&engine.name);
    std::fs::create_dir_all(&own).map_err(failed(&own))?;
    let pool = own.join("pool.img");
    if !pool.exists() {
        let file = std::fs::File::create(&pool).map_err(failed(&pool))?;
        file.set_len(pool_bytes).map_err(failed(&pool))?;
    }
    let settings = format!(
        "[nvmf]\nlisten = [\"{}\"]\nsubsystem = \"nqn.2026-11.io.pollux:{}\"\n\n[log]\nformat = \"json\"\n\n\
         [cluster]\nnode = \"{}\"\ncontrol = [\"{}\"]\nlisten = \"{}\"\nstate = {:?}\n",
        engine.nvmf,
        engine.name,
        engine.name,
        layout.control,
        engine.agent,
        own.join("state"),
    );
    let file = own.join("engine.toml");
    std::fs::write(&file, settings).map_err(failed(&file))?;
    let arguments = [
        "serve".to_owned(),
        "--config".to_owned(),
        file.display().to_string(),
    ];
    Child::start(Program::Engine, &arguments, &own.join("log"))
}

/// Where the control plane answers by HTTP: beside its port if that is the usual one. Otherwise any free
/// port, as the one beside may be an engine's.
fn http_beside(control: SocketAddr) -> SocketAddr {
    let port = match control.port() {
        CONTROL_PORT => CONTROL_PORT + 1,
        _ => 0,
    };
    SocketAddr::new(control.ip(), port)
}

/// Connects to a control plane that has just been started, once it says itself that it listens: whoever else
/// may answer there is not asked for anything.
async fn reach(address: SocketAddr, control: &mut Child) -> Result<Channel, CommandError> {
    let began = Instant::now();
    while !control.has_told(CONTROL_ANSWERS) {
        control.require_running()?;
        if began.elapsed() > READY_TIMEOUT {
            return Err(control.not_ready());
        }
        tokio::time::sleep(PAUSE).await;
    }
    let access = Access {
        address: address.to_string(),
        ..Access::default()
    };
    connect(&access).await
}

/// Runs a cluster until it is told to stop.
pub(in crate::cli) async fn up(
    arguments: &UpArguments,
    control: &str,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let mut signals = Signals::watch()?;
    let mut cluster = tokio::select! {
        cluster = LocalCluster::start(arguments, control) => cluster?,
        () = signals.any() => return Err(CommandError::Refused("ended before it was ready".to_owned())),
    };
    let address = cluster.layout.control;
    let count = cluster.layout.engines.len();
    let engines = match count {
        1 => "one engine".to_owned(),
        _ => format!("{count} engines"),
    };
    writeln!(
        into,
        "A cluster of {engines} is ready in {}.\n",
        cluster.directory.display()
    )?;
    for engine in &cluster.layout.engines {
        writeln!(into, "  {}  hosts connect to {}", engine.name, engine.nvmf)?;
    }
    let flag = match address.to_string() == "127.0.0.1:4440" {
        true => String::new(),
        false => format!(" --control {address}"),
    };
    // One for each engine, up to three.
    let replicas = count.min(3);
    writeln!(
        into,
        "\nMake a volume, and let a host use it:\n\n  pollux{flag} volume create v1 --size 1GiB --replicas \
         {replicas} --wait\n  pollux{flag} volume publish v1 --host nqn.2026-11.example:host --wait\n\n\
         Ctrl-C stops it; `pollux up` goes on from there."
    )?;
    into.flush()?;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = signals.any() => break,
            _ = looks.tick() => for ended in cluster.newly_ended() {
                writeln!(into, "{ended}")?;
                into.flush()?;
            },
        }
    }
    // The terminal may be gone.
    let _ = writeln!(into, "stopping; another Ctrl-C kills everything");
    tokio::select! {
        stopped = cluster.stop() => stopped,
        () = signals.any() => {
            let killed = "killed before everything had ended in good order; `pollux up` goes on from there";
            Err(CommandError::Refused(killed.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests;
