//! The queue pair of one reactor to a volume with limits, and the requests that are held there.
//!
//! A *flow* is what a connection has here that is held, reads and writes apart. The first request of each
//! flow pays, part by part, and goes on when the time has come that its payment allows; then the next one
//! of the flow pays. So each flow has one payment under way, however many requests it has: flows take
//! turns, on all reactors, since those who pay are served in the order in which they do.
//!
//! Invariants:
//! - An entry is in the queue of exactly one flow, or it is released.
//! - Each flow that is in use has one valid place in `due`.
//! - Nothing is woken, dropped or submitted while the state is borrowed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pollux_device::{AllocationQuery, BlockDevice, Completion, Geometry, IoError, Request};
use pollux_reactor::{Instant, Reactor, Task, now, sleep_until, spawn};
use slab::Slab;

use super::bucket::Moment;
use super::plan::{Cost, Direction, Plan};
use super::throttle::{Stamp, Throttle};

/// Requests that are held for a volume on one reactor, at most; one more is told that resources are short.
const HELD_MAX: usize = 1 << 16;

/// What is held looks so often whether the limits are still the same, and so often the size is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Invalid places in `due`, at most, besides twice as many as there are flows.
const INVALID_DUE_MAX: usize = 64;

/// A task without a flow.
const NO_FLOW: u32 = u32::MAX;

/// A request that is held.
struct Entry {
    request: Request,
    cost: Cost,
    flow: u32,
    since: Instant,
    /// It may begin.
    is_released: bool,
    waker: Option<Waker>,
}

/// See the module.
struct Flow {
    /// Its place in `by_task`.
    place: usize,
    entries: VecDeque<usize>,
    /// What its first request has not paid yet.
    left: Cost,
    /// Marks its valid place in `due`.
    turn: u64,
}

/// When a flow may go on.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Moment,
    /// Those of the same moment go in the order in which they paid.
    turn: u64,
    flow: u32,
}

struct State {
    stamp: Stamp,
    plan: Arc<Plan>,
    is_scaled: bool,
    looked_at: Instant,
    entries: Slab<Entry>,
    flows: Vec<Flow>,
    free_flows: Vec<u32>,
    by_task: Vec<u32>,
    due: BinaryHeap<Reverse<Due>>,
    turns: u64,
    /// Released, and to be woken when the state is not borrowed any more.
    woken: Vec<Waker>,
    /// When the pump wakes by itself, and how to wake it sooner.
    armed: Option<Instant>,
    pump_waker: Option<Waker>,
}

struct Held {
    device: Rc<dyn BlockDevice>,
    throttle: Arc<Throttle>,
    state: RefCell<State>,
    /// Releases what is due. Started when something is held for the first time.
    pump: RefCell<Option<Task<()>>>,
}

/// See the module.
pub(super) struct ThrottledQueue(Rc<Held>);

impl ThrottledQueue {
    pub(super) fn new(device: Rc<dyn BlockDevice>, throttle: Arc<Throttle>) -> Self {
        Self(Rc::new(Held {
            device,
            throttle,
            state: RefCell::new(State {
                stamp: Stamp::NONE,
                plan: Arc::default(),
                is_scaled: false,
                looked_at: Instant::ORIGIN,
                entries: Slab::new(),
                flows: Vec::new(),
                free_flows: Vec::new(),
                by_task: Vec::new(),
                due: BinaryHeap::new(),
                turns: 0,
                woken: Vec::new(),
                armed: None,
                pump_waker: None,
            }),
            pump: RefCell::new(None),
        }))
    }
}

impl BlockDevice for ThrottledQueue {
    fn geometry(&self) -> Geometry {
        self.0.device.geometry()
    }

    #[inline]
    fn submit(&self, request: Request) -> Completion {
        if self.0.throttle.stamp().is_limited() {
            return Held::ask(&self.0, request);
        }
        self.0.device.submit(request)
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.0.device.allocation(block, blocks, runs_max)
    }
}

impl Held {
    /// Has a request begin, or holds it.
    fn ask(held: &Rc<Self>, request: Request) -> Completion {
        let Some(cost) = Cost::of(&request) else {
            return held.device.submit(request);
        };
        let reactor = Reactor::current();
        let now = reactor.now();
        held.look(now);
        let key = {
            let mut state = held.state.borrow_mut();
            let place = reactor.task() * 2 + usize::from(cost.direction == Direction::Write);
            match state.ask(place, request, cost, now) {
                Asked::Passed(request) => {
                    drop(state);
                    return held.device.submit(request);
                }
                Asked::Full => return Completion::failed(IoError::ResourceShortage),
                Asked::Held(key) => key,
            }
        };
        held.throttle.began_to_wait();
        held.start_pump();
        Completion::held(Waiting {
            held: held.clone(),
            key: Some(key),
        })
    }

    /// Takes over limits that were changed; looks at the size now and then.
    fn look(&self, now: Instant) {
        let mut state = self.state.borrow_mut();
        if state.is_scaled && now.saturating_since(state.looked_at) >= LOOK_INTERVAL {
            state.looked_at = now;
            self.throttle.resize(self.device.geometry().bytes());
        }
        if state.stamp != self.throttle.stamp() {
            (state.stamp, state.plan, state.is_scaled) = self.throttle.current();
            state.pay_anew(now);
        }
        drop(state);
        self.wake();
    }

    fn start_pump(self: &Rc<Self>) {
        let mut pump = self.pump.borrow_mut();
        if pump.is_none() {
            *pump = Some(spawn(run_pump(Rc::downgrade(self))));
            return;
        }
        drop(pump);
        let state = self.state.borrow();
        let next = state.due.peek().map(|Reverse(due)| Instant::from(due.at));
        let is_late = match (next, state.armed) {
            (Some(next), Some(armed)) => next < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let waker = state.pump_waker.clone().filter(|_| is_late);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Wakes what was released.
    fn wake(&self) {
        loop {
            let Some(waker) = self.state.borrow_mut().woken.pop() else {
                return;
            };
            waker.wake();
        }
    }

    /// Releases what is due; when to do so again.
    fn release_due(&self) -> Option<Instant> {
        let now = now();
        self.look(now);
        let next = self.state.borrow_mut().release_due(now);
        self.wake();
        // Limits may change meanwhile.
        next.map(|next| next.min(now + LOOK_INTERVAL))
    }
}

async fn run_pump(held: Weak<Held>) {
    let mut timer = sleep_until(now());
    poll_fn(|context| {
        let Some(held) = held.upgrade() else {
            return Poll::Ready(());
        };
        loop {
            let next = held.release_due();
            let before = {
                let mut state = held.state.borrow_mut();
                state.armed = next;
                let is_known = state.pump_waker.as_ref();
                match is_known.is_some_and(|waker| waker.will_wake(context.waker())) {
                    true => None,
                    false => state.pump_waker.replace(context.waker().clone()),
                }
            };
            drop(before);
            let Some(next) = next else {
                return Poll::Pending;
            };
            if timer.deadline() != next {
                timer.reset(next);
            }
            if Pin::new(&mut timer).poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// What becomes of a request.
enum Asked {
    Passed(Request),
    Held(usize),
    Full,
}

impl State {
    fn ask(&mut self, place: usize, request: Request, cost: Cost, now: Instant) -> Asked {
        let known = self.by_task.get(place).copied().filter(|flow| *flow != NO_FLOW);
        let mut left = cost;
        let mut at = Moment::default();
        if known.is_none() {
            // Nothing of this connection is held: it pays at once.
            at = self.pay(&mut left, now);
            if at <= now.into() {
                return Asked::Passed(request);
            }
        }
        if self.entries.len() >= HELD_MAX {
            if known.is_none() {
                self.plan.give_back(&cost.without(&left));
            }
            return Asked::Full;
        }
        let flow = match known {
            Some(flow) => flow,
            None => {
                let flow = self.begin_flow(place, left);
                self.set_due(flow, at);
                flow
            }
        };
        let key = self.entries.insert(Entry {
            request,
            cost,
            flow,
            since: now,
            is_released: false,
            waker: None,
        });
        if let Some(flow) = self.flows.get_mut(flow as usize) {
            flow.entries.push_back(key);
        }
        Asked::Held(key)
    }

    /// Pays part by part, as long as the parts allow to go on now; when the last one does.
    fn pay(&self, left: &mut Cost, now: Instant) -> Moment {
        loop {
            let at = self.plan.pay(now.into(), left);
            if left.is_paid() || at > now.into() {
                return at;
            }
        }
    }

    fn begin_flow(&mut self, place: usize, left: Cost) -> u32 {
        let number = self.free_flows.pop().unwrap_or_else(|| {
            self.flows.push(Flow {
                place,
                entries: VecDeque::new(),
                left,
                turn: 0,
            });
            u32::try_from(self.flows.len() - 1).unwrap_or(NO_FLOW)
        });
        if let Some(flow) = self.flows.get_mut(number as usize) {
            (flow.place, flow.left) = (place, left);
        }
        if self.by_task.len() <= place {
            self.by_task.resize(place + 1, NO_FLOW);
        }
        if let Some(known) = self.by_task.get_mut(place) {
            *known = number;
        }
        number
    }

    fn set_due(&mut self, number: u32, at: Moment) {
        // Places that became invalid go when their time comes, or there are too many of them.
        if self.due.len() > 2 * self.flows.len() + INVALID_DUE_MAX {
            let flows = &self.flows;
            self.due.retain(|Reverse(due)| {
                let flow = flows.get(due.flow as usize);
                flow.is_some_and(|flow| flow.turn == due.turn)
            });
        }
        self.turns += 1;
        let turn = self.turns;
        if let Some(flow) = self.flows.get_mut(number as usize) {
            flow.turn = turn;
            self.due.push(Reverse(Due {
                at,
                turn,
                flow: number,
            }));
        }
    }

    /// Goes on with all flows that may; when the next one may.
    fn release_due(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let Reverse(next) = self.due.peek()?;
            let (at, number) = (next.at, next.flow);
            let flow = self.flows.get(number as usize);
            let is_valid = flow.is_some_and(|flow| flow.turn == next.turn);
            if is_valid && at > now.into() {
                return Some(at.into());
            }
            self.due.pop();
            if is_valid {
                self.go_on(number, now);
            }
        }
    }

    /// A flow whose time has come: its first request begins, or pays on; then the next one pays.
    fn go_on(&mut self, number: u32, now: Instant) {
        loop {
            let Some(flow) = self.flows.get_mut(number as usize) else {
                return;
            };
            if flow.left.is_paid() {
                if let Some(key) = flow.entries.pop_front() {
                    self.release(key);
                }
                if !self.begin_next(number) {
                    return;
                }
            }
            let Some(flow) = self.flows.get(number as usize) else {
                return;
            };
            let mut left = flow.left;
            let at = self.pay(&mut left, now);
            if let Some(flow) = self.flows.get_mut(number as usize) {
                flow.left = left;
            }
            if at > now.into() {
                self.set_due(number, at);
                return;
            }
        }
    }

    /// The first request of a flow has paid nothing yet; a flow without one ends. Whether there is one.
    fn begin_next(&mut self, number: u32) -> bool {
        let Some(flow) = self.flows.get_mut(number as usize) else {
            return false;
        };
        let first = flow.entries.front().and_then(|key| self.entries.get(*key));
        if let Some(first) = first {
            flow.left = first.cost;
            return true;
        }
        // No place in `due` is valid any more.
        flow.turn = 0;
        if let Some(known) = self.by_task.get_mut(flow.place) {
            *known = NO_FLOW;
        }
        self.free_flows.push(number);
        false
    }

    fn release(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.is_released = true;
            self.woken.extend(entry.waker.take());
        }
    }

    /// The limits are others: what was paid is void, and all flows pay anew.
    fn pay_anew(&mut self, now: Instant) {
        self.due.clear();
        for number in 0..u32::try_from(self.flows.len()).unwrap_or(0) {
            let is_used = self
                .flows
                .get(number as usize)
                .is_some_and(|flow| !flow.entries.is_empty());
            if is_used && self.begin_next(number) {
                self.go_on(number, now);
            }
        }
    }

    /// A request is not wanted any more.
    fn take_back(&mut self, key: usize, now: Instant) -> Option<Entry> {
        let entry = self.entries.try_remove(key)?;
        if entry.is_released {
            return Some(entry);
        }
        let flow = self.flows.get_mut(entry.flow as usize)?;
        let at = flow.entries.iter().position(|other| *other == key);
        if let Some(at) = at {
            flow.entries.remove(at);
        }
        if at == Some(0) {
            let paid = entry.cost.without(&flow.left);
            flow.turn = 0;
            self.plan.give_back(&paid);
            let number = entry.flow;
            if self.begin_next(number) {
                self.go_on(number, now);
            }
        }
        Some(entry)
    }
}

/// Waits until a request may begin, and has it begin.
struct Waiting {
    held: Rc<Held>,
    key: Option<usize>,
}

impl Waiting {
    fn end(&mut self) -> Option<Entry> {
        let key = self.key.take()?;
        let now = Reactor::try_current().map(|reactor| reactor.now());
        let entry = {
            let mut state = self.held.state.borrow_mut();
            let now = now.unwrap_or(state.looked_at);
            state.take_back(key, now)
        }?;
        let waited = now.map_or(Duration::ZERO, |now| now.saturating_since(entry.since));
        self.held.throttle.waited(waited);
        self.held.wake();
        Some(entry)
    }
}

impl Future for Waiting {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let (is_released, _before) = {
            let mut state = self.held.state.borrow_mut();
            let entry = self.key.and_then(|key| state.entries.get_mut(key));
            let Some(entry) = entry else {
                return Poll::Ready(Completion::failed(IoError::Internal));
            };
            let mut before = None;
            let is_known = entry.waker.as_ref();
            if !entry.is_released && !is_known.is_some_and(|waker| waker.will_wake(context.waker())) {
                before = entry.waker.replace(context.waker().clone());
            }
            (entry.is_released, before)
        };
        if !is_released {
            return Poll::Pending;
        }
        let completion = match self.end() {
            Some(entry) => self.held.device.submit(entry.request),
            None => Completion::failed(IoError::Internal),
        };
        Poll::Ready(completion)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.end());
    }
}
