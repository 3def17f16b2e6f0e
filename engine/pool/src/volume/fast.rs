//! The short way of requests that need no waiting: one slot, one place, everything known in memory.
//!
//! Nothing else runs on the reactor between the look at a slot and the submission of its request; if the
//! device has done it by then, nothing ran until its end either, and no lock is needed. Else the lock is
//! taken right after the submission: that it is free was seen before. Writes go this way in place, and to
//! places of an own extent that the slot does not use: neither takes a page or an extent. Whatever is not
//! so simple goes the long way.

use pollux_device::{Completion, Gather, IoError, Reply};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::Unabandoned;

use super::locks::SlotLock;
use super::{Part, Volume, parts};
use crate::layout::slot::SlotView;
use crate::layout::{BLOCK_BYTES, EXTENT_BLOCKS, ExtentId, crc32c};
use crate::map::{Target, WritePlan};
use crate::pool::{Claim, Leaf, REGION_SLOTS};

/// Blocks with a record each; for more of them one of the whole slot is shorter.
const CHECKSUM_RECORDS_MAX: u8 = 6;

type Checksums = [u32; EXTENT_BLOCKS];

/// A write to an own extent that everything is ready for.
struct InPlace {
    part: Part,
    extent: ExtentId,
    /// The leaf that has the slot, if that is to be changed.
    leaf: Option<Leaf>,
    /// Nothing is overwritten: the blocks were nowhere, and are in this extent from now on.
    is_fill: bool,
}

impl InPlace {
    fn plan(&self) -> WritePlan {
        let target = Target {
            extent: self.extent,
            mask: self.part.mask(),
        };
        let mut plan = WritePlan::default();
        if self.is_fill {
            plan.fill = Some(target);
        } else {
            plan.in_place.push(target);
        }
        plan
    }
}

/// Where a part of a slot is.
enum Place {
    /// All of it in one extent.
    Extent(ExtentId),
    /// Nowhere: it reads as zeros.
    Nowhere,
    /// In more than one place, or that is not known.
    Several,
}

fn place(view: &SlotView<'_>, part: Part) -> Place {
    match view.fragment_with_all(part.mask()) {
        Some((extent, _)) => Place::Extent(extent),
        None if view.mask() & part.mask() == 0 => Place::Nowhere,
        None => Place::Several,
    }
}

/// The data of a write, for one that has to be done again. Of one piece, as nearly all are, it is much
/// cheaper to keep than the list of pieces.
enum Kept {
    Piece(Slice),
    Pieces(Gather),
}

impl Kept {
    #[inline]
    fn new(data: &Gather) -> Self {
        match data.pieces() {
            [piece] => Self::Piece(piece.clone()),
            _ => Self::Pieces(data.clone()),
        }
    }

    fn into_gather(self) -> Gather {
        match self {
            Self::Piece(piece) => Gather::from(piece),
            Self::Pieces(data) => data,
        }
    }
}

/// The only part of a request that keeps to one slot.
#[inline]
fn only_part(block: u64, bytes: usize) -> Option<Part> {
    let blocks = bytes / BLOCK_BYTES;
    let first = block % EXTENT_BLOCKS as u64;
    if blocks == 0 || first as usize + blocks > EXTENT_BLOCKS {
        return None;
    }
    parts(block, blocks as u64).next()
}

fn matches(part: Part, checksums: &Checksums, data: &[u8]) -> bool {
    let expected = checksums.iter().skip(part.first.into());
    data.chunks_exact(BLOCK_BYTES)
        .zip(expected)
        .all(|(block, checksum)| crc32c(block) == *checksum)
}

impl Volume {
    /// Starts a read; the buffer again if it has to go the long way.
    ///
    /// # Errors
    ///
    /// The buffer.
    pub(super) fn fast_read(&self, block: u64, into: Buffer) -> Result<Completion, Buffer> {
        let Some(part) = only_part(block, into.len()) else {
            return Err(into);
        };
        let locks = &self.head.locks;
        if locks.is_locked(part.slot, part.mask()) {
            return Err(into);
        }
        let (extent, leaf) = {
            let state = &mut *self.pool.state().borrow_mut();
            if self.head.checksums {
                let Some((leaf, whole)) = state.leaf_and_extent(self.head.id, part.slot) else {
                    return Err(into);
                };
                let Some(view) = state.slot_view(&leaf, part.slot) else {
                    return Err(into);
                };
                // Needed once the data is there, which takes longer.
                view.prefetch_checksum(part.first);
                match whole {
                    Some(whole) => (whole.extent, Some(leaf)),
                    None => match place(&view, part) {
                        Place::Extent(extent) => (extent, Some(leaf)),
                        Place::Nowhere => return Ok(Completion::ready(Ok(Reply::zeros(into)))),
                        Place::Several => return Err(into),
                    },
                }
            } else if let Some(whole) = state.whole_extent(self.head.id, part.slot) {
                (whole.extent, None)
            } else {
                let leaf = state.leaf(self.head.id, part.slot);
                let view = leaf.and_then(|leaf| state.slot_view(&leaf, part.slot));
                match view.map_or(Place::Several, |view| place(&view, part)) {
                    Place::Extent(extent) => (extent, None),
                    Place::Nowhere => return Ok(Completion::ready(Ok(Reply::zeros(into)))),
                    Place::Several => return Err(into),
                }
            }
        };
        let at = extent.number() * EXTENT_BLOCKS as u64 + u64::from(part.first);
        let started = self
            .pool
            .with_device(extent.device(), |device| device.start_read(at, into));
        let completion = match started {
            Ok(completion) => completion,
            Err(error) => return Ok(Completion::failed(error)),
        };
        let unsettled = match completion.try_take() {
            Ok(Ok(Reply::Data(data))) => {
                if leaf.is_none_or(|leaf| self.is_as_recorded(&leaf, part, &data)) {
                    return Ok(Completion::ready(Ok(Reply::Data(data))));
                }
                Ok(Ok(Reply::Data(data)))
            }
            other => other,
        };
        // Both as they were when the read was started: nothing else has run since.
        let count = locks.count(part.slot);
        let mut checksums = [0; EXTENT_BLOCKS];
        if let Some(leaf) = leaf {
            let state = self.pool.state().borrow();
            match state.slot_view(&leaf, part.slot) {
                Some(view) => view.copy_checksums(part.first, part.blocks, &mut checksums),
                // Cannot be, for the same reason.
                None => return Ok(self.read_again(block, part.bytes())),
            }
        }
        match unsettled {
            Ok(Ok(reply)) => {
                let (this, device_block) = (self.clone(), block);
                Ok(Completion::from_future(async move {
                    this.settle_read(part, device_block, checksums, count, reply)
                        .await
                }))
            }
            Ok(Err(IoError::ResourceShortage)) => Ok(self.read_again(block, part.bytes())),
            Ok(Err(error)) => Ok(Completion::failed(error)),
            Err(completion) => {
                let this = self.clone();
                Ok(Completion::from_future(async move {
                    match completion.await {
                        Ok(reply) => this.settle_read(part, block, checksums, count, reply).await,
                        Err(IoError::ResourceShortage) => this.read_again(block, part.bytes()).await,
                        Err(error) => Err(error),
                    }
                }))
            }
        }
    }

    /// Whether data that was read at once is what its slot says: nothing has run since that was looked at.
    #[inline]
    fn is_as_recorded(&self, leaf: &Leaf, part: Part, data: &[u8]) -> bool {
        let state = self.pool.state().borrow();
        let view = state.slot_view(leaf, part.slot);
        view.is_some_and(|view| {
            let mut blocks = (part.first..).zip(data.chunks_exact(BLOCK_BYTES));
            blocks.all(|(block, bytes)| view.checksum(block) == crc32c(bytes))
        })
    }

    #[cold]
    fn read_again(&self, block: u64, bytes: usize) -> Completion {
        let into = crate::device::memory(bytes);
        Completion::from_future(self.clone().read(block, into))
    }

    /// What a read returned is good, or is read again the long way.
    async fn settle_read(
        self,
        part: Part,
        block: u64,
        checksums: Checksums,
        count: u32,
        reply: Reply,
    ) -> Result<Reply, IoError> {
        let data = reply.into_buffer()?;
        let is_good = if self.head.checksums {
            matches(part, &checksums, &data)
        } else {
            self.head.locks.count(part.slot) == count
        };
        if is_good {
            return Ok(Reply::Data(data));
        }
        self.read(block, data).await
    }

    /// Starts a write in place; the data again if it has to go the long way.
    ///
    /// # Errors
    ///
    /// The data.
    pub(super) fn fast_write(&self, block: u64, from: Gather) -> Result<Completion, Gather> {
        let Some(part) = only_part(block, from.len_bytes()) else {
            return Err(from);
        };
        let Some(in_place) = self.in_place(part) else {
            return Err(from);
        };
        let mut checksums = [0; EXTENT_BLOCKS];
        if self.head.checksums {
            self.sum(part, &from, &mut checksums);
        }
        let at = in_place.extent.number() * EXTENT_BLOCKS as u64 + u64::from(part.first);
        let kept = Kept::new(&from);
        let started = self
            .pool
            .with_device(in_place.extent.device(), |device| device.start_write(at, from));
        let completion = match started {
            Ok(completion) => completion,
            Err(error) => return Ok(Completion::failed(error)),
        };
        match completion.try_take() {
            Ok(Ok(_)) => {
                if in_place.leaf.is_some() && !self.record_at_once(&in_place, &checksums) {
                    // Cannot be: there was room, and nothing ran in between.
                    return Err(kept.into_gather());
                }
                Ok(Completion::done())
            }
            Ok(Err(IoError::ResourceShortage)) => Err(kept.into_gather()),
            Ok(Err(error)) if in_place.leaf.is_none() => Ok(Completion::failed(error)),
            unsettled => {
                let completion = match unsettled {
                    Ok(result) => Completion::ready(result),
                    Err(completion) => completion,
                };
                // Locked before anybody else can look.
                let Some(lock) = self.head.locks.try_lock(part.slot, part.mask()) else {
                    return Err(kept.into_gather());
                };
                let change = self.head.count_change();
                // There was room, and nothing ran in between.
                let recorded = in_place.leaf.is_some();
                let admitted = recorded.then(|| self.pool.try_admit(Claim::Rest)).flatten();
                debug_assert_eq!(admitted.is_some(), recorded, "it was looked at just now");
                let needs_intent = self.head.checksums && !in_place.is_fill;
                let region = needs_intent.then(|| self.use_region(part.slot / REGION_SLOTS));
                let this = self.clone();
                Ok(Completion::from_future(Unabandoned::new(async move {
                    let result = this
                        .settle_write(completion, &in_place, checksums, lock, kept)
                        .await;
                    if let Some(region) = region {
                        this.end_region(region);
                    }
                    drop((admitted, change));
                    result
                })))
            }
        }
    }

    async fn settle_write(
        &self,
        completion: Completion,
        in_place: &InPlace,
        checksums: Checksums,
        lock: SlotLock,
        data: Kept,
    ) -> Result<Reply, IoError> {
        let InPlace { part, extent, .. } = *in_place;
        let written = match completion.await {
            Err(IoError::ResourceShortage) => {
                let device = self.pool.device(extent.device())?;
                let at = extent.number() * EXTENT_BLOCKS as u64 + u64::from(part.first);
                device.write(at, data.into_gather(), false).await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if in_place.leaf.is_some() {
            let plan = in_place.plan();
            // Whatever has become of the pool meanwhile: what is overwritten has to be told.
            match written {
                Ok(()) => self.record_write(part.slot, &plan, None, &checksums).await?,
                Err(_) => self.record_failed(part.slot, &plan, &checksums).await,
            }
        }
        written?;
        drop(lock);
        self.pool.changed();
        Ok(Reply::Done)
    }

    /// Whether a part can be written to an own extent that its slot has, now.
    fn in_place(&self, part: Part) -> Option<InPlace> {
        if !self.head.may_change_now() || self.head.locks.is_locked(part.slot, part.mask()) {
            return None;
        }
        let state = &mut *self.pool.state().borrow_mut();
        if !self.pool.takes_changes(state) {
            return None;
        }
        if !self.head.checksums
            && let Some(whole) = state.whole_extent(self.head.id, part.slot)
        {
            return whole.is_own.then_some(InPlace {
                part,
                extent: whole.extent,
                leaf: None,
                is_fill: false,
            });
        }
        let (leaf, whole) = state.leaf_and_extent(self.head.id, part.slot)?;
        let view = state.slot_view(&leaf, part.slot)?;
        // To be changed once the data is written, which takes longer.
        view.prefetch_checksum(part.first);
        let (extent, is_fill) = match whole {
            Some(whole) => (whole.is_own.then_some(whole.extent)?, false),
            None => match view.fragment_with_all(part.mask()) {
                Some((extent, birth)) => ((birth > leaf.parent_generation).then_some(extent)?, false),
                None => (view.own_with_room(part.mask(), leaf.parent_generation)?, true),
            },
        };
        let leaf = (self.head.checksums || is_fill).then_some(leaf);
        if let Some(leaf) = &leaf {
            let durable = self.pool.journal().durable_with_room()?;
            let is_ready = match is_fill {
                // What emptied the places may not be durable.
                true => !state.has_emptied(self.head.id, part.slot),
                false => state.has_durable_intent(self.head.id, part.slot, durable),
            };
            // Its leaf may be closed once it is done, which takes room. What is written has to be recorded.
            if !is_ready || !state.is_leaf_open(leaf) || !state.has_room_for_write(Claim::Rest) {
                return None;
            }
        }
        Some(InPlace {
            part,
            extent,
            leaf,
            is_fill,
        })
    }

    /// Changes the slot and appends its record, right after the data was written.
    fn record_at_once(&self, in_place: &InPlace, checksums: &Checksums) -> bool {
        if !in_place.is_fill {
            return self.record_in_place(in_place, checksums);
        }
        let recorded = {
            let state = &mut *self.pool.state().borrow_mut();
            self.record_now(state, in_place.part.slot, &in_place.plan(), None, checksums)
        };
        self.pool.changed();
        matches!(recorded, Ok(true))
    }

    /// Puts the checksums of blocks that were overwritten into their slot and appends its record.
    fn record_in_place(&self, in_place: &InPlace, checksums: &Checksums) -> bool {
        let InPlace { part, leaf, .. } = in_place;
        let mut state = self.pool.state().borrow_mut();
        let patched = leaf.and_then(|leaf| state.patch_checksums(&leaf, *part, checksums));
        let Some(bytes) = patched else {
            return false;
        };
        let journal = self.pool.journal();
        let before = journal.begun();
        let is_recorded = if part.blocks > CHECKSUM_RECORDS_MAX {
            journal.append_slot(self.head.id, part.slot, bytes).is_ok()
        } else {
            (part.first..part.first + part.blocks).all(|block| {
                let checksum = checksums.get(usize::from(block)).copied().unwrap_or(0);
                journal
                    .append_checksum(self.head.id, part.slot, block, checksum)
                    .is_ok()
            })
        };
        drop(state);
        // What such a write makes due, it makes due by beginning a block: it takes no pages and no intent.
        if journal.begun() != before {
            self.pool.changed();
        }
        is_recorded
    }
}

impl crate::pool::State {
    fn slot_view(&self, leaf: &Leaf, slot: u64) -> Option<SlotView<'_>> {
        let page = self.cache.page_at(leaf.place)?;
        SlotView::new(page.entry(slot % crate::layout::page::MAP_LEAF_SLOTS))
    }

    fn patch_checksums(&mut self, leaf: &Leaf, part: Part, checksums: &Checksums) -> Option<&[u8]> {
        let at = part.slot % crate::layout::page::MAP_LEAF_SLOTS;
        let page = self.cache.open_page_at(leaf.place)?;
        for block in part.first..part.first + part.blocks {
            let checksum = checksums.get(usize::from(block))?;
            page.patch_entry(at, usize::from(block) * 4, &checksum.to_le_bytes());
        }
        Some(page.entry(at))
    }
}
