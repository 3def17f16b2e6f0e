//! The control plane with simulated engines, in virtual time.

mod calls;
mod common;
mod killed;
mod reconcile;
mod scale;
