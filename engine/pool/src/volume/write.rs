//! Writes.
//!
//! A write of a slot: lock its blocks; see to room for its pages; plan; have the intent durable if blocks
//! are overwritten in place; write the data; change the slot and append its record in one step. With FUA,
//! or at the next flush, the journal is committed.

use futures_util::future::join_all;
use pollux_device::{Gather, IoError, Reply};

use super::locks::WHOLE_SLOT;
use super::{Part, Volume, parts, runs};
use crate::allocator::NoSpace;
use crate::device::memory;
use crate::journal::{AppendFor, JournalError};
use crate::layout::journal::Record;
use crate::layout::slot::Slot;
use crate::layout::{BLOCK_BYTES, EXTENT_BLOCKS, ExtentId, crc32c};
use crate::map::{FreshExtent, Target, WritePlan, plan_write};
use crate::pool::{PoolError, REGION_SLOTS, State, Use};

/// How often a slot is planned anew: one that changes, or for which a checkpoint had to free extents, which
/// others may take first.
const PLANS_MAX: u32 = 16;

/// Slots whose emptied places are remembered; more of them are made durable at once.
const EMPTIED_MAX: usize = 4096;

/// A region is in use for a write in place until this is dropped.
struct RegionUse<'a> {
    volume: &'a Volume,
    region: u64,
}

impl Drop for RegionUse<'_> {
    fn drop(&mut self) {
        let mut state = self.volume.pool.state().borrow_mut();
        state.intents.end(self.volume.head.id, self.region);
    }
}

/// The extent that a write to holes goes to. It is given back with the last write that uses it, if none of
/// them has put it into the slot.
struct FreshUse<'a> {
    volume: &'a Volume,
    slot: u64,
    fresh: FreshExtent,
}

impl Drop for FreshUse<'_> {
    fn drop(&mut self) {
        if self.volume.head.locks.release_fresh(self.slot) {
            let mut state = self.volume.pool.state().borrow_mut();
            state.space.return_extent(self.fresh.extent);
        }
    }
}

impl Volume {
    pub(super) async fn write(
        self,
        block: u64,
        from: Gather,
        force_unit_access: bool,
    ) -> Result<Reply, IoError> {
        let blocks = (from.len_bytes() / BLOCK_BYTES) as u64;
        {
            let _change = self.head.begin_change().await?;
            let mut parts = parts(block, blocks);
            let (first, second) = (parts.next(), parts.next());
            match (first, second) {
                (None, _) => {}
                (Some(part), None) => self.write_part(part, &from).await?,
                (Some(first), Some(second)) => {
                    let all = [first, second].into_iter().chain(parts);
                    // All come to their end, also when one fails: what was written has to be recorded.
                    let results = join_all(all.map(|part| self.write_part(part, &from))).await;
                    results.into_iter().collect::<Result<(), IoError>>()?;
                }
            }
        }
        self.pool.changed();
        if force_unit_access {
            self.pool.flush(!self.head.checksums).await?;
        }
        Ok(Reply::Done)
    }

    async fn write_part(&self, part: Part, from: &Gather) -> Result<(), IoError> {
        let data = from.range(part.offset, part.bytes());
        let mut checksums = [0; EXTENT_BLOCKS];
        if self.head.checksums {
            self.sum(part, &data, &mut checksums);
        }
        let mut wanted = part.mask();
        let mut error = IoError::ResourceShortage;
        for _ in 0..PLANS_MAX {
            let _lock = self.head.locks.lock(part.slot, wanted).await;
            let _admitted = self.pool.admit(self.head.claim).await?;
            let (slot, parent_generation) = self.look_up(part.slot).await?;
            let plan = plan_write(&slot, part.mask(), parent_generation);
            if plan.moves_others() && wanted != WHOLE_SLOT {
                // Blocks that move must not be written meanwhile.
                wanted = WHOLE_SLOT;
                continue;
            }
            let fresh = plan.needs_extent().then(|| self.fresh(part.slot));
            if let Some(Err(NoSpace)) = fresh {
                self.pool.free_extents(self.head.claim).await?;
                // Others may have given the slot an extent of its own meanwhile.
                error = IoError::CapacityExceeded;
                continue;
            }
            let fresh = fresh.and_then(Result::ok);
            return Ok(self.write_planned(part, &data, &checksums, &plan, fresh).await?);
        }
        Err(error)
    }

    /// The checksums of the blocks of a part.
    pub(super) fn sum(&self, part: Part, data: &Gather, checksums: &mut [u32; EXTENT_BLOCKS]) {
        let wanted = checksums.iter_mut().skip(part.first.into());
        for (checksum, block) in wanted.zip(0..part.blocks) {
            *checksum = gather_crc(data, usize::from(block) * BLOCK_BYTES);
        }
    }

    /// Uses a region for a write in place whose intent is durable.
    pub(super) fn use_region(&self, region: u64) -> u64 {
        let mut state = self.pool.state().borrow_mut();
        let begun = state.intents.begin(self.head.id, region);
        debug_assert!(matches!(begun, Use::Active(_)), "it was looked at just now");
        region
    }

    /// A write in place has ended.
    pub(super) fn end_region(&self, region: u64) {
        self.pool.state().borrow_mut().intents.end(self.head.id, region);
    }

    /// A slot, and the generation that its own extents were born after.
    async fn look_up(&self, index: u64) -> Result<(Slot, u64), PoolError> {
        let id = self.head.id;
        self.pool
            .with_pages(|state| {
                if let Some((leaf, slot)) = state.slot_at(id, index) {
                    return Ok((slot, leaf.parent_generation));
                }
                let slot = state.slot(id, index)?;
                Ok((slot, state.parent_generation(id, index)))
            })
            .await
    }

    async fn write_planned(
        &self,
        part: Part,
        data: &Gather,
        checksums: &[u32; EXTENT_BLOCKS],
        plan: &WritePlan,
        fresh: Option<FreshUse<'_>>,
    ) -> Result<(), PoolError> {
        let region = if plan.in_place.is_empty() || !self.head.checksums {
            None
        } else {
            Some(self.begin_in_place(part.slot / REGION_SLOTS).await?)
        };
        if plan.fill.is_some() {
            self.wait_until_emptied(part.slot).await?;
        }
        if let Some(fresh) = &fresh {
            self.copy_blocks(plan, fresh.fresh.extent).await?;
        }
        let written = self
            .write_data(part, data, plan, fresh.as_ref().map(|fresh| fresh.fresh.extent))
            .await;
        if let Err(error) = written {
            if self.head.checksums {
                self.record_failed(part.slot, plan, checksums).await;
            }
            return Err(error);
        }
        // With checksums off, what is overwritten in place changes nothing else.
        let unchanged = !self.head.checksums && !plan.needs_extent() && plan.fill.is_none();
        if !unchanged {
            let fresh = fresh.as_ref().map(|fresh| fresh.fresh);
            self.record_write(part.slot, plan, fresh, checksums).await?;
        }
        drop(region);
        Ok(())
    }

    /// The extent for holes of a slot: the one that another write has just taken, or a new one.
    fn fresh(&self, slot: u64) -> Result<FreshUse<'_>, NoSpace> {
        let shared = self.head.locks.share_fresh(slot);
        let fresh = match shared {
            Some(fresh) => fresh,
            None => {
                let mut state = self.pool.state().borrow_mut();
                let birth = state.generations().open;
                let extent = state.take_extent(self.head.claim)?;
                let fresh = FreshExtent { extent, birth };
                self.head.locks.offer_fresh(slot, fresh);
                fresh
            }
        };
        Ok(FreshUse {
            volume: self,
            slot,
            fresh,
        })
    }

    /// Begins to overwrite in a region: its intent is durable when this returns.
    async fn begin_in_place(&self, region: u64) -> Result<RegionUse<'_>, PoolError> {
        let (id, pool) = (self.head.id, &self.pool);
        loop {
            let begun = pool.state().borrow_mut().intents.begin(id, region);
            match begun {
                Use::Active(sequence) => {
                    let using = RegionUse { volume: self, region };
                    if pool.journal().durable() < sequence {
                        pool.journal().commit().await?;
                    }
                    return Ok(using);
                }
                Use::Full => pool.checkpoint().await?,
                Use::Unknown => {
                    let record = Record::Intent { volume: id, region };
                    match pool.journal().append(&record, AppendFor::Change) {
                        Ok(sequence) => {
                            let mut state = pool.state().borrow_mut();
                            state.intents.appended(id, region, sequence);
                        }
                        Err(JournalError::Full) => pool.make_room().await?,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }

    /// Waits until the records are durable that emptied places of a slot's own extents.
    async fn wait_until_emptied(&self, slot: u64) -> Result<(), PoolError> {
        let place = (self.head.id, slot);
        let sequence = self.pool.state().borrow().emptied.get(&place).copied();
        if let Some(sequence) = sequence {
            if self.pool.journal().durable() < sequence {
                self.pool.journal().commit().await?;
            }
            self.pool.state().borrow_mut().emptied.remove(&place);
        }
        Ok(())
    }

    /// Remembers that places of a slot's own extents are free once a record is durable.
    pub(super) async fn remember_emptied(&self, slot: u64, sequence: u64) -> Result<(), PoolError> {
        let too_many = {
            let emptied = &mut self.pool.state().borrow_mut().emptied;
            emptied.insert((self.head.id, slot), sequence);
            let durable = self.pool.journal().durable();
            if emptied.len() > EMPTIED_MAX {
                emptied.retain(|_, sequence| *sequence > durable);
            }
            emptied.len() > EMPTIED_MAX
        };
        if too_many {
            self.pool.journal().commit().await?;
        }
        Ok(())
    }

    /// Copies the blocks that have to move to a fresh extent.
    async fn copy_blocks(&self, plan: &WritePlan, to: ExtentId) -> Result<(), PoolError> {
        for Target { extent, mask } in &plan.copy {
            for (first, blocks) in runs(*mask) {
                let from = self.pool.device(extent.device())?;
                let bytes = usize::from(blocks) * BLOCK_BYTES;
                let read = from.read_into(block_of(*extent, first), memory(bytes)).await?;
                let device = self.pool.device(to.device())?;
                device
                    .write(block_of(to, first), Gather::from(read), false)
                    .await?;
            }
        }
        Ok(())
    }

    async fn write_data(
        &self,
        part: Part,
        data: &Gather,
        plan: &WritePlan,
        fresh: Option<ExtentId>,
    ) -> Result<(), PoolError> {
        let fresh = fresh.map(|extent| Target {
            extent,
            mask: plan.fresh,
        });
        let mut targets = plan.in_place.iter().copied().chain(plan.fill).chain(fresh);
        let (first, second) = (targets.next(), targets.next());
        if let (Some(target), None) = (first, second)
            && target.mask == part.mask()
        {
            // All to one place, which is what most writes are.
            let device = self.pool.device(target.extent.device())?;
            let block = block_of(target.extent, part.first);
            return Ok(device.write(block, data.clone(), false).await?);
        }
        let targets = first.into_iter().chain(second).chain(targets);
        let writes = targets.flat_map(|target| runs(target.mask).map(move |run| (target.extent, run)));
        let written = join_all(writes.map(|(extent, (first, blocks))| async move {
            let device = self.pool.device(extent.device())?;
            let at = usize::from(first - part.first) * BLOCK_BYTES;
            let piece = data.range(at, usize::from(blocks) * BLOCK_BYTES);
            device.write(block_of(extent, first), piece, false).await
        }));
        Ok(written.await.into_iter().collect::<Result<(), IoError>>()?)
    }

    /// Some of a write in place failed, and its blocks are locked still: those that the device shows with the
    /// new data all the same get its checksums. They hold what was to be written, of which nobody was told
    /// that it is there. Any other block is left as it is: with what was there before, or an error to whoever
    /// reads it.
    pub(super) async fn record_failed(&self, index: u64, plan: &WritePlan, checksums: &[u32; EXTENT_BLOCKS]) {
        let mut shown = WritePlan::default();
        for Target { extent, mask } in &plan.in_place {
            let mut found = 0;
            for block in (0..EXTENT_BLOCKS as u8).filter(|block| mask >> block & 1 == 1) {
                let Ok(device) = self.pool.device(extent.device()) else {
                    continue;
                };
                let read = device
                    .read_into(block_of(*extent, block), memory(BLOCK_BYTES))
                    .await;
                let wanted = checksums.get(usize::from(block));
                if read.is_ok_and(|bytes| Some(&crc32c(&bytes)) == wanted) {
                    found |= 1 << block;
                }
            }
            if found != 0 {
                shown.in_place.push(Target {
                    extent: *extent,
                    mask: found,
                });
            }
        }
        if shown.in_place.is_empty() {
            return;
        }
        // It says so itself if it cannot.
        let _ = self.record_write(index, &shown, None, checksums).await;
    }

    /// Changes the slot and appends its record. Other blocks of the slot may have changed since it was
    /// planned.
    pub(super) async fn record_write(
        &self,
        index: u64,
        plan: &WritePlan,
        fresh: Option<FreshExtent>,
        checksums: &[u32; EXTENT_BLOCKS],
    ) -> Result<(), PoolError> {
        let id = self.head.id;
        let (pool, head) = (&self.pool, &self.head);
        loop {
            let appended = pool
                .with_pages(|state| {
                    let recorded = self.record_now(state, index, plan, fresh, checksums);
                    if matches!(recorded, Ok(false)) {
                        state.prepare_slot(id, index)?;
                    }
                    Ok(recorded)
                })
                .await?;
            match appended {
                Err(PoolError::Journal(JournalError::Full)) => pool.make_room().await?,
                Ok(true) => return Ok(()),
                // Its leaf can be changed now.
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(pool = pool.name(), volume = head.id, %error, "a write was not recorded");
                    return Err(error);
                }
            }
        }
    }

    /// Changes the slot and appends its record, if its leaf is in memory and can be changed; whether it was.
    ///
    /// # Errors
    ///
    /// [`PoolError::Journal`]; [`PoolError::Device`] if the plan is of another slot. Nothing was changed.
    pub(super) fn record_now(
        &self,
        state: &mut State,
        index: u64,
        plan: &WritePlan,
        fresh: Option<FreshExtent>,
        checksums: &[u32; EXTENT_BLOCKS],
    ) -> Result<bool, PoolError> {
        let id = self.head.id;
        let open = state.slot_at(id, index);
        let Some((leaf, slot)) = open.filter(|(leaf, _)| state.is_leaf_open(leaf)) else {
            return Ok(false);
        };
        // The blocks are locked, so nobody can have moved them.
        let change = plan
            .apply(&slot, leaf.parent_generation, fresh, checksums)
            .map_err(|_| PoolError::Device(IoError::Internal))?;
        self.pool
            .journal()
            .append_slot(id, index, &change.slot.encode())?;
        state.replace_in_leaf(&leaf, index, &slot, &change.slot);
        Ok(true)
    }
}

fn block_of(extent: ExtentId, first: u8) -> u64 {
    extent.number() * EXTENT_BLOCKS as u64 + u64::from(first)
}

/// The CRC of a block of data that may be in pieces.
fn gather_crc(data: &Gather, at: usize) -> u32 {
    if let [piece] = data.pieces() {
        return crc32c(piece.get(at..at + BLOCK_BYTES).unwrap_or_default());
    }
    let block = data.range(at, BLOCK_BYTES);
    if let [piece] = block.pieces() {
        return crc32c(piece);
    }
    let mut bytes = [0; BLOCK_BYTES];
    block.copy_to(&mut bytes);
    crc32c(&bytes)
}
