//! The real world of a reactor: an io_uring, sockets and files of this machine, and the threads.
//!
//! # Sleeping
//!
//! A reactor thread that polls never waits. An adaptive one waits in the ring when it has found no work for a
//! while; before that it arms a poll for each socket that it had been trying ([`readiness`]) and tells other
//! threads to ring ([`sleep_flag`]). While it is awake nobody has to make a system call to reach it.

mod affinity;
mod atomics;
mod bell;
mod clock;
mod driver;
mod listener;
mod operations;
mod readiness;
mod ring;
mod sleep_flag;
mod socket;
mod spin;
mod stream;
mod thread;
mod token;
mod uring;

pub use driver::{DriverSettings, RealDriver};
pub(crate) use operations::{Action, Cargo, PIECES_MAX};
pub use ring::Ring;
pub use socket::SocketSettings;
pub use thread::{IdlePolicy, ReactorError, ReactorThread, Reactors, Settings};
