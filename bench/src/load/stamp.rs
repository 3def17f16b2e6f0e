//! Blocks that say of themselves which block they are and which write they came from.
//!
//! ```text
//! 0 magic   8 block number   16 generation   24 CRC-32C of what follows   28 .. filled from both numbers
//! ```
//!
//! A block that reads back must carry its own number, an intact checksum, and the generation that was written
//! last; one that was never written is all zeros.

use crc_fast::CrcAlgorithm::Crc32Iscsi;

const MAGIC: u64 = u64::from_le_bytes(*b"PXSTAMP1");
const HEADER_BYTES: usize = 28;
const CRC_OFFSET: usize = 24;

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Neither a stamp nor zeros, or a stamp whose content is damaged.
    #[error("the content is damaged")]
    Damaged,
    /// A block of another place.
    #[error("this is block {found}")]
    Misplaced {
        /// The number it carries.
        found: u64,
    },
    /// A block of an earlier or later write.
    #[error("it is of write {found}, and write {expected} was acknowledged last")]
    Stale {
        /// The generation it carries, 0 for zeros.
        found: u64,
        /// The generation written last.
        expected: u64,
    },
}

fn checksum(body: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, body) as u32
}

/// Fills a block.
pub fn write(block: &mut [u8], number: u64, generation: u64) {
    let (header, body) = block.split_at_mut(HEADER_BYTES.min(block.len()));
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.wrapping_add(1);
    for piece in body.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
    let crc = checksum(body);
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..16].copy_from_slice(&number.to_le_bytes());
    header[16..24].copy_from_slice(&generation.to_le_bytes());
    header[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a block against what was written last; generation 0 means never.
///
/// # Errors
///
/// [`Mismatch`].
pub fn check(block: &[u8], number: u64, generation: u64) -> Result<(), Mismatch> {
    let field = |at: usize| {
        block
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    if field(0) != MAGIC {
        let zeros = block.iter().all(|&byte| byte == 0);
        return match (zeros, generation) {
            (true, 0) => Ok(()),
            (true, expected) => Err(Mismatch::Stale { found: 0, expected }),
            (false, _) => Err(Mismatch::Damaged),
        };
    }
    let stored = block
        .get(CRC_OFFSET..HEADER_BYTES)
        .and_then(|bytes| bytes.try_into().ok());
    if stored.map(u32::from_le_bytes) != block.get(HEADER_BYTES..).map(checksum) {
        return Err(Mismatch::Damaged);
    }
    if field(8) != number {
        return Err(Mismatch::Misplaced { found: field(8) });
    }
    if field(16) != generation {
        return Err(Mismatch::Stale {
            found: field(16),
            expected: generation,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_what_it_says() {
        let mut block = vec![0; 512];
        assert_eq!(check(&block, 5, 0), Ok(()));
        assert_eq!(
            check(&block, 5, 3),
            Err(Mismatch::Stale {
                found: 0,
                expected: 3
            })
        );
        write(&mut block, 5, 3);
        assert_eq!(check(&block, 5, 3), Ok(()));
        assert_eq!(check(&block, 6, 3), Err(Mismatch::Misplaced { found: 5 }));
        assert_eq!(
            check(&block, 5, 4),
            Err(Mismatch::Stale {
                found: 3,
                expected: 4
            })
        );
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let mut block = vec![0; 512];
        write(&mut block, 5, 3);
        for bit in 0..512 * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&block, 5, 3).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
