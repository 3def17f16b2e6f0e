//! The bytes that a pool hands out: a mapped region, or the heap.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::BUFFER_ALIGNMENT_BYTES;
use crate::arena::Mapping;
use crate::page::PageKind;

/// Memory that belongs to one pool, initialised with zeros, at a multiple of 4096.
///
/// A mapping in here is never that of an [`Arena`](crate::Arena), whose bytes may be written behind the back
/// of a reference.
pub(super) enum Memory {
    Mapped(Mapping),
    Heap { base: NonNull<u8>, layout: Layout },
}

// SAFETY: the memory belongs to this value and to no thread.
unsafe impl Send for Memory {}
// SAFETY: a shared reference tells where the bytes are, and nothing else.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zeros on the heap.
    pub(super) fn on_heap(bytes: usize) -> Memory {
        assert!(bytes > 0, "a pool has memory");
        let Ok(layout) = Layout::from_size_align(bytes, BUFFER_ALIGNMENT_BYTES) else {
            panic!("{bytes} bytes are more than the address space holds")
        };
        // SAFETY: the size is not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        Memory::Heap { base, layout }
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        match self {
            Memory::Mapped(mapping) => mapping.base(),
            Memory::Heap { base, .. } => *base,
        }
    }

    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Memory::Mapped(mapping) => mapping.len_bytes(),
            Memory::Heap { layout, .. } => layout.size(),
        }
    }

    pub(super) fn page_kind(&self) -> PageKind {
        match self {
            Memory::Mapped(mapping) => mapping.page(),
            Memory::Heap { .. } => PageKind::Ordinary,
        }
    }

    pub(super) fn numa_node(&self) -> Option<u32> {
        match self {
            Memory::Mapped(mapping) => mapping.numa_node(),
            Memory::Heap { .. } => None,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Heap { base, layout } = self {
            // SAFETY: allocated with this layout in `on_heap`; the pool is done with it.
            unsafe { dealloc(base.as_ptr(), *layout) }
        }
    }
}
