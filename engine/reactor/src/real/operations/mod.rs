//! Operations on files: a fixed number of slots, each with the memory that the kernel works on.
//!
//! Invariants:
//! - A slot is in `free`, or granted to a waiter, or belongs to one [`Operation`], or is *abandoned*: its
//!   operation was dropped while the kernel was at work on it.
//! - From the push of its entry until its completion is reaped, the cargo of a slot is not touched: the file
//!   stays open, the buffer, the slices and the list of pieces stay where they are. Only then are they given
//!   out or dropped.
//! - Waiters get slots in the order in which they came; a new operation does not overtake them.
//! - Nothing is allocated for an operation once the lists of pieces have grown to what is used.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, squeue, types};
use pollux_hugepages::{Buffer, Slice};
use slab::Slab;

use super::ring::Ring;
use super::token::Token;
use super::uring::Uring;
use crate::file::SharedFile;

/// Pieces of one write that the kernel takes at once (`IOV_MAX`); the write is short when there are more.
pub(crate) const PIECES_MAX: usize = 1024;

/// Bytes that the kernel moves in one operation (`MAX_RW_COUNT`); longer ones are short.
const OPERATION_BYTES_MAX: usize = 0x7fff_f000;

/// Operations that may wait for a slot; one more is refused as a resource that is busy.
const WAITERS_MAX: usize = 65_536;

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)` of `linux/blkdev.h`: since Linux 6.12.
const BLOCK_COMMAND_DISCARD: u32 = 0x12 << 8;

/// What the kernel is asked to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    Read {
        offset_bytes: u64,
    },
    Write {
        offset_bytes: u64,
        dsync: bool,
    },
    Sync {
        data_only: bool,
    },
    Allocate {
        mode: i32,
        offset_bytes: u64,
        len_bytes: u64,
    },
    Truncate {
        len_bytes: u64,
    },
    Discard {
        offset_bytes: u64,
        len_bytes: u64,
    },
}

/// What an operation works on, kept until the kernel is done with it.
#[derive(Default)]
pub(crate) struct Cargo {
    file: Option<Arc<SharedFile>>,
    pub(crate) buffer: Option<Buffer>,
    pub(crate) slices: Vec<Slice>,
    pieces: Vec<libc::iovec>,
}

impl Cargo {
    fn clear(&mut self) {
        self.file = None;
        self.buffer = None;
        self.slices.clear();
        self.pieces.clear();
    }

    /// The entry for an action on what is in the cargo, which points into it.
    fn entry(&mut self, file: Arc<SharedFile>, action: Action) -> squeue::Entry {
        let descriptor = types::Fd(file.as_fd().as_raw_fd());
        self.file = Some(file);
        match action {
            Action::Read { offset_bytes } => {
                let bytes: &mut [u8] = self.buffer.as_mut().map_or(&mut [], |buffer| &mut **buffer);
                let len = bytes.len().min(OPERATION_BYTES_MAX) as u32;
                opcode::Read::new(descriptor, bytes.as_mut_ptr(), len)
                    .offset(offset_bytes)
                    .build()
            }
            Action::Write { offset_bytes, dsync } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                if let [one] = &self.slices[..] {
                    let len = one.len().min(OPERATION_BYTES_MAX) as u32;
                    return opcode::Write::new(descriptor, one.as_ptr(), len)
                        .offset(offset_bytes)
                        .rw_flags(flags)
                        .build();
                }
                let pieces = self.slices.iter().take(PIECES_MAX).map(|slice| libc::iovec {
                    iov_base: slice.as_ptr().cast_mut().cast(),
                    iov_len: slice.len(),
                });
                self.pieces.clear();
                self.pieces.extend(pieces);
                opcode::Writev::new(descriptor, self.pieces.as_ptr(), self.pieces.len() as u32)
                    .offset(offset_bytes)
                    .rw_flags(flags)
                    .build()
            }
            Action::Sync { data_only } => {
                let flags = if data_only {
                    types::FsyncFlags::DATASYNC
                } else {
                    types::FsyncFlags::empty()
                };
                opcode::Fsync::new(descriptor).flags(flags).build()
            }
            Action::Allocate {
                mode,
                offset_bytes,
                len_bytes,
            } => opcode::Fallocate::new(descriptor, len_bytes)
                .offset(offset_bytes)
                .mode(mode)
                .build(),
            Action::Truncate { len_bytes } => opcode::Ftruncate::new(descriptor, len_bytes).build(),
            Action::Discard {
                offset_bytes,
                len_bytes,
            } => {
                // The length travels in `addr3`, the first half of the space for commands.
                let mut command = [0; 16];
                command[..8].copy_from_slice(&len_bytes.to_ne_bytes());
                opcode::UringCmd16::new(descriptor, BLOCK_COMMAND_DISCARD)
                    .addr(Some(offset_bytes))
                    .cmd(command)
                    .build()
            }
        }
    }
}

enum State {
    /// Free, granted, or filled by its operation.
    Idle,
    /// With the kernel.
    InFlight(Option<Waker>),
    /// With the kernel, and nobody waits for it.
    Abandoned,
    /// Back from the kernel, with its result.
    Done(i32),
}

struct Slot {
    state: State,
    cargo: Cargo,
}

struct Waiter {
    waker: Waker,
    granted: Option<u16>,
}

struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    waiters: Slab<Waiter>,
    queue: VecDeque<usize>,
    in_flight: usize,
}

/// The slots of one ring.
pub(super) struct Operations(RefCell<Slots>);

impl Operations {
    pub(super) fn new(count: u16) -> Self {
        let slots = (0..count).map(|_| Slot {
            state: State::Idle,
            cargo: Cargo::default(),
        });
        Self(RefCell::new(Slots {
            slots: slots.collect(),
            free: (0..count).rev().collect(),
            waiters: Slab::new(),
            queue: VecDeque::new(),
            in_flight: 0,
        }))
    }

    /// Operations that the kernel is at work on.
    pub(super) fn in_flight(&self) -> usize {
        self.0.borrow().in_flight
    }

    /// The tokens of the operations that the kernel is at work on.
    pub(super) fn tokens_in_flight(&self) -> Vec<Token> {
        let slots = self.0.borrow();
        let in_flight = slots
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| matches!(slot.state, State::InFlight(_) | State::Abandoned));
        in_flight.map(|(slot, _)| Token::Operation(slot as u32)).collect()
    }

    /// Leaks all that the kernel may still write to. For a ring that cannot be emptied.
    pub(super) fn leak(&self) {
        Box::leak(std::mem::take(&mut self.0.borrow_mut().slots));
    }

    /// The kernel is done with a slot.
    pub(super) fn complete(&self, slot: u32, result: i32) {
        let mut slots = self.0.borrow_mut();
        let Some(entry) = slots.slots.get_mut(slot as usize) else {
            return;
        };
        let waker = match std::mem::replace(&mut entry.state, State::Done(result)) {
            State::InFlight(waker) => waker,
            State::Abandoned => {
                slots.in_flight -= 1;
                drop(slots);
                self.release(slot as u16);
                return;
            }
            // The kernel completes each operation once.
            state @ (State::Idle | State::Done(_)) => {
                entry.state = state;
                return;
            }
        };
        slots.in_flight -= 1;
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Empties a slot that the kernel has nothing to do with, and gives it to the next who waits.
    fn release(&self, slot: u16) {
        // What is in the cargo is dropped while nothing is borrowed: that may wake others.
        let mut cargo = self.with(slot, |slot| std::mem::take(&mut slot.cargo));
        cargo.clear();
        self.with(slot, |slot| {
            slot.cargo = cargo;
            slot.state = State::Idle;
        });
        let mut slots = self.0.borrow_mut();
        let next = slots.queue.pop_front();
        let waker = next.and_then(|key| {
            let waiter = slots.waiters.get_mut(key)?;
            waiter.granted = Some(slot);
            Some(waiter.waker.clone())
        });
        if next.is_none() {
            slots.free.push(slot);
        }
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn with<T>(&self, slot: u16, act: impl FnOnce(&mut Slot) -> T) -> T {
        act(&mut self.0.borrow_mut().slots[usize::from(slot)])
    }

    /// Starts the action of a slot that belongs to the caller.
    fn start(
        &self,
        uring: &Uring,
        slot: u16,
        file: Arc<SharedFile>,
        action: Action,
        load: impl FnOnce(&mut Cargo),
    ) {
        let entry = self.with(slot, |slot| {
            load(&mut slot.cargo);
            slot.state = State::InFlight(None);
            slot.cargo.entry(file, action)
        });
        self.0.borrow_mut().in_flight += 1;
        let entry = entry.user_data(Token::Operation(u32::from(slot)).encode());
        // SAFETY: all that the entry refers to is in the cargo of the slot, or owned by it: the file, which
        // keeps the descriptor open, the buffer, which nobody else can read or write, the slices,
        // which nobody writes, and the list of pieces. The state `InFlight`, and `Abandoned` after
        // it, keeps this thread from touching the cargo until `complete` has been called for the
        // completion of this entry. The slots go only after the ring: `Ring` empties it first, or
        // leaks them.
        unsafe { uring.push(entry) };
    }
}

/// Waits for a slot.
pub(crate) struct Acquire {
    ring: Ring,
    key: Option<usize>,
}

impl Acquire {
    pub(super) fn new(ring: Ring) -> Self {
        Self { ring, key: None }
    }
}

impl Future for Acquire {
    type Output = io::Result<Operation>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Operation>> {
        let ring = self.ring.clone();
        let mut slots = ring.operations().0.borrow_mut();
        let slot = match self.key {
            None => {
                let free = if slots.queue.is_empty() {
                    slots.free.pop()
                } else {
                    None
                };
                if free.is_none() {
                    if slots.queue.len() >= WAITERS_MAX {
                        return Poll::Ready(Err(io::ErrorKind::ResourceBusy.into()));
                    }
                    let key = slots.waiters.insert(Waiter {
                        waker: context.waker().clone(),
                        granted: None,
                    });
                    slots.queue.push_back(key);
                    self.key = Some(key);
                }
                free
            }
            Some(key) => {
                let granted = slots.waiters.get_mut(key).and_then(|waiter| {
                    waiter.waker.clone_from(context.waker());
                    waiter.granted
                });
                if granted.is_some() {
                    slots.waiters.try_remove(key);
                    self.key = None;
                }
                granted
            }
        };
        drop(slots);
        match slot {
            Some(slot) => Poll::Ready(Ok(Operation { ring, slot })),
            None => Poll::Pending,
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let operations = self.ring.operations();
        let mut slots = operations.0.borrow_mut();
        slots.queue.retain(|&waiting| waiting != key);
        let waiter = slots.waiters.try_remove(key);
        drop(slots);
        // It was granted a slot and never came for it.
        if let Some(slot) = waiter.and_then(|waiter| waiter.granted) {
            operations.release(slot);
        }
    }
}

/// A slot of one's own. Dropped while the kernel is at work on it, it stays with the kernel until that is
/// done.
pub(crate) struct Operation {
    ring: Ring,
    slot: u16,
}

impl Operation {
    /// Has the kernel act on a file with what `load` puts into the cargo; returns the kernel's result.
    pub(crate) async fn run(
        &mut self,
        file: &Arc<SharedFile>,
        action: Action,
        load: impl FnOnce(&mut Cargo),
    ) -> io::Result<usize> {
        let operations = self.ring.operations();
        operations.start(self.ring.uring(), self.slot, Arc::clone(file), action, load);
        let result = std::future::poll_fn(|context| {
            operations.with(self.slot, |slot| match &mut slot.state {
                State::Done(result) => Poll::Ready(*result),
                State::InFlight(waker) => {
                    if waker
                        .as_ref()
                        .is_none_or(|waker| !waker.will_wake(context.waker()))
                    {
                        *waker = Some(context.waker().clone());
                    }
                    Poll::Pending
                }
                // Neither happens between `start` and the end of `run`.
                State::Idle | State::Abandoned => Poll::Ready(-libc::ECANCELED),
            })
        })
        .await;
        usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
    }

    /// The buffer of a read that is done.
    pub(crate) fn take_buffer(&mut self) -> Option<Buffer> {
        self.ring.operations().with(self.slot, |slot| match slot.state {
            State::Done(_) | State::Idle => slot.cargo.buffer.take(),
            State::InFlight(_) | State::Abandoned => None,
        })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let operations = self.ring.operations();
        let with_kernel = operations.with(self.slot, |slot| match slot.state {
            State::InFlight(_) => Some(std::mem::replace(&mut slot.state, State::Abandoned)),
            State::Idle | State::Done(_) | State::Abandoned => None,
        });
        if with_kernel.is_none() {
            operations.release(self.slot);
        }
    }
}

#[cfg(test)]
mod tests;
