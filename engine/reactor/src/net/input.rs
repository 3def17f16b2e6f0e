//! Bytes as they arrive: one buffer that is received into and parsed from, and out of which data is cut
//! without copying.
//!
//! Invariant: the first `filled` bytes of `buffer` have arrived and are not consumed yet. What was cut off in
//! front keeps the memory alive; once nobody holds any of it the whole buffer is used again from its start,
//! which keeps it in the cache.
//!
//! Receiving never waits for memory: with the pool empty, a small buffer on the heap does. What others need
//! to give their memory back may be among the next bytes to arrive.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll};

use crate::net::Stream;
use pollux_hugepages::{Buffer, BufferPool};

/// Bytes of a receive buffer.
pub const RECEIVE_BYTES: usize = 256 * 1024;

/// With less room than this behind what has arrived, the unconsumed rest moves to a fresh buffer.
const ROOM_BYTES_MIN: usize = 64 * 1024;

/// Bytes of the buffer that the beginning of a PDU waits in for the rest, and of one to receive into while
/// the pool is short of memory.
const SMALL_BYTES: usize = 16 * 1024;

/// With less room than this behind what has arrived, a small buffer does not do either.
const SMALL_ROOM_BYTES_MIN: usize = 4 * 1024;

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
    /// The buffer is that of a retreat.
    has_retreated: bool,
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
            has_retreated: false,
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

    /// Puts bytes in that arrived on another reactor, before any others do.
    pub fn preload(&mut self, bytes: &[u8], pool: &BufferPool) {
        if self.buffer.len() < bytes.len() {
            let len_bytes = bytes.len().max(RECEIVE_BYTES);
            self.buffer = pool
                .allocate(len_bytes)
                .unwrap_or_else(|| Buffer::from_heap(len_bytes));
        }
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        self.filled = bytes.len();
    }

    /// Sees to it that there is room to receive into.
    pub fn make_room(&mut self, pool: &BufferPool) {
        if self.filled == 0 {
            self.reclaim();
        }
        let room_bytes = self.buffer.len() - self.filled;
        if room_bytes >= ROOM_BYTES_MIN {
            return;
        }
        let wanted_bytes = RECEIVE_BYTES.max((self.filled + ROOM_BYTES_MIN).next_power_of_two());
        if let Some(fresh) = pool.allocate(wanted_bytes) {
            self.move_to(fresh);
        } else if room_bytes < SMALL_ROOM_BYTES_MIN {
            self.move_to_small(pool);
        }
    }

    /// Gives memory back until something arrives: idle connections hold none, or little if the beginning of
    /// a PDU has arrived, and busy ones on a reactor take turns with the same few buffers, which stay in the
    /// cache.
    pub fn rest(&mut self, pool: &BufferPool) {
        if self.filled == 0 {
            // Where others hold parts of it, it stays in use anyway, and the next bytes go behind them.
            if self.reclaim() {
                self.buffer = Buffer::empty();
            }
        } else if self.filled <= SMALL_BYTES - SMALL_ROOM_BYTES_MIN && self.buffer.len() > SMALL_BYTES {
            self.move_to_small(pool);
        }
    }

    /// Gives all memory of the pool back, though something has arrived that is not consumed: it goes to the
    /// heap. For a connection that waits for memory before it can consume more, and would else keep what
    /// others wait for, as they may do to it.
    pub fn retreat(&mut self) {
        if self.filled == 0 {
            self.buffer = Buffer::empty();
        } else if !self.has_retreated {
            self.move_to(Buffer::from_heap(self.filled));
            self.has_retreated = true;
        }
    }

    /// Takes the whole of the buffer back if nobody holds a part of it; says whether that is so.
    fn reclaim(&mut self) -> bool {
        let reclaimed = std::mem::replace(&mut self.buffer, Buffer::empty()).reclaim();
        let is_whole = reclaimed.is_ok();
        self.buffer = match reclaimed {
            Ok(whole) => whole,
            Err(rest) => rest,
        };
        is_whole
    }

    fn move_to_small(&mut self, pool: &BufferPool) {
        let len_bytes = SMALL_BYTES.max((self.filled + SMALL_ROOM_BYTES_MIN).next_power_of_two());
        let small = pool
            .allocate(len_bytes)
            .unwrap_or_else(|| Buffer::from_heap(len_bytes));
        self.move_to(small);
    }

    fn move_to(&mut self, mut fresh: Buffer) {
        fresh[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        self.buffer = fresh;
        self.has_retreated = false;
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

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_hugepages::PoolOptions;

    const POOL_BYTES: usize = 2 << 20;

    fn pool() -> BufferPool {
        BufferPool::on_heap(&PoolOptions {
            total_bytes: POOL_BYTES,
            ..PoolOptions::default()
        })
        .expect("there is memory")
    }

    /// As if `bytes` arrived.
    fn arrive(input: &mut Input, pool: &BufferPool, bytes: &[u8]) {
        input.make_room(pool);
        let end = input.filled + bytes.len();
        input.buffer[input.filled..end].copy_from_slice(bytes);
        input.filled = end;
    }

    #[test]
    fn an_idle_connection_holds_nothing_and_one_in_the_middle_of_a_pdu_little() {
        let pool = pool();
        let mut input = Input::new();
        arrive(&mut input, &pool, b"abc");
        assert_eq!(pool.statistics().in_use_bytes(), RECEIVE_BYTES);
        input.rest(&pool);
        assert_eq!(pool.statistics().in_use_bytes(), SMALL_BYTES);
        arrive(&mut input, &pool, b"def");
        assert_eq!(input.bytes(), b"abcdef");
        input.consume(6);
        input.rest(&pool);
        assert_eq!(pool.statistics().in_use_bytes(), 0);
    }

    #[test]
    fn one_that_waits_for_memory_holds_none() {
        let pool = pool();
        let mut input = Input::new();
        arrive(&mut input, &pool, &[7; 100_000]);
        input.retreat();
        input.retreat();
        assert_eq!(pool.statistics().in_use_bytes(), 0);
        arrive(&mut input, &pool, &[7; 100_000]);
        assert!(input.bytes() == [7; 200_000]);
        // What is full to the last byte is held as well.
        let len_bytes = input.buffer.len() - input.filled;
        arrive(&mut input, &pool, &vec![7; len_bytes]);
        input.retreat();
        assert_eq!(pool.statistics().in_use_bytes(), 0);
    }

    #[test]
    fn small_pieces_that_are_held_share_a_buffer() {
        let pool = pool();
        let mut input = Input::new();
        let mut held = Vec::new();
        for number in 0..32 {
            arrive(&mut input, &pool, &[number; 4096]);
            held.push(input.take(4096));
            input.rest(&pool);
        }
        assert_eq!(pool.statistics().in_use_bytes(), RECEIVE_BYTES);
        assert!(
            held.iter()
                .zip(0..)
                .all(|(piece, number)| piece[..] == [number; 4096])
        );
        held.clear();
        input.make_room(&pool);
        input.rest(&pool);
        assert_eq!(pool.statistics().in_use_bytes(), 0);
    }

    #[test]
    fn there_is_room_without_memory_in_the_pool() {
        let pool = pool();
        let taken = pool.allocate(POOL_BYTES);
        assert!(taken.is_some());
        let mut input = Input::new();
        let mut expected = Vec::new();
        for number in 0..40 {
            arrive(&mut input, &pool, &[number; 1024]);
            expected.extend_from_slice(&[number; 1024]);
            input.rest(&pool);
            assert_eq!(input.bytes(), expected);
        }
        drop(taken);
        arrive(&mut input, &pool, &[]);
        assert!(input.bytes() == expected && input.buffer.len() >= RECEIVE_BYTES);
    }
}
