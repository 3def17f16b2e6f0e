//! A replica as its target has it, and the host that has the drive.

mod command;
mod host;
mod medium;
mod pool;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::BlockDevice;
use uuid::Uuid;

pub use command::{CommandError, Commanding, OpeningSnapshot, ReplicaAnswer, ReplicaCommand};
pub use host::ReplicaHost;
pub use medium::{MediumFuture, PlainMedium, ReplicaMedium};
pub use pool::PoolMedium;

use crate::membership::Epoch;
use crate::metadata::AreaError;

/// A promise that was given.
pub struct Granted {
    /// The whole device, reserved area included, until the next promise. The blocks of the label and of the
    /// promise cannot be written.
    pub session: Rc<dyn BlockDevice>,
    /// Which life of the host this is. While it stays the same, nothing was lost from the cache of the drive.
    pub instance: u64,
    /// The newest epoch whose target has had a flush done in this life of the host. A target flushes all of
    /// the set before it serves anything, once they are the same or are known to have kept all.
    pub settled: Option<Epoch>,
    /// Flushes that failed in this life of the host: drives may forget what they could not flush, and a later
    /// flush then succeeds without it.
    pub flush_failures: u64,
    /// How long, when the older sessions ended, none of them had asked for anything: so long ago at least was
    /// what an older target may count as an answer.
    pub quiet: Duration,
}

/// Why there is no promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromiseError {
    /// A newer target was here.
    #[error("epoch {} was promised already: this target is out of date", .0.0)]
    Superseded(Epoch),
    /// Another promise of the same epoch came in between.
    #[error("another promise of the same epoch came in between: ask again")]
    Interrupted,
    /// No answer.
    #[error("the host of the replica does not answer: try again")]
    Unreachable,
    /// The device failed, or is no replica.
    #[error(transparent)]
    Area(#[from] AreaError),
}

/// A promise on its way.
pub type Promising = Pin<Box<dyn Future<Output = Result<Granted, PromiseError>>>>;

/// How a target reaches the host of one replica.
pub trait ReplicaPort {
    /// Asks for the promise of an epoch. Once it is given, nothing that was sent through an older session
    /// changes or reads the replica any more.
    fn promise(&self, epoch: Epoch) -> Promising;

    /// Has the host do something with the replica as a whole, under the session of an epoch: a host that has
    /// promised a newer one refuses, and the next promise waits until it is done.
    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding;

    /// Opens a snapshot for reading, under the session of an epoch. What is read does not change any more, by
    /// whomever, and so the device may be used for as long as it answers.
    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot;

    /// Reads are best done here.
    fn is_local(&self) -> bool;
}
