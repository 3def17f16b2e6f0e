//! Pollux, SPDK's `nvmf_tgt` and plain sockets on the same cores, in turns, and the ratios of their medians.
//!
//! Machines are shared and noisy: a figure alone means little, and two figures of different minutes mean
//! less. So the contestants take turns, several rounds of each, and what is reported is the ratio of medians,
//! with the spread.

mod engine;
pub(crate) mod perf;
pub(crate) mod spdk;
mod table;

use std::io;
use std::path::PathBuf;

use clap::Args;

use crate::samples::{Figures, Samples};
use crate::socket_limit;
use perf::{Load, Pattern};
use table::Row;

/// What to compare.
#[derive(Debug, Args)]
pub struct Options {
    /// The `pollux-engine` to measure; by default the one beside this program.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// An SPDK build tree (with `build/bin`) or installation prefix (with `bin`) for `nvmf_tgt` and
    /// `spdk_nvme_perf`.
    #[arg(long)]
    spdk: PathBuf,
    /// Rounds; each measures every contestant once for every load.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Measure only loads whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Size of the memory device, in MiB.
    #[arg(long, default_value_t = 256)]
    device_mib: u64,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be run.
    #[error("could not run {program}: {error}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: String,
        /// The end of what it printed.
        output: String,
    },
    /// A server did not answer in time.
    #[error("{program} did not listen on {address} within {seconds} s: {output}")]
    NotListening {
        /// Which.
        program: String,
        /// Where.
        address: String,
        /// How long.
        seconds: u64,
        /// The end of what it printed.
        output: String,
    },
    /// Something else of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Fewer cores than the comparison needs.
    #[error("the comparison needs {needed} cores, this machine has {have}")]
    Cores {
        /// Needed.
        needed: usize,
        /// There.
        have: usize,
    },
}

/// The loads of the comparison, with what is asked of the ratio.
fn loads() -> Vec<Load> {
    let one = |pattern, block_bytes, depth| Load {
        pattern,
        block_bytes,
        depth,
        reactors: 1,
        connections: 1,
    };
    let several = |pattern, depth, reactors, connections| Load {
        depth,
        reactors,
        connections,
        ..one(pattern, 4096, depth)
    };
    vec![
        one(Pattern::Read, 4096, 128),
        one(Pattern::Write, 4096, 128),
        // One initiator is busier with reads than a target is: two leave it to the target.
        several(Pattern::Read, 64, 1, 2),
        several(Pattern::Write, 64, 1, 2),
        one(Pattern::Read, 4096, 1),
        one(Pattern::Write, 4096, 1),
        one(Pattern::Read, 131_072, 32),
        one(Pattern::Write, 131_072, 32),
        several(Pattern::Read, 32, 1, 4),
        several(Pattern::Read, 32, 2, 4),
        several(Pattern::Write, 32, 1, 4),
        several(Pattern::Write, 32, 2, 4),
    ]
}

/// Compares and prints a table in Markdown.
pub fn run(options: &Options) -> Result<(), Error> {
    let have = std::thread::available_parallelism()?.get();
    if have < 4 {
        return Err(Error::Cores { needed: 4, have });
    }
    let spdk = spdk::Spdk::find(&options.spdk)?;
    let mut rows = Vec::new();
    for load in loads() {
        if options
            .only
            .as_ref()
            .is_some_and(|only| !load.name().contains(only.as_str()))
        {
            continue;
        }
        rows.push(compare(options, &spdk, &load)?);
        if let Some(row) = rows.last() {
            eprintln!("{}", row.progress());
        }
    }
    println!("{}", table::render(&rows, options.rounds, options.seconds));
    Ok(())
}

fn compare(options: &Options, spdk: &spdk::Spdk, load: &Load) -> Result<Row, Error> {
    let mut row = Row {
        load: *load,
        pollux: Samples::default(),
        spdk: Samples::default(),
        limit: Samples::default(),
    };
    for round in 0..options.rounds {
        // Whoever comes first may find the machine in another mood: take turns at that too.
        let order: [bool; 2] = if round % 2 == 0 {
            [true, false]
        } else {
            [false, true]
        };
        for pollux in order {
            if pollux {
                let engine = engine::Engine::start(options.engine.as_deref(), options.device_mib, load)?;
                row.pollux
                    .push(perf::run(spdk, &engine.address(), load, options.seconds)?);
            } else {
                let target = spdk.start_target(options.device_mib, load)?;
                row.spdk
                    .push(perf::run(spdk, &target.address(), load, options.seconds)?);
            }
        }
        if load.reactors == 1 && load.connections == 1 && load.block_bytes == 4096 {
            let figures = socket_limit::measure(&socket_limit::Options {
                depth: load.depth as usize,
                connections: 1,
                write: load.pattern == Pattern::Write,
                block_bytes: load.block_bytes as usize,
                seconds: f64::from(options.seconds),
                core: perf::TARGET_CORES[0],
                first_client_core: perf::CLIENT_CORES[0],
            })?;
            row.limit.push(Figures {
                iops: figures.iops,
                mean_us: figures.mean_us,
            });
        }
    }
    Ok(row)
}
