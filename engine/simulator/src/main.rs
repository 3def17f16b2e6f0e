//! `pollux-sim`: runs scenarios with many seeds, and a failed seed again.
//!
//! This crate stands above everything that is simulated, and only lists the scenarios: each crate defines its
//! own.

#![forbid(unsafe_code)]

mod commands;
mod logs;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = commands::Arguments::parse();
    let mut output = std::io::stdout().lock();
    match commands::run(&arguments, &mut output) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nowhere else to say it, and if that fails as well the exit code does.
            let _ = writeln!(std::io::stderr(), "pollux-sim: {error}");
            ExitCode::from(2)
        }
    }
}
