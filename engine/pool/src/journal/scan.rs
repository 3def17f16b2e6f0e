//! Reading the journal at import: what was durable, and where it ends.
//!
//! The first block that is no good in any copy is the end, unless a later one says that it was durable: then
//! it is damage, and what it held is lost. Blocks of an earlier lap, of another incarnation, and those of a
//! write that was torn say no such thing.

use arrayvec::ArrayVec;
use pollux_device::IoError;
use pollux_hugepages::Buffer;

use super::ring::pieces;
use super::{COPIES_MAX, JournalCopy, JournalIdentity, RingPosition};
use crate::layout::journal::{JournalBlock, JournalHeader, Record};
use crate::layout::{BLOCK_BYTES, Block};

/// Blocks read at a time.
const CHUNK_BLOCKS: u64 = 64;

/// Why the journal could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Records that were durable are not there any more.
    #[error(
        "block {sequence} of the journal was durable and is damaged on every device, and blocks up to {last} \
         follow it: changes since the last checkpoint are lost from there on"
    )]
    Damaged {
        /// The first block that is damaged.
        sequence: u64,
        /// The last block that is there.
        last: u64,
    },
}

/// A block of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// What it says of itself.
    pub header: JournalHeader,
    /// Its records, in order.
    pub records: Vec<Record>,
}

/// Reads the journal block by block.
pub struct Scanner {
    identity: JournalIdentity,
    copies: ArrayVec<JournalCopy, COPIES_MAX>,
    ring_blocks: u64,
    start: RingPosition,
    next: u64,
    /// Blocks from `chunk_first` on, of each copy that could be read.
    chunk: ArrayVec<Vec<Option<Box<Block>>>, COPIES_MAX>,
    chunk_first: u64,
    chunk_blocks: u64,
}

impl Scanner {
    /// Begins at a position, which a superblock names.
    pub fn new(
        identity: JournalIdentity,
        copies: ArrayVec<JournalCopy, COPIES_MAX>,
        start: RingPosition,
    ) -> Self {
        let ring_blocks = copies.iter().map(|copy| copy.ring.blocks).min().unwrap_or(0);
        Self {
            identity,
            copies,
            ring_blocks,
            start,
            next: start.sequence,
            chunk: ArrayVec::new(),
            chunk_first: start.sequence,
            chunk_blocks: 0,
        }
    }

    /// The next block; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ScanError`].
    pub async fn next(&mut self) -> Result<Option<Scanned>, ScanError> {
        if self.next - self.start.sequence >= self.ring_blocks {
            return Ok(None);
        }
        let sequence = self.next;
        if let Some(scanned) = self.block(sequence).await {
            self.next += 1;
            return Ok(Some(scanned));
        }
        // Whether a later block says that this one was durable.
        let mut last = None;
        for later in sequence + 1..self.start.sequence + self.ring_blocks {
            let found = self.block(later).await;
            if found.is_some_and(|found| found.header.durable_sequence > sequence) {
                last = Some(later);
            }
        }
        match last {
            Some(last) => Err(ScanError::Damaged { sequence, last }),
            None => Ok(None),
        }
    }

    /// Where the next block would be: after the end, where a new one may be written.
    pub fn position(&self) -> RingPosition {
        self.start
            .advanced(self.next - self.start.sequence, self.ring_blocks)
    }

    /// The block with this sequence, if any copy has it.
    async fn block(&mut self, sequence: u64) -> Option<Scanned> {
        if sequence < self.chunk_first || sequence >= self.chunk_first + self.chunk_blocks {
            self.read_chunk(sequence).await;
        }
        let at = (sequence - self.chunk_first) as usize;
        self.chunk.iter().find_map(|copy| {
            let bytes = copy.get(at)?.as_ref()?;
            let (header, records) = JournalBlock::decode(bytes).ok()?;
            let is_it = header.sequence == sequence
                && header.pool == self.identity.pool
                && header.incarnation == self.identity.incarnation;
            is_it.then_some(Scanned { header, records })
        })
    }

    async fn read_chunk(&mut self, first: u64) {
        let end = self.start.sequence + self.ring_blocks;
        let blocks = CHUNK_BLOCKS.min(end - first);
        let place = self
            .start
            .advanced(first - self.start.sequence, self.ring_blocks)
            .place;
        self.chunk.clear();
        for copy in &self.copies {
            let mut read = Vec::new();
            for (place, count) in pieces(place, blocks, self.ring_blocks) {
                read_piece(copy, place, count, &mut read).await;
            }
            self.chunk.push(read);
        }
        (self.chunk_first, self.chunk_blocks) = (first, blocks);
    }
}

/// Reads blocks at once, or one by one when that fails: one that cannot be read is none.
async fn read_piece(copy: &JournalCopy, place: u64, count: u64, into: &mut Vec<Option<Box<Block>>>) {
    if count == 0 {
        return;
    }
    let block = copy.ring.first_block + place;
    if let Ok(all) = copy.device.read(block, count).await {
        return into.extend(all.chunks_exact(BLOCK_BYTES).map(boxed));
    }
    for number in 0..count {
        let one: Result<Buffer, IoError> = copy.device.read(block + number, 1).await;
        if let Err(error) = &one {
            tracing::warn!(block = block + number, %error, "cannot read a block of the journal");
        }
        into.push(one.ok().and_then(|bytes| boxed(&bytes)));
    }
}

fn boxed(bytes: &[u8]) -> Option<Box<Block>> {
    Box::<[u8]>::from(bytes).try_into().ok()
}
