//! What goes wrong on a drive: by probability, at the n-th request, or for as long as it is set.

use std::time::Duration;

use pollux_device::{IoError, Request};

use crate::random::Random;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Read and compare.
    Read,
    /// Write, write zeroes and deallocate.
    Write,
    /// Flush.
    Flush,
}

impl Operation {
    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::Read { .. } | Request::Compare { .. } => Self::Read,
            Request::Write { .. } | Request::Deallocate { .. } | Request::WriteZeroes { .. } => Self::Write,
            Request::Flush => Self::Flush,
        }
    }
}

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails. A write that fails was done, not done, or done in part. A request short of resources was not
    /// done.
    Error(IoError),
    /// It succeeds and did nothing: a write that is lost, a flush that did not flush.
    Lie,
    /// A write goes to, or a read comes from, somewhere else.
    Misdirected,
    /// One bit of a write is flipped on its way to the medium, or of a read on its way back.
    BitFlip,
    /// It takes this much longer.
    Delay(Duration),
}

/// What goes wrong with many requests. All probabilities are for each request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// A read fails with [`IoError::MediaRead`].
    pub read_error_probability: f64,
    /// A write fails with [`IoError::MediaWrite`].
    pub write_error_probability: f64,
    /// A flush fails with [`IoError::MediaWrite`].
    pub flush_error_probability: f64,
    /// A request is refused with [`IoError::ResourceShortage`].
    pub shortage_probability: f64,
    /// A write is refused with [`IoError::CapacityExceeded`].
    pub no_room_probability: f64,
    /// A read returns a flipped bit; the medium is well.
    pub read_flip_probability: f64,
    /// A write puts a flipped bit on the medium.
    pub write_flip_probability: f64,
    /// A write is acknowledged and not done.
    pub lost_write_probability: f64,
    /// A write goes to another place.
    pub misdirected_write_probability: f64,
    /// A read comes from another place.
    pub misdirected_read_probability: f64,
    /// Every latency is so many times as long.
    pub slowdown: u32,
    /// Nothing completes until this is false again.
    pub stuck: bool,
    /// A flush that fails gives up what it should have flushed: a later one succeeds without it.
    pub failed_flush_forgets: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            read_error_probability: 0.0,
            write_error_probability: 0.0,
            flush_error_probability: 0.0,
            shortage_probability: 0.0,
            no_room_probability: 0.0,
            read_flip_probability: 0.0,
            write_flip_probability: 0.0,
            lost_write_probability: 0.0,
            misdirected_write_probability: 0.0,
            misdirected_read_probability: 0.0,
            slowdown: 1,
            stuck: false,
            failed_flush_forgets: true,
        }
    }
}

impl Faults {
    /// What goes wrong with a request.
    pub(super) fn draw(&self, operation: Operation, random: &mut Random) -> Option<Fault> {
        let chances: &[(f64, Fault)] = match operation {
            Operation::Read => &[
                (self.read_error_probability, Fault::Error(IoError::MediaRead)),
                (self.read_flip_probability, Fault::BitFlip),
                (self.misdirected_read_probability, Fault::Misdirected),
            ],
            Operation::Write => &[
                (self.write_error_probability, Fault::Error(IoError::MediaWrite)),
                (self.write_flip_probability, Fault::BitFlip),
                (self.lost_write_probability, Fault::Lie),
                (self.misdirected_write_probability, Fault::Misdirected),
                (self.no_room_probability, Fault::Error(IoError::CapacityExceeded)),
            ],
            Operation::Flush => &[(self.flush_error_probability, Fault::Error(IoError::MediaWrite))],
        };
        let shortage = (self.shortage_probability, Fault::Error(IoError::ResourceShortage));
        let mut drawn = None;
        // Every chance takes its number whatever the others say, so that one more fault does not shift the
        // rest.
        for (probability, fault) in chances.iter().chain([&shortage]) {
            if random.chance(*probability) {
                drawn = drawn.or(Some(*fault));
            }
        }
        drawn
    }
}

/// A fault that waits for its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scripted {
    pub(super) operation: Operation,
    /// Requests of this kind to let pass first.
    pub(super) after: u64,
    pub(super) fault: Fault,
}

/// Counts a request against the script; the fault whose turn it is.
pub(super) fn next_scripted(script: &mut Vec<Scripted>, operation: Operation) -> Option<Fault> {
    let mut due = None;
    script.retain_mut(|entry| {
        if entry.operation != operation {
            return true;
        }
        if entry.after == 0 && due.is_none() {
            due = Some(entry.fault);
            return false;
        }
        entry.after = entry.after.saturating_sub(1);
        true
    });
    due
}
