//! What is no I/O: block status and resize. One at a time, and the rest in order; they may take memory.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pollux_device::{AllocationRun, GrowError, IoError};

use super::Session;
use crate::request::{self, Accepted};
use crate::wire::{CommandKind, NbdError, ReplyStyle, command_flag};

/// Runs of one block status reply: 16 KiB of an extended one.
const STATUS_RUNS_MAX: usize = 1024;

/// Bytes that one block status request asks about; the client asks again for the rest.
const STATUS_BYTES_MAX: u64 = 64 << 30;

/// The most that a run of a compact reply can count, whole blocks.
const COMPACT_RUN_BYTES_MAX: u64 = (u32::MAX as u64) & !4095;

/// What such a request comes to.
enum Outcome {
    Status(Result<Vec<AllocationRun>, IoError>),
    Resized(Result<(), GrowError>),
}

type Running = Pin<Box<dyn Future<Output = Outcome>>>;

/// Such requests of a connection.
#[derive(Default)]
pub(super) struct Slow {
    /// The one that runs, and its slot.
    running: Option<(u16, Running)>,
    waiting: VecDeque<u16>,
}

impl Slow {
    pub(super) fn push(&mut self, slot: u16) {
        self.waiting.push_back(slot);
    }
}

impl Session {
    /// Runs what waits, and answers what is done.
    pub(super) fn settle_slow(&mut self, context: &mut Context<'_>) -> bool {
        let mut settled = false;
        while !self.output.is_full() {
            let Some((slot, future)) = &mut self.slow.running else {
                let Some(slot) = self.slow.waiting.pop_front() else {
                    break;
                };
                self.slow.running = self.begin_slow(slot).map(|future| (slot, future));
                continue;
            };
            let slot = *slot;
            let Poll::Ready(outcome) = future.as_mut().poll(context) else {
                break;
            };
            self.slow.running = None;
            self.end_slow(slot, outcome);
            settled = true;
        }
        settled
    }

    fn begin_slow(&self, index: u16) -> Option<Running> {
        let slot = self.slots.get(usize::from(index))?.as_ref()?;
        let Accepted { header, block, .. } = slot.accepted;
        if header.kind == CommandKind::Resize {
            let growing = self.whole_device.clone().grow_to(header.offset);
            return Some(Box::pin(async move { Outcome::Resized(growing.await) }));
        }
        let block_bytes = u64::from(self.device.geometry().block_bytes);
        let most = match self.style {
            ReplyStyle::Extended => STATUS_BYTES_MAX,
            ReplyStyle::Simple | ReplyStyle::Structured => COMPACT_RUN_BYTES_MAX,
        };
        let runs_max = if header.flags & command_flag::REQ_ONE != 0 {
            1
        } else {
            STATUS_RUNS_MAX
        };
        let blocks = header.length.min(most) / block_bytes;
        let asked = self.device.allocation(block, blocks, runs_max);
        Some(Box::pin(async move { Outcome::Status(asked.await) }))
    }

    fn end_slow(&mut self, index: u16, outcome: Outcome) {
        let Some(slot) = self.free_slot(index) else { return };
        let header = slot.accepted.header;
        let block_bytes = u64::from(self.device.geometry().block_bytes);
        match outcome {
            Outcome::Status(Ok(runs)) if !runs.is_empty() => {
                self.replies().status(&header, &runs, block_bytes);
            }
            // A device that says nothing of blocks that there are.
            Outcome::Status(Ok(_)) => self.replies().end(&header, Err(NbdError::Io)),
            Outcome::Status(Err(error)) => self.replies().end(&header, Err(request::error_of(error))),
            Outcome::Resized(result) => {
                let result = result.map_err(|error| match error {
                    GrowError::Unsupported | GrowError::Shrink { .. } => NbdError::NotPermitted,
                    GrowError::Geometry(_) => NbdError::Invalid,
                    GrowError::Failed(_) => NbdError::NoSpace,
                });
                self.replies().end(&header, result);
            }
        }
    }
}
