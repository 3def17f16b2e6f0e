//! Which faults there are, when they strike, and how often they did.
//!
//! Rules can be replaced while requests run: queues keep the plan they know and look at one number per
//! request to see whether there is a newer one. A request is decided on once, when it is submitted; a rule
//! that was taken away goes on for the requests it has struck.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crate::error::IoError;
use crate::request::Request;

/// Rules at one time.
pub const RULES_MAX: usize = 64;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Request::Read`].
    Read,
    /// [`Request::Write`].
    Write,
    /// [`Request::Flush`].
    Flush,
    /// [`Request::Deallocate`].
    Deallocate,
    /// [`Request::WriteZeroes`].
    WriteZeroes,
    /// [`Request::Compare`].
    Compare,
}

impl Operation {
    /// The kind of a request.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Read { .. } => Self::Read,
            Request::Write { .. } => Self::Write,
            Request::Flush => Self::Flush,
            Request::Deallocate { .. } => Self::Deallocate,
            Request::WriteZeroes { .. } => Self::WriteZeroes,
            Request::Compare { .. } => Self::Compare,
        }
    }
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It fails and never reaches the medium.
    Fail(IoError),
    /// It is done, and fails all the same.
    FailAfter(IoError),
    /// It waits before it is done: a time between these two.
    Delay(RangeInclusive<Duration>),
    /// It waits until [`Faults::release`].
    Stick,
    /// Only so many sectors of 512 bytes of a write, from its start, reach the medium, or a random number of
    /// them, less than all. It is acknowledged, unless another rule makes it fail.
    Tear(Option<u64>),
    /// It is acknowledged and forgotten: a write, flush, deallocate or write zeroes.
    Lose,
    /// So many random bits are changed: of what a read returns, or of what a write brings to the medium.
    Flip(u32),
}

/// When a rule strikes. All conditions must hold; the default always does.
#[derive(Debug, Clone, PartialEq)]
pub struct When {
    /// These operations, or all if there are none.
    pub operations: Vec<Operation>,
    /// Requests that touch one of these blocks; with this, never a flush. Default: any.
    pub blocks: Option<RangeInclusive<u64>>,
    /// Not the first so many requests that operation and blocks hold for. Default: 0.
    pub skip: u64,
    /// Of those after that, every so-manieth; 1 is each of them. Default: 1.
    pub every: u64,
    /// Not more than so many times. Default: no limit.
    pub times: u64,
    /// With this probability, from 0 to 1, each. Default: 1.
    pub probability: f64,
}

impl Default for When {
    fn default() -> Self {
        Self {
            operations: Vec::new(),
            blocks: None,
            skip: 0,
            every: 1,
            times: u64::MAX,
            probability: 1.0,
        }
    }
}

impl When {
    /// Requests of this kind.
    pub fn operation(operation: Operation) -> Self {
        Self {
            operations: vec![operation],
            ..Self::default()
        }
    }

    /// The same, for requests that touch one of these blocks.
    #[must_use]
    pub fn in_blocks(self, blocks: RangeInclusive<u64>) -> Self {
        Self {
            blocks: Some(blocks),
            ..self
        }
    }

    /// The same, only for the `number`th request, the first being 1.
    #[must_use]
    pub fn nth(self, number: u64) -> Self {
        Self {
            skip: number.saturating_sub(1),
            times: 1,
            ..self
        }
    }

    /// The same, with this probability.
    #[must_use]
    pub fn with_probability(self, probability: f64) -> Self {
        Self { probability, ..self }
    }
}

/// A fault and when it strikes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// When.
    pub when: When,
    /// What.
    pub fault: Fault,
}

/// A rule and its counts, which it keeps as long as it is in force.
#[derive(Debug)]
pub(super) struct ActiveRule {
    pub(super) rule: Rule,
    matched: AtomicU64,
    struck: AtomicU64,
}

impl ActiveRule {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            matched: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        }
    }

    /// Whether it strikes a request, which it counts; `random` gives a number from 0 up to 1.
    pub(super) fn strikes(
        &self,
        operation: Operation,
        range: Option<(u64, u64)>,
        random: impl FnOnce() -> f64,
    ) -> bool {
        let when = &self.rule.when;
        if !when.operations.is_empty() && !when.operations.contains(&operation) {
            return false;
        }
        if let Some(blocks) = &when.blocks {
            let touched = range.is_some_and(|(block, count)| {
                count > 0 && block <= *blocks.end() && block.saturating_add(count) > *blocks.start()
            });
            if !touched {
                return false;
            }
        }
        let number = self.matched.fetch_add(1, Ordering::Relaxed);
        let Some(after) = number.checked_sub(when.skip) else {
            return false;
        };
        if !after.is_multiple_of(when.every.max(1)) {
            return false;
        }
        if when.probability < 1.0 && random() >= when.probability {
            return false;
        }
        // A request that came too late must not use up the count for ever.
        let within = |struck: u64| (struck < when.times).then_some(struck.saturating_add(1));
        self.struck
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .is_ok()
    }
}

/// How often faults have struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Requests that failed without being done.
    pub failed: u64,
    /// Requests that failed after they were done.
    pub failed_after: u64,
    /// Requests that had to wait.
    pub delayed: u64,
    /// Requests that were stuck, released or not.
    pub stuck: u64,
    /// Writes that were torn.
    pub torn: u64,
    /// Requests that were forgotten, flushes left out.
    pub lost: u64,
    /// Flushes that were forgotten.
    pub lost_flushes: u64,
    /// Reads with changed bits.
    pub flipped_reads: u64,
    /// Writes with changed bits.
    pub flipped_writes: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// [`FaultCounts`], counted by all queues.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            fn read(&self) -> FaultCounts {
                FaultCounts {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters!(
    failed,
    failed_after,
    delayed,
    stuck,
    torn,
    lost,
    lost_flushes,
    flipped_reads,
    flipped_writes
);

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What becomes of stuck requests that are released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// They go on.
    Proceed,
    /// They fail and never reach the medium.
    Fail(IoError),
}

#[derive(Debug, Default)]
struct Stuck {
    /// Counts the releases; a request waits for one that comes after it got stuck.
    releases: u64,
    last: Option<Release>,
    waiting: Vec<Waker>,
}

pub(super) type Plan = Arc<[Arc<ActiveRule>]>;

#[derive(Debug)]
struct Shared {
    seed: Option<u64>,
    generation: AtomicU64,
    plan: Mutex<Plan>,
    queues: AtomicU64,
    counters: Counters,
    stuck: Mutex<Stuck>,
}

/// The faults of a device: changed, released and counted from any thread. Clones are the same faults.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Shared>);

impl Default for Faults {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Faults {
    /// No faults yet. Random choices depend on `seed` and the order in which queues attach, or come from the
    /// driver of each reactor if there is none.
    pub fn new(seed: Option<u64>) -> Self {
        Self(Arc::new(Shared {
            seed,
            generation: AtomicU64::new(0),
            plan: Mutex::new(Arc::new([])),
            queues: AtomicU64::new(0),
            counters: Counters::default(),
            stuck: Mutex::default(),
        }))
    }

    /// Puts these rules, at most [`RULES_MAX`] of them, in place of all others. Every rule is asked about
    /// every request; where several faults of one kind strike, the first counts.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        let rules = rules.into_iter().take(RULES_MAX);
        let plan = rules.map(|rule| Arc::new(ActiveRule::new(rule))).collect();
        self.replace(|_| plan);
    }

    /// Adds a rule; nothing happens if there are [`RULES_MAX`] already.
    pub fn add(&self, rule: Rule) {
        self.replace(|plan| {
            let one_more = Arc::new(ActiveRule::new(rule));
            plan.iter().cloned().chain([one_more]).take(RULES_MAX).collect()
        });
    }

    /// No more faults. Requests that are stuck stay so.
    pub fn clear(&self) {
        self.set([]);
    }

    /// The rules in force.
    pub fn rules(&self) -> Vec<Rule> {
        let plan = self.0.plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan.iter().map(|active| active.rule.clone()).collect()
    }

    /// How often faults have struck since the device was made.
    pub fn counts(&self) -> FaultCounts {
        self.0.counters.read()
    }

    /// Requests that are stuck now.
    pub fn stuck_now(&self) -> usize {
        self.lock_stuck().waiting.len()
    }

    /// Lets go of all requests that are stuck now.
    pub fn release(&self, release: Release) {
        let waiting = {
            let mut stuck = self.lock_stuck();
            stuck.releases += 1;
            stuck.last = Some(release);
            std::mem::take(&mut stuck.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    fn lock_stuck(&self) -> std::sync::MutexGuard<'_, Stuck> {
        self.0.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a release that comes after the first poll.
    pub(super) async fn stuck_until_released(&self) -> Release {
        let mut place = StuckPlace {
            faults: self,
            since: None,
            waker: None,
        };
        std::future::poll_fn(|context| place.poll(context)).await
    }

    fn replace(&self, change: impl FnOnce(&Plan) -> Plan) {
        let mut plan = self.0.plan.lock().unwrap_or_else(PoisonError::into_inner);
        *plan = change(&plan);
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    /// The plan and its number.
    pub(super) fn plan(&self) -> (u64, Plan) {
        let plan = self.0.plan.lock().unwrap_or_else(PoisonError::into_inner);
        (self.generation(), plan.clone())
    }

    /// The number of the plan in force.
    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The seed for the next queue: its own part of the seed given, or nothing.
    pub(super) fn next_queue(&self) -> Option<(u64, u64)> {
        let number = self.0.queues.fetch_add(1, Ordering::Relaxed);
        self.0.seed.map(|seed| (seed, number))
    }
}

/// A request in the list of those that are stuck; it leaves the list when it is dropped.
struct StuckPlace<'a> {
    faults: &'a Faults,
    since: Option<u64>,
    waker: Option<Waker>,
}

impl StuckPlace<'_> {
    fn poll(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Release> {
        let mut stuck = self.faults.lock_stuck();
        let since = *self.since.get_or_insert(stuck.releases);
        if stuck.releases > since {
            self.waker = None;
            return std::task::Poll::Ready(stuck.last.unwrap_or(Release::Proceed));
        }
        forget(&mut stuck.waiting, self.waker.take());
        stuck.waiting.push(context.waker().clone());
        self.waker = Some(context.waker().clone());
        std::task::Poll::Pending
    }
}

impl Drop for StuckPlace<'_> {
    fn drop(&mut self) {
        if let Some(waker) = self.waker.take() {
            forget(&mut self.faults.lock_stuck().waiting, Some(waker));
        }
    }
}

/// Takes one entry of this waker from the list.
fn forget(waiting: &mut Vec<Waker>, waker: Option<Waker>) {
    let place = waker.and_then(|waker| waiting.iter().position(|other| other.will_wake(&waker)));
    if let Some(place) = place {
        waiting.swap_remove(place);
    }
}
