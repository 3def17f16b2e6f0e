//! Little-endian fields at fixed places.
//!
//! Reads past the end give zeros and writes there do nothing; the tests with frozen bytes would show a
//! wrong place.

use uuid::Uuid;

use super::{BLOCK_BYTES, Block, FORMAT_VERSION, LayoutError, crc32c};

/// Where the CRC of most structures is.
const CRC_AT: usize = BLOCK_BYTES - 4;

pub(super) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

pub(super) fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(bytes_at(bytes, at))
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

pub(super) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, &value.to_le_bytes());
}

/// A block that begins with a magic number and the version.
pub(super) fn start_block(magic: [u8; 8]) -> Block {
    let mut block = [0; BLOCK_BYTES];
    put(&mut block, 0, &magic);
    put_u32(&mut block, 8, FORMAT_VERSION);
    block
}

/// Puts the CRC at the end.
pub(super) fn seal(mut block: Block) -> Block {
    seal_in_place(&mut block);
    block
}

/// Puts the CRC at the end.
pub(super) fn seal_in_place(block: &mut Block) {
    let crc = crc32c(&block[..CRC_AT]);
    put_u32(block, CRC_AT, crc);
}

/// Checks magic number, CRC and version, in this order: these three are at the same places in all versions.
pub(super) fn check_block(block: &Block, magic: [u8; 8], structure: &'static str) -> Result<(), LayoutError> {
    if bytes_at::<8>(block, 0) != magic {
        return Err(LayoutError::Magic(structure));
    }
    if crc32c(&block[..CRC_AT]) != u32_at(block, CRC_AT) {
        return Err(LayoutError::Checksum(structure));
    }
    match u32_at(block, 8) {
        FORMAT_VERSION => Ok(()),
        version => Err(LayoutError::Version { structure, version }),
    }
}

/// An error when a field is not valid.
pub(super) fn require(valid: bool, structure: &'static str, field: &'static str) -> Result<(), LayoutError> {
    if valid {
        Ok(())
    } else {
        Err(LayoutError::Field { structure, field })
    }
}

/// A short text with its length before it.
pub(super) fn put_text(bytes: &mut [u8], at: usize, text: &str) {
    put_u16(bytes, at, text.len() as u16);
    put(bytes, at + 2, text.as_bytes());
}

/// A text of at most `max` bytes; `None` for one that is longer or not UTF-8.
pub(super) fn text_at(bytes: &[u8], at: usize, max: usize) -> Option<&str> {
    let len = usize::from(u16_at(bytes, at));
    let text = bytes.get(at + 2..at + 2 + len).filter(|_| len <= max)?;
    std::str::from_utf8(text).ok()
}
