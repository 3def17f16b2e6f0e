//! The transmission phase: one task a connection, which settles, receives and sends until nothing moves.
//!
//! A request lives in a slot until it is answered. Data is moved in pieces: a write's as they arrive, a
//! read's one after the other, since a simple reply has to carry them in order.
//!
//! Invariants:
//! - A slot is in use from its request's header until its reply is queued; no more requests are taken while
//!   none is free.
//! - Of each request at most [`PIECES_PER_REQUEST`] pieces are under way, of a read one.
//! - Nothing is settled or received while the output is full.
//! - A simple reply of several pieces has the output for itself: its read runs while nothing else does.
//! - After a disconnect request no more is received, and the connection ends when all slots are free and all
//!   replies are sent.
//!
//! What keeps connections from waiting for each other's memory for ever:
//! - Writes never wait for memory: without any, what has arrived is written where it lies.
//! - Reads wait in the order of all who wait for memory of the reactor. Who waits gives back what it received
//!   into, though there is something in it, and has no more than [`READ_BYTES_MAX`] on the way.
//! - Everything else is held until the device is done, or until the client sends or takes the next bytes; one
//!   that does neither for long is let go (see `watch`).

mod execute;
mod receive;
mod slow;
mod watch;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pollux_device::{BlockDevice, Completion, Device, IoError, Reply};
use pollux_hugepages::{Buffer, BufferPool, BufferWait};
use pollux_reactor::InFlight;
use pollux_reactor::net::{Input, Output, Stream};

use crate::reply::Replies;
use crate::request::Accepted;
use crate::wire::{BadMagic, NbdError, ReplyStyle, RequestHeader};
use slow::Slow;
use watch::Watch;

/// Requests under way on one connection; more wait in the socket.
const REQUESTS_MAX: u16 = 256;

/// Pieces of one request that are under way at a time.
const PIECES_PER_REQUEST: u16 = 4;

/// Bytes of reads that are under way at the device on one connection; one piece in any case.
const READ_BYTES_MAX: u64 = 4 << 20;

/// Data up to this size is cut out of the receive buffer when it is there whole.
const CUT_BYTES_MAX: usize = 64 * 1024;

/// Vectored sends in one turn.
const SENDS_PER_TURN: usize = 8;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client closed the connection")]
    Closed,
    #[error("the client disconnected")]
    Disconnected,
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
    #[error("a write of {0} bytes is beyond all limits")]
    Oversized(u64),
    #[error("a read failed when part of its data was sent already")]
    HalfRead,
    #[error("in the middle of a request or reply, the client has moved nothing for {} s", .0.as_secs())]
    Stalled(Duration),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// A request under way.
struct Slot {
    accepted: Accepted,
    /// Bytes handed to the device, in order.
    begun: u64,
    pieces_under_way: u16,
    error: Option<NbdError>,
}

/// A piece under way: the completion of the device, and whose it is.
struct Piece {
    slot: u16,
    /// Bytes into the request.
    from: u64,
    /// Bytes that are read; 0 for what is not a read.
    read_bytes: u64,
    completion: Completion,
}

impl Future for Piece {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.completion).poll(context));
        Poll::Ready(Finished {
            slot: self.slot,
            from: self.from,
            read_bytes: self.read_bytes,
            result,
        })
    }
}

/// A piece that the device is done with.
struct Finished {
    slot: u16,
    from: u64,
    read_bytes: u64,
    result: Result<Reply, IoError>,
}

/// What the next received bytes are.
enum Receiving {
    Header,
    /// Data of the write in this slot; the piece that is being filled, and how far.
    Data {
        slot: u16,
        piece: Option<(Buffer, usize)>,
        received: u64,
    },
    /// Data of a request that was refused, and the answer that follows it.
    Skip {
        left: u64,
        header: RequestHeader,
        error: NbdError,
    },
}

/// A connection in transmission.
pub(crate) struct Session {
    stream: Box<dyn Stream>,
    input: Input,
    output: Output,
    pool: BufferPool,
    device: Rc<dyn BlockDevice>,
    /// The same device, as the process knows it.
    whole_device: Arc<dyn Device>,
    style: ReplyStyle,
    block_status: bool,
    allow_resize: bool,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    pieces: InFlight<Piece>,
    receiving: Receiving,
    /// Reads that are to go on when there is memory and room.
    stalled: VecDeque<u16>,
    /// Memory that the first of them waits for.
    memory: Option<BufferWait>,
    read_bytes_under_way: u64,
    /// A read whose simple reply comes in several pieces: nothing else is taken until it is answered.
    alone: Option<u16>,
    slow: Slow,
    watch: Watch,
    disconnecting: bool,
    unparsed: bool,
}

/// What a session takes over from the negotiation.
pub(crate) struct Parts {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) pool: BufferPool,
    pub(crate) device: Rc<dyn BlockDevice>,
    pub(crate) whole_device: Arc<dyn Device>,
    pub(crate) style: ReplyStyle,
    pub(crate) block_status: bool,
    pub(crate) allow_resize: bool,
    pub(crate) stall_timeout: Duration,
}

impl Session {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            stream,
            input,
            output,
            pool,
            device,
            whole_device,
            style,
            block_status,
            allow_resize,
            stall_timeout,
        } = parts;
        Self {
            stream,
            input,
            output,
            pool,
            device,
            whole_device,
            style,
            block_status,
            allow_resize,
            slots: (0..REQUESTS_MAX).map(|_| None).collect(),
            free: (0..REQUESTS_MAX).rev().collect(),
            pieces: InFlight::new(REQUESTS_MAX * PIECES_PER_REQUEST),
            receiving: Receiving::Header,
            stalled: VecDeque::with_capacity(usize::from(REQUESTS_MAX)),
            memory: None,
            read_bytes_under_way: 0,
            alone: None,
            slow: Slow::default(),
            watch: Watch::new(stall_timeout),
            disconnecting: false,
            unparsed: true,
        }
    }

    /// Runs until the connection ends.
    pub(crate) async fn run(mut self) -> (End, Box<dyn Stream>, Output) {
        let end = std::future::poll_fn(|context| match self.turn(context) {
            Ok(true) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(false) => self.rest(context).map_or(Poll::Pending, Poll::Ready),
            Err(end) => Poll::Ready(end),
        })
        .await;
        (end, self.stream, self.output)
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = self.settle(context)?;
        moved |= self.settle_slow(context);
        if !self.disconnecting {
            moved |= self.receive(context)?;
        }
        moved |= self.resume_reads(context)?;
        for _ in 0..SENDS_PER_TURN {
            if self.output.is_empty() {
                break;
            }
            match self.output.poll_send(&mut *self.stream, context) {
                Poll::Pending => break,
                Poll::Ready(sent) => {
                    sent?;
                    self.watch.note_progress();
                    moved = true;
                }
            }
        }
        if self.disconnecting && self.output.is_empty() && self.free.len() == self.slots.len() {
            return Err(End::Disconnected);
        }
        Ok(moved)
    }

    /// Before the task sleeps: memory is given back that others may wait for, and the client is watched.
    fn rest(&mut self, context: &mut Context<'_>) -> Option<End> {
        if self.memory.is_some() && self.unparsed {
            self.input.retreat();
        }
        // What is not parsed waits for the device or for memory, and not for the client.
        let is_complete = matches!(self.receiving, Receiving::Header) && self.input.bytes().is_empty();
        if self.output.is_empty() && (self.unparsed || is_complete) {
            self.watch.note_progress();
        }
        self.watch.poll_stalled(context).map(End::Stalled)
    }

    fn settle(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut settled = false;
        while !self.output.is_full() {
            let Poll::Ready((_, finished)) = self.pieces.poll_next(context) else {
                break;
            };
            self.finish_piece(finished)?;
            settled = true;
        }
        Ok(settled)
    }

    fn replies(&mut self) -> Replies<'_> {
        Replies {
            output: &mut self.output,
            style: self.style,
        }
    }
}
