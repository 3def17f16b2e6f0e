//! Slow is broken too: a replica far slower than its peers is taken out, tested, and let back in, or given
//! up.
//!
//! What is compared is requests that go to several replicas at once, so that all are asked the same. At the
//! end of each window the mean of a replica is held against the median of the others. All slow is nobody
//! slow; a window in which a replica was short of resources says nothing about it, nor do the next ones.
//! Invariants:
//!
//! - A replica is taken out only while `min_in_sync` of the others are in sync and live, one at least.
//! - A replica is given up only for times that it was in sync, or that a resync did not get further than any
//!   before: what only a resync makes slow is brought back by and by.
//! - A replica that was taken out comes back only after a test that it passed, or when fewer than
//!   `min_in_sync` are left: slow is better than none.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use arrayvec::ArrayVec;
use pollux_device::{IoError, Request};
use pollux_reactor::{Instant, Reactor, sleep, timeout};
use uuid::Uuid;

use super::Core;
use super::connection::{Connection, clock};
use super::read::memory;
use crate::members::Failed;
use crate::membership::{REPLICAS_MAX, SlotNumber, SlotSet};

/// Requests in a window that are too few to say anything.
const SAMPLES_MIN: u64 = 4;

/// Windows after one in which a replica was short of resources that say nothing about it either.
const EXCUSED_WINDOWS: u32 = 5;

/// Times taken out that are remembered.
const OUTS_KEPT: usize = 16;

/// Requests of one test, of each kind.
const TEST_REQUESTS: u32 = 4;

/// The pause between tests is doubled after each one that failed, so often at most.
const TEST_DOUBLINGS_MAX: u32 = 5;

/// When a replica is too slow, and what becomes of it.
#[derive(Debug, Clone)]
pub struct SlowOptions {
    /// It takes so many times as long as its peers. 0 for never.
    pub factor: u32,
    /// However fast its peers are: who takes no longer than this is not slow.
    pub floor: Duration,
    /// How long requests are counted before they are judged.
    pub window: Duration,
    /// So many windows, one after the other, take it out.
    pub windows: u32,
    /// The pause before a replica that is out is tested.
    pub test_pause: Duration,
    /// Taken out more often than this within [`SlowOptions::outs_within`], it is given up; 15 at most.
    pub outs_max: u32,
    /// See [`SlowOptions::outs_max`].
    pub outs_within: Duration,
}

impl Default for SlowOptions {
    fn default() -> Self {
        Self {
            factor: 10,
            floor: Duration::from_millis(20),
            window: Duration::from_secs(1),
            windows: 3,
            test_pause: Duration::from_secs(10),
            outs_max: 5,
            outs_within: Duration::from_secs(3600),
        }
    }
}

/// How fast a replica is, compared with its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// As fast as the others, as far as is known.
    #[default]
    Well,
    /// Far slower than the others, for so many windows.
    Slow(u32),
    /// Taken out for it, and tested now and then.
    Out {
        /// When it is tested next.
        test_at: Instant,
        /// Tests that it has failed.
        failed_tests: u32,
    },
    /// Taken out again and again: it stays out until it is replaced, or the volume is opened anew.
    GivenUp,
}

/// What is known of the replica in a slot.
#[derive(Debug, Clone, Default)]
struct Slot {
    id: Option<Uuid>,
    pace: Pace,
    outs: ArrayVec<Instant, OUTS_KEPT>,
    /// Answers of this window, and the time that they took.
    done: u64,
    sum_ns: u64,
    /// Answers that were counted when the window before ended, and are counted on in this one.
    seen: u64,
    /// Requests under way, and the sum of the times when they were sent, both as numbers that wrap.
    pending: u64,
    sent_ns: u64,
    /// It was short of resources in this window.
    is_short: bool,
    /// Windows that say nothing about it yet, since it was short of resources.
    excused: u32,
    /// Of the newest window that says something.
    mean: Option<Duration>,
    /// In that window it has answered nothing at all.
    is_mute: bool,
    /// The fewest regions that it has missed since it is out of the set, as far as a resync has come that it
    /// was too slow for.
    missed_min: Option<u64>,
}

impl Slot {
    /// The mean of the window that ends; begins another one.
    fn end_window(&mut self, now: Instant, window: Duration) -> Option<Duration> {
        // What is under way counts with its age, or who never answers would never be slow. What was sent
        // after
        // `now` has none: a turn of a busy machine is long.
        let ages_ns = self
            .pending
            .wrapping_mul(now.as_nanos())
            .wrapping_sub(self.sent_ns);
        let ages_ns = u64::try_from(ages_ns.cast_signed()).unwrap_or(0);
        let samples = self.done + self.pending;
        let sum_ns = self.sum_ns.saturating_add(ages_ns);
        // Who has not answered for a whole window says enough with one request.
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let is_silent = self.pending > 0 && ages_ns / self.pending >= window_ns;
        let says_something = (samples >= SAMPLES_MIN || is_silent) && !self.is_short && self.excused == 0;
        let is_excused = self.is_short || self.excused > 0;
        self.excused = match self.is_short {
            true => EXCUSED_WINDOWS,
            false => self.excused.saturating_sub(1),
        };
        if is_excused && matches!(self.pace, Pace::Slow(_)) {
            self.pace = Pace::Well;
        }
        if says_something {
            self.is_mute = self.done == 0;
        }
        if says_something || is_excused {
            (self.done, self.sum_ns, self.is_short) = (0, 0, false);
        }
        says_something.then(|| Duration::from_nanos(sum_ns / samples.max(1)))
    }
}

/// Who of those that have a mean is far slower than the others, which have one of this window, or an
/// earlier one.
fn slow_ones(
    means: &[Option<Duration>; REPLICAS_MAX],
    peers: &[Option<Duration>; REPLICAS_MAX],
    factor: u32,
    floor: Duration,
) -> SlotSet {
    let is_slow = |slot: SlotNumber| {
        let mut others: ArrayVec<Duration, REPLICAS_MAX> = SlotNumber::all()
            .zip(peers)
            .filter(|(other, _)| *other != slot)
            .filter_map(|(_, mean)| *mean)
            .collect();
        others.sort_unstable();
        // Of two in the middle the slower one: the doubt is in favour of the replica.
        let median = others.get(others.len() / 2).copied();
        let mean = means.get(slot.index()).copied().flatten();
        match (mean, median) {
            (Some(mean), Some(median)) => mean > floor && mean > median.saturating_mul(factor),
            _ => false,
        }
    };
    SlotNumber::all().filter(|slot| is_slow(*slot)).collect()
}

/// How fast all replicas are.
#[derive(Debug, Default)]
pub(super) struct Paces(RefCell<[Slot; REPLICAS_MAX]>);

/// A request on its way to a replica, which counts until it is dropped.
pub(super) struct Timed {
    paces: Rc<Paces>,
    slot: SlotNumber,
    sent_at: Instant,
}

impl Paces {
    fn with<T>(&self, slot: SlotNumber, act: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.0.borrow_mut().get_mut(slot.index()).map(act)
    }

    fn pace(&self, slot: SlotNumber) -> Pace {
        self.with(slot, |slot| slot.pace).unwrap_or_default()
    }

    /// A request is sent.
    pub(super) fn send(self: &Rc<Self>, slot: SlotNumber, sent_at: Instant) -> Timed {
        self.with(slot, |slot| {
            slot.pending += 1;
            slot.sent_ns = slot.sent_ns.wrapping_add(sent_at.as_nanos());
        });
        Timed {
            paces: self.clone(),
            slot,
            sent_at,
        }
    }
}

impl Timed {
    /// It is answered.
    pub(super) fn answer<T>(&self, result: &Result<T, IoError>) {
        let took = Reactor::current().now().saturating_since(self.sent_at);
        self.paces.with(self.slot, |slot| match result {
            Ok(_) => {
                slot.done += 1;
                let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                slot.sum_ns = slot.sum_ns.saturating_add(took_ns);
            }
            Err(IoError::ResourceShortage | IoError::NotReady | IoError::CapacityExceeded) => {
                slot.is_short = true;
            }
            Err(_) => {}
        });
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let sent_ns = self.sent_at.as_nanos();
        self.paces.with(self.slot, |slot| {
            slot.pending = slot.pending.saturating_sub(1);
            slot.sent_ns = slot.sent_ns.wrapping_sub(sent_ns);
        });
    }
}

/// Judges replicas at the end of each window; runs as long as the target.
pub(super) async fn watch(core: Rc<Core>) {
    if core.options.slow.factor == 0 {
        return;
    }
    loop {
        // Without requests there is nothing to judge, and nothing to wake up for.
        core.sending
            .until(|| (!core.is_idle.get() || core.stopped().is_some()).then_some(()))
            .await;
        sleep(core.options.slow.window).await;
        if core.stopped().is_some() {
            return;
        }
        core.judge_paces();
    }
}

/// What is to be done about a replica that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Return {
    /// It may come back.
    Now,
    /// After a test.
    Test,
    /// Not yet.
    Later,
}

impl Core {
    /// How fast the replica in a slot is.
    pub(super) fn pace(&self, slot: SlotNumber) -> (Pace, Option<Duration>) {
        let found = self.paces.with(slot, |slot| (slot.pace, slot.mean));
        found.unwrap_or_default()
    }

    fn judge_paces(&self) {
        // Requests are sent by the clock, which has gone on since the turn of the reactor began.
        let (now, options) = (clock(), &self.options.slow);
        let (record, live) = {
            let members = self.members.borrow();
            (members.record().clone(), members.live())
        };
        let mut means = [None; REPLICAS_MAX];
        let mut is_quiet = true;
        for (slot, mean) in SlotNumber::all().zip(&mut means) {
            let id = record.replica(slot).map(|entry| entry.id);
            *mean = self.paces.with(slot, |slot| {
                if slot.id != id {
                    // Another replica has its place. What is under way is still given back.
                    *slot = Slot {
                        id,
                        pending: slot.pending,
                        sent_ns: slot.sent_ns,
                        ..Slot::default()
                    };
                }
                is_quiet &= slot.done == slot.seen && slot.pending == 0;
                let mean = slot.end_window(now, options.window);
                slot.seen = slot.done;
                mean
            });
            let mean = mean.as_mut().and_then(|mean| *mean);
            if let Some(mean) = mean.filter(|_| live.contains(slot)) {
                self.paces.with(slot, |slot| slot.mean = Some(mean));
            }
        }
        let mut of_live = [None; REPLICAS_MAX];
        let mut peers = [None; REPLICAS_MAX];
        for slot in live.iter() {
            let mean = means.get(slot.index()).copied().flatten().flatten();
            if let Some(place) = of_live.get_mut(slot.index()) {
                *place = mean;
            }
            // One that has answered all it was asked is as fast as it was.
            let known = self
                .paces
                .with(slot, |slot| slot.mean.filter(|_| slot.pending == 0));
            if let Some(place) = peers.get_mut(slot.index()) {
                *place = mean.or(known.flatten());
            }
        }
        self.is_idle.set(is_quiet);
        let slow = slow_ones(&of_live, &peers, options.factor, options.floor);
        let mut marked = SlotSet::EMPTY;
        for (slot, mean) in SlotNumber::all().zip(of_live) {
            let Some(mean) = mean else { continue };
            let windows = match (self.paces.pace(slot), slow.contains(slot)) {
                (Pace::Slow(windows), true) => windows.saturating_add(1),
                (Pace::Well, true) => 1,
                (Pace::Slow(_), false) => 0,
                (Pace::Well, false) | (Pace::Out { .. } | Pace::GivenUp, _) => continue,
            };
            if windows == 0 {
                tracing::info!(
                    volume = %record.volume, slot = slot.index(), ?mean,
                    "replica is as fast as others again"
                );
                self.paces.with(slot, |slot| slot.pace = Pace::Well);
                continue;
            }
            if windows == 1 {
                tracing::warn!(
                    volume = %record.volume, slot = slot.index(), ?mean,
                    "replica is far slower than others"
                );
            }
            self.paces.with(slot, |slot| slot.pace = Pace::Slow(windows));
            marked.insert(slot);
            if windows >= options.windows && self.may_do_without(slot) {
                self.take_out(slot, mean, now);
            }
        }
        self.slow.set(marked);
    }

    /// Whether enough others are in sync and live.
    fn may_do_without(&self, slot: SlotNumber) -> bool {
        let members = self.members.borrow();
        let record = members.record();
        let mut others = members.readable();
        others.remove(slot);
        let needed = usize::from(record.min_in_sync).max(1);
        !members.is_proposing() && others.len() >= needed
    }

    fn take_out(&self, slot: SlotNumber, mean: Duration, now: Instant) {
        let was_syncing = self.members.borrow().syncing() == Some(slot);
        if self.fail(slot) != Failed::Out {
            return;
        }
        // Silence is no slowness: who is heard of again comes back like any other that had failed.
        let is_mute = self.paces.with(slot, |slot| std::mem::take(&mut slot.is_mute));
        if is_mute == Some(true) {
            self.paces.with(slot, |slot| slot.pace = Pace::Well);
            return;
        }
        self.count(|counters| counters.slow += 1);
        let options = &self.options.slow;
        let missed = self.regions.borrow().missed(slot);
        let pace = self.paces.with(slot, |found| {
            found
                .outs
                .retain(|at| now.saturating_since(*at) < options.outs_within);
            if found.outs.is_full() {
                found.outs.remove(0);
            }
            // What a resync makes slow gets to its end by and by, as long as each attempt gets further than
            // all before.
            let has_come_further = was_syncing && found.missed_min.is_some_and(|least| missed < least);
            match has_come_further {
                true => found.missed_min = Some(missed),
                false => found.outs.push(now),
            }
            found.pace = match found.outs.len() > options.outs_max as usize {
                true => Pace::GivenUp,
                false => Pace::Out {
                    test_at: now + options.test_pause,
                    failed_tests: 0,
                },
            };
            found.pace
        });
        let is_given_up = pace == Some(Pace::GivenUp);
        tracing::warn!(
            volume = %self.volume(), slot = slot.index(), ?mean, is_given_up,
            "slow replica taken out"
        );
    }

    /// Whether a replica that is out may come back.
    pub(super) fn returning(&self, slot: SlotNumber) -> Return {
        let is_needed = self.members.borrow().is_short();
        match self.paces.pace(slot) {
            Pace::Well | Pace::Slow(_) => Return::Now,
            Pace::Out { .. } | Pace::GivenUp if is_needed => {
                self.paces.with(slot, |slot| slot.pace = Pace::Well);
                Return::Now
            }
            Pace::Out { test_at, .. } if test_at <= Reactor::current().now() => Return::Test,
            Pace::Out { .. } | Pace::GivenUp => Return::Later,
        }
    }

    /// A resync of a replica begins, that misses so many regions.
    pub(super) fn resync_begins(&self, slot: SlotNumber, missed: u64) {
        self.paces
            .with(slot, |slot| slot.missed_min = slot.missed_min.or(Some(missed)));
    }

    /// A replica is out, for whatever reason: windows of before and of later do not follow on each other.
    pub(super) fn forget_slowness(&self, slot: SlotNumber) {
        self.paces.with(slot, |slot| {
            if matches!(slot.pace, Pace::Slow(_)) {
                slot.pace = Pace::Well;
            }
        });
    }

    /// A replica has all that it had missed.
    pub(super) fn resync_ended(&self, slot: SlotNumber) {
        self.paces.with(slot, |slot| slot.missed_min = None);
    }

    /// Tests a replica that was taken out for being slow: whether it may come back.
    pub(super) async fn test(&self, slot: SlotNumber) -> bool {
        let took = self.time_requests(slot).await;
        let now = Reactor::current().now();
        let options = &self.options.slow;
        let live = self.members.borrow().live();
        let peers = live.iter().filter_map(|peer| self.pace(peer).1);
        // As slow as the slowest of its peers is fast enough.
        let limit = peers.max().unwrap_or_default().saturating_mul(options.factor);
        let limit = limit.max(options.floor);
        let is_well = took.is_some_and(|took| took <= limit);
        self.paces.with(slot, |slot| {
            if let Pace::Out { failed_tests, .. } = slot.pace {
                let doublings = failed_tests.min(TEST_DOUBLINGS_MAX);
                slot.pace = match is_well {
                    true => Pace::Well,
                    false => Pace::Out {
                        test_at: now + options.test_pause.saturating_mul(1 << doublings),
                        failed_tests: failed_tests.saturating_add(1),
                    },
                };
            }
        });
        tracing::info!(
            volume = %self.volume(), slot = slot.index(), ?took, ?limit, is_well,
            "slow replica tested"
        );
        is_well
    }

    /// The mean time of a few requests to a replica that takes no part in anything; `None` if one failed.
    async fn time_requests(&self, slot: SlotNumber) -> Option<Duration> {
        let port = self.port(slot)?;
        let record = self.members.borrow().record().clone();
        let options = &self.options;
        let connection = Connection::establish(&port, &record, slot, options.promise_timeout).await;
        let (connection, _) = connection.ok()?;
        let bytes = self.geometry.get().block_bytes as usize;
        let began = clock();
        let mut requests = 0;
        for _ in 0..TEST_REQUESTS {
            let into = memory(bytes);
            let read = connection.send(Request::Read { block: 0, into }, options.request_timeout);
            read.await.ok()?;
            requests += 1;
            // The record is what a replica may be given at any time, if it has one; and it is forced to the
            // medium.
            if connection.has_record {
                let written = timeout(options.request_timeout, connection.area.write_record(&record));
                written.await.ok()?.ok()?;
                requests += 1;
            }
        }
        Some(clock().saturating_since(began) / requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn means(ms: &[Option<u64>]) -> [Option<Duration>; REPLICAS_MAX] {
        let mut means = [None; REPLICAS_MAX];
        for (mean, ms) in means.iter_mut().zip(ms) {
            *mean = ms.map(Duration::from_millis);
        }
        means
    }

    #[test]
    fn slow_is_who_is_far_slower_than_most_others() {
        let cases: &[(&[Option<u64>], &[usize])] = &[
            (&[Some(1), Some(100)], &[1]),
            (&[Some(1), Some(2), Some(100)], &[2]),
            // Slower by less than the factor, and faster than the floor.
            (&[Some(30), Some(100)], &[]),
            (&[Some(1), Some(19)], &[]),
            (&[Some(0), Some(19), Some(1)], &[]),
            // All, or half of the others, are slow.
            (&[Some(500), Some(500), Some(500)], &[]),
            (&[Some(1), Some(100), Some(100)], &[]),
            (&[Some(1), Some(1), Some(1), Some(200), Some(100)], &[3, 4]),
            // There is nobody to compare with.
            (&[Some(1000)], &[]),
            (&[Some(1000), None, None], &[]),
        ];
        for (found, slow) in cases {
            let judged = slow_ones(&means(found), &means(found), 10, Duration::from_millis(20));
            let judged: Vec<usize> = judged.iter().map(|slot| slot.index()).collect();
            assert_eq!(judged, *slow, "{found:?}");
        }
    }

    #[test]
    fn a_window_counts_what_is_under_way_by_its_age() {
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut slot = Slot {
            pending: 4,
            sent_ns: 4 * at(100).as_nanos(),
            ..Slot::default()
        };
        assert_eq!(slot.end_window(at(1100), WINDOW), Some(Duration::from_secs(1)));
        slot.done = 4;
        slot.sum_ns = 4_000_000;
        assert_eq!(
            slot.end_window(at(1100), WINDOW),
            Some(Duration::from_micros(500_500))
        );
        // Too few go on counting; who was short of resources is not judged.
        let mut slot = Slot {
            done: 3,
            sum_ns: 3000,
            ..Slot::default()
        };
        assert_eq!(slot.end_window(at(1), WINDOW), None);
        slot.done += 1;
        slot.sum_ns += 1000;
        assert_eq!(slot.end_window(at(2), WINDOW), Some(Duration::from_micros(1)));
        slot.done = 100;
        slot.is_short = true;
        assert_eq!(
            (slot.end_window(at(3), WINDOW), slot.done, slot.is_short),
            (None, 0, false)
        );
    }

    #[test]
    fn what_was_sent_since_the_turn_began_has_no_age() {
        let at = |us: u64| Instant::from_nanos(us * 1000);
        let mut slot = Slot {
            done: 4,
            sum_ns: 4_000_000,
            pending: 4,
            sent_ns: 4 * at(100_300).as_nanos(),
            ..Slot::default()
        };
        assert_eq!(
            slot.end_window(at(100_000), WINDOW),
            Some(Duration::from_micros(500))
        );
        // Alone it says nothing that would be slow, nor that nobody answers.
        let mut slot = Slot {
            pending: 1,
            sent_ns: at(100_300).as_nanos(),
            ..Slot::default()
        };
        assert_eq!(slot.end_window(at(100_000), WINDOW), None);
    }

    #[test]
    fn what_is_dropped_counts_no_more() {
        let paces = Rc::new(Paces::default());
        let slot = SlotNumber::all().next().unwrap();
        let sent = paces.send(slot, Instant::from_nanos(7));
        assert_eq!(
            paces.with(slot, |slot| (slot.pending, slot.sent_ns)),
            Some((1, 7))
        );
        drop(sent);
        assert_eq!(
            paces.with(slot, |slot| (slot.pending, slot.sent_ns)),
            Some((0, 0))
        );
    }
}
