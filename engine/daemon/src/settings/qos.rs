//! What hosts may ask of a namespace, in files and on the command line.

use std::str::FromStr;

use pollux_device::ByteSize;
use pollux_volume::qos::{Burst, Limits, Qos, QosError, Rate};
use serde::{Deserialize, Serialize};

use super::size;

/// How long a burst lasts unless something else is set, in seconds.
const BURST_SECONDS: u32 = 10;

/// Limits of reads, of writes, or of both together. What is 0 is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSettings {
    /// Operations in a second. Default: 0.
    pub operations: u64,
    /// Operations in a second for each GiB of the volume, besides. Default: 0.
    pub operations_per_gib: u64,
    /// Operations in a second while there is credit for a burst. Default: 0, for no bursts.
    pub operations_burst: u64,
    /// Bytes in a second: a number, or a text with a unit. Default: 0.
    #[serde(with = "size")]
    pub bytes: ByteSize,
    /// Bytes in a second for each GiB of the volume, besides. Default: 0.
    #[serde(with = "size")]
    pub bytes_per_gib: ByteSize,
    /// Bytes in a second while there is credit for a burst. Default: 0, for no bursts.
    #[serde(with = "size")]
    pub bytes_burst: ByteSize,
    /// How long a burst lasts at its full speed, in seconds, when there is all the credit. Default: 10.
    pub burst_seconds: u32,
}

impl Default for LimitsSettings {
    fn default() -> Self {
        Self {
            operations: 0,
            operations_per_gib: 0,
            operations_burst: 0,
            bytes: ByteSize(0),
            bytes_per_gib: ByteSize(0),
            bytes_burst: ByteSize(0),
            burst_seconds: BURST_SECONDS,
        }
    }
}

/// What hosts may ask of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QosSettings {
    /// Reads and writes together. Default: no limits.
    pub total: LimitsSettings,
    /// Reads. Default: no limits.
    pub read: LimitsSettings,
    /// Writes. Default: no limits.
    pub write: LimitsSettings,
    /// Its share of the pool it is in, next to those of other volumes there, 1 to 10,000. Default: 0, for a
    /// weight of 100, and no shares as long as no volume of the pool has a weight.
    pub weight: u32,
}

impl LimitsSettings {
    fn rate(&self, per_second: u64, per_gib: u64, burst: u64) -> Option<Rate> {
        (per_second > 0 || per_gib > 0 || burst > 0).then_some(Rate {
            per_second,
            per_second_per_gib: per_gib,
            burst: (burst > 0).then_some(Burst {
                per_second: burst,
                seconds: self.burst_seconds,
            }),
        })
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        Limits {
            operations: self.rate(self.operations, self.operations_per_gib, self.operations_burst),
            bytes: self.rate(self.bytes.0, self.bytes_per_gib.0, self.bytes_burst.0),
        }
    }
}

impl QosSettings {
    /// The limits, checked.
    ///
    /// # Errors
    ///
    /// [`QosError`].
    pub fn qos(&self) -> Result<Qos, QosError> {
        let qos = Qos {
            total: self.total.limits(),
            read: self.read.limits(),
            write: self.write.limits(),
            weight: (self.weight > 0).then_some(self.weight),
        };
        qos.check().map(|()| qos)
    }
}

/// A text that is no limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no limit: give operations=N or bytes=SIZE, also operations_per_gib, operations_burst, \
     bytes_per_gib, bytes_burst and burst_seconds, separated by commas"
)]
pub struct LimitsError(String);

impl FromStr for LimitsSettings {
    type Err = LimitsError;

    /// As on the command line: `operations=1000,bytes=100MiB`.
    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let mut limits = Self::default();
        for part in text.split(',') {
            let wrong = || LimitsError(part.chars().take(64).collect());
            let (name, value) = part.trim().split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u64>().map_err(|_| wrong());
            let size = || value.parse::<ByteSize>().map_err(|_| wrong());
            match name {
                "operations" => limits.operations = number()?,
                "operations_per_gib" => limits.operations_per_gib = number()?,
                "operations_burst" => limits.operations_burst = number()?,
                "bytes" => limits.bytes = size()?,
                "bytes_per_gib" => limits.bytes_per_gib = size()?,
                "bytes_burst" => limits.bytes_burst = size()?,
                "burst_seconds" => limits.burst_seconds = value.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_one_word() {
        let read: LimitsSettings = "operations=1000, bytes=100MiB,bytes_burst=1GiB,burst_seconds=5"
            .parse()
            .expect("limits");
        let limits = read.limits();
        assert_eq!(limits.operations, Some(Rate::new(1000)));
        let burst = Burst {
            per_second: 1 << 30,
            seconds: 5,
        };
        let bytes = Rate {
            burst: Some(burst),
            ..Rate::new(100 << 20)
        };
        assert_eq!(limits.bytes, Some(bytes));
        for text in [
            "",
            "operations",
            "operations=-1",
            "iops=5",
            "bytes=1 mile",
            "operations=1,,",
        ] {
            assert!(text.parse::<LimitsSettings>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_burst_without_a_limit_is_an_error() {
        let total = "operations_burst=5".parse().expect("it is known");
        let settings = QosSettings {
            total,
            ..QosSettings::default()
        };
        assert!(settings.qos().is_err());
        let weighted = |weight| {
            let settings = QosSettings {
                weight,
                ..QosSettings::default()
            };
            settings.qos().map(|qos| qos.weight)
        };
        assert_eq!(weighted(10_000), Ok(Some(10_000)));
        assert_eq!(weighted(10_001), Err(QosError::Weight));
        assert_eq!(QosSettings::default().qos(), Ok(Qos::default()));
    }
}
