//! The Pollux CSI driver.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    pollux_csi::cli::run(&pollux_csi::cli::Cli::parse())
}
