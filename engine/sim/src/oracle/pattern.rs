//! What test data looks like on a block: recognisable, different everywhere, and ruined by any change.
//!
//! Each 512-byte sector (or the whole block, if it is smaller) begins with the number of the block and the
//! value; the rest follows from these and the place of the sector. So a read tells which write it returns,
//! and whether it is torn, from another place, or damaged.

use super::Value;
use crate::drive::SECTOR_BYTES;
use crate::random::mix;

/// Writes and recognises blocks of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Bytes of a block.
    pub block_bytes: usize,
}

/// A block that no single write left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Parts of it are of different writes.
    #[error("block {block} is torn: it holds {first:?} and {other:?}")]
    Torn {
        /// Which block.
        block: u64,
        /// What its first sector holds.
        first: Value,
        /// What another sector holds.
        other: Value,
    },
    /// It holds what was written to another block.
    #[error("block {block} holds what belongs to block {other}")]
    Misplaced {
        /// Which block.
        block: u64,
        /// Whose content it has.
        other: u64,
    },
    /// It holds what nobody wrote.
    #[error("block {block} is damaged at byte {offset}")]
    Damaged {
        /// Which block.
        block: u64,
        /// The first byte that is wrong, as far as can be told.
        offset: usize,
    },
}

impl Pattern {
    /// Fills blocks, from `block` on, with a value.
    pub fn fill(&self, into: &mut [u8], block: u64, value: Value) {
        for (block, bytes) in (block..).zip(into.chunks_mut(self.block_bytes)) {
            if value == Value::ZERO {
                bytes.fill(0);
                continue;
            }
            for (sector, bytes) in (0..).zip(bytes.chunks_mut(SECTOR_BYTES as usize)) {
                for (index, word) in (0..).zip(bytes.chunks_mut(8)) {
                    word.copy_from_slice(&expected_word(block, value, sector, index).to_le_bytes());
                }
            }
        }
    }

    /// The value of each block, from `block` on.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] for the first block that no single write left.
    pub fn values(&self, bytes: &[u8], block: u64) -> Result<Vec<Value>, BadPattern> {
        (block..)
            .zip(bytes.chunks(self.block_bytes))
            .map(|(block, bytes)| value_of(bytes, block))
            .collect()
    }
}

/// The eight bytes at a place of a sector.
fn expected_word(block: u64, value: Value, sector: u64, index: u64) -> u64 {
    match index {
        0 => block,
        1 => value.0,
        _ => mix(block ^ sector << 56, value.0).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    }
}

fn word_at(bytes: &[u8], index: usize) -> u64 {
    let word = bytes
        .get(index * 8..index * 8 + 8)
        .and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

fn value_of(bytes: &[u8], block: u64) -> Result<Value, BadPattern> {
    let mut first = None;
    for (number, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
        let value = value_of_sector(sector, block, number)?;
        match first {
            None => first = Some(value),
            Some(first) if first != value => {
                return Err(BadPattern::Torn {
                    block,
                    first,
                    other: value,
                });
            }
            Some(_) => {}
        }
    }
    Ok(first.unwrap_or(Value::ZERO))
}

fn value_of_sector(sector: &[u8], block: u64, number: usize) -> Result<Value, BadPattern> {
    if sector.iter().all(|&byte| byte == 0) {
        return Ok(Value::ZERO);
    }
    let (found_block, value) = (word_at(sector, 0), Value(word_at(sector, 1)));
    for index in 2..sector.len() / 8 {
        if word_at(sector, index) != expected_word(found_block, value, number as u64, index as u64) {
            let offset = number * SECTOR_BYTES as usize + index * 8;
            return Err(BadPattern::Damaged { block, offset });
        }
    }
    if found_block != block {
        return Err(BadPattern::Misplaced {
            block,
            other: found_block,
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { block_bytes: 4096 };

    #[test]
    fn recognises_what_it_wrote() {
        let mut bytes = vec![0xff; 3 * 4096];
        PATTERN.fill(&mut bytes, 7, Value(3));
        assert_eq!(PATTERN.values(&bytes, 7), Ok(vec![Value(3); 3]));
        PATTERN.fill(&mut bytes[4096..8192], 8, Value::ZERO);
        assert_eq!(
            PATTERN.values(&bytes, 7),
            Ok(vec![Value(3), Value::ZERO, Value(3)])
        );
    }

    #[test]
    fn tells_torn_misplaced_and_damaged() {
        let (mut one, mut other) = (vec![0; 4096], vec![0; 4096]);
        PATTERN.fill(&mut one, 7, Value(3));
        PATTERN.fill(&mut other, 7, Value(4));
        let torn = [&one[..1024], &other[1024..]].concat();
        let expected = BadPattern::Torn {
            block: 7,
            first: Value(3),
            other: Value(4),
        };
        assert_eq!(PATTERN.values(&torn, 7), Err(expected));
        assert_eq!(
            PATTERN.values(&one, 8),
            Err(BadPattern::Misplaced { block: 8, other: 7 })
        );
        for bit in (0..one.len() * 8).step_by(371) {
            let mut damaged = one.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(PATTERN.values(&damaged, 7).is_err(), "bit {bit}");
        }
    }
}
