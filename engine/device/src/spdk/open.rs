//! The controllers in use: each is attached once in the process, and shared by its namespaces.
//!
//! Invariant: while a controller is attached, or being detached, it is in [`CONTROLLERS`]; whoever opens it
//! again either shares it or waits until it is detached.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::bus::{self, Holder};
use super::environment;
use super::error::SpdkError;
use super::identify::Description;
use super::options::{SpdkOptions, Transport};
use super::raw::controller::Controller;
use super::raw::environment::has_transport;
use super::shared::{Namespace, Notice, Shared, Stage};
use super::supervisor::{Supervisor, connect_settings};

/// The most namespaces that an error names.
const NAMED_MAX: usize = 32;

/// How long reactors are waited for when the process exits.
const EXIT_TIME_MAX: Duration = Duration::from_secs(1);

/// Controllers in use, by SPDK's text for where they are.
static CONTROLLERS: Mutex<BTreeMap<String, InUse>> = Mutex::new(BTreeMap::new());

struct InUse {
    lease: Weak<Lease>,
    supervisor: JoinHandle<()>,
}

/// The use of a controller. With the last one the controller is detached.
pub(super) struct Lease {
    shared: Arc<Shared>,
}

impl Lease {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.notify(Notice::Close);
    }
}

/// Opens a namespace. Blocks.
pub(super) fn open(options: SpdkOptions) -> Result<(Arc<Namespace>, Arc<Lease>), SpdkError> {
    match &options.transport {
        Transport::Pcie(address) => match bus::holder(Path::new(bus::SYSFS), *address) {
            Holder::Program => {}
            Holder::Absent => {
                let address = address.to_string();
                return Err(SpdkError::NoDevice { address });
            }
            Holder::Nobody => return Err(not_ours(&options, "nobody")),
            Holder::Kernel { driver } => return Err(not_ours(&options, &driver)),
        },
        Transport::Rdma(_) | Transport::Tcp(_) => {}
    }
    environment::ensure(options.transport.is_pcie())?;
    for (is_wanted, name, text) in [
        (matches!(options.transport, Transport::Rdma(_)), c"RDMA", "RDMA"),
        (matches!(options.transport, Transport::Tcp(_)), c"TCP", "TCP"),
    ] {
        if is_wanted && !has_transport(name) {
            return Err(SpdkError::Transport { name: text });
        }
    }
    let mut controllers = CONTROLLERS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = options.transport.identifier();
    if let Some(in_use) = controllers.get(&key) {
        if let Some(lease) = in_use.lease.upgrade() {
            return join(options, lease);
        }
        if let Some(in_use) = controllers.remove(&key) {
            // It was the last use: its supervisor detaches the controller and ends.
            let _ended = in_use.supervisor.join();
        }
    }
    let controller = Controller::connect(&connect_settings(&options)).map_err(|_| SpdkError::Connect {
        place: options.transport.to_string(),
    })?;
    let controller = Arc::new(controller);
    let namespace = Arc::new(describe(&controller, options.namespace)?);
    let (sender, receiver) = mpsc::channel();
    let shared = Arc::new(Shared::new(options, Arc::clone(&controller), sender));
    shared.add_namespace(&namespace);
    let supervisor = Supervisor::new(Arc::clone(&shared), controller, receiver);
    let thread = std::thread::Builder::new()
        .name("pollux-spdk".to_owned())
        .spawn(move || supervisor.run())
        .map_err(|_| SpdkError::NoThread)?;
    let lease = Arc::new(Lease { shared });
    controllers.insert(
        key,
        InUse {
            lease: Arc::downgrade(&lease),
            supervisor: thread,
        },
    );
    Ok((namespace, lease))
}

fn not_ours(options: &SpdkOptions, driver: &str) -> SpdkError {
    SpdkError::Driver {
        address: options.transport.to_string(),
        driver: driver.to_owned(),
    }
}

/// One more namespace of a controller in use.
fn join(options: SpdkOptions, lease: Arc<Lease>) -> Result<(Arc<Namespace>, Arc<Lease>), SpdkError> {
    let shared = lease.shared();
    let place = options.transport.to_string();
    let same = SpdkOptions {
        name: options.name.clone(),
        namespace: options.namespace,
        ..shared.options.clone()
    };
    if same != options {
        return Err(SpdkError::OtherSettings { place });
    }
    let (_, Stage::Live(controller)) = shared.stage() else {
        return Err(SpdkError::Connect { place });
    };
    let described = describe(&controller, options.namespace);
    let namespace = described?;
    let known = shared.namespaces();
    // A namespace that is open twice is one: what is in its cache concerns both.
    let namespace = match known.into_iter().find(|known| known.id == namespace.id) {
        Some(known) => known,
        None => {
            let namespace = Arc::new(namespace);
            shared.add_namespace(&namespace);
            namespace
        }
    };
    Ok((namespace, lease))
}

fn describe(controller: &Controller, wanted: Option<u32>) -> Result<Namespace, SpdkError> {
    let known = || controller.namespaces(NAMED_MAX);
    let id = match wanted {
        Some(id) => id,
        None => match known()[..] {
            [id] => id,
            _ => return Err(SpdkError::WhichNamespace { known: known() }),
        },
    };
    let facts = controller
        .namespace(id)
        .ok_or_else(|| SpdkError::Namespace { id, known: known() })?;
    let description = Description::read(&controller.page(), &facts, controller.pieces_max())?;
    Ok(Namespace::new(id, description))
}

/// The process exits: controllers that nobody uses are detached, so that drives know that this is a regular
/// end, and no reactor that still runs calls SPDK from then on, which takes its memory apart next.
pub(super) fn leave_all() {
    let in_use = match CONTROLLERS.try_lock() {
        Ok(mut controllers) => std::mem::take(&mut *controllers),
        // Somebody is opening a controller, for longer than can be waited here.
        Err(_) => return,
    };
    for (_, InUse { lease, supervisor }) in in_use {
        if let Some(lease) = lease.upgrade() {
            // Reactors that still run leave their queues alone.
            lease.shared.begin_and_wait_for(Stage::Held, EXIT_TIME_MAX);
            lease.shared.notify(Notice::Close);
            let _ended = supervisor.join();
            // Nothing is detached by whoever lets go last.
            let _kept = std::mem::ManuallyDrop::new(lease);
        } else {
            let _ended = supervisor.join();
        }
    }
}
