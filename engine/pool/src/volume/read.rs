//! Reads and compares.

use futures_util::future::try_join_all;
use pollux_device::{Gather, IoError, Reply};
use pollux_hugepages::Buffer;

use super::{Part, Volume, parts, runs};
use crate::device::memory;
use crate::layout::slot::Slot;
use crate::layout::{BLOCK_BYTES, EXTENT_BLOCKS, crc32c};

/// A read that cannot be used as it is.
enum ReadError {
    Device(IoError),
    /// A block does not match its checksum, or may not.
    Mismatch {
        block: u8,
    },
    /// A block is lost, or was when it was looked at.
    Lost,
}

impl Volume {
    pub(super) async fn read(self, block: u64, mut into: Buffer) -> Result<Reply, IoError> {
        let blocks = (into.len() / BLOCK_BYTES) as u64;
        let mut parts = parts(block, blocks);
        let (Some(first), second) = (parts.next(), parts.next()) else {
            return Ok(Reply::Data(into));
        };
        let Some(second) = second else {
            return Ok(Reply::Data(self.read_part(first, into).await?));
        };
        // Each part is read into its piece of the buffer, and the pieces are put together again.
        let mut rest = into.split_off(first.bytes());
        let mut pieces = vec![self.read_part(first, into)];
        for part in [second].into_iter().chain(parts) {
            let next = rest.split_off(part.bytes());
            pieces.push(self.read_part(part, rest));
            rest = next;
        }
        let mut pieces = try_join_all(pieces).await?.into_iter();
        let mut whole = pieces.next().ok_or(IoError::Internal)?;
        for piece in pieces {
            whole.try_unsplit(piece).map_err(|_| IoError::Internal)?;
        }
        Ok(Reply::Data(whole))
    }

    /// Reads a part of a slot. What was locked or changed meanwhile is read again with a lock.
    async fn read_part(&self, part: Part, into: Buffer) -> Result<Buffer, IoError> {
        let locks = &self.head.locks;
        let mut into = into;
        if !locks.is_locked(part.slot, part.mask()) {
            let count = locks.count(part.slot);
            let (buffer, result) = self.try_read(part, into).await;
            let unchanged = locks.count(part.slot) == count;
            match result {
                // What matches its checksum is what was there when the slot was looked at.
                Ok(()) if unchanged || self.head.checksums => return Ok(buffer),
                Err(ReadError::Device(error)) => return Err(error),
                Ok(()) | Err(ReadError::Mismatch { .. } | ReadError::Lost) => into = buffer,
            }
        }
        let _lock = locks.lock(part.slot, part.mask()).await;
        let (buffer, result) = self.try_read(part, into).await;
        match result {
            Ok(()) => Ok(buffer),
            Err(ReadError::Device(error)) => Err(error),
            Err(ReadError::Lost) => Err(IoError::MediaRead),
            Err(ReadError::Mismatch { block }) => {
                let block = part.slot * EXTENT_BLOCKS as u64 + u64::from(block);
                let mut state = self.pool.state().borrow_mut();
                state.counters.checksum_mismatches += 1;
                let (pool, volume) = (self.pool.name(), self.head.id);
                tracing::error!(pool, volume, block, "a block does not match its checksum");
                Err(IoError::ChecksumMismatch)
            }
        }
    }

    /// Reads a part as its slot is now, and gives the buffer back in any case.
    async fn try_read(&self, part: Part, into: Buffer) -> (Buffer, Result<(), ReadError>) {
        let slot = self
            .pool
            .with_pages(|state| state.slot(self.head.id, part.slot))
            .await;
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => return (into, Err(ReadError::Device(error.as_io()))),
        };
        let mask = part.mask();
        if slot.lost() & mask != 0 {
            return (into, Err(ReadError::Lost));
        }
        let whole = slot
            .fragments
            .iter()
            .find(|fragment| fragment.mask & mask == mask);
        let mut into = into;
        if let Some(fragment) = whole {
            // All in one place, which is what most reads are.
            match self.read_run(fragment.extent, part.first, into).await {
                Ok(buffer) => into = buffer,
                Err(error) => return (memory(part.bytes()), Err(ReadError::Device(error))),
            }
        } else {
            into.fill(0);
            for fragment in &slot.fragments {
                for (first, blocks) in runs(fragment.mask & mask) {
                    let bytes = usize::from(blocks) * BLOCK_BYTES;
                    let at = usize::from(first - part.first) * BLOCK_BYTES;
                    // A copy is dearer than a split of the buffer, and this is rare.
                    match self.read_run(fragment.extent, first, memory(bytes)).await {
                        Ok(read) => {
                            if let Some(to) = into.get_mut(at..at + bytes) {
                                to.copy_from_slice(&read);
                            }
                        }
                        Err(error) => return (into, Err(ReadError::Device(error))),
                    }
                }
            }
        }
        let result = self.verify(&slot, part, &into);
        (into, result)
    }

    async fn read_run(
        &self,
        extent: crate::layout::ExtentId,
        first: u8,
        into: Buffer,
    ) -> Result<Buffer, IoError> {
        let device = self.pool.device(extent.device())?;
        let block = extent.number() * EXTENT_BLOCKS as u64 + u64::from(first);
        device.read_into(block, into).await
    }

    fn verify(&self, slot: &Slot, part: Part, data: &[u8]) -> Result<(), ReadError> {
        if !self.head.checksums {
            return Ok(());
        }
        let held = slot.mask();
        for (block, bytes) in (part.first..).zip(data.chunks_exact(BLOCK_BYTES)) {
            let expected = slot.checksums.get(usize::from(block)).copied().unwrap_or(0);
            if held >> block & 1 == 1 && crc32c(bytes) != expected {
                return Err(ReadError::Mismatch { block });
            }
        }
        Ok(())
    }

    pub(super) async fn compare(self, block: u64, with: Gather) -> Result<Reply, IoError> {
        let len = with.len_bytes();
        let Reply::Data(found) = self.read(block, memory(len)).await? else {
            return Err(IoError::Internal);
        };
        let mut at = 0;
        for piece in with.pieces() {
            if found.get(at..at + piece.len()) != Some(&piece[..]) {
                return Err(IoError::CompareFailed);
            }
            at += piece.len();
        }
        Ok(Reply::Done)
    }
}
