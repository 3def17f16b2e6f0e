//! What an engine tells of itself to those who watch over it: measurements of devices, `/metrics`, `/healthz`
//! and `/readyz`.

mod meters;
mod mirrors;
mod server;
mod text;

pub use meters::{Measurement, Meters, Role};
pub use mirrors::{MirrorStatus, Mirrors};
pub(crate) use server::{Looking, TelemetryServer};
