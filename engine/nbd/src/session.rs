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
//! - After a disconnect request no more is received, and the connection ends when all slots are free and all
//!   replies are sent.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pollux_device::{BlockDevice, Completion, Gather, IoError, Reply, Request, ZeroOptions};
use pollux_hugepages::{Buffer, BufferPool};
use pollux_reactor::InFlight;
use pollux_reactor::net::{Input, Output, Stream};

use crate::reply::{Replies, StatusRun};
use crate::request::{self, Accepted, STEP_BYTES_MAX, TRANSFER_BYTES_MAX, piece_bytes};
use crate::wire::{BadMagic, CommandKind, NbdError, ReplyStyle, RequestHeader, command_flag};

/// Requests under way on one connection; more wait in the socket.
const REQUESTS_MAX: u16 = 256;

/// Pieces of one request that are under way at a time.
const PIECES_PER_REQUEST: u16 = 4;

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
    completion: Completion,
}

impl Future for Piece {
    type Output = (u16, u64, Result<Reply, IoError>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.completion).poll(context));
        Poll::Ready((self.slot, self.from, result))
    }
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

enum Parsed {
    One,
    NeedMore,
    /// A slot or a piece has to become free first.
    Busy,
    ShortOfMemory {
        bytes: usize,
    },
}

/// A connection in transmission.
pub(crate) struct Session {
    stream: Box<dyn Stream>,
    input: Input,
    output: Output,
    pool: BufferPool,
    device: Rc<dyn BlockDevice>,
    style: ReplyStyle,
    block_status: bool,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    pieces: InFlight<Piece>,
    receiving: Receiving,
    /// Reads that are to go on when there is memory and room.
    stalled: VecDeque<u16>,
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
    pub(crate) style: ReplyStyle,
    pub(crate) block_status: bool,
}

impl Session {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            stream,
            input,
            output,
            pool,
            device,
            style,
            block_status,
        } = parts;
        Self {
            stream,
            input,
            output,
            pool,
            device,
            style,
            block_status,
            slots: (0..REQUESTS_MAX).map(|_| None).collect(),
            free: (0..REQUESTS_MAX).rev().collect(),
            pieces: InFlight::new(REQUESTS_MAX * PIECES_PER_REQUEST),
            receiving: Receiving::Header,
            stalled: VecDeque::with_capacity(usize::from(REQUESTS_MAX)),
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
            Ok(false) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await;
        (end, self.stream, self.output)
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = self.settle(context)?;
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
                    moved = true;
                }
            }
        }
        if self.disconnecting && self.output.is_empty() && self.free.len() == self.slots.len() {
            return Err(End::Disconnected);
        }
        Ok(moved)
    }

    fn settle(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut settled = false;
        while !self.output.is_full() {
            let Poll::Ready((_, (slot, from, result))) = self.pieces.poll_next(context) else {
                break;
            };
            self.finish_piece(slot, from, result)?;
            settled = true;
        }
        Ok(settled)
    }

    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if self.output.is_full() {
            return Ok(false);
        }
        if self.unparsed && !self.parse(context)? {
            return Ok(false);
        }
        if self.disconnecting {
            return Ok(true);
        }
        self.input.make_room(&self.pool);
        let direct: &mut [u8] = match &mut self.receiving {
            Receiving::Data {
                piece: Some((buffer, filled)),
                ..
            } => &mut buffer[*filled..],
            _ => &mut [],
        };
        let received = match self.input.poll_receive(&mut *self.stream, context, direct) {
            Poll::Pending => {
                self.input.rest(&self.pool);
                return Ok(false);
            }
            Poll::Ready(received) => received?,
        };
        if received.is_end() {
            return Err(End::Closed);
        }
        if let Receiving::Data {
            piece: Some((_, filled)),
            ..
        } = &mut self.receiving
        {
            *filled += received.direct;
        }
        self.parse(context)?;
        Ok(true)
    }

    /// Parses what has arrived; false when something has to become free before more is received.
    fn parse(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        self.unparsed = false;
        loop {
            if self.disconnecting {
                return Ok(true);
            }
            if self.output.is_full() {
                self.unparsed = true;
                return Ok(false);
            }
            match self.parse_one()? {
                Parsed::One => {}
                Parsed::NeedMore => return Ok(true),
                Parsed::Busy => {
                    self.unparsed = true;
                    return Ok(false);
                }
                Parsed::ShortOfMemory { bytes } => {
                    self.unparsed = true;
                    self.pool.register_waiter(bytes, context.waker());
                    return Ok(false);
                }
            }
        }
    }

    fn parse_one(&mut self) -> Result<Parsed, End> {
        match &mut self.receiving {
            Receiving::Header => self.parse_header(),
            Receiving::Data { .. } => self.parse_data(),
            Receiving::Skip { left, header, error } => {
                let have = u64::try_from(self.input.bytes().len())
                    .unwrap_or(u64::MAX)
                    .min(*left);
                self.input.consume(have as usize);
                *left -= have;
                if *left > 0 {
                    return Ok(Parsed::NeedMore);
                }
                let (header, error) = (*header, *error);
                self.receiving = Receiving::Header;
                self.replies().end(&header, Err(error));
                Ok(Parsed::One)
            }
        }
    }

    fn parse_header(&mut self) -> Result<Parsed, End> {
        let Some((header, len)) = RequestHeader::decode(self.input.bytes(), self.style)? else {
            return Ok(Parsed::NeedMore);
        };
        let Some(&slot) = self.free.last() else {
            return Ok(Parsed::Busy);
        };
        let geometry = self.device.geometry();
        let checked = request::check(&header, &geometry, self.block_status);
        if header.kind == CommandKind::Disconnect {
            self.disconnecting = true;
            return Ok(Parsed::One);
        }
        self.input.consume(len);
        let accepted = match checked {
            Ok(accepted) => accepted,
            Err(error) => return self.refuse(header, error),
        };
        self.free.pop();
        self.slots[usize::from(slot)] = Some(Slot {
            accepted,
            begun: 0,
            pieces_under_way: 0,
            error: None,
        });
        match header.kind {
            CommandKind::Write if header.length > 0 => {
                self.receiving = Receiving::Data {
                    slot,
                    piece: None,
                    received: 0,
                };
            }
            CommandKind::Read if header.length > 0 => self.stalled.push_back(slot),
            _ => self.execute_without_data(slot)?,
        }
        Ok(Parsed::One)
    }

    /// Answers a request that is not executed; its data, if it has any, comes first.
    fn refuse(&mut self, header: RequestHeader, error: NbdError) -> Result<Parsed, End> {
        if request::carries_data(&header) && header.length > 0 {
            if header.length > 64 * TRANSFER_BYTES_MAX {
                return Err(End::Oversized(header.length));
            }
            self.receiving = Receiving::Skip {
                left: header.length,
                header,
                error,
            };
        } else {
            self.replies().end(&header, Err(error));
        }
        Ok(Parsed::One)
    }

    fn parse_data(&mut self) -> Result<Parsed, End> {
        let geometry = self.device.geometry();
        let Receiving::Data {
            slot,
            piece,
            received,
        } = &mut self.receiving
        else {
            return Ok(Parsed::One);
        };
        let index = *slot;
        let Some(state) = self.slots.get(usize::from(index)).and_then(Option::as_ref) else {
            return Ok(Parsed::One);
        };
        let length = state.accepted.header.length;
        let from = *received;
        let data = match piece {
            None => {
                if state.pieces_under_way >= PIECES_PER_REQUEST || self.pieces.is_full() {
                    return Ok(Parsed::Busy);
                }
                let wanted = piece_bytes(length, from, &geometry) as usize;
                let here = self.input.bytes();
                let aligned = geometry.memory_align_bytes <= 1
                    || (here.as_ptr() as usize).is_multiple_of(geometry.memory_align_bytes as usize);
                if here.len() >= wanted && wanted <= CUT_BYTES_MAX && aligned {
                    Gather::from(self.input.take(wanted))
                } else if here.is_empty() {
                    return Ok(Parsed::NeedMore);
                } else {
                    let Some(buffer) = self.pool.allocate(wanted) else {
                        return Ok(Parsed::ShortOfMemory { bytes: wanted });
                    };
                    *piece = Some((buffer, 0));
                    return Ok(Parsed::One);
                }
            }
            Some((buffer, filled)) => {
                let have = self.input.bytes().len().min(buffer.len() - *filled);
                buffer[*filled..*filled + have].copy_from_slice(&self.input.bytes()[..have]);
                self.input.consume(have);
                *filled += have;
                if *filled < buffer.len() {
                    return Ok(Parsed::NeedMore);
                }
                match piece.take() {
                    Some((buffer, _)) => Gather::from(buffer),
                    None => return Ok(Parsed::One),
                }
            }
        };
        *received += data.len_bytes() as u64;
        if *received >= length {
            self.receiving = Receiving::Header;
        }
        self.begin_write(index, from, data)?;
        Ok(Parsed::One)
    }

    fn begin_write(&mut self, index: u16, from: u64, data: Gather) -> Result<(), End> {
        let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(());
        };
        slot.begun = from + data.len_bytes() as u64;
        if slot.error.is_some() {
            // The rest of a write that has failed is received and dropped.
            if slot.pieces_under_way == 0 && slot.begun >= slot.accepted.header.length {
                self.end(index);
            }
            return Ok(());
        }
        let block = slot.accepted.block + from / u64::from(self.device.geometry().block_bytes);
        let force_unit_access = slot.accepted.force_unit_access;
        self.start(
            index,
            from,
            Request::Write {
                block,
                from: data,
                force_unit_access,
            },
        )
    }

    /// Hands a piece to the device.
    fn start(&mut self, index: u16, from: u64, request: Request) -> Result<(), End> {
        if let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) {
            slot.pieces_under_way += 1;
        }
        match self.device.submit(request).try_take() {
            Ok(result) => self.finish_piece(index, from, result),
            Err(completion) => {
                let started = self.pieces.start(Piece {
                    slot: index,
                    from,
                    completion,
                });
                match started {
                    Ok(pollux_reactor::Started::Ready((slot, from, result))) => {
                        self.finish_piece(slot, from, result)
                    }
                    Ok(pollux_reactor::Started::Pending(_)) => Ok(()),
                    // There is room for the pieces of all slots.
                    Err(piece) => self.finish_piece(piece.slot, from, Err(IoError::ResourceShortage)),
                }
            }
        }
    }

    fn execute_without_data(&mut self, index: u16) -> Result<(), End> {
        let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(());
        };
        let Accepted {
            header,
            block,
            blocks,
            force_unit_access,
        } = slot.accepted;
        let block_bytes = u64::from(self.device.geometry().block_bytes);
        let from = slot.begun;
        let step = (header.length - from.min(header.length)).min(STEP_BYTES_MAX);
        let (block, step_blocks) = (block + from / block_bytes, (step / block_bytes).min(blocks));
        slot.begun = from + step;
        let request = match header.kind {
            CommandKind::Flush => Request::Flush,
            CommandKind::Trim => Request::Deallocate {
                block,
                blocks: step_blocks,
            },
            CommandKind::WriteZeroes => Request::WriteZeroes {
                block,
                blocks: step_blocks,
                options: ZeroOptions {
                    force_unit_access,
                    may_deallocate: header.flags & command_flag::NO_HOLE == 0,
                },
            },
            CommandKind::BlockStatus => {
                self.free_slot(index);
                return self.answer_status(&header);
            }
            // Cache is a hint, and reads and writes of nothing are done.
            _ => {
                self.end(index);
                return Ok(());
            }
        };
        self.start(index, from, request)
    }

    fn answer_status(&mut self, header: &RequestHeader) -> Result<(), End> {
        // Devices do not tell holes yet: everything is allocated. Compact replies count 32 bits.
        let most = if self.style == ReplyStyle::Extended {
            u64::MAX
        } else {
            u64::from(u32::MAX) & !4095
        };
        let runs = [StatusRun {
            bytes: header.length.min(most),
            hole: false,
        }];
        self.replies().status(header, &runs);
        Ok(())
    }

    /// Goes on with reads as long as there are memory and room.
    fn resume_reads(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        while let Some(&index) = self.stalled.front() {
            if self.output.is_full() || self.pieces.is_full() {
                break;
            }
            let geometry = self.device.geometry();
            let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
                break;
            };
            let from = slot.begun;
            let bytes = piece_bytes(slot.accepted.header.length, from, &geometry);
            let Some(into) = self.pool.allocate(bytes as usize) else {
                self.pool.register_waiter(bytes as usize, context.waker());
                break;
            };
            let block = slot.accepted.block + from / u64::from(geometry.block_bytes);
            slot.begun = from + bytes;
            self.stalled.pop_front();
            self.start(index, from, Request::Read { block, into })?;
            moved = true;
        }
        Ok(moved)
    }

    fn finish_piece(&mut self, index: u16, from: u64, result: Result<Reply, IoError>) -> Result<(), End> {
        let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(());
        };
        slot.pieces_under_way -= 1;
        let header = slot.accepted.header;
        let complete = slot.begun >= header.length;
        match result {
            Ok(data @ (Reply::Data(_) | Reply::Shared { .. })) => {
                Replies {
                    output: &mut self.output,
                    style: self.style,
                }
                .data(&header, from, data, complete);
                if complete {
                    self.free_slot(index);
                } else {
                    self.stalled.push_back(index);
                }
                return Ok(());
            }
            // A read that brings no data has failed, whatever the device calls it.
            Ok(Reply::Done) if header.kind == CommandKind::Read => {
                slot.error.get_or_insert(NbdError::Io);
            }
            Ok(Reply::Done) => {}
            Err(error) => {
                slot.error.get_or_insert(request::error_of(error));
            }
        }
        let failed = slot.error.is_some();
        let idle = slot.pieces_under_way == 0;
        match header.kind {
            CommandKind::Read if from > 0 && self.style == ReplyStyle::Simple => return Err(End::HalfRead),
            CommandKind::Read => self.end(index),
            CommandKind::Write if idle && complete => self.end(index),
            CommandKind::Write => {}
            _ if failed || complete => self.end(index),
            _ => self.execute_without_data(index)?,
        }
        Ok(())
    }

    /// Answers the request in a slot and frees it.
    fn end(&mut self, index: u16) {
        let Some(slot) = self.free_slot(index) else { return };
        let result = slot.error.map_or(Ok(()), Err);
        self.replies().end(&slot.accepted.header, result);
    }

    fn free_slot(&mut self, index: u16) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(index))?.take()?;
        self.free.push(index);
        Some(slot)
    }

    fn replies(&mut self) -> Replies<'_> {
        Replies {
            output: &mut self.output,
            style: self.style,
        }
    }
}
