//! The `pollux-engine` daemon.

#![forbid(unsafe_code)]

fn main() {}
