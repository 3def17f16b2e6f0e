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

use crate::program;
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
    #[command(flatten)]
    turns: Turns,
}

/// What contestants do in turns.
#[derive(Debug, Args)]
pub struct Turns {
    /// Rounds; each measures every contestant once for every load.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    pub seconds: u32,
    /// Measure only loads whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Size of the memory device, in MiB.
    #[arg(long, default_value_t = 256)]
    pub device_mib: u64,
}

impl Turns {
    /// Whether a load is to be measured.
    pub fn have(&self, load: &Load) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| load.name().contains(only.as_str()))
    }
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of the programs.
    #[error(transparent)]
    Program(#[from] program::Error),
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
    let turns = &options.turns;
    for load in loads().into_iter().filter(|load| turns.have(load)) {
        rows.push(compare(options, &spdk, &load)?);
        if let Some(row) = rows.last() {
            eprintln!("{}", row.progress());
        }
    }
    println!("{}", table::render(&rows, turns.rounds, turns.seconds));
    Ok(())
}

fn compare(options: &Options, spdk: &spdk::Spdk, load: &Load) -> Result<Row, Error> {
    let mut row = Row {
        load: *load,
        pollux: Samples::default(),
        spdk: Samples::default(),
        limit: Samples::default(),
    };
    let turns = &options.turns;
    for round in 0..turns.rounds {
        // Whoever comes first may find the machine in another mood: take turns at that too.
        let order: [bool; 2] = if round % 2 == 0 {
            [true, false]
        } else {
            [false, true]
        };
        for pollux in order {
            if pollux {
                let engine = engine::start(options.engine.as_deref(), turns.device_mib, load)?;
                row.pollux
                    .push(perf::run(spdk, &engine.address(), load, turns.seconds)?);
            } else {
                let target = spdk.start_target(turns.device_mib, load)?;
                row.spdk
                    .push(perf::run(spdk, &target.address(), load, turns.seconds)?);
            }
        }
        if load.reactors == 1 && load.connections == 1 && load.block_bytes == 4096 {
            let figures = socket_limit::measure(&socket_limit::Options {
                depth: load.depth as usize,
                connections: 1,
                write: load.pattern == Pattern::Write,
                block_bytes: load.block_bytes as usize,
                seconds: f64::from(turns.seconds),
                core: perf::TARGET_CORES[0],
                first_client_core: perf::CLIENT_CORES[0],
                replica_cores: Vec::new(),
            })?;
            row.limit.push(Figures {
                iops: figures.iops,
                mean_us: figures.mean_us,
            });
        }
    }
    Ok(row)
}
