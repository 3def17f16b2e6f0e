//! Making a volume what it was when a snapshot was cut: what differs is written, on all replicas, like
//! anything else that is written. So a replica that is away misses it, and a crash leaves a part.
//!
//! Invariants:
//! - A roll-back is begun by the record, and ended by it once all is flushed. In between hosts neither read
//!   nor write anything, with no target: each goes on from the start with what the record says.
//! - What hosts had begun before is done before the first block is written for it. What they read meanwhile
//!   is not told to them.
//! - No snapshot is cut of what is there in between.

use std::ops::Range;
use std::rc::Rc;

use pollux_device::IoError;
use pollux_hugepages::Slice;
use pollux_reactor::sleep;
use uuid::Uuid;

use super::connection::clock;
use super::held::Held;
use super::holes::ZEROS;
use super::snapshot::SnapshotError;
use super::speed::Speed;
use super::write::Content;
use super::{Core, Mirror};
use crate::locks::Mode;
use crate::members::Change;
use crate::membership::{RollBack, SnapshotEntry};

/// How far a target has come since it began from the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct GoneBack {
    id: Uuid,
    /// Blocks that are what the snapshot has.
    blocks: u64,
    speed: Speed,
}

impl Mirror {
    /// Makes the volume what it was when a snapshot was cut, and flushes it; what it has grown by since
    /// becomes zeros. It is done once under a name: asked again, nothing is done. Hosts are refused
    /// meanwhile. Once it is in the record it goes on whoever waits for it, and with the next target.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::NotFound`] when there is no such snapshot, or none any more;
    /// [`SnapshotError::SetChanged`] when another roll-back was begun meanwhile; [`SnapshotError::Io`] when
    /// the volume is not served any more.
    pub async fn roll_back(&self, id: Uuid, snapshot: Uuid) -> Result<(), SnapshotError> {
        let core = &self.core;
        let known = core.members.borrow().record().roll_back;
        if known.is_none_or(|known| known.id != id) {
            if core.members.borrow().record().snapshot(snapshot).is_none() {
                return Err(SnapshotError::NotFound(snapshot));
            }
            let is_done = false;
            let wanted = RollBack {
                id,
                snapshot,
                is_done,
            };
            core.decide(Change::RollBack(wanted)).await?;
        }
        core.changed.until(|| core.is_over(id)).await
    }
}

impl Core {
    /// Whether somebody who waits for a roll-back has nothing to wait for any more.
    fn is_over(&self, id: Uuid) -> Option<Result<(), SnapshotError>> {
        if let Err(error) = self.check_serving() {
            return Some(Err(error.into()));
        }
        let members = self.members.borrow();
        let record = members.record();
        match record.roll_back.filter(|known| known.id == id) {
            None => Some(Err(SnapshotError::SetChanged)),
            Some(known) if known.is_done => Some(Ok(())),
            Some(known) if record.snapshot(known.snapshot).is_none() => {
                Some(Err(SnapshotError::NotFound(known.snapshot)))
            }
            Some(_) => None,
        }
    }

    /// The roll-back under way.
    pub(super) fn rolling_back(&self) -> Option<RollBack> {
        self.members.borrow().record().rolling_back()
    }

    /// The last roll-back, and whether it is over: what hosts were told of the volume before another one is
    /// of no use.
    pub(super) fn roll_back(&self) -> Option<RollBack> {
        self.members.borrow().record().roll_back
    }

    /// Refuses hosts as long as the volume holds some of both.
    pub(super) fn check_whole(&self) -> Result<(), IoError> {
        match self.rolling_back() {
            Some(_) => Err(IoError::NotReady),
            None => Ok(()),
        }
    }

    /// How many blocks of a roll-back are done, and bytes in a second, if that is known.
    pub(super) fn gone_back(&self, id: Uuid) -> (u64, Option<f64>) {
        let known = self.gone_back.get().filter(|known| known.id == id);
        known.map_or((0, None), |known| (known.blocks, known.speed.told()))
    }

    async fn go_back(&self, wanted: RollBack) -> Result<(), SnapshotError> {
        let mut gone_back = GoneBack {
            id: wanted.id,
            blocks: 0,
            speed: Speed::new(clock()),
        };
        self.gone_back.set(Some(gone_back));
        let not_found = SnapshotError::NotFound(wanted.snapshot);
        let entry = self.members.borrow().record().snapshot(wanted.snapshot);
        let entry = entry.ok_or(not_found)?;
        tracing::info!(volume = %self.volume(), snapshot = %wanted.snapshot, "goes back to a snapshot");
        // What hosts had begun is done now, and overwritten.
        self.drained().await?;
        let held = self.held(&entry).await?;
        let geometry = self.geometry.get();
        let chunk_blocks = self.chunk_blocks();
        let mut stride = self.stride();
        let mut at = 0;
        while at < geometry.blocks {
            if self.rolling_back() != Some(wanted) {
                return Err(SnapshotError::SetChanged);
            }
            if at % self.region_blocks == 0 {
                let region = self.region_of(at);
                let ahead = self.blocks_of(&(region..region + stride.regions()));
                let is_there = self.is_hole_in_both(&held, ahead.clone()).await?;
                stride.met(is_there);
                if is_there {
                    at = ahead.end;
                    gone_back.blocks = at;
                    self.gone_back.set(Some(gone_back));
                    continue;
                }
            }
            let border = (self.region_of(at) + 1) * self.region_blocks;
            let mut end = border.min(at + chunk_blocks).min(geometry.blocks);
            if at < held.blocks() {
                end = end.min(held.blocks());
            }
            let wanted = match at < held.blocks() {
                true => self.read_wanted(&held, at, end - at).await?,
                false => None,
            };
            self.restore(at, end - at, wanted).await?;
            let bytes = (end - at) * u64::from(geometry.block_bytes);
            gone_back.speed.add(clock(), bytes);
            gone_back.blocks = end;
            self.gone_back.set(Some(gone_back));
            at = end;
        }
        self.flush().await?;
        Ok(())
    }

    /// Whether there is nothing to do about blocks, as they are a hole in the snapshot and in the volume.
    async fn is_hole_in_both(&self, held: &Held, blocks: Range<u64>) -> Result<bool, IoError> {
        self.mutes.ask_again();
        let held_end = blocks.end.min(held.blocks());
        if blocks.start < held_end
            && !self
                .is_held_hole(held, blocks.start, held_end - blocks.start)
                .await
        {
            return Ok(false);
        }
        self.is_settled_hole(blocks.start, blocks.end - blocks.start)
            .await
    }

    /// What a snapshot holds; `None` for a hole.
    async fn read_wanted(&self, held: &Held, block: u64, blocks: u64) -> Result<Option<Slice>, IoError> {
        if self.is_held_hole(held, block, blocks).await {
            return Ok(None);
        }
        let bytes = blocks as usize * self.geometry.get().block_bytes as usize;
        self.read_held(held, block, bytes).await.map(Some)
    }

    /// The snapshot on the replicas of the set that have it.
    async fn held(&self, entry: &SnapshotEntry) -> Result<Held, SnapshotError> {
        match self.hold_of(entry).await {
            Ok(Some(held)) => Ok(held),
            // Those that have it may be away.
            Ok(None) | Err(_) => Err(SnapshotError::Io(IoError::NotReady)),
        }
    }

    /// Writes what is wanted to blocks of one region, unless it is there; `None` for zeros.
    async fn restore(&self, block: u64, blocks: u64, wanted: Option<Slice>) -> Result<(), IoError> {
        let _passage = self.pass_gate().await?;
        self.settled(block, blocks).await?;
        let _lock = self.locks.lock(block..block + blocks, Mode::Exclusive).await;
        let bytes = blocks as usize * self.geometry.get().block_bytes as usize;
        let now = self.read_locked(block, bytes).await;
        let is_there = match (&wanted, &now) {
            (Some(wanted), Ok(now)) => wanted[..] == now[..],
            (None, Ok(now)) => now.iter().all(|&byte| byte == 0),
            // Nobody can read what is there, and nobody has to.
            (_, Err(_)) => false,
        };
        if is_there {
            return Ok(());
        }
        let content = match wanted {
            Some(data) => Content::Data(data.into(), false),
            None => Content::Zeroes(ZEROS),
        };
        self.with_intent(block, async || {
            self.replicate(block, blocks, &content, None).await
        })
        .await
    }
}

/// Does what the record says; runs as long as the target.
pub(super) async fn go_back(core: Rc<Core>) {
    // What keeps it from going on is told once.
    let mut told: Option<SnapshotError> = None;
    loop {
        let due = core.changed.until(|| match core.stopped() {
            Some(_) => Some(None),
            None => core.rolling_back().map(Some),
        });
        let Some(wanted) = due.await else { return };
        let gone_back = match core.go_back(wanted).await {
            Ok(()) => {
                told = None;
                core.count(|counters| counters.roll_backs += 1);
                let over = core.decide(Change::RolledBack(wanted.id)).await;
                over.map_err(SnapshotError::from)
            }
            Err(error) => Err(error),
        };
        match gone_back {
            Ok(()) => tracing::info!(volume = %core.volume(), snapshot = %wanted.snapshot, "is back at it"),
            Err(_) if core.stopped().is_some() => return,
            Err(error) => {
                if told.as_ref() != Some(&error) {
                    tracing::warn!(volume = %core.volume(), %error, "cannot go back to a snapshot yet");
                }
                told = Some(error);
                sleep(core.options.rejoin_pause).await;
            }
        }
    }
}
