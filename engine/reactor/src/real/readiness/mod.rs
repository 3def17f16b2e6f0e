//! When to try a socket again: the hot and the cold ones.
//!
//! A task that finds a socket empty (or full) is *hot* at first: the driver wakes it every turn, and it
//! simply tries again. That is the fastest way to see the next request, and costs one system call a turn.
//! When a socket has made no progress for a while it *cools*: a one-shot poll is armed in the ring, and the
//! task sleeps until that completes, which costs nothing. A thousand idle connections are a thousand armed
//! polls.
//!
//! Invariants:
//! - A side is in the hot list exactly while its state is `Hot`, and in `armed` exactly while it is `Armed`.
//! - An entry of `armed` keeps its source, and so the descriptor, open until the poll's completion was
//!   reaped, however early the stream is dropped.
//! - A task that was told `Pending` is woken: at the end of this turn when hot, by the poll when armed.
//!   Before the reactor sleeps all that is hot gets armed, and arming looks at the socket: nothing that came
//!   meanwhile is lost.
//! - One task tries a side at most [`TRIES_PER_TURN`] times in a turn, so that one busy connection cannot
//!   starve the others.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{opcode, types};
use slab::Slab;

use super::token::Token;
use super::uring::Uring;
use crate::timer::Instant;

/// How often one side of one socket may make progress in one turn.
const TRIES_PER_TURN: u32 = 32;

/// A side stays hot for so many empty tries even when the turns are long.
const HOT_TRIES_MIN: u32 = 8;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Readable,
    Writable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is known: a try is due when the task comes.
    Open,
    /// In the hot list.
    Hot,
    /// In `armed` under this key; a try would find nothing.
    Armed(u32),
}

/// One direction of a source.
struct Side {
    state: Cell<State>,
    waker: RefCell<Option<Waker>>,
    /// The turn of the last try, and how many it had.
    turn: Cell<u64>,
    tries: Cell<u32>,
    /// The last try of that turn took or gave all there was.
    exhausted: Cell<bool>,
    /// Tries since the last progress.
    empty_tries: Cell<u32>,
    progressed_at: Cell<Instant>,
}

impl Side {
    fn new(now: Instant) -> Self {
        Self {
            state: Cell::new(State::Open),
            waker: RefCell::new(None),
            turn: Cell::new(0),
            tries: Cell::new(0),
            exhausted: Cell::new(false),
            empty_tries: Cell::new(0),
            progressed_at: Cell::new(now),
        }
    }

    fn wait(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(context.waker()))
        {
            let replaced = waker.replace(context.waker().clone());
            drop(waker);
            drop(replaced);
        }
    }

    fn wake(&self) -> bool {
        let waker = self.waker.borrow().clone();
        waker.inspect(Waker::wake_by_ref).is_some()
    }
}

/// A descriptor that is tried, and waited for in between.
pub(super) struct Source {
    descriptor: OwnedFd,
    /// How long it stays hot without progress.
    hot: Duration,
    readable: Side,
    writable: Side,
}

impl Source {
    pub(super) fn new(descriptor: OwnedFd, hot: Duration, now: Instant) -> Rc<Self> {
        Rc::new(Self {
            descriptor,
            hot,
            readable: Side::new(now),
            writable: Side::new(now),
        })
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// The descriptor alone. It is duplicated when a poll still needs the original.
    pub(super) fn into_descriptor(source: Rc<Self>) -> io::Result<OwnedFd> {
        match Rc::try_unwrap(source) {
            Ok(source) => Ok(source.descriptor),
            Err(shared) => shared.descriptor.try_clone(),
        }
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Readable => &self.readable,
            Direction::Writable => &self.writable,
        }
    }
}

/// What one try brought.
pub(super) struct Tried<T> {
    pub(super) value: T,
    /// The socket took less than there was, or gave less than there was room for: another try would be
    /// empty.
    pub(super) exhausted: bool,
}

/// All that is hot or armed on one reactor.
pub(super) struct Readiness {
    turn: Cell<u64>,
    now: Cell<Instant>,
    hot: RefCell<Vec<(Rc<Source>, Direction)>>,
    /// The hot list of the turn before, empty: kept for its memory.
    spare: RefCell<Vec<(Rc<Source>, Direction)>>,
    armed: RefCell<Slab<(Rc<Source>, Direction)>>,
    progress: Cell<u32>,
}

impl Readiness {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            turn: Cell::new(1),
            now: Cell::new(now),
            hot: RefCell::default(),
            spare: RefCell::default(),
            armed: RefCell::default(),
            progress: Cell::new(0),
        }
    }

    pub(super) fn set_now(&self, now: Instant) {
        self.now.set(now);
    }

    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Polls armed in the ring.
    pub(super) fn armed(&self) -> usize {
        self.armed.borrow().len()
    }

    /// Tries a source unless it is known that there is nothing to have.
    pub(super) fn attempt<T>(
        &self,
        uring: &Uring,
        (source, direction): (&Rc<Source>, Direction),
        context: &Context<'_>,
        mut act: impl FnMut(&OwnedFd) -> io::Result<Tried<T>>,
    ) -> Poll<io::Result<T>> {
        let side = source.side(direction);
        if let State::Armed(_) = side.state.get() {
            side.wait(context);
            return Poll::Pending;
        }
        if side.turn.replace(self.turn.get()) != self.turn.get() {
            side.tries.set(0);
            side.exhausted.set(false);
        }
        if side.exhausted.get() || side.tries.get() >= TRIES_PER_TURN {
            side.wait(context);
            self.heat(source, direction);
            return Poll::Pending;
        }
        side.tries.set(side.tries.get() + 1);
        let tried = loop {
            match act(&source.descriptor) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                tried => break tried,
            }
        };
        match tried {
            Ok(Tried { value, exhausted }) => {
                side.exhausted.set(exhausted);
                side.empty_tries.set(0);
                side.progressed_at.set(self.now.get());
                self.progress.set(self.progress.get().saturating_add(1));
                Poll::Ready(Ok(value))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                side.exhausted.set(true);
                side.empty_tries.set(side.empty_tries.get().saturating_add(1));
                side.wait(context);
                let idle = self.now.get().saturating_since(side.progressed_at.get());
                if source.hot > idle || (!source.hot.is_zero() && side.empty_tries.get() < HOT_TRIES_MIN) {
                    self.heat(source, direction);
                } else if side.state.get() == State::Open {
                    self.arm(uring, source, direction);
                }
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn heat(&self, source: &Rc<Source>, direction: Direction) {
        let side = source.side(direction);
        if side.state.get() == State::Open {
            side.state.set(State::Hot);
            self.hot.borrow_mut().push((source.clone(), direction));
        }
    }

    fn arm(&self, uring: &Uring, source: &Rc<Source>, direction: Direction) {
        let key = self.armed.borrow_mut().insert((source.clone(), direction)) as u32;
        source.side(direction).state.set(State::Armed(key));
        let events = match direction {
            Direction::Readable => libc::POLLIN | libc::POLLRDHUP,
            Direction::Writable => libc::POLLOUT,
        };
        let entry = opcode::PollAdd::new(types::Fd(source.descriptor.as_raw_fd()), events as u32)
            .build()
            .user_data(Token::Readiness(key).encode());
        // SAFETY: `armed` keeps the source, which owns the descriptor, until this poll's completion is reaped
        // on this thread (`complete`). A poll refers to no memory.
        unsafe { uring.push(entry) };
    }

    /// The poll of an armed side has completed.
    pub(super) fn complete(&self, key: u32) {
        let entry = self.armed.borrow_mut().try_remove(key as usize);
        let Some((source, direction)) = entry else {
            return;
        };
        let side = source.side(direction);
        side.state.set(State::Open);
        side.turn.set(0);
        side.wake();
    }

    /// The stream of a source is dropped: nobody waits for it any more.
    pub(super) fn forget(&self, uring: &Uring, source: &Rc<Source>) {
        for direction in [Direction::Readable, Direction::Writable] {
            let side = source.side(direction);
            let waker = side.waker.take();
            drop(waker);
            if let State::Armed(key) = side.state.get() {
                let entry = opcode::PollRemove::new(Token::Readiness(key).encode())
                    .build()
                    .user_data(Token::Ignore.encode());
                // SAFETY: it refers to no memory and no descriptor.
                unsafe { uring.push(entry) };
            }
        }
    }

    /// Arms a poll for everything hot, before the reactor sleeps.
    pub(super) fn cool_all(&self, uring: &Uring) {
        let mut hot = self.hot.take();
        for (source, direction) in hot.drain(..) {
            // Hot sides whose stream has gone are dropped with the list.
            if source.side(direction).waker.borrow().is_some() {
                self.arm(uring, &source, direction);
            } else {
                source.side(direction).state.set(State::Open);
            }
        }
        self.hot.replace(hot);
    }

    /// Ends a turn: everything hot is to be tried in the next one. Returns how many tasks were woken for
    /// that.
    pub(super) fn wake_hot(&self) -> u32 {
        self.turn.set(self.turn.get() + 1);
        if self.hot.borrow().is_empty() {
            return 0;
        }
        let mut hot = self.hot.replace(self.spare.take());
        let mut woken = 0;
        for (source, direction) in hot.drain(..) {
            let side = source.side(direction);
            side.state.set(State::Open);
            woken += u32::from(side.wake());
        }
        self.spare.replace(hot);
        woken
    }

    /// Successful tries since the last call.
    pub(super) fn take_progress(&self) -> u32 {
        self.progress.take()
    }
}

#[cfg(test)]
mod tests;
