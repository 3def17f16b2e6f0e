//! What the limits of a volume say: a weight, and six rates, of which those of reads and writes together have
//! a short form that is older than the others.

use crate::control::v1::{Qos, QosLimits, QosRate};

/// The largest weight of a volume; the least is 1.
pub const WEIGHT_MAX: u32 = 10_000;

/// What a limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Reads and writes together.
    Total,
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Operations.
    Operations,
    /// Bytes.
    Bytes,
}

/// One limit of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What it is of.
    pub direction: Direction,
    /// What it counts.
    pub counted: Counted,
}

impl Limit {
    /// All that a volume can have.
    pub const ALL: [Self; 6] = [
        Self::new(Direction::Total, Counted::Operations),
        Self::new(Direction::Total, Counted::Bytes),
        Self::new(Direction::Read, Counted::Operations),
        Self::new(Direction::Read, Counted::Bytes),
        Self::new(Direction::Write, Counted::Operations),
        Self::new(Direction::Write, Counted::Bytes),
    ];

    /// One of them.
    pub const fn new(direction: Direction, counted: Counted) -> Self {
        Self { direction, counted }
    }

    /// The field of `Qos` that it is in.
    pub fn field(self) -> &'static str {
        match (self.direction, self.counted) {
            (Direction::Total, Counted::Operations) => "total.operations",
            (Direction::Total, Counted::Bytes) => "total.bytes",
            (Direction::Read, Counted::Operations) => "read.operations",
            (Direction::Read, Counted::Bytes) => "read.bytes",
            (Direction::Write, Counted::Operations) => "write.operations",
            (Direction::Write, Counted::Bytes) => "write.bytes",
        }
    }

    /// The field of `Qos` that its short form is in.
    pub fn short_field(self) -> Option<&'static str> {
        match (self.direction, self.counted) {
            (Direction::Total, Counted::Operations) => Some("iops_max"),
            (Direction::Total, Counted::Bytes) => Some("bandwidth_bytes_max"),
            (Direction::Read | Direction::Write, _) => None,
        }
    }
}

impl Qos {
    fn limits(&self, of: Direction) -> Option<&QosLimits> {
        match of {
            Direction::Total => self.total.as_ref(),
            Direction::Read => self.read.as_ref(),
            Direction::Write => self.write.as_ref(),
        }
    }

    fn short_mut(&mut self, limit: Limit) -> Option<&mut Option<u64>> {
        match (limit.direction, limit.counted) {
            (Direction::Total, Counted::Operations) => Some(&mut self.iops_max),
            (Direction::Total, Counted::Bytes) => Some(&mut self.bandwidth_bytes_max),
            (Direction::Read | Direction::Write, _) => None,
        }
    }

    /// The short form of a limit, if it is there.
    pub fn short(&self, limit: Limit) -> Option<u64> {
        let mut own = *self;
        own.short_mut(limit).and_then(|short| *short)
    }

    /// The long form of a limit, if it is there.
    pub fn long(&self, limit: Limit) -> Option<QosRate> {
        let limits = self.limits(limit.direction)?;
        match limit.counted {
            Counted::Operations => limits.operations,
            Counted::Bytes => limits.bytes,
        }
    }

    /// A limit, in whichever form it is there; `None` if there is none.
    pub fn rate(&self, limit: Limit) -> Option<QosRate> {
        let short = self.short(limit).map(|per_second| QosRate {
            per_second,
            ..QosRate::default()
        });
        self.long(limit).or(short)
    }

    /// Sets a limit, in its short form if that can say it; `None` for no limit.
    pub fn set_rate(&mut self, limit: Limit, rate: Option<QosRate>) {
        let is_plain = rate.is_none_or(|rate| rate.per_second_per_gib == 0 && rate.burst.is_none());
        let mut long = rate;
        if let Some(short) = self.short_mut(limit) {
            *short = rate.filter(|_| is_plain).map(|rate| rate.per_second);
            long = rate.filter(|_| !is_plain);
        }
        let place = match limit.direction {
            Direction::Total => &mut self.total,
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        };
        let limits = place.get_or_insert_default();
        match limit.counted {
            Counted::Operations => limits.operations = long,
            Counted::Bytes => limits.bytes = long,
        }
        // What says nothing is left out, so that equal limits are equal messages.
        if *limits == QosLimits::default() {
            *place = None;
        }
    }

    /// Whether nothing is said: no limit, and no weight.
    pub fn is_nothing(&self) -> bool {
        self.weight.is_none() && self.is_unlimited()
    }

    /// Whether nothing is limited, whatever the weight.
    pub fn is_unlimited(&self) -> bool {
        Limit::ALL.into_iter().all(|limit| self.rate(limit).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::v1::QosBurst;

    fn rate(per_second: u64) -> QosRate {
        QosRate {
            per_second,
            ..QosRate::default()
        }
    }

    #[test]
    fn each_limit_is_kept_apart_from_the_others() {
        for limit in Limit::ALL {
            let scaled = QosRate {
                per_second_per_gib: 7,
                burst: Some(QosBurst {
                    per_second: 50,
                    seconds: 3,
                }),
                ..rate(20)
            };
            for given in [rate(20), scaled] {
                let mut qos = Qos::default();
                qos.set_rate(limit, Some(given));
                for other in Limit::ALL {
                    let wanted = Some(given).filter(|_| other == limit);
                    assert_eq!(qos.rate(other), wanted, "{limit:?} {other:?}");
                }
                assert!(!qos.is_unlimited());
                qos.set_rate(limit, None);
                assert_eq!(qos, Qos::default(), "{limit:?}");
            }
        }
        assert!(Qos::default().is_unlimited() && Qos::default().is_nothing());
        let weighted = Qos {
            weight: Some(5),
            ..Qos::default()
        };
        assert!(weighted.is_unlimited() && !weighted.is_nothing());
    }

    #[test]
    fn totals_have_one_form_at_a_time() {
        for limit in Limit::ALL
            .into_iter()
            .filter(|limit| limit.short_field().is_some())
        {
            let mut qos = Qos::default();
            qos.set_rate(limit, Some(rate(5)));
            assert_eq!((qos.short(limit), qos.long(limit)), (Some(5), None));
            let scaled = QosRate {
                per_second_per_gib: 1,
                ..rate(5)
            };
            qos.set_rate(limit, Some(scaled));
            assert_eq!((qos.short(limit), qos.long(limit)), (None, Some(scaled)));
            qos.set_rate(limit, Some(rate(6)));
            assert_eq!((qos.short(limit), qos.long(limit)), (Some(6), None));
        }
    }
}
