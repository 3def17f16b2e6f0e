//! Giving a returning replica the snapshots that were cut while it was away, before it takes writes again.
//!
//! All in which it may differ from such a snapshot is in a region that it missed something of up to now. So
//! those are made what they are in the snapshot, oldest first, and its host cuts there. Being interrupted
//! costs the work since the last cut, and nothing else: the regions still count as missed.

use std::ops::Range;

use pollux_device::{Gather, IoError, Request};

use super::Core;
use super::connection::{Connection, clock, is_session_lost};
use super::held::Held;
use super::holes::hole;
use super::resync::Interrupted;
use crate::members::Change;
use crate::membership::{SlotNumber, SnapshotEntry};
use crate::replica::{CommandError, ReplicaCommand};

/// A resync goes on without a snapshot after so many rounds in each of which a new one was cut, so that it
/// ends.
const ROUNDS_MAX: u32 = 3;

/// So many times a snapshot that its source cannot read is begun with, before it is taken for one that cannot
/// be had.
const UNREADABLE_MAX: u32 = 3;

/// Why a snapshot was not given.
enum NotGiven {
    /// It is begun anew.
    Interrupted,
    /// Nobody that has it can read a block, or answers.
    Unreadable,
}

impl From<Interrupted> for NotGiven {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl NotGiven {
    fn of(error: IoError) -> Self {
        match error {
            IoError::ResourceShortage | IoError::NotReady | IoError::Fenced => Self::Interrupted,
            // Who never answers is as good as one that cannot read.
            IoError::TimedOut => Self::Unreadable,
            error if is_session_lost(error) => Self::Interrupted,
            _ => Self::Unreadable,
        }
    }
}

impl Core {
    /// Gives a replica all snapshots that are owed to it; what cannot be given is owed no more.
    pub(super) async fn give_owed(
        &self,
        slot: SlotNumber,
        connection: &Connection,
    ) -> Result<(), Interrupted> {
        for _ in 0..ROUNDS_MAX {
            let owed: Vec<SnapshotEntry> = self.members.borrow().record().owed(slot).collect();
            if owed.is_empty() {
                return Ok(());
            }
            let mut before: Option<Held> = None;
            for entry in owed {
                match self.give(slot, connection, &entry, before.as_ref()).await? {
                    Some(source) => before = Some(source),
                    // It cannot be had: neither can those after it, which would be built upon it.
                    None => return self.forgive(slot).await,
                }
                let given = Change::Given(slot, entry.cut);
                self.decide(given).await.map_err(|_| Interrupted)?;
                self.unreadable.borrow_mut().remove(&entry.cut);
                self.count(|counters| counters.snapshots_given += 1);
            }
        }
        self.forgive(slot).await
    }

    async fn forgive(&self, slot: SlotNumber) -> Result<(), Interrupted> {
        tracing::warn!(volume = %self.volume(), slot = slot.index(), "a replica goes without some snapshots");
        self.count(|counters| counters.snapshots_forgiven += 1);
        let forgiven = Change::Forgiven(slot);
        self.decide(forgiven).await.map_err(|_| Interrupted)
    }

    /// Makes one snapshot on a replica. `None` when nobody that has it can be read, or the replica has no
    /// snapshots at all.
    async fn give(
        &self,
        slot: SlotNumber,
        connection: &Connection,
        entry: &SnapshotEntry,
        before: Option<&Held>,
    ) -> Result<Option<Held>, Interrupted> {
        let Some(source) = self.hold_of(entry).await.map_err(|_| Interrupted)? else {
            return Ok(None);
        };
        // The volume may have grown since the replica was met, before this was cut: the replica is made as
        // large first, or what it cuts would be too small.
        let snapshot_blocks = source.blocks().min(self.geometry.get().blocks);
        if connection.area.layout().data_blocks() < self.data_blocks_of(snapshot_blocks) {
            return Err(Interrupted);
        }
        let mut stride = self.stride();
        let mut next = 0;
        loop {
            let region = self.regions.borrow().next_missed(next, slot);
            let Some(region) = region else { break };
            let run = self.regions.borrow().missed_run(region, slot, stride.regions());
            let run = region..region + run;
            self.mutes.ask_again();
            let is_hole = self.give_hole(connection, &run, &source, before).await?;
            stride.met(is_hole);
            if is_hole {
                next = run.end;
                continue;
            }
            match self.give_region(connection, region, &source, before).await {
                Ok(()) => {}
                Err(NotGiven::Interrupted) => return Err(Interrupted),
                // It may be for once. If it is not, the replica would never be back.
                Err(NotGiven::Unreadable) => return self.note_unreadable(entry),
            }
            next = region + 1;
        }
        self.tell(connection, || Request::Flush).await?;
        match self
            .command(slot, ReplicaCommand::CutSnapshot { cut: entry.cut })
            .await
        {
            Ok(_) => Ok(Some(source)),
            Err(CommandError::Unsupported | CommandError::NoSpace) => Ok(None),
            Err(error) => {
                self.replica_error(slot, error);
                Err(Interrupted)
            }
        }
    }

    /// Whether a snapshot counts as one that cannot be had.
    fn note_unreadable(&self, entry: &SnapshotEntry) -> Result<Option<Held>, Interrupted> {
        let mut unreadable = self.unreadable.borrow_mut();
        let times = unreadable.entry(entry.cut).or_default();
        *times += 1;
        match *times < UNREADABLE_MAX {
            true => Err(Interrupted),
            false => {
                unreadable.remove(&entry.cut);
                Ok(None)
            }
        }
    }

    async fn give_region(
        &self,
        connection: &Connection,
        region: u64,
        source: &Held,
        before: Option<&Held>,
    ) -> Result<(), NotGiven> {
        let geometry = self.geometry.get();
        let block_bytes = u64::from(geometry.block_bytes);
        let chunk_blocks = self.chunk_blocks();
        let start = region * self.region_blocks;
        let end = (start + self.region_blocks)
            .min(geometry.blocks)
            .min(source.blocks());
        let mut at = start;
        while at < end {
            let blocks = chunk_blocks.min(end - at);
            let bytes = blocks * block_bytes;
            self.check_serving().map_err(|_| Interrupted)?;
            // Shortage of any kind makes it wait.
            self.give_chunk(connection, at, blocks, source, before).await?;
            self.pace_resync(bytes).await;
            at += blocks;
        }
        Ok(())
    }

    /// Makes regions that are a hole in a snapshot one on a replica; false, and nothing done, if they are
    /// none.
    async fn give_hole(
        &self,
        connection: &Connection,
        regions: &Range<u64>,
        source: &Held,
        before: Option<&Held>,
    ) -> Result<bool, Interrupted> {
        self.check_serving().map_err(|_| Interrupted)?;
        let blocks = self.blocks_of(regions);
        let (block, end) = (blocks.start, blocks.end.min(source.blocks()));
        if block >= end {
            // The volume was not as large then.
            return Ok(true);
        }
        let count = end - block;
        if !self.is_held_hole(source, block, count).await {
            return Ok(false);
        }
        let is_known = match before {
            Some(before) => end <= before.blocks() && self.is_held_hole(before, block, count).await,
            None => false,
        };
        if !is_known {
            self.tell(connection, || hole(block, count)).await?;
        }
        self.count(|counters| counters.snapshot_holes += count);
        Ok(true)
    }

    async fn give_chunk(
        &self,
        connection: &Connection,
        block: u64,
        blocks: u64,
        source: &Held,
        before: Option<&Held>,
    ) -> Result<(), NotGiven> {
        let is_hole = self.is_held_hole(source, block, blocks).await;
        if is_hole {
            self.count(|counters| counters.snapshot_holes += blocks);
        }
        if is_hole
            && let Some(before) = before
            && block + blocks <= before.blocks()
            && self.is_held_hole(before, block, blocks).await
        {
            return Ok(());
        }
        let block_bytes = self.geometry.get().block_bytes as usize;
        let bytes = blocks as usize * block_bytes;
        if is_hole {
            return Ok(self.tell(connection, || hole(block, blocks)).await?);
        }
        let data = self.read_held(source, block, bytes).await.map_err(NotGiven::of)?;
        let old = match before {
            Some(before) if block + blocks <= before.blocks() => {
                match self.read_held(before, block, bytes).await.map_err(NotGiven::of) {
                    Ok(old) => Some(old),
                    // Then all of this one is written: it has to be read, and the one before has not.
                    Err(NotGiven::Unreadable) => None,
                    Err(interrupted) => return Err(interrupted),
                }
            }
            Some(_) | None => None,
        };
        // What did not change between two snapshots shares its space on this replica too.
        for (first, count) in changed_runs(&data, old.as_deref(), block_bytes) {
            let piece = data.slice(first * block_bytes..(first + count) * block_bytes);
            let write = || Request::Write {
                block: block + first as u64,
                from: Gather::from(piece.clone()),
                force_unit_access: false,
            };
            self.tell(connection, write).await?;
        }
        Ok(())
    }

    /// Has a replica that takes no writes of clients do something. One that is short of resources is waited
    /// for as long as for an answer: others want to come back, too.
    async fn tell(&self, connection: &Connection, make: impl Fn() -> Request) -> Result<(), Interrupted> {
        let asked_until = clock() + self.options.request_timeout;
        loop {
            self.check_serving().map_err(|_| Interrupted)?;
            match connection.send(make(), self.options.request_timeout).await {
                Ok(_) => return Ok(()),
                Err(IoError::ResourceShortage | IoError::NotReady) if clock() < asked_until => {
                    pollux_reactor::sleep(self.options.retry_pause).await;
                }
                Err(_) => return Err(Interrupted),
            }
        }
    }
}

/// Runs of blocks that differ: first and number. All of them when there is nothing to compare with.
fn changed_runs(data: &[u8], old: Option<&[u8]>, block_bytes: usize) -> Vec<(usize, usize)> {
    let blocks = data.len() / block_bytes.max(1);
    let Some(old) = old else {
        return vec![(0, blocks)];
    };
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let pairs = data.chunks_exact(block_bytes).zip(old.chunks_exact(block_bytes));
    for (index, (new, old)) in pairs.enumerate() {
        if new == old {
            continue;
        }
        match runs.last_mut() {
            Some((first, count)) if *first + *count == index => *count += 1,
            Some(_) | None => runs.push((index, 1)),
        }
    }
    runs
}
