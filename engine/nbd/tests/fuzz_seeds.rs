//! The kept inputs of the fuzz target, on the stable toolchain.

use std::path::Path;

#[path = "../fuzz/checks/connection.rs"]
mod connection;

#[test]
fn connection_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/connection");
    let mut replayed = 0;
    for seed in std::fs::read_dir(&seeds).expect("the seeds are there") {
        let path = seed.expect("a seed can be listed").path();
        let input = std::fs::read(&path).expect("a seed can be read");
        let checked = std::panic::catch_unwind(|| connection::check(&input));
        assert!(checked.is_ok(), "the check fails on seed {}", path.display());
        replayed += 1;
    }
    assert!(replayed > 0, "no seeds in {}", seeds.display());
}
