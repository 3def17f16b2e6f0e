//! Block devices: one trait carries the data path, sibling modules implement it.
//!
//! A [`Device`] is a drive, a file, a piece of memory or a remote namespace, known to the whole process. A
//! reactor that wants to do I/O on it attaches and gets a [`BlockDevice`] of its own: the queue pair of that
//! reactor.
//!
//! What every implementation keeps, and the shared test-suite checks:
//!
//! - A read returns what was last written, and zeros where nothing was written or where it was deallocated.
//! - A completed flush, and a completed write with `force_unit_access`, are on stable media, as far as the
//!   medium itself tells the truth. [`Geometry::volatile_write_cache`] says whether a flush is needed for
//!   that at all.
//! - A request is checked against the geometry before anything is done; a bad one is an error, never a panic.
//! - Short of memory or descriptors is [`IoError::ResourceShortage`], never a fault of the device.

#![cfg_attr(not(feature = "spdk"), forbid(unsafe_code))]
#![deny(unsafe_code)]

pub mod allocation;
pub mod blocking;
mod completion;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
pub mod events;
pub mod faulty;
mod geometry;
mod grow;
mod malloc;
pub mod metered;
mod null;
mod registry;
mod request;
#[cfg(feature = "spdk")]
pub mod spdk;
pub mod uri;
mod uring;

pub use allocation::{AllocationQuery, AllocationRun, AllocationRuns};
pub use completion::Completion;
pub use error::{IoError, NvmeStatus};
pub use faulty::{Faults, FaultyDevice, FaultyOpener};
pub use geometry::{Geometry, GeometryError};
pub use grow::{GrowError, Growing};
pub use malloc::{MallocDevice, MallocError, MallocOpener, MallocOptions};
pub use metered::MeteredDevice;
pub use null::{NullDevice, NullOpener};
pub use registry::{OpenError, Opener, Opening, Registry};
pub use request::{Gather, Reply, Request, ZeroOptions};
pub use uri::{ByteSize, DeviceUri, UriError};
pub use uring::{UringDevice, UringError, UringOpener, UringOptions};

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use pollux_hugepages::Buffer;
use uuid::Uuid;

/// A device as the process knows it: shared by all reactors.
pub trait Device: Send + Sync {
    /// What it is called: the last part of the path of the URI it was opened by. Exports and logs use it.
    fn name(&self) -> &str;

    /// The UUID that its content has wherever it is served, under whatever name; `None` if it has none and is
    /// known by its name.
    fn uuid(&self) -> Option<Uuid> {
        None
    }

    /// Its geometry now. Grows live where the medium does; everything but the block count is fixed.
    fn geometry(&self) -> Geometry;

    /// Makes the calling reactor's own queue pair to the device.
    fn attach(self: Arc<Self>) -> Attaching;

    /// A stream of what happens to the device as a whole, from now on; every subscriber receives every event.
    /// One that is slow loses the newest, and finds out by asking [`Device::geometry`].
    fn subscribe(&self) -> events::Subscription;

    /// Makes the device larger while it is in use, `bytes` in all, and tells the subscribers. To be called on
    /// a reactor, which is not blocked meanwhile. The same size as now is no error.
    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        let _ = bytes;
        Box::pin(std::future::ready(Err(GrowError::Unsupported)))
    }

    /// Whether writes that were acknowledged and not flushed may be gone, since it was not closed in good
    /// order before it was opened. Hosts that live on cannot see that, and have to hear of it.
    fn has_lost_caches(&self) -> bool {
        false
    }

    /// Counters of its health that a SMART log reports; zeros where the medium has none.
    fn health(&self) -> Health {
        Health::default()
    }
}

/// An attach under way.
pub type Attaching = Pin<Box<dyn Future<Output = Result<Rc<dyn BlockDevice>, IoError>>>>;

/// The data path: a device as one reactor sees it. Dropping it waits for nothing; requests under way complete
/// or not.
pub trait BlockDevice {
    /// The device's geometry now.
    fn geometry(&self) -> Geometry;

    /// Starts a request. The completion may be ready at once, and may be dropped at any time: the buffers
    /// stay with the device until it is done with them.
    ///
    /// Requests under way at one time may be done in any order, and one that is split may be done in part
    /// when it fails. Concurrent writes of one block leave one of the two.
    fn submit(&self, request: Request) -> Completion;

    /// Asks which blocks of a range are allocated: runs from `block` on, one at least if there are blocks,
    /// and at most `runs_max` (taken as 1 if it is 0), so that they may end before the range does. Off the
    /// data path: it allocates memory, and may take as long as a request.
    ///
    /// Blocks that are not allocated read as zeros. Of blocks that were written, and not deallocated since,
    /// the answer is always that they are allocated; of what changes meanwhile it is one or the other. A
    /// device that does not know says that everything is allocated.
    ///
    /// The error of a range past the end is [`IoError::OutOfRange`].
    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        let _ = runs_max;
        allocation::all(&self.geometry(), block, blocks, true)
    }
}

/// What a drive knows about its own wear, in the units of the NVMe SMART / Health log (NVMe Base, Get Log
/// Page 02h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Composite temperature in kelvin, 0 if unknown.
    pub temperature_kelvin: u16,
    /// Spare capacity left, in percent; 0 if unknown.
    pub available_spare_percent: u8,
    /// Wear, in percent of the rated endurance; may exceed 100.
    pub percentage_used: u8,
    /// Critical warning bits.
    pub critical_warning: u8,
    /// Unrecovered media errors.
    pub media_errors: u64,
    /// Power cycles.
    pub power_cycles: u64,
    /// Hours powered on.
    pub power_on_hours: u64,
    /// Unclean shutdowns.
    pub unsafe_shutdowns: u64,
}

/// The requests one by one, awaited.
pub trait BlockDeviceExt: BlockDevice {
    /// Reads whole blocks from `block` on into `into`; returns it filled.
    fn read(&self, block: u64, into: Buffer) -> impl Future<Output = Result<Buffer, IoError>> {
        let completion = self.submit(Request::Read { block, into });
        async { completion.await?.into_buffer() }
    }

    /// Writes whole blocks from `block` on.
    fn write(
        &self,
        block: u64,
        from: impl Into<Gather>,
        force_unit_access: bool,
    ) -> impl Future<Output = Result<(), IoError>> {
        done(self.submit(Request::Write {
            block,
            from: from.into(),
            force_unit_access,
        }))
    }

    /// Brings every completed write to stable media.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>> {
        done(self.submit(Request::Flush))
    }

    /// Says that the content of blocks is no longer needed; they read as zeros from then on.
    fn deallocate(&self, block: u64, blocks: u64) -> impl Future<Output = Result<(), IoError>> {
        done(self.submit(Request::Deallocate { block, blocks }))
    }

    /// Makes blocks read as zeros.
    fn write_zeroes(
        &self,
        block: u64,
        blocks: u64,
        options: ZeroOptions,
    ) -> impl Future<Output = Result<(), IoError>> {
        done(self.submit(Request::WriteZeroes {
            block,
            blocks,
            options,
        }))
    }

    /// Compares whole blocks; [`IoError::CompareFailed`] when they differ.
    fn compare(&self, block: u64, with: impl Into<Gather>) -> impl Future<Output = Result<(), IoError>> {
        done(self.submit(Request::Compare {
            block,
            with: with.into(),
        }))
    }
}

impl<D: BlockDevice + ?Sized> BlockDeviceExt for D {}

async fn done(completion: Completion) -> Result<(), IoError> {
    completion.await.map(drop)
}
