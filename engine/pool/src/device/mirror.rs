//! A device whose content is copied to another one while it is in use.
//!
//! Invariants:
//! - Every write that begins while there is a mirror goes to both devices, and has ended when both have done
//!   it; a flush reaches both.
//! - What is being copied is not written meanwhile: a write waits for the copy of its range, and a copy for
//!   the writes of its range that are under way.
//! - Once the other device failed nothing is sent there any more; the mirror says so, and writes succeed if
//!   they do where they went before. Unless it was relied on by then: writes that it fails have failed.
//!
//! So when every range was copied once, and the mirror has not failed, the other device has everything that
//! was acknowledged, and after a flush everything that was durable.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use pollux_device::{Gather, IoError};
use pollux_reactor::Signal;

use super::PoolDevice;

/// See the module.
pub(crate) struct Mirror {
    target: PoolDevice,
    /// Blocks that are mirrored: not the label areas.
    blocks: Range<u64>,
    /// What is being copied.
    copying: RefCell<Range<u64>>,
    /// Writes under way.
    writing: RefCell<Vec<Range<u64>>>,
    failed: Cell<Option<IoError>>,
    relied_on: Cell<bool>,
    changed: Signal,
}

/// A write under way, until it is dropped.
struct Writing<'a> {
    mirror: &'a Mirror,
    range: Range<u64>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut writing = self.mirror.writing.borrow_mut();
        if let Some(at) = writing.iter().position(|range| *range == self.range) {
            writing.swap_remove(at);
        }
        drop(writing);
        self.mirror.changed.wake();
    }
}

/// A range being copied, until it is dropped.
pub(crate) struct Copying<'a>(&'a Mirror);

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        *self.0.copying.borrow_mut() = 0..0;
        self.0.changed.wake();
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Mirror {
    /// Copies writes of some blocks to another device.
    pub(crate) fn new(target: PoolDevice, blocks: Range<u64>) -> Rc<Self> {
        Rc::new(Self {
            target,
            blocks,
            copying: RefCell::new(0..0),
            writing: RefCell::default(),
            failed: Cell::new(None),
            relied_on: Cell::new(false),
            changed: Signal::default(),
        })
    }

    /// Why the other device does not have everything, if so.
    pub(crate) fn failed(&self) -> Option<IoError> {
        self.failed.get()
    }

    /// From now on the other device has to have everything.
    pub(crate) fn rely_on(&self) {
        debug_assert!(self.failed.get().is_none(), "it does not have everything");
        self.relied_on.set(true);
    }

    /// What an error of the other device means for what was asked of both.
    fn fail(&self, error: IoError) -> Result<(), IoError> {
        if self.relied_on.get() {
            return Err(error);
        }
        if self.failed.get().is_none() {
            tracing::error!(%error, "the device that another one is copied to failed");
            self.failed.set(Some(error));
        }
        Ok(())
    }

    /// Waits for the writes of a range that are under way, and keeps others from beginning.
    pub(crate) async fn copy(&self, range: Range<u64>) -> Copying<'_> {
        self.copying.replace(range.clone());
        let copying = Copying(self);
        self.changed
            .until(|| {
                let writing = self.writing.borrow();
                (!writing.iter().any(|write| overlap(write, &range))).then_some(())
            })
            .await;
        copying
    }

    /// Writes blocks of `source` to both.
    pub(super) async fn write(
        &self,
        source: &PoolDevice,
        block: u64,
        from: Gather,
        durable: bool,
    ) -> Result<(), IoError> {
        let range = block..block + (from.len_bytes() / crate::layout::BLOCK_BYTES) as u64;
        if !overlap(&range, &self.blocks) || self.failed.get().is_some() {
            return source.write_alone(block, from, durable).await;
        }
        let _writing = self.begin_write(range).await;
        let there = self.target.write_alone(block, from.clone(), durable);
        let (here, there) = futures_util::join!(source.write_alone(block, from, durable), there);
        here.and(there.or_else(|error| self.fail(error)))
    }

    async fn begin_write(&self, range: Range<u64>) -> Writing<'_> {
        self.changed
            .until(|| {
                let free = !overlap(&self.copying.borrow(), &range);
                free.then(|| self.writing.borrow_mut().push(range.clone()))
            })
            .await;
        Writing { mirror: self, range }
    }

    /// Flushes the other device.
    pub(super) async fn flush(&self) -> Result<(), IoError> {
        if self.failed.get().is_some() {
            return Ok(());
        }
        let there = self.target.flush_alone().await;
        there.or_else(|error| self.fail(error))
    }
}
