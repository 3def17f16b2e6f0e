//! The Pollux control plane: desired state in a store, observed state from engines, and pure functions that
//! plan what closes the difference.

#![forbid(unsafe_code)]

pub mod model;
pub mod placement;
pub mod store;
