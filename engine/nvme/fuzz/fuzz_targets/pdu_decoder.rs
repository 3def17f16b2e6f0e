//! Any bytes, as PDUs of a connection in any state.

#![no_main]

#[path = "../checks/pdu_decoder.rs"]
mod pdu_decoder;

libfuzzer_sys::fuzz_target!(|input: &[u8]| pdu_decoder::check(input));
