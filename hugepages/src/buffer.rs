//! Buffers: bytes that one owner can write.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::slice::Slice;
use crate::slot::View;

/// The only view of a range of bytes of a pool or of the heap. It can be sent to another thread and written;
/// what is dropped there finds its way back to its pool.
///
/// Parts of a buffer, split off, keep its whole slot in use until the last of them is dropped.
pub struct Buffer {
    view: View,
}

impl Buffer {
    /// `len` zeros on the heap, aligned like those of a pool: for tests and tools.
    #[must_use]
    pub fn from_heap(len: usize) -> Buffer {
        Buffer {
            view: View::on_heap(len),
        }
    }

    /// No bytes at all, and no memory used.
    #[must_use]
    pub fn empty() -> Buffer {
        Buffer::from_heap(0)
    }

    /// A buffer over a view that overlaps no other view and is not of static memory.
    pub(crate) fn from_unique(view: View) -> Buffer {
        Buffer { view }
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.view.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the bytes start at a multiple of `alignment_bytes`.
    #[must_use]
    pub fn is_aligned(&self, alignment_bytes: usize) -> bool {
        self.view.start().addr().get().is_multiple_of(alignment_bytes)
    }

    /// Cuts off the first `at` bytes and returns them. Panics if there are fewer.
    #[must_use = "the bytes cut off are dropped otherwise: use `advance`"]
    pub fn split_to(&mut self, at: usize) -> Buffer {
        let tail = self.view.split_off(at);
        Buffer {
            view: std::mem::replace(&mut self.view, tail),
        }
    }

    /// Cuts off everything from `at` and returns it. Panics if there are fewer bytes.
    #[must_use = "the bytes cut off are dropped otherwise: use `truncate`"]
    pub fn split_off(&mut self, at: usize) -> Buffer {
        Buffer {
            view: self.view.split_off(at),
        }
    }

    /// Undoes a split: appends `other` if its bytes follow in the same slot.
    ///
    /// # Errors
    ///
    /// `other`, unchanged, if they do not.
    pub fn try_unsplit(&mut self, other: Buffer) -> Result<(), Buffer> {
        self.view.join(other.view).map_err(|view| Buffer { view })
    }

    /// Drops all bytes after the first `len`; nothing happens if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.view.truncate(len);
    }

    /// Drops the first `count` bytes. Panics if there are fewer.
    pub fn advance(&mut self, count: usize) {
        self.view.advance(count);
    }

    /// Makes the bytes shared and read-only.
    #[must_use]
    pub fn freeze(self) -> Slice {
        Slice::from_view(self.view)
    }

    /// The whole slot, with whatever bytes it holds, if this is the only view of it.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, if other views of the slot are alive.
    pub fn reclaim(mut self) -> Result<Buffer, Buffer> {
        if self.view.grow_to_slot() {
            Ok(self)
        } else {
            Err(self)
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::empty()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.view.bytes()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the view of a buffer overlaps no other: it comes from a slot with one view (`from_unique`,
        // `reclaim`), splitting divides it, and freezing consumes it. Only an empty one is of static memory.
        unsafe { self.view.bytes_mut() }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes are data of volumes, which does not belong in a log.
        write!(
            formatter,
            "Buffer({} bytes at {:p})",
            self.len(),
            self.view.start()
        )
    }
}
