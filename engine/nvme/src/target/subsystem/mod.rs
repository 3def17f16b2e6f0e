//! A subsystem: namespaces, the hosts that may use them, and the controllers that those hosts have now.
//!
//! Invariants:
//! - `generation` changes whenever the set of namespaces does, before anybody is told; a reactor that looks a
//!   namespace up compares it first.
//! - Locks are taken in the order subsystem, controller; neither is held while a reactor is called.

mod access;
mod error;
mod hosts;
mod reservations;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use pollux_device::Device;
use pollux_reactor::{ReactorHandle, ReactorId, random_u64};
use uuid::Uuid;

use super::config::{ControllerIds, NamespaceConfig, SubsystemConfig, TargetConfig};
use super::controller::{Controller, EventKind};
use super::discovery::Directory;
use super::io::View;
use super::namespace::{Identity, Namespace};
use super::reservation::ReservationStore;
use super::sync::lock;
use super::watch;
use crate::auth::Credentials;
use crate::wire::log::AnaState;
use crate::wire::nqn::Nqn;
pub use error::SubsystemError;
use hosts::parse_names;

const SERIAL_BYTES_MAX: usize = 20;
const MODEL_BYTES_MAX: usize = 40;

static NEXT_INSTANCE: AtomicU64 = AtomicU64::new(1);

#[derive(Default)]
struct State {
    namespaces: BTreeMap<u32, Served>,
    controllers: BTreeMap<u16, Arc<Controller>>,
    last_controller: u16,
    allow_any_host: bool,
    allowed_hosts: BTreeSet<Nqn>,
    /// Hosts that may not write.
    read_only_hosts: BTreeSet<Nqn>,
    /// Hosts that have to authenticate.
    credentials: BTreeMap<Nqn, Arc<Credentials>>,
    /// Where other targets that show it listen.
    elsewhere: Vec<SocketAddr>,
    viewers: Vec<ReactorHandle>,
    removed: bool,
}

struct Served {
    namespace: Arc<Namespace>,
    /// Ends the watch of the device when it is dropped.
    _watch: watch::Cancel,
}

/// See the module.
pub struct Subsystem {
    /// Unique in this process.
    pub(crate) instance: u64,
    pub(crate) nqn: Nqn,
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) config: Arc<TargetConfig>,
    /// Whether hosts are told how this engine reaches each namespace.
    pub(crate) asymmetric_access: bool,
    controller_ids: ControllerIds,
    access_changes: AtomicU64,
    /// Whether any host may not write: all that is looked at when all may.
    has_read_only_hosts: AtomicBool,
    reactors: Vec<ReactorHandle>,
    directory: Weak<Directory>,
    /// Where reservations are kept that persist.
    store: Option<Arc<dyn ReservationStore>>,
    generation: AtomicU64,
    failures: AtomicU64,
    queues: AtomicUsize,
    run: OnceLock<Uuid>,
    state: Mutex<State>,
}

impl Subsystem {
    pub(crate) fn new(
        config: &SubsystemConfig,
        target: Arc<TargetConfig>,
        reactors: Vec<ReactorHandle>,
        directory: Weak<Directory>,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Arc<Self>, SubsystemError> {
        let nqn: Nqn = config.nqn.parse()?;
        let serial = config.serial.clone().unwrap_or_else(|| serial_of(&nqn));
        let model = config.model.clone().unwrap_or_else(|| "Pollux".to_owned());
        check_text("serial", &serial, SERIAL_BYTES_MAX, &nqn)?;
        check_text("model", &model, MODEL_BYTES_MAX, &nqn)?;
        let ids = config.controller_ids;
        if !ids.is_valid() {
            return Err(SubsystemError::ControllerIds {
                first: ids.first,
                last: ids.last,
                nqn,
            });
        }
        if config.asymmetric_access {
            access::check_log_fits(&nqn, &target)?;
        }
        let state = State {
            last_controller: ids.first - 1,
            allow_any_host: config.hosts.allow_any,
            allowed_hosts: parse_names(&config.hosts.allowed)?,
            ..State::default()
        };
        Ok(Arc::new(Self {
            instance: NEXT_INSTANCE.fetch_add(1, Ordering::Relaxed),
            nqn,
            serial,
            model,
            config: target,
            asymmetric_access: config.asymmetric_access,
            controller_ids: ids,
            access_changes: AtomicU64::new(0),
            has_read_only_hosts: AtomicBool::new(false),
            reactors,
            directory,
            store,
            generation: AtomicU64::new(1),
            failures: AtomicU64::new(0),
            queues: AtomicUsize::new(0),
            run: OnceLock::new(),
            state: Mutex::new(state),
        }))
    }

    /// Names this run of the subsystem, at random: a host that is told the same one after it was away knows
    /// that nothing the target held in memory is lost. To be called on a reactor.
    pub(crate) fn run(&self) -> Uuid {
        *self
            .run
            .get_or_init(|| Uuid::from_u64_pair(random_u64(), random_u64()))
    }

    /// Its NVMe Qualified Name.
    pub fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    /// Serves a device as a namespace; hosts that are connected are told. Returns its identifier.
    ///
    /// # Errors
    ///
    /// [`SubsystemError`]: an identifier that is taken or out of bounds, a device that cannot be served.
    pub fn add_namespace(
        self: &Arc<Self>,
        device: Arc<dyn Device>,
        config: &NamespaceConfig,
    ) -> Result<u32, SubsystemError> {
        let name = device.name().to_owned();
        let geometry = device.geometry();
        if !geometry.block_bytes.is_power_of_two() || !(512..=65_536).contains(&geometry.block_bytes) {
            return Err(SubsystemError::BlockSize {
                device: name,
                block_bytes: geometry.block_bytes,
            });
        }
        let access = config.access.unwrap_or(AnaState::Optimized);
        if access != AnaState::Optimized {
            self.check_reports_access()?;
        }
        let events = device.subscribe();
        let identity = Identity::new(&self.nqn, &*device, config);
        let id = {
            let mut state = lock(&self.state);
            let id = self.free_id(&state, config.id, &name, &identity)?;
            let reservations = self.load_reservations(id, identity.uuid)?;
            if device.has_lost_caches() {
                reservations.lose_caches(1);
            }
            let namespace = Arc::new(Namespace::new(id, device, identity, access, reservations));
            let reactor = self.reactors.get(id as usize % self.reactors.len().max(1));
            let watch =
                watch::start(reactor, self, &namespace, events).map_err(|error| SubsystemError::Reactor {
                    device: name,
                    reactor: error.0,
                })?;
            state.namespaces.insert(
                id,
                Served {
                    namespace,
                    _watch: watch,
                },
            );
            self.generation.fetch_add(1, Ordering::Release);
            id
        };
        self.namespaces_changed(id);
        Ok(id)
    }

    fn free_id(
        &self,
        state: &State,
        wanted: Option<u32>,
        device: &str,
        identity: &Identity,
    ) -> Result<u32, SubsystemError> {
        let nqn = || self.nqn.clone();
        if state.removed {
            return Err(SubsystemError::Removed { nqn: nqn() });
        }
        let taken = state
            .namespaces
            .values()
            .find(|served| served.namespace.identity.collides(identity));
        if let Some(served) = taken {
            return Err(SubsystemError::IdentifierTaken {
                device: device.to_owned(),
                id: served.namespace.id,
            });
        }
        let id_max = self.config.namespaces_max;
        match wanted {
            Some(id) if !self.is_valid_id(id) => Err(SubsystemError::NamespaceId { id, id_max }),
            Some(id) if state.namespaces.contains_key(&id) => {
                Err(SubsystemError::NamespaceExists { id, nqn: nqn() })
            }
            Some(id) => Ok(id),
            None => (1..=id_max)
                .find(|id| !state.namespaces.contains_key(id))
                .ok_or_else(|| SubsystemError::Full { nqn: nqn() }),
        }
    }

    /// Stops serving a namespace; hosts that are connected are told. Commands that are at the device end as
    /// they would have; later ones are refused.
    ///
    /// # Errors
    ///
    /// [`SubsystemError::NoNamespace`].
    pub fn remove_namespace(&self, id: u32) -> Result<(), SubsystemError> {
        let removed = {
            let mut state = lock(&self.state);
            let removed = state.namespaces.remove(&id);
            self.generation.fetch_add(1, Ordering::Release);
            removed
        };
        if removed.is_none() {
            return Err(SubsystemError::NoNamespace {
                id,
                nqn: self.nqn.clone(),
            });
        }
        drop(removed);
        self.namespaces_changed(id);
        Ok(())
    }

    /// Identifiers and devices of its namespaces, ascending.
    pub fn served(&self) -> Vec<(u32, Arc<dyn Device>)> {
        let state = lock(&self.state);
        state
            .namespaces
            .iter()
            .map(|(id, served)| (*id, served.namespace.device.clone()))
            .collect()
    }

    /// Ends every controller and admits no more.
    pub(crate) fn close(&self, reason: &'static str) {
        let controllers = {
            let mut state = lock(&self.state);
            state.removed = true;
            std::mem::take(&mut state.controllers)
        };
        for controller in controllers.into_values() {
            controller.end(reason);
        }
    }

    /// Closes it and lets go of its devices.
    pub(crate) fn remove(&self, reason: &'static str) {
        self.close(reason);
        let namespaces = {
            let mut state = lock(&self.state);
            self.generation.fetch_add(1, Ordering::Release);
            std::mem::take(&mut state.namespaces)
        };
        drop(namespaces);
        self.refresh_views();
    }

    /// Counts a queue in or out.
    pub(crate) fn count_queue(&self, registered: bool) {
        if registered {
            self.queues.fetch_add(1, Ordering::AcqRel);
        } else {
            self.queues.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Queues that are connected, or have a command at a device.
    pub(crate) fn queues(&self) -> usize {
        self.queues.load(Ordering::Acquire)
    }

    /// Gives a new controller an identifier and takes it in; `make` gets the identifier. An identifier is
    /// used again only after all others were.
    pub(crate) fn add_controller(
        &self,
        make: impl FnOnce(u16) -> Arc<Controller>,
    ) -> Option<Arc<Controller>> {
        let mut state = lock(&self.state);
        let ids = self.controller_ids;
        let controllers_max = self.config.controllers_max.min(ids.last - ids.first + 1);
        if state.removed || state.controllers.len() >= usize::from(controllers_max) {
            return None;
        }
        let mut id = state.last_controller;
        // Fewer controllers than identifiers: the loop ends.
        loop {
            id = if id >= ids.last { ids.first } else { id + 1 };
            if !state.controllers.contains_key(&id) {
                break;
            }
        }
        state.last_controller = id;
        let controller = make(id);
        state.controllers.insert(id, controller.clone());
        Some(controller)
    }

    /// A controller ended.
    pub(crate) fn remove_controller(&self, id: u16) {
        let removed = lock(&self.state).controllers.remove(&id);
        drop(removed);
    }

    pub(crate) fn controller(&self, id: u16) -> Option<Arc<Controller>> {
        lock(&self.state).controllers.get(&id).cloned()
    }

    /// Every controller, by ascending identifier.
    pub(crate) fn controllers(&self) -> Vec<Arc<Controller>> {
        lock(&self.state).controllers.values().cloned().collect()
    }

    /// The namespaces by ascending identifier, and the generation of that set.
    pub(crate) fn namespaces(&self) -> (u64, Vec<Arc<Namespace>>) {
        let state = lock(&self.state);
        let namespaces = state
            .namespaces
            .values()
            .map(|served| served.namespace.clone())
            .collect();
        // Under the lock, so that set and generation belong together.
        (self.generation.load(Ordering::Relaxed), namespaces)
    }

    pub(crate) fn namespace(&self, id: u32) -> Option<Arc<Namespace>> {
        lock(&self.state)
            .namespaces
            .get(&id)
            .map(|served| served.namespace.clone())
    }

    /// Whether any of its devices has a volatile write cache.
    pub(crate) fn has_volatile_write_cache(&self) -> bool {
        let state = lock(&self.state);
        state
            .namespaces
            .values()
            .any(|served| served.namespace.geometry().volatile_write_cache)
    }

    /// Changes with the set of namespaces.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether an identifier could be a namespace's.
    pub(crate) fn is_valid_id(&self, id: u32) -> bool {
        (1..=self.config.namespaces_max).contains(&id)
    }

    /// Counts a failed command; the number of failures so far.
    pub(crate) fn count_failure(&self) -> u64 {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Failed commands so far.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// A reactor has a view of the namespaces from now on.
    pub(crate) fn watch(&self, reactor: ReactorHandle) {
        lock(&self.state).viewers.push(reactor);
    }

    /// A reactor's view is gone.
    pub(crate) fn unwatch(&self, reactor: ReactorId) {
        lock(&self.state).viewers.retain(|viewer| viewer.id() != reactor);
    }

    /// A namespace grew, was added, removed, or its device came back.
    pub(crate) fn namespaces_changed(&self, id: u32) {
        for controller in self.controllers() {
            controller.namespace_changed(id);
        }
        self.refresh_views();
    }

    /// The device of a namespace came back: reactors attach anew.
    pub(crate) fn device_returned(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.refresh_views();
    }

    fn refresh_views(&self) {
        let (instance, viewers) = (self.instance, lock(&self.state).viewers.clone());
        for viewer in viewers {
            // A reactor too busy for the message has traffic, or gets the next one; a lookup refreshes too.
            let _ = viewer.spawn(move || async move { View::refresh_current(instance) });
        }
    }

    /// Tells every controller that something happened.
    pub(crate) fn raise(&self, kind: EventKind) {
        for controller in self.controllers() {
            controller.raise(kind);
        }
    }
}

fn check_text(what: &'static str, text: &str, bytes_max: usize, nqn: &Nqn) -> Result<(), SubsystemError> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !text.trim().is_empty();
    if printable && text.len() <= bytes_max {
        return Ok(());
    }
    Err(SubsystemError::Text {
        what,
        text: text.to_owned(),
        nqn: nqn.clone(),
        bytes_max,
    })
}

/// A serial number that follows from the name, so that it is the same on every engine and after every
/// restart.
fn serial_of(nqn: &Nqn) -> String {
    let digest = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, nqn.as_str().as_bytes());
    digest
        .simple()
        .to_string()
        .to_uppercase()
        .chars()
        .take(SERIAL_BYTES_MAX)
        .collect()
}
