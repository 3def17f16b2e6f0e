//! Results, as a table and as JSON.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::LoadError;
use super::options::Load;
use super::worker::Measured;

/// The percentiles that are told.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

/// One direction of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// Requests done in the measured time.
    pub requests: u64,
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// Latency in microseconds at each percentile.
    pub percentiles_us: Vec<(f64, f64)>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// What was done.
    pub load: Load,
    /// Jobs, each with a thread and a connection of its own.
    pub jobs: u64,
    /// Devices, each with the whole load.
    pub devices: usize,
    /// Seconds measured.
    pub seconds: f64,
    /// Reads.
    pub read: Side,
    /// Writes.
    pub write: Side,
    /// Flushes.
    pub flushes: u64,
    /// Requests that failed, and blocks that were wrong.
    pub errors: u64,
    /// The first few of them.
    pub first_errors: Vec<String>,
}

fn side(histogram: &Histogram<u64>, seconds: f64, block_bytes: u64) -> Side {
    let requests = histogram.len();
    let iops = if seconds > 0.0 {
        requests as f64 / seconds
    } else {
        0.0
    };
    Side {
        requests,
        iops,
        bytes_per_second: iops * block_bytes as f64,
        mean_us: histogram.mean() / 1e3,
        percentiles_us: PERCENTILES
            .iter()
            .map(|&percentile| (percentile, histogram.value_at_percentile(percentile) as f64 / 1e3))
            .collect(),
    }
}

impl Side {
    /// Latency in microseconds at this percentile, if it was kept.
    pub fn percentile_us(&self, wanted: f64) -> Option<f64> {
        let (_, latency_us) = self
            .percentiles_us
            .iter()
            .find(|(percentile, _)| *percentile == wanted)?;
        Some(*latency_us)
    }
}

impl Results {
    /// Requests a second of both directions.
    pub fn iops(&self) -> f64 {
        self.read.iops + self.write.iops
    }

    /// Bytes a second of both directions.
    pub fn bytes_per_second(&self) -> f64 {
        self.read.bytes_per_second + self.write.bytes_per_second
    }

    /// These, or an error if any request failed.
    pub fn without_failures(self) -> Result<Self, LoadError> {
        match self.errors {
            0 => Ok(self),
            failed => Err(LoadError::Failed(failed)),
        }
    }

    /// Puts the jobs' measurements together. `None` when there are none.
    pub fn merge(load: &Load, jobs: u64, devices: usize, mut measured: Vec<Measured>) -> Option<Self> {
        let mut all = measured.pop()?;
        for job in measured {
            all.reads.add(&job.reads).ok()?;
            all.writes.add(&job.writes).ok()?;
            all.flushes += job.flushes;
            all.errors += job.errors;
            all.told.extend(job.told);
            all.elapsed = all.elapsed.max(job.elapsed);
        }
        let (seconds, block_bytes) = (all.elapsed.as_secs_f64(), load.block.0);
        Some(Self {
            load: load.clone(),
            jobs,
            devices,
            seconds,
            read: side(&all.reads, seconds, block_bytes),
            write: side(&all.writes, seconds, block_bytes),
            flushes: all.flushes,
            errors: all.errors,
            first_errors: all.told,
        })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = format!("{:.1} s measured\n\n", self.seconds);
        text.push_str("        kIOPS     MiB/s   mean us");
        for percentile in PERCENTILES {
            let name = if percentile >= 100.0 {
                "max".to_owned()
            } else {
                format!("p{percentile}")
            };
            let _ = write!(text, "{name:>10}");
        }
        text.push('\n');
        for (name, side) in [("read", &self.read), ("write", &self.write)] {
            if side.requests == 0 {
                continue;
            }
            let (kiops, mib) = (side.iops / 1e3, side.bytes_per_second / f64::from(1 << 20));
            let _ = write!(text, "{name:<6}{kiops:>8.1}{mib:>10.1}{:>10.1}", side.mean_us);
            for (_, latency_us) in &side.percentiles_us {
                let _ = write!(text, "{latency_us:>10.1}");
            }
            text.push('\n');
        }
        if self.flushes > 0 {
            let _ = writeln!(text, "flushes {}", self.flushes);
        }
        if self.errors > 0 {
            let _ = writeln!(text, "ERRORS {}", self.errors);
            for error in &self.first_errors {
                let _ = writeln!(text, "  {error}");
            }
        }
        text
    }
}
