//! The initiator against the target of this project, in simulated worlds.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod authentication;
mod basics;
mod fake;
mod holes;
mod lab;
mod loss;
mod reservations;
mod shortage;
