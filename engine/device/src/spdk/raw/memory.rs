//! Memory that drives may reach.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use pollux_hugepages::BufferPool;
use pollux_spdk_sys as sys;

use super::{Errno, check};

/// What a region and its length must be multiples of, in bytes: SPDK before v25 takes nothing smaller.
const REGION_BYTES: usize = 2 << 20;

/// What `spdk_dma_zmalloc` aligns to, in bytes: a page of every drive.
const DMA_ALIGN_BYTES: usize = 4096;

/// Regions that are registered, by their first byte.
static REGIONS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// A region that SPDK knows, which is unregistered when this is dropped.
struct Registered(Range<usize>);

impl Drop for Registered {
    fn drop(&mut self) {
        let mut regions = REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        regions.remove(&self.0.start);
        // SAFETY: the region was registered as a whole, once. It is still mapped: its pool drops this right
        // before it unmaps the memory; and no command refers to it any more, as all its buffers are back.
        let code = unsafe {
            sys::spdk_mem_unregister(std::ptr::with_exposed_provenance_mut(self.0.start), self.0.len())
        };
        if let Err(error) = check(code) {
            tracing::error!(%error, "memory could not be unregistered from the drives");
        }
    }
}

/// Registers the memory of a pool with all drives, whole regions of it, until it is unmapped. Returns the
/// addresses that drives may reach; those of a pool that is registered already are returned again.
pub(in super::super) fn register_pool(pool: &BufferPool) -> Result<Range<usize>, Errno> {
    let base = pool.base().as_ptr().expose_provenance();
    let start = base.next_multiple_of(REGION_BYTES);
    let end = (base + pool.capacity_bytes()) / REGION_BYTES * REGION_BYTES;
    if start >= end {
        return Ok(base..base);
    }
    {
        let mut regions = REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        if regions.get(&start) == Some(&end) {
            return Ok(start..end);
        }
        // SAFETY: the region is inside the memory of the pool, which stays mapped until the guard below is
        // dropped. What drives write there goes to buffers that a command owns.
        check(unsafe { sys::spdk_mem_register(std::ptr::with_exposed_provenance_mut(start), end - start) })?;
        regions.insert(start, end);
    }
    pool.keep_while_mapped(Box::new(Registered(start..end)));
    Ok(start..end)
}

/// Memory of SPDK's own that drives may write to: for admin commands.
pub(in super::super) struct DmaBuffer {
    start: NonNull<c_void>,
    len_bytes: usize,
}

// SAFETY: the memory belongs to the process and to no thread; the buffer owns it until it is dropped, once.
unsafe impl Send for DmaBuffer {}

impl DmaBuffer {
    /// So many zeros; `None` if memory is short.
    pub(super) fn new(len_bytes: usize) -> Option<Self> {
        // SAFETY: the environment is started, as there is a controller to talk to; no pointer goes in.
        let start = unsafe { sys::spdk_dma_zmalloc(len_bytes, DMA_ALIGN_BYTES, std::ptr::null_mut()) };
        NonNull::new(start).map(|start| Self { start, len_bytes })
    }

    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.start.as_ptr()
    }

    /// A copy of the bytes. For when no drive writes to them any more.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        // SAFETY: so many bytes were allocated and filled with zeros; the caller's command is over.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<u8>(), self.len_bytes) }.to_vec()
    }

    /// Never frees the memory: a command that may still write to it was given up.
    pub(super) fn leak(self) {
        let _kept = std::mem::ManuallyDrop::new(self);
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `spdk_dma_zmalloc`, freed once, and no command refers to it.
        unsafe { sys::spdk_dma_free(self.start.as_ptr()) };
    }
}
