//! NVMe and NVMe/TCP: wire types, target and initiator.

#![forbid(unsafe_code)]

pub mod auth;
pub mod initiator;
pub mod status_map;
pub mod target;
mod transport;
pub mod wire;
