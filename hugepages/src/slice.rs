//! Slices: shared bytes that nobody writes.

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};
use std::sync::OnceLock;

use crate::buffer::Buffer;
use crate::slot::View;

/// Zeros kept for [`Slice::zeroes`]; longer ones are made on the heap.
const SHARED_ZEROES_BYTES: usize = 2 << 20;

/// A shared view of bytes that do not change while it lives. Clones are cheap and can go to other threads.
#[derive(Default)]
pub struct Slice {
    view: View,
}

impl Slice {
    /// No bytes at all, and no memory used.
    #[must_use]
    pub fn empty() -> Slice {
        Slice::from_static(&[])
    }

    /// Bytes that live as long as the program; nothing is copied or counted.
    #[must_use]
    pub fn from_static(bytes: &'static [u8]) -> Slice {
        Slice {
            view: View::of_static(bytes),
        }
    }

    /// A copy of `bytes` on the heap.
    #[must_use]
    pub fn copy_from(bytes: &[u8]) -> Slice {
        let mut buffer = Buffer::from_heap(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer.freeze()
    }

    /// `len` zeros, aligned like a buffer. Up to 2 MiB are shared by the whole process and cost nothing.
    #[must_use]
    pub fn zeroes(len: usize) -> Slice {
        static SHARED: OnceLock<Buffer> = OnceLock::new();
        if len > SHARED_ZEROES_BYTES {
            return Buffer::from_heap(len).freeze();
        }
        // Kept for good, so that no count is shared between threads. The kernel backs zeros that are only
        // read with one page.
        let shared = SHARED.get_or_init(|| Buffer::from_heap(SHARED_ZEROES_BYTES));
        Slice::from_static(&shared[..len])
    }

    /// A slice over a view that no buffer overlaps.
    pub(crate) fn from_view(view: View) -> Slice {
        Slice { view }
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

    /// A view of a part of the bytes. Panics if the range is not inside.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Slice {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        let len = self.len();
        assert!(
            start <= end && end <= len,
            "range {start}..{end} is outside a slice of {len} bytes"
        );
        let mut part = self.clone();
        part.view.truncate(end);
        part.view.advance(start);
        part
    }

    /// Cuts off the first `at` bytes and returns them. Panics if there are fewer.
    #[must_use = "the bytes cut off are dropped otherwise: use `advance`"]
    pub fn split_to(&mut self, at: usize) -> Slice {
        let tail = self.view.split_off(at);
        Slice {
            view: std::mem::replace(&mut self.view, tail),
        }
    }

    /// Cuts off everything from `at` and returns it. Panics if there are fewer bytes.
    #[must_use = "the bytes cut off are dropped otherwise: use `truncate`"]
    pub fn split_off(&mut self, at: usize) -> Slice {
        Slice {
            view: self.view.split_off(at),
        }
    }

    /// Drops all bytes after the first `len`; nothing happens if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.view.truncate(len);
    }

    /// Drops the first `count` bytes. Panics if there are fewer.
    pub fn advance(&mut self, count: usize) {
        self.view.advance(count);
    }

    /// The same bytes, to write, if this is the only view of their slot.
    ///
    /// # Errors
    ///
    /// The slice, unchanged, if other views of the slot are alive, or if the bytes are static.
    pub fn try_into_buffer(self) -> Result<Buffer, Slice> {
        if self.view.is_only() {
            Ok(Buffer::from_unique(self.view))
        } else {
            Err(self)
        }
    }
}

impl Clone for Slice {
    fn clone(&self) -> Self {
        // No buffer overlaps the view of a slice, so no buffer overlaps the second one.
        Slice {
            view: self.view.duplicate(),
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.view.bytes()
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for Slice {
    fn from(buffer: Buffer) -> Self {
        buffer.freeze()
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes are data of volumes, which does not belong in a log.
        write!(
            formatter,
            "Slice({} bytes at {:p})",
            self.len(),
            self.view.start()
        )
    }
}
