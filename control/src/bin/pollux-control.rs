//! The `pollux-control` daemon.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    pollux_control::daemon::run(&pollux_control::daemon::Cli::parse())
}
