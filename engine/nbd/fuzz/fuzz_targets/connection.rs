//! Any bytes of a client, in any state of a connection.

#![no_main]

#[path = "../checks/connection.rs"]
mod connection;

libfuzzer_sys::fuzz_target!(|input: &[u8]| connection::check(input));
