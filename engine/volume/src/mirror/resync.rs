//! Bringing replicas back: what they missed is copied while writes go on.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{Gather, IoError, Request};
use pollux_hugepages::Slice;
use pollux_reactor::{Instant, sleep, timeout};

use super::connection::{ConnectError, Connection, Patience, Verdict, clock};
use super::holes::hole;
use super::slow::Return;
use super::{Core, StopReason, Unreadable};
use crate::locks::Mode;
use crate::membership::{Membership, ReplicaState, SlotNumber};
use crate::replica::{PromiseError, ReplicaCommand};

/// Regions that are copied before the replica is flushed, and they count. Those that are holes do not make it
/// due.
const REGIONS_PER_FLUSH: u64 = 64;

/// For how long regions are copied before that is done, however few there are: who is interrupted again and
/// again gets to the end all the same.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// The resync did not come to its end: it goes on from where it was, later.
pub(super) struct Interrupted;

/// What became of the copy of a region.
enum Copied {
    Whole,
    /// From the chunk with these blocks on there is none: nobody of the set can read them.
    Unreadable(Unreadable),
}

/// What was copied since the replica was flushed, and what could not be copied at all.
struct Round {
    unflushed: Vec<u64>,
    /// Those of them that are no holes.
    copied: u64,
    flushed_at: Instant,
    unreadable: Option<Unreadable>,
}

impl Round {
    fn new() -> Self {
        Self {
            unflushed: Vec::new(),
            copied: 0,
            flushed_at: clock(),
            unreadable: None,
        }
    }

    fn copied(&mut self, region: u64) {
        self.unflushed.push(region);
        self.copied += 1;
    }

    fn found_unreadable(&mut self, found: Unreadable) {
        let all = self.unreadable.get_or_insert(Unreadable { blocks: 0, ..found });
        all.blocks += found.blocks;
    }

    fn is_flush_due(&self) -> bool {
        self.copied >= REGIONS_PER_FLUSH || clock().saturating_since(self.flushed_at) >= FLUSH_INTERVAL
    }

    fn flushed(&mut self) {
        self.unflushed.clear();
        self.copied = 0;
        self.flushed_at = clock();
    }
}

/// Brings back one replica after the other; runs as long as the target.
pub(super) async fn bring_back(core: Rc<Core>) {
    // What is copied from one replica of the set has to be the same on the others.
    core.all_settled().await;
    loop {
        core.changed
            .until(|| {
                let members = core.members.borrow();
                let out = members.record().members().without(members.record().in_sync());
                let wanted = out.without(core.leaving.get());
                (!wanted.is_empty() || members.stopped().is_some()).then_some(())
            })
            .await;
        if core.stopped().is_some() {
            return;
        }
        let behind = {
            let members = core.members.borrow();
            let out = members.record().members().without(members.required());
            out.without(core.leaving.get())
        };
        for slot in behind.iter() {
            let may_return = match core.returning(slot) {
                Return::Now => true,
                Return::Test => core.test(slot).await,
                Return::Later => false,
            };
            // It may be one that is to leave by now.
            let may_return = may_return && !core.leaving.get().contains(slot);
            if may_return && core.resync(slot).await.is_err() && core.stopped().is_some() {
                return;
            }
        }
        sleep(core.options.rejoin_pause).await;
    }
}

impl Core {
    async fn resync(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        let record = self.members.borrow().record().clone();
        let id = record.replica(slot).ok_or(Interrupted)?.id;
        let connection = match self.meet(slot, &record).await {
            Ok(connection) => connection,
            Err(ConnectError::Promise(PromiseError::Superseded(_))) => {
                self.stop(StopReason::Superseded);
                return Err(Interrupted);
            }
            Err(error) => {
                tracing::debug!(volume = %record.volume, slot = slot.index(), %error, "not back yet");
                return Err(Interrupted);
            }
        };
        if connection.region_blocks() != self.region_blocks {
            tracing::warn!(volume = %record.volume, slot = slot.index(), "regions of another size");
            return Err(Interrupted);
        }
        self.sweep_replica(slot).await;
        if !connection.has_record {
            self.mark_blank(slot).await?;
        }
        self.mark_empty(slot).await?;
        if !connection.has_record {
            // The maps tell what it misses, and it says so from now on: see above.
            let record = self.members.borrow().record().clone();
            let copying = connection.area.write_record(&record);
            let copied = timeout(self.options.request_timeout, copying).await;
            copied.map_err(|_| Interrupted)?.map_err(|_| Interrupted)?;
        }
        self.give_owed(slot, &connection).await?;
        let data_blocks = connection.area.layout().data_blocks();
        let is_large = data_blocks >= self.data_blocks_of(self.size_wanted.get());
        let is_leaving = self.leaving.get().contains(slot);
        if is_leaving || !is_large || !self.members.borrow_mut().begin_sync(slot, id) {
            return Err(Interrupted);
        }
        self.connect(slot, Some(Rc::new(connection)));
        self.wake();
        let missed = self.regions.borrow().missed(slot);
        tracing::info!(volume = %record.volume, slot = slot.index(), missed, "resync begins");
        self.resync_begins(slot, missed);
        self.copy_missed(slot).await?;
        self.join_set(slot).await?;
        self.resync_ended(slot);
        Ok(())
    }

    /// Gets the promise of a replica that comes back, and makes it as large as the volume is by now.
    async fn meet(&self, slot: SlotNumber, record: &Membership) -> Result<Connection, ConnectError> {
        let port = self.port(slot).ok_or(PromiseError::Unreachable)?;
        let wait_max = self.options.promise_timeout;
        let size_blocks = self.size_wanted.get();
        let record = Membership {
            size_blocks: size_blocks.max(record.size_blocks),
            ..record.clone()
        };
        match Connection::establish(&port, &record, slot, wait_max).await {
            Err(ConnectError::Geometry) => {}
            result => return result.map(|(connection, _)| connection),
        }
        let data_blocks = self.data_blocks_of(record.size_blocks);
        if let Err(error) = self.command(slot, ReplicaCommand::Grow { data_blocks }).await {
            tracing::warn!(volume = %record.volume, slot = slot.index(), %error, "the replica cannot grow");
            return Err(ConnectError::Geometry);
        }
        let established = Connection::establish(&port, &record, slot, wait_max).await;
        established.map(|(connection, _)| connection)
    }

    /// Whether a resync may go on.
    pub(super) fn check_syncing(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        let members = self.members.borrow();
        match members.syncing() == Some(slot) && members.stopped().is_none() {
            true => Ok(()),
            false => Err(Interrupted),
        }
    }

    /// A replica that is behind, and that no target has had since it was made: it was made anew under its old
    /// name, and the maps of the others do not tell what it misses. It is empty, whatever the record says.
    async fn mark_blank(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        let is_behind = || {
            let members = self.members.borrow();
            let entry = members.record().replica(slot);
            entry.is_some_and(|entry| entry.state == ReplicaState::Behind)
        };
        if !is_behind() {
            return Ok(());
        }
        tracing::warn!(volume = %self.volume(), slot = slot.index(), "the replica is blank: all is copied");
        self.members.borrow_mut().wish_empty(slot);
        self.changed.wake();
        self.changed
            .until(|| (!is_behind() || self.stopped().is_some()).then_some(()))
            .await;
        self.stopped().map_or(Ok(()), |_| Err(Interrupted))
    }

    /// An empty replica: the maps of the others say so, durably, before the record does not any more.
    async fn mark_empty(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        let state = |core: &Self| {
            core.members
                .borrow()
                .record()
                .replica(slot)
                .map(|entry| entry.state)
        };
        if state(self) != Some(ReplicaState::Empty) {
            return Ok(());
        }
        let stamp = self.regions.borrow_mut().miss_all(slot);
        self.map_changed.wake();
        self.map_written
            .until(|| {
                let durable = self.regions.borrow().is_durable(stamp);
                (durable || self.stopped().is_some()).then_some(())
            })
            .await;
        self.members.borrow_mut().wish_behind(slot);
        self.changed.wake();
        self.changed
            .until(|| {
                let changed = state(self) != Some(ReplicaState::Empty);
                (changed || self.stopped().is_some()).then_some(())
            })
            .await;
        self.stopped().map_or(Ok(()), |_| Err(Interrupted))
    }

    async fn copy_missed(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        let mut from = 0;
        let mut stride = self.stride();
        let mut round = Round::new();
        loop {
            self.check_syncing(slot)?;
            let next = self.regions.borrow().next_missed(from, slot);
            if let Some(region) = next {
                let run = self.regions.borrow().missed_run(region, slot, stride.regions());
                let run = region..region + run;
                let may_be_hole = self.may_be_hole(&run).await;
                stride.met(may_be_hole);
                let taken = match may_be_hole {
                    true => run,
                    false => region..region + 1,
                };
                from = taken.end;
                self.copy_regions(slot, taken, may_be_hole, &mut round).await?;
            }
            if !round.unflushed.is_empty() && (next.is_none() || round.is_flush_due()) {
                self.commit(slot, &round.unflushed).await?;
                round.flushed();
            }
            if next.is_none() {
                return match round.unreadable {
                    None => Ok(()),
                    Some(unreadable) => self.end_unreadable(slot, unreadable),
                };
            }
        }
    }

    /// Copies regions that follow each other: all at once if they are a hole, as it seems, and else one by
    /// one.
    async fn copy_regions(
        &self,
        slot: SlotNumber,
        regions: Range<u64>,
        may_be_hole: bool,
        round: &mut Round,
    ) -> Result<(), Interrupted> {
        // It may have failed while somebody was asked for holes: a region that is marked after that would
        // seem to be copied when it is back.
        self.check_syncing(slot)?;
        // From here on the replica takes the writes of the regions: what is written before their chunks are
        // copied is copied again, with the same content.
        for region in regions.clone() {
            self.regions.borrow_mut().begin_copy(region, slot);
        }
        if may_be_hole && self.copy_hole(slot, &regions).await? {
            round.unflushed.extend(regions);
            return Ok(());
        }
        for region in regions {
            match self.copy_region(slot, region).await? {
                Copied::Whole => round.copied(region),
                // It stays missed. All others are copied first.
                Copied::Unreadable(found) => round.found_unreadable(found),
            }
        }
        Ok(())
    }

    /// A block of the volume can be read from nobody of the set. So it cannot be copied, and must not look as
    /// if it were: the replica stays out until a host has written the block anew. What was copied of other
    /// regions is not copied again.
    fn end_unreadable(&self, slot: SlotNumber, unreadable: Unreadable) -> Result<(), Interrupted> {
        if self.unreadable_blocks.replace(Some(unreadable)) != Some(unreadable) {
            let volume = self.volume();
            tracing::error!(
                %volume,
                slot = slot.index(),
                block = unreadable.first_block,
                blocks = unreadable.blocks,
                "a replica stays out, as blocks from here on can be read nowhere: they have to be written"
            );
        }
        self.fail(slot);
        Err(Interrupted)
    }

    /// Flushes the replica: the regions that were copied before count from then on.
    async fn commit(&self, slot: SlotNumber, copied: &[u64]) -> Result<(), Interrupted> {
        self.to_replica(slot, || Request::Flush).await?;
        self.regions.borrow_mut().commit_copied(copied, slot);
        self.map_changed.wake();
        Ok(())
    }

    async fn copy_region(&self, slot: SlotNumber, region: u64) -> Result<Copied, Interrupted> {
        let block_bytes = u64::from(self.geometry.get().block_bytes);
        let chunk_blocks = self.chunk_blocks();
        let start = region * self.region_blocks;
        let end = (start + self.region_blocks).min(self.geometry.get().blocks);
        let mut at = start;
        while at < end {
            let blocks = chunk_blocks.min(end - at);
            let bytes = blocks * block_bytes;
            {
                let _lock = self.locks.lock(at..at + blocks, Mode::Exclusive).await;
                self.check_syncing(slot)?;
                if self.is_hole(at, blocks).await {
                    self.clear(slot, at, blocks).await?;
                    at += blocks;
                    continue;
                }
                match self.read_locked(at, bytes as usize).await {
                    Ok(data) => self.put(slot, at, blocks, data).await?,
                    Err(_) => {
                        let unreadable = self.find_unreadable(at, blocks).await;
                        self.check_syncing(slot)?;
                        return Ok(Copied::Unreadable(unreadable));
                    }
                }
            }
            self.copied_bytes.set(self.copied_bytes.get() + bytes);
            at += blocks;
            self.pace_resync(bytes).await;
        }
        Ok(Copied::Whole)
    }

    /// The blocks that cannot be read of a chunk that is locked and cannot.
    async fn find_unreadable(&self, chunk: u64, blocks: u64) -> Unreadable {
        let block_bytes = self.geometry.get().block_bytes as usize;
        let mut bad = Vec::new();
        for block in chunk..chunk + blocks {
            if self.read_locked(block, block_bytes).await.is_err() {
                bad.push(block);
            }
        }
        // If all can be read by now, the next resync will tell.
        Unreadable {
            first_block: bad.first().copied().unwrap_or(chunk),
            blocks: bad.len().max(1) as u64,
        }
    }

    /// Whether nothing is stored of blocks that are locked: they are zeros then. Asked of the replica that is
    /// read from, or of the next one if it does not answer; whatever they say but that the blocks are not
    /// allocated means that these are read.
    pub(super) async fn is_hole(&self, block: u64, blocks: u64) -> bool {
        loop {
            let source = self.source(self.mutes.slots());
            let Some((slot, connection)) = source.and_then(|slot| Some((slot, self.connection(slot)?)))
            else {
                return false;
            };
            let wait_max = self.options.request_timeout;
            match connection.is_hole(block, blocks, wait_max).await {
                Some(is_hole) => return is_hole,
                None => self.mutes.insert(slot),
            }
        }
    }

    /// Makes blocks of the copy zeros that take no space. The replica is not asked whether they are that
    /// already: a drive may show what it has in its cache and will never flush, after a flush that failed.
    pub(super) async fn clear(&self, slot: SlotNumber, block: u64, blocks: u64) -> Result<(), Interrupted> {
        self.count(|counters| counters.holes += blocks);
        self.to_replica(slot, || hole(block, blocks)).await
    }

    /// Writes what was copied; zeros as such, so that they take no space.
    async fn put(&self, slot: SlotNumber, block: u64, blocks: u64, data: Slice) -> Result<(), Interrupted> {
        if data.iter().all(|&byte| byte == 0) {
            return self.clear(slot, block, blocks).await;
        }
        self.to_replica(slot, || Request::Write {
            block,
            from: Gather::from(data.clone()),
            force_unit_access: false,
        })
        .await
    }

    /// Has the replica under resync do something.
    async fn to_replica(&self, slot: SlotNumber, make: impl Fn() -> Request) -> Result<(), Interrupted> {
        let mut patience = Patience::default();
        loop {
            self.check_syncing(slot)?;
            let connection = self.connection(slot).ok_or(Interrupted)?;
            match connection.send(make(), self.options.request_timeout).await {
                Ok(_) => return self.check_syncing(slot),
                Err(error) => match self.judge(slot, &connection, error) {
                    Verdict::Again => {
                        self.bear(slot, &mut patience);
                        sleep(self.options.retry_pause).await;
                    }
                    Verdict::NoSpace | Verdict::Changed | Verdict::Final(_) => return Err(Interrupted),
                },
            }
        }
    }

    /// The replica has all data: it gets the whole map, and joins.
    async fn join_set(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        self.mapped.set(Some(slot));
        let stamp = self.regions.borrow_mut().touch_all();
        self.map_changed.wake();
        self.map_written
            .until(|| {
                let durable = self.regions.borrow().is_durable(stamp);
                (durable || self.check_syncing(slot).is_err()).then_some(())
            })
            .await;
        self.check_syncing(slot)?;
        let record = self.members.borrow().record().clone();
        let connection = self.connection(slot).ok_or(Interrupted)?;
        let copied = timeout(
            self.options.request_timeout,
            connection.area.write_record(&record),
        )
        .await;
        if let Err(error) = copied.unwrap_or(Err(IoError::TimedOut.into())) {
            self.judge_area(slot, &connection, &error);
            self.check_syncing(slot)?;
        }
        self.members.borrow_mut().wish_join(slot);
        self.changed.wake();
        self.changed
            .until(|| {
                let joined = self.members.borrow().record().in_sync().contains(slot);
                (joined || self.check_syncing(slot).is_err()).then_some(())
            })
            .await;
        if self.members.borrow().record().in_sync().contains(slot) {
            self.mapped.set(None);
            self.unreadable_blocks.set(Some(Unreadable::default()));
            // Snapshots may have been deleted since it was swept, when it was not of the set yet.
            self.want_sweep();
            return Ok(());
        }
        Err(Interrupted)
    }
}
