//! Blocks of which no two look alike.

use std::rc::Rc;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use pollux_hugepages::{Buffer, Slice};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// The content of a block in a version: no block and no version look alike, to the last byte. Version 0 is
/// zeros.
pub fn content(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_BYTES];
    }
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    for word in 0..(BLOCK_BYTES / 16) as u64 {
        bytes.extend((block ^ word.rotate_left(32)).to_le_bytes());
        bytes.extend(version.to_le_bytes());
    }
    bytes
}

/// The version that a block has; it must have one from its first byte to its last.
pub fn version(block: u64, bytes: &[u8]) -> u64 {
    let word = bytes.get(8..16).expect("a block is longer");
    let version = u64::from_le_bytes(word.try_into().expect("eight bytes"));
    assert!(
        content(block, version) == bytes,
        "block {block} is torn or not its own"
    );
    version
}

/// Writes a version of a block.
pub async fn write(device: &Rc<dyn BlockDevice>, block: u64, version: u64) -> Result<(), IoError> {
    let data = Slice::copy_from(&content(block, version));
    device.write(block, data, false).await
}

/// Reads the version of a block.
pub async fn read(device: &Rc<dyn BlockDevice>, block: u64) -> Result<u64, IoError> {
    let data = device.read(block, Buffer::from_heap(BLOCK_BYTES)).await?;
    Ok(version(block, &data))
}

/// Reads the versions of the first blocks, some at a time.
pub async fn read_all(device: &Rc<dyn BlockDevice>, blocks: u64) -> Result<Vec<u64>, IoError> {
    const AT_A_TIME: u64 = 16;
    let mut versions = Vec::new();
    for first in (0..blocks).step_by(AT_A_TIME as usize) {
        let count = AT_A_TIME.min(blocks - first) as usize;
        let data = device.read(first, Buffer::from_heap(count * BLOCK_BYTES)).await?;
        let blocks = (first..).zip(data.chunks(BLOCK_BYTES));
        versions.extend(blocks.map(|(block, bytes)| version(block, bytes)));
    }
    Ok(versions)
}
