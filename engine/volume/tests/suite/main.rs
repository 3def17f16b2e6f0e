//! Volumes as a whole on simulated drives: one program, so that what all share is compiled once. Apart are
//! `mirror` and `stories`, which deliberate bugs are looked for with.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bad_blocks;
#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod given;
mod growing;
mod holes;
mod load;
mod losses;
mod qos;
mod returning;
mod roll_back;
mod slow;
mod snapshots;
mod weights;
