//! Pinned, polled reactors: the threads on which every byte moves.
//!
//! A reactor is one thread on one core. It owns its connections, queue pairs, timers and buffers for life and
//! runs their futures with a local executor: nothing on the data path is `Send`, takes a lock, allocates, or
//! makes a system call of its own. Other threads reach it by messages only ([`ReactorHandle`]).
//!
//! One iteration ([`Core::turn`]) drains the mailbox, runs the tasks that are ready, calls the pollers, lets
//! the driver submit and reap its I/O, and fires the timers.
//!
//! # The driver seam
//!
//! Clock, randomness and network come from a [`Driver`]. The real one ([`real`]) is an io_uring with the
//! sockets of this thread; the simulated one lives in `pollux-sim` and runs whole clusters on one thread in
//! virtual time. What is built on a reactor cannot tell them apart, and must not ask the standard library for
//! time or randomness.

mod context;
mod counters;
mod driver;
mod executor;
pub mod file;
mod handle;
mod in_flight;
pub mod net;
mod pooled;
pub mod real;
mod signal;
mod timer;
mod unabandoned;

pub use async_task::Task;
pub use context::{Reactor, buffers, current, now, random_u64, spawn, yield_now};
pub use counters::{Counters, CountersSnapshot};
pub use driver::{Driver, Progress, Wait, WakeReactor};
pub use executor::{Core, Poller, PollerState, Turn};
pub use handle::{MAILBOX_CAPACITY, MailboxFull, ReactorHandle, ReactorId, RemoteCallError};
pub use in_flight::{InFlight, Started};
pub use pooled::PooledFuture;
pub use signal::Signal;
pub use timer::{Elapsed, Instant, Sleep, sleep, sleep_until, timeout};
pub use unabandoned::Unabandoned;
