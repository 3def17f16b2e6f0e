//! The system calls behind an arena. All raw mapping and unmapping is in this file.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::ArenaOptions;
use crate::error::Error;
use crate::page::PageKind;

/// Bits of a NUMA node mask handed to the kernel: its own limit is 1024 nodes.
const NODE_MASK_BITS: usize = 1024;

/// One region of memory that this process mapped, unmapped when dropped.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
    page: PageKind,
    numa_node: Option<u32>,
    file: Option<OwnedFd>,
}

// SAFETY: a mapping belongs to the process and not to a thread; the struct owns it until it is dropped, once.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference only plain values and system calls that any thread may make are reached.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `bytes` (not zero, not near the end of the address space) on pages of exactly this kind.
    pub(super) fn new(bytes: usize, page: PageKind, options: &ArenaOptions) -> Result<Mapping, Error> {
        let failed = |error: io::Error| Error::Map {
            bytes,
            page,
            numa_node: options.numa_node,
            source: error,
        };
        let len_bytes = bytes.next_multiple_of(page.size_bytes());
        let file = if options.shareable {
            Some(create_file(len_bytes, page).map_err(failed)?)
        } else {
            None
        };
        let base = map(len_bytes, page, file.as_ref()).map_err(failed)?;
        let mapping = Mapping {
            base,
            len_bytes,
            page,
            numa_node: options.numa_node,
            file,
        };
        if let Some(node) = options.numa_node {
            mapping.prefer_node(node).map_err(failed)?;
        }
        if !page.is_huge() {
            // Not every kernel has transparent huge pages: without them the memory is just slower.
            let _refused = mapping.advise(Advice::LinuxHugepage);
        }
        // Data of volumes does not belong in a core dump; a kernel that cannot leave it out does no harm.
        let _refused = mapping.advise(Advice::LinuxDontDump);
        if page.is_huge() || options.populate {
            mapping.populate().map_err(failed)?;
        }
        Ok(mapping)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub(crate) fn page(&self) -> PageKind {
        self.page
    }

    pub(crate) fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    pub(super) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Gives whole pages back to the kernel; they read as zeros from then on. False if the kernel refused,
    /// and then nothing may be assumed about the bytes.
    pub(super) fn give_back(&self, pages: Range<usize>) -> bool {
        assert!(
            pages.start <= pages.end && pages.end <= self.len_bytes,
            "pages outside the mapping"
        );
        let advice = if self.file.is_some() {
            Advice::LinuxRemove
        } else {
            Advice::LinuxDontNeed
        };
        // SAFETY: the range is inside this mapping, which lives as long as `self`. Dropping the contents is
        // what the caller asks for, and no Rust reference to them exists (see the arena's invariants).
        unsafe {
            let start = self.base.as_ptr().add(pages.start);
            madvise(start.cast::<c_void>(), pages.end - pages.start, advice).is_ok()
        }
    }

    /// Takes the memory from `node` while it has some.
    fn prefer_node(&self, node: u32) -> io::Result<()> {
        const WORD_BITS: usize = libc::c_ulong::BITS as usize;
        let mut mask: [libc::c_ulong; NODE_MASK_BITS / WORD_BITS] = [0; NODE_MASK_BITS / WORD_BITS];
        let word = mask.get_mut(node as usize / WORD_BITS).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "NUMA nodes are numbered below 1024")
        })?;
        *word = 1 << (node as usize % WORD_BITS);
        // SAFETY: `mbind` sets a policy for pages of this mapping, which this struct owns; the mask lives
        // through the call, and the kernel reads NODE_MASK_BITS bits of it (it takes one off the number
        // given).
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.len_bytes,
                libc::MPOL_PREFERRED,
                mask.as_ptr(),
                NODE_MASK_BITS + 1,
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            // A kernel without NUMA has one node, and all memory is there.
            error if error.raw_os_error() == Some(libc::ENOSYS) && node == 0 => Ok(()),
            error => Err(error),
        }
    }

    /// Commits every page now, so that a shortage is an error here and not a signal later.
    fn populate(&self) -> io::Result<()> {
        match self.advise(Advice::LinuxPopulateWrite) {
            // Kernels before 5.14 do not know the advice; the reservation made by mapping has to do there.
            Err(rustix::io::Errno::INVAL) => Ok(()),
            // What would have been a bus error: the pages are not there in spite of the reservation.
            Err(rustix::io::Errno::FAULT) => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            result => Ok(result?),
        }
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the whole range is this mapping; none of the advices used here changes its contents.
        unsafe { madvise(self.base.as_ptr().cast::<c_void>(), self.len_bytes, advice) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.base.as_ptr(), self.len_bytes);
    }
}

fn create_file(len_bytes: usize, page: PageKind) -> io::Result<OwnedFd> {
    let size = match page {
        PageKind::Ordinary => MemfdFlags::empty(),
        PageKind::Size2MiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        PageKind::Size1GiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let file = memfd_create("pollux-arena", MemfdFlags::CLOEXEC | size)?;
    ftruncate(&file, len_bytes as u64)?;
    Ok(file)
}

fn map(len_bytes: usize, page: PageKind, file: Option<&OwnedFd>) -> io::Result<NonNull<u8>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let huge = match page {
        // Twice a huge page and more: align it, so that transparent huge pages fit from the first byte.
        PageKind::Ordinary if len_bytes >= 2 * PageKind::Size2MiB.size_bytes() => {
            return map_aligned(len_bytes, PageKind::Size2MiB.size_bytes(), file);
        }
        PageKind::Ordinary => MapFlags::NORESERVE,
        PageKind::Size2MiB => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        PageKind::Size1GiB => MapFlags::HUGETLB | MapFlags::HUGE_1GB,
    };
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use; whoever gets the
    // address owns the mapping.
    let base = unsafe {
        match file {
            // The file says which pages; the flags would be refused for it by some kernels.
            Some(file) => mmap(ptr::null_mut(), len_bytes, protection, MapFlags::SHARED, file, 0)?,
            None => mmap_anonymous(ptr::null_mut(), len_bytes, protection, MapFlags::PRIVATE | huge)?,
        }
    };
    not_null(base)
}

/// Maps ordinary memory at a multiple of `alignment`: maps address space in excess, puts the memory over the
/// aligned part of it, and unmaps the rest.
fn map_aligned(len_bytes: usize, alignment: usize, file: Option<&OwnedFd>) -> io::Result<NonNull<u8>> {
    let excess_bytes = len_bytes + alignment;
    let fixed = MapFlags::FIXED;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the first mapping is new and ours alone; the second replaces a part of it; what is unmapped are
    // the parts before and after, which nobody has seen.
    unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let start = mmap_anonymous(ptr::null_mut(), excess_bytes, ProtFlags::empty(), flags)?.cast::<u8>();
        let before_bytes = start.addr().next_multiple_of(alignment) - start.addr();
        let base = start.add(before_bytes);
        let mapped = match file {
            Some(file) => mmap(
                base.cast(),
                len_bytes,
                protection,
                MapFlags::SHARED | fixed,
                file,
                0,
            ),
            None => mmap_anonymous(base.cast(), len_bytes, protection, flags | fixed),
        };
        if let Err(error) = mapped {
            unmap(start, excess_bytes);
            return Err(error.into());
        }
        unmap(start, before_bytes);
        unmap(base.add(len_bytes), excess_bytes - before_bytes - len_bytes);
        not_null(base.cast())
    }
}

/// Unmaps a range that the caller owns.
fn unmap(start: *mut u8, len_bytes: usize) {
    if len_bytes == 0 {
        return;
    }
    // SAFETY: the callers own the range as the result of a mapping of this file and use it no more.
    let result = unsafe { munmap(start.cast::<c_void>(), len_bytes) };
    debug_assert!(result.is_ok(), "unmapping {len_bytes} bytes failed: {result:?}");
}

fn not_null(base: *mut c_void) -> io::Result<NonNull<u8>> {
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped memory at address zero"))
}
