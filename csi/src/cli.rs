//! `pollux-csi`: the two services as processes.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use pollux_api::csi::v1::controller_server::ControllerServer;
use pollux_api::csi::v1::group_controller_server::GroupControllerServer;
use pollux_api::csi::v1::identity_server::IdentityServer;
use pollux_api::csi::v1::node_server::NodeServer;
use pollux_api::csi::v1::snapshot_metadata_server::SnapshotMetadataServer;
use pollux_trace::{Process, TraceArguments, Tracing};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::service::Routes;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::call::{Call, call};
use crate::control::ControlPlane;
use crate::controller::ControllerService;
use crate::hold::{FreezeArguments, freeze};
use crate::host::PathTimes;
use crate::host::linux::LinuxHost;
use crate::identity::IdentityService;
use crate::metrics::{self, Metrics};
use crate::names::Cluster;
use crate::node::{FLUSH_PAUSE, NodeService, NodeSettings, OTHER_PATHS_PATIENCE};
use crate::pods::{PodLabels, PodTimes, PodsOfCluster};
use crate::serve::{listen, serve, socket_path};
use crate::topology::Place;

/// How long what is under way may take after the process was told to end.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// The longest of the times that can be set, in seconds: ten days, which the kernel takes for each of them.
const SECONDS_MAX: i64 = 864_000;

/// The CSI driver: volumes for Kubernetes and other orchestrators.
#[derive(Debug, Parser)]
#[command(
    name = "pollux-csi",
    version,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, publish and delete volumes, by asking the control plane. Any number of it may run.
    Controller(ControllerArguments),
    /// Use volumes on this machine. Runs on each that does, as root.
    Node(NodeArguments),
    /// Call one of the services from a shell.
    Call(CallArguments),
    /// Hold a mounted volume still while a command runs, such as one that takes a snapshot.
    Freeze(FreezeArguments),
}

#[derive(Debug, Args)]
struct CommonArguments {
    /// Where calls are answered.
    #[arg(long, value_name = "unix:///PATH", default_value = "unix:///csi/csi.sock")]
    endpoint: String,

    /// The name of the cluster, among those that share one Pollux.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = Cluster::new)]
    cluster: Cluster,

    /// Where metrics are read by HTTP, at /metrics; left out: nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,

    /// What is logged: error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    log: String,

    #[command(flatten)]
    tracing: TraceArguments,
}

/// Checks what is to be logged. A word that is no level would name a part of a program of which all is
/// logged, and of all others nothing.
fn log_level(text: &str) -> Result<String, String> {
    let is_level = |directive: &str| {
        let is_word = !directive.is_empty() && directive.parse::<LevelFilter>().is_ok();
        is_word || directive.contains('=')
    };
    match text.split(',').all(|directive| is_level(directive.trim())) {
        true => Ok(text.to_owned()),
        false => Err("give error, warn, info, debug or trace, or TARGET=LEVEL,...".to_owned()),
    }
}

#[derive(Debug, Args)]
struct CallArguments {
    /// Where it answers.
    #[arg(long, value_name = "unix:///PATH", default_value = "unix:///csi/csi.sock")]
    endpoint: String,

    /// What is asked.
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Args)]
struct ControllerArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// Where the control plane answers; several with commas between.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4440")]
    control: String,

    /// A directory with authority.pem, own.pem and own.key, as `pollux cert issue --role csi` makes it.
    #[arg(long, value_name = "DIRECTORY")]
    certificates: Option<PathBuf>,

    /// Nodes tell where they stand: volumes are made near those that use them.
    #[arg(long)]
    topology: bool,

    /// Volumes that a node can use at a time, as nodes are told with --volumes; 0: any number. More are
    /// refused, whatever the orchestrator counts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    volumes_per_node: u32,

    /// Label volumes with the pods that use them, and with what those belong to. The API server of
    /// Kubernetes is asked for pods and sets of replicas.
    #[arg(long)]
    pods: bool,

    /// With what the API server is reached, if not by the service account of the pod that this runs in.
    #[arg(long, value_name = "FILE", requires = "pods")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct NodeArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// The name of this node in its cluster.
    #[arg(long, value_name = "NAME")]
    node: String,

    /// Where this node stands, such as zone=z1; may be repeated, for zone, rack and node.
    #[arg(long, value_name = "DOMAIN=NAME")]
    topology: Vec<String>,

    /// Where it is written down what is staged. Has to outlive the process.
    #[arg(
        long,
        value_name = "DIRECTORY",
        default_value = "/var/lib/kubelet/plugins/csi.pollux.io/volumes"
    )]
    records: PathBuf,

    /// Volumes that this node can use at a time; 0: as many as the orchestrator likes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    volumes: u32,

    /// Seconds after which a path that cannot be reached is given up, and requests fail if it was the last
    /// one.
    #[arg(long, value_name = "SECONDS", default_value_t = PathTimes::default().controller_loss_s,
          value_parser = clap::value_parser!(u32).range(0..=SECONDS_MAX))]
    controller_loss: u32,

    /// Seconds after which requests fail while no path can be reached; they leave one for another at once
    /// [default: they wait until the last path is given up].
    #[arg(long, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(0..=SECONDS_MAX))]
    fast_io_fail: Option<u32>,

    /// Seconds between attempts to reach a target again.
    #[arg(long, value_name = "SECONDS", default_value_t = PathTimes::default().reconnect_delay_s,
          value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX))]
    reconnect_delay: u32,

    /// Seconds without a word after which a path counts as lost.
    #[arg(long, value_name = "SECONDS", default_value_t = PathTimes::default().keep_alive_s,
          value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX))]
    keep_alive: u32,

    /// Seconds that a device may take to appear.
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX))]
    device_timeout: u32,
}

/// Does what the command line says.
pub fn run(cli: &Cli) -> ExitCode {
    let done = match &cli.command {
        Command::Controller(arguments) => serve_until_told(&cli.command, &arguments.common),
        Command::Node(arguments) => serve_until_told(&cli.command, &arguments.common),
        Command::Call(arguments) => ask(arguments),
        Command::Freeze(arguments) => hold(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody to tell that nobody can be told.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_until_told(command: &Command, common: &CommonArguments) -> Result<(), Box<dyn Error>> {
    let tracing = logging(command, common)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(answer(command, common));
    // What was begun for a volume goes on to its end, within reason.
    runtime.shutdown_timeout(STOP_PATIENCE);
    tracing.stop();
    done
}

/// For what is done once.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn ask(arguments: &CallArguments) -> Result<(), Box<dyn Error>> {
    let socket = socket_path(&arguments.endpoint)?;
    let answer = runtime()?.block_on(call(socket, &arguments.call))?;
    write!(io::stdout(), "{answer}")?;
    Ok(())
}

fn hold(arguments: &FreezeArguments) -> Result<(), Box<dyn Error>> {
    runtime()?.block_on(freeze(&LinuxHost::default(), arguments))?;
    Ok(())
}

fn logging(command: &Command, common: &CommonArguments) -> Result<Tracing, Box<dyn Error>> {
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let process = Process {
        name: "pollux-csi",
        instance: match command {
            Command::Node(arguments) => &arguments.node,
            Command::Controller(_) | Command::Call(_) | Command::Freeze(_) => "",
        },
    };
    let filter = EnvFilter::try_new(&common.log)?;
    Ok(pollux_trace::start(
        log,
        filter,
        &common.tracing.settings(),
        process,
    )?)
}

impl NodeArguments {
    fn settings(&self) -> Result<NodeSettings, Box<dyn Error>> {
        let host = self.common.cluster.host(&self.node);
        Ok(NodeSettings {
            host: host.map_err(|problem| format!("--node {:?}: {problem}", self.node))?,
            place: Place::parse(&self.topology).map_err(|problem| format!("--topology: {problem}"))?,
            volumes_max: self.volumes,
            records: self.records.clone(),
            times: PathTimes {
                reconnect_delay_s: self.reconnect_delay,
                controller_loss_s: self.controller_loss,
                fast_io_fail_s: self.fast_io_fail,
                keep_alive_s: self.keep_alive,
            },
            device_timeout: Duration::from_secs(self.device_timeout.into()),
            other_paths_patience: OTHER_PATHS_PATIENCE,
            flush_pause: FLUSH_PAUSE,
        })
    }
}

/// Who labels volumes with pods, if that is wanted and possible. Volumes are used without it.
async fn pod_labels(arguments: &ControllerArguments, control: &ControlPlane) -> Option<PodLabels> {
    if !arguments.pods {
        return None;
    }
    match PodsOfCluster::connect(arguments.kubeconfig.as_deref()).await {
        Ok(pods) => Some(PodLabels::new(control.clone(), pods, PodTimes::default())),
        Err(error) => {
            tracing::warn!(%error, "volumes are not labelled with the pods that use them");
            None
        }
    }
}

async fn answer(command: &Command, common: &CommonArguments) -> Result<(), Box<dyn Error>> {
    let (stop, stopped) = watch::channel(false);
    let mut counted = Metrics::default();
    let routes = match command {
        Command::Controller(arguments) => {
            let control = ControlPlane::new(
                &arguments.control,
                arguments.certificates.as_deref(),
                common.cluster.clone(),
            )?;
            counted = counted.with_certificates(control.certificates().cloned());
            let identity = IdentityService::new(arguments.topology, Some(control.clone()));
            let labels = pod_labels(arguments, &control).await;
            let service = ControllerService::new(control)
                .with_volumes_max(arguments.volumes_per_node)
                .with_pods(labels.as_ref().map(PodLabels::notes));
            if let Some(labels) = labels {
                tokio::spawn(labels.run(stopped.clone()));
            }
            Routes::new(IdentityServer::new(identity))
                .add_service(ControllerServer::new(service.clone()))
                .add_service(GroupControllerServer::new(service.clone()))
                .add_service(SnapshotMetadataServer::new(service))
        }
        Command::Node(arguments) => {
            let settings = arguments.settings()?;
            let identity = IdentityService::new(settings.place.message().is_some(), None);
            let node = NodeService::new(Arc::new(LinuxHost::default()), settings)?;
            tokio::spawn(node.clone().keep_paths(stopped.clone()));
            Routes::new(IdentityServer::new(identity)).add_service(NodeServer::new(node))
        }
        // They serve nothing.
        Command::Call(_) | Command::Freeze(_) => return Ok(()),
    };
    if let Some(address) = common.metrics {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| format!("cannot listen at {address}: {error}"))?;
        tokio::spawn(metrics::serve(listener, counted.clone(), stopped.clone()));
    }
    let path = socket_path(&common.endpoint)?;
    let listener = listen(&path).await?;
    writeln!(io::stdout(), "pollux-csi answers at {}", path.display())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut server = tokio::spawn(serve(listener, routes, counted, stopped));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        ended = &mut server => return Ok(ended??),
    }
    stop.send_replace(true);
    match tokio::time::timeout(STOP_PATIENCE, server).await {
        Ok(ended) => Ok(ended??),
        // Whoever is still connected has been waited for long enough.
        Err(_) => Ok(()),
    }
}
