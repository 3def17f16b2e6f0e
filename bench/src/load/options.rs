//! What to run, as the command line gives it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pollux_device::ByteSize;

/// Where requests go, and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// One block after the other, reading.
    Read,
    /// One block after the other, writing.
    Write,
    /// One block after the other, reading and writing.
    Rw,
    /// Anywhere, reading.
    Randread,
    /// Anywhere, writing.
    Randwrite,
    /// Anywhere, reading and writing.
    Randrw,
}

impl Pattern {
    /// Whether positions are drawn at random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite | Self::Randrw)
    }

    /// How many of a hundred requests are reads, where `mixed` is the share of a mixed pattern.
    pub fn read_percent(self, mixed: u8) -> u8 {
        match self {
            Self::Read | Self::Randread => 100,
            Self::Write | Self::Randwrite => 0,
            Self::Rw | Self::Randrw => mixed,
        }
    }
}

/// A load on one or more devices.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Devices: nvmf://HOST:PORT/NQN, uring:///PATH, malloc:///NAME?size=1GiB, ...; each job works on all of
    /// them
    #[arg(required = true)]
    pub uris: Vec<String>,
    /// Where requests go, and what they do
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    pub pattern: Pattern,
    /// Share of reads of a mixed pattern, in percent
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// Bytes of a request
    #[arg(long, default_value = "4KiB")]
    pub block: ByteSize,
    /// Requests outstanding for each job and device
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depth: u16,
    /// Jobs; each has a thread, and a connection of its own to each device
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Cores of the jobs, in turn, as 2,3; not pinned by default
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// The most requests a second of each job; latency then counts from when a request was due
    #[arg(long)]
    pub rate: Option<u64>,
    /// Seconds before the measurement begins
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Seconds of measurement
    #[arg(long, default_value_t = 10.0)]
    pub time: f64,
    /// Use only so much of each device, from its start
    #[arg(long)]
    pub size: Option<ByteSize>,
    /// Force unit access on every write
    #[arg(long)]
    pub fua: bool,
    /// Flush after so many writes of a job
    #[arg(long)]
    pub flush_every: Option<u64>,
    /// Stamp what is written and check what is read; jobs then keep to parts of their own, which must read as
    /// zeros or be written by this run
    #[arg(long)]
    pub verify: bool,
    /// Seed of positions and choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the results to this file as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// No progress line
    #[arg(long)]
    pub quiet: bool,
}
