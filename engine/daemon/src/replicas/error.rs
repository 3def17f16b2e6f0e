//! Why a replica cannot be had.

use pollux_api::engine::v1::Reason;
use pollux_device::OpenError;
use pollux_reactor::RemoteCallError;
use uuid::Uuid;

use super::REPLICAS_MAX;
use crate::pools::{PoolsError, is_in_use};

/// Why a replica cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReplicasError {
    /// Its device cannot be opened.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// Its pool refused.
    #[error(transparent)]
    Pool(#[from] PoolsError),
    /// Its device is no replica and cannot be made one, or is one that cannot be used.
    #[error("{device} cannot be used as a replica: {why}")]
    Unusable {
        /// The device.
        device: String,
        /// Why.
        why: String,
    },
    /// There is another replica of this UUID.
    #[error("replica {replica} is there already, of volume {volume}: give each replica a UUID of its own")]
    Exists {
        /// The replica.
        replica: Uuid,
        /// The volume that it is a copy of.
        volume: Uuid,
    },
    /// No such replica.
    #[error("there is no replica {replica} here")]
    NotFound {
        /// The replica.
        replica: Uuid,
    },
    /// As many as there may be.
    #[error("the engine has {REPLICAS_MAX} replicas already, and takes no more")]
    Full,
    /// The engine stops.
    #[error("the engine is stopping and takes no changes")]
    Closed,
    /// A reactor takes no messages.
    #[error("{0}; look at the log of the engine")]
    Reactor(#[from] RemoteCallError),
    /// There is nobody to ask.
    #[error("the engine has no reactor")]
    NoReactor,
}

impl ReplicasError {
    /// The reason for machines.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Device(OpenError::Failed { .. }) => Reason::DeviceUnavailable,
            Self::Device(OpenError::Uri(_) | OpenError::Nesting { .. }) => Reason::UriInvalid,
            Self::Pool(error) => error.reason(),
            Self::Unusable { .. } => Reason::ReplicaUnusable,
            Self::Exists { .. } => Reason::ReplicaExists,
            Self::NotFound { .. } => Reason::ReplicaNotFound,
            Self::Full => Reason::NoSpace,
            Self::Closed => Reason::Draining,
            Self::Reactor(_) | Self::NoReactor => Reason::Internal,
        }
    }

    /// Whether somebody else has the device, who may be about to let go of it.
    pub(super) fn is_device_in_use(&self) -> bool {
        matches!(self, Self::Device(error) if is_in_use(error))
    }
}
