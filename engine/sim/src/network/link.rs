//! What one direction between two machines is like.

use std::time::Duration;

use pollux_reactor::Instant;

use crate::random::Random;

/// One direction between two machines. Faults of one direction leave the other as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkRule {
    /// Time on the way, at least.
    pub latency: Duration,
    /// Added to the latency, up to this much, anew for each segment.
    pub jitter: Duration,
    /// Bytes a second; `None` for no limit.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Nothing arrives: senders retransmit until they give up or the link is open again.
    pub blocked: bool,
    /// Probability that a segment is lost and has to be sent again. The stream stays in order; it stalls.
    pub loss_probability: f64,
    /// Probability, for each segment, that the connection is reset instead.
    pub reset_probability: f64,
    /// Probability that a connect is refused although someone listens.
    pub refuse_probability: f64,
}

impl LinkRule {
    /// A quick and healthy network: 10 Gbit/s, 50 to 100 us.
    pub const HEALTHY: Self = Self {
        latency: Duration::from_micros(50),
        jitter: Duration::from_micros(50),
        bandwidth_bytes_per_second: Some(1_250_000_000),
        blocked: false,
        loss_probability: 0.0,
        reset_probability: 0.0,
        refuse_probability: 0.0,
    };

    /// Within one machine: 2 to 5 us, no limit.
    pub const LOCAL: Self = Self {
        latency: Duration::from_micros(2),
        jitter: Duration::from_micros(3),
        bandwidth_bytes_per_second: None,
        ..Self::HEALTHY
    };
}

/// One direction between two machines, and its traffic.
pub(super) struct Link {
    pub(super) rule: LinkRule,
    pub(super) random: Random,
    /// When the last byte that was sent is on its way and the next can follow.
    free_at: Instant,
}

impl Link {
    pub(super) fn new(rule: LinkRule, random: Random) -> Self {
        Self {
            rule,
            random,
            free_at: Instant::ORIGIN,
        }
    }

    /// When something sent now arrives. Without bytes it does not queue behind the data.
    pub(super) fn arrival(&mut self, now: Instant, bytes: usize) -> Instant {
        let mut departure = now;
        if let Some(bandwidth) = self.rule.bandwidth_bytes_per_second
            && bytes > 0
        {
            let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(bandwidth.max(1)));
            departure =
                now.max(self.free_at) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.free_at = departure;
        }
        departure + self.rule.latency + self.random.duration(Duration::ZERO..=self.rule.jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    #[test]
    fn bandwidth_queues_segments_one_behind_the_other() {
        let rule = LinkRule {
            latency: Duration::from_micros(10),
            jitter: Duration::ZERO,
            bandwidth_bytes_per_second: Some(1_000_000),
            ..LinkRule::HEALTHY
        };
        let mut link = Link::new(rule, Seed(1).stream("test", 0));
        let micros = |at: Instant| at.as_nanos() / 1000;
        assert_eq!(micros(link.arrival(Instant::ORIGIN, 1000)), 1010);
        assert_eq!(micros(link.arrival(Instant::ORIGIN, 1000)), 2010);
        assert_eq!(micros(link.arrival(Instant::ORIGIN, 0)), 10);
        assert_eq!(
            micros(link.arrival(Instant::from_nanos(10_000_000), 1000)),
            11_010
        );
    }
}
