//! Any bytes, as a host's to a target.

#![no_main]

#[path = "../checks/mend.rs"]
mod mend;
#[path = "../checks/target_connection.rs"]
mod target_connection;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target_connection::check(input));
