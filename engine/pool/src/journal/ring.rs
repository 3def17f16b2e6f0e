//! Where the blocks of the journal are.

/// The blocks of a device that the journal goes round in, in units of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// The first one.
    pub first_block: u64,
    /// How many.
    pub blocks: u64,
}

/// A block of the journal and its place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPosition {
    /// Its number.
    pub sequence: u64,
    /// Its place, counted from the start of the ring.
    pub place: u64,
}

impl RingPosition {
    /// The one so many blocks later.
    #[must_use]
    pub fn advanced(self, blocks: u64, ring_blocks: u64) -> Self {
        let place = u128::from(self.place) + u128::from(blocks);
        Self {
            sequence: self.sequence + blocks,
            place: (place % u128::from(ring_blocks.max(1))) as u64,
        }
    }
}

/// The pieces, first place and length, of `blocks` blocks from `place` on: two where they go round.
pub(super) fn pieces(place: u64, blocks: u64, ring_blocks: u64) -> [(u64, u64); 2] {
    let first = blocks.min(ring_blocks.saturating_sub(place));
    [(place, first), (0, blocks - first)]
}
