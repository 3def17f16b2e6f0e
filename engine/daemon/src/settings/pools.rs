//! Pools that an engine opens.

use std::fmt;
use std::str::FromStr;

use pollux_device::ByteSize;
use serde::{Deserialize, Serialize};

use super::size;

/// Memory for metadata of a pool that is on its devices too, at most.
const CACHE_BYTES_MAX: u64 = 1 << 40;

/// Memory for metadata of a pool that is not on its devices yet: less would make a checkpoint of each write.
const DIRTY_BYTES_MIN: u64 = 1 << 20;
const DIRTY_BYTES_MAX: u64 = 1 << 36;

/// The longest time that a change may stay in memory only.
const COMMIT_INTERVAL_MS_MAX: u64 = 60_000;

/// Hours between scrubs, at most: 10 years.
const SCRUB_EVERY_HOURS_MAX: u64 = 10 * 365 * 24;

/// A pool that is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// The URIs of all its devices, in any order. No default.
    pub devices: Vec<String>,
    /// Memory for metadata that is on the devices too, in bytes: a number, or a text with a unit.
    /// Default: 64 MiB.
    #[serde(default = "memory", with = "size")]
    pub cache: ByteSize,
    /// Memory for metadata that is not on the devices yet, in bytes: a number, or a text with a unit.
    /// Default: 64 MiB.
    #[serde(default = "memory", with = "size")]
    pub dirty: ByteSize,
    /// How long a change that nobody flushes may stay in memory only, in milliseconds. Default: 100.
    #[serde(default = "commit_interval_ms")]
    pub commit_interval_ms: u64,
    /// How long after the end of a scrub the next one begins by itself, in hours; 0 for never. Default: 0.
    #[serde(default)]
    pub scrub_every_hours: u64,
    /// What such scrubs read a second, at most, in bytes: a number, or a text with a unit; 0 for no limit.
    /// Default: 100 MiB.
    #[serde(default = "scrub_rate", with = "size")]
    pub scrub_rate: ByteSize,
    /// Nothing is written to its devices, not even what an import writes: volumes can be read. Default:
    /// false.
    #[serde(default)]
    pub read_only: bool,
}

fn memory() -> ByteSize {
    ByteSize(64 << 20)
}

fn scrub_rate() -> ByteSize {
    ByteSize(100 << 20)
}

fn commit_interval_ms() -> u64 {
    100
}

impl PoolSettings {
    /// The pool on these devices.
    pub fn new(devices: impl Into<Vec<String>>) -> Self {
        Self {
            devices: devices.into(),
            cache: memory(),
            dirty: memory(),
            commit_interval_ms: commit_interval_ms(),
            scrub_every_hours: 0,
            scrub_rate: scrub_rate(),
            read_only: false,
        }
    }

    /// Fields, whether they are within their bounds, and those.
    pub(super) fn checks(&self) -> [(&'static str, bool, &'static str); 5] {
        [
            (
                "pools.devices",
                !self.devices.is_empty(),
                "the URI of one device at least",
            ),
            ("pools.cache", self.cache.0 <= CACHE_BYTES_MAX, "1TiB at most"),
            (
                "pools.dirty",
                (DIRTY_BYTES_MIN..=DIRTY_BYTES_MAX).contains(&self.dirty.0),
                "from 1MiB to 64GiB",
            ),
            (
                "pools.commit_interval_ms",
                (1..=COMMIT_INTERVAL_MS_MAX).contains(&self.commit_interval_ms),
                "from 1 to 60000",
            ),
            (
                "pools.scrub_every_hours",
                self.scrub_every_hours <= SCRUB_EVERY_HOURS_MAX,
                "10 years at most",
            ),
        ]
    }
}

/// The URIs of the devices of one pool, as the command line has them: separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceList(pub Vec<String>);

/// A text that is no such list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of devices: give DEVICE_URI[,DEVICE_URI...], and write %2C for a comma in a URI")]
pub struct DeviceListError(String);

impl FromStr for DeviceList {
    type Err = DeviceListError;

    fn from_str(text: &str) -> Result<Self, DeviceListError> {
        let uris: Vec<String> = text.split(',').map(|uri| uri.trim().to_owned()).collect();
        if uris.iter().any(String::is_empty) {
            return Err(DeviceListError(text.chars().take(64).collect()));
        }
        Ok(Self(uris))
    }
}

impl fmt::Display for DeviceList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_separated_by_commas() {
        let list: DeviceList = "uring:///a?block=4096, uring:///b".parse().expect("two");
        assert_eq!(list.0, ["uring:///a?block=4096", "uring:///b"]);
        for text in ["", ",", "uring:///a,", "uring:///a,,uring:///b"] {
            assert!(text.parse::<DeviceList>().is_err(), "{text:?}");
        }
    }
}
