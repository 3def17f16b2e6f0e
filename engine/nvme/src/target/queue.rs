//! The seam between a connection, which moves bytes, and a queue, which executes commands.
//!
//! A connection turns capsules and data PDUs into a [`Command`] with all of its data, gives it to the queue
//! that its Connect command bound it to, and turns the [`Outcome`] into data PDUs and a response capsule.
//! It knows nothing of controllers and namespaces; a queue knows nothing of PDUs. Both ends can be tested
//! without the other.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pollux_device::Gather;
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{PooledFuture, ReactorHandle};
use smallvec::SmallVec;

use crate::wire::command::{CompletionEntry, SubmissionEntry};

/// A command with everything it needs: the data of a host-to-controller transfer has arrived, and the room
/// for a controller-to-host transfer has been counted.
#[derive(Debug)]
pub struct Command {
    /// The submission queue entry.
    pub entry: SubmissionEntry,
    /// The data that the host sent with it; empty when there is none.
    pub data: Gather,
    /// The most that the host takes back, in bytes, from the command's SGL; 0 when nothing.
    pub transfer_bytes_max: u32,
}

impl Command {
    /// A command that the host sent no data with.
    pub fn without_data(entry: SubmissionEntry, transfer_bytes_max: u32) -> Self {
        Self {
            entry,
            data: Gather::new(),
            transfer_bytes_max,
        }
    }
}

/// Data for the host.
#[derive(Debug, Default)]
pub enum Payload {
    /// None.
    #[default]
    Empty,
    /// One buffer, as a read returns it.
    Buffer(Buffer),
    /// Pieces that others may share.
    Slices(SmallVec<[Slice; 2]>),
}

/// What became of a command. Its data is sent only when the status says success.
#[derive(Debug)]
pub struct Outcome {
    /// The completion queue entry. The connection fills in the submission queue head.
    pub entry: CompletionEntry,
    /// Data for the host, at most `transfer_bytes_max` of the command.
    pub payload: Payload,
    /// The connection ends once the response is sent (Disconnect, failed Connect).
    pub disconnect: bool,
}

/// The future of a command: ready at once, or recycled memory. An asynchronous event request is one that
/// may take days.
pub enum Execution {
    /// Done already; taken by the first poll.
    Ready(Option<Outcome>),
    /// Under way.
    Pending(PooledFuture<Outcome>),
}

impl Execution {
    /// Done already.
    pub fn ready(outcome: Outcome) -> Self {
        Self::Ready(Some(outcome))
    }

    /// Done when the future is.
    pub fn from_future(future: impl Future<Output = Outcome> + 'static) -> Self {
        Self::Pending(PooledFuture::new(future))
    }
}

impl Future for Execution {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        match &mut *self {
            Self::Ready(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
            Self::Pending(future) => Pin::new(future).poll(context),
        }
    }
}

/// A queue pair of a controller, bound to one connection on one reactor by a Connect command.
pub trait Queue {
    /// Starts a command. Every command ends in exactly one outcome, unless the connection ends first. The
    /// execution is polled as soon as it is woken, whether or not the host takes responses: others may wait
    /// for its end.
    fn submit(&self, command: Command) -> Execution;

    /// Checks a command before its data is fetched, so that no buffer is spent on what will be refused:
    /// opcode, namespace, range, transfer size against the limits. `None` when it may go on.
    fn refuse_early(&self, entry: &SubmissionEntry, transfer_bytes: u32) -> Option<CompletionEntry>;

    /// A command that is not fused, or one that the connection refused, came right after the last fused
    /// command that was submitted, where the second half of a pair should have come.
    fn fused_interrupted(&self) {}

    /// Alignment of the memory that the data of this command should be received into, in bytes; 1 when any
    /// will do.
    fn data_align_bytes(&self, entry: &SubmissionEntry) -> usize;

    /// Entries of the submission queue: the most commands that may be outstanding.
    fn depth(&self) -> u16;

    /// Counts a sign of life of the host (traffic-based keep alive).
    fn touch(&self);

    /// Ends when the controller wants the connection gone: keep-alive timeout, controller reset or
    /// shutdown, host no longer allowed, the other queues' loss. The reason is for the log.
    fn poll_terminated(&self, context: &mut Context<'_>) -> Poll<&'static str>;

    /// The connection is gone; nothing more will be submitted. Outstanding executions have been dropped,
    /// and the queue is dropped next.
    fn closed(&self);
}

/// What a connection knows when its Connect command arrives (NVMe Base, Connect Command and Response).
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// The Connect command.
    pub entry: SubmissionEntry,
    /// Its 1,024 bytes of data.
    pub data: Slice,
    /// Where the host connects from.
    pub peer: pollux_reactor::net::Address,
    /// Where it connected to.
    pub local: pollux_reactor::net::Address,
}

/// Makes the queue on the reactor it will live on, and the response to its Connect.
pub type MakeQueue = Box<dyn FnOnce() -> (Rc<dyn Queue>, CompletionEntry) + Send>;

/// An accepted Connect: where the connection is to live, and its queue there.
pub struct Admitted {
    /// The reactor that the connection moves to.
    pub reactor: ReactorHandle,
    /// Makes the queue there.
    pub make_queue: MakeQueue,
}

/// Decides about Connect commands.
pub trait Admission: Send + Sync {
    /// Admits a host to a controller, new or existing.
    ///
    /// # Errors
    ///
    /// The response that refuses it.
    fn connect(&self, request: ConnectRequest) -> Result<Admitted, CompletionEntry>;
}
