//! This engine as a node of a cluster: what the control plane tells it to be, and what it reports.
//!
//! - [`agent`] takes commands, each of which says what is to be; a command that was done is done again at no
//!   cost. Of several leaders the newest is heard ([`term`]).
//! - [`targets`] has the volumes that are served or shown here. Their records are the control plane's
//!   ([`store`]), and whoever opens a volume asks it first.
//! - `report` tells what is there. It is gathered from pools, replicas and targets each time, so that it is
//!   true after a restart.
//!
//! While the control plane is away everything that is served goes on.

mod admission;
mod agent;
mod certificates;
mod cuts;
mod pace;
mod ports;
mod record;
mod registry;
mod report;
mod reservations;
mod store;
mod survey;
mod switch;
mod targets;
mod term;
mod wanted;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollux_api::control::v1::ReportAnswer;
use pollux_api::control::v1::agent_server::AgentServer;
use pollux_nvme::target::Target;
use pollux_reactor::ReactorHandle;
use pollux_reactor::net::Address;
use pollux_tls::{Callers, TlsError, handshakes};
use pollux_volume::mirror::MirrorOptions;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tonic::transport::Server;

use crate::engine::Engine;
use crate::grpc::{connections, meter_server, replicas_server};
use crate::pools::Pools;
use crate::replicas::{Calls, Replicas, SessionOptions};
use crate::settings::ClusterSettings;
use agent::AgentService;
use certificates::Guard;
pub(crate) use certificates::role_of;
use cuts::Cuts;
use ports::Ports;
use registry::Registry;
use targets::Targets;
use term::Term;

/// Calls that one connection may have under way.
const CALLS_PER_CONNECTION_MAX: u32 = 256;

/// Bytes of one command, at most: the longest are those that tell devices, or snapshots of a volume.
const COMMAND_BYTES_MAX: usize = 1 << 20;

/// How often a silent connection is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// The pause before a report is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The pause between two reports, at least: what changes meanwhile is told together.
const REPORT_PAUSE: Duration = Duration::from_millis(5);

/// The longest pause between two reports, whatever the control plane says.
const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// How long calls may take to end when the engine stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why an engine cannot be a node of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its state cannot be kept.
    #[error("{directory} cannot keep the state of the engine: {source}")]
    State {
        /// The directory.
        directory: String,
        /// Why not.
        source: io::Error,
    },
    /// Its certificates cannot be used.
    #[error("the certificates cannot be used: {0}")]
    Certificates(#[from] TlsError),
    /// It cannot listen.
    #[error("cannot listen for the control plane at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// An address or a certificate cannot be used.
    #[error("the control plane cannot be called, or served: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What a node is made of.
pub struct ClusterParts {
    /// The engine: what hosts use of it is measured there.
    pub engine: Arc<Engine>,
    /// Its pools.
    pub pools: Arc<Pools>,
    /// Its replicas.
    pub replicas: Arc<Replicas>,
    /// Where hosts connect.
    pub target: Arc<Target>,
    /// The reactors, at least one.
    pub reactors: Vec<ReactorHandle>,
    /// Where the target listens.
    pub nvmf_listeners: Vec<Address>,
}

/// This engine as a node of a cluster.
pub(crate) struct Cluster {
    settings: ClusterSettings,
    parts: ClusterParts,
    term: Term,
    targets: Arc<Targets>,
    cuts: Arc<Cuts>,
    registry: Registry,
    /// Pools whose replicas are open too. Others are not told of: their replicas would count as lost.
    ready_pools: Mutex<BTreeSet<String>>,
    /// Told when a report would say something else.
    changed: Arc<Notify>,
}

impl Cluster {
    fn ready_pools(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.ready_pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node that listens and reports.
pub struct Node {
    cluster: Arc<Cluster>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    reporter: JoinHandle<()>,
}

impl Node {
    /// Listens for the control plane and other engines, and reports.
    ///
    /// # Errors
    ///
    /// [`JoinError`].
    pub async fn start(settings: &ClusterSettings, parts: ClusterParts) -> Result<Self, JoinError> {
        let term = Term::open(&settings.state).map_err(|source| JoinError::State {
            directory: settings.state.display().to_string(),
            source,
        })?;
        let open = |directory| certificates::open(directory, &settings.node);
        let certificates = settings.certificates.as_deref().map(open).transpose()?;
        let guard = match certificates {
            Some(_) => Guard::Certificates,
            None => Guard::Local,
        };
        let registry = Registry::new(&settings.control, certificates.as_ref())?;
        let failed = |source| JoinError::Listen {
            address: settings.listen,
            source,
        };
        let is_in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        let listener = || tokio::net::TcpListener::bind(settings.listen);
        let listener = crate::patience::while_in_use(listener, is_in_use).await;
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let changed = Arc::new(Notify::new());
        let ports = Ports {
            replicas: parts.replicas.clone(),
            calls: Calls::start_with(certificates.clone()),
            node: settings.node.clone(),
            sessions: SessionOptions::default(),
        };
        let targets = Targets::new(
            targets::Parts {
                engine: parts.engine.clone(),
                target: parts.target.clone(),
                ports,
                reactors: parts.reactors.clone(),
                registry: registry.clone(),
                node: settings.node.clone(),
                options: MirrorOptions::default(),
            },
            changed.clone(),
        );
        let cluster = Arc::new(Cluster {
            settings: settings.clone(),
            term,
            targets,
            cuts: Cuts::new(changed.clone()),
            registry,
            ready_pools: Mutex::default(),
            changed,
            parts,
        });
        let mut server = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .layer(pollux_trace::ServedLayer);
        if let Some(certificates) = &certificates {
            cluster
                .parts
                .engine
                .certificates()
                .add("cluster", certificates.clone());
        }
        let agent = AgentServer::new(AgentService::new(cluster.clone(), guard))
            .max_decoding_message_size(COMMAND_BYTES_MAX);
        let replicas = replicas_server(cluster.parts.replicas.clone());
        let replicas = tonic::service::interceptor::InterceptedService::new(
            replicas,
            move |request: tonic::Request<()>| guard.require_engine(&request).map(|()| request),
        );
        let meter = meter_server(cluster.parts.engine.clone(), cluster.parts.pools.clone());
        let meter =
            tonic::service::interceptor::InterceptedService::new(meter, move |request: tonic::Request<()>| {
                guard.require_control(&request).map(|()| request)
            });
        let router = server.add_service(agent).add_service(replicas).add_service(meter);
        let (stop, stopped) = watch::channel(false);
        let mut until = stopped.clone();
        let server = tokio::spawn(async move {
            // A sender that is gone stops it too.
            let stopped = async move { drop(until.wait_for(|stop| *stop).await) };
            let connections = connections(listener);
            match certificates {
                Some(certificates) => {
                    let connections = handshakes(connections, certificates, Callers::WithCertificate);
                    router.serve_with_incoming_shutdown(connections, stopped).await
                }
                None => router.serve_with_incoming_shutdown(connections, stopped).await,
            }
        });
        let reporter = tokio::spawn(report(cluster.clone(), stopped));
        tracing::info!(node = %settings.node, %address, "a node of the cluster");
        Ok(Self {
            cluster,
            address,
            stop,
            server,
            reporter,
        })
    }

    /// Where the control plane and other engines call.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more commands, and ends all mirrors.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.cluster.targets.close().await;
        // What it reported last is as good as anything.
        self.reporter.abort();
        match tokio::time::timeout(STOP_TIMEOUT, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the interface of the node ended with an error"),
            Ok(Err(error)) => tracing::warn!(%error, "the interface of the node ended by itself"),
            Err(_) => self.server.abort(),
        }
    }
}

/// Reports again and again, and sooner when something has changed.
async fn report(cluster: Arc<Cluster>, mut stopped: watch::Receiver<bool>) {
    let mut is_heard = false;
    // Why it was not the last time: told once, and again when it is something else.
    let mut why_told = None;
    loop {
        let told = cluster.registry.report(&cluster.describe().await).await;
        let pause = match &told {
            Ok(answer) => {
                if !std::mem::replace(&mut is_heard, true) {
                    tracing::info!(node = %cluster.settings.node, "the control plane hears this node");
                }
                why_told = None;
                cluster
                    .targets
                    .check_lease(Duration::from_micros(answer.lease_us));
                next_report(answer)
            }
            Err(status) => {
                let why = registry::why(status);
                if std::mem::replace(&mut is_heard, false) {
                    tracing::warn!(%why, "the control plane is away; what is served goes on");
                } else if why_told.as_ref() != Some(&why) {
                    tracing::warn!(%why, "the control plane does not hear this node");
                }
                why_told = Some(why);
                RETRY_PAUSE
            }
        };
        tokio::time::sleep(REPORT_PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cluster.changed.notified() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

fn next_report(answer: &ReportAnswer) -> Duration {
    Duration::from_micros(answer.next_report_us).clamp(REPORT_PAUSE, REPORT_INTERVAL_MAX)
}
