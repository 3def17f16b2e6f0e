//! Why an engine does not start: one line that says what, where, and how to mend it.

use std::io;

use pollux_nvme::target::{StoreError, TargetError};
use pollux_reactor::net::Address;

use crate::cluster::JoinError;
use crate::engine::ChangeError;
use crate::logging::LogError;
use crate::pools::{MemoryError, PoolsError};
use crate::replicas::ReplicasError;
use crate::settings::{ControlAddress, SettingsError};

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What the engine remembers cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is nothing to do.
    #[error(
        "nothing to serve: give the URI of a device, such as malloc:///demo?size=1GiB, or --grpc unix:PATH to add \
         namespaces later"
    )]
    Nothing,
    /// Metrics and health cannot be served.
    #[error(transparent)]
    Http(#[from] pollux_http::HttpError),
    /// The certificates of metrics and health cannot be used.
    #[error(transparent)]
    Tls(#[from] pollux_tls::TlsError),
    /// The threads beside the reactors cannot be had.
    #[error("cannot start the control threads: {source}; raise the limits of the process (`ulimit -a`)")]
    Control {
        /// What the operating system said.
        source: io::Error,
    },
    /// A reactor cannot be had.
    #[error(
        "cannot start reactor {reactor}{}: {source}; `pollux-engine doctor` tells what this machine offers",
        .core.map_or_else(String::new, |core| format!(" on core {core}"))
    )]
    Reactor {
        /// Its number.
        reactor: u32,
        /// Its core.
        core: Option<u32>,
        /// What went wrong.
        source: io::Error,
    },
    /// The target or its subsystem cannot be had.
    #[error("cannot make subsystem {subsystem}: {source}")]
    Target {
        /// Its name.
        subsystem: String,
        /// Why.
        source: TargetError,
    },
    /// A host's credentials cannot be had.
    #[error("host {host} cannot authenticate: {error}")]
    Authentication {
        /// Its name.
        host: String,
        /// Why.
        error: String,
    },
    /// What is kept of reservations cannot be read.
    #[error("cannot keep reservations: {0}")]
    Reservations(StoreError),
    /// A device cannot be served.
    #[error(transparent)]
    Namespace(#[from] ChangeError),
    /// A pool cannot be opened.
    #[error(transparent)]
    Pool(#[from] PoolsError),
    /// A replica cannot be opened.
    #[error(transparent)]
    Replica(#[from] ReplicasError),
    /// It cannot be a node of a cluster.
    #[error(transparent)]
    Cluster(#[from] JoinError),
    /// Hosts cannot connect.
    #[error("{source}; {}", mend_listening(.address, .source))]
    Listen {
        /// Where.
        address: Address,
        /// What the reactor said, with the address.
        source: io::Error,
    },
    /// The control interface cannot be had.
    #[error("cannot serve the control interface at {address}: {source}; {}", mend_control(.address, .source))]
    Grpc {
        /// Where.
        address: ControlAddress,
        /// What the operating system said.
        source: io::Error,
    },
}

fn mend_listening(address: &Address, source: &io::Error) -> String {
    match (address, source.kind()) {
        (Address::Tcp(address), io::ErrorKind::AddrInUse) => {
            let port = address.port();
            format!("see who does with `ss -ltnp sport = :{port}`, or choose another port")
        }
        (Address::Tcp(_), io::ErrorKind::AddrNotAvailable) => {
            "give an address of this machine (`ip -brief address`), or 0.0.0.0 for all of them".to_owned()
        }
        (Address::Tcp(_), io::ErrorKind::PermissionDenied) => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE: choose a higher one".to_owned()
        }
        (Address::Unix(_), io::ErrorKind::PermissionDenied) => {
            "choose a directory that this user can write to".to_owned()
        }
        _ => "choose another address".to_owned(),
    }
}

fn mend_control(address: &ControlAddress, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "another engine listens there: choose another address with --grpc".to_owned()
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a directory that this user can write to, as unix:/tmp/pollux/engine.sock".to_owned()
        }
        io::ErrorKind::AlreadyExists => match address.path() {
            Some(path) => format!("remove {}, or choose another path with --grpc", path.display()),
            None => "choose another address with --grpc".to_owned(),
        },
        _ => "choose another address with --grpc".to_owned(),
    }
}
