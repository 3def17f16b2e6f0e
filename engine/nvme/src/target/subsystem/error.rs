//! Why a subsystem or a namespace could not be changed.

use pollux_reactor::ReactorId;

use crate::target::reservation::StoreError;
use crate::wire::nqn::{Nqn, NqnError};

/// Why a subsystem or a namespace could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubsystemError {
    /// A name is no NVMe Qualified Name.
    #[error("{0}")]
    Name(#[from] NqnError),
    /// The serial number or model cannot be told to a host.
    #[error("{what} {text:?} of subsystem {nqn} is not 1 to {bytes_max} printable ASCII characters")]
    Text {
        /// `serial` or `model`.
        what: &'static str,
        /// The text.
        text: String,
        /// The subsystem.
        nqn: Nqn,
        /// How long it can be.
        bytes_max: usize,
    },
    /// The namespace identifier is out of bounds.
    #[error("namespace {id} is out of bounds: use 1 to {id_max}")]
    NamespaceId {
        /// The identifier.
        id: u32,
        /// The highest one.
        id_max: u32,
    },
    /// The namespace identifier is taken.
    #[error("namespace {id} of subsystem {nqn} exists: choose another identifier, or remove it first")]
    NamespaceExists {
        /// The identifier.
        id: u32,
        /// The subsystem.
        nqn: Nqn,
    },
    /// There is no such namespace.
    #[error("subsystem {nqn} has no namespace {id}")]
    NoNamespace {
        /// The identifier.
        id: u32,
        /// The subsystem.
        nqn: Nqn,
    },
    /// Every namespace identifier is taken.
    #[error("subsystem {nqn} has as many namespaces as it can: raise namespaces_max")]
    Full {
        /// The subsystem.
        nqn: Nqn,
    },
    /// Hosts could not tell two namespaces apart.
    #[error(
        "hosts could not tell device {device:?} from namespace {id}: give it another name, or in the \
         settings a uuid of its own"
    )]
    IdentifierTaken {
        /// The device.
        device: String,
        /// The namespace that has the identifier.
        id: u32,
    },
    /// A device whose blocks no LBA format describes.
    #[error(
        "device {device:?} has blocks of {block_bytes} bytes: \
         only powers of two from 512 to 65536 can be served"
    )]
    BlockSize {
        /// The device.
        device: String,
        /// Its block size.
        block_bytes: u32,
    },
    /// The reactor that is to watch the device takes no messages.
    #[error("device {device:?} cannot be watched: {reactor} is overloaded or stopped")]
    Reactor {
        /// The device.
        device: String,
        /// The reactor.
        reactor: ReactorId,
    },
    /// The controller identifiers are no range within bounds.
    #[error("controller identifiers {first} to {last} of subsystem {nqn}: use a range within 1 to 65519")]
    ControllerIds {
        /// The lowest.
        first: u16,
        /// The highest.
        last: u16,
        /// The subsystem.
        nqn: Nqn,
    },
    /// Hosts could not read the access log of so many namespaces at once.
    #[error(
        "subsystem {nqn} can have {namespaces_max} namespaces, whose access log is longer than the \
         {transfer_bytes_max} bytes of a transfer: lower namespaces_max"
    )]
    AccessLog {
        /// The subsystem.
        nqn: Nqn,
        /// Namespaces it can have.
        namespaces_max: u32,
        /// The largest transfer.
        transfer_bytes_max: u32,
    },
    /// The hosts of the subsystem are not told of access states.
    #[error("subsystem {nqn} does not report access states: create it with asymmetric_access")]
    NoAccessStates {
        /// The subsystem.
        nqn: Nqn,
    },
    /// What was kept of the reservations of a namespace cannot be read.
    #[error("namespace {id} cannot be served: {error}")]
    Reservations {
        /// The namespace.
        id: u32,
        /// Why.
        error: StoreError,
    },
    /// The subsystem was removed from its target.
    #[error("subsystem {nqn} was removed")]
    Removed {
        /// The subsystem.
        nqn: Nqn,
    },
}
