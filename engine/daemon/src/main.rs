//! The `pollux-engine` daemon.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    pollux_engine::run(&pollux_engine::cli::Cli::parse())
}
