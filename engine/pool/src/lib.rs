//! Pools on drives: thin volumes, snapshots and clones of them, checksums, one journal.
//!
//! - [`layout`] is every byte on a drive, encoded and decoded.
//!
//! The mechanism, and why it keeps the promises, is in `docs/decisions/pool.md`.

#![forbid(unsafe_code)]

pub mod layout;
