//! What a host does with a replica as a whole, for the target that it promised to.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use pollux_device::{BlockDevice, IoError};
use uuid::Uuid;

use crate::membership::Epoch;
use crate::metadata::AreaError;

/// Something to be done with a replica as a whole. Each may be asked for twice: what is done already stays
/// as it is, and counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaCommand {
    /// Makes a snapshot of the replica as it is, durable when answered. A name is used for one attempt
    /// only, so that a request which arrives late makes nothing that anybody takes for something else.
    CutSnapshot {
        /// Its name: [`SnapshotEntry::cut`](crate::membership::SnapshotEntry::cut).
        cut: Uuid,
    },
    /// Deletes a snapshot.
    DeleteSnapshot {
        /// Its name.
        cut: Uuid,
    },
    /// Tells the names of all snapshots.
    ListSnapshots,
    /// Tells blocks that were found bad, as far as the host knows of any, each a few times. They may be good
    /// by now.
    ListBadBlocks,
    /// Makes room for more data: so many blocks of 4 KiB at least. The new ones read as zeros. Sessions
    /// show the new size after the next promise, at the latest.
    Grow {
        /// Blocks of 4 KiB for data, without the reserved area.
        data_blocks: u64,
    },
}

/// What a host says to a command that it has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaAnswer {
    /// It is done.
    Done,
    /// The names of the snapshots, to [`ReplicaCommand::ListSnapshots`].
    Snapshots(Vec<Uuid>),
    /// Blocks of 4 KiB of data, to [`ReplicaCommand::ListBadBlocks`].
    BadBlocks(Vec<u64>),
}

/// Why a host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A newer target was here.
    #[error("epoch {} was promised already: this target is out of date", .0.0)]
    Superseded(Epoch),
    /// There is no session of this epoch, or it is about to end.
    #[error("the host has no session of this epoch: ask for its promise first")]
    NoSession,
    /// No answer: whether it is done is not known.
    #[error("the host of the replica does not answer: whether it is done is not known")]
    Unreachable,
    /// The device has no snapshots, or does not grow.
    #[error("the device of the replica cannot do it: put the replica on a pool")]
    Unsupported,
    /// There is no such snapshot.
    #[error("the replica has no snapshot {0}")]
    NoSnapshot(Uuid),
    /// There is no room for it.
    #[error("there is no room for it: free space, or add drives")]
    NoSpace,
    /// The device failed.
    #[error("the device of the replica failed: {0}")]
    Io(#[from] IoError),
    /// The reserved area failed, or cannot be made larger.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// Something else, in the words of whoever has the device.
    #[error("{0}")]
    Failed(String),
}

/// A command on its way.
pub type Commanding = Pin<Box<dyn Future<Output = Result<ReplicaAnswer, CommandError>>>>;

/// A snapshot on its way to be read. It has the layout of the replica: data behind the reserved area.
pub type OpeningSnapshot = Pin<Box<dyn Future<Output = Result<Rc<dyn BlockDevice>, CommandError>>>>;
