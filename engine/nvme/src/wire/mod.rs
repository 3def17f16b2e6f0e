//! What goes over the wire: NVMe commands, completions and data structures, and the NVMe/TCP PDUs that carry
//! them.
//!
//! Everything here is bytes in, values out (and back): no sockets, no clocks, no allocation on the data path.
//! Target and initiator share it. Rules that hold throughout:
//!
//! * All integers are little-endian (Base 2.0, 1.4.3); the layouts use byte-aligned little-endian types, so
//!   any byte position in a receive buffer can be viewed in place.
//! * Parsing bytes from a peer never panics. What cannot be understood is an error or a value that says so.
//! * Reserved fields are written as zero and ignored when read (Base 2.0, 1.4.2), except where a comment says
//!   otherwise.
//!
//! The specifications cited are, for short: *Base* (NVM Express Base Specification; the revision is named
//! with the section), *NVM* (NVM Command Set Specification 1.0) and *TCP* (NVMe/TCP Transport Specification
//! 1.0).

pub mod auth;
pub mod command;
pub mod digest;
pub mod features;
pub mod identify;
pub mod lba_status;
pub mod log;
pub mod nqn;
pub mod pdu;
pub mod properties;
pub mod reservation;
pub mod status;
pub mod structure;
pub mod text;
mod wire_enum;

#[cfg(test)]
pub(crate) mod test_bytes;
