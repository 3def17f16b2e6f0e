//! What shares the one io_uring of a reactor: its bell, its sockets and its files.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use io_uring::{opcode, types};

use super::bell::Bell;
use super::readiness::{Direction, Readiness, Source, Tried};
use super::token::Token;
use super::uring::{Completed, Uring};
use super::{DriverSettings, clock};

/// The io_uring of one reactor. Clones are the same ring.
#[derive(Clone)]
pub struct Ring(Rc<Shared>);

struct Shared {
    readiness: Readiness,
    bell: Arc<Bell>,
    /// Last, so that it goes last: closing the ring ends the polls on what was above.
    uring: Uring,
}

impl Ring {
    pub(super) fn new(settings: &DriverSettings) -> io::Result<Self> {
        let ring = Self(Rc::new(Shared {
            readiness: Readiness::new(clock::now()),
            bell: Arc::new(Bell::new()?),
            uring: Uring::new(settings.ring_entries)?,
        }));
        ring.watch_bell();
        Ok(ring)
    }

    pub(super) fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.0.bell
    }

    /// System calls made for the ring so far: none while nothing is submitted and nothing completes.
    pub fn system_calls(&self) -> u64 {
        self.0.uring.entered()
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
        // SAFETY: the bell is open as long as the ring is: both belong to the same `Shared`, and the ring, dropped
        // after it, submits nothing any more then. A poll refers to no memory.
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
        let mut delivered = 0;
        loop {
            // Copied out first: whoever is woken may push to the ring.
            let batch = self.0.uring.reap();
            if batch.is_empty() {
                return delivered;
            }
            for completed in batch {
                delivered += u32::from(self.complete(completed));
            }
        }
    }

    /// Whether it is an event for somebody.
    fn complete(&self, completed: Completed) -> bool {
        match Token::decode(completed.user_data) {
            Some(Token::Bell) => {
                if !completed.more {
                    self.watch_bell();
                }
                false
            }
            Some(Token::Readiness(key)) => {
                self.0.readiness.complete(key);
                true
            }
            Some(Token::Operation(_)) => true,
            Some(Token::Ignore) | None => false,
        }
    }
}
