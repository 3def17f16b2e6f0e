//! The `pollux` command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    pollux_control::cli::run(pollux_control::cli::Cli::parse())
}
