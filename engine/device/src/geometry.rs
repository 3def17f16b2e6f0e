//! What a device is like.

use crate::error::IoError;

/// Shape and abilities of a device. All sizes but the block size are in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block: a power of two, 512 at least.
    pub block_bytes: u32,
    /// Blocks of the device.
    pub blocks: u64,
    /// The size and alignment in blocks at which writes are most efficient; 1 when it does not matter.
    pub optimal_blocks: u32,
    /// The largest read, write or compare in one request, in blocks.
    pub transfer_blocks_max: u32,
    /// Alignment of memory and of every piece of a gather list, in bytes; 1 when any will do.
    pub memory_align_bytes: u32,
    /// Completed writes may be lost with the power until they are flushed.
    pub volatile_write_cache: bool,
    /// Writes of so many blocks, naturally aligned, are never torn by a power loss.
    pub atomic_write_blocks: u32,
    /// Deallocation gives space back, and is not just zeros written.
    pub deallocates: bool,
    /// Metadata bytes of each block, 0 for none. The drive makes and checks them; no request carries them.
    pub metadata_bytes: u16,
    /// Nothing can be written.
    pub read_only: bool,
}

/// A geometry that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The block size is not supported.
    #[error("block size {0} is not supported: use 512 or 4096")]
    BlockSize(u64),
    /// The size is not whole blocks, or nothing.
    #[error("size {bytes} is not a positive multiple of the block size {block_bytes}")]
    Size {
        /// The size asked for, in bytes.
        bytes: u64,
        /// The block size, in bytes.
        block_bytes: u32,
    },
}

impl Geometry {
    /// A device of `bytes` in blocks of `block_bytes`, which needs no alignment, has no cache and no limits.
    ///
    /// # Errors
    ///
    /// [`GeometryError`] for a block size other than 512 and 4096, or a size that is not whole blocks.
    pub fn new(bytes: u64, block_bytes: u32) -> Result<Self, GeometryError> {
        if !matches!(block_bytes, 512 | 4096) {
            return Err(GeometryError::BlockSize(u64::from(block_bytes)));
        }
        if bytes == 0 || !bytes.is_multiple_of(u64::from(block_bytes)) {
            return Err(GeometryError::Size { bytes, block_bytes });
        }
        Ok(Self {
            block_bytes,
            blocks: bytes / u64::from(block_bytes),
            optimal_blocks: 1,
            transfer_blocks_max: u32::MAX,
            memory_align_bytes: 1,
            volatile_write_cache: false,
            atomic_write_blocks: 1,
            deallocates: true,
            metadata_bytes: 0,
            read_only: false,
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }

    /// Blocks in so many bytes, if they are whole blocks.
    pub fn blocks_of(&self, bytes: usize) -> Option<u64> {
        let block_bytes = self.block_bytes as usize;
        (bytes & (block_bytes - 1) == 0).then_some((bytes >> block_bytes.trailing_zeros()) as u64)
    }

    /// Checks that a range is inside the device.
    ///
    /// # Errors
    ///
    /// [`IoError::OutOfRange`].
    pub fn check_range(&self, block: u64, blocks: u64) -> Result<(), IoError> {
        match block.checked_add(blocks) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(IoError::OutOfRange),
        }
    }
}
