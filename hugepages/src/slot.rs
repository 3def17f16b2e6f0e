//! Slots and views: the only place where buffers turn pointers into references.
//!
//! A *slot* is a piece of memory handed out as a whole: a part of a pool's region or an allocation of the
//! heap. Its [`Header`] lives apart from the bytes. A [`View`] is a range of bytes in one slot. Invariants:
//!
//! - `references` is the number of views of the slot; the slot is given back when the last one goes, by the
//!   thread that drops it.
//! - The bytes of a slot are initialised, and stay where they are while a view lives.
//! - Views inside a [`Buffer`](crate::Buffer) overlap no other view. Views inside [`Slice`](crate::Slice)s
//!   may overlap each other and are never written.
//! - A header with one reference is known by no other thread, so that its only holder can act on it without a
//!   read-modify-write.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use crate::BUFFER_ALIGNMENT_BYTES;
use crate::pool::Shared;

/// More views of one slot than this are a leak in a loop, and the count must not wrap.
const REFERENCES_MAX: u32 = i32::MAX as u32;

/// What is known about a slot.
pub(crate) struct Header {
    references: AtomicU32,
    /// The next slot in the list of slots freed by other threads; see [`Shared`].
    pub(crate) next: AtomicU32,
    /// The position of the slot in its region, in units of 4096 bytes.
    pub(crate) unit: u32,
    /// The size class, as an index, while the slot is in use.
    pub(crate) class: AtomicU8,
    /// The pool of the slot; `None` for a slot on the heap, whose header is the head of a [`HeapSlot`].
    owner: Option<NonNull<Shared>>,
}

impl Header {
    /// The header of a slot of a pool, not in use.
    pub(crate) fn of_pool(owner: NonNull<Shared>, unit: u32) -> Header {
        Header {
            references: AtomicU32::new(0),
            next: AtomicU32::new(0),
            unit,
            class: AtomicU8::new(0),
            owner: Some(owner),
        }
    }

    /// Makes the slot one in use, with one view. Only for who has just taken it from its pool.
    pub(crate) fn begin(&self, class: u8) {
        self.class.store(class, Ordering::Relaxed);
        self.references.store(1, Ordering::Relaxed);
    }
}

/// A slot on the heap: header first, so that a pointer to it is a pointer to the header.
#[repr(C)]
struct HeapSlot {
    header: Header,
    base: NonNull<u8>,
    layout: Layout,
}

/// A range of bytes in a slot, or of static memory.
pub(crate) struct View {
    start: NonNull<u8>,
    len: usize,
    /// `None` for static memory, and for no bytes at all.
    slot: Option<NonNull<Header>>,
}

// SAFETY: a view can be moved to another thread: its slot is counted by atomics, the last view's giver-back
// finds out on which thread it is, and the bytes obey the sharing rules that `Buffer` and `Slice` keep.
unsafe impl Send for View {}
// SAFETY: a shared view only reads bytes that nobody writes while it is borrowed, and counts by atomics.
unsafe impl Sync for View {}

impl View {
    /// A view of a slot that was just begun.
    ///
    /// # Safety
    ///
    /// `start` begins `len` initialised bytes of the slot of `slot`, whose one reference becomes this view's.
    pub(crate) unsafe fn of_slot(start: NonNull<u8>, len: usize, slot: NonNull<Header>) -> View {
        View {
            start,
            len,
            slot: Some(slot),
        }
    }

    /// A view of static bytes. They can be read only.
    pub(crate) fn of_static(bytes: &'static [u8]) -> View {
        View {
            start: NonNull::from(bytes).cast(),
            len: bytes.len(),
            slot: None,
        }
    }

    /// A view of `len` zeros on the heap, aligned as all buffers are.
    pub(crate) fn on_heap(len: usize) -> View {
        if len == 0 {
            return View::of_static(&[]);
        }
        // Whole blocks, so that no two buffers share one.
        let size = len.checked_next_multiple_of(BUFFER_ALIGNMENT_BYTES);
        let layout = size.and_then(|size| Layout::from_size_align(size, BUFFER_ALIGNMENT_BYTES).ok());
        let Some(layout) = layout else {
            panic!("a buffer of {len} bytes is larger than the address space")
        };
        // SAFETY: the size is not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let header = Header {
            references: AtomicU32::new(1),
            next: AtomicU32::new(0),
            unit: 0,
            class: AtomicU8::new(0),
            owner: None,
        };
        let slot = NonNull::from(Box::leak(Box::new(HeapSlot { header, base, layout })));
        View {
            start: base,
            len,
            slot: Some(slot.cast()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The bytes, for reading.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the view's bytes are initialised and alive while `self` is; they are not written while
        // borrowed, as only the `Buffer` that owns this view, borrowed too, could.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, for writing.
    ///
    /// # Safety
    ///
    /// No other view overlaps this one, and it is not of static memory unless it is empty.
    pub(crate) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialised and alive as in `bytes`; the caller promises that nobody else looks at them.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// A second view of the same bytes. The caller sees to it that no `Buffer` holds either of them for
    /// writing where they overlap.
    pub(crate) fn duplicate(&self) -> View {
        if let Some(slot) = self.slot {
            // SAFETY: the slot's header lives while this view does.
            let before = unsafe { slot.as_ref() }
                .references
                .fetch_add(1, Ordering::Relaxed);
            if before > REFERENCES_MAX {
                // Nothing sound is left to do, as with `Arc`.
                std::process::abort();
            }
        }
        View {
            start: self.start,
            len: self.len,
            slot: self.slot,
        }
    }

    /// Cuts the view in two: `[0, at)` stays, `[at, len)` is returned.
    pub(crate) fn split_off(&mut self, at: usize) -> View {
        assert!(at <= self.len, "cannot split {} bytes at {at}", self.len);
        let mut tail = self.duplicate();
        tail.advance(at);
        self.len = at;
        tail
    }

    /// Shortens the view to its first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Drops the first `count` bytes from the view.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(
            count <= self.len,
            "cannot advance over {count} of {} bytes",
            self.len
        );
        // SAFETY: the result is inside the view or just past its end.
        self.start = unsafe { self.start.add(count) };
        self.len -= count;
    }

    /// Joins `next` to the end of this view if it is the next bytes of the same slot.
    pub(crate) fn join(&mut self, next: View) -> Result<(), View> {
        let end = self.start.as_ptr().wrapping_add(self.len);
        if self.slot.is_none() || self.slot != next.slot || end != next.start.as_ptr() {
            return Err(next);
        }
        self.len += next.len;
        Ok(())
    }

    /// Whether this is the only view of a slot. What other threads did with theirs has happened before.
    pub(crate) fn is_only(&self) -> bool {
        // SAFETY: the slot's header lives while this view does. Acquire pairs with the release in `drop`.
        self.slot
            .is_some_and(|slot| unsafe { slot.as_ref() }.references.load(Ordering::Acquire) == 1)
    }

    /// Grows the view over its whole slot; false, and no change, if there are other views of the slot.
    pub(crate) fn grow_to_slot(&mut self) -> bool {
        let Some(slot) = self.slot.filter(|_| self.is_only()) else {
            return false;
        };
        // SAFETY: the slot's header lives while this view does, and its pool does too.
        let (base, len) = unsafe {
            match slot.as_ref().owner {
                Some(owner) => owner.as_ref().bytes_of(slot.as_ref()),
                None => {
                    let heap = slot.cast::<HeapSlot>().as_ref();
                    (heap.base, heap.layout.size())
                }
            }
        };
        (self.start, self.len) = (base, len);
        true
    }
}

impl Default for View {
    fn default() -> Self {
        View::of_static(&[])
    }
}

impl Drop for View {
    #[inline]
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        {
            // SAFETY: the slot's header lives while this view does.
            let references = unsafe { &slot.as_ref().references };
            // The only view needs no read-modify-write: nobody else is there to count. Release: what this
            // thread did to the bytes happens before their next use; acquire: so does what other threads did.
            if references.load(Ordering::Acquire) != 1 {
                if references.fetch_sub(1, Ordering::Release) != 1 {
                    return;
                }
                fence(Ordering::Acquire);
            }
        }
        // SAFETY: that was the last view, so this thread alone knows the slot now, and gives it back once.
        unsafe {
            match slot.as_ref().owner {
                Some(owner) => Shared::give_back(owner, slot),
                None => {
                    let heap = Box::from_raw(slot.cast::<HeapSlot>().as_ptr());
                    dealloc(heap.base.as_ptr(), heap.layout);
                }
            }
        }
    }
}
