//! What to run, as the command line gives it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pollux_device::ByteSize;
use serde::{Deserialize, Serialize};

/// Where requests go, and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Rw => "rw",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
        }
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
    /// What to do with them.
    #[command(flatten)]
    pub load: Load,
    /// By whom.
    #[command(flatten)]
    pub reactors: Reactors,
    /// Write the results to this file as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// No progress line
    #[arg(long)]
    pub quiet: bool,
}

impl Options {
    /// Buffers of each reactor for the requests, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.load.memory_bytes().saturating_mul(self.uris.len())
    }
}

/// The threads that make the load.
#[derive(Debug, Clone, Args)]
pub struct Reactors {
    /// Jobs; each has a thread, and a connection of its own to each device
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Cores of the jobs, in turn, as 2,3; not pinned by default
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
}

/// What each job does with each device.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Where requests go, and what they do
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    pub pattern: Pattern,
    /// Share of reads of a mixed pattern, in percent
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// Bytes of a request
    #[arg(long, default_value = "4KiB")]
    #[serde(with = "bytes")]
    pub block: ByteSize,
    /// Requests outstanding for each job and device
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depth: u16,
    /// The most requests a second of each job and device; latency then counts from when a request was due
    #[arg(long)]
    pub rate: Option<u64>,
    /// Seconds before the measurement begins
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub warm_up: f64,
    /// Seconds of measurement
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub time: f64,
    /// So many requests of each job to each device, instead of a time and a warm-up
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Use only so much of each device, from its start
    #[arg(long)]
    #[serde(with = "optional_bytes")]
    pub size: Option<ByteSize>,
    /// Force unit access on every write
    #[arg(long)]
    pub fua: bool,
    /// Flush after so many writes of a job
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub flush_every: Option<u64>,
    /// Stamp what is written and check what is read; jobs then keep to parts of their own, which must read as
    /// zeros or be written by this run
    #[arg(long)]
    pub verify: bool,
    /// Seed of positions and choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Load {
    /// So many seconds all over the device, with no warm-up, and nothing beside the requests.
    pub fn new(pattern: Pattern, block: ByteSize, depth: u16, seconds: f64) -> Self {
        Self {
            pattern,
            read_percent: pattern.read_percent(50),
            block,
            depth,
            rate: None,
            warm_up: 0.0,
            time: seconds,
            count: None,
            size: None,
            fua: false,
            flush_every: None,
            verify: false,
            seed: 1,
        }
    }

    /// Buffers of a reactor for the requests to one device, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let block = usize::try_from(self.block.0).unwrap_or(usize::MAX).max(4096);
        let block = block.checked_next_power_of_two().unwrap_or(usize::MAX);
        (usize::from(self.depth) * 2).saturating_mul(block)
    }

    /// How many of a hundred requests are reads.
    pub fn reads_percent(&self) -> u8 {
        self.pattern.read_percent(self.read_percent)
    }

    /// Whether it writes at all.
    pub fn writes(&self) -> bool {
        self.reads_percent() < 100
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        let mix = match self.pattern {
            Pattern::Rw | Pattern::Randrw => format!(" {}:{}", self.read_percent, 100 - self.read_percent),
            _ => String::new(),
        };
        format!("{}{mix} {} depth {}", self.pattern.name(), self.block, self.depth)
    }
}

/// A time on the command line: no more than a week, and nothing odd.
pub fn seconds(text: &str) -> Result<f64, String> {
    const SECONDS_MAX: f64 = 604_800.0;
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(seconds),
        _ => Err(format!("not a number of seconds from 0 to {SECONDS_MAX}")),
    }
}

mod bytes {
    use pollux_device::ByteSize;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(size.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        u64::deserialize(deserializer).map(ByteSize)
    }
}

mod optional_bytes {
    use pollux_device::ByteSize;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(size: &Option<ByteSize>, serializer: S) -> Result<S::Ok, S::Error> {
        size.map(|size| size.0).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(ByteSize))
    }
}
