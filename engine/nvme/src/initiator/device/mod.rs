//! Remote namespaces as block devices: `nvmf://HOST:4420/NQN`.
//!
//! A [`NvmfDevice`] is one controller: its admin queue lives on the reactor that opened it, where the
//! supervisor task looks after it, and each reactor that attaches gets an I/O queue of its own. When the
//! target is lost, requests wait while the supervisor makes sure that what was lost is dead, and connects
//! again.
//!
//! | module | what |
//! | --- | --- |
//! | [`options`] | the settings, and the URI |
//! | [`plan`] | requests to commands |
//! | [`queue`] | the I/O queue of a reactor |
//! | [`execute`] | a command to its end |
//! | [`supervisor`] | the controller, and its loss |
//! | `rdma` | RDMA, by SPDK |
//! | [`reservations`] | who may access the namespace |
//! | [`follow`] | events, aborts and health |
//! | [`holes`] | which blocks are allocated |
//! | [`shared`] | what all reactors know |
//! | [`ledger`] | what may be in a volatile cache |

mod endpoint;
mod execute;
mod follow;
mod holes;
mod ledger;
mod options;
mod plan;
mod queue;
mod race;
#[cfg(feature = "spdk")]
mod rdma;
mod reservations;
mod shared;
mod supervisor;

use std::sync::Arc;

use pollux_device::events::Subscription;
use pollux_device::{Device, DeviceUri, Geometry, Health, OpenError, Opener, Opening, Registry};
use pollux_reactor::spawn;

use super::error::InitiatorError;
use super::namespace::NamespaceSelector;
pub use endpoint::Endpoint;
pub use holes::ask_allocated;
use options::TransportKind;
pub use options::{DeallocateBy, LossOptions, NvmfOptions, PORT, QUEUES_MAX, Resubmit, Unflushed};
use plan::Limits;
pub use queue::WAITING_MAX;
pub use reservations::Reservations;
use shared::{Phase, Shared};
use supervisor::{Supervisor, connect};

/// The scheme of remote namespaces.
pub const SCHEME: &str = "nvmf";

/// A remote namespace.
#[derive(Debug)]
pub struct NvmfDevice {
    shared: Arc<Shared>,
}

impl NvmfDevice {
    /// Connects to a namespace. The current reactor looks after it from then on, and must outlive its use.
    ///
    /// # Errors
    ///
    /// [`InitiatorError`]: not reachable, refused, or no such namespace.
    pub async fn open(options: NvmfOptions) -> Result<Arc<Self>, InitiatorError> {
        let connected = connect(&options, options.namespace).await?;
        let geometry = connected.namespace.geometry;
        let limits = Limits::new(
            connected.controller.description(),
            &connected.namespace,
            options.deallocate,
        );
        let subsystem = &options.subsystem;
        // Two namespaces of one subsystem are two devices, which whoever serves them tells apart by their
        // names.
        let name = match options.namespace {
            NamespaceSelector::Only => subsystem.to_string(),
            NamespaceSelector::Id(id) => format!("{subsystem}:{id}"),
            NamespaceSelector::Uuid(uuid) => format!("{subsystem}:{uuid}"),
        };
        let association = connected.association(0, 0);
        let shared = Arc::new(Shared::new(name, options, geometry, limits, association));
        spawn(Supervisor::new(shared.clone(), connected).run()).detach();
        Ok(Arc::new(Self { shared }))
    }

    /// Whether the device is connected to its target now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.shared.phase(), Phase::Live(_))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for NvmfDevice {
    fn drop(&mut self) {
        // Queues hold the device, so there is none any more but those that still drain.
        self.shared.update(|state| state.closing = true);
    }
}

impl Device for NvmfDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry()
    }

    fn attach(self: Arc<Self>) -> pollux_device::Attaching {
        Box::pin(queue::NvmfQueue::attach(self))
    }

    fn subscribe(&self) -> Subscription {
        self.shared.subscribe()
    }

    fn health(&self) -> Health {
        self.shared.health()
    }
}

/// Opens `nvmf` devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct NvmfOpener;

impl NvmfOpener {
    /// Adds the scheme to a registry.
    pub fn register(registry: &mut Registry) {
        registry.register(SCHEME, Arc::new(Self));
    }
}

impl Opener for NvmfOpener {
    fn open<'a>(&'a self, _: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            match TransportKind::of(uri)? {
                TransportKind::Tcp => {}
                #[cfg(feature = "spdk")]
                TransportKind::Rdma => return rdma::open(uri).await,
                #[cfg(not(feature = "spdk"))]
                TransportKind::Rdma => {
                    let missing = "RDMA needs an engine that was built with the feature `spdk`";
                    return Err(OpenError::failed(uri, missing));
                }
            }
            let options = NvmfOptions::from_uri(uri)?;
            let device = NvmfDevice::open(options)
                .await
                .map_err(|error| OpenError::failed(uri, error))?;
            Ok(device as Arc<dyn Device>)
        })
    }
}
