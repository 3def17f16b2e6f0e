//! A device as one reactor uses it: an I/O queue that is connected anew whenever the association changes.
//!
//! Invariants:
//! - `live` is set exactly while the queue is connected for the association that was live when it was set.
//! - Before the seat of this queue is closed, nothing more is sent on its connection, and what was unanswered
//!   is reported.
//! - A request is counted in `waiting` while it is not sent; there are never more than [`WAITING_MAX`].

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use pollux_device::{AllocationQuery, BlockDevice, Completion, Geometry, IoError, Request};
use pollux_reactor::{Reactor, Task, sleep, timeout};

use super::super::connection::{CommandId, QueuePair, RefusedReason};
use super::super::error::InitiatorError;
use super::NvmfDevice;
use super::execute::{FirstTry, Flush, Sent, execute_later, execute_pieces, reply};
use super::holes::allocation;
use super::plan::{Command, Plan};
use super::race::{First, race};
use super::shared::{AbortWanted, Association, Phase, Shared};

/// Requests that may wait on one reactor for room in the queue or for the target; one more fails at once.
pub const WAITING_MAX: usize = 8192;

/// How often a queue is tried to be connected before the association counts as lost: a target may need a
/// moment to notice that the queue of that number before it is gone.
const CONNECT_TRIES_MAX: u32 = 6;

/// The pause after the first of these; doubles each time.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// How often in its time limit a command is looked at.
const LOOKS_PER_TIMEOUT: u32 = 8;

/// How often it is looked at whether the commands of a queue that nobody uses any more are over.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// A connected queue.
pub(super) struct Live {
    pub(super) queue: QueuePair,
    pub(super) association: Arc<Association>,
}

/// Where the queue stands, for requests that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Connected, or about to be.
    Waiting,
    /// Not for too long already.
    Down,
    /// For good.
    Gone,
}

/// What the requests of one reactor share.
pub(super) struct Inner {
    device: Arc<NvmfDevice>,
    queue_id: u16,
    live: RefCell<Option<Rc<Live>>>,
    standing: Cell<Standing>,
    /// Woken when `live` or `standing` changes.
    waiters: RefCell<Vec<Waker>>,
    waiting: Cell<usize>,
    /// Losses of completed writes that a failed flush has told of.
    losses_told: Cell<u64>,
    reactor: Reactor,
    /// Keeps the queue connected.
    _keeper: Task<()>,
}

/// The remote namespace as a block device of one reactor.
pub(super) struct NvmfQueue(Rc<Inner>);

impl NvmfQueue {
    /// Connects a queue for the current reactor.
    pub(super) async fn attach(device: Arc<NvmfDevice>) -> Result<Rc<dyn BlockDevice>, IoError> {
        Ok(Rc::new(Self(Inner::attach(device).await?)))
    }
}

impl Inner {
    /// The same, for whoever sends commands of its own.
    pub(super) async fn attach(device: Arc<NvmfDevice>) -> Result<Rc<Self>, IoError> {
        let shared = device.shared().clone();
        let Some(queue_id) = shared.take_seat() else {
            let queues = shared.options.queues;
            let device = &shared.name;
            tracing::warn!(%device, queues, "no I/O queue is left for one more reactor; raise `queues`");
            return Err(IoError::ResourceShortage);
        };
        let inner = Rc::new_cyclic(|weak: &Weak<Self>| {
            let reactor = Reactor::current();
            let keeper = reactor.spawn(keep_connected(shared.clone(), queue_id, weak.clone()));
            Self {
                device,
                queue_id,
                live: RefCell::new(None),
                standing: Cell::new(Standing::Waiting),
                waiters: RefCell::default(),
                waiting: Cell::new(0),
                losses_told: Cell::new(shared.ledger.losses()),
                reactor,
                _keeper: keeper,
            }
        });
        // Long enough for every attempt to connect; while the target is lost nobody is kept waiting here.
        let limit = shared.options.connection.connect_timeout * (CONNECT_TRIES_MAX + 1);
        match timeout(limit, inner.connected()).await {
            Ok(connected) => connected.map(drop)?,
            Err(_) => return Err(IoError::TimedOut),
        }
        Ok(inner)
    }
}

impl BlockDevice for NvmfQueue {
    fn geometry(&self) -> Geometry {
        self.0.shared().geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let inner = &self.0;
        let shared = inner.shared();
        let geometry = shared.geometry();
        if let Err(error) = request.check(&geometry) {
            return Completion::failed(error);
        }
        if !shared.is_present() {
            return Completion::failed(IoError::Gone);
        }
        match Plan::new(request, &geometry, &shared.limits) {
            Err(error) => Completion::failed(error),
            Ok(Plan::Nothing(transfer)) => Completion::ready(Ok(reply(transfer))),
            Ok(Plan::Flush) => {
                let flush = Flush::begin(inner.clone());
                let sent = inner.send_now(&mut Command::flush());
                Completion::from_future(flush.execute(sent))
            }
            Ok(Plan::One(mut command)) => {
                let inner = inner.clone();
                match inner.send_now(&mut command) {
                    Some(sent) => Completion::from_future(FirstTry::new(inner, command.operation, sent)),
                    None => Completion::from_future(execute_later(inner, command)),
                }
            }
            Ok(Plan::Many(pieces)) => Completion::from_future(execute_pieces(inner.clone(), pieces)),
        }
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        Box::pin(allocation(self.0.clone(), block, blocks, runs_max))
    }
}

impl Inner {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        self.device.shared()
    }

    pub(super) fn losses_told(&self) -> u64 {
        self.losses_told.get()
    }

    pub(super) fn tell_losses(&self, losses: u64) {
        self.losses_told.set(losses);
    }

    /// Sends a command if that is possible right away and nobody waits for the same.
    pub(super) fn send_now(&self, command: &mut Command) -> Option<Sent> {
        let live = self.live.borrow().clone()?;
        if live.queue.has_waiters() {
            return None;
        }
        self.submit(live, command).ok()
    }

    fn submit(&self, live: Rc<Live>, command: &mut Command) -> Result<Sent, RefusedReason> {
        let entry = command.operation.entry(live.association.namespace_id);
        let transfer = std::mem::take(&mut command.transfer);
        match live.queue.submit(&entry, transfer) {
            Ok(submission) => Ok(Sent { submission, live }),
            Err(refused) => {
                command.transfer = refused.transfer;
                Err(refused.reason)
            }
        }
    }

    /// Sends a command as soon as there is room and a connection.
    pub(super) async fn send(&self, command: &mut Command) -> Result<Sent, IoError> {
        let _waiting = self.begin_waiting()?;
        loop {
            let live = self.connected().await?;
            live.queue.ready().await;
            match self.submit(live, command) {
                Ok(sent) => return Ok(sent),
                Err(RefusedReason::TooLong) => return Err(IoError::InvalidField),
                // The connection has ended; the keeper takes it down before anything else runs, or has.
                Err(RefusedReason::Ended) => pollux_reactor::yield_now().await,
                Err(RefusedReason::Full) => {}
            }
        }
    }

    pub(super) fn begin_waiting(&self) -> Result<Waiting<'_>, IoError> {
        if self.waiting.get() >= WAITING_MAX {
            return Err(IoError::ResourceShortage);
        }
        self.waiting.set(self.waiting.get() + 1);
        Ok(Waiting(self))
    }

    /// Waits for the connection.
    pub(super) async fn connected(&self) -> Result<Rc<Live>, IoError> {
        std::future::poll_fn(|context| {
            if let Some(live) = &*self.live.borrow() {
                return Poll::Ready(Ok(live.clone()));
            }
            match self.standing.get() {
                Standing::Down => return Poll::Ready(Err(IoError::PathDown)),
                Standing::Gone => return Poll::Ready(Err(IoError::Gone)),
                Standing::Waiting => {}
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waiter| waiter.will_wake(context.waker())) {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn change(&self, live: Option<Rc<Live>>, standing: Standing) {
        let before = self.live.replace(live);
        drop(before);
        self.standing.set(standing);
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Waker::wake);
    }
}

/// Counts a request as waiting until dropped.
pub(super) struct Waiting<'a>(&'a Inner);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let shared = self.shared().clone();
        let queue_id = self.queue_id;
        match self.live.take() {
            Some(live) => self.reactor.spawn(drain(shared, queue_id, live)).detach(),
            // Not connected, or connecting: no command was sent on what the keeper drops.
            None => shared.free_seat(queue_id),
        }
    }
}

/// Lets what is outstanding on a queue come to its end before the queue is closed: what is sent is executed,
/// and must not be overtaken by what others send later.
async fn drain(shared: Arc<Shared>, queue_id: u16, live: Rc<Live>) {
    let generation = live.association.generation;
    let idle = async {
        while live.queue.outstanding() > 0 && live.queue.end().is_none() {
            sleep(DRAIN_PAUSE).await;
        }
    };
    let limit = shared.options.command_timeout;
    let left = shared.wait_for(|state| (!state.phase.is_live(generation)).then_some(()));
    if timeout(limit, race(idle, left)).await.is_err() {
        shared.report_lost(generation, &"commands were not answered in time");
    }
    live.queue.close("the queue is not used any more");
    let ended = live.queue.ended().await;
    if ended.unsettled_mutation {
        shared.report_lost(generation, &ended.error);
    }
    shared.close_seat(queue_id, ended.unsettled_mutation);
    shared.free_seat(queue_id);
}

/// Keeps the queue of a reactor connected: the task behind [`Inner`], which owns it.
async fn keep_connected(shared: Arc<Shared>, queue_id: u16, inner: Weak<Inner>) {
    // The association that is over for this queue, so that it is not tried again.
    let mut over = None;
    loop {
        let phase = shared
            .wait_for(|state| match &state.phase {
                Phase::Live(association) if over == Some(association.generation) => None,
                Phase::Lost { .. } => None,
                phase => Some(phase.clone()),
            })
            .await;
        let Some(inner_now) = inner.upgrade() else {
            return;
        };
        match phase {
            Phase::Live(association) => {
                over = Some(association.generation);
                inner_now.standing.set(Standing::Waiting);
                drop(inner_now);
                serve(&shared, queue_id, &inner, association).await;
            }
            Phase::Lost { .. } => {}
            Phase::Down { generation, .. } => {
                inner_now.change(None, Standing::Down);
                drop(inner_now);
                // Until it is live again, or gone.
                shared
                    .wait_for(|state| {
                        let down =
                            matches!(&state.phase, Phase::Down { generation: now, .. } if *now == generation);
                        (!down).then_some(())
                    })
                    .await;
            }
            Phase::Gone => {
                inner_now.change(None, Standing::Gone);
                return;
            }
        }
    }
}

/// Connects the queue for an association and keeps it until either is over.
async fn serve(shared: &Arc<Shared>, queue_id: u16, inner: &Weak<Inner>, association: Arc<Association>) {
    let generation = association.generation;
    if !shared.open_seat(queue_id, generation) {
        return;
    }
    let left = || shared.wait_for(|state| (!state.phase.is_live(generation)).then_some(()));
    let queue = match race(connect(&association, queue_id), left()).await {
        First::Left(Ok(queue)) => queue,
        First::Left(Err(error)) => {
            shared.report_lost(generation, &format_args!("queue {queue_id}: {error}"));
            shared.close_seat(queue_id, false);
            return;
        }
        First::Right(()) => {
            shared.close_seat(queue_id, false);
            return;
        }
    };
    if let Some(inner) = inner.upgrade() {
        let live = Rc::new(Live {
            queue: queue.clone(),
            association,
        });
        inner.change(Some(live), Standing::Waiting);
    }
    let watched = race(watch(shared, queue_id, generation, &queue), left()).await;
    if let Some(inner) = inner.upgrade() {
        inner.change(None, Standing::Waiting);
    }
    queue.close("the association with the controller has ended");
    let ended = queue.ended().await;
    if let First::Left(()) = watched {
        shared.report_lost(generation, &format_args!("queue {queue_id}: {}", ended.error));
    }
    shared.close_seat(queue_id, ended.unsettled_mutation);
}

async fn connect(association: &Association, queue_id: u16) -> Result<QueuePair, InitiatorError> {
    let mut pause = CONNECT_PAUSE;
    let mut tries = 1;
    loop {
        match association.ticket.connect(queue_id).await {
            Err(InitiatorError::Refused { .. }) if tries < CONNECT_TRIES_MAX => {}
            result => return result,
        }
        sleep(pause).await;
        pause *= 2;
        tries += 1;
    }
}

/// Waits for the end of the connection, and has commands aborted that take too long. When that does not help
/// either, the connection is as good as ended.
async fn watch(shared: &Arc<Shared>, queue_id: u16, generation: u64, queue: &QueuePair) {
    let limit = shared.options.command_timeout;
    let mut aborted: Vec<CommandId> = Vec::new();
    loop {
        match race(queue.ended(), sleep(limit / LOOKS_PER_TIMEOUT)).await {
            First::Left(_) => return,
            First::Right(()) => {}
        }
        let mut hopeless = false;
        queue.each_overdue(limit + limit / 2, |_| hopeless = true);
        if hopeless {
            queue.close("a command was not answered in time, and could not be aborted");
            return;
        }
        aborted.retain(|command| queue.is_outstanding(*command));
        let known = aborted.len();
        queue.each_overdue(limit, |command| {
            if !aborted.contains(&command) {
                aborted.push(command);
            }
        });
        let fresh = aborted.get(known..).unwrap_or_default();
        if !fresh.is_empty() {
            let (device, commands) = (&shared.name, fresh.len());
            tracing::warn!(%device, queue_id, commands, "commands take too long and are aborted");
            let wanted = fresh.iter().map(|&command| AbortWanted {
                generation,
                queue_id,
                command,
            });
            shared.update(|state| state.aborts.extend(wanted));
        }
    }
}
