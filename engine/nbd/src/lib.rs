//! NBD export of block devices: fio, qemu-img, nbdcopy and the Linux nbd driver without a line of NVMe.
//!
//! The protocol is that of the NBD project's `doc/proto.md`, "proto" for short in what follows: fixed
//! newstyle negotiation; simple, structured and extended replies; FUA, flush, trim, write zeroes, cache,
//! block status of `base:allocation`, several connections to one export. FLUSH and FUA go to the device as
//! they are.
//!
//! A connection lives on one reactor as one task ([`session`]). Requests are executed as they come and
//! answered as they are done; those larger than [`PIECE_BYTES_MAX`] in pieces, so that what a connection
//! holds is bounded.

#![forbid(unsafe_code)]

mod export;
mod negotiate;
mod reply;
mod request;
mod server;
mod session;
mod wire;

pub use export::{Export, Exports};
pub use server::{NbdSettings, listen};

/// Data of a request that is moved at a time, in bytes.
pub const PIECE_BYTES_MAX: u32 = 1 << 20;
