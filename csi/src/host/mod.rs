//! What the node service does to the machine, as a trait: the kernel's NVMe host, file systems and mounts.
//!
//! [`linux`] does it; tests have one of their own in memory. All of it blocks, so it is called from threads
//! that may wait. Nothing here decides anything: what may be formatted, what may be unmounted and in which
//! order is decided above.

pub mod linux;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pollux_api::control::v1::HostSecrets;
use tonic::Code;
use uuid::Uuid;

use crate::capability::FileSystem;
use crate::names;

/// Why a host could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HostError {
    /// The kernel refused.
    #[error("cannot {what} {subject}: {reason}")]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// To what.
        subject: String,
        /// Why not.
        reason: String,
    },
    /// A program failed.
    #[error("{program} failed on {subject}: {reason}")]
    Program {
        /// Which.
        program: &'static str,
        /// With what.
        subject: String,
        /// How, and what it said last.
        reason: String,
    },
    /// The machine lacks something.
    #[error("{what} is missing on this node: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The node and a volume do not authenticate each other.
    #[error("cannot authenticate to {subject}: {reason}")]
    Secrets {
        /// Which volume, and where.
        subject: String,
        /// Whose secret is missing or wrong.
        reason: &'static str,
    },
    /// Somebody uses it.
    #[error("{device} is in use: {by}")]
    Busy {
        /// The device.
        device: String,
        /// By what.
        by: String,
    },
}

impl HostError {
    /// The kernel refused.
    pub fn kernel(what: &'static str, subject: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Kernel {
            what,
            subject: subject.to_string(),
            reason: reason.to_string(),
        }
    }

    /// The code for orchestrators.
    pub fn code(&self) -> Code {
        match self {
            Self::Kernel { .. } | Self::Program { .. } => Code::Internal,
            Self::Secrets { .. } => Code::Unauthenticated,
            Self::Missing { .. } | Self::Busy { .. } => Code::FailedPrecondition,
        }
    }
}

/// How long the kernel waits for a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathTimes {
    /// Seconds between attempts to reach a target again.
    pub reconnect_delay_s: u32,
    /// Seconds after which a path that cannot be reached is given up. If that was the last one, requests
    /// fail.
    pub controller_loss_s: u32,
    /// Seconds after which requests fail while no path can be reached; without, they wait until the last
    /// path is given up. They leave a path for another one at once.
    pub fast_io_fail_s: Option<u32>,
    /// Seconds without a word after which a path counts as lost.
    pub keep_alive_s: u32,
}

impl Default for PathTimes {
    fn default() -> Self {
        Self {
            reconnect_delay_s: 2,
            controller_loss_s: 1800,
            fast_io_fail_s: None,
            keep_alive_s: 5,
        }
    }
}

/// A path that is to be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection<'a> {
    /// The subsystem.
    pub subsystem_nqn: &'a str,
    /// As which host.
    pub host: &'a names::Host,
    /// Where the target listens.
    pub address: SocketAddr,
    /// By what host and subsystem authenticate to each other, if they do.
    pub secrets: Option<&'a HostSecrets>,
    /// How long to wait.
    pub times: PathTimes,
}

/// What a target tells of subsystems.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiscoveryLog {
    /// Changes with the rest.
    pub generation: u64,
    /// Names of subsystems, and where they are.
    pub entries: Vec<(String, SocketAddr)>,
}

/// A path as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// The kernel's name of it, such as `nvme0`.
    pub name: String,
    /// Where it leads to.
    pub address: Option<SocketAddr>,
    /// Its state, such as `live` or `connecting`.
    pub state: String,
    /// What it says of its access to the namespace, such as `optimized`; nothing if it does not know it.
    pub access: Option<String>,
}

impl Controller {
    /// Whether it is connected.
    pub fn is_live(&self) -> bool {
        self.state == "live"
    }

    /// Whether requests can go this way.
    pub fn serves(&self) -> bool {
        let accessible = |access: &String| access == "optimized" || access == "non-optimized";
        self.is_live() && self.access.as_ref().is_none_or(accessible)
    }
}

/// The number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The first part.
    pub major: u32,
    /// The second part.
    pub minor: u32,
}

/// A block device that was found by its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name of it: good for as long as it is there, and for nothing else.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Its size.
    pub size_bytes: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing was ever written, or making a file system was begun and never finished.
    Nothing,
    /// A file system.
    FileSystem {
        /// Its kind, as `blkid` calls it.
        kind: String,
        /// Its UUID; empty if it has none.
        uuid: String,
    },
    /// Something else, told for people.
    Other(String),
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The number of the device of its file system.
    pub number: DeviceNumber,
    /// What of the file system is mounted, such as `/`.
    pub root: String,
    /// Where.
    pub point: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// The device, as it was called when it was mounted.
    pub source: String,
    /// Whether nothing can be written here.
    pub read_only: bool,
    /// Whether nothing can be written anywhere where the file system is mounted.
    pub read_only_everywhere: bool,
}

impl Mount {
    /// Whether a device is mounted here, or its file is.
    pub fn shows(&self, device: &Device) -> bool {
        self.number == device.number || self.is_node_of(&device.name)
    }

    /// Whether the file of a device is mounted here.
    pub fn is_node_of(&self, name: &str) -> bool {
        self.node() == Some(name)
    }

    /// The name of the device whose file is mounted here; nothing if none is.
    pub fn node(&self) -> Option<&str> {
        let has_nodes = self.kind == "devtmpfs" || self.kind == "tmpfs";
        self.root.strip_prefix('/').filter(|_| has_nodes)
    }
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes altogether.
    pub bytes: u64,
    /// Bytes that are free.
    pub bytes_free: u64,
    /// Bytes that those without privileges can still write.
    pub bytes_available: u64,
    /// Inodes altogether; 0 if they are not counted.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// A machine that uses volumes.
pub trait Host: Send + Sync + fmt::Debug + 'static {
    /// Connects a path. One that is there already is fine.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn connect(&self, connection: &Connection<'_>) -> Result<(), HostError>;

    /// The paths to a subsystem.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn controllers(&self, subsystem_nqn: &str) -> Result<Vec<Controller>, HostError>;

    /// Which subsystems the target at an address tells this host of; nothing if that is of a generation that
    /// is known already.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn discover(
        &self,
        address: SocketAddr,
        host: &names::Host,
        known: Option<u64>,
    ) -> Result<Option<DiscoveryLog>, HostError>;

    /// The secrets that the kernel connected a path by, if it did by any.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn secrets(&self, controller: &Controller) -> Result<Option<HostSecrets>, HostError>;

    /// Lets a path go.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn disconnect(&self, controller: &Controller) -> Result<(), HostError>;

    /// Has the kernel look again which namespaces there are and how large they are.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn rescan(&self, controller: &Controller) -> Result<(), HostError>;

    /// Flushes what the target of a device has in caches.
    ///
    /// # Errors
    ///
    /// [`HostError`], also where the target lets this host hear that caches were lost.
    fn flush(&self, device: &Device) -> Result<(), HostError>;

    /// The devices that are this namespace of this subsystem. With multipath it is one at most.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn devices(&self, subsystem_nqn: &str, namespace_uuid: Uuid) -> Result<Vec<Device>, HostError>;

    /// The subsystem that a device belongs to; nothing if it is no NVMe device.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn subsystem_of(&self, number: DeviceNumber) -> Result<Option<String>, HostError>;

    /// Whether nobody uses a device: neither a mount, in whatever namespace, nor another device.
    ///
    /// # Errors
    ///
    /// [`HostError::Busy`], or others.
    fn require_unused(&self, device: &Device) -> Result<(), HostError>;

    /// Keeps a device open until the answer is dropped, so that the kernel keeps what it has read of it: it
    /// forgets a device that nobody has open. Nobody is kept from using it.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn hold(&self, device: &Device) -> Result<Box<dyn Send>, HostError>;

    /// What is on a device.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn content(&self, device: &Device) -> Result<Content, HostError>;

    /// Makes a file system on a device that has [`Content::Nothing`].
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn format(&self, device: &Device, file_system: FileSystem) -> Result<(), HostError>;

    /// Repairs what can be repaired before mounting.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn check(&self, device: &Device, file_system: FileSystem) -> Result<(), HostError>;

    /// Lets a mounted file system grow to the size of its device. One that is as large already is fine.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn grow(&self, device: &Device, file_system: FileSystem, point: &Path) -> Result<(), HostError>;

    /// All mounts, in the order in which they were made.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn mounts(&self) -> Result<Vec<Mount>, HostError>;

    /// Mounts a file system.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn mount(
        &self,
        device: &Device,
        file_system: FileSystem,
        point: &Path,
        read_only: bool,
        options: &[String],
    ) -> Result<(), HostError>;

    /// Mounts a directory, or the file of a device, in a second place.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), HostError>;

    /// Unmounts what was mounted last at a place.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn unmount(&self, point: &Path) -> Result<(), HostError>;

    /// How full the file system at a place is.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn usage(&self, point: &Path) -> Result<Usage, HostError>;

    /// Writes out the file system that is mounted at a place and holds it still, or lets it go on.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    fn freeze(&self, point: &Path, still: bool) -> Result<(), HostError>;
}
