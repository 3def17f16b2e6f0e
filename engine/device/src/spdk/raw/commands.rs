//! The commands of one queue that SPDK works on, and the callbacks it calls for them.
//!
//! Invariants:
//! - An [`Entry`] stays where it is from [`Commands::new`] on; SPDK is given its address as the context of a
//!   command, and uses it until that command's callback returns.
//! - Callbacks run inside calls of this queue's own thread into SPDK, and do nothing but read the data's
//!   place and note the completion. So nothing of the queue is entered twice, and no borrow of an entry or of
//!   the list of completions is ever held across a call into SPDK.
//! - While a command is under way its data stays in its entry: a buffer is not read, slices are not written.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::rc::Rc;

use pollux_hugepages::Buffer;
use pollux_spdk_sys as sys;

use crate::request::Gather;

pub(in super::super) use sys::CompletionStatus;

/// What a command carries.
#[derive(Debug, Default)]
pub(in super::super) enum Data {
    /// Nothing.
    #[default]
    None,
    /// The buffer of a read.
    Into(Buffer),
    /// The data of a write or compare.
    From(Gather),
}

impl Data {
    /// Bytes in all.
    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Into(buffer) => buffer.len(),
            Self::From(gather) => gather.len_bytes(),
        }
    }

    /// Where the bytes are if they are in one piece.
    pub(super) fn one_piece(&mut self) -> Option<*mut c_void> {
        match self {
            Self::Into(buffer) => Some(buffer.as_mut_ptr().cast()),
            Self::From(gather) => match gather.pieces() {
                [piece] => Some(piece.as_ptr().cast_mut().cast()),
                _ => None,
            },
            Self::None => None,
        }
    }
}

type Finished = Rc<RefCell<Vec<(u16, CompletionStatus)>>>;

/// One command.
pub(super) struct Entry {
    index: u16,
    data: RefCell<Data>,
    /// The piece and the offset in it that SPDK asks for next.
    cursor: Cell<(usize, usize)>,
    finished: Finished,
}

/// A fixed number of commands.
pub(in super::super) struct Commands {
    entries: Box<[Entry]>,
    finished: Finished,
    /// What `drain` hands out, kept for its memory.
    draining: RefCell<Vec<(u16, CompletionStatus)>>,
}

impl Commands {
    /// Room for so many.
    pub(in super::super) fn new(count: u16) -> Rc<Self> {
        let room = usize::from(count);
        let finished = Rc::new(RefCell::new(Vec::with_capacity(room)));
        let entries = (0..count).map(|index| Entry {
            index,
            data: RefCell::default(),
            cursor: Cell::default(),
            finished: Rc::clone(&finished),
        });
        Rc::new(Self {
            entries: entries.collect(),
            finished: Rc::clone(&finished),
            draining: RefCell::new(Vec::with_capacity(room)),
        })
    }

    pub(super) fn entry(&self, index: u16) -> Option<&Entry> {
        self.entries.get(usize::from(index))
    }

    /// Puts the data of a command that is not under way, and returns what was there.
    pub(in super::super) fn swap(&self, index: u16, data: Data) -> Data {
        match self.entry(index) {
            Some(entry) => entry.data.replace(data),
            None => data,
        }
    }

    /// Whether SPDK has noted completions.
    pub(in super::super) fn has_finished(&self) -> bool {
        !self.finished.borrow().is_empty()
    }

    /// Takes the commands that SPDK is done with, oldest first.
    pub(in super::super) fn drain(&self, mut each: impl FnMut(u16, CompletionStatus)) {
        let mut draining = self.draining.take();
        std::mem::swap(&mut draining, &mut *self.finished.borrow_mut());
        for (index, status) in draining.drain(..) {
            each(index, status);
        }
        self.draining.replace(draining);
    }
}

impl Entry {
    /// What SPDK is given to know the command by.
    pub(super) fn context(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    pub(super) fn one_piece(&self) -> Option<*mut c_void> {
        self.data.borrow_mut().one_piece()
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.data.borrow().len_bytes()
    }
}

/// The entry behind a context.
///
/// # Safety
///
/// `context` is that of an entry of a table that lives, on the thread of its queue.
unsafe fn entry_of<'a>(context: *mut c_void) -> &'a Entry {
    // SAFETY: the caller's promise; entries are only reached by shared references, which stay on the thread.
    unsafe { &*context.cast::<Entry>() }
}

/// A command is over.
pub(super) unsafe extern "C" fn complete(context: *mut c_void, completion: *const sys::spdk_nvme_cpl) {
    // SAFETY: SPDK gives back the context of a command under way, whose table the queue pair keeps alive, on
    // the thread of the queue; the completion lives until this function returns.
    let (entry, status) = unsafe { (entry_of(context), sys::completion_status(completion)) };
    // There is room: each entry is in the list at most once.
    entry.finished.borrow_mut().push((entry.index, status));
}

/// SPDK will ask for pieces from byte `offset` on.
pub(super) unsafe extern "C" fn seek(context: *mut c_void, offset: u32) {
    // SAFETY: as in `complete`.
    let entry = unsafe { entry_of(context) };
    let mut left = offset as usize;
    let mut piece = 0;
    if let Data::From(gather) = &*entry.data.borrow() {
        while let Some(bytes) = gather.pieces().get(piece).filter(|bytes| left >= bytes.len()) {
            left -= bytes.len();
            piece += 1;
        }
    }
    entry.cursor.set((piece, left));
}

/// SPDK asks for the next piece.
pub(super) unsafe extern "C" fn next(
    context: *mut c_void,
    address: *mut *mut c_void,
    length: *mut u32,
) -> c_int {
    // SAFETY: as in `complete`.
    let entry = unsafe { entry_of(context) };
    let (piece, offset) = entry.cursor.get();
    let data = entry.data.borrow();
    let rest = match &*data {
        Data::From(gather) => gather.pieces().get(piece).and_then(|bytes| bytes.get(offset..)),
        Data::Into(_) | Data::None => None,
    };
    let Some(rest) = rest else {
        return -libc::EINVAL;
    };
    entry.cursor.set((piece + 1, 0));
    // SAFETY: both are places of the caller's own. Nothing writes through the address: only writes and
    // compares carry several pieces.
    unsafe {
        *address = rest.as_ptr().cast_mut().cast();
        *length = rest.len() as u32;
    }
    0
}

/// The answer to an abort is of no interest: the command itself completes.
pub(super) unsafe extern "C" fn ignore(_: *mut c_void, _: *const sys::spdk_nvme_cpl) {}

#[cfg(test)]
mod tests {
    use pollux_hugepages::Slice;

    use super::*;

    /// What SPDK would see, from `offset` on.
    fn walk(entry: &Entry, offset: u32) -> Vec<u8> {
        let mut seen = Vec::new();
        // SAFETY: the entry lives in the caller, on this thread.
        unsafe { seek(entry.context(), offset) };
        loop {
            let (mut address, mut length) = (std::ptr::null_mut(), 0);
            // SAFETY: as above, and both places are ours.
            if unsafe { next(entry.context(), &mut address, &mut length) } != 0 {
                return seen;
            }
            // SAFETY: the piece is a slice in the entry.
            seen.extend_from_slice(unsafe {
                std::slice::from_raw_parts(address.cast::<u8>(), length as usize)
            });
        }
    }

    #[test]
    fn pieces_are_walked_from_anywhere() {
        let commands = Commands::new(2);
        let mut gather = Gather::new();
        for piece in [&b"abc"[..], b"d", b"efgh"] {
            gather.push(Slice::copy_from(piece));
        }
        commands.swap(1, Data::From(gather));
        let entry = commands.entry(1).expect("there are two");
        for offset in 0..=9_u32 {
            let expected = b"abcdefgh".get(offset as usize..).unwrap_or_default();
            assert_eq!(walk(entry, offset), expected, "from {offset}");
        }
    }

    #[test]
    fn completions_are_handed_out_once_and_in_order() {
        let commands = Commands::new(4);
        for index in [2, 0] {
            // SAFETY: all zeros is a completion.
            let completion: sys::spdk_nvme_cpl = unsafe { std::mem::zeroed() };
            let entry = commands.entry(index).expect("there are four");
            // SAFETY: the entry lives, on this thread, and so does the completion.
            unsafe { complete(entry.context(), &completion) };
        }
        assert!(commands.has_finished());
        let mut seen = Vec::new();
        commands.drain(|index, status| seen.push((index, status.code)));
        assert_eq!(seen, [(2, 0), (0, 0)]);
        commands.drain(|_, _| seen.clear());
        assert_eq!(seen.len(), 2);
    }
}
