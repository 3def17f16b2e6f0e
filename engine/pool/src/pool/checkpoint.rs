//! Checkpoints: all of memory on the devices, so that the journal can begin anew.
//!
//! 1. *Prepare*, while everything goes on: every page of the table of volumes and of the allocation state
//!    that will be written gets its place.
//! 2. *Close*, in one short step: the generation is closed and the journal cut. From then on no page of it
//!    is changed, and the allocation state keeps how it was (see `allocator::images`). Entries of volumes
//!    that have changed are put into their table. Nothing is allocated or freed here, so that the allocation
//!    state says what is true. If something came that was not prepared, back to 1.
//! 3. *Write*, while everything goes on: the pages are sealed, those below before those above them, and
//!    both copies written; the intents that stay active, to the journal; a flush; the superblocks; a flush.
//! 4. What was freed in the closed generation can be used again, and the journal before the cut too; bit by
//!    bit, while everything goes on.

use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pollux_device::{Gather, IoError};
use pollux_hugepages::Slice;

use super::counted::SuperblockHold;
use super::error::of_tree;
use super::{ALLOCATION_SHAPE, Pool, PoolError, State, VOLUMES_SHAPE};
use crate::cache::{SealedPage, Unsealed};
use crate::journal::{AppendFor, RingPosition};
use crate::layout::journal::Record;
use crate::layout::page::{PageIdentity, PageKind};
use crate::layout::superblock::Superblock;
use crate::layout::volume::VolumeEntry;
use crate::layout::{BlockAddress, EXTENT_BLOCKS, PagePointer};
use crate::tree::TreeError;

/// Rounds of preparing before a checkpoint gives up: each is for what came during the one before.
const ROUNDS_MAX: u32 = 10_000;

/// Pages after which others run, in what goes over many.
const YIELD_EVERY: usize = 32;

/// Extents that were freed, or pages that are dropped, after which others run.
const FREED_IN_A_STEP: usize = 256;

/// What was closed, to be written.
struct Closed {
    /// The roots in it have no CRCs yet.
    superblock: Superblock,
    intents: Vec<Record>,
    cut: RingPosition,
}

/// Keeps checkpoints from beginning.
pub(super) struct CheckpointHold(Rc<Pool>);

impl Drop for CheckpointHold {
    fn drop(&mut self) {
        let is_wanted = {
            let mut state = self.0.state.borrow_mut();
            state.checkpoint_running = false;
            state.checkpoints_wanted > state.checkpoints_done
        };
        self.0.checkpoint_done.wake();
        if is_wanted {
            self.0.run_checkpoints();
        }
    }
}

impl Pool {
    /// Makes a checkpoint, or waits for one that begins now or later.
    ///
    /// # Errors
    ///
    /// [`PoolError`]; the pool is stopped if the error is of a device.
    pub async fn checkpoint(self: &Rc<Self>) -> Result<(), PoolError> {
        if self.read_only {
            return Err(PoolError::ReadOnly);
        }
        let ticket = {
            let mut state = self.state.borrow_mut();
            state.check_running()?;
            if self.sealed.get() {
                return Err(PoolError::Closed);
            }
            // One that runs has closed its generation already, or is about to: only a later one is sure to
            // have everything.
            let ticket = state.checkpoints_done + 1 + u64::from(state.checkpoint_running);
            state.checkpoints_wanted = state.checkpoints_wanted.max(ticket);
            ticket
        };
        self.run_checkpoints();
        self.checkpoint_done
            .until(|| {
                let state = self.state.borrow();
                if state.checkpoints_done >= ticket {
                    return Some(Ok(()));
                }
                state.check_running().err().map(Err)
            })
            .await
    }

    /// Waits until no checkpoint runs, and keeps new ones from beginning until the hold is dropped.
    ///
    /// # Errors
    ///
    /// [`PoolError::Closed`] when none is to be made any more.
    pub(super) async fn hold_checkpoints(self: &Rc<Self>) -> Result<CheckpointHold, PoolError> {
        self.checkpoint_done
            .until(|| {
                if self.sealed.get() {
                    return Some(Err(PoolError::Closed));
                }
                let mut state = self.state.borrow_mut();
                let idle = !state.checkpoint_running;
                state.checkpoint_running = true;
                idle.then_some(Ok(()))
            })
            .await?;
        Ok(CheckpointHold(self.clone()))
    }

    /// Has the checkpoints made that were asked for, in a task of its own.
    fn run_checkpoints(self: &Rc<Self>) {
        {
            let mut state = self.state.borrow_mut();
            if state.checkpoint_running {
                return;
            }
            state.checkpoint_running = true;
        }
        let pool = self.clone();
        pollux_reactor::spawn(async move {
            loop {
                {
                    let mut state = pool.state.borrow_mut();
                    let more = state.checkpoints_done < state.checkpoints_wanted;
                    if !more || state.stopped.is_some() {
                        state.checkpoint_running = false;
                        drop(state);
                        pool.checkpoint_done.wake();
                        break;
                    }
                }
                if let Err(error) = pool.make_checkpoint(false).await {
                    tracing::error!(pool = %pool.name, %error, "a checkpoint failed");
                    pool.stop(error.as_io());
                    pool.state.borrow_mut().checkpoint_running = false;
                    pool.checkpoint_done.wake();
                    break;
                }
                pool.state.borrow_mut().checkpoints_done += 1;
                pool.checkpoint_done.wake();
            }
        })
        .detach();
    }

    /// Makes one checkpoint. One at a time: callers see to it.
    pub(super) async fn make_checkpoint(self: &Rc<Self>, exported: bool) -> Result<(), PoolError> {
        let mut closed = None;
        for _ in 0..ROUNDS_MAX {
            self.prepare().await?;
            closed = self.close(exported)?;
            if closed.is_some() {
                break;
            }
        }
        let closed = closed.ok_or(PoolError::Device(IoError::ResourceShortage))?;
        let (superblock, pages, hold) = self.write(&closed).await?;
        {
            let mut state = self.state.borrow_mut();
            state.counters.checkpoints += 1;
            state.counters.pages_written += pages;
            state.cache.checkpoint_durable();
            self.journal.release(closed.cut.sequence, superblock.checkpoint);
            state.superblock = superblock;
        }
        drop(hold);
        // Whatever a failed checkpoint had closed never gets here: it stays away for ever.
        while self.state.borrow_mut().space.free_closed(FREED_IN_A_STEP) {
            pollux_reactor::yield_now().await;
        }
        while self.state.borrow_mut().cache.shrink(FREED_IN_A_STEP) {
            pollux_reactor::yield_now().await;
        }
        Ok(())
    }

    /// Gives every page that has to be written its place.
    async fn prepare(self: &Rc<Self>) -> Result<(), PoolError> {
        for _ in 0..ROUNDS_MAX {
            let (ids, leaves) = {
                let state = self.state.borrow();
                let ids: Vec<u64> = state.table.dirty().collect();
                (ids, state.space.unprepared_leaves())
            };
            let mut done = true;
            for id in ids {
                done &= self.with_pages(|state| state.prepare_entry(id)).await?;
            }
            for (number, (device, leaf)) in leaves.into_iter().enumerate() {
                done &= self
                    .with_pages(|state| state.prepare_allocation(device, leaf))
                    .await?;
                if number % YIELD_EVERY == YIELD_EVERY - 1 {
                    pollux_reactor::yield_now().await;
                }
            }
            if done {
                return Ok(());
            }
        }
        Err(PoolError::Device(IoError::ResourceShortage))
    }

    /// Closes the generation, if everything is prepared.
    fn close(&self, exported: bool) -> Result<Option<Closed>, PoolError> {
        let state = &mut *self.state.borrow_mut();
        if !state.is_prepared().map_err(of_tree)? {
            return Ok(None);
        }
        state.fill_in_entries().map_err(of_tree)?;
        state.cache.close(state.generations.open);
        state.space.close_checkpoint();
        state.table.clear_dirty();
        // With an export no write is under way: what does not match from then on is damage, and nothing
        // newer.
        let intents = state.intents.close();
        let intents = if exported { Vec::new() } else { intents };
        let cut = self.journal.cut();
        let mut superblock = Superblock {
            exported,
            checkpoint: state.superblock.checkpoint + 1,
            generation: state.generations.open,
            journal_sequence: cut.sequence,
            journal_position: cut.place,
            next_volume: state.table.next_id(),
            // Others may be given up until it is written.
            journal_copies: self.counted_copies(),
            journal_blocks: self.journal.ring_blocks(),
            revision: 0,
            volumes: state.volumes,
            devices: state.members.clone(),
            scrub: state.scrub.clone(),
            ..state.superblock.clone()
        };
        for (number, device) in (0..).zip(&mut superblock.devices) {
            device.allocation = state.allocation.get(&number).copied().flatten();
        }
        state.generations.closed = state.generations.open;
        state.generations.open += 1;
        Ok(Some(Closed {
            superblock,
            intents,
            cut,
        }))
    }

    /// Writes everything; the superblock as it was written, how many pages there were, and what keeps others
    /// from writing the superblock before this one again.
    async fn write(self: &Rc<Self>, closed: &Closed) -> Result<(Superblock, u64, SuperblockHold), PoolError> {
        let pages = self.write_pages().await?;
        let mut superblock = self.state.borrow_mut().complete(&closed.superblock);
        for intent in &closed.intents {
            self.journal.append(intent, AppendFor::Checkpoint)?;
        }
        // Also without any: blocks before the cut that nobody has committed yet would keep their room in the
        // ring, and those who wait for room commit nothing.
        self.journal.commit().await?;
        for areas in self.label_areas() {
            areas.device.flush().await?;
        }
        let hold = self.hold_superblock().await;
        superblock.journal_copies &= self.counted_copies();
        self.without_failed_successor(&mut superblock);
        self.write_superblock(&superblock).await?;
        Ok((superblock, pages, hold))
    }

    /// Seals the pages that were closed, and writes them; how many.
    async fn write_pages(&self) -> Result<u64, PoolError> {
        let mut writes = FuturesUnordered::new();
        let mut pages = 0;
        loop {
            let sealed = self.state.borrow_mut().seal_next()?;
            let Some(page) = sealed else { break };
            while writes.len() >= self.options.checkpoint_writes.max(1) {
                writes.next().await.unwrap_or(Ok(()))?;
            }
            writes.push(self.write_page(page));
            pages += 1;
            if pages % YIELD_EVERY as u64 == 1 {
                // Devices that do everything at once would keep all others waiting.
                pollux_reactor::yield_now().await;
            }
        }
        while let Some(result) = writes.next().await {
            result?;
        }
        Ok(pages)
    }

    /// Writes both copies; one is enough.
    async fn write_page(&self, page: SealedPage) -> Result<(), PoolError> {
        let first = self.write_copy(page.pointer.first, page.bytes.clone());
        let second = self.write_copy(page.pointer.second, page.bytes);
        match futures_util::join!(first, second) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(error), Err(_)) => Err(error.into()),
            (Err(error), _) | (_, Err(error)) => {
                let page = page.identity;
                tracing::error!(pool = %self.name, ?page, %error, "a copy of a page could not be written");
                Ok(())
            }
        }
    }

    async fn write_copy(&self, address: BlockAddress, bytes: Slice) -> Result<(), IoError> {
        let extent = address.extent();
        let device = self.device(extent.device())?;
        let block = extent.number() * EXTENT_BLOCKS as u64 + u64::from(address.index());
        device.write(block, Gather::from(bytes), false).await
    }
}

impl State {
    /// Makes the page of an entry one that can be changed, or takes an entry out that is gone; whether it was
    /// so already.
    fn prepare_entry(&mut self, id: u64) -> Result<bool, TreeError> {
        let mut tree = self.volumes_tree();
        let generations = self.generations;
        if self.table.get(id).is_none() {
            let zeros = [0; VolumeEntry::BYTES];
            let before = tree.get(&self.metadata(), id, |bytes| bytes.iter().any(|byte| *byte != 0))?;
            if before != Some(true) {
                return Ok(true);
            }
            tree.put(&mut self.metadata(), generations, id, &zeros)?;
            self.volumes = tree.root;
            return Ok(false);
        }
        let mut metadata = self.metadata();
        if tree.open_leaf(&mut metadata, generations, id)?.is_some() {
            return Ok(true);
        }
        tree.prepare(&mut metadata, generations, id)?;
        self.volumes = tree.root;
        Ok(false)
    }

    fn prepare_allocation(&mut self, device: u8, leaf: u64) -> Result<bool, TreeError> {
        let mut tree = self.allocation_tree(device);
        let generations = self.generations;
        let mut metadata = self.metadata();
        let entry = leaf * ALLOCATION_SHAPE.leaf_entries;
        if tree.open_leaf(&mut metadata, generations, entry)?.is_some() {
            self.space.set_prepared(device, leaf);
            return Ok(true);
        }
        tree.prepare(&mut metadata, generations, entry)?;
        self.allocation.insert(device, tree.root);
        // It stays open until the generation closes: leaves of the allocation state are never freed.
        self.space.set_prepared(device, leaf);
        Ok(false)
    }

    fn is_prepared(&mut self) -> Result<bool, TreeError> {
        let ids: Vec<u64> = self.table.dirty().collect();
        let generations = self.generations;
        for id in ids {
            let tree = self.volumes_tree();
            let is_prepared = if self.table.get(id).is_some() {
                tree.open_leaf(&mut self.metadata(), generations, id)?.is_some()
            } else {
                let found = tree.get(&self.metadata(), id, |bytes| bytes.iter().any(|byte| *byte != 0))?;
                found != Some(true)
            };
            if !is_prepared {
                return Ok(false);
            }
        }
        Ok(self.space.is_prepared())
    }

    fn fill_in_entries(&mut self) -> Result<(), TreeError> {
        let ids: Vec<u64> = self.table.dirty().collect();
        let (tree, generations) = (self.volumes_tree(), self.generations);
        for id in ids {
            let Some(bytes) = self.table.get(id).map(VolumeEntry::encode) else {
                continue;
            };
            if let Some(leaf) = tree.open_leaf(&mut self.metadata(), generations, id)? {
                leaf.put_entry(id % VOLUMES_SHAPE.leaf_entries, &bytes);
            }
        }
        Ok(())
    }

    /// Seals one of the pages that were closed.
    fn seal_next(&mut self) -> Result<Option<SealedPage>, Unsealed> {
        let space = &mut self.space;
        self.cache.seal_next(|page| {
            let PageIdentity {
                kind,
                level,
                tree,
                index,
                ..
            } = *page.identity();
            if (kind, level) != (PageKind::Allocation, 0) {
                return;
            }
            let image = u8::try_from(tree)
                .ok()
                .and_then(|device| space.closed_image(device, index));
            for (at, used) in (0..).zip(image.iter().flat_map(|image| image.iter())) {
                page.put_entry(at, &used.to_le_bytes());
            }
        })
    }

    /// All pages that were closed are sealed: gives the roots their CRCs, those that are in a superblock and
    /// those that go on.
    fn complete(&mut self, superblock: &Superblock) -> Superblock {
        let cache = &self.cache;
        let sealed = |root: Option<PagePointer>| root.map(|root| cache.sealed(root));
        self.table.seal_roots(|root| cache.sealed(root));
        self.volumes = sealed(self.volumes);
        for root in self.allocation.values_mut() {
            *root = sealed(*root);
        }
        let mut superblock = superblock.clone();
        superblock.volumes = sealed(superblock.volumes);
        for device in &mut superblock.devices {
            device.allocation = sealed(device.allocation);
        }
        superblock
    }
}
