//! The task of a connection: it sends and receives until nothing moves, and wakes whoever waits.
//!
//! Invariants:
//! - The state is borrowed by one function of this module at a time, and nothing foreign is called meanwhile:
//!   wakers fire after the borrow has ended.
//! - Once `end` is set nothing is sent for any command, and no command is outstanding.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pollux_hugepages::BufferPool;
use pollux_reactor::net::Stream;
use pollux_reactor::{Reactor, spawn};
use smallvec::SmallVec;

use super::Ended;
use super::error::ConnectionError;
use super::handshake::push_terminate;
use super::protocol::{Protocol, Refused, RefusedReason, Terms};
use super::room::Room;
use super::slots::{CommandId, Finished, Transfer};
use crate::transport::{Input, Output, finish};
use crate::wire::command::SubmissionEntry;

/// Receives and sends in one turn of the task, so that others get theirs.
const ROUNDS_PER_TURN: usize = 4;

/// The socket and what has arrived from it.
struct Link {
    stream: Box<dyn Stream>,
    input: Input,
    pool: BufferPool,
}

struct State {
    protocol: Protocol,
    /// Gone once the connection has ended.
    link: Option<Link>,
    /// The task, to be woken when there is something to send.
    task: Option<Waker>,
    /// The task was woken and has not run yet.
    task_woken: bool,
    room: Room,
    end: Option<Ended>,
    end_waiters: SmallVec<[Waker; 2]>,
}

/// A connection, shared between its task and its users. All are on one reactor.
pub(super) struct Shared {
    state: RefCell<State>,
    reactor: Reactor,
}

impl Shared {
    /// Takes a connection that is set up and starts its task.
    pub(super) fn start(stream: Box<dyn Stream>, terms: Terms, depth: u16) -> Rc<Self> {
        let reactor = Reactor::current();
        let link = Link {
            stream,
            input: Input::new(),
            pool: reactor.buffers().clone(),
        };
        let shared = Rc::new(Self {
            state: RefCell::new(State {
                protocol: Protocol::new(terms, depth),
                link: Some(link),
                task: None,
                task_woken: true,
                room: Room::default(),
                end: None,
                end_waiters: SmallVec::new(),
            }),
            reactor,
        });
        let driven = shared.clone();
        spawn(async move { std::future::poll_fn(|context| driven.poll_drive(context)).await }).detach();
        shared
    }

    #[inline]
    pub(super) fn submit(&self, entry: &SubmissionEntry, transfer: Transfer) -> Result<CommandId, Refused> {
        let mut state = self.state.borrow_mut();
        if state.end.is_some() {
            let reason = RefusedReason::Ended;
            return Err(Refused { reason, transfer });
        }
        let id = state.protocol.submit(entry, transfer, self.reactor.now())?;
        if !state.task_woken {
            state.task_woken = true;
            let task = state.task.clone();
            drop(state);
            task.into_iter().for_each(Waker::wake);
        }
        Ok(id)
    }

    pub(super) fn poll_finished(&self, id: CommandId, context: &mut Context<'_>) -> Poll<Option<Finished>> {
        let mut state = self.state.borrow_mut();
        let finished = std::task::ready!(state.protocol.slots.poll_finished(id, context));
        if !state.room.is_empty() {
            drop(state);
            self.admit();
        }
        Poll::Ready(finished)
    }

    pub(super) fn abandon(&self, id: CommandId) {
        self.state.borrow_mut().protocol.slots.abandon(id);
        self.admit();
    }

    /// Ready when a command can be submitted, or when none ever will.
    pub(super) fn poll_room(&self, number: &mut Option<u64>, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.end.is_some() {
            *number = None;
            return Poll::Ready(());
        }
        let free = state.protocol.slots.free();
        state.room.poll(number, free, context)
    }

    pub(super) fn leave_room(&self, number: u64) {
        self.state.borrow_mut().room.leave(number);
        self.admit();
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.state.borrow().room.is_empty()
    }

    /// Wakes those who waited for the slots that are free now.
    fn admit(&self) {
        let woken = {
            let mut state = self.state.borrow_mut();
            let free = match state.end {
                Some(_) => usize::MAX,
                None => state.protocol.slots.free(),
            };
            state.room.admit(free)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    pub(super) fn depth(&self) -> u16 {
        self.state.borrow().protocol.slots.depth()
    }

    pub(super) fn outstanding(&self) -> u16 {
        self.state.borrow().protocol.slots.outstanding()
    }

    pub(super) fn room(&self) -> usize {
        self.state.borrow().protocol.slots.free()
    }

    pub(super) fn set_in_capsule_bytes_max(&self, bytes: u32) {
        self.state.borrow_mut().protocol.in_capsule_bytes_max = bytes;
    }

    pub(super) fn is_outstanding(&self, id: CommandId) -> bool {
        self.state
            .borrow_mut()
            .protocol
            .slots
            .outstanding_mut(id)
            .is_some()
    }

    pub(super) fn each_overdue(&self, age: Duration, each: impl FnMut(CommandId)) {
        let now = self.reactor.now();
        let state = self.state.borrow();
        let outstanding = state.protocol.slots.each_outstanding();
        let overdue = outstanding.filter(|(_, slot)| now.saturating_since(slot.started) >= age);
        overdue.map(|(id, _)| id).for_each(each);
    }

    pub(super) fn end(&self) -> Option<Ended> {
        self.state.borrow().end.clone()
    }

    pub(super) fn poll_ended(&self, context: &mut Context<'_>) -> Poll<Ended> {
        let mut state = self.state.borrow_mut();
        if let Some(end) = &state.end {
            return Poll::Ready(end.clone());
        }
        if !state
            .end_waiters
            .iter()
            .any(|waiter| waiter.will_wake(context.waker()))
        {
            state.end_waiters.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Ends the connection from this side.
    pub(super) fn close(&self, reason: &'static str) {
        self.terminate(ConnectionError::ClosedHere { reason });
    }

    /// Ends the connection: settles what is outstanding, tells the target if it is to be told, wakes
    /// everyone.
    fn terminate(&self, error: ConnectionError) {
        let mut state = self.state.borrow_mut();
        let Some(Link { stream, .. }) = state.link.take() else {
            return;
        };
        // What was cut in two cannot be followed by anything; a connection in that state just ends.
        let clean = state.protocol.output.is_empty();
        let mut output = Output::new();
        if clean && let Some(violation) = error.to_tell() {
            push_terminate(&mut output, &violation, &state.protocol.offender);
        }
        let unsettled_mutation = state.protocol.end();
        state.protocol.output = Output::new();
        let lingers = clean && (!output.is_empty() || matches!(error, ConnectionError::ClosedHere { .. }));
        state.end = Some(Ended {
            error: Arc::new(error),
            unsettled_mutation,
        });
        let task = state.task.take();
        let waiters = std::mem::take(&mut state.end_waiters);
        drop(state);
        if lingers {
            self.reactor.spawn(finish(stream, output)).detach();
        } else {
            drop(stream);
        }
        self.wake_finished();
        self.admit();
        waiters.into_iter().chain(task).for_each(Waker::wake);
    }

    /// Wakes whoever waits for commands that ended.
    fn wake_finished(&self) {
        loop {
            let waker = {
                let mut state = self.state.borrow_mut();
                let Some(slot) = state.protocol.finished.pop() else {
                    return;
                };
                state.protocol.slots.take_waker(slot)
            };
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// One turn of the task.
    fn poll_drive(&self, context: &mut Context<'_>) -> Poll<()> {
        let moved = {
            let mut state = self.state.borrow_mut();
            state.task_woken = false;
            state.turn(context)
        };
        match moved {
            Ok(moved) => {
                self.wake_finished();
                if self.has_waiters() {
                    self.admit();
                }
                let ended = self.state.borrow().link.is_none();
                if ended {
                    return Poll::Ready(());
                }
                if moved {
                    self.state.borrow_mut().task_woken = true;
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Err(error) => {
                self.terminate(error);
                Poll::Ready(())
            }
        }
    }
}

impl State {
    /// Sends and receives until nothing moves, or others should have their turn; says whether there may be
    /// more.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, ConnectionError> {
        match &mut self.task {
            Some(task) => task.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        for _ in 0..ROUNDS_PER_TURN {
            let sent = self.send(context)?;
            let received = self.receive(context)?;
            if !sent && !received {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send(&mut self, context: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let Some(link) = &mut self.link else {
            return Ok(false);
        };
        let mut sent = false;
        loop {
            self.protocol.fill_output();
            if self.protocol.output.is_empty() {
                return Ok(sent);
            }
            match self.protocol.output.poll_send(&mut *link.stream, context) {
                Poll::Pending => return Ok(sent),
                Poll::Ready(Ok(_)) => sent = true,
                Poll::Ready(Err(error)) => return Err(ConnectionError::from_io(&error)),
            }
        }
    }

    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let Some(link) = &mut self.link else {
            return Ok(false);
        };
        link.input.make_room(&link.pool);
        let buffered_bytes_max = self.protocol.buffered_bytes_max();
        let direct = self.protocol.direct();
        let stream = &mut *link.stream;
        let received = match link
            .input
            .poll_receive_at_most(stream, context, direct, buffered_bytes_max)
        {
            Poll::Pending => {
                link.input.rest(&link.pool);
                return Ok(false);
            }
            Poll::Ready(Err(error)) => return Err(ConnectionError::from_io(&error)),
            Poll::Ready(Ok(received)) if received.is_end() => return Err(ConnectionError::Closed),
            Poll::Ready(Ok(received)) => received,
        };
        if received.direct > 0 {
            self.protocol.received_direct(received.direct)?;
        }
        let used = self.protocol.receive(link.input.bytes())?;
        link.input.consume(used);
        Ok(true)
    }
}
