//! Why what is served could not be changed.

use pollux_api::engine::v1::Reason;
use pollux_device::{ByteSize, GrowError, IoError, OpenError};
use pollux_nvme::target::SubsystemError;
use pollux_reactor::RemoteCallError;
use pollux_volume::qos::QosError;

use crate::pools;

/// Why what is served could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device is served already.
    #[error("{uri} is served already, as namespace {id}: remove that first, or ask for it by its identifier")]
    DeviceInUse {
        /// The device.
        uri: String,
        /// Its namespace.
        id: u32,
    },
    /// The subsystem refused.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// There is no such namespace.
    #[error("there is no namespace {id}: `pollux-engine namespace list` shows those there are")]
    NotFound {
        /// The identifier.
        id: u32,
    },
    /// A namespace is gone, but its device may lack what it completed.
    #[error("namespace {id} was removed, but {uri} could not be flushed: {source}")]
    Flush {
        /// The identifier it had.
        id: u32,
        /// The device.
        uri: String,
        /// Why.
        source: IoError,
    },
    /// The device kept its size.
    #[error("namespace {id} cannot be resized to {size}: {source}")]
    Grow {
        /// The identifier.
        id: u32,
        /// The size asked for.
        size: ByteSize,
        /// Why.
        source: GrowError,
    },
    /// Limits that cannot be kept.
    #[error(transparent)]
    Qos(#[from] QosError),
    /// The engine stops.
    #[error("the engine is stopping and takes no changes")]
    Draining,
    /// A reactor takes no messages.
    #[error("{0}; look at the log of the engine")]
    Reactor(#[from] RemoteCallError),
    /// There is nobody to ask.
    #[error("the engine has no reactor")]
    NoReactor,
}

impl ChangeError {
    /// Whether somebody else has the device, who may be about to let go of it.
    pub(super) fn is_device_in_use(&self) -> bool {
        match self {
            Self::Open(error) => pools::is_in_use(error),
            _ => false,
        }
    }

    /// The reason for machines.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Open(OpenError::Failed { .. }) => Reason::DeviceUnavailable,
            Self::Open(OpenError::Uri(_) | OpenError::Nesting { .. }) => Reason::UriInvalid,
            Self::DeviceInUse { .. } | Self::Subsystem(SubsystemError::IdentifierTaken { .. }) => {
                Reason::DeviceInUse
            }
            Self::Subsystem(SubsystemError::NamespaceId { .. }) => Reason::NamespaceIdInvalid,
            Self::Subsystem(SubsystemError::NamespaceExists { .. }) => Reason::NamespaceIdInUse,
            Self::Subsystem(SubsystemError::Full { .. }) => Reason::NamespacesExhausted,
            Self::Subsystem(SubsystemError::BlockSize { .. } | SubsystemError::Reservations { .. }) => {
                Reason::DeviceUnavailable
            }
            Self::NotFound { .. } | Self::Subsystem(SubsystemError::NoNamespace { .. }) => {
                Reason::NamespaceNotFound
            }
            Self::Grow { source, .. } => match source {
                GrowError::Unsupported => Reason::ResizeUnsupported,
                GrowError::Geometry(_) | GrowError::Shrink { .. } => Reason::SizeInvalid,
                GrowError::Failed(_) => Reason::DeviceUnavailable,
            },
            Self::Draining | Self::Subsystem(SubsystemError::Removed { .. }) => Reason::Draining,
            Self::Qos(_) => Reason::FieldInvalid,
            Self::Flush { .. } => Reason::FlushFailed,
            Self::Subsystem(
                SubsystemError::Name(_)
                | SubsystemError::Text { .. }
                | SubsystemError::ControllerIds { .. }
                | SubsystemError::AccessLog { .. }
                | SubsystemError::NoAccessStates { .. }
                | SubsystemError::Reactor { .. },
            )
            | Self::Reactor(_)
            | Self::NoReactor => Reason::Internal,
        }
    }
}
