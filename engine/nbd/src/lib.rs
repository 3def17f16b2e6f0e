//! NBD export of block devices: fio, qemu-img, nbdcopy and the Linux nbd driver without a line of NVMe.
//!
//! The protocol is that of the NBD project's `doc/proto.md`, "proto" for short in what follows: fixed
//! newstyle negotiation; simple, structured and extended replies; FUA, flush, trim, write zeroes, cache,
//! block status of `base:allocation`, several connections to one export. FLUSH and FUA go to the device as
//! they are.
//!
//! The protocol has no way to tell a client that its export has grown: a new connection is told the new size,
//! and on those there are the new blocks can be used at once. With [`NbdSettings::allow_resize`] clients may
//! make it grow themselves, by the RESIZE extension (branch `extension-resize` of `doc/proto.md`).
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
