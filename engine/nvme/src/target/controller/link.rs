//! What a queue shares with its controller across reactors: its end, its signs of life, its counters, and
//! the commands that wait for something other than the device.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;

use crate::target::sync::lock;

/// See the module.
pub(crate) struct QueueLink {
    /// The queue identifier; 0 is the admin queue.
    pub(crate) id: u16,
    /// What was read and written over this queue.
    pub(crate) counters: IoCounters,
    traffic: AtomicBool,
    ended: OnceLock<&'static str>,
    connection: AtomicWaker,
    waiting: Mutex<Vec<Waiting>>,
}

/// A command that can be aborted now.
struct Waiting {
    command_id: u16,
    aborted: bool,
    waker: Option<Waker>,
}

impl QueueLink {
    pub(crate) fn new(id: u16) -> Arc<Self> {
        Arc::new(Self {
            id,
            counters: IoCounters::default(),
            traffic: AtomicBool::new(false),
            ended: OnceLock::new(),
            connection: AtomicWaker::new(),
            waiting: Mutex::default(),
        })
    }

    /// The host is alive.
    #[inline]
    pub(crate) fn touch(&self) {
        // Looked at first: a store would take the cache line from the reactor of the keep alive timer each
        // time.
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    /// Whether there were signs of life since the last call.
    pub(crate) fn take_traffic(&self) -> bool {
        self.traffic.swap(false, Ordering::Relaxed)
    }

    /// Has the connection ended. Only the first reason counts.
    pub(crate) fn end(&self, reason: &'static str) {
        let _ = self.ended.set(reason);
        self.connection.wake();
    }

    /// Why the connection is to end, if it is.
    #[inline]
    pub(crate) fn ended(&self) -> Option<&'static str> {
        self.ended.get().copied()
    }

    /// Makes a command known as one that can be aborted until the result is dropped; the result is ready
    /// once it was.
    pub(crate) fn abortable(self: &Arc<Self>, command_id: u16) -> Abortable {
        lock(&self.waiting).push(Waiting {
            command_id,
            aborted: false,
            waker: None,
        });
        Abortable {
            link: self.clone(),
            command_id,
        }
    }

    /// Aborts a command if it can be.
    pub(crate) fn abort(&self, command_id: u16) -> bool {
        let mut waiting = lock(&self.waiting);
        let Some(found) = waiting
            .iter_mut()
            .find(|waiting| waiting.command_id == command_id)
        else {
            return false;
        };
        found.aborted = true;
        let waker = found.waker.take();
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
        true
    }
}

/// Waits for the end of a queue, on the queue's own reactor. Asked in every turn of a connection, it touches
/// nothing that is shared unless the connection's task changed.
pub(crate) struct EndWatch {
    link: Arc<QueueLink>,
    /// The waker that the link has. Only the end takes it from there.
    registered: RefCell<Option<Waker>>,
}

impl EndWatch {
    pub(crate) fn new(link: Arc<QueueLink>) -> Self {
        Self {
            link,
            registered: RefCell::new(None),
        }
    }

    /// Ready once the connection is to end.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<&'static str> {
        let mut registered = self.registered.borrow_mut();
        let is_registered = registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()));
        if !is_registered {
            self.link.connection.register(context.waker());
            *registered = Some(context.waker().clone());
        }
        // Looked at after the registration: what ends the queue sets the reason first and wakes then.
        self.link.ended().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Ready once the command was aborted.
pub(crate) struct Abortable {
    link: Arc<QueueLink>,
    command_id: u16,
}

impl Future for Abortable {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut waiting = lock(&self.link.waiting);
        match waiting
            .iter_mut()
            .find(|waiting| waiting.command_id == self.command_id)
        {
            Some(found) if !found.aborted => {
                found.waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(_) | None => Poll::Ready(()),
        }
    }
}

impl Drop for Abortable {
    fn drop(&mut self) {
        let mut waiting = lock(&self.link.waiting);
        if let Some(index) = waiting
            .iter()
            .position(|waiting| waiting.command_id == self.command_id)
        {
            waiting.swap_remove(index);
        }
    }
}

/// What was read and written, for the SMART / Health log. Each counter has one writer: the queue's own
/// reactor.
#[derive(Default)]
pub(crate) struct IoCounters {
    read_commands: AtomicU64,
    written_commands: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// A reading of counters, or a sum of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct IoTotals {
    pub(crate) read_commands: u64,
    pub(crate) written_commands: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

fn add(counter: &AtomicU64, value: u64) {
    // One writer: no read-modify-write is needed.
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(value),
        Ordering::Relaxed,
    );
}

impl IoCounters {
    /// A read command that succeeded.
    #[inline]
    pub(crate) fn read(&self, bytes: u64) {
        add(&self.read_commands, 1);
        add(&self.read_bytes, bytes);
    }

    /// A command that wrote and succeeded.
    #[inline]
    pub(crate) fn written(&self, bytes: u64) {
        add(&self.written_commands, 1);
        add(&self.written_bytes, bytes);
    }

    pub(crate) fn totals(&self) -> IoTotals {
        IoTotals {
            read_commands: self.read_commands.load(Ordering::Relaxed),
            written_commands: self.written_commands.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}

impl std::ops::AddAssign for IoTotals {
    fn add_assign(&mut self, other: Self) {
        self.read_commands = self.read_commands.wrapping_add(other.read_commands);
        self.written_commands = self.written_commands.wrapping_add(other.written_commands);
        self.read_bytes = self.read_bytes.wrapping_add(other.read_bytes);
        self.written_bytes = self.written_bytes.wrapping_add(other.written_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_reason_ends_a_queue() {
        let link = QueueLink::new(1);
        let watch = EndWatch::new(link.clone());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(watch.poll(&mut context), Poll::Pending);
        link.end("first");
        link.end("second");
        assert_eq!(watch.poll(&mut context), Poll::Ready("first"));
    }

    struct Count(AtomicU64);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_task_that_asked_last_is_woken() {
        let link = QueueLink::new(1);
        let watch = EndWatch::new(link.clone());
        let counts = [0, 1].map(|_| Arc::new(Count(AtomicU64::new(0))));
        for count in [&counts[0], &counts[1], &counts[1]] {
            let waker = Waker::from(count.clone());
            assert_eq!(watch.poll(&mut Context::from_waker(&waker)), Poll::Pending);
        }
        link.end("now");
        assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
    }

    #[test]
    fn traffic_is_taken_once() {
        let link = QueueLink::new(1);
        assert!(!link.take_traffic());
        link.touch();
        link.touch();
        assert!(link.take_traffic() && !link.take_traffic());
    }

    #[test]
    fn only_a_waiting_command_is_aborted() {
        let link = QueueLink::new(1);
        assert!(!link.abort(7));
        let mut waiting = std::pin::pin!(link.abortable(7));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        assert!(!link.abort(8) && link.abort(7));
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(()));
    }

    #[test]
    fn a_command_that_went_on_cannot_be_aborted() {
        let link = QueueLink::new(1);
        drop(link.abortable(7));
        assert!(!link.abort(7));
    }
}
