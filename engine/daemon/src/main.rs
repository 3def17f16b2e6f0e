//! The `pollux-engine` daemon.

fn main() {}
