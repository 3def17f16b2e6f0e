//! The NVMe/TCP initiator: connections, controllers, and remote namespaces as block devices.
//!
//! | module | what |
//! | --- | --- |
//! | [`connection`] | one connection and its queue: commands to bytes and back |
//! | [`admin`] | the admin queue, a command at a time |
//! | [`controller`] | a controller from Connect to shutdown |
//! | [`namespace`] | what a namespace is like, and which one it is |
//! | [`device`] | a namespace as a block device |
//! | [`discovery`] | which subsystems a target offers |
//! | [`host`] | who this host is |

pub mod admin;
mod authenticate;
pub mod connection;
pub mod controller;
pub mod device;
pub mod discovery;
mod error;
pub mod host;
pub mod namespace;

pub use error::InitiatorError;
