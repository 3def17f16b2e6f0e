//! A run: what was measured of one device, and where. Saved as JSON.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Error, write};
use crate::load::{Load, Pattern, Results};

const SECONDS_A_DAY: u64 = 86_400;

/// A device under the loads of the suite.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What it is called in the charts.
    pub label: String,
    /// The URI of the device.
    pub device: String,
    /// Processor and cores of the machine that made the load.
    pub machine: String,
    /// Its kernel.
    pub kernel: String,
    /// When it began, in seconds since 1970.
    pub begun_at: u64,
    /// Jobs of the load.
    pub jobs: u16,
    /// What was measured.
    pub results: Vec<Results>,
}

impl Run {
    /// A run of which nothing was measured yet.
    pub fn begin(label: &str, device: &str, jobs: u16) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown processor", |(_, model)| model.trim());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            label: label.to_owned(),
            device: device.to_owned(),
            machine: format!("{model}, {cores} cores"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            begun_at: now.map_or(0, |now| now.as_secs()),
            jobs,
            results: Vec::new(),
        }
    }

    /// Reads one that was saved.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::File {
            action: "read",
            path: path.display().to_string(),
            error,
        })?;
        serde_json::from_str(&text).map_err(|error| Error::NotARun {
            path: path.display().to_string(),
            error,
        })
    }

    /// Saves it to a folder, under its label.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let name: String = self
            .label
            .chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::File {
            action: "write",
            path: path.display().to_string(),
            error: error.into(),
        })?;
        write(&path, text.as_bytes())
    }

    /// What was measured under such a load.
    pub fn find(&self, pattern: Pattern, block_bytes: u64, depth: u16, reads: u8) -> Option<&Results> {
        let wanted = |load: &Load| {
            load.pattern == pattern
                && load.block.0 == block_bytes
                && load.depth == depth
                && load.reads_percent() == reads
        };
        self.results.iter().find(|results| wanted(&results.load))
    }

    /// The day it began, as 2026-11-21.
    pub fn day(&self) -> String {
        day_of(self.begun_at)
    }
}

/// The day of a time, in UTC and the Gregorian calendar.
fn day_of(seconds: u64) -> String {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut days = seconds / SECONDS_A_DAY;
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::day_of;

    #[test]
    fn days() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_709_251_200, "2024-03-01"),
            (1_795_219_200, "2026-11-21"),
            (1_798_761_599, "2026-12-31"),
            (1_798_761_600, "2027-01-01"),
        ] {
            assert_eq!(day_of(seconds), day);
        }
    }
}
