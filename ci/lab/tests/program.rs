//! The program as CI and people run it. That it has a test also has `cargo test` build it beside the programs
//! it runs.

use std::process::{Command, Output};

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(arguments)
        .output()
        .expect("it starts")
}

#[test]
fn every_scenario_is_told_with_what_it_shows() {
    let output = lab(&["list"]);
    assert!(output.status.success());
    let told = String::from_utf8(output.stdout).expect("text");
    let scenarios = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    for entry in std::fs::read_dir(scenarios).expect("there are some") {
        let path = entry.expect("it can be read").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        let line = told
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not told"));
        assert!(line.split_whitespace().count() > 3, "{line}");
    }
}

#[test]
fn a_scenario_that_is_not_there_is_an_error() {
    let output = lab(&["run", "no-such", "--engine", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("there is no scenario `no-such`"), "{errors}");
}
