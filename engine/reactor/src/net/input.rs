//! Bytes as they arrive: one buffer that is received into and parsed from, and out of which data is cut
//! without copying.
//!
//! Invariant: the first `filled` bytes of `buffer` have arrived and are not consumed yet. What was cut off in
//! front keeps the memory alive; once nobody holds any of it the whole buffer is used again from its start,
//! which keeps it in the cache.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll};

use crate::net::Stream;
use pollux_hugepages::{Buffer, BufferPool};

/// Bytes of a receive buffer.
pub const RECEIVE_BYTES: usize = 256 * 1024;

/// With less room than this behind what has arrived, the unconsumed rest moves to a fresh buffer.
const ROOM_BYTES_MIN: usize = 64 * 1024;

/// What one receive brought, in bytes; nothing at all is the end of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Into the memory that the payload is meant for.
    pub direct: usize,
    /// Behind what had arrived before.
    pub buffered: usize,
}

impl Received {
    /// Whether the stream has ended.
    pub fn is_end(self) -> bool {
        self.direct == 0 && self.buffered == 0
    }
}

/// The receiving side of a connection.
pub struct Input {
    buffer: Buffer,
    filled: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self::new()
    }
}

impl Input {
    /// Starts with bytes that arrived already.
    pub fn new() -> Self {
        Self {
            buffer: Buffer::empty(),
            filled: 0,
        }
    }

    /// What arrived and is not consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Drops bytes from the front.
    pub fn consume(&mut self, len: usize) {
        let len = len.min(self.filled);
        self.buffer.advance(len);
        self.filled -= len;
    }

    /// Cuts bytes off the front without copying.
    pub fn take(&mut self, len: usize) -> Buffer {
        let len = len.min(self.filled);
        self.filled -= len;
        self.buffer.split_to(len)
    }

    /// Puts bytes in that arrived on another reactor.
    pub fn preload(&mut self, bytes: &[u8], pool: &BufferPool) -> bool {
        if !self.make_room(pool) || self.buffer.len() < bytes.len() {
            return false;
        }
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        self.filled = bytes.len();
        true
    }

    /// Sees to it that there is room to receive into. False when the pool is short of memory now.
    pub fn make_room(&mut self, pool: &BufferPool) -> bool {
        if self.filled == 0 {
            match std::mem::replace(&mut self.buffer, Buffer::empty()).reclaim() {
                Ok(whole) => self.buffer = whole,
                Err(rest) => self.buffer = rest,
            }
        }
        if self.buffer.len() - self.filled >= ROOM_BYTES_MIN {
            return true;
        }
        let Some(mut fresh) = pool.allocate(RECEIVE_BYTES) else {
            return self.buffer.len() > self.filled;
        };
        fresh[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        self.buffer = fresh;
        true
    }

    /// Gives an empty buffer back until something arrives: idle connections hold no memory, and busy ones on
    /// a reactor take turns with the same few buffers, which stay in the cache.
    pub fn rest(&mut self) {
        if self.filled == 0 {
            self.buffer = Buffer::empty();
        }
    }

    /// Receives once: into `direct` first, which may be empty, then behind what has arrived.
    pub fn poll_receive(
        &mut self,
        stream: &mut dyn Stream,
        context: &mut Context<'_>,
        direct: &mut [u8],
    ) -> Poll<io::Result<Received>> {
        self.poll_receive_at_most(stream, context, direct, usize::MAX)
    }

    /// As [`Input::poll_receive`], with at most so many bytes behind what has arrived: when large data is
    /// expected, the rest of it is left in the socket until it can be received where it belongs.
    pub fn poll_receive_at_most(
        &mut self,
        stream: &mut dyn Stream,
        context: &mut Context<'_>,
        direct: &mut [u8],
        buffered_bytes_max: usize,
    ) -> Poll<io::Result<Received>> {
        let end = self
            .buffer
            .len()
            .min(self.filled.saturating_add(buffered_bytes_max));
        let room = &mut self.buffer[self.filled..end];
        let received = if direct.is_empty() {
            std::task::ready!(stream.poll_receive(context, &mut [IoSliceMut::new(room)]))?
        } else {
            let mut into = [IoSliceMut::new(direct), IoSliceMut::new(room)];
            std::task::ready!(stream.poll_receive(context, &mut into))?
        };
        let direct = received.min(direct.len());
        let buffered = received - direct;
        self.filled += buffered;
        Poll::Ready(Ok(Received { direct, buffered }))
    }
}
