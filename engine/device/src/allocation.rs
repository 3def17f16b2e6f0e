//! Which blocks of a device are stored: for those who copy it and skip its holes.
//!
//! A device that knows nothing about it says that everything is allocated. That is always true enough: what
//! counts is the other answer, since whoever copies a device leaves out what is not allocated.

use std::future::{Future, ready};
use std::pin::Pin;

use crate::error::IoError;
use crate::geometry::Geometry;

/// Neighbouring blocks that are all allocated, or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocationRun {
    /// How many blocks.
    pub blocks: u64,
    /// Space is taken for them; without it they read as zeros.
    pub allocated: bool,
}

/// An answer on its way.
pub type AllocationQuery = Pin<Box<dyn Future<Output = Result<Vec<AllocationRun>, IoError>>>>;

/// Runs put together from the start of a range on: neighbours differ, and there are no more than were asked
/// for.
///
/// ```
/// use pollux_device::AllocationRuns;
///
/// let mut runs = AllocationRuns::new(10, 2);
/// assert!(runs.push(3, true) && runs.push(1, true) && runs.push(2, false));
/// assert!(!runs.push(1, true), "a third run");
/// assert!(!runs.push(1, false), "what is behind it");
/// assert_eq!(runs.left_blocks(), 4);
/// ```
#[derive(Debug)]
pub struct AllocationRuns {
    runs: Vec<AllocationRun>,
    left_blocks: u64,
    runs_max: usize,
    /// Something did not fit: what comes behind it must not be taken for it.
    is_closed: bool,
}

impl AllocationRuns {
    /// For a range of so many blocks, and at most so many runs; one at least.
    pub fn new(blocks: u64, runs_max: usize) -> Self {
        Self {
            runs: Vec::new(),
            left_blocks: blocks,
            runs_max: runs_max.max(1),
            is_closed: false,
        }
    }

    /// Appends blocks, those inside the range. False when they did not fit, or the range has come to its end:
    /// nothing more need be looked at, and nothing more is taken.
    pub fn push(&mut self, blocks: u64, allocated: bool) -> bool {
        let blocks = blocks.min(self.left_blocks);
        if blocks == 0 || self.is_closed {
            return !self.is_closed && self.left_blocks > 0;
        }
        let is_full = self.runs.len() >= self.runs_max;
        match self.runs.last_mut() {
            Some(last) if last.allocated == allocated => last.blocks += blocks,
            _ if is_full => {
                self.is_closed = true;
                return false;
            }
            _ => self.runs.push(AllocationRun { blocks, allocated }),
        }
        self.left_blocks -= blocks;
        self.left_blocks > 0
    }

    /// Blocks of the range that nothing was said about.
    pub fn left_blocks(&self) -> u64 {
        self.left_blocks
    }

    /// The runs.
    pub fn into_runs(self) -> Vec<AllocationRun> {
        self.runs
    }
}

/// The answer that all blocks of a range are alike.
pub fn all(geometry: &Geometry, block: u64, blocks: u64, allocated: bool) -> AllocationQuery {
    let answer = geometry.check_range(block, blocks).map(|()| {
        let mut runs = AllocationRuns::new(blocks, 1);
        runs.push(blocks, allocated);
        runs.into_runs()
    });
    Box::pin(ready(answer))
}
