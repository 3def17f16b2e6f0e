//! The simulator itself: one program, so that what all share is compiled once. Apart are `mirror` and
//! `answers`, with many seeds of the scenario of replicated volumes.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod canary;
mod common;
mod conformance;
mod crash_states;
mod drive;
mod network;
mod pools;
mod scenarios;
mod world;
