//! What a reactor did with its core. Written by the reactor alone, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one reactor. Each is written by its own thread with relaxed stores and may be read from any.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) iterations: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
    pub(crate) idle_ns: AtomicU64,
    pub(crate) asleep_ns: AtomicU64,
    pub(crate) tasks_run: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) timers_fired: AtomicU64,
    pub(crate) driver_events: AtomicU64,
    pub(crate) run_queue_depth_max: AtomicU64,
    pub(crate) mailbox_depth_max: AtomicU64,
}

/// The values of [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Turns of the loop.
    pub iterations: u64,
    /// Time in turns that found something to do.
    pub busy_ns: u64,
    /// Time in turns that found nothing to do.
    pub idle_ns: u64,
    /// Time asleep in the ring (`adaptive` only).
    pub asleep_ns: u64,
    /// Task polls.
    pub tasks_run: u64,
    /// Messages from other threads.
    pub messages: u64,
    /// Timers that came due.
    pub timers_fired: u64,
    /// Completions and readiness events from the driver.
    pub driver_events: u64,
    /// The longest run queue seen at the start of a turn.
    pub run_queue_depth_max: u64,
    /// The longest mailbox seen at the start of a turn.
    pub mailbox_depth_max: u64,
}

/// Adds without a read-modify-write instruction: there is one writer.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

/// Raises a high-water mark; there is one writer.
pub(crate) fn raise(counter: &AtomicU64, value: u64) {
    if value > counter.load(Ordering::Relaxed) {
        counter.store(value, Ordering::Relaxed);
    }
}

impl Counters {
    /// Time in turns that found something to do.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed))
    }

    /// Reads every counter. The values are of about the same moment, not of exactly one.
    pub fn snapshot(&self) -> CountersSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountersSnapshot {
            iterations: read(&self.iterations),
            busy_ns: read(&self.busy_ns),
            idle_ns: read(&self.idle_ns),
            asleep_ns: read(&self.asleep_ns),
            tasks_run: read(&self.tasks_run),
            messages: read(&self.messages),
            timers_fired: read(&self.timers_fired),
            driver_events: read(&self.driver_events),
            run_queue_depth_max: read(&self.run_queue_depth_max),
            mailbox_depth_max: read(&self.mailbox_depth_max),
        }
    }
}
