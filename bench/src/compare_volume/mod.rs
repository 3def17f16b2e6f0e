//! The speed table of replicated volumes: engines as processes on loopback, one reactor each, told what to do
//! by a control plane of their own; what is compared takes turns in one run.
//!
//! Clusters one after the other: with pools in memory for what is steady, for a rebuild, for planned moves
//! and for limits; with pools in files for engines that are killed and come back, and for a resync. Whatever
//! was started is ended and removed, also after an error, an interrupt, or the end of its time.

mod cluster;
mod host;
mod limits;
mod steady;
mod table;
mod upset;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use cluster::{ENGINES, Setup};
use table::{Report, Row};

use crate::load::LoadError;

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// The `pollux-engine` to measure; by default the one beside this program
    #[arg(long)]
    engine: Option<PathBuf>,
    /// The `pollux-control` to use; by default the one beside this program
    #[arg(long)]
    control: Option<PathBuf>,
    /// Where directories of the clusters are made and removed; about 4 GiB are written there
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Cores of the three engines' reactors, and of the load
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2, 3])]
    cores: Vec<usize>,
    /// Rounds of what is measured in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0, value_parser = crate::load::seconds)]
    seconds: f64,
    /// Measure only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 420)]
    limit_seconds: u64,
    /// Write the table to this file as JSON too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Latency and requests a second of one replica and of three.
    Steady,
    /// Latency while a replica is made anew.
    Rebuild,
    /// Planned moves of a target.
    Moves,
    /// Targets that are killed.
    Failovers,
    /// What a resync copies.
    Resync,
    /// What volumes with limits deliver.
    Limits,
}

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be run.
    #[error("could not run {program}: {error}; build it, or say where it is")]
    Run {
        /// Which.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// Something did not happen.
    #[error("{what}: not within {seconds} s")]
    Patience {
        /// What.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The control plane said no.
    #[error("the control plane: {}", .0.message())]
    Refused(#[from] tonic::Status),
    /// An address that is none.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// The load generator.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Something else of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What cannot be.
    #[error("{0}")]
    Odd(String),
    /// The user, or the end of its time.
    #[error("ended before everything was measured: {0}")]
    Ended(&'static str),
    /// Some of the table is missing; it says why.
    #[error("{0} of the parts could not be measured")]
    Incomplete(usize),
}

/// Measures, and prints a table in Markdown.
pub fn run(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut report = Report::default();
        // Whatever ends first: clusters are dropped with what used them.
        let ended = tokio::select! {
            measured = measure(options, &mut report) => measured,
            _ = interrupt.recv() => Err(Error::Ended("interrupted")),
            _ = terminate.recv() => Err(Error::Ended("told to stop")),
            () = tokio::time::sleep(Duration::from_secs(options.limit_seconds)) => {
                Err(Error::Ended("it took longer than --limit-seconds"))
            }
        };
        println!("{}", report.render());
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&report).map_err(io::Error::from)?;
            std::fs::write(path, text)?;
        }
        ended
    })
}

async fn measure(options: &Options, report: &mut Report) -> Result<(), Error> {
    let setup = setup(options)?;
    let load_core = options.cores.get(ENGINES).copied();
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let mut failed = 0;
    let mut take = |measured: Result<Vec<Row>, Error>, what: &str| match measured {
        Ok(rows) => report.extend(rows),
        Err(error) => {
            failed += 1;
            report.missing(what, &error.to_string());
        }
    };
    if wanted(Part::Steady) {
        eprintln!("one replica and three, in turns");
        let plan = steady::Plan {
            rounds: options.rounds,
            seconds: options.seconds,
            core: load_core,
        };
        take(steady::measure(&setup, plan).await, "one replica and three");
    }
    if wanted(Part::Rebuild) {
        eprintln!("a replica is made anew under load");
        take(upset::rebuild(&setup, load_core).await, "rebuild");
    }
    if wanted(Part::Moves) {
        eprintln!("planned moves");
        take(upset::moves(&setup, load_core).await, "planned move");
    }
    if wanted(Part::Failovers) {
        eprintln!("engines are killed");
        take(upset::failovers(&setup, load_core).await, "unplanned failover");
    }
    if wanted(Part::Resync) {
        eprintln!("an engine is away for 10 s");
        take(upset::resync(&setup, load_core).await, "resync");
    }
    if wanted(Part::Limits) {
        eprintln!("a volume with limits");
        take(limits::measure(&setup, load_core).await, "limits");
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::Incomplete(failed)),
    }
}

fn setup(options: &Options) -> Result<Setup, Error> {
    let beside = |name: &str| Ok::<_, io::Error>(std::env::current_exe()?.with_file_name(name));
    let program = |given: &Option<PathBuf>, name: &str| match given {
        Some(path) => Ok(path.clone()),
        None => beside(name),
    };
    // With fewer cores than threads it is for the scheduler to place them.
    let have = std::thread::available_parallelism()?.get();
    let is_enough = options.cores.iter().all(|&core| core < have);
    Ok(Setup {
        engine: program(&options.engine, "pollux-engine")?,
        control: program(&options.control, "pollux-control")?,
        directory: options.directory.clone(),
        cores: match is_enough {
            true => options.cores.iter().copied().take(ENGINES).collect(),
            false => Vec::new(),
        },
    })
}
