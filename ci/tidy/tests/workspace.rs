//! The checkout this test is in keeps the style.

use std::path::Path;

#[test]
fn the_checkout_keeps_the_style() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate is two directories below the root");
    let findings = pollux_tidy::check(root).expect("a checkout that can be read");
    let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(
        list.is_empty(),
        "{} against the style:\n{}",
        list.len(),
        list.join("\n")
    );
}
