//! Where reservations are kept that persist through a loss of power.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use uuid::Uuid;

/// Why reservations could not be read or kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The place where they are kept failed.
    #[error("{what} {place}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        place: String,
        /// Why it failed.
        error: String,
    },
    /// What is kept makes no sense.
    #[error(
        "what is kept of the reservations of namespace {namespace} is damaged: {why}; \
         remove it if no host relies on them"
    )]
    Damaged {
        /// The namespace.
        namespace: Uuid,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another engine serves the namespace now, or nobody is to.
    #[error("namespace {namespace} is not served from here any more")]
    Superseded {
        /// The namespace.
        namespace: Uuid,
    },
    /// There is more than is ever kept.
    #[error("{place} holds more than {max} records of reservations; remove those of old namespaces")]
    TooMany {
        /// Where.
        place: String,
        /// How many there can be.
        max: usize,
    },
}

/// A record being kept.
pub type Saving = Pin<Box<dyn Future<Output = Result<(), StoreError>>>>;

/// Keeps the reservations of namespaces, each a record under the UUID of its namespace, through a loss of
/// power. A target asks for one record of a namespace at a time.
pub trait ReservationStore: fmt::Debug + Send + Sync {
    /// Whether all engines that serve a namespace keep its reservations there, one of them at a time. Then
    /// they are kept whether or not hosts want them to persist, as the next engine has to know them; and
    /// nothing is loaded before [`Subsystem::adopt_reservations`](crate::target::Subsystem).
    fn is_shared(&self) -> bool {
        false
    }

    /// What was kept last for a namespace. It does not block.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: the namespace cannot be served then.
    fn load(&self, namespace: Uuid) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps a record in the place of the one before, or removes that. Once the future has ended well, the
    /// new one outlives any loss of power; if it failed, or was dropped, it may be either. Called on a
    /// reactor, which the future must not block.
    fn save(&self, namespace: Uuid, record: Option<Vec<u8>>) -> Saving;
}
