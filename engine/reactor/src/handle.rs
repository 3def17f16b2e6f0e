//! How other threads reach a reactor: its mailbox, and the handle that leaves messages in it.
//!
//! Invariant: once `closed` is set, no message stays in the mailbox: its sender would wait for an answer for
//! ever.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, mpsc};

use async_task::Runnable;
use crossbeam::queue::{ArrayQueue, SegQueue};

use crate::context::{self, Reactor};
use crate::counters::Counters;
use crate::driver::WakeReactor;

/// Messages that may wait in a reactor's mailbox; one more is refused.
pub const MAILBOX_CAPACITY: usize = 16_384;

/// The number of a reactor, unique within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReactorId(pub u32);

impl fmt::Display for ReactorId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "reactor {}", self.0)
    }
}

pub(crate) type Message = Box<dyn FnOnce() + Send>;

/// The part of a reactor that other threads touch.
pub(crate) struct Shared {
    pub(crate) id: ReactorId,
    /// Tasks of this reactor that another thread woke. Bounded by the number of tasks: each is in it at most
    /// once.
    pub(crate) woken: SegQueue<Runnable>,
    pub(crate) mailbox: ArrayQueue<Message>,
    /// The reactor has stopped and takes no message any more.
    closed: AtomicBool,
    pub(crate) waker: Arc<dyn WakeReactor>,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(id: ReactorId, waker: Arc<dyn WakeReactor>) -> Self {
        Self {
            id,
            woken: SegQueue::new(),
            mailbox: ArrayQueue::new(MAILBOX_CAPACITY),
            closed: AtomicBool::new(false),
            waker,
            counters: Counters::default(),
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Takes no message from now on, and drops those that wait.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.drop_messages();
    }

    /// Either the one who closes sees a message that was pushed, or its sender sees that the mailbox is
    /// closed: both write, fence, and then read what the other wrote.
    fn drop_messages(&self) {
        fence(Ordering::SeqCst);
        while self.mailbox.pop().is_some() {}
    }
}

/// Reaches a reactor from any thread.
#[derive(Clone)]
pub struct ReactorHandle(Arc<Shared>);

/// The reactor's mailbox is full, or the reactor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox of {0} takes no message: the reactor is overloaded or stopped")]
pub struct MailboxFull(pub ReactorId);

/// A call to another reactor that brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoteCallError {
    /// The message could not be left.
    #[error(transparent)]
    MailboxFull(#[from] MailboxFull),
    /// The reactor stopped before it answered.
    #[error("{0} stopped before it answered")]
    Stopped(ReactorId),
    /// A task wanted to block its own reactor.
    #[error("a task of {0} must not block its thread: await the call instead")]
    WouldBlock(ReactorId),
}

impl ReactorHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The reactor's number.
    pub fn id(&self) -> ReactorId {
        self.0.id
    }

    /// Its counters, live.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Has the reactor make a future and run it to its end.
    ///
    /// # Errors
    ///
    /// [`MailboxFull`]; nothing was left then.
    pub fn spawn<M, F>(&self, make: M) -> Result<(), MailboxFull>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.send(Box::new(move || context::spawn(make()).detach()))
    }

    /// Has the reactor run a future and waits for what it returns; from any executor.
    ///
    /// # Errors
    ///
    /// [`RemoteCallError`] when the reactor cannot take the call or stops before its end.
    pub async fn call<M, F, T>(&self, make: M) -> Result<T, RemoteCallError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.spawn(move || {
            let future = make();
            async move {
                // The caller may have gone away; then nobody wants the answer.
                let _ = sender.send(future.await);
            }
        })?;
        receiver.await.map_err(|_| RemoteCallError::Stopped(self.id()))
    }

    /// Has the reactor run a future and blocks the calling thread until it returns; for tests and tools.
    ///
    /// # Errors
    ///
    /// Those of [`call`](Self::call), and [`RemoteCallError::WouldBlock`] on the thread of a reactor.
    pub fn call_blocking<M, F, T>(&self, make: M) -> Result<T, RemoteCallError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        if let Some(reactor) = Reactor::try_current() {
            return Err(RemoteCallError::WouldBlock(reactor.id()));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.spawn(move || {
            let future = make();
            async move {
                // The caller waits until this, or until the sender is dropped with the future.
                let _ = sender.send(future.await);
            }
        })?;
        receiver.recv().map_err(|_| RemoteCallError::Stopped(self.id()))
    }

    fn send(&self, message: Message) -> Result<(), MailboxFull> {
        let shared = &self.0;
        if shared.is_closed() {
            return Err(MailboxFull(self.id()));
        }
        shared.mailbox.push(message).map_err(|_| MailboxFull(self.id()))?;
        fence(Ordering::SeqCst);
        if shared.is_closed() {
            shared.drop_messages();
            return Err(MailboxFull(self.id()));
        }
        shared.waker.wake();
        Ok(())
    }

    /// Wakes the reactor if it sleeps.
    pub(crate) fn wake(&self) {
        self.0.waker.wake();
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("ReactorHandle").field(&self.0.id).finish()
    }
}
