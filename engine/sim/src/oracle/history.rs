//! The oracle of a recorded run, at any place of the record.
//!
//! A crash test runs a workload once, with its drives recorded, and then looks at what a power cut at every
//! write leaves. What is legal then depends on what had been acknowledged at that place. So an oracle that
//! was told of the recorder remembers at which position it was told of what, and can be played back up to a
//! position.

use std::sync::Arc;

use super::{FlushTicket, Oracle, ReadTicket, Value, WriteOutcome, WriteTicket};
use crate::drive::Recorder;

/// Something that an oracle was told.
#[derive(Debug, Clone)]
pub(super) enum Call {
    StartWrite { block: u64, blocks: u64 },
    StartZeroes { block: u64, blocks: u64 },
    EndWrite(WriteTicket, WriteOutcome),
    StartFlush,
    EndFlush(FlushTicket),
    StartRead { block: u64, blocks: u64 },
    AbandonRead(ReadTicket),
    EndRead(ReadTicket, Vec<Value>),
}

/// What an oracle was told, and when.
#[derive(Clone)]
pub(super) struct Log {
    recorder: Arc<Recorder>,
    calls: Vec<(usize, Call)>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Log of {} calls", self.calls.len())
    }
}

impl Log {
    pub(super) fn new(recorder: Arc<Recorder>) -> Self {
        Self {
            recorder,
            calls: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, call: Call) {
        self.calls.push((self.recorder.position(), call));
    }

    pub(super) fn history(&self) -> OracleHistory {
        OracleHistory {
            calls: self.calls.clone(),
            told: 0,
            oracle: Oracle::new(),
        }
    }
}

/// Plays back what an oracle was told, alongside a [`CrashCursor`](crate::CrashCursor).
pub struct OracleHistory {
    calls: Vec<(usize, Call)>,
    told: usize,
    oracle: Oracle,
}

impl OracleHistory {
    /// The oracle as of a position of the record, which must not be before the last one asked for: everything
    /// that was started or acknowledged by then.
    ///
    /// # Panics
    ///
    /// When the position is before an earlier one: a mistake of the caller.
    pub fn at(&mut self, position: usize) -> &Oracle {
        let last = self.told.checked_sub(1).and_then(|last| self.calls.get(last));
        assert!(
            last.is_none_or(|(last, _)| *last <= position),
            "positions have to be asked for in order"
        );
        while let Some((_, call)) = self.calls.get(self.told).filter(|(at, _)| *at <= position) {
            let call = call.clone();
            self.told += 1;
            self.tell(call);
        }
        &self.oracle
    }

    /// Tickets are numbered in the order of the calls, and so come out as they did the first time.
    fn tell(&mut self, call: Call) {
        let oracle = &mut self.oracle;
        match call {
            Call::StartWrite { block, blocks } => {
                let _ = oracle.start_write(block, blocks);
            }
            Call::StartZeroes { block, blocks } => {
                let _ = oracle.start_zeroes(block, blocks);
            }
            Call::EndWrite(ticket, outcome) => oracle.end_write(ticket, outcome),
            Call::StartFlush => {
                let _ = oracle.start_flush();
            }
            Call::EndFlush(ticket) => oracle.end_flush(ticket),
            Call::StartRead { block, blocks } => {
                let _ = oracle.start_read(block, blocks);
            }
            Call::AbandonRead(ticket) => oracle.abandon_read(ticket),
            Call::EndRead(ticket, values) => {
                // Was judged when it happened.
                let _ = oracle.end_read(ticket, &values);
            }
        }
    }
}
