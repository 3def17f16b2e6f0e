//! `uring:///PATH?size=10GiB`: a file or block device, through the io_uring of each reactor.
//!
//! Parameters, all optional:
//!
//! - `size`: a file that does not exist, or is empty, is made so large, with holes; one that exists must be
//!   so large. Without it, it must exist.
//! - `block`: 512 or 4096. Default: the logical blocks of a block device, 4096 for a file.
//! - `direct`: `true` for `O_DIRECT` or nothing, `false` for the page cache. Default: `O_DIRECT` where the
//!   file system takes it, else the page cache and a warning.
//! - `readonly`: `true` to write nothing.
//!
//! The file is open once for the whole process, and locked: two engines cannot have it. A flush is
//! `fdatasync`, a write with force unit access is `RWF_DSYNC` (through the page cache: a write and a flush);
//! deallocated ranges are punched out, or zeros are written where the medium cannot free and promise zeros.
//! When a flush has failed, all later ones fail until the device is opened anew. A file that grows makes the
//! device grow.
//!
//! A block is written whole as far as the medium does so: a file in blocks of 4096 on a drive that writes
//! sectors of 512 can be torn within a block by a power loss.

mod errors;
mod flush;
mod grow;
mod open;
mod queue;
mod sysfs;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pollux_reactor::file::{File, SharedFile};

use crate::blocking;
use crate::error::IoError;
use crate::events::{DeviceEvent, Publisher, Subscription};
use crate::geometry::Geometry;
use crate::grow::Growing;
use crate::registry::{OpenError, Opener, Opening, Registry};
use crate::uri::{ByteSize, DeviceUri};
use crate::{Attaching, Device, Health};
use errors::{Direction, io_error, is_transient};
use flush::Flushes;

pub use open::{UringError, UringOptions};

/// Times that an operation is tried again because it was interrupted.
const RETRIES_MAX: usize = 16;

/// A way to zeros without writing them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Frees the space.
    Punch,
    /// Keeps the space.
    Zero,
}

/// A file or block device.
pub struct UringDevice {
    name: String,
    file: Arc<SharedFile>,
    /// The geometry but for the block count.
    geometry: Geometry,
    blocks: AtomicU64,
    direct: bool,
    /// What memory and its length have to be multiples of; 1 through the page cache.
    direct_align_bytes: usize,
    flushes: Flushes,
    refuses_punch: AtomicBool,
    refuses_zero: AtomicBool,
    has_shrunk: AtomicBool,
    is_growing: AtomicBool,
    media_errors: AtomicU64,
    publisher: Publisher,
}

impl UringDevice {
    /// Opens or makes a file, or opens a block device; the kernel is asked on another thread.
    ///
    /// # Errors
    ///
    /// [`UringError`].
    pub async fn open(name: impl Into<String>, options: &UringOptions) -> Result<Arc<Self>, UringError> {
        let options = options.clone();
        let opened = blocking::run(move || open::open(&options)).await;
        let opened = opened.ok_or(UringError::NoThread)??;
        let file = opened.file;
        let align_bytes = file
            .direct_memory_align_bytes()
            .max(file.direct_offset_align_bytes());
        Ok(Arc::new(Self {
            name: name.into(),
            geometry: opened.geometry,
            blocks: AtomicU64::new(opened.geometry.blocks),
            direct: opened.direct,
            direct_align_bytes: if opened.direct {
                align_bytes.max(1) as usize
            } else {
                1
            },
            file: Arc::new(file),
            flushes: Flushes::default(),
            refuses_punch: AtomicBool::new(!opened.geometry.deallocates),
            refuses_zero: AtomicBool::new(false),
            has_shrunk: AtomicBool::new(false),
            is_growing: AtomicBool::new(false),
            media_errors: AtomicU64::new(0),
            publisher: Publisher::default(),
        }))
    }

    /// Whether it goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Looks whether the file has grown, and tells the subscribers. Done every few seconds, and when a
    /// request is out of range.
    pub fn refresh(&self) {
        let Ok(bytes) = self.file.len_bytes() else {
            return;
        };
        let blocks = bytes / u64::from(self.geometry.block_bytes);
        let before = self.blocks.fetch_max(blocks, Ordering::AcqRel);
        if blocks > before {
            self.publisher.publish(DeviceEvent::Resized);
        }
        if blocks < before && !self.has_shrunk.swap(true, Ordering::Relaxed) {
            tracing::error!(
                device = self.name,
                blocks,
                before,
                "the file was made shorter while in use: what was in the rest is lost, and reads of it fail"
            );
        }
    }

    fn current_geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Acquire),
            ..self.geometry
        }
    }

    /// One sync, for all flushes that wait for it.
    async fn sync(&self, file: &File) -> Result<(), IoError> {
        let mut retries = 0;
        loop {
            match file.fsync(true).await {
                Ok(()) => return Ok(()),
                // Interrupted before its end: the kernel still has to tell what it has to tell.
                Err(error) if is_transient(&error) && retries < RETRIES_MAX => retries += 1,
                Err(error) => return Err(self.flush_failed(&error)),
            }
        }
    }

    /// Makes every flush fail from now on, and says so once.
    fn flush_failed(&self, error: &io::Error) -> IoError {
        let failure = io_error(error, Direction::Write);
        if self.flushes.failure().is_none() {
            tracing::error!(
                device = self.name,
                %error,
                "a flush failed: what was written since the last one may be lost. All flushes fail from \
                 now on; check the drive and open the device anew"
            );
        }
        self.count_media_error();
        self.flushes.fail(failure);
        failure
    }

    fn count_media_error(&self) {
        self.media_errors.fetch_add(1, Ordering::Relaxed);
    }

    fn refusal(&self, way: Way) -> &AtomicBool {
        match way {
            Way::Punch => &self.refuses_punch,
            Way::Zero => &self.refuses_zero,
        }
    }

    fn refuses(&self, way: Way) -> bool {
        self.refusal(way).load(Ordering::Relaxed)
    }

    fn note_refusal(&self, way: Way) {
        self.refusal(way).store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for UringDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("UringDevice")
            .field("name", &self.name)
            .field("path", &self.file.path())
            .field("direct", &self.direct)
            .field("geometry", &self.current_geometry())
            .finish()
    }
}

impl Device for UringDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.current_geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        queue::attach(self)
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        grow::grow(self, bytes)
    }

    fn health(&self) -> Health {
        Health {
            media_errors: self.media_errors.load(Ordering::Relaxed),
            ..Health::default()
        }
    }
}

/// Opens `uring` devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct UringOpener;

impl Opener for UringOpener {
    fn open<'a>(&'a self, _registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            let mut parameters = uri.local_parameters()?;
            let name = uri.name()?;
            let options = UringOptions {
                path: uri.file_path(),
                size_bytes: parameters.take::<ByteSize>("size")?.map(|size| size.0),
                block_bytes: parameters.take("block")?,
                direct: parameters.take("direct")?,
                read_only: parameters.take("readonly")?.unwrap_or(false),
            };
            parameters.finish()?;
            let device = UringDevice::open(name, &options).await;
            Ok(device.map_err(|error| OpenError::failed(uri, error))? as Arc<dyn Device>)
        })
    }
}
