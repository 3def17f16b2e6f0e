//! Why a pool cannot be had.

use pollux_api::engine::v1::Reason;
use pollux_device::{DeviceUri, OpenError, UringError};
use pollux_pool::PoolError;
use pollux_pool::shared::SharedError;
use pollux_reactor::RemoteCallError;

use super::Refusal;

/// Why a pool or a volume of one cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PoolsError {
    /// A device cannot be opened.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// Devices do not hold a pool that can be opened, or cannot be made into one.
    #[error("{devices}: {source}{}", hint(.devices, .source))]
    Devices {
        /// The device it is about, or all of them.
        devices: String,
        /// Why.
        source: Box<PoolError>,
    },
    /// A device holds something.
    #[error("{uri} holds {what}: give another device, or give up its content with --overwrite {uri}")]
    Holds {
        /// The device.
        uri: String,
        /// What.
        what: String,
    },
    /// Content is given up of a device that is not one of the pool.
    #[error("{uri} is to be overwritten, and is not among the devices of the pool")]
    NotADevice {
        /// The device.
        uri: String,
    },
    /// Volumes are in use.
    #[error("the pool {name:?} is in use by {}: remove them from what is served first", .volumes.join(", "))]
    InUse {
        /// The pool.
        name: String,
        /// The volumes and snapshots.
        volumes: Vec<String>,
    },
    /// There is a pool of this name already.
    #[error("a pool {name:?} is open already: export it first")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Devices hold another pool than it was said.
    #[error("the devices hold the pool {found:?}, and not {name:?}")]
    OtherName {
        /// The name that was given.
        name: String,
        /// The name of the pool.
        found: String,
    },
    /// No such pool.
    #[error("no pool {name:?} is open here{}", others(.open))]
    NotOpen {
        /// The name.
        name: String,
        /// Those there are.
        open: Vec<String>,
    },
    /// A pool could not be left in good order.
    #[error("cannot export the pool {name:?}: {source}; it is as after a crash, and can be imported")]
    Export {
        /// Its name.
        name: String,
        /// Why.
        source: Box<PoolError>,
    },
    /// The pool said no.
    #[error("pool {name:?}: {source}{}", way(.source))]
    Pool {
        /// Its name.
        name: String,
        /// Why.
        source: Box<PoolError>,
    },
    /// A pool that is open is to be opened otherwise.
    #[error(
        "the pool {name:?} is open here, {}read-only: export it first",
        if *.read_only { "" } else { "not " }
    )]
    OpenOtherwise {
        /// Its name.
        name: String,
        /// How it is open.
        read_only: bool,
    },
    /// The engine stops.
    #[error("the engine is stopping and opens no pools")]
    Closed,
    /// A reactor takes no messages.
    #[error("{0}; look at the log of the engine")]
    Reactor(#[from] RemoteCallError),
    /// There is nobody to ask.
    #[error("the engine has no reactor")]
    NoReactor,
}

/// What is open instead.
fn others(open: &[String]) -> String {
    if open.is_empty() {
        ": give its devices with --pool DEVICE_URI, or import them".to_owned()
    } else {
        format!(
            ": there {} {}",
            if open.len() == 1 { "is" } else { "are" },
            open.join(", ")
        )
    }
}

/// What else helps, for devices that are files.
fn hint(devices: &str, source: &PoolError) -> &'static str {
    let is_file = devices.starts_with("uring:") && !devices.contains("block=");
    match source {
        PoolError::TornWrites { .. } if is_file => ", or add block=4096 to the URI of a file",
        _ => "",
    }
}

/// The way to what a pool refused, in the words of the command line.
fn way(source: &PoolError) -> &'static str {
    match source {
        PoolError::Shrink { .. } => ", with --may-drop",
        PoolError::Busy { .. } => " (`pollux-engine namespace list` shows what is served)",
        PoolError::ReadOnly => {
            " (`pool show` tells why; export it, and import it without --read-only or with a newer engine)"
        }
        _ => "",
    }
}

impl PoolsError {
    /// Why nothing was made of devices, with the URI of the one it is about.
    pub(super) fn of_devices(uris: &[DeviceUri], refusal: Refusal) -> Self {
        let all = || {
            let all: Vec<String> = uris.iter().map(ToString::to_string).collect();
            all.join(", ")
        };
        let one = |device: usize| uris.get(device).map_or_else(all, ToString::to_string);
        let source = match refusal {
            Refusal::Holds { device, what } => {
                let uri = one(device);
                return Self::Holds { uri, what };
            }
            Refusal::Pool(source) => source,
        };
        let devices = match &source {
            PoolError::TornWrites { device }
            | PoolError::TooSmall { device, .. }
            | PoolError::InUse { device, .. }
            | PoolError::NoPool { device, .. }
            | PoolError::OtherPool { device, .. }
            | PoolError::Foreign { device, .. }
            | PoolError::Shrunk { device, .. } => one(*device),
            _ => all(),
        };
        Self::Devices {
            devices,
            source: source.into(),
        }
    }

    /// What a pool said, with its name.
    pub fn of_pool(name: &str, source: PoolError) -> Self {
        Self::Pool {
            name: name.to_owned(),
            source: source.into(),
        }
    }

    /// What the owner of a pool said, or why it said nothing.
    pub(crate) fn of_shared(name: &str, error: SharedError) -> Self {
        match error {
            SharedError::Pool(source) => Self::of_pool(name, source),
            SharedError::Reactor(error) => Self::Reactor(error),
        }
    }

    /// Whether a volume is in use, whose users may be about to leave.
    pub(crate) fn is_volume_in_use(&self) -> bool {
        matches!(self, Self::Pool { source, .. } if matches!(**source, PoolError::Busy { .. }))
    }

    /// The reason for machines.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Device(OpenError::Failed { .. }) => Reason::DeviceUnavailable,
            Self::Device(OpenError::Uri(_) | OpenError::Nesting { .. }) => Reason::UriInvalid,
            Self::Devices { .. } | Self::Export { .. } => Reason::PoolUnavailable,
            Self::Holds { .. } => Reason::DeviceHoldsData,
            Self::NotADevice { .. } => Reason::FieldInvalid,
            Self::InUse { .. } => Reason::PoolInUse,
            Self::NameTaken { .. } | Self::OpenOtherwise { .. } => Reason::PoolExists,
            Self::NotOpen { .. } | Self::OtherName { .. } => Reason::PoolNotFound,
            Self::Pool { source, .. } => reason_of(source),
            Self::Closed => Reason::Draining,
            Self::Reactor(_) | Self::NoReactor => Reason::Internal,
        }
    }

    /// Whether somebody else has a device, who may be about to let go of it.
    pub(crate) fn is_device_in_use(&self) -> bool {
        matches!(self, Self::Device(error) if is_in_use(error))
    }
}

fn reason_of(error: &PoolError) -> Reason {
    match error {
        PoolError::NoSpace
        | PoolError::NoRoomForThick { .. }
        | PoolError::NoRoomToDrain { .. }
        | PoolError::NoRoomForJournal { .. } => Reason::NoSpace,
        PoolError::NoDevice { .. } | PoolError::LastDevice { .. } => Reason::FieldInvalid,
        PoolError::DevicesChanging | PoolError::Alignment { .. } => Reason::PoolInUse,
        PoolError::CannotCopy { .. } => Reason::PoolUnavailable,
        PoolError::Name { .. } | PoolError::Empty | PoolError::TooLarge { .. } => Reason::FieldInvalid,
        PoolError::Exists { .. } => Reason::VolumeExists,
        PoolError::NotFound { .. } => Reason::VolumeNotFound,
        PoolError::Kind { .. } => Reason::VolumeKind,
        PoolError::Busy { .. } => Reason::VolumeInUse,
        PoolError::Shrink { .. } => Reason::ShrinkRefused,
        PoolError::Closed => Reason::PoolNotFound,
        PoolError::ReadOnly => Reason::PoolReadOnly,
        PoolError::Device(_) | PoolError::Journal(_) | PoolError::Stopped(_) | PoolError::Page(_) => {
            Reason::PoolStopped
        }
        _ => Reason::Internal,
    }
}

/// Whether a device cannot be opened as somebody else has it.
pub(crate) fn is_in_use(error: &OpenError) -> bool {
    match error {
        OpenError::Failed { source, .. } => matches!(source.downcast_ref(), Some(UringError::InUse { .. })),
        OpenError::Uri(_) | OpenError::Nesting { .. } => false,
    }
}
