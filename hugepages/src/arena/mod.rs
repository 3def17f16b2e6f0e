//! Arenas: mapped regions that several threads read and write at once.
//!
//! Invariants:
//!
//! - No Rust reference to the bytes of an arena ever exists; they are only reached through [`copy`], whose
//!   accesses may race as those of a drive's DMA may. A race gives a mix of old and new bytes and nothing
//!   worse.
//! - Every page can be touched at any time: huge pages are populated when they are mapped and never given
//!   back while the arena lives, for a huge page that is gone when it is needed kills the process.

mod copy;
mod mapping;

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use mapping::Mapping;

use crate::error::Error;
use crate::page::{PageKind, PagePreference};

/// Bytes compared at a time: small enough for the stack and the first-level cache.
const COMPARE_CHUNK_BYTES: usize = 4096;

/// An arena of at least this size is taken to be larger than the caches: bytes copied in are gone from them
/// before they are read again.
const UNCACHED_ARENA_BYTES: usize = 128 << 20;

/// Copies into such an arena go around the caches from this length on: shorter ones gain nothing.
const UNCACHED_COPY_BYTES: usize = 16 << 10;

/// How to map an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaOptions {
    /// The pages to map it on. Default: [`PagePreference::Auto`].
    pub page: PagePreference,
    /// The NUMA node to take memory from while it has some; then others are used. Default: wherever the
    /// thread that touches the memory first runs.
    pub numa_node: Option<u32>,
    /// Whether [`Arena::file`] gives a file to map the same memory in another process. Default: no.
    pub shareable: bool,
    /// Whether to commit ordinary memory at once. Huge pages always are. Default: no, pages are committed
    /// when they are touched first.
    pub populate: bool,
    /// Whether ordinary pages will do when no huge pages are free. Default: yes, with one warning a process.
    pub fall_back: bool,
}

impl Default for ArenaOptions {
    fn default() -> Self {
        ArenaOptions {
            page: PagePreference::Auto,
            numa_node: None,
            shareable: false,
            populate: false,
            fall_back: true,
        }
    }
}

/// A mapped region of memory, filled with zeros at first. Clones are the same memory, unmapped with the last
/// one.
///
/// Several threads may copy in and out at once, over the same bytes too: what a racing reader sees is a mix
/// of old and new bytes, as with the DMA of a drive. Offsets beyond the end are mistakes of the caller and
/// panic.
#[derive(Clone)]
pub struct Arena {
    mapping: Arc<Mapping>,
}

impl Arena {
    /// Maps at least `bytes` bytes of zeros, rounded up to the page size.
    ///
    /// When there are no huge pages, ordinary memory is mapped with one warning a process
    /// (see [`ArenaOptions::fall_back`]).
    ///
    /// # Errors
    ///
    /// [`Error::ArenaSize`] for no bytes or too many, [`Error::Map`] if the kernel refuses.
    pub fn map(bytes: usize, options: &ArenaOptions) -> Result<Arena, Error> {
        Ok(Arena {
            mapping: Arc::new(map_with_fallback(bytes, options)?),
        })
    }

    /// The size in bytes, a multiple of the page size.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.mapping.len_bytes()
    }

    /// The pages it is mapped on.
    #[must_use]
    pub fn page_kind(&self) -> PageKind {
        self.mapping.page()
    }

    /// The NUMA node its memory is preferably on, if one was asked for.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.mapping.numa_node()
    }

    /// The file behind a shareable arena: mapped in another process, or again in this one, from offset 0 over
    /// [`len_bytes`](Arena::len_bytes), it is the same memory.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file().map(AsFd::as_fd)
    }

    /// The first byte, for registering the region with the kernel or a driver. What dereferences it must not
    /// make references of it, as others may write at any time.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Copies from the arena at `offset` (bytes) into `into`.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let source = self.at(offset, into.len());
        // SAFETY: `at` checked that the range is inside the mapping, which lives as long as `self`; `into` is
        // memory of its own, since no reference to an arena's bytes exists.
        unsafe { copy::copy_out(source, into.as_mut_ptr(), into.len()) }
    }

    /// Copies `from` into the arena at `offset` (bytes).
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let target = self.at(offset, from.len());
        let uncached = from.len() >= UNCACHED_COPY_BYTES && self.len_bytes() >= UNCACHED_ARENA_BYTES;
        let copy = if uncached {
            copy::copy_in_uncached
        } else {
            copy::copy_in
        };
        // SAFETY: as in `copy_out`, the other way round.
        unsafe { copy(from.as_ptr(), target, from.len()) }
    }

    /// Fills `len` bytes at `offset` with zeros.
    pub fn fill_zero(&self, offset: usize, len: usize) {
        let target = self.at(offset, len);
        // SAFETY: `at` checked that the range is inside the mapping, which lives as long as `self`.
        unsafe { copy::fill_zero(target, len) }
    }

    /// Makes `len` bytes at `offset` read as zeros, and gives whole ordinary pages back to the kernel. Huge
    /// pages are kept and filled: the kernel could give them to somebody else for good.
    pub fn discard(&self, offset: usize, len: usize) {
        self.at(offset, len);
        let whole = self.whole_pages(offset, len);
        if self.page_kind().is_huge() || whole.is_empty() || !self.mapping.give_back(whole.clone()) {
            self.fill_zero(offset, len);
            return;
        }
        self.fill_zero(offset, whole.start - offset);
        self.fill_zero(whole.end, offset + len - whole.end);
    }

    /// Compares the arena at `offset` with `with`: the position in `with` of the first byte that differs, or
    /// `None` if all are the same.
    #[must_use]
    pub fn compare(&self, offset: usize, with: &[u8]) -> Option<usize> {
        self.at(offset, with.len());
        let mut copied = [0_u8; COMPARE_CHUNK_BYTES];
        for (index, expected) in with.chunks(COMPARE_CHUNK_BYTES).enumerate() {
            let start = index * COMPARE_CHUNK_BYTES;
            let found = &mut copied[..expected.len()];
            self.copy_out(offset + start, found);
            if found != expected {
                let differs = found
                    .iter()
                    .zip(expected)
                    .position(|(found, expected)| found != expected);
                return differs.map(|position| start + position);
            }
        }
        None
    }

    /// The address of `offset`, after checking that `len` bytes from there are inside.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let len_bytes = self.len_bytes();
        assert!(
            offset <= len_bytes && len <= len_bytes - offset,
            "{len} bytes at offset {offset} are outside an arena of {len_bytes} bytes"
        );
        // SAFETY: `offset` is at most the length of the mapping that `base` begins.
        unsafe { self.base().as_ptr().add(offset) }
    }

    /// The pages that are wholly within a range; an empty range if there are none.
    fn whole_pages(&self, offset: usize, len: usize) -> Range<usize> {
        let page_bytes = self.page_kind().size_bytes();
        let start = offset.next_multiple_of(page_bytes);
        let end = (offset + len) / page_bytes * page_bytes;
        start..end.max(start)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Arena")
            .field("len_bytes", &self.len_bytes())
            .field("page", &self.page_kind())
            .field("numa_node", &self.numa_node())
            .field("shareable", &self.file().is_some())
            .finish()
    }
}

/// Maps on the first of the wanted pages that can be had.
pub(crate) fn map_with_fallback(bytes: usize, options: &ArenaOptions) -> Result<Mapping, Error> {
    if bytes == 0 || bytes > isize::MAX as usize - PageKind::Size1GiB.size_bytes() {
        return Err(Error::ArenaSize { bytes });
    }
    let mut refused = None;
    for &page in options.page.candidates(bytes) {
        match Mapping::new(bytes, page, options) {
            Ok(mapping) => return Ok(mapping),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if !options.fall_back => return Err(error),
        Some(error) => warn_once(bytes, &error),
        None => {}
    }
    Mapping::new(bytes, PageKind::Ordinary, options)
}

fn warn_once(bytes: usize, error: &Error) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            bytes,
            %error,
            "no huge pages are free: using ordinary memory, which costs speed; reserve some with \
             `sysctl -w vm.nr_hugepages=COUNT` (2 MiB each). This is said once"
        );
    }
}
