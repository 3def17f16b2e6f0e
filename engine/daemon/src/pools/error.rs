//! Why a pool cannot be had.

use pollux_device::{DeviceUri, OpenError, UringError};
use pollux_pool::PoolError;
use pollux_pool::shared::SharedError;
use pollux_reactor::RemoteCallError;

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
    /// There is a pool of this name already.
    #[error("a pool {name:?} is open already: export it first")]
    NameTaken {
        /// The name.
        name: String,
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
    #[error("pool {name:?}: {source}")]
    Pool {
        /// Its name.
        name: String,
        /// Why.
        source: Box<PoolError>,
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

impl PoolsError {
    /// What a pool said about devices, with the name of the one it is about.
    pub(super) fn of_devices(uris: &[DeviceUri], source: PoolError) -> Self {
        let about = match &source {
            PoolError::TornWrites { device }
            | PoolError::TooSmall { device, .. }
            | PoolError::InUse { device, .. }
            | PoolError::NoPool { device, .. }
            | PoolError::OtherPool { device, .. }
            | PoolError::Foreign { device, .. }
            | PoolError::Shrunk { device, .. } => uris.get(*device),
            _ => None,
        };
        let devices = match about {
            Some(uri) => uri.to_string(),
            None => {
                let all: Vec<String> = uris.iter().map(ToString::to_string).collect();
                all.join(", ")
            }
        };
        Self::Devices {
            devices,
            source: source.into(),
        }
    }

    /// What a pool said, with its name.
    pub fn of_pool(name: &str, error: SharedError) -> Self {
        match error {
            SharedError::Pool(source) => Self::Pool {
                name: name.to_owned(),
                source: source.into(),
            },
            SharedError::Reactor(error) => Self::Reactor(error),
        }
    }

    /// Whether somebody else has a device, who may be about to let go of it.
    pub(crate) fn is_device_in_use(&self) -> bool {
        matches!(self, Self::Device(error) if is_in_use(error))
    }
}

/// Whether a device cannot be opened as somebody else has it.
pub(crate) fn is_in_use(error: &OpenError) -> bool {
    match error {
        OpenError::Failed { source, .. } => matches!(source.downcast_ref(), Some(UringError::InUse { .. })),
        OpenError::Uri(_) | OpenError::Nesting { .. } => false,
    }
}
