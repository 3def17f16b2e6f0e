//! The queue of one reactor to a namespace: commands, their completions, and what the supervisor asks for.
//!
//! The queue is polled in each turn of its reactor, which rings the doorbell for all commands since and takes
//! the completions that are there. While commands are under way the reactor does not sleep; while none are,
//! the queue asks nothing of it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pollux_reactor::{Instant, Poller, PollerState, Reactor};

use super::raw::Errno;
use super::raw::commands::{Commands, CompletionStatus, Data};
use super::raw::controller::Controller;
use super::raw::queue::{Order, QueuePair, QueueSize};
use super::reach::Reach;
use super::shared::{self, Namespace, Notice, Shared, Trouble};
use super::slots::{Slots, Stage};
use super::{SpdkDevice, status};
use crate::error::IoError;

/// How often timeouts are looked for.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// Turns between two looks at the clock.
const TURNS_PER_LOOK: u32 = 64;

/// How long connecting a queue may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Times that a request is sent again after its queue was lost.
const ATTEMPTS_MAX: u8 = 4;

/// Times in a row that a remote controller may refuse a queue pair.
const REFUSALS_MAX: u32 = 3;

/// Commands that SPDK may split one request into and still have room for others.
const SPLITS_PER_REQUEST: u32 = 2;

/// Commands that the largest request may be split into: 2 MiB for a drive that takes 4 KiB at a time.
const SPLITS_MAX: u32 = 512;

/// How the queue stands to the controller.
enum Link {
    /// No queue pair.
    None,
    /// Being connected, until the time given.
    Connecting(QueuePair, Instant),
    /// In use.
    Live(QueuePair),
    /// Not to be used: held by the supervisor, or of no use any more.
    Held(QueuePair),
    /// Nothing is sent until the supervisor says so.
    Down(IoError),
}

/// The queue of one reactor to a namespace.
pub(super) struct Queue {
    link: RefCell<Link>,
    slots: RefCell<Slots>,
    commands: Rc<Commands>,
    pub(super) reach: Reach,
    /// The stage that is followed.
    era: Cell<u64>,
    turns: Cell<u32>,
    /// When timeouts were looked for last.
    looked_at: Cell<Instant>,
    /// Whether the supervisor was told that the queue is of no use in this era.
    told: Cell<bool>,
    /// Times in a row that a queue pair was refused.
    refusals: Cell<u32>,
    /// Lost caches that the user of this queue was told of.
    losses_told: Cell<u64>,
    /// Tasks that wait until the queue is live or down.
    settling: RefCell<Vec<Waker>>,
    id: u64,
    /// Last: it may be what keeps the controller.
    pub(super) device: Arc<SpdkDevice>,
}

impl Queue {
    /// Makes the queue of the current reactor, which begins to connect it.
    ///
    /// # Errors
    ///
    /// [`IoError::ResourceShortage`] without memory that drives reach.
    pub(super) fn new(device: Arc<SpdkDevice>) -> Result<Rc<Self>, IoError> {
        let reactor = Reactor::current();
        let shared = device.shared();
        let options = &shared.options;
        let transport = &options.transport;
        let reach = Reach::of_reactor(transport.reaches_memory(), transport.is_pcie())?;
        let queue = Rc::new(Self {
            link: RefCell::new(Link::None),
            slots: RefCell::new(Slots::new(options.depth)),
            commands: Commands::new(options.depth),
            reach,
            era: Cell::new(0),
            turns: Cell::new(0),
            looked_at: Cell::new(reactor.now()),
            told: Cell::new(false),
            refusals: Cell::new(0),
            losses_told: Cell::new(device.namespace().ledger.losses()),
            settling: RefCell::default(),
            id: shared.enroll(reactor.handle()),
            device,
        });
        let poller: std::rc::Weak<dyn Poller> = Rc::downgrade(&(Rc::clone(&queue) as Rc<dyn Poller>));
        reactor.add_poller(poller);
        Ok(queue)
    }

    fn shared(&self) -> &Arc<Shared> {
        self.device.shared()
    }

    pub(super) fn namespace(&self) -> &Arc<Namespace> {
        self.device.namespace()
    }

    /// Waits until the queue is live, or its device is known to be down.
    pub(super) async fn settled(&self) {
        std::future::poll_fn(|context| match &*self.link.borrow() {
            Link::Live(_) | Link::Down(_) => Poll::Ready(()),
            Link::None | Link::Connecting(..) | Link::Held(_) => {
                self.settling.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
    }

    fn wake_settling(&self) {
        for waker in self.settling.take() {
            waker.wake();
        }
    }

    /// Why nothing can be sent now, if that is for long.
    pub(super) fn failure(&self) -> Option<IoError> {
        match &*self.link.borrow() {
            Link::Down(error) => Some(*error),
            _ if !self.namespace().is_present() => Some(IoError::Gone),
            _ => None,
        }
    }

    /// Lost caches that its user was not told of; they count as told from now on.
    pub(super) fn tell_losses(&self) -> bool {
        let losses = self.namespace().ledger.losses();
        self.losses_told.replace(losses) != losses
    }

    /// Starts a request if there is room for it.
    ///
    /// # Errors
    ///
    /// The data, when there is no room.
    pub(super) fn start(self: &Rc<Self>, order: Order, data: Data) -> Result<Request, Data> {
        let taken = self.slots.borrow_mut().take();
        match taken {
            Some(index) => Ok(self.start_in(index, order, data)),
            None => Err(data),
        }
    }

    /// Waits for room, then starts a request.
    ///
    /// # Errors
    ///
    /// [`IoError::ResourceShortage`] when too many wait.
    pub(super) async fn start_later(self: &Rc<Self>, order: Order, data: Data) -> Result<Request, IoError> {
        let index = Room {
            queue: Rc::clone(self),
            ticket: None,
        }
        .await?;
        Ok(self.start_in(index, order, data))
    }

    fn start_in(self: &Rc<Self>, index: u16, order: Order, data: Data) -> Request {
        self.commands.swap(index, data);
        let in_order = {
            let mut slots = self.slots.borrow_mut();
            if let Some(slot) = slots.get_mut(index) {
                slot.begin(order);
            }
            !slots.has_parked()
        };
        let is_sent = match &*self.link.borrow() {
            Link::Live(pair) if in_order => self.send(pair, index, false),
            Link::Down(error) => {
                self.finish(index, Err(*error));
                true
            }
            _ => false,
        };
        if !is_sent {
            self.slots.borrow_mut().park(index, false);
        }
        Request {
            queue: Rc::clone(self),
            index,
        }
    }

    /// Gives a request to SPDK. False if it has to wait.
    #[inline]
    fn send(&self, pair: &QueuePair, index: u16, alone: bool) -> bool {
        let order = {
            let mut slots = self.slots.borrow_mut();
            let order = slots.get_mut(index).and_then(|slot| slot.order);
            // Before it is: it may complete at once.
            slots.sent(index, pollux_reactor::now());
            order
        };
        let Some(order) = order else {
            return self.refused(index, IoError::Internal);
        };
        match pair.submit(index, &order) {
            Ok(()) => true,
            Err(Errno(libc::ENOMEM)) if alone => self.refused(index, IoError::ResourceShortage),
            Err(Errno(libc::ENOMEM | libc::EAGAIN)) => {
                self.slots.borrow_mut().returned();
                false
            }
            Err(Errno(libc::EINVAL)) => self.refused(index, IoError::InvalidField),
            Err(Errno(libc::ENXIO | libc::ENODEV)) => {
                self.slots.borrow_mut().returned();
                self.tell(Trouble::QueueLost);
                false
            }
            Err(Errno(code)) => self.refused(index, IoError::Os(code)),
        }
    }

    /// SPDK takes a request neither now nor later.
    fn refused(&self, index: u16, error: IoError) -> bool {
        self.slots.borrow_mut().returned();
        self.finish(index, Err(error));
        true
    }

    /// A request is over; its slot is not with SPDK.
    fn finish(&self, index: u16, result: Result<(), IoError>) {
        let waker = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(index) else {
                return;
            };
            if slot.abandoned {
                drop(slots);
                self.release(index);
                return;
            }
            slot.stage = Stage::Done(result);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives a slot back with nothing in it.
    fn release(&self, index: u16) {
        // Dropped while nothing is borrowed: that may wake others.
        drop(self.commands.swap(index, Data::None));
        let waker = self.slots.borrow_mut().release(index);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the completions that SPDK has noted. `releasing`: those of a queue pair that was freed.
    fn collect(&self, releasing: bool) {
        if !self.commands.has_finished() {
            return;
        }
        let commands = Rc::clone(&self.commands);
        commands.drain(|index, status| self.completed(index, status, releasing));
    }

    #[inline]
    fn completed(&self, index: u16, status: CompletionStatus, releasing: bool) {
        let again = {
            let mut slots = self.slots.borrow_mut();
            slots.returned();
            let Some(slot) = slots.get_mut(index) else {
                return;
            };
            let is_lost = (status.code_type, status.code) != (0, 0) && status::is_lost_with_queue(status);
            if is_lost && slot.order.is_some_and(|order| order.changes_data()) {
                self.namespace().ledger.left_unanswered();
            }
            if slot.aborted_at.is_some() && is_lost {
                slot.verdict = Some(IoError::TimedOut);
            } else if is_lost && (slot.abandoned || slot.attempts >= ATTEMPTS_MAX) {
                slot.verdict = Some(IoError::Aborted);
            } else {
                slot.verdict = None;
            }
            slot.attempts = slot.attempts.saturating_add(u8::from(is_lost));
            // A command that was aborted by itself is over, and so is its use of memory. What was given up
            // with its queue waits until the controller is known to be done with it.
            is_lost && (releasing || slot.aborted_at.is_none())
        };
        if again {
            self.slots.borrow_mut().park(index, false);
            return;
        }
        let verdict = {
            let mut slots = self.slots.borrow_mut();
            slots.get_mut(index).and_then(|slot| slot.verdict.take())
        };
        self.finish(index, verdict.map_or_else(|| status::result(status), Err));
    }

    /// Sends what waits, for as long as SPDK takes it.
    fn send_parked(&self, pair: &QueuePair) {
        loop {
            let mut slots = self.slots.borrow_mut();
            let alone = slots.in_flight() == 0;
            let Some(index) = slots.unpark() else {
                return;
            };
            let verdict = slots.get_mut(index).and_then(|slot| match slot.abandoned {
                true => Some(IoError::Aborted),
                false => slot.verdict.take(),
            });
            drop(slots);
            if let Some(error) = verdict {
                self.finish(index, Err(error));
                continue;
            }
            if !self.send(pair, index, alone) {
                self.slots.borrow_mut().park(index, true);
                return;
            }
        }
    }

    /// Fails what waits.
    fn fail_parked(&self, error: IoError) {
        loop {
            let mut slots = self.slots.borrow_mut();
            let Some(index) = slots.unpark() else {
                return;
            };
            let verdict = slots.get_mut(index).and_then(|slot| slot.verdict.take());
            drop(slots);
            self.finish(index, Err(verdict.unwrap_or(error)));
        }
    }

    /// Tells the supervisor, once an era, that the queue is of no use.
    fn tell(&self, what: Trouble) {
        if !self.told.replace(true) {
            let era = self.era.get();
            self.shared().notify(Notice::Trouble { era, what });
        }
    }

    /// Does what the stage of the controller asks for.
    fn follow(&self) {
        let (era, stage) = self.shared().stage();
        self.told.set(false);
        self.era.set(era);
        match stage {
            shared::Stage::Held => {
                let link = self.link.replace(Link::None);
                self.link.replace(match link {
                    Link::Live(pair) | Link::Connecting(pair, _) | Link::Held(pair) => Link::Held(pair),
                    link @ (Link::None | Link::Down(_)) => link,
                });
            }
            shared::Stage::Released => self.free_pair(),
            // It goes on: the stage began anew for queues that found no namespace.
            shared::Stage::Live(controller) if self.is_live_on(&controller) => {}
            shared::Stage::Live(controller) => {
                self.free_pair();
                let link = self.connect(&controller);
                self.link.replace(link);
                if let Some(error) = self.failure() {
                    self.fail_parked(error);
                }
            }
            shared::Stage::Down(error) => {
                self.free_pair();
                self.link.replace(Link::Down(error));
                self.fail_parked(error);
            }
        }
        self.wake_settling();
        self.shared().reached(self.id, era);
    }

    fn is_live_on(&self, controller: &Arc<Controller>) -> bool {
        matches!(&*self.link.borrow(), Link::Live(pair) if pair.is_of(controller))
    }

    fn connect(&self, controller: &Arc<Controller>) -> Link {
        let depth = u32::from(self.shared().options.depth);
        let size = QueueSize {
            entries: queue_entries(depth),
            requests: depth * SPLITS_PER_REQUEST + SPLITS_MAX,
        };
        let id = self.namespace().id;
        match QueuePair::connect(controller, id, size, &self.commands) {
            Ok(pair) => Link::Connecting(pair, pollux_reactor::now() + CONNECT_TIME_MAX),
            Err(Errno(libc::ENODEV)) => Link::Down(IoError::Gone),
            // No queue left in the drive: that is no fault of it. A remote controller may be out of reach
            // just now: it gets another chance or two.
            Err(Errno(libc::EMFILE)) if self.is_refused_for_good() => {
                let device = self.device.name_text();
                tracing::error!(
                    device,
                    "the controller has no queue left for this reactor: use fewer"
                );
                Link::Down(IoError::ResourceShortage)
            }
            Err(error) => {
                let device = self.device.name_text();
                tracing::warn!(device, %error, "a queue could not be made");
                self.tell(Trouble::NotConnected);
                Link::None
            }
        }
    }

    /// Counts that a queue pair was refused; whether that is the last word.
    fn is_refused_for_good(&self) -> bool {
        let refusals = self.refusals.get() + 1;
        self.refusals.set(refusals);
        self.shared().options.transport.is_pcie() || refusals > REFUSALS_MAX
    }

    /// Frees the queue pair, if there is one: what was under way is over, and waits.
    fn free_pair(&self) {
        let link = self.link.replace(Link::None);
        let had_pair = matches!(&link, Link::Live(_) | Link::Connecting(..) | Link::Held(_));
        drop(link);
        if had_pair {
            self.collect(true);
            self.keep_what_is_left();
        }
    }

    /// SPDK completes everything of a queue pair that it frees. If it ever did not, the memory of what is
    /// left must never be used again.
    fn keep_what_is_left(&self) {
        let left = self.slots.borrow().in_flight();
        if left > 0 {
            let device = self.device.name_text();
            tracing::error!(
                device,
                left,
                "requests were never completed: their buffers are given up"
            );
            let _leaked = Rc::into_raw(Rc::clone(&self.commands));
        }
    }

    /// Now and then: has what took too long aborted, and then the controller reset. To be called when all
    /// completions that are there have been taken.
    fn look_for_timeouts(&self, pair: &QueuePair) {
        let now = pollux_reactor::now();
        if now.saturating_since(self.looked_at.get()) < LOOK_PERIOD {
            return;
        }
        self.looked_at.set(now);
        let options = &self.shared().options;
        let mut is_stuck = false;
        let mut late = None;
        for (index, slot) in self.slots.borrow_mut().sent_ones() {
            match slot.aborted_at {
                Some(aborted_at) => {
                    is_stuck |= now.saturating_since(aborted_at) >= options.abort_timeout;
                }
                // One at a time: aborts are few, and the admin queue is short.
                None if late.is_none() && now.saturating_since(slot.sent_at) >= options.timeout => {
                    slot.aborted_at = Some(now);
                    late = Some(index);
                }
                None => {}
            }
        }
        if let Some(index) = late {
            let aborted = pair.abort(index);
            let device = self.device.name_text();
            tracing::warn!(device, ?aborted, "a request took too long: it is aborted");
        }
        if is_stuck {
            self.tell(Trouble::Stuck);
        }
    }

    /// A turn of a queue that is connected. `Err` when it is lost.
    #[inline]
    fn poll_live(&self, pair: &QueuePair) -> Result<PollerState, Errno> {
        let (in_flight, has_parked) = {
            let slots = self.slots.borrow();
            (slots.in_flight(), slots.has_parked())
        };
        if in_flight == 0 && !has_parked {
            return Ok(PollerState::Idle);
        }
        let found = pair.poll()?;
        self.collect(false);
        if has_parked {
            self.send_parked(pair);
        }
        let turns = self.turns.get().wrapping_add(1);
        self.turns.set(turns);
        if turns.is_multiple_of(TURNS_PER_LOOK) {
            self.look_for_timeouts(pair);
        }
        Ok(if found > 0 {
            PollerState::Progressed
        } else {
            PollerState::Waiting
        })
    }

    /// A turn of a queue that is being connected.
    fn poll_connecting(&self, pair: &QueuePair, deadline: Instant) -> Result<bool, Errno> {
        pair.poll()?;
        if pair.is_connected() {
            return Ok(true);
        }
        if pollux_reactor::now() >= deadline {
            return Err(Errno(libc::ETIMEDOUT));
        }
        Ok(false)
    }
}

/// Entries of a submission queue for so many requests: SPDK keeps a quarter of them for itself.
pub(super) fn queue_entries(depth: u32) -> u32 {
    (depth + depth / 2 + 32).next_power_of_two()
}

impl Poller for Queue {
    fn poll(&self) -> PollerState {
        if self.shared().era() != self.era.get() {
            self.follow();
            return PollerState::Progressed;
        }
        let polled = match &*self.link.borrow() {
            Link::Live(pair) => match self.poll_live(pair) {
                Ok(state) => return state,
                Err(error) => Err((error, Trouble::QueueLost)),
            },
            Link::Connecting(pair, deadline) => match self.poll_connecting(pair, *deadline) {
                Ok(false) => return PollerState::Waiting,
                Ok(true) => Ok(()),
                Err(error) => Err((error, Trouble::NotConnected)),
            },
            Link::None | Link::Held(_) | Link::Down(_) => return PollerState::Idle,
        };
        // Either way what was found is told, and the link changes.
        let link = self.link.replace(Link::None);
        let link = match (link, polled) {
            (Link::Connecting(pair, _), Ok(())) => {
                self.refusals.set(0);
                self.send_parked(&pair);
                Link::Live(pair)
            }
            (Link::Live(pair) | Link::Connecting(pair, _), Err((error, what))) => {
                let device = self.device.name_text();
                tracing::warn!(device, %error, "{what}");
                self.tell(what);
                Link::Held(pair)
            }
            (link, _) => link,
        };
        self.link.replace(link);
        self.collect(false);
        self.wake_settling();
        PollerState::Progressed
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Nobody waits for a request any more; what is under way is over when the queue pair is freed.
        drop(self.link.replace(Link::None));
        self.collect(true);
        self.keep_what_is_left();
        self.shared().leave(self.id);
    }
}

/// Waits for a slot.
struct Room {
    queue: Rc<Queue>,
    ticket: Option<u64>,
}

impl Future for Room {
    type Output = Result<u16, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let waited = this
            .queue
            .slots
            .borrow_mut()
            .wait(&mut this.ticket, context.waker());
        match waited {
            Ok(Some(index)) => Poll::Ready(Ok(index)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let granted = self.queue.slots.borrow_mut().give_up(ticket);
        if let Some(index) = granted {
            self.queue.release(index);
        }
    }
}

/// A request under way. Dropped before its end, its data stays with the queue until SPDK is done with it.
pub(super) struct Request {
    queue: Rc<Queue>,
    index: u16,
}

impl Request {
    /// The result, with the data as it is now.
    pub(super) async fn end(&self) -> (Result<(), IoError>, Data) {
        let result = std::future::poll_fn(|context| {
            let mut slots = self.queue.slots.borrow_mut();
            let Some(slot) = slots.get_mut(self.index) else {
                return Poll::Ready(Err(IoError::Internal));
            };
            match slot.stage {
                Stage::Done(result) => Poll::Ready(result),
                Stage::Parked | Stage::InFlight => {
                    match &mut slot.waker {
                        Some(waker) => waker.clone_from(context.waker()),
                        None => slot.waker = Some(context.waker().clone()),
                    }
                    Poll::Pending
                }
                // Does not happen before this is dropped.
                Stage::Idle => Poll::Ready(Err(IoError::Internal)),
            }
        })
        .await;
        (result, self.queue.commands.swap(self.index, Data::None))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let is_over = {
            let mut slots = self.queue.slots.borrow_mut();
            let slot = slots.get_mut(self.index);
            slot.is_some_and(|slot| match slot.stage {
                Stage::Done(_) => true,
                Stage::Parked | Stage::InFlight => {
                    slot.abandoned = true;
                    slot.waker = None;
                    false
                }
                Stage::Idle => false,
            })
        };
        if is_over {
            self.queue.release(self.index);
        }
    }
}
