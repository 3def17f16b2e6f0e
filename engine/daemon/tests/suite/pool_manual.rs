//! The commands of the manual of pools do what it says, in its order.

use std::path::Path;

use crate::common::pool::succeeded;
use crate::common::{EngineProcess, run};

/// Where the manual has its files, and the socket of its engine.
const DIRECTORY: &str = "/data/";
const SOCKET: &str = "unix:/run/pollux/engine.sock";

/// The words of a command, as a shell takes them apart: blanks separate, quotes hold together.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('\'').enumerate();
    let words = parts.flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}

#[test]
fn every_command_of_the_manual_works() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pools.md");
    let manual = std::fs::read_to_string(path).expect("it is there");
    let files = tempfile::tempdir().expect("a directory");
    let directory = format!("{}/", files.path().display());
    let commands = manual
        .lines()
        .filter_map(|line| line.strip_prefix("    pollux-engine "))
        .map(|command| words(&command.replace(DIRECTORY, &directory)));
    let mut engine: Option<EngineProcess> = None;
    let mut count = 0;
    for command in commands {
        count += 1;
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let needs_no_engine = words.iter().any(|word| word.starts_with("uring:"));
        match (words.as_slice(), &engine) {
            (["serve", arguments @ .., "--grpc", SOCKET], None) => {
                engine = Some(EngineProcess::start(arguments));
            }
            (_, _) if needs_no_engine => drop(succeeded(&run(&words))),
            ([command, arguments @ ..], Some(engine)) => {
                succeeded(&engine.command(command, arguments));
            }
            _ => panic!("{words:?} needs an engine"),
        }
    }
    assert!(count > 25, "the manual has {count} commands only");
    engine.expect("the manual starts one").stop();
}
