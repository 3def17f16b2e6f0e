//! The bytes of a device in memory: arenas, one after the other.
//!
//! Invariants: `extents` are filled from the first on and never change; extent `n + 1` starts where `n` ends;
//! `bytes` is the end of the last one, written after it. So whoever reads `bytes` finds all extents below it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use pollux_hugepages::{Arena, ArenaOptions};

use super::MallocError;
use super::written::Written;

/// Arenas of a device: one to begin with, and one more each time it grows.
pub(super) const EXTENTS_MAX: usize = 64;

/// One arena, and what was written of it.
pub(super) struct Extent {
    start: u64,
    end: u64,
    pub(super) arena: Arena,
    pub(super) written: Written,
}

/// Bytes that can be reached by several threads at once and grow at their end.
pub(super) struct Space {
    extents: [OnceLock<Extent>; EXTENTS_MAX],
    bytes: AtomicU64,
    growing: Mutex<()>,
    options: ArenaOptions,
}

impl Space {
    pub(super) fn new(bytes: u64, options: ArenaOptions) -> Result<Self, MallocError> {
        let space = Self {
            extents: [const { OnceLock::new() }; EXTENTS_MAX],
            bytes: AtomicU64::new(0),
            growing: Mutex::new(()),
            options,
        };
        space.grow(bytes)?;
        Ok(space)
    }

    /// The size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Grows to `bytes`, with zeros.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), MallocError> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let start = self.bytes();
        if bytes < start {
            return Err(MallocError::Shrink {
                from_bytes: start,
                to_bytes: bytes,
            });
        }
        if bytes == start {
            return Ok(());
        }
        let free = self.extents.iter().find(|extent| extent.get().is_none());
        let free = free.ok_or(MallocError::GrownTooOften)?;
        let len = usize::try_from(bytes - start).map_err(|_| MallocError::AddressSpace { bytes })?;
        let arena = Arena::map(len, &self.options)?;
        free.get_or_init(|| Extent {
            start,
            end: bytes,
            arena,
            written: Written::new(bytes - start),
        });
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    /// The extent that holds the byte at `offset`, the place in it, and how many bytes from there on it has.
    /// `None` past the end.
    #[inline]
    pub(super) fn locate(&self, offset: u64) -> Option<(&Extent, usize, u64)> {
        for extent in &self.extents {
            let extent = extent.get()?;
            if offset < extent.end {
                let from = offset - extent.start;
                return Some((extent, from as usize, extent.end - offset));
            }
        }
        None
    }
}
