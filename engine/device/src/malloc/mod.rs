//! `malloc:///NAME?size=1GiB&block=512`: a device in memory, on huge pages where there are any.
//!
//! Parameters: `size` (required), `block` (512 or 4096, the default), `node` (the NUMA node of the memory).
//! All reactors reach the same memory; what they do to one block at a time is done whole (see `stripes`).
//! Nothing survives the process, so there is no write cache to flush: a write is on the only medium there is
//! when it completes.
//!
//! Deallocated memory goes back to the system where it is on ordinary pages. Which pages were written is
//! kept, a bit each, so that holes can be told. It grows live, by one more arena each time.

mod space;
mod stripes;
mod written;

use std::future::ready;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use pollux_hugepages::{ArenaOptions, Buffer};

use crate::allocation::{AllocationQuery, AllocationRun, AllocationRuns};
use crate::blocking;
use crate::completion::Completion;
use crate::error::IoError;
use crate::events::{DeviceEvent, Publisher, Subscription};
use crate::geometry::{Geometry, GeometryError};
use crate::grow::{GrowError, Growing};
use crate::null::DEFAULT_BLOCK_BYTES;
use crate::registry::{OpenError, Opener, Opening, Registry};
use crate::request::{Gather, Reply, Request};
use crate::uri::{ByteSize, DeviceUri};
use crate::{Attaching, BlockDevice, Device};
use space::{EXTENTS_MAX, Extent, Space};
use stripes::{GRANULE_BYTES, Stripes};

/// The largest transfer in bytes: a copy of it occupies a reactor for about a millisecond.
const TRANSFER_BYTES_MAX: u32 = 8 << 20;

/// Zeros written at a time, in bytes; between two such pieces the reactor does other things.
const ZERO_PIECE_BYTES: u64 = 2 << 20;

/// Devices larger than this are mapped on another thread, in bytes: the kernel fills huge pages with zeros
/// then.
const MAP_INLINE_BYTES_MAX: u64 = 64 << 20;

/// What went wrong with a device in memory.
#[derive(Debug, thiserror::Error)]
pub enum MallocError {
    /// A size or block size that cannot be.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Memory is short.
    #[error(transparent)]
    Memory(#[from] pollux_hugepages::Error),
    /// Larger than this machine can address.
    #[error("{bytes} bytes are more than this machine can address; choose a smaller size")]
    AddressSpace {
        /// The size asked for.
        bytes: u64,
    },
    /// Devices in memory only grow.
    #[error(
        "cannot shrink from {} to {}: a device in memory only grows",
        ByteSize(*.from_bytes),
        ByteSize(*.to_bytes)
    )]
    Shrink {
        /// The size now.
        from_bytes: u64,
        /// The size asked for.
        to_bytes: u64,
    },
    /// The bound on the number of arenas.
    #[error("grown {} times already; create a new device", EXTENTS_MAX - 1)]
    GrownTooOften,
    /// No thread to map the memory on.
    #[error("no thread could be started to map the memory; raise the limit on threads")]
    NoThread,
}

/// How to make a device in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MallocOptions {
    /// Size in bytes, a multiple of the block size.
    pub size_bytes: u64,
    /// Block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// The pages and the NUMA node of the memory.
    pub arena: ArenaOptions,
}

impl MallocOptions {
    /// So many bytes in blocks of 4096, on huge pages where there are any.
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            block_bytes: DEFAULT_BLOCK_BYTES,
            arena: ArenaOptions::default(),
        }
    }
}

/// A device in memory.
pub struct MallocDevice {
    name: String,
    /// The geometry but for the block count, which is that of `space`.
    geometry: Geometry,
    space: Space,
    stripes: Stripes,
    publisher: Publisher,
}

impl MallocDevice {
    /// Maps the memory of a device, which takes a tenth of a second a GiB on huge pages.
    ///
    /// # Errors
    ///
    /// [`MallocError`].
    pub fn new(name: impl Into<String>, options: &MallocOptions) -> Result<Arc<Self>, MallocError> {
        let geometry = Geometry::new(options.size_bytes, options.block_bytes)?;
        let name = name.into();
        let memory_bytes = memory_of_machine();
        if options.size_bytes > memory_bytes {
            tracing::warn!(
                device = name,
                size = %ByteSize(options.size_bytes),
                memory = %ByteSize(memory_bytes),
                "the device is larger than the memory of the machine: writing all of it will end the process"
            );
        }
        Ok(Arc::new(Self {
            name,
            geometry: Geometry {
                transfer_blocks_max: TRANSFER_BYTES_MAX / geometry.block_bytes,
                ..geometry
            },
            space: Space::new(options.size_bytes, options.arena.clone())?,
            stripes: Stripes::new(),
            publisher: Publisher::default(),
        }))
    }

    /// Grows the device to `bytes` and tells the subscribers. Blocks while the memory is mapped.
    ///
    /// # Errors
    ///
    /// [`MallocError`]; the device is what it was then.
    pub fn resize(&self, bytes: u64) -> Result<(), MallocError> {
        Geometry::new(bytes, self.geometry.block_bytes)?;
        let before = self.space.bytes();
        self.space.grow(bytes)?;
        if before != bytes {
            self.publisher.publish(DeviceEvent::Resized);
        }
        Ok(())
    }

    /// Calls `each` for every piece of a byte range that is in one granule and one arena, with the granule,
    /// the arena, the place in it, and the part of the range; until it returns an error.
    #[inline]
    fn for_each_piece(
        &self,
        bytes: Range<u64>,
        mut each: impl FnMut(Piece<'_>) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let mut at = bytes.start;
        while at < bytes.end {
            // The range was checked against the geometry, so this is a mistake of this module.
            let (extent, offset, extent_left) = self.space.locate(at).ok_or(IoError::Internal)?;
            let granule_left = GRANULE_BYTES - at % GRANULE_BYTES;
            let len = granule_left.min(extent_left).min(bytes.end - at);
            let from = (at - bytes.start) as usize;
            each(Piece {
                granule: at / GRANULE_BYTES,
                extent,
                offset,
                part: from..from + len as usize,
            })?;
            at += len;
        }
        Ok(())
    }

    fn read(&self, bytes: Range<u64>, into: &mut Buffer) -> Result<(), IoError> {
        let into: &mut [u8] = into;
        self.for_each_piece(bytes, |piece| {
            let into = into.get_mut(piece.part).ok_or(IoError::Internal)?;
            self.stripes
                .read(piece.granule, || piece.extent.arena.copy_out(piece.offset, into));
            Ok(())
        })
    }

    fn write(&self, bytes: Range<u64>, from: &Gather) -> Result<(), IoError> {
        let mut cursor = Cursor::new(from);
        self.for_each_piece(bytes, |piece| {
            self.stripes.write(piece.granule, || {
                let mut offset = piece.offset;
                let end = offset + piece.part.len();
                piece.extent.written.set(offset as u64..end as u64);
                cursor.take(piece.part.len(), |data| {
                    piece.extent.arena.copy_in(offset, data);
                    offset += data.len();
                    Ok(())
                })
            })
        })
    }

    fn compare(&self, bytes: Range<u64>, with: &Gather) -> Result<(), IoError> {
        let mut cursor = Cursor::new(with);
        self.for_each_piece(bytes, |piece| {
            let start = cursor;
            self.stripes.read(piece.granule, || {
                cursor = start;
                let mut offset = piece.offset;
                cursor.take(piece.part.len(), |data| {
                    if piece.extent.arena.compare(offset, data).is_some() {
                        return Err(IoError::CompareFailed);
                    }
                    offset += data.len();
                    Ok(())
                })
            })
        })
    }

    /// Makes a range read as zeros; `free` gives the memory back.
    fn zero_piece(&self, bytes: Range<u64>, free: bool) -> Result<(), IoError> {
        let granules = bytes.start / GRANULE_BYTES..bytes.end.div_ceil(GRANULE_BYTES);
        self.stripes.write_all(granules, || {
            let mut at = bytes.start;
            while at < bytes.end {
                let (extent, offset, extent_left) = self.space.locate(at).ok_or(IoError::Internal)?;
                let len = extent_left.min(bytes.end - at);
                let range = offset as u64..offset as u64 + len;
                if free {
                    extent.arena.discard(offset, len as usize);
                    extent.written.clear(range);
                } else {
                    extent.written.set(range);
                    extent.arena.fill_zero(offset, len as usize);
                }
                at += len;
            }
            Ok(())
        })
    }

    /// Runs of pages that were written, and of others. A block smaller than a page counts as written with it.
    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> Result<Vec<AllocationRun>, IoError> {
        let geometry = self.geometry();
        geometry.check_range(block, blocks)?;
        let block_bytes = u64::from(geometry.block_bytes);
        let end = (block + blocks) * block_bytes;
        let mut at = block * block_bytes;
        let mut runs = AllocationRuns::new(blocks, runs_max);
        while at < end {
            let (extent, offset, extent_left) = self.space.locate(at).ok_or(IoError::Internal)?;
            let extent_end = offset as u64 + extent_left.min(end - at);
            let (written, run_end) = extent.written.run(offset as u64, extent_end);
            let bytes = run_end - offset as u64;
            // Pages and arenas are whole blocks, so their runs are.
            if !runs.push(bytes / block_bytes, written) {
                break;
            }
            at += bytes;
        }
        Ok(runs.into_runs())
    }

    async fn zero(self: Arc<Self>, bytes: Range<u64>, free: bool) -> Result<Reply, IoError> {
        let mut at = bytes.start;
        while at < bytes.end {
            let end = (at + 1).next_multiple_of(ZERO_PIECE_BYTES).min(bytes.end);
            self.zero_piece(at..end, free)?;
            at = end;
            pollux_reactor::yield_now().await;
        }
        Ok(Reply::Done)
    }
}

impl std::fmt::Debug for MallocDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("MallocDevice")
            .field("name", &self.name)
            .field("geometry", &self.geometry())
            .finish()
    }
}

/// A part of a transfer in one granule and one arena.
struct Piece<'a> {
    granule: u64,
    extent: &'a Extent,
    offset: usize,
    part: Range<usize>,
}

/// Walks over the bytes of a gather list.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    gather: &'a Gather,
    piece: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn new(gather: &'a Gather) -> Self {
        Self {
            gather,
            piece: 0,
            offset: 0,
        }
    }

    /// Hands out the next `len` bytes in one or more runs.
    fn take(
        &mut self,
        len: usize,
        mut each: impl FnMut(&[u8]) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let mut left = len;
        while left > 0 {
            let piece = self.gather.pieces().get(self.piece).ok_or(IoError::Internal)?;
            let rest = piece.get(self.offset..).ok_or(IoError::Internal)?;
            let run = rest.get(..left).unwrap_or(rest);
            each(run)?;
            left -= run.len();
            self.offset += run.len();
            if self.offset == piece.len() {
                self.piece += 1;
                self.offset = 0;
            }
        }
        Ok(())
    }
}

impl Device for MallocDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.space.bytes() / u64::from(self.geometry.block_bytes),
            ..self.geometry
        }
    }

    fn attach(self: Arc<Self>) -> Attaching {
        let queue: Rc<dyn BlockDevice> = Rc::new(MallocQueue { device: self });
        Box::pin(ready(Ok(queue)))
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        Box::pin(async move {
            let added = bytes.saturating_sub(self.space.bytes());
            let grown = if added <= MAP_INLINE_BYTES_MAX {
                MallocDevice::resize(&self, bytes)
            } else {
                let resized = blocking::run(move || MallocDevice::resize(&self, bytes)).await;
                resized.unwrap_or(Err(MallocError::NoThread))
            };
            grown.map_err(GrowError::from)
        })
    }
}

impl From<MallocError> for GrowError {
    fn from(error: MallocError) -> Self {
        match error {
            MallocError::Geometry(error) => Self::Geometry(error),
            MallocError::Shrink { from_bytes, to_bytes } => Self::Shrink { from_bytes, to_bytes },
            other => Self::failed(other),
        }
    }
}

struct MallocQueue {
    device: Arc<MallocDevice>,
}

impl BlockDevice for MallocQueue {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let device = &self.device;
        let geometry = device.geometry();
        if let Err(error) = request.check(&geometry) {
            return Completion::failed(error);
        }
        let (block, blocks) = request.range(&geometry).unwrap_or_default();
        let block_bytes = u64::from(geometry.block_bytes);
        let bytes = block * block_bytes..(block + blocks) * block_bytes;
        let result = match request {
            Request::Read { mut into, .. } => {
                return Completion::ready(device.read(bytes, &mut into).map(|()| Reply::Data(into)));
            }
            Request::Write { from, .. } => device.write(bytes, &from),
            Request::Compare { with, .. } => device.compare(bytes, &with),
            Request::Flush => Ok(()),
            Request::Deallocate { .. } => return zero(device, bytes, true),
            Request::WriteZeroes { options, .. } => return zero(device, bytes, options.may_deallocate),
        };
        Completion::ready(result.map(|()| Reply::Done))
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        Box::pin(ready(self.device.allocation(block, blocks, runs_max)))
    }
}

fn zero(device: &Arc<MallocDevice>, bytes: Range<u64>, free: bool) -> Completion {
    if bytes.end - bytes.start <= ZERO_PIECE_BYTES {
        return Completion::ready(device.zero_piece(bytes, free).map(|()| Reply::Done));
    }
    Completion::from_future(device.clone().zero(bytes, free))
}

/// All memory of the machine in bytes.
fn memory_of_machine() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// Opens `malloc` devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct MallocOpener;

impl Opener for MallocOpener {
    fn open<'a>(&'a self, _registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            let mut parameters = uri.local_parameters()?;
            let name = uri.name()?;
            let mut options = MallocOptions::new(parameters.require::<ByteSize>("size")?.0);
            options.block_bytes = parameters.take("block")?.unwrap_or(options.block_bytes);
            options.arena.numa_node = parameters.take("node")?;
            parameters.finish()?;
            let device = if options.size_bytes <= MAP_INLINE_BYTES_MAX {
                MallocDevice::new(name, &options)
            } else {
                let mapped = blocking::run(move || MallocDevice::new(name, &options)).await;
                mapped.unwrap_or(Err(MallocError::NoThread))
            };
            Ok(device.map_err(|error| OpenError::failed(uri, error))? as Arc<dyn Device>)
        })
    }
}

#[cfg(test)]
mod tests;
