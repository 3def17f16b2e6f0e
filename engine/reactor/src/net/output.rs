//! What is to be sent, in order: headers and small PDUs in one block of memory, data where it lies.
//!
//! Neighbouring headers leave as one piece, so that a hundred write responses are one element of the vectored
//! send.
//!
//! Invariants:
//! - A `Header` segment names bytes of `headers` below `header_end`; segments name them in rising order.
//! - `header_end` goes back to zero only when no segment is left.
//! - `queued_bytes` is the sum of what all segments still have to send.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use crate::net::Stream;
use arrayvec::ArrayVec;
use pollux_hugepages::{Buffer, Slice};

/// Bytes of headers, responses and digests that may wait for the socket.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// The most that one command adds to the headers: a response capsule, or data header, padding and digests.
const HEADER_BYTES_PER_COMMAND_MAX: usize = 512;

/// Bytes that may wait for the socket before no more commands are taken from the host.
const QUEUED_BYTES_MAX: usize = 256 * 1024;

/// Pieces handed to one vectored send.
const PIECES_PER_SEND: usize = 256;

/// Data waiting to be sent, by whichever kind of ownership it came.
#[derive(Debug)]
enum Held {
    Buffer(Buffer),
    Slice(Slice),
}

impl Held {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer,
            Self::Slice(slice) => slice,
        }
    }
}

#[derive(Debug)]
enum Segment {
    Header { start: usize, end: usize },
    Data { held: Held, sent: usize, end: usize },
}

/// The sending side of a connection.
pub struct Output {
    headers: Box<[u8]>,
    header_end: usize,
    segments: VecDeque<Segment>,
    queued_bytes: usize,
    /// All bytes that were ever queued.
    position: u64,
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

impl Output {
    /// Nothing to send.
    pub fn new() -> Self {
        Self {
            headers: vec![0; HEADER_BYTES_MAX].into_boxed_slice(),
            header_end: 0,
            segments: VecDeque::with_capacity(2 * PIECES_PER_SEND),
            queued_bytes: 0,
            position: 0,
        }
    }

    /// Where the next byte queued will stand in the stream, counted from the first.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How much of the stream has left.
    pub fn sent_position(&self) -> u64 {
        self.position - self.queued_bytes as u64
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether so much waits that no more work should be begun.
    pub fn is_full(&self) -> bool {
        self.queued_bytes >= QUEUED_BYTES_MAX
            || self.header_end + HEADER_BYTES_PER_COMMAND_MAX > self.headers.len()
    }

    /// Lets `encode` write a header to the room that is left and say how long it is. False when it did not
    /// fit, which [`Output::is_full`] tells before.
    #[must_use]
    pub fn encode(&mut self, encode: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let start = self.header_end;
        let Some(len) = encode(&mut self.headers[start..]) else {
            return false;
        };
        let end = start + len;
        self.header_end = end;
        self.queued_bytes += len;
        self.position += len as u64;
        match self.segments.back_mut() {
            Some(Segment::Header { end: last_end, .. }) if *last_end == start => *last_end = end,
            _ => self.segments.push_back(Segment::Header { start, end }),
        }
        true
    }

    /// Appends bytes by copying them to the headers; for digests.
    #[must_use]
    pub fn push_bytes(&mut self, bytes: &[u8]) -> bool {
        self.encode(|room| {
            room.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(bytes.len())
        })
    }

    /// Appends data that nobody else holds.
    pub fn push_buffer(&mut self, buffer: Buffer) {
        let end = buffer.len();
        self.push_held(Held::Buffer(buffer), end);
    }

    /// Appends data that others may hold too.
    pub fn push_slice(&mut self, slice: Slice) {
        let end = slice.len();
        self.push_held(Held::Slice(slice), end);
    }

    fn push_held(&mut self, held: Held, end: usize) {
        if end > 0 {
            self.queued_bytes += end;
            self.position += end as u64;
            self.segments.push_back(Segment::Data { held, sent: 0, end });
        }
    }

    /// Sends as much as goes in one vectored send. `Ready(Ok(0))` when there is nothing to send.
    pub fn poll_send(
        &mut self,
        stream: &mut dyn Stream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.segments.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let sent = {
            let mut pieces: ArrayVec<IoSlice<'_>, PIECES_PER_SEND> = ArrayVec::new();
            for segment in self.segments.iter().take(PIECES_PER_SEND) {
                pieces.push(IoSlice::new(match segment {
                    Segment::Header { start, end } => &self.headers[*start..*end],
                    Segment::Data { held, sent, end } => &held.bytes()[*sent..*end],
                }));
            }
            std::task::ready!(stream.poll_send(context, &pieces))?
        };
        self.consume(sent);
        Poll::Ready(Ok(sent))
    }

    fn consume(&mut self, sent: usize) {
        let mut left = sent.min(self.queued_bytes);
        self.queued_bytes -= left;
        while let Some(segment) = self.segments.front_mut() {
            let (at, end) = match segment {
                Segment::Header { start, end } => (start, *end),
                Segment::Data { sent, end, .. } => (sent, *end),
            };
            let taken = left.min(end - *at);
            *at += taken;
            left -= taken;
            if *at < end {
                break;
            }
            self.segments.pop_front();
        }
        if self.segments.is_empty() {
            self.header_end = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Address, Detached};
    use proptest::prelude::*;
    use std::io::IoSliceMut;
    use std::task::Waker;

    /// Takes so many bytes of each send as the script says, and keeps them.
    struct Script {
        takes: Vec<usize>,
        received: Vec<u8>,
    }

    impl Stream for Script {
        fn poll_receive(&mut self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn poll_send(&mut self, _: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            let Some(mut take) = self.takes.pop() else {
                return Poll::Pending;
            };
            let before = self.received.len();
            for piece in from {
                let taken = take.min(piece.len());
                self.received.extend_from_slice(&piece[..taken]);
                take -= taken;
            }
            Poll::Ready(Ok(self.received.len() - before))
        }
        fn shutdown(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn peer(&self) -> &Address {
            unreachable!()
        }
        fn local(&self) -> &Address {
            unreachable!()
        }
        fn detach(self: Box<Self>) -> io::Result<Detached> {
            unreachable!()
        }
    }

    proptest! {
        #[test]
        fn everything_leaves_once_and_in_order(
            pieces in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)),
                0..600,
            ),
            takes in prop::collection::vec(1usize..3000, 1..50),
        ) {
            let mut output = Output::new();
            let mut expected = Vec::new();
            for (is_header, bytes) in &pieces {
                expected.extend_from_slice(bytes);
                if *is_header {
                    prop_assert!(output.push_bytes(bytes));
                } else {
                    output.push_slice(Slice::copy_from(bytes));
                }
            }
            prop_assert_eq!(output.queued_bytes, expected.len());
            prop_assert_eq!((output.position(), output.sent_position()), (expected.len() as u64, 0));
            let mut script = Script { takes, received: Vec::new() };
            let mut context = Context::from_waker(Waker::noop());
            while !output.is_empty() {
                if output.poll_send(&mut script, &mut context).is_pending() {
                    script.takes.push(usize::MAX);
                }
            }
            prop_assert_eq!(output.sent_position(), expected.len() as u64);
            prop_assert_eq!(script.received, expected);
            prop_assert_eq!((output.queued_bytes, output.header_end), (0, 0));
        }
    }

    #[test]
    fn is_full_before_a_header_would_not_fit() {
        let mut output = Output::new();
        while !output.is_full() {
            assert!(output.push_bytes(&[0; 24]));
        }
        assert!(output.push_bytes(&[0; HEADER_BYTES_PER_COMMAND_MAX - 24]));
        while output.push_bytes(&[0; 24]) {}
        assert!(output.headers.len() - output.header_end < 24);
    }
}
