//! NVMe and NVMe/TCP: wire types, target and initiator.

#![forbid(unsafe_code)]

pub mod target;
pub mod wire;
