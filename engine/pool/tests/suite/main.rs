//! Pools as a whole on simulated drives: one program, so that what all share is compiled once.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bad_blocks;
mod canary;
mod changes;
mod common;
mod concurrent;
mod crash;
mod damage;
mod devices;
mod failed_writes;
mod full;
mod generations;
mod golden;
mod history;
mod input;
mod lost;
mod missing;
mod model;
mod pools;
mod random;
mod read_only;
mod remains;
mod scrub;
mod shared;
mod thick;
mod unfinished;
mod unrecorded;
mod usage;
mod worn_out;
