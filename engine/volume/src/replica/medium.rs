//! What the device of a replica is part of, as far as that can do more than I/O.

use std::future::{Future, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, Device, GrowError};
use uuid::Uuid;

use super::CommandError;

/// An answer of a medium on its way.
pub type MediumFuture<T> = Pin<Box<dyn Future<Output = Result<T, CommandError>>>>;

/// The pool, or whatever else, that has the device of a replica. Used by its host alone.
pub trait ReplicaMedium {
    /// Makes a snapshot of the device as it is, durable when answered. The host sends no changes meanwhile
    /// that must not be in it. One of this name that is there already is no error.
    fn cut(&self, cut: Uuid) -> MediumFuture<()>;

    /// Deletes a snapshot. One that is not there is no error.
    fn delete(&self, cut: Uuid) -> MediumFuture<()>;

    /// The names of the snapshots of this device.
    fn list(&self) -> MediumFuture<Vec<Uuid>>;

    /// A snapshot to be read.
    fn open(&self, cut: Uuid) -> MediumFuture<Rc<dyn BlockDevice>>;

    /// Makes the device larger, `bytes` in all. A device that is as large already is no error.
    fn grow(&self, bytes: u64) -> MediumFuture<()>;

    /// Blocks of 4 KiB of the device that were found bad, by a scrub for one, and may be good by now.
    fn bad_blocks(&self) -> MediumFuture<Vec<u64>> {
        Box::pin(ready(Ok(Vec::new())))
    }
}

/// A device that is part of nothing: it has no snapshots, and grows if it can.
pub struct PlainMedium(Arc<dyn Device>);

impl PlainMedium {
    /// Of a device.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self(device)
    }
}

fn unsupported<T: 'static>() -> MediumFuture<T> {
    Box::pin(ready(Err(CommandError::Unsupported)))
}

/// Makes a device so large, unless it is.
pub(super) async fn grow_device(device: Arc<dyn Device>, bytes: u64) -> Result<(), CommandError> {
    let geometry = device.geometry();
    if geometry.blocks.saturating_mul(u64::from(geometry.block_bytes)) >= bytes {
        return Ok(());
    }
    device.grow_to(bytes).await.map_err(|error| match error {
        GrowError::Unsupported => CommandError::Unsupported,
        GrowError::Geometry(_) | GrowError::Shrink { .. } | GrowError::Failed(_) => {
            CommandError::Failed(error.to_string())
        }
    })
}

impl ReplicaMedium for PlainMedium {
    fn cut(&self, _cut: Uuid) -> MediumFuture<()> {
        unsupported()
    }

    fn delete(&self, _cut: Uuid) -> MediumFuture<()> {
        Box::pin(ready(Ok(())))
    }

    fn list(&self) -> MediumFuture<Vec<Uuid>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn open(&self, cut: Uuid) -> MediumFuture<Rc<dyn BlockDevice>> {
        Box::pin(ready(Err(CommandError::NoSnapshot(cut))))
    }

    fn grow(&self, bytes: u64) -> MediumFuture<()> {
        Box::pin(grow_device(self.0.clone(), bytes))
    }
}
