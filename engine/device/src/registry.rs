//! Which kinds of devices there are, and how each is opened.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::Device;
use crate::faulty::FaultyOpener;
use crate::malloc::MallocOpener;
use crate::null::NullOpener;
use crate::uri::{DeviceUri, NESTING_MAX, UriError};
use crate::uring::UringOpener;

/// Why a device could not be opened: one line that tells the URI, what is wrong, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URI makes no sense.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Devices nested too deeply.
    #[error("{uri}: devices are nested more than {NESTING_MAX} deep; use fewer layers")]
    Nesting {
        /// The URI.
        uri: String,
    },
    /// The URI is fine and the device cannot be had.
    #[error("{uri}: {source}")]
    Failed {
        /// The URI, without secrets.
        uri: String,
        /// Why, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl OpenError {
    /// What stopped the device at `uri` from being opened.
    pub fn failed(uri: &DeviceUri, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed {
            uri: uri.to_string(),
            source: source.into(),
        }
    }
}

/// An open under way.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Arc<dyn Device>, OpenError>> + 'a>>;

/// Opens the devices of a scheme.
pub trait Opener: Send + Sync {
    /// Opens a device; on a reactor, which is not blocked meanwhile. `registry` is for devices on top of
    /// devices.
    fn open<'a>(&'a self, registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a>;
}

/// Openers by scheme. Clones are cheap, and independent of each other from then on.
#[derive(Clone, Default)]
pub struct Registry {
    openers: BTreeMap<String, Arc<dyn Opener>>,
}

impl Registry {
    /// No schemes at all.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The schemes of this crate: `null`, `malloc`, `uring` and `faulty`, and with the feature `spdk` `pcie`.
    pub fn standard() -> Self {
        let mut registry = Self::empty();
        registry.register("null", Arc::new(NullOpener));
        registry.register("malloc", Arc::new(MallocOpener));
        registry.register("uring", Arc::new(UringOpener));
        registry.register("faulty", Arc::new(FaultyOpener));
        #[cfg(feature = "spdk")]
        registry.register(crate::spdk::SCHEME, Arc::new(crate::spdk::SpdkOpener));
        registry
    }

    /// Adds the opener of a scheme, which is in lower case, in place of the one before if there was one.
    pub fn register(&mut self, scheme: &str, opener: Arc<dyn Opener>) {
        self.openers.insert(scheme.to_owned(), opener);
    }

    /// The schemes there are, in alphabetical order.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.openers.keys().map(String::as_str)
    }

    /// Opens the device at `uri`; on a reactor.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub async fn open(&self, uri: &DeviceUri) -> Result<Arc<dyn Device>, OpenError> {
        let opener = self
            .openers
            .get(uri.scheme())
            .ok_or_else(|| UriError::UnknownScheme {
                uri: uri.to_string(),
                scheme: uri.scheme().to_owned(),
                known: self.schemes().map(str::to_owned).collect(),
            })?;
        if uri.nesting() >= NESTING_MAX {
            return Err(OpenError::Nesting { uri: uri.to_string() });
        }
        opener.open(self, uri).await
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.schemes()).finish()
    }
}
