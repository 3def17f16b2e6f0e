//! What the daemons answer by HTTP: a server with limits, whether they are well, and metrics as Prometheus
//! text.
//!
//! Invariants:
//!
//! - Everything that a peer can make the server hold is bounded: connections, the time of a handshake and of
//!   a request's head, the size of both.
//! - The names of all metrics are in [`families`], and nowhere else: dashboards and alerts are checked
//!   against them.

#![forbid(unsafe_code)]

pub mod families;
pub mod health;
pub mod metrics;
mod server;
mod tls;

pub use server::{HttpError, HttpListener};
pub use tls::{CertificatesInUse, PeerCertificates};
