//! The port of one reactor to a backend: where its requests wait for their turn.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};

use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_reactor::{Instant, Reactor, ReactorId, Task, now, sleep_until, spawn};

use super::backend::{Backend, Door, LOOK_INTERVAL, Member};
use super::turns::{Entry, Granted, Turns};
use crate::qos::throttle::Throttle;

thread_local! {
    /// The ports of the reactors of this thread, of which there are several in simulations only.
    static PORTS: RefCell<HashMap<(ReactorId, usize), Weak<Port>>> = RefCell::default();
}

/// See the module.
pub(super) struct Port {
    backend: Arc<Backend>,
    door: Arc<Door>,
    turns: RefCell<Turns>,
    looked_at: Cell<Instant>,
    /// The pump wakes by itself.
    is_armed: Cell<bool>,
    /// Looks after what waits here.
    pump: RefCell<Option<Task<()>>>,
}

impl Port {
    /// That of the calling reactor.
    pub(super) fn of(backend: &Arc<Backend>) -> Rc<Self> {
        let key = (Reactor::current().id(), Arc::as_ptr(backend) as usize);
        let known = PORTS.with_borrow(|ports| ports.get(&key).and_then(Weak::upgrade));
        // A backend that is gone may have been where this one is.
        if let Some(port) = known.filter(|port| Arc::ptr_eq(&port.backend, backend)) {
            return port;
        }
        let door = backend.add_door();
        let port = Rc::new(Self {
            backend: backend.clone(),
            door: door.clone(),
            turns: RefCell::new(Turns::new(backend.clone(), door)),
            looked_at: Cell::new(Instant::ORIGIN),
            is_armed: Cell::new(false),
            pump: RefCell::new(None),
        });
        *port.pump.borrow_mut() = Some(spawn(run_pump(Rc::downgrade(&port))));
        PORTS.with_borrow_mut(|ports| {
            ports.retain(|_, port| port.strong_count() > 0);
            ports.insert(key, Rc::downgrade(&port));
        });
        port
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Looks who else asks, now and then.
    pub(super) fn look(&self, now: Instant) {
        if now.saturating_since(self.looked_at.get()) >= LOOK_INTERVAL {
            self.looked_at.set(now);
            self.backend.look(now);
        }
    }

    /// Grants what may begin, here and elsewhere.
    fn go_on(&self, now: Instant) {
        let other = self.turns.borrow_mut().go_on(now);
        self.wake();
        if let Some(other) = other {
            other.waker.wake();
        }
    }

    fn wake(&self) {
        loop {
            let Some(waker) = self.turns.borrow_mut().woken.pop() else {
                return;
            };
            waker.wake();
        }
    }

    fn end(&self, flow: usize, granted: &Granted, is_done: bool, now: Instant) {
        self.turns.borrow_mut().end(flow, granted, is_done, now);
        self.go_on(now);
    }

    /// Has somebody look after what is here from now on.
    fn arm(&self) {
        if !self.is_armed.get() {
            self.door.waker.wake();
        }
    }

    /// What there is to do, and whether to come again.
    fn turn(&self, now: Instant) -> bool {
        self.look(now);
        self.turns.borrow_mut().review(now);
        self.go_on(now);
        self.turns.borrow().is_busy()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.backend.remove_door(&self.door);
    }
}

async fn run_pump(port: Weak<Port>) {
    let mut timer = sleep_until(now());
    poll_fn(|context| {
        let Some(port) = port.upgrade() else {
            return Poll::Ready(());
        };
        port.door.waker.register(context.waker());
        loop {
            let is_busy = port.turn(now());
            port.is_armed.set(is_busy);
            if !is_busy {
                return Poll::Pending;
            }
            timer.reset(now() + LOOK_INTERVAL);
            if Pin::new(&mut timer).poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// The place of a queue pair of a volume at a port.
pub(super) struct Place {
    port: Rc<Port>,
    flow: usize,
}

impl Place {
    pub(super) fn new(backend: &Arc<Backend>, member: Arc<Member>, stamp: u64) -> Rc<Self> {
        let port = Port::of(backend);
        let flow = port.turns.borrow_mut().add_flow(member, stamp, now());
        Rc::new(Self { port, flow })
    }

    pub(super) fn port(&self) -> &Rc<Port> {
        &self.port
    }

    /// Whether requests have to stand behind others of their own.
    pub(super) fn has_held(&self) -> bool {
        self.port.turns.borrow().has_held(self.flow)
    }

    /// Has a request begin, or holds it.
    pub(super) fn ask(
        self: &Rc<Self>,
        device: &Rc<dyn BlockDevice>,
        throttle: &Arc<Throttle>,
        request: Request,
        units: u64,
        now: Instant,
    ) -> Completion {
        let passed = self.port.turns.borrow_mut().pass(self.flow, units, now);
        if let Some(granted) = passed {
            self.port.arm();
            return self.begin(device, request, granted, now);
        }
        let held = self.port.turns.borrow_mut().hold(self.flow, request, units, now);
        let Some(key) = held else {
            return Completion::failed(IoError::ResourceShortage);
        };
        self.port.go_on(now);
        let granted = {
            let mut turns = self.port.turns.borrow_mut();
            let is_granted = turns.entry_mut(key).is_some_and(|entry| entry.granted.is_some());
            is_granted.then(|| turns.take_out(key)).flatten()
        };
        self.port.arm();
        if let Some(entry) = granted {
            return self.begin_entry(device, entry, now);
        }
        throttle.began_to_wait();
        Completion::held(Waiting {
            place: self.clone(),
            device: device.clone(),
            throttle: throttle.clone(),
            key: Some(key),
        })
    }

    fn begin_entry(self: &Rc<Self>, device: &Rc<dyn BlockDevice>, entry: Entry, now: Instant) -> Completion {
        match entry.granted {
            Some(granted) => self.begin(device, entry.request, granted, now),
            None => Completion::failed(IoError::Internal),
        }
    }

    fn begin(
        self: &Rc<Self>,
        device: &Rc<dyn BlockDevice>,
        request: Request,
        granted: Granted,
        now: Instant,
    ) -> Completion {
        let begun = Begun {
            place: self.clone(),
            granted: Some(granted),
            began: now,
            is_sampled: self.port.backend.is_sampling(),
        };
        match device.submit(request).try_take() {
            Ok(result) => {
                begun.done();
                Completion::ready(result)
            }
            Err(completion) => Completion::from_future(Counted { completion, begun }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.port.turns.borrow_mut().remove_flow(self.flow);
    }
}

/// A request at the backend.
struct Begun {
    place: Rc<Place>,
    granted: Option<Granted>,
    began: Instant,
    is_sampled: bool,
}

impl Begun {
    fn done(mut self) {
        self.end(true);
    }

    fn end(&mut self, is_done: bool) {
        let Some(granted) = self.granted.take() else {
            return;
        };
        let port = &self.place.port;
        let now = Reactor::try_current().map_or(self.began, |reactor| reactor.now());
        if is_done {
            let took = self.is_sampled.then(|| now.saturating_since(self.began));
            port.door.count(granted.units, took);
        }
        port.end(self.place.flow, &granted, is_done, now);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// A request at the backend that was not done at once.
struct Counted {
    completion: Completion,
    begun: Begun,
}

impl Future for Counted {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.completion).poll(context));
        self.begun.end(true);
        Poll::Ready(result)
    }
}

/// Waits for the turn of a request, and has it begin.
struct Waiting {
    place: Rc<Place>,
    device: Rc<dyn BlockDevice>,
    throttle: Arc<Throttle>,
    key: Option<usize>,
}

impl Waiting {
    fn take_out(&mut self) -> Option<(Entry, Instant)> {
        let entry = self.place.port.turns.borrow_mut().take_out(self.key.take()?)?;
        let now = Reactor::try_current().map_or(entry.since, |reactor| reactor.now());
        self.throttle.waited(now.saturating_since(entry.since));
        Some((entry, now))
    }
}

impl Future for Waiting {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let (is_granted, _before) = {
            let mut turns = self.place.port.turns.borrow_mut();
            let Some(entry) = self.key.and_then(|key| turns.entry_mut(key)) else {
                return Poll::Ready(Completion::failed(IoError::Internal));
            };
            let is_granted = entry.granted.is_some();
            let is_known = entry.waker.as_ref();
            let is_known = is_known.is_some_and(|waker| waker.will_wake(context.waker()));
            let before = match is_granted || is_known {
                true => None,
                false => entry.waker.replace(context.waker().clone()),
            };
            (is_granted, before)
        };
        if !is_granted {
            return Poll::Pending;
        }
        let completion = match self.take_out() {
            Some((entry, now)) => self.place.begin_entry(&self.device, entry, now),
            None => Completion::failed(IoError::Internal),
        };
        Poll::Ready(completion)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((entry, now)) = self.take_out() else {
            return;
        };
        let port = &self.place.port;
        match entry.granted {
            Some(granted) => port.end(entry.flow, &granted, false, now),
            None => port.go_on(now),
        }
    }
}
