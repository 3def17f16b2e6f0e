//! Limits of volumes as people write them, in the same words as for namespaces of an engine.

use std::str::FromStr;

use clap::Args;
use pollux_api::control::v1::{Qos, QosBurst, QosRate};
use pollux_api::qos::{Counted, Direction, Limit, WEIGHT_MAX};

use crate::size::Size;

/// How long a burst lasts unless something else is said, in seconds.
const BURST_SECONDS: u32 = 10;

/// What can be said of limits.
pub(super) const HELP: &str = "\
Limits, separated by commas, or `none`:
  operations=N             operations in a second
  operations_per_gib=N     for each GiB of the volume, besides
  operations_burst=N       while there is credit, which comes back when less is asked for
  bytes=SIZE               bytes in a second; bytes_per_gib and bytes_burst as above
  burst_seconds=N          how long a burst lasts at its full speed [default: 10]

All of --qos, --qos-read and --qos-write hold at the same time. A volume with limits or a weight of its own
takes none from its template. The weight is 1 to 10000, or `none` for 100: the share of a volume of the pool
that it is in at its target, next to other volumes there that ask for more than they get.

Examples:
  pollux template set gold --qos operations=5000,operations_per_gib=10
  pollux template set gold --qos-write bytes=50MiB,bytes_burst=200MiB,burst_seconds=30
  pollux template set gold --qos-weight 300
  pollux volume set v1 --qos none";

/// A text that is no limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no limit: give none, or operations=N or bytes=SIZE, also operations_per_gib, operations_burst, \
     bytes_per_gib, bytes_burst and burst_seconds, separated by commas"
)]
pub(super) struct LimitsError(String);

/// Limits of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Limits {
    operations: Option<QosRate>,
    bytes: Option<QosRate>,
}

impl FromStr for Limits {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let mut limits = Self::default();
        if text == "none" {
            return Ok(limits);
        }
        let mut seconds = BURST_SECONDS;
        for part in text.split(',') {
            let wrong = || LimitsError(part.chars().take(64).collect());
            let (name, value) = part.trim().split_once('=').ok_or_else(wrong)?;
            if name == "burst_seconds" {
                seconds = value.parse().map_err(|_| wrong())?;
                continue;
            }
            let (rate, number) = match name.strip_prefix("operations") {
                Some(_) => (&mut limits.operations, value.parse().ok()),
                None => (&mut limits.bytes, value.parse().ok().map(|Size(bytes)| bytes)),
            };
            let number = number.filter(|number| *number > 0).ok_or_else(wrong)?;
            let rate = rate.get_or_insert_default();
            match name {
                "operations" | "bytes" => rate.per_second = number,
                "operations_per_gib" | "bytes_per_gib" => rate.per_second_per_gib = number,
                "operations_burst" | "bytes_burst" => {
                    rate.burst.get_or_insert_default().per_second = number;
                }
                _ => return Err(wrong()),
            }
        }
        for rate in [&mut limits.operations, &mut limits.bytes].into_iter().flatten() {
            if let Some(burst) = &mut rate.burst {
                burst.seconds = seconds;
            }
        }
        Ok(limits)
    }
}

/// A text that is no weight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no weight: give none, or 1 to {WEIGHT_MAX}")]
pub(super) struct WeightError(String);

/// What is said of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight(Option<u32>);

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        if text == "none" {
            return Ok(Self(None));
        }
        let weight = text
            .parse()
            .ok()
            .filter(|weight| (1..=WEIGHT_MAX).contains(weight));
        let weight = weight.ok_or_else(|| WeightError(text.chars().take(64).collect()))?;
        Ok(Self(Some(weight)))
    }
}

/// What is said of limits.
#[derive(Debug, Args)]
pub(super) struct LimitArguments {
    /// What all hosts together may ask, reads and writes together.
    #[arg(long, value_name = "LIMITS")]
    qos: Option<Limits>,
    /// What they may read.
    #[arg(long, value_name = "LIMITS")]
    qos_read: Option<Limits>,
    /// What they may write.
    #[arg(long, value_name = "LIMITS")]
    qos_write: Option<Limits>,
    /// What it gets next to others.
    #[arg(long, value_name = "N")]
    qos_weight: Option<Weight>,
}

impl LimitArguments {
    /// Whether nothing is said.
    pub(super) fn is_empty(&self) -> bool {
        self.given().next().is_none() && self.qos_weight.is_none()
    }

    fn given(&self) -> impl Iterator<Item = (Direction, Limits)> {
        let all = [
            (Direction::Total, self.qos),
            (Direction::Read, self.qos_read),
            (Direction::Write, self.qos_write),
        ];
        all.into_iter()
            .filter_map(|(direction, limits)| Some((direction, limits?)))
    }

    /// What was, with what is said in its place.
    pub(super) fn applied(&self, before: Option<Qos>) -> Option<Qos> {
        if self.is_empty() {
            return before;
        }
        let mut qos = before.unwrap_or_default();
        for (direction, limits) in self.given() {
            qos.set_rate(Limit::new(direction, Counted::Operations), limits.operations);
            qos.set_rate(Limit::new(direction, Counted::Bytes), limits.bytes);
        }
        if let Some(Weight(weight)) = self.qos_weight {
            qos.weight = weight;
        }
        Some(qos)
    }
}

/// Limits for people.
pub(super) fn told(qos: Option<&Qos>) -> String {
    let mut parts = Vec::new();
    for limit in Limit::ALL {
        let Some(rate) = qos.and_then(|qos| qos.rate(limit)) else {
            continue;
        };
        let number = |number: u64| match limit.counted {
            Counted::Operations => number.to_string(),
            Counted::Bytes => Size(number).to_string(),
        };
        let of = match limit.direction {
            Direction::Total => "",
            Direction::Read => "read ",
            Direction::Write => "write ",
        };
        let QosRate {
            per_second,
            per_second_per_gib,
            burst,
        } = rate;
        let mut rates = Vec::new();
        if per_second > 0 {
            rates.push(format!("{}/s", number(per_second)));
        }
        if per_second_per_gib > 0 {
            rates.push(format!("{}/s/GiB", number(per_second_per_gib)));
        }
        let mut part = format!("{of}{}", rates.join("+"));
        if let Some(QosBurst { per_second, seconds }) = burst {
            part += &format!(" (burst {}/s, {seconds} s)", number(per_second));
        }
        parts.push(part);
    }
    if parts.is_empty() {
        parts.push("any".to_owned());
    }
    if let Some(weight) = qos.and_then(|qos| qos.weight) {
        parts.push(format!("weight {weight}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(qos: &str, read: &str, write: &str) -> LimitArguments {
        let limits = |text: &str| (!text.is_empty()).then(|| text.parse().expect("limits"));
        LimitArguments {
            qos: limits(qos),
            qos_read: limits(read),
            qos_write: limits(write),
            qos_weight: None,
        }
    }

    #[test]
    fn limits_are_read_and_told() {
        let total = "operations=5000, operations_per_gib=10";
        let write = "bytes=50MiB,burst_seconds=30,bytes_burst=200MiB";
        let qos = said(total, "operations=7", write).applied(None);
        assert_eq!(
            told(qos.as_ref()),
            "5000/s+10/s/GiB, read 7/s, write 50MiB/s (burst 200MiB/s, 30 s)"
        );
        // Of one direction what is said is all there is; the others stay.
        let qos = said("operations=6", "none", "").applied(qos);
        assert_eq!(told(qos.as_ref()), "6/s, write 50MiB/s (burst 200MiB/s, 30 s)");
        assert_eq!(qos.and_then(|qos| qos.iops_max), Some(6));
        let qos = said("none", "", "none").applied(qos);
        assert_eq!((qos, told(qos.as_ref()).as_str()), (Some(Qos::default()), "any"));
        assert_eq!(said("", "", "").applied(None), None);
        let scaled = said("bytes_per_gib=1KiB", "", "").applied(None);
        assert_eq!(told(scaled.as_ref()), "1KiB/s/GiB");
        assert_eq!(told(None), "any");
        let weighted = |text: &str| LimitArguments {
            qos_weight: Some(text.parse().expect("a weight")),
            ..said("", "", "")
        };
        let qos = weighted("300").applied(None);
        assert_eq!(told(qos.as_ref()), "any, weight 300");
        let qos = said("operations=6", "", "").applied(qos);
        assert_eq!(told(qos.as_ref()), "6/s, weight 300");
        assert_eq!(told(weighted("none").applied(qos).as_ref()), "6/s");
        for text in ["", "0", "10001", "-1", "much"] {
            assert!(text.parse::<Weight>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_limit_is_told() {
        for text in [
            "",
            "operations",
            "operations=-1",
            "operations=0",
            "operations_often=1",
            "iops=5",
            "bytes=1 mile",
            "bytes_per_tib=1",
            "operations=1,,",
            "none,operations=1",
            "burst_seconds=x",
        ] {
            let error = text.parse::<Limits>().expect_err(text);
            assert!(error.to_string().contains("is no limit: give"), "{error}");
        }
    }
}
