//! Clusters of real processes: engines and a control plane as they are run, on the loopback interface, with
//! pools in files.
//!
//! The program is its own engine and control plane: it starts itself with another first argument. So nothing
//! depends on where other programs were built.

mod asked;
mod back;
mod calls;
mod channels;
mod chaos;
mod cluster;
mod host;
#[path = "../shared/https.rs"]
mod https;
mod instant;
mod measure;
mod reserved;
mod scenarios;
mod slow;
mod traces;
mod trust;
mod upsets;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("pollux-engine") => pollux_engine::run(&pollux_engine::cli::Cli::parse_from(&arguments[1..])),
        Some("pollux-control") => {
            pollux_control::daemon::run(&pollux_control::daemon::Cli::parse_from(&arguments[1..]))
        }
        Some("measure") => measure::run(&arguments[1..]),
        Some("chaos") => chaos::main(&arguments[1..]),
        Some("traces") => traces::main(),
        Some("back") => scenarios::back(),
        Some("slow") => slow::main(),
        Some("upsets") => upsets::main(&arguments[1..]),
        Some("more") => scenarios::more(),
        // What test runners ask.
        Some("--list") => ExitCode::SUCCESS,
        _ => scenarios::run(),
    }
}
