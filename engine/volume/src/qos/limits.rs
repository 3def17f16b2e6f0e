//! What can be set.

/// Operations in a second, at most: what no engine reaches.
const OPERATIONS_MAX: u64 = 1_000_000_000;

/// Bytes in a second, at most: 1 PiB.
const BYTES_MAX: u64 = 1 << 50;

/// The longest burst, in seconds: a day.
const BURST_SECONDS_MAX: u32 = 86_400;

const GIB: u128 = 1 << 30;

/// The weight of a volume that has none set.
pub const WEIGHT_DEFAULT: u32 = 100;

/// The largest weight.
pub const WEIGHT_MAX: u32 = 10_000;

/// More for a while, paid for by having asked for less before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// So many in a second at most, while there is credit left; more than the rate.
    pub per_second: u64,
    /// For so many seconds at full speed a volume that was idle long enough has credit. It comes back while
    /// less is asked for than the rate allows.
    pub seconds: u32,
}

/// How many operations or bytes in a second: the sum of both parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Whatever the size of the volume.
    pub per_second: u64,
    /// For each GiB of the volume.
    pub per_second_per_gib: u64,
    /// More for a while.
    pub burst: Option<Burst>,
}

impl Rate {
    /// The same for volumes of all sizes.
    pub fn new(per_second: u64) -> Self {
        Self {
            per_second,
            ..Self::default()
        }
    }

    /// For a volume of so many bytes; 1 at least.
    pub(super) fn of_size(&self, size_bytes: u64) -> u64 {
        let scaled = u128::from(self.per_second_per_gib) * u128::from(size_bytes) / GIB;
        let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
        self.per_second.saturating_add(scaled).max(1)
    }

    fn check(&self, field: &'static str, max: u64) -> Result<(), QosError> {
        let is_some = self.per_second > 0 || self.per_second_per_gib > 0;
        if !is_some || self.per_second > max || self.per_second_per_gib > max {
            return Err(QosError::Rate { field, max });
        }
        match self.burst {
            Some(burst) if burst.per_second <= self.per_second || burst.per_second > max => {
                Err(QosError::Burst { field, max })
            }
            Some(burst) if !(1..=BURST_SECONDS_MAX).contains(&burst.seconds) => {
                Err(QosError::BurstSeconds { field })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Limits of reads, of writes, or of both together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations in a second. `None` for any number.
    pub operations: Option<Rate>,
    /// Bytes in a second. `None` for any number.
    pub bytes: Option<Rate>,
}

/// What hosts may ask of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Qos {
    /// Reads and writes together.
    pub total: Limits,
    /// Reads, and compares.
    pub read: Limits,
    /// Writes; zeros and deallocations are operations without bytes.
    pub write: Limits,
    /// Its share of what it is on, 1 to [`WEIGHT_MAX`], next to those of other volumes there. `None` for
    /// [`WEIGHT_DEFAULT`].
    pub weight: Option<u32>,
}

/// Why something cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QosError {
    /// A rate that is none.
    #[error("{field} is out of bounds: set it to 1 to {max} a second, or leave it out for no limit")]
    Rate {
        /// What it is of.
        field: &'static str,
        /// The most that can be set.
        max: u64,
    },
    /// A burst that is none.
    #[error("the burst of {field} is out of bounds: set it to more than the limit itself, and {max} at most")]
    Burst {
        /// What it is of.
        field: &'static str,
        /// The most that can be set.
        max: u64,
    },
    /// A burst that lasts no time, or too long.
    #[error("the burst of {field} is out of bounds: set it to 1 to {BURST_SECONDS_MAX} seconds")]
    BurstSeconds {
        /// What it is of.
        field: &'static str,
    },
    /// A weight that is none.
    #[error("the weight is out of bounds: set it to 1 to {WEIGHT_MAX}, or leave it out for {WEIGHT_DEFAULT}")]
    Weight,
}

impl Qos {
    /// Checks that all of it can be kept.
    ///
    /// # Errors
    ///
    /// [`QosError`] names the first field that cannot.
    pub fn check(&self) -> Result<(), QosError> {
        let all = [
            ("operations", "bytes", self.total),
            ("operations of reads", "bytes of reads", self.read),
            ("operations of writes", "bytes of writes", self.write),
        ];
        for (operations, bytes, limits) in all {
            if let Some(rate) = limits.operations {
                rate.check(operations, OPERATIONS_MAX)?;
            }
            if let Some(rate) = limits.bytes {
                rate.check(bytes, BYTES_MAX)?;
            }
        }
        match self.weight {
            Some(weight) if !(1..=WEIGHT_MAX).contains(&weight) => Err(QosError::Weight),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether nothing is limited, whatever the weight.
    pub fn is_unlimited(&self) -> bool {
        self.limits() == [Limits::default(); 3]
    }

    pub(super) fn limits(&self) -> [Limits; 3] {
        [self.total, self.read, self.write]
    }

    /// Whether the size of the volume counts.
    pub(super) fn is_scaled(&self) -> bool {
        let of = |limits: &Limits| [limits.operations, limits.bytes];
        let mut all = [&self.total, &self.read, &self.write].into_iter().flat_map(of);
        all.any(|rate| rate.is_some_and(|rate| rate.per_second_per_gib > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_scaled_by_size() {
        let rate = Rate {
            per_second_per_gib: 10,
            ..Rate::new(100)
        };
        assert_eq!(rate.of_size(0), 100);
        assert_eq!(rate.of_size(5 << 29), 125);
        let small = Rate {
            per_second: 0,
            ..rate
        };
        assert_eq!(small.of_size(1), 1);
        assert_eq!(Rate::new(u64::MAX).of_size(u64::MAX), u64::MAX);
    }

    #[test]
    fn what_cannot_be_kept_is_named() {
        let with = |rate: Rate| Qos {
            write: Limits {
                bytes: Some(rate),
                ..Limits::default()
            },
            ..Qos::default()
        };
        let burst = |per_second, seconds| Rate {
            burst: Some(Burst { per_second, seconds }),
            ..Rate::new(1000)
        };
        assert_eq!(with(burst(2000, 1)).check(), Ok(()));
        for wrong in [
            Rate::default(),
            Rate::new(BYTES_MAX + 1),
            burst(1000, 1),
            burst(BYTES_MAX + 1, 1),
            burst(2000, 0),
            burst(2000, BURST_SECONDS_MAX + 1),
        ] {
            let error = with(wrong).check().expect_err("out of bounds");
            assert!(error.to_string().contains("bytes of writes"), "{error}");
        }
    }
}
