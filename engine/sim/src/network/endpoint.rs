//! One end of a connection.
//!
//! Invariants: bytes are in exactly one place: `outgoing` of the sender until they arrive, `received` of the
//! receiver until they are read. `unacknowledged` is what was sent and not yet credited back by the receiver,
//! and never more than `window_bytes`. At most one delivery is scheduled for the head of `outgoing`.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::task::Waker;

use pollux_reactor::Instant;
use pollux_reactor::net::Address;

use crate::MachineId;
use crate::random::Random;

/// The number of one end of a connection; never used twice in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndpointId(pub(super) u64);

/// Bytes of a short receive or send are at most this, half of the time.
const SHORT_BYTES: u64 = 16;

/// How often this end moves fewer bytes than it could.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chop {
    /// Probability that a send takes fewer bytes than fit, down to one.
    pub send_probability: f64,
    /// Probability that a receive returns fewer bytes than are there, down to one.
    pub receive_probability: f64,
}

impl Chop {
    /// Moves what it can.
    pub const NEVER: Self = Self {
        send_probability: 0.0,
        receive_probability: 0.0,
    };
}

/// What travels in order.
pub(super) enum Segment {
    Data { bytes: Vec<u8>, arrival: Instant },
    Fin { arrival: Instant },
}

impl Segment {
    pub(super) fn arrival(&self) -> Instant {
        match self {
            Self::Data { arrival, .. } | Self::Fin { arrival } => *arrival,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the answer to its connect since this instant.
    Connecting(Instant),
    Open,
    Failed(io::ErrorKind),
}

pub(super) struct Endpoint {
    pub(super) machine: MachineId,
    /// `None` when nobody has the address.
    pub(super) peer_machine: Option<MachineId>,
    /// `None` until the connect was answered.
    pub(super) peer: Option<EndpointId>,
    pub(super) local: Address,
    pub(super) remote: Address,
    /// An application still holds this end, or a listener for it.
    pub(super) held: bool,
    pub(super) phase: Phase,
    pub(super) received: VecDeque<u8>,
    pub(super) end_received: bool,
    /// Read by the application and not yet credited to the sender.
    pub(super) uncredited: usize,
    pub(super) outgoing: VecDeque<Segment>,
    pub(super) delivery_scheduled: bool,
    /// When the head of `outgoing` was first lost.
    pub(super) stalled_since: Option<Instant>,
    pub(super) attempts: u32,
    pub(super) end_sent: bool,
    pub(super) unacknowledged: usize,
    pub(super) window_bytes: usize,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) random: Random,
    pub(super) chop: Chop,
}

impl Endpoint {
    /// How many bytes to move out of `possible`, which is not 0.
    fn moved(random: &mut Random, probability: f64, possible: usize) -> usize {
        if possible <= 1 || probability <= 0.0 || !random.chance(probability) {
            return possible;
        }
        let longest = if random.chance(0.5) {
            SHORT_BYTES.min(possible as u64)
        } else {
            possible as u64
        };
        random.within(1..=longest) as usize
    }

    /// Copies received bytes out; `None` when there are none.
    pub(super) fn take(&mut self, into: &mut [IoSliceMut<'_>]) -> Option<usize> {
        let room: usize = into.iter().map(|piece| piece.len()).sum();
        let possible = room.min(self.received.len());
        if possible == 0 {
            return None;
        }
        let taken = Self::moved(&mut self.random, self.chop.receive_probability, possible);
        let mut left = taken;
        for piece in into {
            let len = left.min(piece.len());
            let (filled, _) = piece.split_at_mut(len);
            // Cannot fail: `taken` bytes are there.
            let _ = self.received.read_exact(filled);
            left -= len;
        }
        self.uncredited += taken;
        Some(taken)
    }

    /// Copies the bytes to send; `None` when there is no room. `from` is not empty.
    pub(super) fn give(&mut self, from: &[IoSlice<'_>]) -> Option<Vec<u8>> {
        let offered: usize = from.iter().map(|piece| piece.len()).sum();
        let possible = offered.min(self.window_bytes.saturating_sub(self.unacknowledged));
        if possible == 0 {
            return None;
        }
        let taken = Self::moved(&mut self.random, self.chop.send_probability, possible);
        let mut bytes = Vec::with_capacity(taken);
        for piece in from {
            let len = piece.len().min(taken - bytes.len());
            bytes.extend_from_slice(piece.get(..len).unwrap_or_default());
        }
        self.unacknowledged += taken;
        Some(bytes)
    }

    /// Whether the connection is of no more use to anyone.
    pub(super) fn is_finished(&self) -> bool {
        !self.held && self.outgoing.is_empty()
    }
}
