//! What all reactors share of a backend, and of each volume that has its data there.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use pollux_reactor::Instant;

use super::bound::{Bound, Counts};
use crate::qos::limits::WEIGHT_DEFAULT;
use crate::qos::plan::Cost;

/// Bytes of one unit of cost.
const UNIT_BYTES: u64 = 512;

/// What an operation costs besides its bytes: as much as 4 KiB.
const OPERATION_UNITS: u64 = 8;

/// Virtual time of one unit of cost at a weight of 1: the smallest request at the largest weight is still
/// told from one that is 1 % larger. It lasts for years at weights of 100; after that order is by chance.
const TIME_PER_UNIT: u64 = 1 << 17;

/// The virtual time in which as much begins as may be outstanding is that of so many leads.
const LEADS_PER_BOUND: u64 = 2;

/// A volume that has not asked for so long is not there, as far as others are concerned.
const ACTIVE_SPAN: Duration = Duration::from_millis(50);

/// How often it is looked who is there, and whether the bound is right.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A port without anything that waits.
pub(super) const NO_HEAD: u64 = u64::MAX;

/// A point in the virtual time of a backend.
pub(super) type Tag = u64;

/// The cost of a request.
pub(super) fn units(cost: &Cost) -> u64 {
    cost.operations * OPERATION_UNITS + cost.bytes / UNIT_BYTES
}

/// A volume as one of those that share a backend.
#[derive(Debug)]
pub(crate) struct Member {
    /// How often something was changed, and in the lowest bit whether it takes part.
    stamp: AtomicU64,
    /// The weight that was set, or 0.
    told: AtomicU32,
    is_lifted: AtomicBool,
    backend: Mutex<Option<Arc<Backend>>>,
    /// When its next request may begin, in virtual time.
    tag: AtomicU64,
    /// When it asked last, to some milliseconds; in nanoseconds.
    active_at: AtomicU64,
}

impl Default for Member {
    fn default() -> Self {
        Self {
            stamp: AtomicU64::new(0),
            told: AtomicU32::new(0),
            is_lifted: AtomicBool::new(false),
            backend: Mutex::new(None),
            tag: AtomicU64::new(0),
            active_at: AtomicU64::new(0),
        }
    }
}

impl Member {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Backend>>> {
        // One value, replaced as a whole.
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often something was changed, and in the lowest bit whether it takes part.
    #[inline]
    pub(super) fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn takes_part(&self) -> bool {
        self.stamp() & 1 == 1
    }

    /// The backend, if it takes part, as of the stamp.
    pub(super) fn current(&self) -> (u64, Option<Arc<Backend>>) {
        let stamp = self.stamp.load(Ordering::Acquire);
        (stamp, self.lock().clone().filter(|_| stamp & 1 == 1))
    }

    /// The backend is another one from now on.
    pub(crate) fn join(self: &Arc<Self>, backend: Option<&Arc<Backend>>) {
        let mut current = self.lock();
        let is_same = match (current.as_ref(), backend) {
            (Some(current), Some(backend)) => Arc::ptr_eq(current, backend),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_same {
            return;
        }
        if let Some(before) = std::mem::replace(&mut *current, backend.cloned()) {
            before.leave(self);
        }
        self.tag.store(0, Ordering::Relaxed);
        self.change(false);
        if let Some(backend) = backend {
            backend.lock().push(Arc::downgrade(self));
            backend.review();
        }
    }

    /// Sets a weight, or none. What its requests have paid is void if it is another one.
    pub(crate) fn set_weight(&self, weight: Option<u32>) {
        let told = weight.unwrap_or(0);
        let current = self.lock();
        if self.told.swap(told, Ordering::Relaxed) == told {
            return;
        }
        if let Some(backend) = current.as_ref() {
            self.tag.fetch_min(backend.time(), Ordering::Relaxed);
            self.change(self.takes_part());
            backend.review();
        }
    }

    /// Whether it passes whatever others do.
    pub(crate) fn set_lifted(&self, is_lifted: bool) {
        let current = self.lock();
        let before = self.is_lifted.swap(is_lifted, Ordering::Relaxed);
        if let Some(backend) = current.as_ref().filter(|_| before != is_lifted) {
            backend.review();
        }
    }

    fn change(&self, takes_part: bool) {
        let next = |stamp: u64| Some(((stamp >> 1) + 1) << 1 | u64::from(takes_part));
        let _ = self.stamp.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    fn weight(&self) -> u64 {
        match self.told.load(Ordering::Relaxed) {
            0 => u64::from(WEIGHT_DEFAULT),
            told => u64::from(told),
        }
    }

    /// Pays for a request: when it may begin, and what was paid.
    pub(super) fn pay(&self, time: Tag, units: u64) -> (Tag, u64) {
        let paid = units.saturating_mul(TIME_PER_UNIT) / self.weight();
        let mut tag = self.tag.load(Ordering::Relaxed);
        loop {
            let begin = tag.max(time);
            let after = begin.saturating_add(paid).min(NO_HEAD - 1);
            match self
                .tag
                .compare_exchange_weak(tag, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return (begin.min(NO_HEAD - 1), paid),
                Err(newer) => tag = newer,
            }
        }
    }

    /// Gives back what was paid for a request that does not begin.
    pub(super) fn give_back(&self, paid: u64) {
        let back = |tag: u64| Some(tag.saturating_sub(paid));
        let _ = self.tag.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }

    /// It asks now.
    pub(super) fn mark(&self, now: Instant) {
        self.active_at.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    fn is_active(&self, now: Instant) -> bool {
        let active_at = self.active_at.load(Ordering::Relaxed);
        active_at > 0 && now.saturating_since(Instant::from_nanos(active_at)) <= ACTIVE_SPAN
    }
}

/// What ports tell each other.
#[derive(Debug)]
pub(super) struct Door {
    /// The least tag of what waits there, or [`NO_HEAD`].
    pub(super) head: AtomicU64,
    /// Wakes the port.
    pub(super) waker: AtomicWaker,
    // Written by the reactor of the port alone.
    done: AtomicU64,
    sampled: AtomicU64,
    sampled_cost: AtomicU64,
    sampled_cost_ns: AtomicU64,
}

impl Door {
    fn new() -> Self {
        Self {
            head: AtomicU64::new(NO_HEAD),
            waker: AtomicWaker::new(),
            done: AtomicU64::new(0),
            sampled: AtomicU64::new(0),
            sampled_cost: AtomicU64::new(0),
            sampled_cost_ns: AtomicU64::new(0),
        }
    }

    /// Counts what is done; `took` if it is sampled.
    pub(super) fn count(&self, units: u64, took: Option<Duration>) {
        let add = |counter: &AtomicU64, more: u64| {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
            counter.store(sum, Ordering::Relaxed);
        };
        add(&self.done, units);
        if let Some(took) = took {
            let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            add(&self.sampled, 1);
            add(&self.sampled_cost, units);
            add(&self.sampled_cost_ns, took_ns.wrapping_mul(units));
        }
    }

    fn read(&self) -> Counts {
        Counts {
            done: self.done.load(Ordering::Relaxed),
            sampled: self.sampled.load(Ordering::Relaxed),
            sampled_cost: self.sampled_cost.load(Ordering::Relaxed),
            sampled_cost_ns: self.sampled_cost_ns.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Default)]
struct Doors {
    present: Arc<[Arc<Door>]>,
    /// Of doors that are gone.
    before: Counts,
}

/// What several volumes have their data on, and share by weight: a pool, say.
#[derive(Debug)]
pub struct Backend {
    name: String,
    members: Mutex<Vec<Weak<Member>>>,
    doors: Mutex<Doors>,
    doors_changes: AtomicU64,
    /// The cost of what is at the backend.
    outstanding: AtomicU64,
    /// How much may be.
    bound: AtomicU64,
    /// Virtual time: the largest tag that has begun.
    time: AtomicU64,
    /// A port may be ahead of others by this much virtual time, so that they need not hand each request over.
    lead: AtomicU64,
    /// Ports where something waits.
    waiting: AtomicU64,
    /// Whether two volumes or more ask. With only one nothing is counted and nothing held.
    is_contended: AtomicBool,
    /// What begins from now on is sampled.
    is_sampling: AtomicBool,
    looked_at: AtomicU64,
    /// Only ever tried on the path.
    adaptive: Mutex<Bound>,
}

impl Backend {
    /// A backend, which goes by a name in logs.
    pub fn new(name: &str) -> Arc<Self> {
        let adaptive = Bound::default();
        Arc::new(Self {
            name: name.to_owned(),
            members: Mutex::default(),
            doors: Mutex::default(),
            doors_changes: AtomicU64::new(0),
            outstanding: AtomicU64::new(0),
            bound: AtomicU64::new(adaptive.current()),
            time: AtomicU64::new(0),
            lead: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            is_contended: AtomicBool::new(false),
            is_sampling: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            adaptive: Mutex::new(adaptive),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What may be outstanding at a time, in units of 512 bytes; an operation counts as 8 of them besides
    /// its bytes.
    pub fn bound(&self) -> u64 {
        self.bound.load(Ordering::Relaxed)
    }

    /// What is outstanding, in the same units, as far as it counts.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Member>>> {
        // Members that are gone are left out by whoever reads.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, member: &Arc<Member>) {
        self.lock()
            .retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(member)));
        self.review();
    }

    /// All take part if one of them has a weight, but for those that pass whatever others do.
    fn review(&self) {
        let mut members = self.lock();
        members.retain(|member| member.strong_count() > 0);
        let present: Vec<_> = members.iter().filter_map(Weak::upgrade).collect();
        let is_lifted = |member: &Member| member.is_lifted.load(Ordering::Relaxed);
        let is_weighted = present
            .iter()
            .any(|member| member.told.load(Ordering::Relaxed) > 0 && !is_lifted(member));
        for member in &present {
            let takes_part = is_weighted && !is_lifted(member);
            if member.takes_part() != takes_part {
                member.change(takes_part);
            }
        }
        drop(members);
    }

    /// Virtual time, for those who pay: less than what has begun by what ports may be ahead of each other, so
    /// that whoever is behind by no more loses nothing, and one that was away has no more credit than that.
    pub(super) fn time(&self) -> Tag {
        self.time.load(Ordering::Relaxed).saturating_sub(2 * self.lead())
    }

    /// Something with this tag begins.
    pub(super) fn begins(&self, tag: Tag) {
        if self.time.load(Ordering::Relaxed) < tag {
            self.time.fetch_max(tag, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn is_contended(&self) -> bool {
        self.is_contended.load(Ordering::Relaxed)
    }

    pub(super) fn is_sampling(&self) -> bool {
        self.is_sampling.load(Ordering::Relaxed)
    }

    pub(super) fn lead(&self) -> Tag {
        self.lead.load(Ordering::Relaxed)
    }

    // The following are in one order with what ports tell of their heads: whoever waits tells so and then
    // looks for room, whoever makes room does so and then looks who waits. One of them sees the other.

    pub(super) fn has_room(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) < self.bound()
    }

    pub(super) fn take(&self, units: u64) {
        self.outstanding.fetch_add(units, Ordering::SeqCst);
    }

    pub(super) fn give(&self, units: u64) {
        self.outstanding.fetch_sub(units, Ordering::SeqCst);
    }

    pub(super) fn is_anyone_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Whether a port waits besides the one that asks, which waits or not.
    pub(super) fn is_anyone_else_waiting(&self, and_self: bool) -> bool {
        self.waiting.load(Ordering::SeqCst) > u64::from(and_self)
    }

    pub(super) fn began_to_wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn ended_to_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn add_door(&self) -> Arc<Door> {
        let door = Arc::new(Door::new());
        let mut doors = self.doors();
        let more = std::iter::once(door.clone());
        doors.present = doors.present.iter().cloned().chain(more).collect();
        self.doors_changes.fetch_add(1, Ordering::SeqCst);
        door
    }

    pub(super) fn remove_door(&self, door: &Arc<Door>) {
        if door.head.swap(NO_HEAD, Ordering::SeqCst) != NO_HEAD {
            self.ended_to_wait();
        }
        let mut doors = self.doors();
        let others = doors.present.iter().filter(|other| !Arc::ptr_eq(other, door));
        doors.present = others.cloned().collect();
        doors.before.add(&door.read());
        self.doors_changes.fetch_add(1, Ordering::SeqCst);
    }

    fn doors(&self) -> MutexGuard<'_, Doors> {
        // Each change is one assignment.
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn doors_changes(&self) -> u64 {
        self.doors_changes.load(Ordering::SeqCst)
    }

    pub(super) fn present_doors(&self) -> Arc<[Arc<Door>]> {
        self.doors().present.clone()
    }

    /// Looks who is there and how much may be outstanding, unless somebody just has.
    pub(super) fn look(&self, now: Instant) {
        let looked_at = Instant::from_nanos(self.looked_at.load(Ordering::Relaxed));
        if now.saturating_since(looked_at) < LOOK_INTERVAL {
            return;
        }
        let Some(mut adaptive) = tried(self.adaptive.try_lock()) else {
            return;
        };
        let Some(members) = tried(self.members.try_lock()) else {
            return;
        };
        self.looked_at.store(now.as_nanos(), Ordering::Relaxed);
        let (mut active, mut weight) = (0, 0);
        for member in members.iter().filter_map(Weak::upgrade) {
            if member.takes_part() && member.is_active(now) {
                active += 1;
                weight += member.weight();
            }
        }
        drop(members);
        let is_contended = active > 1;
        self.is_contended.store(is_contended, Ordering::Relaxed);
        let Some(doors) = tried(self.doors.try_lock()) else {
            return;
        };
        let mut counts = doors.before;
        doors.present.iter().for_each(|door| counts.add(&door.read()));
        drop(doors);
        adaptive.look(now, &counts, is_contended && self.is_anyone_waiting());
        let bound = adaptive.current();
        self.is_sampling.store(adaptive.is_sampling(), Ordering::Relaxed);
        self.bound.store(bound, Ordering::SeqCst);
        let lead = bound.saturating_mul(TIME_PER_UNIT) / (LEADS_PER_BOUND * weight.max(1));
        self.lead.store(lead, Ordering::Relaxed);
    }
}

/// What a lock guards, unless somebody has it.
fn tried<T>(result: Result<T, TryLockError<T>>) -> Option<T> {
    match result {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
