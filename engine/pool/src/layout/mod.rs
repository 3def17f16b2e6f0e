//! Every byte on a drive of a pool: encoded and decoded here and nowhere else.
//!
//! A drive is cut into extents of 64 KiB, and extents into 16 blocks of 4 KiB:
//!
//! | extents | what |
//! | --- | --- |
//! | 0, 1, and the last two | label areas: block 0 the [`label`], 1 and 2 the slots of the [`superblock`] |
//! | from 2 on | the ring of the [`journal`], as long as the label says |
//! | the rest | data, and [`page`]s of metadata |
//!
//! Every structure is one block of 4096 bytes. Integers are little-endian, what is reserved is zeros, and
//! the last four bytes (of pages: the last four of the header) are the CRC-32C of the other 4092. So a
//! block is either what was once written, as a whole, or it is refused: a torn write, a flipped bit and
//! foreign data all end in [`LayoutError`]. That it is the *right* block is told by what it says of itself:
//! pool, kind, place, generation.
//!
//! Nothing that is decoded is believed before its CRC is right, and nothing after that is used as an index
//! unchecked.

mod address;
mod field;
pub mod journal;
pub mod label;
pub mod page;
pub mod scrub;
pub mod slot;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod volume;

pub use address::{BlockAddress, ExtentId, PagePointer};

/// Bytes of a block, of a page, and of every structure on a drive.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks of an extent.
pub const EXTENT_BLOCKS: usize = 16;

/// Bytes of an extent.
pub const EXTENT_BYTES: u64 = (BLOCK_BYTES * EXTENT_BLOCKS) as u64;

/// Devices that a pool may have.
pub const DEVICES_MAX: usize = 32;

/// The version of all structures.
pub const FORMAT_VERSION: u32 = 1;

/// The content of one block.
pub type Block = [u8; BLOCK_BYTES];

/// Why a block is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not the structure that belongs here: never written, or something else.
    #[error("the block does not begin with the magic number of a {0}")]
    Magic(&'static str),
    /// Torn, damaged, or half overwritten.
    #[error("the checksum of the {0} does not match its content; another copy is needed")]
    Checksum(&'static str),
    /// Written by a newer version.
    #[error("the {structure} has version {version}, newer than {FORMAT_VERSION}: use a newer program")]
    Version {
        /// Which structure.
        structure: &'static str,
        /// Its version.
        version: u32,
    },
    /// A field holds what no version wrote, although the checksum is right.
    #[error("the field {field} of the {structure} is not valid")]
    Field {
        /// Which structure.
        structure: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// Another page than the one that should be here: a misdirected or lost write.
    #[error("the page is not the one that should be here: its {0} differs")]
    OtherPage(&'static str),
}

/// CRC-32C of bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
