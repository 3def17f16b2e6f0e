//! A pool and its volumes, reached from every thread of the process.
//!
//! A pool belongs to one reactor, its *owner*, and is not locked: others ask the owner by messages. What is
//! here is `Send` and `Sync`; it keeps the pool alive on its owner and finds it there again.
//!
//! - [`SharedPool`] has the owner do something with the pool: management, off the data path.
//! - [`VolumeDevice`] is a volume as a [`Device`](pollux_device::Device). On the owner a queue of it is the
//!   volume itself. On another reactor requests go to the owner and replies come back by two bounded queues
//!   without locks ([`lane`]).
//! - [`OwnedDevice`] is the same for any other block device that one reactor has, and [`Owned`] for what is
//!   no device.

mod device;
mod forward;
mod lane;
mod owned;
mod owned_device;

use std::rc::Rc;
use std::sync::Arc;

use pollux_reactor::{ReactorHandle, RemoteCallError};
use uuid::Uuid;

use crate::pool::{Pool, PoolError};
pub use device::VolumeDevice;
pub use lane::LANE_REQUESTS_MAX;
pub use owned::Owned;
pub use owned_device::OwnedDevice;

/// Why the owner of a pool could not be asked, or what it answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    /// The pool said no.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Its reactor is overloaded or stopped.
    #[error(transparent)]
    Reactor(#[from] RemoteCallError),
}

/// A pool that all threads can have its owner do something with. Clones are of the same pool, which stays in
/// memory as long as there is one of them.
#[derive(Clone)]
pub struct SharedPool {
    pool: Arc<Owned<Pool>>,
    name: Arc<str>,
    uuid: Uuid,
}

impl SharedPool {
    /// Shares a pool; on its owner.
    pub fn new(pool: Rc<Pool>) -> Self {
        Self {
            name: pool.name().into(),
            uuid: pool.uuid(),
            pool: Owned::new(pool),
        }
    }

    /// The name of the pool.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UUID of the pool.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The reactor that has it.
    pub fn owner(&self) -> &ReactorHandle {
        self.pool.owner()
    }

    /// Has the owner do something with the pool, and waits for what it returns; from any executor. It is done
    /// to its end when nobody waits for it any more.
    ///
    /// # Errors
    ///
    /// [`RemoteCallError`] when the owner cannot take the call, or stops before its end.
    pub async fn call<F, T>(
        &self,
        act: impl FnOnce(Rc<Pool>) -> F + Send + 'static,
    ) -> Result<T, RemoteCallError>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.pool.call(act).await
    }

    /// A volume or snapshot of the pool as a device. It is in use as long as there is the device.
    ///
    /// # Errors
    ///
    /// [`SharedError`].
    pub async fn device(&self, volume: &str) -> Result<Arc<VolumeDevice>, SharedError> {
        VolumeDevice::open(self, volume).await
    }
}

impl std::fmt::Debug for SharedPool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SharedPool")
            .field("name", &self.name)
            .field("owner", self.owner())
            .finish()
    }
}
