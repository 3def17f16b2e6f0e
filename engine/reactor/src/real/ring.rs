//! What shares the one io_uring of a reactor: its bell, its sockets and its files.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use io_uring::{opcode, types};

use super::bell::Bell;
use super::operations::{Acquire, Operations};
use super::readiness::{Direction, Readiness, Source, Tried};
use super::token::Token;
use super::uring::Uring;
use super::{DriverSettings, clock};

/// The io_uring of one reactor. Clones are the same ring.
///
/// Drives whose completions can be polled for (`IORING_SETUP_IOPOLL`) need a ring of their own, which takes
/// no sockets: it would be a second `Uring` in here, that operations on such files are pushed to, and that a
/// poller reaps.
#[derive(Clone)]
pub struct Ring(Rc<Shared>);

/// How long a ring that is dropped waits for the operations that the kernel is still at work on.
const EMPTYING_TIME_MAX: Duration = Duration::from_secs(5);

struct Shared {
    readiness: Readiness,
    operations: Operations,
    bell: Arc<Bell>,
    /// Last, so that it goes last: closing the ring ends the polls on what was above.
    uring: Uring,
}

impl Ring {
    /// On a ring of the calling thread.
    pub(super) fn new(settings: &DriverSettings, uring: Uring) -> io::Result<Self> {
        let ring = Self(Rc::new(Shared {
            readiness: Readiness::new(clock::now()),
            operations: Operations::new(settings.file_operations.max(1)),
            bell: Arc::new(Bell::new()?),
            uring,
        }));
        ring.watch_bell();
        Ok(ring)
    }

    pub(super) fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    pub(super) fn operations(&self) -> &Operations {
        &self.0.operations
    }

    pub(super) fn uring(&self) -> &Uring {
        &self.0.uring
    }

    /// Waits for a slot for an operation on a file.
    pub(crate) fn operation(&self) -> Acquire {
        Acquire::new(self.clone())
    }

    /// Whether the kernel takes commands for devices.
    pub(crate) fn supports_commands(&self) -> bool {
        self.0.uring.supports(opcode::UringCmd16::CODE)
    }

    /// Whether the kernel changes the length of files.
    pub(crate) fn supports_truncate(&self) -> bool {
        self.0.uring.supports(opcode::Ftruncate::CODE)
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.0.bell
    }

    /// System calls made for the ring so far: none while nothing is submitted and nothing completes.
    pub fn system_calls(&self) -> u64 {
        self.0.uring.entered()
    }

    /// Operations on files that the kernel is at work on.
    pub fn file_operations(&self) -> usize {
        self.0.operations.in_flight()
    }

    /// Sockets that nobody tries: the kernel is to tell when they can make progress.
    pub fn cold_sockets(&self) -> usize {
        self.0.readiness.armed()
    }

    /// Tries a source unless it is known that there is nothing to have.
    pub(super) fn attempt<T>(
        &self,
        source: &Rc<Source>,
        direction: Direction,
        context: &Context<'_>,
        act: impl FnMut(&OwnedFd) -> io::Result<Tried<T>>,
    ) -> Poll<io::Result<T>> {
        self.0
            .readiness
            .attempt(&self.0.uring, (source, direction), context, act)
    }

    /// Nobody waits for a source any more.
    pub(super) fn forget(&self, source: &Rc<Source>) {
        self.0.readiness.forget(&self.0.uring, source);
    }

    fn watch_bell(&self) {
        let entry = opcode::PollAdd::new(types::Fd(self.0.bell.as_fd().as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(Token::Bell.encode());
        // SAFETY: the bell is open as long as the ring is: both belong to the same `Shared`, and the ring,
        // dropped after it, submits nothing any more then. A poll refers to no memory.
        unsafe { self.0.uring.push(entry) };
    }

    /// Submits what is queued and delivers what is there. Returns the number of completions.
    pub(super) fn turn(&self) -> io::Result<u32> {
        self.0.uring.submit()?;
        Ok(self.deliver())
    }

    /// Waits for a completion or the bell, at most for `time`. The caller has prepared the bell's flag.
    pub(super) fn sleep(&self, time: Option<Duration>) -> io::Result<u32> {
        self.0.readiness.cool_all(&self.0.uring);
        let slept = self.0.uring.submit_and_wait(time);
        self.0.bell.flag.finish();
        slept?;
        Ok(self.deliver())
    }

    fn deliver(&self) -> u32 {
        let (delivered, bell_stopped) = self.0.deliver();
        if bell_stopped {
            self.watch_bell();
        }
        delivered
    }
}

impl Shared {
    /// Delivers all completions. Their number, and whether the poll of the bell has ended.
    fn deliver(&self) -> (u32, bool) {
        let mut delivered = 0;
        let mut bell_stopped = false;
        loop {
            // Copied out first: whoever is woken may push to the ring.
            let batch = self.uring.reap();
            if batch.is_empty() {
                return (delivered, bell_stopped);
            }
            for completed in batch {
                match Token::decode(completed.user_data) {
                    Some(Token::Bell) => bell_stopped |= !completed.more,
                    Some(Token::Readiness(key)) => {
                        self.readiness.complete(key);
                        delivered += 1;
                    }
                    Some(Token::Operation(slot)) => {
                        self.operations.complete(slot, completed.result);
                        delivered += 1;
                    }
                    Some(Token::Ignore) | None => {}
                }
            }
        }
    }

    /// Cancels what can be cancelled, and waits until the kernel is done with the memory of all operations.
    fn empty(&self) -> io::Result<()> {
        for token in self.operations.tokens_in_flight() {
            let entry = opcode::AsyncCancel::new(token.encode())
                .build()
                .user_data(Token::Ignore.encode());
            // SAFETY: it refers to no memory and no descriptor.
            unsafe { self.uring.push(entry) };
        }
        let deadline = clock::now() + EMPTYING_TIME_MAX;
        while self.operations.in_flight() > 0 && clock::now() < deadline {
            self.uring.submit_and_wait(Some(Duration::from_millis(10)))?;
            self.deliver();
        }
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.operations.in_flight() == 0 {
            return;
        }
        let emptied = self.empty();
        let left = self.operations.in_flight();
        if left > 0 {
            // Memory that the kernel may still write to is never used again.
            tracing::error!(
                operations = left,
                ?emptied,
                "a drive does not answer: its buffers are given up"
            );
            self.operations.leak();
        }
    }
}
