//! The limits of a volume as buckets.

use std::time::Duration;

use pollux_device::Request;

use super::bucket::{Bucket, Moment};
use super::limits::{Limits, Qos, Rate};

/// What every bucket keeps, so that a reactor that is late by less loses nothing: in 5 s, 0.8 % more than the
/// rate after a pause, and exactly the rate without one.
const DEPTH: Duration = Duration::from_millis(40);

/// Bytes that are taken at one time. Connections take turns, so that one with larger requests gets no more
/// bytes than others, nor has them wait for longer than this takes.
const QUANTUM_BYTES: u64 = 64 << 10;

/// Reads and writes are limited apart, and do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// What a request has to pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) direction: Direction,
    pub(super) operations: u64,
    pub(super) bytes: u64,
}

impl Cost {
    /// That of a request; `None` for one that is never held.
    pub(super) fn of(request: &Request) -> Option<Self> {
        let (direction, bytes) = match request {
            Request::Flush => return None,
            Request::Read { into, .. } => (Direction::Read, into.len()),
            Request::Compare { with, .. } => (Direction::Read, with.len_bytes()),
            Request::Write { from, .. } => (Direction::Write, from.len_bytes()),
            // No data moves, and a host that gives a volume back must not wait for hours.
            Request::Deallocate { .. } | Request::WriteZeroes { .. } => (Direction::Write, 0),
        };
        Some(Self {
            direction,
            operations: 1,
            bytes: bytes as u64,
        })
    }

    pub(super) fn is_paid(&self) -> bool {
        self.operations == 0 && self.bytes == 0
    }

    /// What is paid next.
    fn quantum(&self) -> Self {
        Self {
            bytes: self.bytes.min(QUANTUM_BYTES),
            ..*self
        }
    }

    /// What is left without a part.
    pub(super) fn without(&self, part: &Self) -> Self {
        Self {
            direction: self.direction,
            operations: self.operations.saturating_sub(part.operations),
            bytes: self.bytes.saturating_sub(part.bytes),
        }
    }
}

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Operations,
    Bytes,
}

/// A bucket, and what pays there.
#[derive(Debug)]
struct Counter {
    bucket: Bucket,
    counted: Counted,
    /// Those of one direction alone.
    of: Option<Direction>,
}

impl Counter {
    fn tokens(&self, cost: &Cost) -> u64 {
        if self.of.is_some_and(|of| of != cost.direction) {
            return 0;
        }
        match self.counted {
            Counted::Operations => cost.operations,
            Counted::Bytes => cost.bytes,
        }
    }
}

/// All buckets of a volume: none if nothing is limited.
#[derive(Debug, Default)]
pub(super) struct Plan {
    counters: Box<[Counter]>,
}

impl Plan {
    /// For a volume of so many bytes.
    pub(super) fn new(qos: &Qos, size_bytes: u64) -> Self {
        let mut counters = Vec::new();
        let mut add = |limits: &Limits, of| {
            for (rate, counted) in [
                (&limits.operations, Counted::Operations),
                (&limits.bytes, Counted::Bytes),
            ] {
                let buckets = rate.iter().flat_map(|rate| buckets(rate, size_bytes));
                counters.extend(buckets.map(|bucket| Counter { bucket, counted, of }));
            }
        };
        add(&qos.total, None);
        add(&qos.read, Some(Direction::Read));
        add(&qos.write, Some(Direction::Write));
        Self {
            counters: counters.into_boxed_slice(),
        }
    }

    /// Pays the next part of what is left: when that allows to go on.
    pub(super) fn pay(&self, now: Moment, left: &mut Cost) -> Moment {
        let part = left.quantum();
        *left = left.without(&part);
        let mut begin = Moment::default();
        for counter in &self.counters {
            let tokens = counter.tokens(&part);
            if tokens > 0 {
                begin = begin.max(counter.bucket.take(now, tokens));
            }
        }
        begin
    }

    /// Gives back what was paid for a request that does not begin.
    pub(super) fn give_back(&self, paid: &Cost) {
        for counter in &self.counters {
            let tokens = counter.tokens(paid);
            if tokens > 0 {
                counter.bucket.give_back(tokens);
            }
        }
    }
}

/// One bucket for a rate; with a burst, one with the credit of the burst, and one that is as fast as the
/// burst.
fn buckets(rate: &Rate, size_bytes: u64) -> impl Iterator<Item = Bucket> {
    let per_second = rate.of_size(size_bytes);
    let burst = rate.burst.filter(|burst| burst.per_second > per_second);
    let depth = burst.map_or(DEPTH, |burst| {
        let credit = (burst.per_second - per_second) as f64 * f64::from(burst.seconds);
        let span = Duration::try_from_secs_f64(credit / per_second as f64);
        span.unwrap_or(Duration::MAX).max(DEPTH)
    });
    let fastest = burst.map(|burst| Bucket::new(burst.per_second, DEPTH));
    std::iter::once(Bucket::new(per_second, depth)).chain(fastest)
}
