//! The seam between what runs on a reactor and the world: clock, randomness, network, sleep.

use std::io;
use std::sync::Arc;

use crate::net::{Address, Connecting, Detached, Listener, Stream};
use crate::real::Ring;
use crate::timer::Instant;

/// How long a driver may wait for something to happen in [`Driver::turn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: submit, reap what is there, return.
    Never,
    /// Until an event, a wake-up, or this instant if there is one.
    Until(Option<Instant>),
}

/// What a [`Driver::turn`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Completions and readiness events delivered, and bytes moved by tasks that just tried.
    pub events: u32,
    /// Tasks woken to try again though nothing is known to have happened for them. Running them is no work:
    /// a reactor with nothing else to do may sleep, and the driver sees to it that nothing is missed
    /// meanwhile.
    pub speculative: u32,
}

/// Wakes a reactor that sleeps in its driver; from any thread.
pub trait WakeReactor: Send + Sync {
    /// Makes the current or the next wait of the driver return at once. Cheap when the reactor is awake.
    fn wake(&self);
}

/// What a reactor needs of the world. One driver belongs to one reactor.
pub trait Driver {
    /// The clock, read now. Never goes backwards.
    fn now(&self) -> Instant;

    /// Randomness: of the operating system, or of the simulation's seed.
    fn random_u64(&self) -> u64;

    /// Submits what is queued, delivers what has happened, and waits as told.
    ///
    /// # Errors
    ///
    /// Those of the ring itself; nothing that a single operation met.
    fn turn(&self, wait: Wait) -> io::Result<Progress>;

    /// What other threads wake this reactor with.
    fn waker(&self) -> Arc<dyn WakeReactor>;

    /// Listens on an address. Port 0 takes any free port.
    ///
    /// # Errors
    ///
    /// Those of the operating system: address in use, not available, not permitted.
    fn listen(&self, address: &Address) -> io::Result<Box<dyn Listener>>;

    /// Connects to an address.
    fn connect(&self, address: &Address) -> Connecting;

    /// Takes over a stream that another reactor accepted or detached.
    ///
    /// # Errors
    ///
    /// When the stream is of another kind of driver or cannot be registered.
    fn attach(&self, detached: Detached) -> io::Result<Box<dyn Stream>>;

    /// The ring for files, where this driver has one; a simulated driver has none.
    fn ring(&self) -> Option<&Ring>;
}
