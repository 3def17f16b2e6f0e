//! How much is outstanding at a backend: as little as keeps it busy.
//!
//! What has to be under way for a backend to be busy is what it does in a second, times the seconds that a
//! request takes when nothing waits in front of it (Little's law). The first is measured while volumes wait.
//! For the second the bound is lowered for some milliseconds now and then, so that what is outstanding does
//! not wait for itself. No property of a drive is known beforehand, and none is assumed to stay.
//!
//! Invariant: the bound is changed by what was measured while volumes waited for it, and by nothing else.

use std::time::Duration;

use pollux_reactor::Instant;

/// The bound before anything was measured: 32 operations of 4 KiB.
const BOUND_FIRST: u64 = 512;

/// At least: 4 operations of 4 KiB. One request always passes, however large.
pub(super) const BOUND_MIN: u64 = 64;

/// At most: 256 MiB.
const BOUND_MAX: u64 = 1 << 19;

/// How much more is allowed than would do if requests came and went evenly: 3/2.
const GAIN: f64 = 1.5;

/// The bound while it is measured how long requests take: a quarter. Less than 1/[`GAIN`], so that a bound
/// that is too high falls with each measurement.
const PROBE_PART: u64 = 4;

/// The bound changes by this factor at most at one time.
const STEP_MAX: f64 = 2.0;

/// A change by more than this part is followed by the next one soon.
const STEADY_PART: f64 = 0.2;

/// How long throughput is measured while the bound is not known well yet.
const RUN_SHORT: Duration = Duration::from_millis(50);

/// And how long when it is.
const RUN_LONG: Duration = Duration::from_secs(2);

/// Until what was outstanding with a higher bound is done.
const SETTLE_MIN: Duration = Duration::from_millis(5);

/// How long it is measured how long requests take, at least.
const PROBE_MIN: Duration = Duration::from_millis(10);

/// So many requests are looked at for that, at least.
const PROBE_REQUESTS: u64 = 16;

/// Settling, and measuring, take so many times as long as a request, at least.
const PROBE_LATENCIES: u32 = 3;

/// And this long at most.
const PROBE_MAX: Duration = Duration::from_millis(500);

/// Nobody has looked for so long: what was measured so far says nothing.
const GAP_MAX: Duration = Duration::from_millis(200);

/// What all ports have counted since they are there. All of it wraps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// What is done.
    pub(super) done: u64,
    /// Requests that began since they are sampled, and are done.
    pub(super) sampled: u64,
    /// Their cost.
    pub(super) sampled_cost: u64,
    /// The nanoseconds that they took, times their cost.
    pub(super) sampled_cost_ns: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.done = self.done.wrapping_add(other.done);
        self.sampled = self.sampled.wrapping_add(other.sampled);
        self.sampled_cost = self.sampled_cost.wrapping_add(other.sampled_cost);
        self.sampled_cost_ns = self.sampled_cost_ns.wrapping_add(other.sampled_cost_ns);
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            done: self.done.wrapping_sub(before.done),
            sampled: self.sampled.wrapping_sub(before.sampled),
            sampled_cost: self.sampled_cost.wrapping_sub(before.sampled_cost),
            sampled_cost_ns: self.sampled_cost_ns.wrapping_sub(before.sampled_cost_ns),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Throughput is measured.
    Run { looks: u32, waited: u32 },
    /// The bound is lower, and what was outstanding before is not done yet.
    Settle { throughput: f64 },
    /// It is measured how long requests take.
    Probe { throughput: f64 },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bound {
    bound: u64,
    phase: Phase,
    since: Instant,
    before: Counts,
    looked_at: Instant,
    run: Duration,
    /// How long requests took, as of the last measurement.
    latency: Duration,
}

impl Default for Bound {
    fn default() -> Self {
        Self {
            bound: BOUND_FIRST,
            phase: Phase::Run { looks: 0, waited: 0 },
            since: Instant::ORIGIN,
            before: Counts::default(),
            looked_at: Instant::ORIGIN,
            run: RUN_SHORT,
            latency: Duration::ZERO,
        }
    }
}

impl Bound {
    /// What may be outstanding now.
    pub(super) fn current(&self) -> u64 {
        match self.phase {
            Phase::Run { .. } => self.bound,
            Phase::Settle { .. } | Phase::Probe { .. } => (self.bound / PROBE_PART).max(1),
        }
    }

    /// Requests that begin now are to be sampled.
    pub(super) fn is_sampling(&self) -> bool {
        matches!(self.phase, Phase::Probe { .. })
    }

    /// Looks at what was counted; `is_waiting` tells whether anybody waits for room.
    pub(super) fn look(&mut self, now: Instant, counts: &Counts, is_waiting: bool) {
        let gap = now.saturating_since(self.looked_at);
        self.looked_at = now;
        if gap > GAP_MAX {
            self.begin(Phase::Run { looks: 0, waited: 0 }, now, counts);
            return;
        }
        let took = now.saturating_since(self.since);
        let found = counts.since(&self.before);
        match self.phase {
            Phase::Run { looks, waited } => {
                let (looks, waited) = (looks + 1, waited + u32::from(is_waiting));
                if took < self.run {
                    self.phase = Phase::Run { looks, waited };
                    return;
                }
                // Without a backlog the bound is not what decides.
                let was_busy = waited * 4 >= looks * 3;
                let throughput = found.done as f64 / took.as_nanos() as f64;
                let next = match was_busy && found.done > 0 {
                    true => Phase::Settle { throughput },
                    false => Phase::Run { looks: 0, waited: 0 },
                };
                self.begin(next, now, counts);
            }
            Phase::Settle { throughput } => {
                if took >= self.span(SETTLE_MIN) {
                    self.begin(Phase::Probe { throughput }, now, counts);
                }
            }
            Phase::Probe { throughput } => {
                let is_enough = took >= self.span(PROBE_MIN) && found.sampled >= PROBE_REQUESTS;
                if is_enough || took >= PROBE_MAX {
                    self.judge(throughput, &found);
                    self.begin(Phase::Run { looks: 0, waited: 0 }, now, counts);
                }
            }
        }
    }

    fn span(&self, min: Duration) -> Duration {
        (self.latency * PROBE_LATENCIES).clamp(min, PROBE_MAX)
    }

    fn begin(&mut self, phase: Phase, now: Instant, counts: &Counts) {
        (self.phase, self.since, self.before) = (phase, now, *counts);
    }

    fn judge(&mut self, throughput: f64, found: &Counts) {
        if found.sampled == 0 || found.sampled_cost == 0 {
            // Nothing came back: no reason to have more under way.
            return;
        }
        let latency_ns = found.sampled_cost_ns as f64 / found.sampled_cost as f64;
        self.latency = Duration::from_nanos(latency_ns as u64).min(PROBE_MAX);
        let before = self.bound as f64;
        let wanted = GAIN * throughput * latency_ns;
        let next = wanted.clamp(before / STEP_MAX, before * STEP_MAX);
        self.bound = (next as u64).clamp(BOUND_MIN, BOUND_MAX);
        let changed = (self.bound as f64 - before).abs() / before;
        self.run = match changed > STEADY_PART {
            true => RUN_SHORT,
            false => RUN_LONG,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend that works on so much at a time, each of which takes so long.
    struct Model {
        at_a_time: u64,
        service_ns: u64,
        now: u64,
        counts: Counts,
    }

    impl Model {
        fn run(&mut self, bound: &mut Bound, steps: u32, is_waiting: bool) {
            const STEP_NS: u64 = 5_000_000;
            for _ in 0..steps {
                let outstanding = bound.current();
                let at_work = outstanding.min(self.at_a_time);
                let done = at_work * STEP_NS / self.service_ns;
                let latency_ns = self.service_ns * outstanding / at_work;
                self.counts.done = self.counts.done.wrapping_add(done);
                if bound.is_sampling() {
                    self.counts.sampled += done / 16;
                    self.counts.sampled_cost += done;
                    self.counts.sampled_cost_ns = self.counts.sampled_cost_ns.wrapping_add(done * latency_ns);
                }
                self.now += STEP_NS;
                bound.look(Instant::from_nanos(self.now), &self.counts, is_waiting);
            }
        }
    }

    fn model(at_a_time: u64) -> Model {
        Model {
            at_a_time,
            service_ns: 100_000,
            now: 1_000_000_000,
            counts: Counts {
                done: u64::MAX - 5000,
                ..Counts::default()
            },
        }
    }

    #[track_caller]
    fn assert_near(bound: &Bound, at_a_time: u64) {
        let part = bound.bound as f64 / at_a_time as f64;
        assert!((1.4..=1.6).contains(&part), "{bound:?} for {at_a_time}");
    }

    #[test]
    fn the_bound_finds_what_the_backend_can_do_at_a_time() {
        for at_a_time in [128, 400, 2000, 50_000] {
            let (mut bound, mut model) = (Bound::default(), model(at_a_time));
            model.run(&mut bound, 300, true);
            assert_near(&bound, at_a_time);
            // And follows it.
            for changed in [at_a_time / 2, at_a_time * 3] {
                model.at_a_time = changed;
                model.run(&mut bound, 2000, true);
                assert_near(&bound, changed);
            }
            model.service_ns *= 50;
            model.run(&mut bound, 2000, true);
            assert_near(&bound, model.at_a_time);
        }
    }

    #[test]
    fn without_a_backlog_the_bound_stays() {
        let (mut bound, mut model) = (Bound::default(), model(2000));
        model.run(&mut bound, 1000, true);
        let before = bound.bound;
        model.at_a_time = 10;
        model.run(&mut bound, 10_000, false);
        assert_eq!(bound.bound, before);
        assert!(!bound.is_sampling());
    }

    #[test]
    fn a_backend_that_does_nothing_is_no_reason_for_more() {
        let mut bound = Bound::default();
        let mut now = 0;
        for _ in 0..10_000 {
            now += 10_000_000;
            bound.look(Instant::from_nanos(now), &Counts::default(), true);
        }
        assert_eq!(bound.bound, BOUND_FIRST);
    }
}
