//! A volume or snapshot, as a block device.
//!
//! Invariants:
//! - What a write changes in memory is changed, and its record appended, in one step, after its data is
//!   written.
//! - A write that was begun goes on when nobody waits for it any more: its blocks stay locked until the
//!   device is done with them.
//! - A read sees the data of a block and its checksum as they were at one time. It takes no lock: it looks
//!   whether one was taken meanwhile, and takes one itself if it has to.

mod deallocate;
mod fast;
mod locks;
mod ranges;
mod read;
mod write;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pollux_device::events::{DeviceEvent, Publisher};
use pollux_device::{
    AllocationQuery, AllocationRuns, BlockDevice, Completion, Geometry, IoError, Reply, Request, ZeroOptions,
};
use pollux_reactor::{Signal, Unabandoned};
use uuid::Uuid;

use crate::layout::volume::{VolumeEntry, VolumeKind};
use crate::layout::{BLOCK_BYTES, EXTENT_BLOCKS};
use crate::pool::{Claim, Pool, PoolError};
use locks::{Locks, SlotLock};
pub use ranges::{BlockRange, RangePage};

/// The largest read or write, in blocks: 4 MiB.
const TRANSFER_BLOCKS_MAX: u32 = 1024;

/// What the openings of one volume share.
pub(crate) struct Head {
    id: u64,
    checksums: bool,
    read_only: bool,
    claim: Claim,
    memory_align_bytes: u32,
    /// Shared with those who look at it from other threads.
    size_blocks: Arc<AtomicU64>,
    /// Tells them when it changes.
    publisher: Publisher,
    locks: Rc<Locks>,
    /// Changes under way.
    changes: Cell<u64>,
    /// Those who keep changes from beginning.
    holders: Cell<u32>,
    /// No change begins any more: the pool was exported.
    closed: Cell<bool>,
    changed: Signal,
}

impl Head {
    /// `read_only` is whether the pool is, `memory_align_bytes` what its devices want.
    pub(crate) fn new(entry: &VolumeEntry, read_only: bool, memory_align_bytes: u32) -> Self {
        Self {
            id: entry.id,
            checksums: entry.checksums,
            read_only: read_only || entry.kind == VolumeKind::Snapshot,
            claim: if entry.thick { Claim::SetAside } else { Claim::Rest },
            memory_align_bytes,
            size_blocks: Arc::new(AtomicU64::new(entry.size_blocks)),
            publisher: Publisher::default(),
            locks: Rc::default(),
            changes: Cell::new(0),
            holders: Cell::new(0),
            closed: Cell::new(false),
            changed: Signal::default(),
        }
    }

    pub(crate) fn resized(&self, size_blocks: u64) {
        if self.size_blocks.swap(size_blocks, Ordering::Relaxed) != size_blocks {
            self.publisher.publish(DeviceEvent::Resized);
        }
    }

    /// Locks a slot: nothing of it is written until the lock is dropped.
    pub(crate) async fn lock_slot(&self, slot: u64) -> SlotLock {
        self.locks.lock(slot, locks::WHOLE_SLOT).await
    }

    /// Waits until no change is under way, and keeps new ones waiting until the hold is dropped.
    pub(crate) async fn hold(self: &Rc<Self>) -> Hold {
        self.holders.set(self.holders.get() + 1);
        let hold = Hold(self.clone());
        self.changed
            .until(|| (self.changes.get() == 0).then_some(()))
            .await;
        hold
    }

    /// Whether changes are under way.
    pub(crate) fn has_changes(&self) -> bool {
        self.changes.get() > 0
    }

    /// Whether nobody keeps changes from beginning.
    fn may_change_now(&self) -> bool {
        self.holders.get() == 0 && !self.closed.get()
    }

    fn count_change(self: &Rc<Self>) -> Change {
        self.changes.set(self.changes.get() + 1);
        Change(self.clone())
    }

    /// Changes that wait for leave to begin, and later ones, fail from now on.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.changed.wake();
    }

    async fn begin_change(self: &Rc<Self>) -> Result<Change, IoError> {
        if self.holders.get() > 0 {
            self.changed
                .until(|| (self.holders.get() == 0 || self.closed.get()).then_some(()))
                .await;
        }
        if self.closed.get() {
            return Err(IoError::Gone);
        }
        Ok(self.count_change())
    }
}

/// Keeps changes of a volume from beginning.
pub(crate) struct Hold(Rc<Head>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holders.set(self.0.holders.get() - 1);
        self.0.changed.wake();
    }
}

/// A change under way.
struct Change(Rc<Head>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.changes.set(self.0.changes.get() - 1);
        if self.0.holders.get() > 0 {
            self.0.changed.wake();
        }
    }
}

/// See the module. Clones are of the same opening.
#[derive(Clone)]
pub struct Volume {
    pool: Rc<Pool>,
    head: Rc<Head>,
}

/// Neighbouring blocks of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    slot: u64,
    /// The first block in the slot.
    first: u8,
    blocks: u8,
    /// Where it is in the request, in bytes.
    offset: usize,
}

impl Part {
    fn mask(&self) -> u16 {
        mask_of(self.first, self.blocks)
    }

    fn bytes(&self) -> usize {
        usize::from(self.blocks) * BLOCK_BYTES
    }
}

fn mask_of(first: u8, blocks: u8) -> u16 {
    (((1u32 << blocks) - 1) << first) as u16
}

/// The parts of a range, slot by slot.
fn parts(block: u64, blocks: u64) -> impl Iterator<Item = Part> {
    let extent_blocks = EXTENT_BLOCKS as u64;
    let end = block + blocks;
    let mut next = block;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let slot = next / extent_blocks;
        let stop = end.min((slot + 1) * extent_blocks);
        let part = Part {
            slot,
            first: (next % extent_blocks) as u8,
            blocks: (stop - next) as u8,
            offset: (next - block) as usize * BLOCK_BYTES,
        };
        next = stop;
        Some(part)
    })
}

/// Runs of neighbouring bits: first and number.
pub(crate) fn runs(mask: u16) -> impl Iterator<Item = (u8, u8)> {
    let mut rest = u32::from(mask);
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let count = (rest >> first).trailing_ones();
        rest &= !(((1u32 << count) - 1) << first);
        Some((first as u8, count as u8))
    })
}

impl Volume {
    pub(crate) fn new(pool: Rc<Pool>, head: Rc<Head>) -> Self {
        Self { pool, head }
    }

    /// Its entry now.
    ///
    /// # Errors
    ///
    /// [`PoolError::Closed`] if it is gone.
    pub fn entry(&self) -> Result<VolumeEntry, PoolError> {
        let state = self.pool.state().borrow();
        state.table.get(self.head.id).cloned().ok_or(PoolError::Closed)
    }

    /// Its UUID.
    ///
    /// # Errors
    ///
    /// [`PoolError::Closed`] if it is gone.
    pub fn uuid(&self) -> Result<Uuid, PoolError> {
        Ok(self.entry()?.uuid)
    }

    /// Whether it may lack what was acknowledged and not flushed when the pool was last left.
    pub fn has_lost_caches(&self) -> bool {
        !self.geometry().read_only && self.pool.has_lost_caches(self.head.id)
    }

    /// It ends elsewhere, for all who have it open.
    pub(crate) fn resized(&self, size_blocks: u64) {
        self.head.resized(size_blocks);
    }

    /// Its size in blocks as it is at any time, and who tells when it changes.
    pub(crate) fn size(&self) -> (Arc<AtomicU64>, Publisher) {
        (self.head.size_blocks.clone(), self.head.publisher.clone())
    }

    /// The pool it is in.
    pub fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    async fn flush(self) -> Result<Reply, IoError> {
        self.pool.flush(!self.head.checksums).await?;
        Ok(Reply::Done)
    }

    async fn zero(self, block: u64, blocks: u64, options: ZeroOptions) -> Result<Reply, IoError> {
        self.deallocate_blocks(block, blocks).await?;
        if options.force_unit_access {
            self.pool.flush(false).await?;
        }
        Ok(Reply::Done)
    }
}

impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: BLOCK_BYTES as u32,
            blocks: self.head.size_blocks.load(Ordering::Relaxed),
            optimal_blocks: EXTENT_BLOCKS as u32,
            transfer_blocks_max: TRANSFER_BLOCKS_MAX,
            memory_align_bytes: self.head.memory_align_bytes,
            volatile_write_cache: true,
            atomic_write_blocks: 1,
            deallocates: true,
            metadata_bytes: 0,
            read_only: self.head.read_only,
        }
    }

    fn submit(&self, request: Request) -> Completion {
        let geometry = self.geometry();
        if let Err(error) = request.check(&geometry) {
            return Completion::failed(error);
        }
        let request = match request {
            Request::Read { block, into } => {
                return match self.fast_read(block, into) {
                    Ok(completion) => completion,
                    Err(into) => Completion::from_future(self.clone().read(block, into)),
                };
            }
            Request::Write {
                block,
                from,
                force_unit_access: false,
            } => {
                return match self.fast_write(block, from) {
                    Ok(completion) => completion,
                    Err(from) => {
                        Completion::from_future(Unabandoned::new(self.clone().write(block, from, false)))
                    }
                };
            }
            other => other,
        };
        let this = self.clone();
        match request {
            Request::Read { block, into } => Completion::from_future(this.read(block, into)),
            Request::Compare { block, with } => Completion::from_future(this.compare(block, with)),
            Request::Flush => Completion::from_future(this.flush()),
            Request::Write {
                block,
                from,
                force_unit_access,
            } => Completion::from_future(Unabandoned::new(this.write(block, from, force_unit_access))),
            Request::Deallocate { block, blocks } => {
                let options = ZeroOptions::default();
                Completion::from_future(Unabandoned::new(this.zero(block, blocks, options)))
            }
            Request::WriteZeroes {
                block,
                blocks,
                options,
            } => Completion::from_future(Unabandoned::new(this.zero(block, blocks, options))),
        }
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        let this = self.clone();
        Box::pin(async move {
            this.geometry().check_range(block, blocks)?;
            let mut runs = AllocationRuns::new(blocks, runs_max);
            let (mut next, end) = (block, block + blocks);
            while next < end {
                let page = this.allocated(next, end).await?;
                for range in &page.ranges {
                    if !runs.push(range.block - next, false) || !runs.push(range.blocks, true) {
                        return Ok(runs.into_runs());
                    }
                    next = range.block + range.blocks;
                }
                let upto = page.next.unwrap_or(end);
                if !runs.push(upto - next, false) {
                    break;
                }
                next = upto;
            }
            Ok(runs.into_runs())
        })
    }
}
