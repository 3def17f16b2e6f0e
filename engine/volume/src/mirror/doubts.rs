//! What an old target may have left different on replicas, and how it is made the same.
//!
//! Whatever the old target was changing when it ended may be on some replicas and not on others: only regions
//! with an intent. They are looked at chunk by chunk, those first that somebody wants to use: so a volume is
//! served at once, however much was being written.
//!
//! Invariants:
//! - Nothing of a chunk in doubt is read for a host; nor is a snapshot cut, or a replica brought back, while
//!   any chunk is in doubt. What is written is the same on all replicas at once: that waits for nothing.
//! - The intent of a region stays while a chunk of it is in doubt, or could not be made the same.
//! - What was made the same while hosts are served is so on the media: a power cut does not bring back what
//!   hosts were told is not there.
//! - A chunk is made the same by a task of the target, not by whoever waits for it: what is begun is ended.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use pollux_device::{Gather, IoError, Reply, Request};
use pollux_reactor::{Reactor, Signal, Task, sleep};

use super::Core;
use super::connection::{Verdict, is_session_lost};
use super::open::OpenError;
use super::read::memory;
use crate::locks::Mode;
use crate::members::Failed;
use crate::membership::{Epoch, SlotNumber};

/// Tasks that make chunks the same side by side.
const WORKERS: usize = 8;

/// Those of them that go on with what nobody waits for, while hosts are served.
const WORKERS_BESIDE_HOSTS: usize = 2;

/// Whom to copy from when replicas differ, and who need not be written anew when they do not.
#[derive(Debug)]
pub(super) struct Trust {
    /// Best first: whose host has lived longest since.
    pub(super) sources: Vec<SlotNumber>,
    /// The newest epoch that any of them tells of.
    pub(super) newest: Option<Epoch>,
    /// All of them have kept all since then.
    pub(super) in_all: bool,
}

/// See the module. Chunks are numbered through the volume: those of a region follow those of the one before.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    chunks: RefCell<BTreeSet<u64>>,
    /// Those of them that nobody has begun with.
    left: RefCell<BTreeSet<u64>>,
    /// Those that are waited for.
    wanted: RefCell<VecDeque<u64>>,
    /// Regions with a chunk that nobody can read: they stay as they are.
    unreadable: RefCell<BTreeSet<u64>>,
    /// Something was taken from a replica that may have lost what was in its cache: acknowledged writes that
    /// nobody flushed may be gone.
    has_lost: Cell<bool>,
    /// Why the volume cannot be served: what has to be made good before that could not be.
    failure: RefCell<Option<OpenError>>,
    changed: Signal,
}

impl Doubts {
    /// Takes a chunk that nobody has begun with: one that is waited for if there is one, else any.
    fn take(&self, any: bool) -> Option<u64> {
        let (mut left, mut wanted) = (self.left.borrow_mut(), self.wanted.borrow_mut());
        while let Some(chunk) = wanted.pop_front() {
            if left.remove(&chunk) {
                return Some(chunk);
            }
        }
        any.then(|| left.pop_first()).flatten()
    }

    fn is_settled(&self, chunks: &Range<u64>) -> bool {
        self.chunks.borrow().range(chunks.clone()).next().is_none()
    }

    fn want(&self, chunks: &Range<u64>) {
        let left = self.left.borrow();
        self.wanted.borrow_mut().extend(left.range(chunks.clone()));
        drop(left);
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.changed.wake();
    }
}

impl Core {
    /// Blocks of a chunk, and chunks of a region.
    fn chunks(&self) -> (u64, u64) {
        let blocks = self.chunk_blocks().min(self.region_blocks);
        (blocks, self.region_blocks.div_ceil(blocks))
    }

    fn chunk_of(&self, block: u64) -> u64 {
        let (blocks, per_region) = self.chunks();
        self.region_of(block) * per_region + block % self.region_blocks / blocks
    }

    /// All regions with an intent are in doubt from now on.
    pub(super) fn doubt(&self) {
        let intents = self.regions.borrow_mut().hold_intents();
        let (_, per_region) = self.chunks();
        let chunks: BTreeSet<u64> = intents
            .iter()
            .flat_map(|region| region * per_region..(region + 1) * per_region)
            .collect();
        self.doubts.left.borrow_mut().clone_from(&chunks);
        *self.doubts.chunks.borrow_mut() = chunks;
    }

    /// Whether nothing is in doubt any more.
    pub(super) fn has_no_doubts(&self) -> bool {
        self.doubts.chunks.borrow().is_empty()
    }

    /// Waits until all that has to be made good before the volume is served is.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if some of it cannot be.
    pub(super) async fn all_made_good(&self) -> Result<(), OpenError> {
        let failed = || self.doubts.failure.borrow().is_some();
        let is_over = || (self.has_no_doubts() || failed() || self.stopped().is_some()).then_some(());
        self.doubts.changed.until(is_over).await;
        self.check_serving()?;
        self.doubts.failure.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Whether what is the same on all now may lack acknowledged writes that nobody flushed.
    pub(super) fn has_lost_caches(&self) -> bool {
        self.doubts.has_lost.get()
    }

    /// Waits until nothing is in doubt any more, or the target has stopped.
    pub(super) async fn all_settled(&self) {
        let settled = || (self.has_no_doubts() || self.stopped().is_some()).then_some(());
        self.doubts.changed.until(settled).await;
    }

    /// Waits until nothing of a range is in doubt.
    ///
    /// # Errors
    ///
    /// Those of a target that has stopped.
    #[inline]
    pub(super) async fn settled(&self, block: u64, blocks: u64) -> Result<(), IoError> {
        if self.has_no_doubts() || blocks == 0 {
            return Ok(());
        }
        let chunks = self.chunk_of(block)..self.chunk_of(block + blocks - 1) + 1;
        if !self.doubts.is_settled(&chunks) {
            self.doubts.want(&chunks);
            let settled = || (self.doubts.is_settled(&chunks) || self.stopped().is_some()).then_some(());
            self.doubts.changed.until(settled).await;
        }
        self.check_serving()
    }

    /// The tasks that make chunks in doubt the same, until there are none left.
    pub(super) fn settle(self: &Rc<Self>, trust: &Rc<Trust>) -> Vec<Task<()>> {
        let spawn = |worker| {
            let (core, trust) = (self.clone(), trust.clone());
            let takes_any = !trust.in_all || worker < WORKERS_BESIDE_HOSTS;
            Reactor::current().spawn(async move { core.settle_chunks(&trust, takes_any).await })
        };
        match self.has_no_doubts() {
            true => Vec::new(),
            false => (0..WORKERS).map(spawn).collect(),
        }
    }

    async fn settle_chunks(&self, trust: &Trust, takes_any: bool) {
        loop {
            let next = || {
                let is_over = self.has_no_doubts() || self.stopped().is_some();
                let chunk = self.doubts.take(takes_any).filter(|_| !is_over);
                (is_over || chunk.is_some()).then_some(chunk)
            };
            let Some(chunk) = self.doubts.changed.until(next).await else {
                return;
            };
            let is_same = loop {
                match self.make_identical(chunk, trust).await {
                    Ok(is_same) => break is_same,
                    Err(_) if self.stopped().is_some() => return,
                    // Nobody is there: until one of them is back, nothing is served.
                    Err(_) if trust.in_all => sleep(self.options.retry_pause).await,
                    Err(error) => {
                        self.doubts.failure.replace(Some(error));
                        return self.doubts.wake();
                    }
                }
            };
            self.resolved(chunk, is_same);
        }
    }

    /// A chunk is in doubt no more.
    fn resolved(&self, chunk: u64, is_same: bool) {
        let (_, per_region) = self.chunks();
        let region = chunk / per_region;
        let doubts = &self.doubts;
        if !is_same {
            doubts.unreadable.borrow_mut().insert(region);
        }
        doubts.chunks.borrow_mut().remove(&chunk);
        let is_over = doubts.is_settled(&(region * per_region..(region + 1) * per_region));
        if is_over && !doubts.unreadable.borrow().contains(&region) {
            self.regions.borrow_mut().end_write(region);
        }
        doubts.wake();
        if self.has_no_doubts() {
            tracing::debug!(volume = %self.volume(), "the replicas are the same everywhere");
            self.wake();
        }
    }

    /// Whether a chunk is the same on all now. It is not when nobody can read it: then it stays as it is.
    async fn make_identical(&self, chunk: u64, trust: &Trust) -> Result<bool, OpenError> {
        let (chunk_blocks, per_region) = self.chunks();
        let region_end = (chunk / per_region + 1) * self.region_blocks;
        let start = chunk / per_region * self.region_blocks + chunk % per_region * chunk_blocks;
        let end = (start + chunk_blocks)
            .min(region_end)
            .min(self.geometry.get().blocks);
        if start >= end {
            return Ok(true);
        }
        let _lock = self.locks.lock(start..end, Mode::Exclusive).await;
        self.make_chunk_identical(start, end - start, trust).await
    }

    async fn make_chunk_identical(&self, block: u64, blocks: u64, trust: &Trust) -> Result<bool, OpenError> {
        let bytes = (blocks * u64::from(self.geometry.get().block_bytes)) as usize;
        let has_kept_all = |slot| self.has_kept_all_since(slot, trust.newest);
        let mut left = trust.sources.iter();
        let (source, data) = loop {
            let Some(&slot) = left.next() else {
                // Some of its blocks may be read one by one, and have lost something.
                if !trust.sources.iter().all(|&slot| has_kept_all(slot)) {
                    self.doubts.has_lost.set(true);
                }
                return Ok(false);
            };
            if let Some(data) = self.read_from(slot, block, bytes).await? {
                break (slot, data);
            }
        };
        if !has_kept_all(source) {
            self.doubts.has_lost.set(true);
        }
        for &slot in &trust.sources {
            // A drive may show what it has in its cache and will never flush, after a flush that failed in an
            // earlier life of its host. Only what is written anew is sure to be flushed.
            let is_trusted = has_kept_all(slot);
            let same = match slot == source {
                true => true,
                false => {
                    let found = self.read_from(slot, block, bytes).await?;
                    found.is_some_and(|found| found[..] == data[..])
                }
            };
            if !same {
                self.count(|counters| counters.differences += 1);
            }
            if !(same && is_trusted) {
                // What is told to hosts from now on is not undone by a power cut: what this undoes may be on
                // the medium already. Without hosts a flush comes before anything is told.
                let force_unit_access = trust.in_all;
                self.write_to(slot, block, data.clone().into(), force_unit_access)
                    .await?;
            }
        }
        Ok(true)
    }

    /// Reads from one replica; `None` when it cannot, or is out.
    async fn read_from(
        &self,
        slot: SlotNumber,
        block: u64,
        bytes: usize,
    ) -> Result<Option<pollux_hugepages::Slice>, OpenError> {
        loop {
            self.check_serving()?;
            if !self.members.borrow().readable().contains(slot) {
                if self.members.borrow().is_lost() {
                    // With nobody left, the volume is to be opened anew.
                    return Err(OpenError::NoReplica);
                }
                return Ok(None);
            }
            let Some(connection) = self.connection(slot) else {
                return Ok(None);
            };
            let into = memory(bytes);
            let result = connection
                .send(Request::Read { block, into }, self.options.request_timeout)
                .await;
            match result.and_then(Reply::into_slice) {
                Ok(data) if data.len() == bytes => return Ok(Some(data)),
                Ok(_) => return Ok(None),
                Err(IoError::ResourceShortage | IoError::NotReady) => sleep(self.options.retry_pause).await,
                Err(error) if is_session_lost(error) || error == IoError::Fenced => {
                    self.judge(slot, &connection, error);
                }
                Err(_) => return Ok(None),
            }
        }
    }

    /// Writes to one replica, unless it is out. One that cannot is out then.
    async fn write_to(
        &self,
        slot: SlotNumber,
        block: u64,
        data: Gather,
        force_unit_access: bool,
    ) -> Result<(), OpenError> {
        loop {
            self.check_serving()?;
            let Some(connection) = self.connection(slot) else {
                return Ok(());
            };
            if !self.members.borrow().readable().contains(slot) {
                return Ok(());
            }
            let write = Request::Write {
                block,
                from: data.clone(),
                force_unit_access,
            };
            match connection.send(write, self.options.request_timeout).await {
                Ok(_) => return Ok(()),
                Err(error) => match self.judge(slot, &connection, error) {
                    Verdict::Again => sleep(self.options.retry_pause).await,
                    Verdict::Changed => {}
                    // The one that was copied from may be out by now: what the last one has is what counts.
                    Verdict::NoSpace if self.fail(slot) == Failed::Last => return Ok(()),
                    Verdict::NoSpace => {}
                    Verdict::Final(error) => return Err(error.into()),
                },
            }
        }
    }
}
