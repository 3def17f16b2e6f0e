//! One limit, kept by all reactors together without a lock: virtual scheduling.
//!
//! A bucket is a time: when whoever asks next may begin. To take tokens is to move it on by the time in
//! which the rate gives as many, and to begin when it was before. It never lags behind the clock by more
//! than the depth; that lag is the credit of a token bucket. Since everyone moves it on by what it takes,
//! the sum of all that was taken never exceeds rate times time and depth, and nothing that is taken is
//! larger than a bucket: it only takes longer until the next may begin.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pollux_reactor::Instant;

/// Units of time here: 1/16 ns, so that rates of millions are exact.
const UNIT_SHIFT: u32 = 4;

/// Where the clock begins, in units: half of the range, so that a bucket is full also when the clock has
/// just begun, and that clocks may run for 18 years.
const ORIGIN: u64 = 1 << 63;

const UNITS_PER_SECOND: u128 = 1_000_000_000 << UNIT_SHIFT;

/// Fractions of a unit in the price of a token.
const FRACTION_SHIFT: u32 = 20;

/// A moment, in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Moment(u64);

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        let units = instant.as_nanos().saturating_mul(1 << UNIT_SHIFT);
        Self(ORIGIN.saturating_add(units))
    }
}

impl From<Moment> for Instant {
    /// Never earlier.
    fn from(moment: Moment) -> Self {
        Self::from_nanos(moment.0.saturating_sub(ORIGIN).div_ceil(1 << UNIT_SHIFT))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bucket {
    next: AtomicU64,
    depth: u64,
    /// Units for a token, with fractions.
    price: u64,
}

impl Bucket {
    /// A full bucket. It gives `per_second` tokens, one at least, and keeps those of `depth`.
    pub(super) fn new(per_second: u64, depth: Duration) -> Self {
        let price = (UNITS_PER_SECOND << FRACTION_SHIFT) / u128::from(per_second.max(1));
        let depth = depth.as_nanos() << UNIT_SHIFT;
        Self {
            next: AtomicU64::new(0),
            depth: u64::try_from(depth).unwrap_or(u64::MAX),
            price: u64::try_from(price).unwrap_or(u64::MAX),
        }
    }

    fn units(&self, tokens: u64) -> u64 {
        let units = (u128::from(tokens) * u128::from(self.price)) >> FRACTION_SHIFT;
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    /// Takes tokens; when whoever takes them may begin.
    pub(super) fn take(&self, now: Moment, tokens: u64) -> Moment {
        let (units, floor) = (self.units(tokens), now.0.saturating_sub(self.depth));
        let take = |next: u64| next.max(floor).saturating_add(units);
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            let after = take(next);
            match self
                .next
                .compare_exchange_weak(next, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Moment(next.max(floor)),
                Err(newer) => next = newer,
            }
        }
    }

    /// Gives back tokens that were taken and not used.
    pub(super) fn give_back(&self, tokens: u64) {
        let units = self.units(tokens);
        // Another one may have tokens for a later moment by now; the sum is right all the same.
        let back = |next: u64| Some(next.saturating_sub(units));
        let _ = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(nanoseconds: u64) -> Moment {
        Instant::from_nanos(nanoseconds).into()
    }

    #[test]
    fn tokens_come_at_the_rate_after_the_depth() {
        let bucket = Bucket::new(1000, Duration::from_millis(10));
        let second = 1_000_000_000;
        // Ten of the depth, and the one that begins as it is empty.
        let begun = (0..100)
            .filter(|_| bucket.take(at(second), 1) <= at(second))
            .count();
        assert_eq!(begun, 11);
        let last = bucket.take(at(second), 1);
        assert_eq!(last, at(second + 90_000_000));
    }

    #[test]
    fn what_was_given_back_can_be_taken() {
        let bucket = Bucket::new(10, Duration::ZERO);
        let now = at(5_000_000_000);
        assert_eq!(bucket.take(now, 20), now);
        bucket.give_back(20);
        assert_eq!(bucket.take(now, 1), now);
        assert_eq!(bucket.take(now, 1), at(5_100_000_000));
    }

    proptest! {
        /// Next to the plain model: what began up to any moment is within rate times time, depth and one
        /// taking.
        #[test]
        fn what_begins_is_within_rate_and_depth(
            rate in 1_u64..10_000_000,
            depth_us in 0_u64..1_000_000,
            steps in prop::collection::vec((0_u64..200_000_000, 1_u64..100_000), 1..200),
        ) {
            let bucket = Bucket::new(rate, Duration::from_micros(depth_us));
            let start = 1_u64 << 40;
            let (mut now, mut taken, mut largest) = (start, 0_u128, 0_u128);
            let mut begins: Vec<(u64, u128)> = Vec::new();
            for (pause, tokens) in steps {
                now += pause;
                let begin = Instant::from(bucket.take(at(now), tokens)).as_nanos().max(now);
                taken += u128::from(tokens);
                largest = largest.max(u128::from(tokens));
                begins.push((begin, taken));
            }
            for (begin, taken) in begins {
                let span = u128::from(begin - start) + u128::from(depth_us) * 1000;
                let allowed = span * u128::from(rate) / 1_000_000_000;
                // A part in ten thousand for prices that are rounded.
                prop_assert!(taken <= allowed + largest + allowed / 10_000 + 1, "{taken} {allowed}");
            }
        }

        #[test]
        fn extremes_are_no_panic(rate: u64, depth: u64, now: u64, tokens: u64) {
            let bucket = Bucket::new(rate, Duration::from_nanos(depth));
            for _ in 0..3 {
                bucket.take(at(now), tokens);
            }
            bucket.give_back(tokens);
        }
    }
}
