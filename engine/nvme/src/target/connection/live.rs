//! A connection that is bound to a queue: one task, which settles, receives and sends until nothing moves.
//!
//! Invariants:
//! - Every command is in exactly one place: it waits for its data or to be asked for it, in the order of
//!   fused commands, for memory for what it reads, it executes, or is done; together they are never more
//!   than the queue is deep.
//! - Bytes that arrive are parsed whether or not there is memory, so that commands whose data is on its way
//!   always end, and give theirs back.
//! - Commands that execute are polled whether or not the host takes responses: what they hold, such as a
//!   place at a namespace that a fused command of another host waits for, they give back when they are
//!   done.
//! - A response is queued only once, and the command's slot is free from then on: the host may reuse it as
//!   soon as it has the response.
//! - No more is received while the output is full, so that a host that does not read cannot make the engine
//!   hold more than one queue's worth of data for it.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use pollux_hugepages::{BufferPool, Slice};
use pollux_reactor::net::{self, Address, Stream};
use pollux_reactor::{InFlight, Started, buffers};

use super::super::queue::{Command, Execution, Outcome, Payload, Queue};
use super::Transport;
use super::fused_order::FusedOrder;
use super::handshake::{Handover, push_terminate};
use super::reads::Reads;
use super::receive::{Parsed, Receiving};
use super::transfers::{Awaiting, Grant, Transfers};
use crate::transport::{Input, Output, finish};
use crate::wire::command::{CompletionEntry, Connect, ConnectAttributes};
use crate::wire::digest::Digest;
use crate::wire::pdu::{
    DataEnd, DataRange, Violation, encode_controller_data, encode_ready_to_transfer, encode_response,
};
use crate::wire::status::Status;

/// Vectored sends in one turn of the task, so that other connections get theirs.
const SENDS_PER_TURN: usize = 8;

/// Bytes received at a time while large data is expected: headers and capsules, and little of the data.
const BUFFERED_BYTES_WITH_LARGE_DATA: usize = 2048;

/// The queue head in responses of a queue without flow control (NVMe Base, Connect Response: SQHD).
const NO_FLOW_CONTROL: u16 = 0xffff;

/// Why a connection ended, for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the host closed it")]
    Closed,
    #[error("the host terminated it, fatal error status {0:#06x}")]
    TerminatedByHost(u16),
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    #[error("the host sent more commands than the queue has entries")]
    Overrun,
    #[error("{0}")]
    TerminatedByController(&'static str),
    #[error("the host disconnected the queue")]
    Disconnected,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// A connection bound to a queue.
pub(super) struct Live {
    pub(super) stream: Box<dyn Stream>,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) transport: Transport,
    pub(super) queue: Rc<dyn Queue>,
    pub(super) pool: BufferPool,
    pub(super) executing: InFlight<Execution>,
    /// Commands that are done while the output is full, and what to release of `reads` when it is not.
    done: VecDeque<(Outcome, u32)>,
    pub(super) reads: Reads,
    pub(super) transfers: Transfers,
    pub(super) fused: FusedOrder,
    pub(super) receiving: Receiving,
    pub(super) depth: u16,
    pub(super) submission_head: u16,
    flow_control: bool,
    /// The connection ends when the output is empty.
    disconnecting: bool,
    /// The data PDU that came last was a large one, so the next one is likely to be.
    pub(super) large_data: bool,
    /// Input may hold something that was left because the output was full.
    unparsed: bool,
    peer: Address,
}

impl Live {
    /// Takes a connection over on this reactor and answers its Connect.
    pub(super) fn new(handover: Handover) -> io::Result<Self> {
        let Handover {
            stream,
            peer,
            transport,
            connect,
            make_queue,
            received,
        } = handover;
        let stream = net::attach(stream)?;
        let pool = buffers();
        let mut input = Input::new();
        input.preload(&received, &pool);
        let (queue, response) = make_queue();
        let depth = queue.depth().max(1);
        let connect = Connect::from_entry(&connect);
        let mut live = Self {
            stream,
            input,
            output: Output::new(),
            transport,
            queue,
            pool,
            executing: InFlight::new(depth),
            done: VecDeque::new(),
            reads: Reads::new(depth),
            transfers: Transfers::new(depth),
            fused: FusedOrder::default(),
            receiving: Receiving::Header,
            depth,
            submission_head: 1 % depth,
            flow_control: !connect
                .attributes
                .contains(ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL),
            disconnecting: false,
            large_data: false,
            unparsed: true,
            peer,
        };
        live.disconnecting = !response.status().is_success();
        live.push_response(&response);
        Ok(live)
    }

    /// Runs until the connection ends.
    pub(super) async fn run(mut self) {
        let end = std::future::poll_fn(|context| self.poll(context)).await;
        let peer = self.peer.clone();
        match &end {
            End::Closed | End::Disconnected => tracing::debug!(%peer, reason = %end, "connection ended"),
            _ => tracing::warn!(%peer, reason = %end, "connection ended"),
        }
        let Self {
            stream,
            input,
            mut output,
            queue,
            executing,
            transfers,
            ..
        } = self;
        // What executes is abandoned; the devices keep the buffers until they are done with them.
        drop((executing, transfers));
        queue.closed();
        // Before the peer is waited for: the host may connect the same queue again.
        drop(queue);
        match end {
            End::Violation(violation) => {
                if violation.deserves_answer() {
                    push_terminate(&mut output, &violation, input.bytes());
                }
                finish(stream, output).await;
            }
            End::Disconnected | End::TerminatedByController(_) => finish(stream, output).await,
            End::Closed | End::TerminatedByHost(_) | End::Overrun | End::Io(_) => {}
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        match self.turn(context) {
            Ok(true) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(false) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    /// Settles, receives and sends once each; says whether anything moved.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if let Poll::Ready(reason) = self.queue.poll_terminated(context) {
            return Err(End::TerminatedByController(reason));
        }
        let mut moved = self.settle(context)?;
        if !self.disconnecting {
            moved |= self.receive(context)?;
            moved |= self.grant(context)?;
        }
        moved |= self.send(context)?;
        if self.disconnecting && self.output.is_empty() {
            return Err(End::Disconnected);
        }
        Ok(moved)
    }

    /// Queues the responses of commands that are done, and starts those that their memory was waited for.
    fn settle(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut settled = false;
        while !self.output.is_full()
            && let Some((outcome, read_bytes)) = self.done.pop_front()
        {
            self.reads.release(read_bytes);
            self.respond(outcome);
            settled = true;
        }
        while let Poll::Ready((slot, outcome)) = self.executing.poll_next(context) {
            let read_bytes = self.reads.end(slot);
            if self.output.is_full() {
                self.done.push_back((outcome, read_bytes));
            } else {
                self.reads.release(read_bytes);
                self.respond(outcome);
                settled = true;
            }
        }
        while !self.output.is_full()
            && let Some(command) = self.reads.next()
        {
            self.dispatch(command)?;
            settled = true;
        }
        Ok(settled)
    }

    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if self.output.is_full() {
            // Sending makes room, and sending is what wakes this task then.
            return Ok(false);
        }
        if self.unparsed {
            self.parse()?;
        }
        self.input.make_room(&self.pool);
        let direct = match &mut self.receiving {
            Receiving::Data { sink, .. } => &mut sink.buffer[sink.filled..sink.end],
            Receiving::Header => &mut [],
        };
        let buffered_bytes_max = if self.large_data {
            BUFFERED_BYTES_WITH_LARGE_DATA
        } else {
            usize::MAX
        };
        let stream = &mut *self.stream;
        match self
            .input
            .poll_receive_at_most(stream, context, direct, buffered_bytes_max)
        {
            Poll::Pending => {
                self.input.rest(&self.pool);
                return Ok(false);
            }
            Poll::Ready(Err(error)) => return Err(error.into()),
            Poll::Ready(Ok(received)) if received.is_end() => return Err(End::Closed),
            Poll::Ready(Ok(received)) => {
                if let Receiving::Data { sink, .. } = &mut self.receiving {
                    sink.filled += received.direct;
                }
            }
        }
        self.queue.touch();
        self.parse()?;
        Ok(true)
    }

    fn parse(&mut self) -> Result<(), End> {
        self.unparsed = false;
        while !self.disconnecting {
            if self.output.is_full() {
                self.unparsed = true;
                break;
            }
            match self.parse_one()? {
                Parsed::One => {}
                Parsed::NeedMore => break,
            }
        }
        Ok(())
    }

    /// Asks for the data of commands, as far as there is memory for it.
    fn grant(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut granted = false;
        while !self.output.is_full()
            && let Poll::Ready(grant) = self.transfers.poll_grant(&self.pool, context)
        {
            granted = true;
            match grant {
                Grant::Ready { tag, range } => {
                    let framing = self.transport.framing;
                    let encoded = self
                        .output
                        .encode(|room| encode_ready_to_transfer(range, tag, &framing, room));
                    debug_assert!(encoded, "nothing is granted while the output is full");
                }
                Grant::Refused(Awaiting {
                    entry, fused: None, ..
                }) => {
                    let command_id = entry.command_id.get();
                    self.push_response(&CompletionEntry::new(command_id, Status::COMMAND_INTERRUPTED, 0));
                }
                // Without its data, it makes the queue fail the pair.
                Grant::Refused(Awaiting { entry, fused, .. }) => {
                    let command = Command::without_data(entry, 0);
                    self.complete(command, fused)?;
                }
            }
        }
        Ok(granted)
    }

    fn send(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut sent = false;
        for _ in 0..SENDS_PER_TURN {
            if self.output.is_empty() {
                break;
            }
            match self.output.poll_send(&mut *self.stream, context) {
                Poll::Pending => break,
                Poll::Ready(result) => {
                    result?;
                    sent = true;
                }
            }
        }
        Ok(sent)
    }

    /// Starts a complete command.
    pub(super) fn dispatch(&mut self, command: Command) -> Result<(), End> {
        let read_bytes = command.transfer_bytes_max;
        let mut execution = self.queue.submit(command);
        if let Execution::Ready(outcome) = &mut execution
            && let Some(outcome) = outcome.take()
        {
            self.respond(outcome);
            return Ok(());
        }
        match self.executing.start(execution) {
            Ok(Started::Ready(outcome)) => self.respond(outcome),
            Ok(Started::Pending(slot)) => self.reads.begin(slot, read_bytes),
            Err(_) => return Err(End::Overrun),
        }
        Ok(())
    }

    /// Commands that the host may not reuse the identifier of yet.
    pub(super) fn outstanding(&self) -> usize {
        self.executing.len()
            + self.done.len()
            + self.reads.waiting()
            + self.transfers.len()
            + self.fused.complete_and_waiting()
    }

    /// Queues what a command returned: data if there is any, and a response capsule unless the data stands
    /// for it.
    fn respond(&mut self, outcome: Outcome) {
        let Outcome {
            entry,
            payload,
            disconnect,
        } = outcome;
        self.disconnecting |= disconnect;
        let bytes = payload.len();
        if bytes == 0 || !entry.status().is_success() {
            return self.push_response(&entry);
        }
        // The data may stand for the response only when the host needs nothing from it (NVMe/TCP Transport,
        // C2HData PDU, SUCCESS flag).
        let stands_for_response = !self.flow_control && entry.result.get() == 0;
        let end = if stands_for_response {
            DataEnd::LastAndSuccess
        } else {
            DataEnd::Last
        };
        self.push_data(entry.command_id.get(), payload, bytes, end);
        if !stands_for_response {
            self.push_response(&entry);
        }
    }

    fn push_data(&mut self, command_id: u16, payload: Payload, bytes: usize, end: DataEnd) {
        let framing = self.transport.framing;
        let range = DataRange {
            command_id,
            offset_bytes: 0,
            length_bytes: bytes as u32,
        };
        let encoded = self
            .output
            .encode(|room| encode_controller_data(range, end, &framing, room));
        debug_assert!(encoded, "nothing is settled or parsed while the output is full");
        let digest = framing.data_digest.then(|| payload.digest());
        match payload {
            Payload::Empty => {}
            Payload::Buffer(buffer) => self.output.push_buffer(buffer),
            Payload::Slices(slices) => slices.into_iter().for_each(|slice| self.output.push_slice(slice)),
        }
        if let Some(digest) = digest {
            let pushed = self.output.push_bytes(&digest.to_bytes());
            debug_assert!(pushed, "nothing is settled or parsed while the output is full");
        }
    }

    pub(super) fn push_response(&mut self, entry: &CompletionEntry) {
        let head = if self.flow_control {
            self.submission_head
        } else {
            NO_FLOW_CONTROL
        };
        let entry = entry.with_queue_head(head);
        let framing = self.transport.framing;
        let encoded = self.output.encode(|room| encode_response(&entry, &framing, room));
        debug_assert!(encoded, "nothing is settled or parsed while the output is full");
    }
}

impl Payload {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Buffer(buffer) => buffer.len(),
            Self::Slices(slices) => slices.iter().map(Slice::len).sum(),
        }
    }

    fn digest(&self) -> Digest {
        let mut digest = Digest::new();
        match self {
            Self::Empty => {}
            Self::Buffer(buffer) => digest.update(buffer),
            Self::Slices(slices) => slices.iter().for_each(|slice| digest.update(slice)),
        }
        digest
    }
}
