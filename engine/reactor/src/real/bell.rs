//! Wakes a reactor that sleeps in its ring.
//!
//! The bell is an eventfd that a multishot poll in the ring watches. Ringing it adds to its count, which
//! posts a completion; nobody ever reads the count down, as a multishot poll reports each addition.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::sleep_flag::SleepFlag;
use crate::driver::WakeReactor;

pub(super) struct Bell {
    pub(super) flag: SleepFlag,
    event: OwnedFd,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            flag: SleepFlag::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl WakeReactor for Bell {
    fn wake(&self) {
        if self.flag.notify() {
            // It can fail only when the count would overflow, and then the poll has long been posted.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}
