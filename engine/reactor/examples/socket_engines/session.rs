//! What every server does with the bytes: whole requests in, responses out.

use std::collections::VecDeque;
use std::io::IoSlice;

pub const REQUEST_BYTES: usize = 72;
pub const RESPONSE_BYTES: usize = 24;

/// Bytes that are served, and written to.
const STORE_BYTES: usize = 64 << 20;

/// Pieces in one send.
pub const PIECES_MAX: usize = 512;

/// Pieces that wait to be sent, at which no more requests are taken.
const OUTPUT_PIECES_MAX: usize = 600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub direction: Direction,
    pub block_bytes: usize,
    /// Requests under way.
    pub depth: usize,
}

impl Pattern {
    pub fn request_bytes(self) -> usize {
        match self.direction {
            Direction::Read => REQUEST_BYTES,
            Direction::Write => REQUEST_BYTES + self.block_bytes,
        }
    }

    pub fn response_bytes(self) -> usize {
        match self.direction {
            Direction::Read => RESPONSE_BYTES + self.block_bytes,
            Direction::Write => RESPONSE_BYTES,
        }
    }
}

/// One connection: what was received and what is to be sent.
pub struct Session {
    pattern: Pattern,
    input: Vec<u8>,
    filled: usize,
    output: VecDeque<&'static [u8]>,
    store: &'static [u8],
    written: Vec<u8>,
    seed: usize,
}

impl Session {
    pub fn new(pattern: Pattern) -> Self {
        static STORE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        Self {
            pattern,
            input: vec![0; 512 << 10],
            filled: 0,
            output: VecDeque::with_capacity(2 * OUTPUT_PIECES_MAX),
            store: STORE.get_or_init(|| vec![1; STORE_BYTES]),
            written: vec![0; STORE_BYTES],
            seed: 1,
        }
    }

    /// Where to receive to; empty while too much waits to be sent.
    pub fn room(&mut self) -> &mut [u8] {
        if self.output.len() >= OUTPUT_PIECES_MAX {
            return &mut [];
        }
        &mut self.input[self.filled..]
    }

    /// Takes bytes that were received elsewhere.
    pub fn take(&mut self, bytes: &[u8]) {
        self.input[self.filled..][..bytes.len()].copy_from_slice(bytes);
        self.received(bytes.len());
    }

    /// Answers the requests that are whole now.
    pub fn received(&mut self, bytes: usize) {
        self.filled += bytes;
        let request_bytes = self.pattern.request_bytes();
        let block_bytes = self.pattern.block_bytes;
        let whole = self.filled / request_bytes;
        for request in 0..whole {
            self.seed = self.seed.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
            let block = (self.seed >> 2) % (STORE_BYTES / block_bytes) * block_bytes;
            self.output.push_back(&[0; RESPONSE_BYTES]);
            match self.pattern.direction {
                Direction::Read => self.output.push_back(&self.store[block..][..block_bytes]),
                Direction::Write => {
                    let data = request * request_bytes + REQUEST_BYTES;
                    let data = &self.input[data..][..block_bytes];
                    self.written[block..][..block_bytes].copy_from_slice(data);
                }
            }
        }
        self.input.copy_within(whole * request_bytes..self.filled, 0);
        self.filled -= whole * request_bytes;
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The next pieces to send.
    pub fn pieces(&self) -> impl Iterator<Item = &'static [u8]> {
        self.output.iter().copied().take(PIECES_MAX)
    }

    /// The next pieces to send, as slices for the standard library.
    pub fn slices<'a>(&self, into: &'a mut Vec<IoSlice<'static>>) -> &'a [IoSlice<'static>] {
        into.clear();
        into.extend(self.pieces().map(IoSlice::new));
        into
    }

    /// Forgets what was sent.
    pub fn sent(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let Some(piece) = self.output.front_mut() else {
                return;
            };
            if bytes < piece.len() {
                *piece = &piece[bytes..];
                return;
            }
            bytes -= piece.len();
            self.output.pop_front();
        }
    }
}
