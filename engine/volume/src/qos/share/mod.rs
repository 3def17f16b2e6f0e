//! A minimum by weight: how volumes share what is behind them.
//!
//! A [`Backend`] is what several volumes have their data on, a pool for one. As soon as one of its volumes
//! has a weight, requests of those that ask at the same time are put in order by weight (start-time fair
//! queueing), and no more of them are at the backend than keep it busy, so that the others wait where they
//! can be put in order. Each reactor has a [`port`] to a backend, with what it holds; ports tell each other
//! the least tag that they hold, and none goes ahead of that by more than a little.
//!
//! Invariants:
//! - No reactor waits for another one: what they share are atomic numbers, and locks that are only tried.
//! - What is outstanding is counted exactly once for each request that counts, and taken off once: when the
//!   request is done, dropped, or written off because its volume is stuck.
//! - A request that is held waits for room, or for others with less tag that are there. Whoever makes room
//!   looks who is next, and each port looks by itself every 5 ms, as long as it holds anything.
//! - A volume that was idle has no credit, and one that was alone has no debt: tags begin at the virtual
//!   time of the backend, and that is where requests begin.
//!
//! `docs/decisions/qos.md` tells what is promised, and why it is done like this.

mod backend;
mod bound;
mod port;
mod queue;
mod turns;

pub use backend::Backend;
pub(super) use backend::Member;
pub(super) use queue::SharedQueue;
