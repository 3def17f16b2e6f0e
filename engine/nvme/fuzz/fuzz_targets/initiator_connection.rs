//! Any bytes of a target, to the initiator in any state of a connection.

#![no_main]

#[path = "../checks/initiator_connection.rs"]
mod initiator_connection;
#[path = "../checks/mend.rs"]
mod mend;

libfuzzer_sys::fuzz_target!(|input: &[u8]| initiator_connection::check(input));
