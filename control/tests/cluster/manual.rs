//! The commands of the manuals are commands of the programs: each is taken apart as a shell would, and
//! understood by the program's own command line. They are run by `manual_run.rs`.

use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;

/// The manuals with commands of these programs.
const MANUALS: [&str; 3] = ["cluster.md", "control.md", "kubernetes.md"];

/// The words of a command: blanks separate, quotes hold together, and a comment or what a shell does with
/// the output ends it.
pub fn words(command: &str) -> Vec<String> {
    let parts = command.split('\'').enumerate();
    let words = parts.flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words
        .take_while(|word| !matches!(word.as_str(), ">" | "|" | "#" | "&&"))
        .collect()
}

/// Whole lines that are indented as blocks, and what is between backticks in others; whether it is one of the
/// first, which have all that they need.
pub fn commands(manual: &str) -> Vec<(String, bool)> {
    let mut commands = Vec::new();
    for line in manual.lines() {
        match line.strip_prefix("    ") {
            Some(block) => commands.push((block.to_owned(), true)),
            None => {
                let quoted = line.split('`').skip(1).step_by(2);
                commands.extend(quoted.map(|quoted| (quoted.to_owned(), false)));
            }
        }
    }
    commands
}

/// The text of a manual.
pub fn manual(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(path).expect("it is there")
}

#[test]
fn every_command_of_the_manuals_is_understood() {
    let mut understood = 0;
    for name in MANUALS {
        for (command, is_whole) in commands(&manual(name)) {
            let words = words(&command);
            let parser = match words.first().map(String::as_str) {
                Some("pollux") => pollux_control::cli::Cli::command(),
                Some("pollux-control") => pollux_control::daemon::Cli::command(),
                Some("pollux-engine") => pollux_engine::cli::Cli::command(),
                _ => continue,
            };
            // A program that is only named is no command; neither is what leaves words out.
            if words.len() == 1 || words.iter().any(|word| word == "...") {
                continue;
            }
            // An address such as 127.0.0.1:PORT stands for one with a number.
            let words = words.iter().map(|word| word.replace(":PORT", ":4420"));
            match parser
                .try_get_matches_from(words)
                .map_err(|error| (error.kind(), error))
            {
                Ok(_) => {}
                // A command that is mentioned may be without its arguments.
                Err((
                    ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                    _,
                )) if !is_whole => {}
                Err((_, error)) => panic!("{name}: `{command}`: {error}"),
            }
            understood += 1;
        }
    }
    assert!(understood > 35, "the manuals have {understood} commands only");
}
