//! Making a file longer while it is in use.
//!
//! One at a time, to its end: the kernel takes a length that is less than the present one as well, and what
//! is beyond it is lost. So nobody else may set a length between the look at the present one and the setting,
//! and a growth that nobody waits for any more must not come late.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_channel::oneshot;
use pollux_reactor::file::{File, FileKind};

use super::UringDevice;
use crate::geometry::Geometry;
use crate::grow::{GrowError, Growing};

/// Makes the file so long.
pub(super) fn grow(device: Arc<UringDevice>, bytes: u64) -> Growing {
    Box::pin(async move {
        Geometry::new(bytes, device.geometry.block_bytes)?;
        let growth = Growth::begin(device)?;
        let (sender, receiver) = oneshot::channel();
        let task = pollux_reactor::spawn(async move {
            // Whoever asked may have gone away.
            let _ = sender.send(growth.set_len(bytes).await);
        });
        task.detach();
        let stopped = || Err(GrowError::failed("the reactor stopped"));
        receiver.await.unwrap_or_else(|_| stopped())
    })
}

/// The right to set the length, given back when dropped.
struct Growth(Arc<UringDevice>);

impl Growth {
    fn begin(device: Arc<UringDevice>) -> Result<Self, GrowError> {
        if device.is_growing.swap(true, Ordering::AcqRel) {
            return Err(GrowError::failed("the device is growing already; try again"));
        }
        Ok(Self(device))
    }

    async fn set_len(&self, bytes: u64) -> Result<(), GrowError> {
        let device = &self.0;
        device.refresh();
        let from_bytes = device.current_geometry().bytes();
        if bytes < from_bytes {
            return Err(GrowError::Shrink {
                from_bytes,
                to_bytes: bytes,
            });
        }
        if bytes == from_bytes {
            return Ok(());
        }
        if device.file.kind() == FileKind::BlockDevice || device.geometry.read_only {
            return Err(GrowError::Unsupported);
        }
        let file = File::attach(device.file.clone()).map_err(GrowError::failed)?;
        file.set_len(bytes).await.map_err(GrowError::failed)?;
        // The length must not be lost with the power, or flushed blocks beyond the old end would be.
        let number = device.flushes.want().map_err(GrowError::failed)?;
        device.flushes.serve(|| device.sync(&file)).await;
        device.flushes.done(number).await.map_err(GrowError::failed)?;
        device.refresh();
        Ok(())
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.0.is_growing.store(false, Ordering::Release);
    }
}
