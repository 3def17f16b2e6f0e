//! What one reactor holds for a backend, in the order of its tags.
//!
//! A *flow* is the queue pair of a volume on this reactor. Its first request has paid and has a tag; the
//! others stand behind it in their order.
//!
//! Invariants:
//! - An entry is in the queue of exactly one flow, or it is granted.
//! - Each flow with entries has one valid place in `heads`.
//! - Nothing is woken, dropped or submitted while the state is borrowed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use pollux_device::Request;
use pollux_reactor::Instant;
use slab::Slab;

use super::backend::{Backend, Door, Member, NO_HEAD, Tag};

/// Requests of a volume that are held on one reactor, at most; one more is told that resources are short.
const HELD_MAX: usize = 1 << 16;

/// Invalid places in `heads`, at most, besides twice as many as there are flows.
const INVALID_HEADS_MAX: usize = 64;

/// A port that is to take its turn, and has not for so long, is not waited for.
pub(super) const LATE_SPAN: Duration = Duration::from_millis(5);

/// A volume of which nothing was done for so long, though it has requests at the backend, is stuck: they do
/// not count any more, nor do others of it until one is done.
const STUCK_SPAN: Duration = Duration::from_millis(500);

/// A request that is held, or granted and not begun yet.
pub(super) struct Entry {
    pub(super) request: Request,
    pub(super) since: Instant,
    pub(super) flow: usize,
    units: u64,
    pub(super) granted: Option<Granted>,
    pub(super) waker: Option<Waker>,
}

/// What a request has taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    /// All that it costs.
    pub(super) units: u64,
    /// What of that is outstanding.
    pub(super) counted: u64,
    /// What is outstanding of an older generation was written off.
    pub(super) generation: u32,
}

struct Flow {
    member: Arc<Member>,
    stamp: u64,
    entries: VecDeque<usize>,
    /// Of the first entry.
    tag: Tag,
    paid: u64,
    /// Marks its valid place in `heads`.
    turn: u64,
    outstanding: u64,
    generation: u32,
    /// When something of it was done, or it began to have something at the backend.
    progress_at: Instant,
    is_stuck: bool,
}

/// The first of a flow.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    tag: Tag,
    turn: u64,
    flow: usize,
}

/// See the module.
pub(super) struct Turns {
    backend: Arc<Backend>,
    door: Arc<Door>,
    flows: Slab<Flow>,
    entries: Slab<Entry>,
    heads: BinaryHeap<Reverse<Head>>,
    turns: u64,
    /// What others were told of the least tag here.
    told: Tag,
    doors: Arc<[Arc<Door>]>,
    doors_changes: u64,
    /// The least tag of others that are to go first, and since when it is the same.
    waited_for: Option<(Tag, Instant)>,
    /// Granted, and to be woken when the state is not borrowed any more.
    pub(super) woken: Vec<Waker>,
}

impl Turns {
    pub(super) fn new(backend: Arc<Backend>, door: Arc<Door>) -> Self {
        Self {
            backend,
            door,
            flows: Slab::new(),
            entries: Slab::new(),
            heads: BinaryHeap::new(),
            turns: 0,
            told: NO_HEAD,
            doors: Arc::default(),
            doors_changes: 0,
            waited_for: None,
            woken: Vec::new(),
        }
    }

    pub(super) fn add_flow(&mut self, member: Arc<Member>, stamp: u64, now: Instant) -> usize {
        self.flows.insert(Flow {
            member,
            stamp,
            entries: VecDeque::new(),
            tag: 0,
            paid: 0,
            turn: 0,
            outstanding: 0,
            generation: 0,
            progress_at: now,
            is_stuck: false,
        })
    }

    /// Nobody uses a flow any more.
    pub(super) fn remove_flow(&mut self, flow: usize) {
        if let Some(flow) = self.flows.try_remove(flow) {
            self.backend.give(flow.outstanding);
        }
    }

    /// Whether something is held here, or at the backend.
    pub(super) fn is_busy(&self) -> bool {
        !self.entries.is_empty() || self.flows.iter().any(|(_, flow)| flow.outstanding > 0)
    }

    pub(super) fn has_held(&self, flow: usize) -> bool {
        self.flows.get(flow).is_some_and(|flow| !flow.entries.is_empty())
    }

    /// Has a request begin at once, if nobody waits and there is room.
    pub(super) fn pass(&mut self, key: usize, units: u64, now: Instant) -> Option<Granted> {
        let flow = self.flows.get_mut(key)?;
        let is_free = flow.entries.is_empty() && !self.backend.is_anyone_waiting() && self.backend.has_room();
        if !is_free {
            return None;
        }
        let (tag, _) = flow.member.pay(self.backend.time(), units);
        self.backend.begins(tag);
        Some(count(flow, &self.backend, units, now))
    }

    /// Holds a request; `None` if too many are.
    pub(super) fn hold(&mut self, flow: usize, request: Request, units: u64, now: Instant) -> Option<usize> {
        if self.flows.get(flow)?.entries.len() >= HELD_MAX {
            return None;
        }
        let key = self.entries.insert(Entry {
            request,
            since: now,
            flow,
            units,
            granted: None,
            waker: None,
        });
        let entries = &mut self.flows.get_mut(flow)?.entries;
        entries.push_back(key);
        if entries.len() == 1 {
            self.pay_first(flow);
        }
        Some(key)
    }

    pub(super) fn entry_mut(&mut self, key: usize) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Takes a request out, held or granted.
    pub(super) fn take_out(&mut self, key: usize) -> Option<Entry> {
        let entry = self.entries.try_remove(key)?;
        if entry.granted.is_some() {
            return Some(entry);
        }
        if let Some(flow) = self.flows.get_mut(entry.flow) {
            let at = flow.entries.iter().position(|other| *other == key);
            if let Some(at) = at {
                flow.entries.remove(at);
            }
            if at == Some(0) {
                flow.member.give_back(flow.paid);
                self.pay_first(entry.flow);
            }
        }
        Some(entry)
    }

    /// A request is done, or dropped.
    pub(super) fn end(&mut self, key: usize, granted: &Granted, is_done: bool, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        if flow.generation == granted.generation {
            flow.outstanding -= granted.counted;
            self.backend.give(granted.counted);
        }
        if is_done {
            flow.progress_at = now;
            flow.is_stuck = false;
        }
    }

    /// The first entry of a flow pays; one without entries has no place any more.
    fn pay_first(&mut self, key: usize) {
        // Places that became invalid go when their turn comes, or there are too many of them.
        if self.heads.len() > 2 * self.flows.len() + INVALID_HEADS_MAX {
            let flows = &self.flows;
            self.heads.retain(|Reverse(head)| {
                let flow = flows.get(head.flow);
                flow.is_some_and(|flow| flow.turn == head.turn)
            });
        }
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.turn = 0;
        let Some(first) = flow.entries.front().and_then(|first| self.entries.get(*first)) else {
            return;
        };
        (flow.tag, flow.paid) = flow.member.pay(self.backend.time(), first.units);
        self.turns += 1;
        flow.turn = self.turns;
        self.heads.push(Reverse(Head {
            tag: flow.tag,
            turn: flow.turn,
            flow: key,
        }));
    }

    /// The flow with the least tag.
    fn first(&mut self) -> Option<(Tag, usize)> {
        loop {
            let Reverse(head) = self.heads.peek()?;
            let flow = self.flows.get(head.flow);
            if flow.is_some_and(|flow| flow.turn == head.turn) {
                return Some((head.tag, head.flow));
            }
            self.heads.pop();
        }
    }

    /// The first request of a flow may begin; the next one pays.
    fn grant(&mut self, key: usize, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let Some(first) = flow.entries.pop_front() else {
            return;
        };
        self.backend.begins(flow.tag);
        if let Some(entry) = self.entries.get_mut(first) {
            entry.granted = Some(count(flow, &self.backend, entry.units, now));
            self.woken.extend(entry.waker.take());
        }
        self.pay_first(key);
    }

    /// Grants what may begin; the door of another port that is to go on, if there is one.
    pub(super) fn go_on(&mut self, now: Instant) -> Option<Arc<Door>> {
        loop {
            let first = self.first();
            self.tell(first.map_or(NO_HEAD, |(tag, _)| tag));
            if !self.backend.has_room() {
                return None;
            }
            let other = self.least_other();
            match (first, other) {
                (None, other) => return other.map(|(_, door)| door),
                (Some((tag, _)), Some((least, door)))
                    if least.saturating_add(self.backend.lead()) < tag && !self.is_late(least, now) =>
                {
                    return Some(door);
                }
                (Some((_, flow)), _) => self.grant(flow, now),
            }
        }
    }

    fn tell(&mut self, tag: Tag) {
        let before = std::mem::replace(&mut self.told, tag);
        if before == tag {
            return;
        }
        if before == NO_HEAD {
            self.backend.began_to_wait();
        }
        self.door.head.store(tag, Ordering::SeqCst);
        if tag == NO_HEAD {
            self.backend.ended_to_wait();
        }
    }

    fn least_other(&mut self) -> Option<(Tag, Arc<Door>)> {
        if !self.backend.is_anyone_else_waiting(self.told != NO_HEAD) {
            return None;
        }
        let changes = self.backend.doors_changes();
        if self.doors_changes != changes {
            (self.doors_changes, self.doors) = (changes, self.backend.present_doors());
        }
        let others = self.doors.iter().filter(|door| !Arc::ptr_eq(door, &self.door));
        let heads = others.map(|door| (door.head.load(Ordering::SeqCst), door));
        let least = heads.min_by_key(|(head, _)| *head);
        let least = least.filter(|(head, _)| *head != NO_HEAD);
        least.map(|(head, door)| (head, door.clone()))
    }

    /// Whether a port that is to go first has not gone for too long.
    fn is_late(&mut self, least: Tag, now: Instant) -> bool {
        match self.waited_for {
            Some((tag, since)) if tag == least => now.saturating_since(since) >= LATE_SPAN,
            Some(_) | None => {
                self.waited_for = Some((least, now));
                false
            }
        }
    }

    /// Looks what has changed: weights, who takes part, who is stuck. Volumes with something to do are there.
    pub(super) fn review(&mut self, now: Instant) {
        let is_contended = self.backend.is_contended();
        let keys: Vec<_> = self.flows.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            if flow.outstanding > 0 && now.saturating_since(flow.progress_at) >= STUCK_SPAN {
                self.backend.give(std::mem::take(&mut flow.outstanding));
                flow.generation = flow.generation.wrapping_add(1);
                flow.is_stuck = true;
            }
            if flow.outstanding > 0 || !flow.entries.is_empty() {
                flow.member.mark(now);
            }
            if flow.entries.is_empty() {
                continue;
            }
            let mut takes_part = is_contended;
            if flow.stamp != flow.member.stamp() {
                let (stamp, backend) = flow.member.current();
                flow.stamp = stamp;
                let is_here = backend.is_some_and(|backend| Arc::ptr_eq(&backend, &self.backend));
                match is_here {
                    // What it paid is void.
                    true => self.pay_first(key),
                    false => takes_part = false,
                }
            }
            while !takes_part && self.has_held(key) {
                self.grant(key, now);
            }
        }
    }
}

/// Counts a request of a flow as outstanding.
fn count(flow: &mut Flow, backend: &Backend, units: u64, now: Instant) -> Granted {
    let counted = match flow.is_stuck {
        true => 0,
        false => units,
    };
    if flow.outstanding == 0 {
        flow.progress_at = now;
    }
    flow.outstanding += counted;
    backend.take(counted);
    Granted {
        units,
        counted,
        generation: flow.generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_gives_back_what_it_paid() {
        let backend = Backend::new("drive");
        backend.take(1 << 30);
        let mut turns = Turns::new(backend.clone(), backend.add_door());
        let member = Arc::new(Member::default());
        let now = Instant::ORIGIN;
        let flow = turns.add_flow(member.clone(), 0, now);
        let mut hold = || {
            let request = Request::Deallocate { block: 0, blocks: 1 };
            let key = turns.hold(flow, request, 8, now).expect("there is room to wait");
            assert!(turns.go_on(now).is_none());
            key
        };
        let keys = [hold(), hold(), hold()];
        let (after_one, _) = member.pay(0, 0);
        assert!(after_one > 0, "the first one has paid");
        for key in [keys[0], keys[1]] {
            assert!(turns.take_out(key).is_some_and(|entry| entry.granted.is_none()));
            assert_eq!(member.pay(0, 0).0, after_one, "and now the next one has");
        }
        assert!(turns.take_out(keys[2]).is_some() && !turns.is_busy());
        assert_eq!(member.pay(0, 0).0, 0);
        assert!(turns.go_on(now).is_none());
        assert!(!backend.is_anyone_waiting());
    }
}
