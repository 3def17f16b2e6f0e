//! Clocks: the world's virtual time, and each machine's own idea of it.
//!
//! A machine's clock has an offset and a rate. Readings never go backwards, whatever the rate becomes; an
//! instant of the machine's clock converts to the first world instant at which the clock reads at least that.

use std::cell::Cell;
use std::time::Duration;

use pollux_reactor::Instant;

const BILLION: i128 = 1_000_000_000;

/// The fastest and the slowest a clock can be set to run, in parts per billion of deviation.
pub const CLOCK_DRIFT_PPB_MAX: i32 = 500_000_000;

/// A machine's clock against the world's.
#[derive(Debug)]
pub(crate) struct MachineClock {
    line: Cell<Line>,
}

/// From `world` on the clock reads `local` and runs `BILLION + drift_ppb` nanoseconds a second.
#[derive(Debug, Clone, Copy)]
struct Line {
    world: Instant,
    local: Instant,
    drift_ppb: i32,
}

impl MachineClock {
    pub(crate) fn new(offset: Duration, drift_ppb: i32) -> Self {
        let clock = Self {
            line: Cell::new(Line {
                world: Instant::ORIGIN,
                local: Instant::ORIGIN + offset,
                drift_ppb: 0,
            }),
        };
        clock.set_drift(Instant::ORIGIN, drift_ppb);
        clock
    }

    /// What the clock reads at a world instant.
    pub(crate) fn local(&self, world: Instant) -> Instant {
        let line = self.line.get();
        let elapsed = i128::from(world.as_nanos()) - i128::from(line.world.as_nanos());
        let local = i128::from(line.local.as_nanos())
            + (elapsed.max(0) * (BILLION + i128::from(line.drift_ppb))) / BILLION;
        Instant::from_nanos(u64::try_from(local).unwrap_or(u64::MAX))
    }

    /// The first world instant, from the last change of the clock on, at which it reads at least `local`.
    pub(crate) fn world(&self, local: Instant) -> Instant {
        let line = self.line.get();
        let ahead = i128::from(local.as_nanos()) - i128::from(line.local.as_nanos());
        if ahead <= 0 {
            return line.world;
        }
        let rate = BILLION + i128::from(line.drift_ppb);
        let world = i128::from(line.world.as_nanos()) + (ahead * BILLION + rate - 1) / rate;
        Instant::from_nanos(u64::try_from(world).unwrap_or(u64::MAX))
    }

    /// Changes how fast the clock runs, from `world` on.
    pub(crate) fn set_drift(&self, world: Instant, drift_ppb: i32) {
        self.line.set(Line {
            world,
            local: self.local(world),
            drift_ppb: drift_ppb.clamp(-CLOCK_DRIFT_PPB_MAX, CLOCK_DRIFT_PPB_MAX),
        });
    }

    /// Moves the clock forwards at `world`.
    pub(crate) fn jump(&self, world: Instant, forwards: Duration) {
        let line = self.line.get();
        self.line.set(Line {
            world,
            local: self.local(world) + forwards,
            ..line
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn converts_to_the_first_instant_that_reads_enough(
            offset in 0u64..1 << 50,
            drift in -CLOCK_DRIFT_PPB_MAX..=CLOCK_DRIFT_PPB_MAX,
            ahead in 0u64..1 << 50,
        ) {
            let clock = MachineClock::new(Duration::from_nanos(offset), drift);
            let deadline = Instant::from_nanos(offset.saturating_add(ahead));
            let world = clock.world(deadline);
            prop_assert!(clock.local(world) >= deadline);
            if let Some(before) = world.as_nanos().checked_sub(1) {
                prop_assert!(clock.local(Instant::from_nanos(before)) < deadline);
            }
        }

        #[test]
        fn never_goes_backwards(
            changes in proptest::collection::vec(
                (0u64..1 << 40, -CLOCK_DRIFT_PPB_MAX..=CLOCK_DRIFT_PPB_MAX),
                1..20,
            ),
        ) {
            let clock = MachineClock::new(Duration::ZERO, 0);
            let (mut world, mut last) = (0, Instant::ORIGIN);
            for (step, drift) in changes {
                world += step;
                let now = Instant::from_nanos(world);
                prop_assert!(clock.local(now) >= last);
                clock.set_drift(now, drift);
                prop_assert!(clock.local(now) >= last);
                last = clock.local(now);
            }
        }
    }
}
