//! The control plane with simulated engines, in virtual time.

mod common;
mod killed;
mod reconcile;
mod scale;
