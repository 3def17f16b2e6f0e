//! Replies, in the style that was negotiated.

use pollux_device::{AllocationRun, Reply};
use pollux_hugepages::Slice;
use pollux_reactor::net::Output;

use crate::negotiate::BASE_ALLOCATION_ID;
use crate::wire::{
    Chunk, ChunkKind, CommandKind, NbdError, ReplyStyle, RequestHeader, Writer, encode_simple,
};

/// Status flags of `base:allocation`: a hole that reads as zeros (proto, "base:allocation metadata context").
const HOLE_AND_ZERO: u32 = 0b11;

/// Bytes of an error chunk's payload: error and the length of a message that is not sent.
const ERROR_BYTES: usize = 6;

/// Writes replies to an output that has room: callers look at [`Output::is_full`] first.
pub(crate) struct Replies<'a> {
    pub(crate) output: &'a mut Output,
    pub(crate) style: ReplyStyle,
}

impl Replies<'_> {
    /// The end of a request that returns nothing, or of one that failed. Where structured replies were
    /// negotiated, only requests that may return data need them (proto, "Structured reply chunk message"):
    /// the others get a simple one, which clients receive at once.
    pub(crate) fn end(&mut self, header: &RequestHeader, result: Result<(), NbdError>) {
        let returns_data = matches!(header.kind, CommandKind::Read | CommandKind::BlockStatus);
        match (self.style, result) {
            (ReplyStyle::Structured, result) if !returns_data => self.simple(header, result),
            (ReplyStyle::Simple, result) => self.simple(header, result),
            (_, Ok(())) => self.chunk(header, ChunkKind::None, true, &[]),
            (_, Err(error)) => {
                let mut payload = [0; ERROR_BYTES];
                payload[..4].copy_from_slice(&(error as u32).to_be_bytes());
                self.chunk(header, ChunkKind::Error, true, &payload);
            }
        }
    }

    fn simple(&mut self, header: &RequestHeader, result: Result<(), NbdError>) {
        self.push(|room| encode_simple(header.cookie, result.err(), room));
    }

    /// A piece of what was read, `done` bytes into the request.
    pub(crate) fn data(&mut self, header: &RequestHeader, done: u64, data: Reply, last: bool) {
        let data_bytes = match &data {
            Reply::Done => 0,
            Reply::Data(buffer) => buffer.len(),
            Reply::Shared { data, .. } => data.len(),
        };
        if self.style == ReplyStyle::Simple {
            if done == 0 {
                self.push(|room| encode_simple(header.cookie, None, room));
            }
        } else {
            let offset_bytes = (header.offset + done).to_be_bytes();
            let chunk = Chunk {
                cookie: header.cookie,
                offset: header.offset,
                kind: ChunkKind::OffsetData,
                done: last,
                payload_bytes: (offset_bytes.len() + data_bytes) as u64,
            };
            let style = self.style;
            self.push(|room| {
                let len = chunk.encode(style, room)?;
                Writer::new(room.get_mut(len..)?).bytes(&offset_bytes)?;
                Some(len + offset_bytes.len())
            });
        }
        match data {
            Reply::Done => {}
            Reply::Data(buffer) => self.output.push_buffer(buffer),
            Reply::Shared { data, .. } => self.output.push_slice(data),
        }
    }

    /// The answer to a block status request: runs of so many bytes a block.
    pub(crate) fn status(&mut self, header: &RequestHeader, runs: &[AllocationRun], block_bytes: u64) {
        let mut payload = Vec::with_capacity(8 + runs.len() * 16);
        payload.extend_from_slice(&BASE_ALLOCATION_ID.to_be_bytes());
        let extended = self.style == ReplyStyle::Extended;
        if extended {
            payload.extend_from_slice(&(runs.len() as u32).to_be_bytes());
        }
        for run in runs {
            let bytes = run.blocks * block_bytes;
            let flags = if run.allocated { 0 } else { HOLE_AND_ZERO };
            if extended {
                payload.extend_from_slice(&bytes.to_be_bytes());
                payload.extend_from_slice(&u64::from(flags).to_be_bytes());
            } else {
                payload.extend_from_slice(&(bytes as u32).to_be_bytes());
                payload.extend_from_slice(&flags.to_be_bytes());
            }
        }
        let kind = if extended {
            ChunkKind::BlockStatusExtended
        } else {
            ChunkKind::BlockStatus
        };
        let chunk = Chunk {
            cookie: header.cookie,
            offset: header.offset,
            kind,
            done: true,
            payload_bytes: payload.len() as u64,
        };
        let style = self.style;
        self.push(|room| chunk.encode(style, room));
        self.output.push_slice(Slice::copy_from(&payload));
    }

    fn chunk(&mut self, header: &RequestHeader, kind: ChunkKind, done: bool, payload: &[u8]) {
        let chunk = Chunk {
            cookie: header.cookie,
            offset: header.offset,
            kind,
            done,
            payload_bytes: payload.len() as u64,
        };
        let style = self.style;
        self.push(|room| {
            let len = chunk.encode(style, room)?;
            Writer::new(room.get_mut(len..)?).bytes(payload)?;
            Some(len + payload.len())
        });
    }

    fn push(&mut self, encode: impl FnOnce(&mut [u8]) -> Option<usize>) {
        let pushed = self.output.encode(encode);
        debug_assert!(pushed, "nothing is answered while the output is full");
    }
}
