//! NVMe drives by SPDK's driver: `pcie:///0000:5e:00.0/1`, a PCI address and the number of a namespace.
//!
//! SPDK is the NVMe driver and nothing more: it attaches, makes queue pairs, takes commands and tells of
//! their completions. Each reactor has a queue pair of its own to each namespace and polls it; no other
//! thread is in the way of data, and a buffer of a reactor goes to the drive as it is.
//!
//! | module | what |
//! | --- | --- |
//! | [`options`] | where a drive is, and the URI |
//! | [`environment`] | SPDK's environment in this process |
//! | [`open`] | controllers in use, opened once and shared by their namespaces |
//! | [`supervisor`] | the thread that looks after a controller: resets, removal, return, health |
//! | [`shared`] | what supervisor and queues know together |
//! | [`block`] | requests to commands |
//! | [`queue`], [`slots`] | the queue of a reactor |
//! | [`reach`] | memory that drives reach, and copies of what they do not |
//! | [`ledger`] | what may be in a volatile cache |
//! | [`identify`], [`status`] | what drives say about themselves, and their errors |
//! | [`raw`] | all calls into SPDK |
//!
//! # What is kept, and how
//!
//! - FLUSH and FUA become the commands and bits of that name; every flush is sent, also to drives that have
//!   no volatile cache.
//! - Freed blocks read as zeros: by Write Zeroes with the Deallocate bit, as Dataset Management promises
//!   nothing.
//! - A request that takes too long is aborted; if that takes too long the controller is reset, and what else
//!   was under way is sent again; if that does not help, the device is gone. Its memory is given back only
//!   when the controller is disabled or detached.

mod block;
mod bus;
mod environment;
mod error;
mod identify;
mod ledger;
mod open;
mod options;
mod queue;
#[allow(
    unsafe_code,
    reason = "what SPDK is asked to do is not checked by the compiler"
)]
mod raw;
mod reach;
mod shared;
mod slots;
mod status;
mod supervisor;

use std::rc::Rc;
use std::sync::Arc;

pub use error::SpdkError;
pub use options::{DEPTH_MAX, FabricsAddress, PciAddress, SpdkOptions, Transport};

use crate::events::Subscription;
use crate::geometry::Geometry;
use crate::registry::{OpenError, Opener, Opening, Registry};
use crate::uri::DeviceUri;
use crate::{Attaching, BlockDevice, Device, Health, blocking};
use block::SpdkQueue;
use open::Lease;
use queue::Queue;
use shared::{Namespace, Shared};

/// The scheme of drives on PCI.
pub const SCHEME: &str = "pcie";

/// A namespace of a controller that SPDK drives.
pub struct SpdkDevice {
    name: String,
    namespace: Arc<Namespace>,
    lease: Arc<Lease>,
}

impl SpdkDevice {
    /// Opens a namespace, and attaches its controller unless it is in use already; on another thread.
    ///
    /// # Errors
    ///
    /// [`SpdkError`].
    pub async fn open(options: SpdkOptions) -> Result<Arc<Self>, SpdkError> {
        let name = options.name.clone();
        let opened = blocking::run(move || open::open(options)).await;
        let (namespace, lease) = opened.ok_or(SpdkError::NoThread)??;
        Ok(Arc::new(Self {
            name,
            namespace,
            lease,
        }))
    }

    /// Model and serial number, as the drive tells them.
    pub fn model_and_serial(&self) -> (&str, &str) {
        let identity = &self.namespace.description.identity;
        (&identity.model, &identity.serial)
    }

    fn name_text(&self) -> &str {
        &self.name
    }

    fn shared(&self) -> &Arc<Shared> {
        self.lease.shared()
    }

    fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }
}

impl std::fmt::Debug for SpdkDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SpdkDevice")
            .field("name", &self.name)
            .field("controller", &self.shared().options.transport)
            .field("geometry", &self.namespace.geometry())
            .finish()
    }
}

impl Device for SpdkDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.namespace.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let queue = Queue::new(self)?;
            // One that is down fails its requests, and lives again when the drive is back.
            queue.settled().await;
            Ok(Rc::new(SpdkQueue(queue)) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.namespace.publisher.subscribe()
    }

    fn health(&self) -> Health {
        self.shared().health()
    }
}

/// Opens drives on PCI.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpdkOpener;

impl Opener for SpdkOpener {
    fn open<'a>(&'a self, _registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            let options = SpdkOptions::from_uri(uri)?;
            let device = SpdkDevice::open(options).await;
            Ok(device.map_err(|error| OpenError::failed(uri, error))? as Arc<dyn Device>)
        })
    }
}
