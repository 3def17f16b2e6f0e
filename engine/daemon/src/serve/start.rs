//! From settings to an engine that serves.

use std::io;
use std::path::Path;
use std::sync::Arc;

use pollux_device::{DeviceUri, OpenError};
use pollux_http::HttpListener;
use pollux_nbd::Exports;
use pollux_nvme::target::{FileReservationStore, NamespaceConfig, ReservationStore, SubsystemConfig, Target};
use pollux_tls::{Certificates, TlsError};

use super::error::StartError;
use super::listeners::Listeners;
use super::reactors::EngineReactors;
use crate::cluster::{ClusterParts, Node};
use crate::devices;
use crate::engine::{ChangeError, Engine, Parts};
use crate::grpc::{ControlListener, ControlServer};
use crate::patience::while_in_use;
use crate::pools::{Memory, PoolOpener, Pools};
use crate::replicas::{Replicas, ReplicasError};
use crate::settings::{QosSettings, Settings};
use crate::telemetry::{Looking, TelemetryServer};

/// An engine that serves.
pub(super) struct Running {
    /// Where hosts connect. Declared first: dropped first.
    pub(super) listeners: Listeners,
    /// The control interface, if there is one.
    pub(super) control: Option<ControlServer>,
    /// What the control plane of a cluster sees of it, if there is one.
    pub(super) node: Option<Node>,
    /// The replicas of volumes, which may be in pools.
    pub(super) replicas: Arc<Replicas>,
    /// Metrics and health, if they are served.
    pub(super) telemetry: Option<TelemetryServer>,
    /// The pools, of which volumes may be served.
    pub(super) pools: Arc<Pools>,
    /// What is served.
    pub(super) engine: Arc<Engine>,
    /// The reactors.
    pub(super) reactors: EngineReactors,
}

/// Starts everything, in the order in which it can fail for a person to see: first what costs nothing.
pub(super) async fn start(settings: &Settings) -> Result<Running, StartError> {
    if settings.namespaces.is_empty() && settings.grpc.listen.is_none() && settings.cluster.is_none() {
        return Err(StartError::Nothing);
    }
    raise_file_limit();
    let control = match &settings.grpc.listen {
        Some(address) => {
            let failed = |source| StartError::Grpc {
                address: address.clone(),
                source,
            };
            let bound = while_in_use(
                || ControlListener::bind(address),
                |error| error.kind() == io::ErrorKind::AddrInUse,
            );
            Some(bound.await.map_err(failed)?)
        }
        None => None,
    };
    let http = match settings.http.listen {
        Some(address) => {
            let tls = settings.http.certificates.as_deref().map(http_tls).transpose()?;
            let looking = match tls {
                Some(_) => Looking::Certificates,
                None => Looking::Anyone,
            };
            let listener = HttpListener::bind(address, tls.clone()).await?;
            Some((listener, looking, tls))
        }
        None => None,
    };
    let reactors = EngineReactors::start(&settings.reactors)?;
    let handles = reactors.handles();
    let failed = |source| StartError::Target {
        subsystem: settings.nvmf.subsystem.clone(),
        source,
    };
    let store: Option<Arc<dyn ReservationStore>> = match &settings.nvmf.reservations {
        Some(directory) => Some(FileReservationStore::open(directory).map_err(StartError::Reservations)?),
        None => None,
    };
    let limits = settings.nvmf.limits.clone();
    let target = Target::with_store(limits, handles.clone(), store).map_err(failed)?;
    let subsystem = SubsystemConfig {
        hosts: settings.nvmf.hosts.clone(),
        ..SubsystemConfig::new(&settings.nvmf.subsystem)
    };
    let subsystem = target.add_subsystem(&subsystem).map_err(failed)?;
    for host in &settings.nvmf.authentication {
        let failed = |error: String| StartError::Authentication {
            host: host.host.clone(),
            error,
        };
        let credentials = host.credentials().map_err(|error| failed(error.to_string()))?;
        subsystem
            .set_credentials(&host.host, Some(credentials))
            .map_err(|error| failed(error.to_string()))?;
    }

    // Before the devices, which may take long to open: hosts that come early find no namespaces yet, and are
    // told of each as it comes.
    let mut listeners = Listeners::default();
    listeners.start_nvmf(&settings.nvmf, &target, &handles).await?;
    let exports = Exports::new();
    listeners.start_nbd(&settings.nbd, &exports, &handles).await?;
    let mut registry = devices::registry();
    let memory = match &settings.state_file {
        Some(path) => Memory::open(path)?,
        None => Memory::default(),
    };
    let pools = Pools::of_engine(registry.clone(), handles.clone(), memory);
    PoolOpener::register(pools.clone(), &mut registry);
    let replicas = Replicas::new(
        registry.clone(),
        pools.clone(),
        target.clone(),
        handles.clone(),
        listeners.nvmf().to_vec(),
    );
    let engine = Engine::new(Parts {
        registry,
        target: target.clone(),
        subsystem,
        exports,
        reactors: handles.clone(),
        cores: reactors.cores().to_vec(),
        nvmf_listeners: listeners.nvmf().to_vec(),
        nbd_listeners: listeners.nbd().to_vec(),
        flush_timeout: settings.shutdown.drain_timeout(),
    });
    // Pools may take long to open: whoever looks is told so, and need not wait.
    let telemetry = http.map(|(http, looking, tls)| {
        if let Some(certificates) = tls {
            engine.certificates().add("http", certificates);
        }
        TelemetryServer::start(http, looking, engine.clone(), pools.clone())
    });
    if let Err(error) = open(settings, &pools, &replicas, &engine).await {
        // What was opened is not left as after a crash.
        replicas.close().await;
        drop(pools.close().await);
        if let Some(telemetry) = telemetry {
            telemetry.stop().await;
        }
        return Err(error);
    }
    crate::pools::watch(&pools, &engine).await;
    let control = match (control, &settings.grpc.listen) {
        (Some(listener), Some(address)) => {
            let failed = |source| StartError::Grpc {
                address: address.clone(),
                source,
            };
            Some(
                ControlServer::start(listener, engine.clone(), pools.clone(), replicas.clone())
                    .map_err(failed)?,
            )
        }
        _ => None,
    };
    let node = match &settings.cluster {
        Some(cluster) => {
            let parts = ClusterParts {
                engine: engine.clone(),
                pools: pools.clone(),
                replicas: replicas.clone(),
                target,
                reactors: handles,
                nvmf_listeners: listeners.nvmf().to_vec(),
            };
            Some(Node::start(cluster, parts).await?)
        }
        None => None,
    };
    engine.opens(None);
    Ok(Running {
        listeners,
        control,
        node,
        replicas,
        telemetry,
        pools,
        engine,
        reactors,
    })
}

/// Opens the pools and replicas, and serves what is to be served from the start on.
async fn open(
    settings: &Settings,
    pools: &Arc<Pools>,
    replicas: &Replicas,
    engine: &Arc<Engine>,
) -> Result<(), StartError> {
    for pool in &settings.pools {
        engine.opens(Some(format!("the pool {}", pool.devices.join(","))));
        let pool = pools.import_named(pool).await?;
        replicas.open_in_pool(pool.shared.name()).await?;
    }
    engine.opens(Some("the pools of the state file".to_owned()));
    for pool in pools.import_remembered().await {
        let name = pool.shared.name();
        if let Err(error) = replicas.open_in_pool(name).await {
            tracing::error!(pool = name, %error, "replicas in it are not opened");
        }
    }
    for pool in pools.all() {
        pools.go_on_draining(&pool).await;
    }
    for replica in &settings.replicas {
        engine.opens(Some(format!("the replica {}", replica.uri)));
        let uri = DeviceUri::parse(&replica.uri).map_err(OpenError::from);
        replicas.open(uri.map_err(ReplicasError::from)?).await?;
    }
    for namespace in &settings.namespaces {
        engine.opens(Some(format!("the namespace {}", namespace.uri)));
        let config = NamespaceConfig {
            id: namespace.id,
            uuid: namespace.uuid,
            ..NamespaceConfig::default()
        };
        let qos = namespace.qos.as_ref().map(QosSettings::qos).transpose();
        let qos = qos.map_err(ChangeError::from)?.unwrap_or_default();
        engine.add_namespace(&namespace.uri, &config, &qos).await?;
    }
    Ok(())
}

/// Each connection is a descriptor: takes as many as the process may have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// How HTTP is answered by TLS.
fn http_tls(directory: &Path) -> Result<Certificates, TlsError> {
    Certificates::open(directory, |_| Ok(()))
}
