//! How fast a resync copies: as fast as hosts do not notice, and never slower than a minimum.
//!
//! What hosts see is timed all along: mean and 99th percentile of intervals. Now and then a resync stops
//! for an interval; what hosts see then is what they see without it. While they see more with it, it copies
//! slower by a part each interval, and faster while they do not. Without hosts it copies as fast as it can.

use std::cell::RefCell;
use std::time::Duration;

use pollux_reactor::{Instant, sleep};

use super::speed::Speed;
use super::{Core, clock};

/// How long requests of hosts are counted before a resync is made faster or slower, and how long it stops
/// to see how they do without it.
const INTERVAL: Duration = Duration::from_millis(50);

/// How often it stops: a part in forty of the time.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Requests in an interval that are too few to say anything.
const REQUESTS_MIN: u64 = 4;

/// Requests of which a 99th percentile is told.
const PERCENTILE_REQUESTS_MIN: u64 = 64;

/// What a resync begins with when there are hosts, in bytes a second.
const RATE_START: f64 = (32 << 20) as f64;

/// No limit.
const RATE_MAX: f64 = 1e12;

/// More than this, and so many times as much, is noticed; less than that is not.
const NOTICED: f64 = 1.5;
const UNNOTICED: f64 = 1.25;
const NOISE_NS: f64 = 20_000.0;

const SLOWER: f64 = 0.7;
const FASTER: f64 = 1.2;

/// Places of a histogram for each power of two.
const PLACES_PER_OCTAVE_SHIFT: u32 = 3;
const PLACES: usize = 40 << PLACES_PER_OCTAVE_SHIFT;

/// Requests of an interval.
#[derive(Debug, Clone)]
struct Interval {
    began: Instant,
    done: u64,
    sum_ns: u64,
    places: Box<[u32; PLACES]>,
}

impl Interval {
    fn new(began: Instant) -> Self {
        Self {
            began,
            done: 0,
            sum_ns: 0,
            places: Box::new([0; PLACES]),
        }
    }

    fn clear(&mut self, began: Instant) {
        (self.began, self.done, self.sum_ns) = (began, 0, 0);
        self.places.fill(0);
    }

    fn add(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.done += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        if let Some(place) = self.places.get_mut(place(ns)) {
            *place += 1;
        }
    }

    /// Mean and, if there are enough, 99th percentile, in nanoseconds.
    fn seen(&self) -> Option<Seen> {
        if self.done < REQUESTS_MIN {
            return None;
        }
        let mean = self.sum_ns as f64 / self.done as f64;
        let percentile = (self.done >= PERCENTILE_REQUESTS_MIN).then(|| {
            let mut left = self.done / 100;
            let at = self.places.iter().rposition(|count| {
                let is_it = u64::from(*count) > left;
                left = left.saturating_sub(u64::from(*count));
                is_it
            });
            bound_ns(at.unwrap_or(0))
        });
        Some(Seen { mean, percentile })
    }
}

fn place(ns: u64) -> usize {
    let ns = ns.max(1);
    let octave = ns.ilog2();
    let fine =
        (u128::from(ns) << PLACES_PER_OCTAVE_SHIFT >> octave) as usize & ((1 << PLACES_PER_OCTAVE_SHIFT) - 1);
    (((octave as usize) << PLACES_PER_OCTAVE_SHIFT) + fine).min(PLACES - 1)
}

/// The end of a place.
fn bound_ns(place: usize) -> f64 {
    let octave = place >> PLACES_PER_OCTAVE_SHIFT;
    let fine = place & ((1 << PLACES_PER_OCTAVE_SHIFT) - 1);
    let part = (fine + 1) as f64 / f64::from(1_u32 << PLACES_PER_OCTAVE_SHIFT);
    2_f64.powi(i32::try_from(octave).unwrap_or(i32::MAX)) * (1.0 + part)
}

/// What hosts see.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    mean: f64,
    percentile: Option<f64>,
}

impl Seen {
    /// Whether it is more than so many times as much.
    fn exceeds(&self, calm: &Self, times: f64) -> bool {
        let more = |seen: f64, calm: f64| seen > calm * times + NOISE_NS;
        let tail = self.percentile.zip(calm.percentile);
        more(self.mean, calm.mean) || tail.is_some_and(|(seen, calm)| more(seen, calm))
    }

    /// Both, the newer one counting as much as all before.
    fn join(self, newer: Self) -> Self {
        let middle = |one: f64, other: f64| (one + other) / 2.0;
        let percentile = match (self.percentile, newer.percentile) {
            (Some(one), Some(other)) => Some(middle(one, other)),
            (one, other) => other.or(one),
        };
        Self {
            mean: middle(self.mean, newer.mean),
            percentile,
        }
    }
}

/// What a resync does next.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Go,
    Probe,
}

/// See the module.
#[derive(Debug)]
struct Controller {
    interval: Interval,
    /// What hosts see without a resync.
    calm: Option<Seen>,
    is_probing: bool,
    probe_at: Instant,
    rate: f64,
    /// When the next chunk may be copied, and when it was begun.
    next_at: Instant,
    began: Instant,
    speed: Speed,
}

impl Controller {
    fn new() -> Self {
        let origin = Instant::ORIGIN;
        Self {
            interval: Interval::new(origin),
            calm: None,
            is_probing: false,
            probe_at: origin,
            rate: RATE_START,
            next_at: origin,
            began: origin,
            speed: Speed::new(origin),
        }
    }

    /// Looks at the interval, if it is over.
    fn step(&mut self, now: Instant, min: f64) -> Step {
        if now.saturating_since(self.interval.began) < INTERVAL {
            return Step::Go;
        }
        let is_long = now.saturating_since(self.interval.began) > 4 * INTERVAL;
        let (seen, is_empty) = (self.interval.seen(), self.interval.done == 0);
        self.interval.clear(now);
        if std::mem::take(&mut self.is_probing) {
            if let Some(seen) = seen {
                self.calm = Some(self.calm.map_or(seen, |calm| calm.join(seen)));
            }
            self.probe_at = now + PROBE_EVERY;
            return Step::Go;
        }
        if is_empty {
            self.rate = RATE_MAX;
            return Step::Go;
        }
        if self.rate == RATE_MAX {
            // Hosts have come.
            self.rate = RATE_START.max(min);
        }
        // What was seen before the resync began is what hosts see without it.
        if is_long && self.calm.is_none() {
            self.calm = seen;
        }
        if self.calm.is_none() || now >= self.probe_at {
            self.is_probing = true;
            return Step::Probe;
        }
        if let (Some(seen), Some(calm)) = (seen, self.calm) {
            if seen.exceeds(&calm, NOTICED) {
                self.rate = (self.rate * SLOWER).max(min);
            } else if !seen.exceeds(&calm, UNNOTICED) {
                self.rate = (self.rate * FASTER).min(RATE_MAX / 2.0);
            }
        }
        Step::Go
    }

    /// So much was copied: when to go on.
    fn copied(&mut self, now: Instant, bytes: u64, max: Option<u64>) -> Instant {
        let rate = max.map_or(self.rate, |max| self.rate.min(max.max(1) as f64));
        let span = Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(INTERVAL);
        // The time that copying took is a part of the span. What was lost by being late is not made up for.
        self.next_at = self.next_at.max(self.began) + span;
        self.speed.add(now, bytes);
        self.began = self.next_at.max(now);
        self.next_at
    }
}

/// How a resync gives way to hosts.
#[derive(Debug)]
pub(super) struct Priority(RefCell<Controller>);

impl Default for Priority {
    fn default() -> Self {
        Self(RefCell::new(Controller::new()))
    }
}

impl Priority {
    /// A request of a host took so long.
    pub(super) fn served(&self, took: Duration) {
        self.0.borrow_mut().interval.add(took);
    }

    /// How fast the copy is, in bytes a second, if that is known.
    pub(super) fn speed(&self) -> Option<f64> {
        self.0.borrow().speed.told()
    }
}

impl Core {
    /// Pauses after so much was copied.
    pub(super) async fn pace_resync(&self, bytes: u64) {
        let min = self.options.resync_bytes_per_second_min.max(1) as f64;
        let now = clock();
        let step = self.priority.0.borrow_mut().step(now, min);
        if step == Step::Probe {
            sleep(INTERVAL).await;
        }
        let max = self.options.resync_bytes_per_second;
        let next_at = self.priority.0.borrow_mut().copied(clock(), bytes, max);
        let span = next_at.saturating_since(clock());
        if !span.is_zero() {
            sleep(span).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIN: f64 = (8 << 20) as f64;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos((10_000 + ms) * 1_000_000)
    }

    /// Runs intervals in which hosts see so many microseconds, without and with the resync.
    fn run(
        controller: &mut Controller,
        from_ms: u64,
        count: u64,
        calm_us: u64,
        busy_us: impl Fn(f64) -> u64,
    ) -> u64 {
        let mut probes = 0;
        let mut is_probe = controller.is_probing;
        for interval in 0..count {
            let took = if is_probe {
                calm_us
            } else {
                busy_us(controller.rate)
            };
            for _ in 0..100 {
                controller.interval.add(Duration::from_micros(took));
            }
            is_probe = controller.step(at(from_ms + interval * 50), MIN) == Step::Probe;
            probes += u64::from(is_probe);
        }
        probes
    }

    #[test]
    fn it_gives_way_down_to_the_minimum_and_comes_back() {
        let mut controller = Controller::new();
        controller.interval.clear(at(0));
        let probes = run(&mut controller, 50, 100, 100, |_| 1000);
        assert_eq!(controller.rate, MIN);
        assert!((2..=4).contains(&probes), "{probes}");
        run(&mut controller, 6000, 100, 100, |_| 100);
        assert!(controller.rate > 1e9, "{}", controller.rate);
    }

    #[test]
    fn it_settles_where_hosts_begin_to_notice() {
        let mut controller = Controller::new();
        controller.interval.clear(at(0));
        // What hosts see grows with the rate: one and a half times as much at 150 MB/s.
        let seen = |rate: f64| 200 + (rate / 1e6 * 200.0 / 300.0) as u64;
        run(&mut controller, 50, 400, 200, seen);
        assert!((60e6..250e6).contains(&controller.rate), "{}", controller.rate);
    }

    #[test]
    fn without_hosts_there_is_no_limit_and_with_them_there_is_one_at_once() {
        let mut controller = Controller::new();
        controller.interval.clear(at(0));
        assert_eq!(controller.step(at(60), MIN), Step::Go);
        assert_eq!(controller.rate, RATE_MAX);
        run(&mut controller, 120, 2, 100, |_| 100);
        assert!(controller.rate <= RATE_START * FASTER);
        // One that is set counts in any case.
        controller.copied(at(1000), 1 << 20, Some(1 << 20));
        let next = controller.copied(at(1100), 1 << 20, Some(1 << 20));
        assert_eq!(next, at(2000));
    }

    #[test]
    fn the_time_that_copying_takes_is_a_part_of_what_the_rate_allows() {
        const CHUNK: u64 = 128 << 10;
        let mut controller = Controller::new();
        controller.rate = MIN;
        controller.copied(at(0), CHUNK, None);
        let mut now = at(0);
        for _ in 0..80 {
            now = now + Duration::from_millis(10);
            now = now.max(controller.copied(now, CHUNK, None));
        }
        // 10 MiB at 8 MiB a second.
        assert_eq!(now.saturating_since(at(0)), Duration::from_millis(1250));
        // Copying alone takes longer than that: nothing is waited for, and nothing is made up for later.
        for _ in 0..10 {
            now = now + Duration::from_millis(30);
            assert!(controller.copied(now, CHUNK, None) <= now);
        }
        assert!(controller.copied(now, CHUNK, None) > now);
    }

    #[test]
    fn a_percentile_is_that_of_the_slowest() {
        let mut interval = Interval::new(at(0));
        for _ in 0..980 {
            interval.add(Duration::from_micros(100));
        }
        for _ in 0..20 {
            interval.add(Duration::from_micros(900));
        }
        let seen = interval.seen().and_then(|seen| seen.percentile).unwrap();
        assert!((900e3..1020e3).contains(&seen), "{seen}");
        let calm = Seen {
            mean: 116_000.0,
            percentile: Some(200_000.0),
        };
        assert!(interval.seen().unwrap().exceeds(&calm, NOTICED));
    }

    proptest! {
        #[test]
        fn a_time_is_in_its_place(ns in 1_u64..1 << 39) {
            let bound = bound_ns(place(ns));
            prop_assert!(bound >= ns as f64 * 0.999 && bound <= ns as f64 * 1.3, "{ns} {bound}");
        }
    }
}
