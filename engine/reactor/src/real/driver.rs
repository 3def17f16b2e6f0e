//! The driver of a reactor on a real machine.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha12Rng;

use super::clock;
use super::listener::{self, SocketListener};
use super::ring::Ring;
use super::socket::{Connected, SocketSettings};
use super::stream::SocketStream;
use crate::driver::{Driver, Progress, Wait, WakeReactor};
use crate::net::{Address, Connecting, Detached, Listener, Stream};
use crate::timer::Instant;

/// Settings of a [`RealDriver`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverSettings {
    /// Entries of the submission queue, a power of two; more than these are queued by the driver. Default:
    /// 1024.
    pub ring_entries: u32,
    /// Operations on files that may be under way at a time; more of them wait. Default: 1024.
    pub file_operations: u16,
    /// Its sockets.
    pub sockets: SocketSettings,
}

impl Default for DriverSettings {
    fn default() -> Self {
        Self {
            ring_entries: 1024,
            file_operations: 1024,
            sockets: SocketSettings::default(),
        }
    }
}

/// Clock, randomness, sockets and files of this machine, for the reactor of one thread.
pub struct RealDriver {
    ring: Ring,
    random: RefCell<ChaCha12Rng>,
    settings: DriverSettings,
}

impl RealDriver {
    /// A driver for the calling thread.
    ///
    /// # Errors
    ///
    /// When io_uring is not available, with what to do about it.
    pub fn new(settings: &DriverSettings) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::new(settings)?,
            random: RefCell::new(rand::make_rng()),
            settings: settings.clone(),
        })
    }
}

impl Driver for RealDriver {
    fn now(&self) -> Instant {
        let now = clock::now();
        self.ring.readiness().set_now(now);
        now
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    fn turn(&self, wait: Wait) -> io::Result<Progress> {
        let readiness = self.ring.readiness();
        let time = match wait {
            Wait::Never => None,
            Wait::Until(None) => Some(None),
            Wait::Until(Some(deadline)) => {
                let time = deadline.saturating_since(clock::now());
                (!time.is_zero()).then_some(Some(time))
            }
        };
        let completed = match time {
            Some(time) if self.ring.bell().flag.prepare() => self.ring.sleep(time)?,
            _ => self.ring.turn()?,
        };
        Ok(Progress {
            events: completed.saturating_add(readiness.take_progress()),
            speculative: readiness.wake_hot(),
        })
    }

    fn waker(&self) -> Arc<dyn WakeReactor> {
        self.ring.bell().clone()
    }

    fn listen(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        let listener = SocketListener::new(&self.ring, address, &self.settings.sockets)?;
        Ok(Box::new(listener))
    }

    fn connect(&self, address: &Address) -> Connecting {
        Box::pin(listener::connect(
            self.ring.clone(),
            address.clone(),
            self.settings.sockets.clone(),
        ))
    }

    fn attach(&self, detached: Detached) -> io::Result<Box<dyn Stream>> {
        let connected: Connected = detached.downcast().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the stream belongs to a driver of another kind",
            )
        })?;
        Ok(Box::new(SocketStream::new(
            &self.ring,
            connected,
            &self.settings.sockets,
        )))
    }

    fn ring(&self) -> Option<&Ring> {
        Some(&self.ring)
    }
}
