//! How long an adaptive reactor looks for work before it sleeps.
//!
//! Waking costs whoever sends some microseconds, and the one who sleeps some more. A reactor that is hardly
//! used looks for about as long as that, and sleeps. One that is in use looks for much longer: its work may
//! come in batches, such as writes for a replica, whose sender is busy with the next batch meanwhile.

use std::time::Duration;

use crate::timer::Instant;

/// How long work is looked at to tell whether a reactor is in use.
const WINDOW: Duration = Duration::from_millis(1);

/// It is in use if it worked for one part in so many of the last window.
const IN_USE_PARTS: u32 = 8;

/// How many times as long it looks while it is in use.
const IN_USE_FACTOR: u32 = 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Spin {
    spin: Duration,
    /// Work was found last.
    worked_at: Instant,
    window_at: Instant,
    /// How long it had worked when the window began.
    window_busy: Duration,
    is_in_use: bool,
}

impl Spin {
    /// One that is not in use.
    pub(super) fn new(spin: Duration, now: Instant) -> Self {
        Self {
            spin,
            worked_at: now,
            window_at: now,
            window_busy: Duration::ZERO,
            is_in_use: false,
        }
    }

    /// Work was found.
    pub(super) fn worked(&mut self, now: Instant) {
        self.worked_at = now;
    }

    /// Whether it has looked long enough. `busy` is how long it has worked since it was started.
    pub(super) fn is_over(&mut self, now: Instant, busy: Duration) -> bool {
        let looked = now.saturating_since(self.worked_at);
        if looked < self.spin {
            return false;
        }
        let window = now.saturating_since(self.window_at);
        if window >= WINDOW {
            let worked = busy.saturating_sub(self.window_busy);
            self.is_in_use = worked.saturating_mul(IN_USE_PARTS) >= window;
            self.window_at = now;
            self.window_busy = busy;
        }
        !self.is_in_use || looked >= self.spin.saturating_mul(IN_USE_FACTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(50);

    /// Time passes, some of it with work, which ends now.
    struct Reactor {
        spin: Spin,
        now: Instant,
        busy: Duration,
    }

    impl Reactor {
        fn new() -> Self {
            let now = Instant::from_nanos(1_000_000_000);
            Self {
                spin: Spin::new(SPIN, now),
                now,
                busy: Duration::ZERO,
            }
        }

        fn works(&mut self, time: Duration) {
            self.now = self.now + time;
            self.busy += time;
            self.spin.worked(self.now);
        }

        /// How long it looks until it sleeps, in microseconds; at most `limit`.
        fn looks(&mut self, limit: u64) -> u64 {
            for looked in 0..limit {
                if self.spin.is_over(self.now, self.busy) {
                    return looked;
                }
                self.now = self.now + Duration::from_micros(1);
            }
            limit
        }

        /// Batches of work come, with gaps between.
        fn batches(&mut self, count: u32, work: Duration, gap_us: u64) {
            for _ in 0..count {
                self.works(work);
                let looked = self.looks(gap_us);
                self.now = self.now + Duration::from_micros(gap_us - looked);
            }
        }
    }

    #[test]
    fn one_that_is_hardly_used_sleeps_soon() {
        let mut reactor = Reactor::new();
        assert_eq!(reactor.looks(1000), 50);
        // A request each half millisecond: hundredths of its time.
        reactor.batches(100, Duration::from_micros(10), 490);
        reactor.works(Duration::from_micros(10));
        assert_eq!(reactor.looks(1000), 50);
    }

    #[test]
    fn one_in_use_waits_for_the_next_batch() {
        let mut reactor = Reactor::new();
        // A fifth of its time.
        reactor.batches(100, Duration::from_micros(80), 320);
        reactor.works(Duration::from_micros(80));
        assert_eq!(reactor.looks(320), 320, "it is awake when the next one comes");
    }

    #[test]
    fn when_work_ends_it_sleeps() {
        let mut reactor = Reactor::new();
        reactor.batches(100, Duration::from_micros(80), 20);
        assert!(reactor.looks(10_000) <= 500);
        // And is not in use when something comes once in a while.
        reactor.now = reactor.now + Duration::from_secs(1);
        reactor.works(Duration::from_micros(10));
        assert_eq!(reactor.looks(1000), 50);
    }

    #[test]
    fn without_looking_it_never_looks() {
        let mut reactor = Reactor::new();
        reactor.spin = Spin::new(Duration::ZERO, reactor.now);
        reactor.batches(100, Duration::from_micros(80), 20);
        assert_eq!(reactor.looks(10), 0);
    }
}
