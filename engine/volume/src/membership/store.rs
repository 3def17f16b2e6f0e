//! Where the record is kept, so that there is one truth about it.

use std::future::Future;
use std::pin::Pin;

use uuid::Uuid;

use super::{Membership, MembershipError};

/// An answer of the store on its way.
pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>>>>;

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No answer: whether a swap was done is not known.
    #[error("the store does not answer: try again, and read the record before relying on either outcome")]
    Unavailable,
    /// Somebody else was first.
    #[error("the record was changed meanwhile: it is at epoch {} and version {}", .0.epoch.0, .0.version)]
    Conflict(Box<Membership>),
    /// There is no such volume.
    #[error("the store has no volume {0}")]
    NoVolume(Uuid),
    /// The record must not be.
    #[error(transparent)]
    Invalid(#[from] MembershipError),
}

/// Holds the records of volumes. Both operations are linearizable, and survive whatever befalls the engines.
pub trait MembershipStore {
    /// The record now.
    ///
    /// The error is [`StoreError::NoVolume`] or [`StoreError::Unavailable`].
    fn load(&self, volume: Uuid) -> StoreFuture<Membership>;

    /// Puts `next` in the place of the record with the version before, if that is the one there is; a record
    /// of version 1 where there is none. The store checks [`Membership::check_follows`].
    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()>;
}
