//! The engine as the rest of the daemon sees it: what is served, and how that is changed.
//!
//! Invariants:
//!
//! - Changes happen one after the other (`changes`); looking at what is served never waits for one.
//! - `served` and the namespaces of the subsystem are the same set, but for the moment in which a change
//!   happens.
//! - Once `draining` is set nothing is added, removed or resized any more.
//!
//! Everything that touches a device runs on a reactor and is asked for by message; the threads of tokio wait.

mod backends;
mod error;
mod events;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollux_api::engine::v1 as api;
use pollux_device::{BlockDeviceExt, ByteSize, Device, DeviceUri, IoError, OpenError, Registry};
use pollux_http::CertificatesInUse;
use pollux_nbd::{Export, Exports};
use pollux_nvme::target::{NamespaceConfig, Subsystem, Target};
use pollux_reactor::ReactorHandle;
use pollux_reactor::net::Address;
use pollux_volume::qos::{Qos, Throttle};
use tokio_stream::StreamExt;

use crate::patience::while_in_use;
use crate::telemetry::{Meters, Mirrors};
pub use backends::Backends;
pub use error::ChangeError;
pub(crate) use events::unix_us;
pub use events::{Events, Watch};

/// How long a reactor may take for one turn before it counts as stuck.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// What an engine is made of.
pub struct Parts {
    /// Opens devices.
    pub registry: Registry,
    /// Serves them.
    pub target: Arc<Target>,
    /// What all namespaces belong to.
    pub subsystem: Arc<Subsystem>,
    /// The same devices for NBD clients.
    pub exports: Exports,
    /// The reactors, at least one.
    pub reactors: Vec<ReactorHandle>,
    /// The cores that the reactors are pinned to; empty when they are not.
    pub cores: Vec<u32>,
    /// Where NVMe/TCP hosts connect.
    pub nvmf_listeners: Vec<Address>,
    /// Where NBD clients connect.
    pub nbd_listeners: Vec<Address>,
    /// How long a device may take to flush when it is removed.
    pub flush_timeout: Duration,
}

/// A running engine.
pub struct Engine {
    parts: Parts,
    started_unix_us: u64,
    served: Mutex<BTreeMap<u32, Served>>,
    changes: tokio::sync::Mutex<()>,
    draining: AtomicBool,
    /// What is being opened, before all is served.
    opening: Mutex<Option<String>>,
    events: Events,
    meters: Meters,
    mirrors: Mirrors,
    backends: Backends,
    certificates: CertificatesInUse,
}

/// A device that is served.
#[derive(Clone)]
struct Served {
    uri: DeviceUri,
    device: Arc<dyn Device>,
    throttle: Arc<Throttle>,
}

impl Served {
    fn describe(&self, namespace_id: u32) -> api::Namespace {
        let geometry = self.device.geometry();
        api::Namespace {
            namespace_id,
            uri: self.uri.to_string(),
            size_bytes: geometry.bytes(),
            block_bytes: geometry.block_bytes,
            volatile_write_cache: geometry.volatile_write_cache,
            read_only: geometry.read_only,
            name: self.device.name().to_owned(),
            qos: crate::grpc::qos::to_api(&self.throttle.qos()),
        }
    }
}

impl Engine {
    /// An engine that serves nothing yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            started_unix_us: events::unix_us(),
            served: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            draining: AtomicBool::new(false),
            opening: Mutex::default(),
            events: Events::default(),
            meters: Meters::default(),
            mirrors: Mirrors::default(),
            backends: Backends::default(),
            certificates: CertificatesInUse::default(),
        })
    }

    /// The certificates that are used.
    pub(crate) fn certificates(&self) -> &CertificatesInUse {
        &self.certificates
    }

    /// The devices that are served, as they are measured.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// What volumes have their data on, and share by weight.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// The volumes that this engine is the target of.
    pub fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }

    /// Has every reactor do something, and says which of them does not.
    ///
    /// # Errors
    ///
    /// What to tell people.
    pub async fn turn_reactors(&self) -> Result<(), String> {
        for reactor in &self.parts.reactors {
            let turned = tokio::time::timeout(TURN_TIMEOUT, reactor.call(|| async {}));
            match turned.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(format!("reactor {} has ended: {error}", reactor.id())),
                Err(_) => return Err(format!("reactor {} does not turn", reactor.id())),
            }
        }
        Ok(())
    }

    /// The target that serves the devices.
    pub fn target(&self) -> &Arc<Target> {
        &self.parts.target
    }

    /// The reactor that does what any of them could.
    pub fn any_reactor(&self) -> Result<&ReactorHandle, ChangeError> {
        self.parts.reactors.first().ok_or(ChangeError::NoReactor)
    }

    /// Tells everyone who watches.
    pub(crate) fn publish(&self, what: api::event::What) {
        self.events.publish(what);
    }

    /// What it is and where it listens.
    pub fn info(&self) -> api::GetInfoResponse {
        let state = if self.is_draining() {
            api::EngineState::Draining
        } else {
            api::EngineState::Serving
        };
        api::GetInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.into(),
            started_unix_us: self.started_unix_us,
            process_id: std::process::id(),
            subsystem_nqn: self.parts.subsystem.nqn().to_string(),
            nvmf_listeners: texts(&self.parts.nvmf_listeners),
            nbd_listeners: texts(&self.parts.nbd_listeners),
            cores: self.parts.cores.clone(),
            schemes: self.parts.registry.schemes().map(str::to_owned).collect(),
        }
    }

    /// What is served, by ascending identifier.
    pub fn namespaces(&self) -> Vec<api::Namespace> {
        self.served()
            .iter()
            .map(|(id, served)| served.describe(*id))
            .collect()
    }

    /// What the reactors did with their cores.
    pub fn statistics(&self) -> Vec<api::ReactorStatistics> {
        let loads = self.parts.target.loads();
        self.parts
            .reactors
            .iter()
            .enumerate()
            .map(|(index, reactor)| {
                let counters = reactor.counters().snapshot();
                api::ReactorStatistics {
                    reactor: reactor.id().0,
                    core: self.parts.cores.get(index).copied(),
                    iterations: counters.iterations,
                    busy_ns: counters.busy_ns,
                    idle_ns: counters.idle_ns,
                    asleep_ns: counters.asleep_ns,
                    tasks_run: counters.tasks_run,
                    messages: counters.messages,
                    timers_fired: counters.timers_fired,
                    driver_events: counters.driver_events,
                    run_queue_depth_max: counters.run_queue_depth_max,
                    mailbox_depth_max: counters.mailbox_depth_max,
                    connections: loads.get(index).map_or(0, |load| load.connections as u64),
                }
            })
            .collect()
    }

    /// What happens from now on.
    pub fn watch(&self) -> Watch {
        self.events.watch()
    }

    /// Opens a device and serves it, with the given identifiers or those that follow, and these limits.
    /// Asking again for the same under the same identifier is no error, and changes no limits.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; nothing has changed then.
    pub async fn add_namespace(
        self: &Arc<Self>,
        uri: &str,
        config: &NamespaceConfig,
        qos: &Qos,
    ) -> Result<api::Namespace, ChangeError> {
        qos.check()?;
        let _one_at_a_time = self.change().await?;
        let uri = DeviceUri::parse(uri).map_err(OpenError::from)?;
        let same = self
            .served()
            .iter()
            .find(|(_, served)| served.uri == uri)
            .map(|(id, served)| (*id, served.clone()));
        match (same, config.id) {
            (Some((there, served)), Some(id)) if there == id => return Ok(served.describe(id)),
            (Some((there, _)), _) => {
                let uri = uri.to_string();
                return Err(ChangeError::DeviceInUse { uri, id: there });
            }
            (None, _) => {}
        }

        let open = || self.clone().open(uri.clone());
        let (device, throttle) = while_in_use(open, ChangeError::is_device_in_use).await?;
        throttle.join(self.backends.of_device(&uri).as_ref());
        throttle.set(qos)?;
        let id = self.parts.subsystem.add_namespace(device.clone(), config)?;
        self.follow(id, &device);
        self.parts.exports.insert(Export {
            device: device.clone(),
            description: uri.to_string(),
        });
        let served = Served {
            uri,
            device,
            throttle,
        };
        let description = served.describe(id);
        self.served().insert(id, served);
        tracing::info!(
            namespace = id,
            device = %description.uri,
            size_bytes = description.size_bytes,
            "namespace added"
        );
        self.events
            .publish(api::event::What::NamespaceAdded(description.clone()));
        Ok(description)
    }

    async fn open(self: Arc<Self>, uri: DeviceUri) -> Result<(Arc<dyn Device>, Arc<Throttle>), ChangeError> {
        let registry = self.parts.registry.clone();
        let reactor = self.any_reactor()?;
        let opened = reactor.call(move || async move { registry.open(&uri).await });
        let device = opened.await??;
        let name = device.name().to_owned();
        Ok(self.meters.wrap_volume(&name, device))
    }

    /// Stops serving a namespace, flushes its device and lets go of it.
    ///
    /// # Errors
    ///
    /// [`ChangeError::NotFound`]; and [`ChangeError::Flush`] when the namespace is gone, but what it
    /// completed may not be on its medium.
    pub async fn remove_namespace(&self, id: u32) -> Result<(), ChangeError> {
        let _one_at_a_time = self.change().await?;
        let served = self.find(id)?;
        self.parts.subsystem.remove_namespace(id)?;
        // What is held ends as it would have, and soon.
        served.throttle.lift();
        self.parts.exports.remove(served.device.name());
        self.served().remove(&id);
        tracing::info!(namespace = id, device = %served.uri, "namespace removed");
        self.events
            .publish(api::event::What::NamespaceRemoved(api::NamespaceRemoved {
                namespace_id: id,
            }));

        let device = served.device;
        let flushing = self.any_reactor()?.call(move || async move {
            let queue = device.attach().await?;
            queue.flush().await
        });
        let flushed = match tokio::time::timeout(self.parts.flush_timeout, flushing).await {
            Ok(flushed) => flushed?,
            Err(_) => Err(IoError::TimedOut),
        };
        flushed.map_err(|source| {
            let uri = served.uri.to_string();
            tracing::error!(namespace = id, device = %uri, error = %source, "removed without a flush");
            ChangeError::Flush { id, uri, source }
        })
    }

    /// Makes the device of a namespace larger while it is served.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; nothing has changed then.
    pub async fn resize_namespace(&self, id: u32, bytes: u64) -> Result<api::Namespace, ChangeError> {
        let _one_at_a_time = self.change().await?;
        let served = self.find(id)?;
        let device = served.device.clone();
        let grown = self.any_reactor()?.call(move || device.grow_to(bytes)).await?;
        let size = ByteSize(bytes);
        grown.map_err(|source| ChangeError::Grow { id, size, source })?;
        Ok(served.describe(id))
    }

    /// Changes what hosts may ask of a namespace, at once.
    ///
    /// # Errors
    ///
    /// [`ChangeError::NotFound`] and [`ChangeError::Qos`]; nothing has changed then.
    pub async fn set_qos(&self, id: u32, qos: &Qos) -> Result<api::Namespace, ChangeError> {
        let _one_at_a_time = self.change().await?;
        let served = self.find(id)?;
        served.throttle.set(qos)?;
        tracing::info!(namespace = id, device = %served.uri, ?qos, "limits set");
        Ok(served.describe(id))
    }

    /// Refuses changes from now on, after the one that is under way, and tells those who watch.
    pub async fn start_draining(&self) {
        let _one_at_a_time = self.changes.lock().await;
        if !self.draining.swap(true, Ordering::SeqCst) {
            self.events
                .publish(api::event::What::Draining(api::EngineDraining {}));
        }
    }

    /// Whether it was told to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Something is opened that is served from the start on; `None` once all of it is.
    pub(crate) fn opens(&self, what: Option<String>) {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// What is being opened before all is served.
    pub(crate) fn opening(&self) -> Option<String> {
        let opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        opening.clone()
    }

    /// The right to change what is served.
    async fn change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ChangeError> {
        let guard = self.changes.lock().await;
        if self.is_draining() {
            return Err(ChangeError::Draining);
        }
        Ok(guard)
    }

    fn find(&self, id: u32) -> Result<Served, ChangeError> {
        self.served()
            .get(&id)
            .cloned()
            .ok_or(ChangeError::NotFound { id })
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<u32, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who watch when a device has another size, for as long as it is this one that is served.
    fn follow(self: &Arc<Self>, id: u32, device: &Arc<dyn Device>) {
        let mut device_events = device.subscribe();
        let mut bytes = device.geometry().bytes();
        let (engine, device) = (Arc::downgrade(self), Arc::downgrade(device));
        tokio::spawn(async move {
            // Whatever happened, the newest size counts: a slow subscriber may have lost an event.
            while device_events.next().await.is_some() {
                let (Some(engine), Some(device)) = (engine.upgrade(), device.upgrade()) else {
                    return;
                };
                let Ok(served) = engine.find(id) else { return };
                if !Arc::ptr_eq(&served.device, &device) {
                    return;
                }
                let namespace = served.describe(id);
                if std::mem::replace(&mut bytes, namespace.size_bytes) != namespace.size_bytes {
                    engine
                        .events
                        .publish(api::event::What::NamespaceResized(namespace));
                }
            }
        });
    }
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
