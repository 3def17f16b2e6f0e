//! The kept inputs of the fuzz targets, on the stable toolchain.

use std::path::Path;

#[path = "../fuzz/checks/initiator_connection.rs"]
mod initiator_connection;
#[path = "../fuzz/checks/mend.rs"]
mod mend;
#[path = "../fuzz/checks/pdu_decoder.rs"]
mod pdu_decoder;
#[path = "../fuzz/checks/target_connection.rs"]
mod target_connection;

/// Gives every kept input of `target` to `check`.
fn replay(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut replayed = 0;
    for seed in std::fs::read_dir(&seeds).expect("the seeds are there") {
        let path = seed.expect("a seed can be listed").path();
        let input = std::fs::read(&path).expect("a seed can be read");
        let checked = std::panic::catch_unwind(|| check(&input));
        assert!(checked.is_ok(), "the check fails on seed {}", path.display());
        replayed += 1;
    }
    assert!(replayed > 0, "no seeds in {}", seeds.display());
}

#[test]
fn pdu_decoder_seeds() {
    replay("pdu_decoder", pdu_decoder::check);
}

#[test]
fn target_connection_seeds() {
    replay("target_connection", target_connection::check);
}

#[test]
fn initiator_connection_seeds() {
    replay("initiator_connection", initiator_connection::check);
}
