//! Making a volume what it was when a snapshot was cut: what differs is written, on all replicas, like
//! anything else that is written. So a replica that is away misses it, and a crash leaves a part, to be
//! gone on with.

use pollux_device::{BlockDeviceExt, IoError, ZeroOptions};
use uuid::Uuid;

use super::read::memory;
use super::snapshot::SnapshotError;
use super::write::Content;
use super::{Core, Mirror};
use crate::locks::Mode;

impl Mirror {
    /// Makes the volume what it was when a snapshot was cut, and flushes it; what it has grown by since
    /// becomes zeros. Nobody may use the volume meanwhile. Until this has ended well the volume holds some
    /// of both, and it is to be done again.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub async fn roll_back(&self, id: Uuid) -> Result<(), SnapshotError> {
        let core = &self.core;
        let entry = core.members.borrow().record().snapshot(id);
        let entry = entry.ok_or(SnapshotError::NotFound(id))?;
        let source = core.snapshot_source(&entry).await;
        let source = source.map_err(|_| SnapshotError::Io(IoError::NotReady))?;
        let (snapshot, first_block) = source.ok_or(SnapshotError::NotFound(id))?;
        let geometry = core.geometry.get();
        let chunk_blocks = core.chunk_blocks();
        let held_blocks = snapshot
            .geometry()
            .blocks
            .saturating_sub(first_block)
            .min(geometry.blocks);
        let mut at = 0;
        while at < geometry.blocks {
            let border = (core.region_of(at) + 1) * core.region_blocks;
            let mut end = border.min(at + chunk_blocks).min(geometry.blocks);
            if at < held_blocks {
                end = end.min(held_blocks);
            }
            let is_held = at < held_blocks;
            let runs = match is_held {
                true => snapshot.allocation(first_block + at, end - at, 1).await?,
                false => Vec::new(),
            };
            let is_hole = !is_held
                || runs
                    .first()
                    .is_some_and(|run| !run.allocated && run.blocks >= end - at);
            let wanted = match is_hole {
                true => None,
                false => {
                    let bytes = (end - at) as usize * geometry.block_bytes as usize;
                    Some(snapshot.read(first_block + at, memory(bytes)).await?.freeze())
                }
            };
            core.restore(at, end - at, wanted).await?;
            at = end;
        }
        core.flush().await?;
        Ok(())
    }
}

impl Core {
    /// Writes what is wanted to blocks of one region, unless it is there; `None` for zeros.
    async fn restore(
        &self,
        block: u64,
        blocks: u64,
        wanted: Option<pollux_hugepages::Slice>,
    ) -> Result<(), IoError> {
        let _passage = self.pass_gate().await?;
        self.settled(block, blocks).await?;
        let _lock = self.locks.lock(block..block + blocks, Mode::Exclusive).await;
        let bytes = blocks as usize * self.geometry.get().block_bytes as usize;
        let now = self.read_locked(block, bytes).await?;
        let is_there = match &wanted {
            Some(wanted) => wanted[..] == now[..],
            None => now.iter().all(|&byte| byte == 0),
        };
        if is_there {
            return Ok(());
        }
        let content = match wanted {
            Some(data) => Content::Data(data.into(), false),
            None => Content::Zeroes(ZeroOptions {
                force_unit_access: false,
                may_deallocate: true,
            }),
        };
        self.with_intent(block, async || self.replicate(block, blocks, &content).await)
            .await
    }
}
