//! The Pollux control plane: desired state in a store, observed state from engines, and pure functions that
//! plan what closes the difference.

#![forbid(unsafe_code)]

pub mod cli;
pub mod controller;
pub mod daemon;
pub mod engines;
mod following;
pub mod gateway;
pub mod model;
pub mod placement;
pub mod plan;
pub mod recover;
pub mod registry;
pub mod security;
pub mod server;
pub mod size;
pub mod store;
pub mod telemetry;
mod telling;
pub mod view;
pub mod world;
