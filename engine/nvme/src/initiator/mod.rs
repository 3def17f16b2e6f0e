//! The NVMe/TCP initiator.

pub mod connection;
