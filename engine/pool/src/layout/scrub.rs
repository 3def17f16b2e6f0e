//! How far a scrub has come, or what the last one found: 512 bytes of a superblock.
//!
//! | byte | field |
//! | --- | --- |
//! | 0 | state, u32: 0 there was none, 1 under way, 2 ended |
//! | 8 | volume that it is at, u64; 16: the first slot of it that was not looked at, u64 |
//! | 24 | when it was begun, and 32: when it ended, in seconds since 1970, u64 each |
//! | 40 | blocks compared; 48: without a checksum; 56: bad; u64 each |
//! | 64 | pages read; 72: repaired copies; 80: lost; u64 each |
//! | 96 | the first 26 bad blocks: volume u64 and block u64 each, zeros where there are fewer |

use arrayvec::ArrayVec;

use super::field::{put_u32, put_u64, require, u32_at, u64_at};
use super::{Block, LayoutError};

const BAD_BLOCKS_AT: usize = 96;

/// Bad blocks that are kept.
pub const SCRUB_BAD_BLOCKS: usize = 26;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubRecord {
    /// What became of it.
    pub state: ScrubState,
    /// When it was begun, in seconds since 1970.
    pub started_seconds: u64,
    /// Blocks of data that were compared with their checksums.
    pub blocks: u64,
    /// Blocks without a checksum, which were not read.
    pub unchecked_blocks: u64,
    /// Blocks that do not match their checksum or cannot be read.
    pub bad_block_count: u64,
    /// The first of them: volume and block.
    pub bad_blocks: ArrayVec<(u64, u64), SCRUB_BAD_BLOCKS>,
    /// Pages of metadata whose copies were both read.
    pub pages: u64,
    /// Copies of pages that were bad and were written again.
    pub repaired_pages: u64,
    /// Pages without a good copy, or whose bad copy could not be written.
    pub lost_pages: u64,
}

/// What became of a scrub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// There was none.
    #[default]
    Never,
    /// It goes on from here.
    UnderWay {
        /// The volume, by its id: those with lower ones are done.
        volume: u64,
        /// Slots of it before this one are done.
        slot: u64,
    },
    /// All was looked at.
    Ended {
        /// When, in seconds since 1970.
        seconds: u64,
    },
}

impl ScrubRecord {
    /// Bytes of it.
    pub const BYTES: usize = BAD_BLOCKS_AT + 16 * SCRUB_BAD_BLOCKS;

    pub(super) fn put(&self, block: &mut Block, at: usize) {
        let (state, volume, slot, ended) = match self.state {
            ScrubState::Never => (0, 0, 0, 0),
            ScrubState::UnderWay { volume, slot } => (1, volume, slot, 0),
            ScrubState::Ended { seconds } => (2, 0, 0, seconds),
        };
        put_u32(block, at, state);
        let fields = [
            volume,
            slot,
            self.started_seconds,
            ended,
            self.blocks,
            self.unchecked_blocks,
            self.bad_block_count,
            self.pages,
            self.repaired_pages,
            self.lost_pages,
        ];
        for (number, field) in fields.into_iter().enumerate() {
            put_u64(block, at + 8 + number * 8, field);
        }
        for (number, (volume, bad)) in self.bad_blocks.iter().enumerate() {
            put_u64(block, at + BAD_BLOCKS_AT + number * 16, *volume);
            put_u64(block, at + BAD_BLOCKS_AT + number * 16 + 8, *bad);
        }
    }

    pub(super) fn get(block: &Block, at: usize, structure: &'static str) -> Result<Self, LayoutError> {
        let field = |number: usize| u64_at(block, at + 8 + number * 8);
        let state = match u32_at(block, at) {
            0 => ScrubState::Never,
            1 => ScrubState::UnderWay {
                volume: field(0),
                slot: field(1),
            },
            2 => ScrubState::Ended { seconds: field(3) },
            _ => {
                return Err(LayoutError::Field {
                    structure,
                    field: "state of the scrub",
                });
            }
        };
        let bad_blocks = (0..SCRUB_BAD_BLOCKS).map(|number| {
            let place = at + BAD_BLOCKS_AT + number * 16;
            (u64_at(block, place), u64_at(block, place + 8))
        });
        // No volume has the id 0.
        let bad_blocks: ArrayVec<_, SCRUB_BAD_BLOCKS> =
            bad_blocks.take_while(|(volume, _)| *volume != 0).collect();
        let record = Self {
            state,
            started_seconds: field(2),
            blocks: field(4),
            unchecked_blocks: field(5),
            bad_block_count: field(6),
            bad_blocks,
            pages: field(7),
            repaired_pages: field(8),
            lost_pages: field(9),
        };
        let counted = record.bad_blocks.len() as u64 <= record.bad_block_count;
        require(counted, structure, "bad blocks of the scrub")?;
        Ok(record)
    }
}
