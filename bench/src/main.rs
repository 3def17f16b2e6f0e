//! `pollux-bench`: benchmarks that a user can repeat on a machine of their own.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks to people"
)]

mod bdevperf;
mod compare;
#[cfg(feature = "spdk")]
mod compare_driver;
mod compare_nbd;
mod compare_pool;
mod compare_volume;
mod load;
mod program;
mod report;
mod samples;
mod socket_limit;
#[cfg(feature = "spdk")]
mod spdk_tcp;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benchmarks of Pollux beside its peers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put a load on devices, time it, and check the data if asked to.
    Run(load::Options),
    /// Measure devices under the loads of storage reviews, and draw five charts on one page.
    Report(report::Options),
    /// Run the Pollux target, SPDK's nvmf_tgt and plain sockets in turns, and print ratios.
    Compare(compare::Options),
    /// Run the device that SPDK drives, spdk_nvme_perf and bdevperf on one target in turns, and print ratios.
    #[cfg(feature = "spdk")]
    CompareDriver(compare_driver::Options),
    /// Run Pollux, qemu-nbd and nbdkit serving memory over NBD in turns, with fio, and print ratios.
    CompareNbd(compare_nbd::Options),
    /// Run volumes of a pool in memory and the device below in turns, and print ratios.
    ComparePool(compare_pool::Options),
    /// Run replicated volumes on engines of a cluster of its own, upset them, and print what is wanted of
    /// them.
    CompareVolume(compare_volume::Options),
    /// Measure how fast one core answers such requests over loopback with plain sockets and no protocol.
    SocketLimit(socket_limit::Options),
}

fn main() -> ExitCode {
    let result: Result<(), Box<dyn Error>> = match Arguments::parse().command {
        Command::Run(options) => load::run(&options).map_err(Into::into),
        Command::Report(options) => report::run(&options).map_err(Into::into),
        Command::Compare(options) => compare::run(&options).map_err(Into::into),
        #[cfg(feature = "spdk")]
        Command::CompareDriver(options) => compare_driver::run(&options).map_err(Into::into),
        Command::CompareNbd(options) => compare_nbd::run(&options).map_err(Into::into),
        Command::ComparePool(options) => compare_pool::run(&options).map_err(Into::into),
        Command::CompareVolume(options) => compare_volume::run(&options).map_err(Into::into),
        Command::SocketLimit(options) => socket_limit::run(&options).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollux-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
