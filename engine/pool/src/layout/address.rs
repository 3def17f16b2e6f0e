//! Where things are: extents, blocks in them, and pointers to pages.

use super::field::{put_u32, put_u64, u32_at, u64_at};
use super::{EXTENT_BLOCKS, LayoutError};

/// Bits of the number of an extent on its device.
const NUMBER_BITS: u32 = 40;

/// An extent of a pool: 8 bits of device, 40 bits of number. Extent 0 of device 0 is a label, so 0 is no
/// extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId(u64);

impl ExtentId {
    /// Bits of all of it.
    pub const BITS: u32 = 48;

    /// An extent by device and number; bits above 40 of the number are dropped.
    pub const fn new(device: u8, number: u64) -> Self {
        Self((device as u64) << NUMBER_BITS | number & ((1 << NUMBER_BITS) - 1))
    }

    /// From 48 bits; `None` for 0 and for more bits.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw == 0 || raw >> Self::BITS != 0 {
            None
        } else {
            Some(Self(raw))
        }
    }

    /// As 48 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Which device.
    pub const fn device(self) -> u8 {
        (self.0 >> NUMBER_BITS) as u8
    }

    /// Its number on the device.
    pub const fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }

    /// One of its blocks.
    pub const fn block(self, index: u8) -> BlockAddress {
        BlockAddress(self.0 * EXTENT_BLOCKS as u64 + (index as u64 & (EXTENT_BLOCKS as u64 - 1)))
    }
}

/// A block of an extent; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockAddress(u64);

impl BlockAddress {
    /// From 52 bits; `None` if the extent is none.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match ExtentId::from_raw(raw / EXTENT_BLOCKS as u64) {
            Some(_) => Some(Self(raw)),
            None => None,
        }
    }

    /// As 52 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Its extent.
    pub const fn extent(self) -> ExtentId {
        ExtentId(self.0 / EXTENT_BLOCKS as u64)
    }

    /// Its place in the extent, 0 to 15.
    pub const fn index(self) -> u8 {
        (self.0 % EXTENT_BLOCKS as u64) as u8
    }

    /// The first byte of it on its device.
    pub const fn offset_bytes(self) -> u64 {
        self.extent().number() * super::EXTENT_BYTES + self.index() as u64 * super::BLOCK_BYTES as u64
    }
}

/// A pointer to a page, 32 bytes: both copies, birth, and the checksum of what is there.
///
/// Two pointers of the same place in two trees lead to the same page if and only if `first` and `birth` are
/// the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagePointer {
    /// The first copy.
    pub first: BlockAddress,
    /// The second copy, on another device where there is one, else in another extent.
    pub second: BlockAddress,
    /// The generation in which the page was made.
    pub birth: u64,
    /// The CRC of the page; 0 until the page is sealed, which it is before anything that points to it.
    pub crc: u32,
}

impl PagePointer {
    /// Bytes of a pointer.
    pub const BYTES: usize = 32;

    /// Whether both lead to the same page.
    pub fn is_same_page(&self, other: &Self) -> bool {
        self.first == other.first && self.birth == other.birth
    }

    /// Puts a pointer, or none, at a place of a block.
    pub(super) fn put(pointer: Option<&Self>, bytes: &mut [u8], at: usize) {
        let (first, second, birth, crc) = pointer.map_or((0, 0, 0, 0), |pointer| {
            (
                pointer.first.raw(),
                pointer.second.raw(),
                pointer.birth,
                pointer.crc,
            )
        });
        put_u64(bytes, at, first);
        put_u64(bytes, at + 8, second);
        put_u64(bytes, at + 16, birth);
        put_u32(bytes, at + 24, crc);
        put_u32(bytes, at + 28, 0);
    }

    /// The pointer at a place of a block; none where all is zeros.
    pub(super) fn get(bytes: &[u8], at: usize, structure: &'static str) -> Result<Option<Self>, LayoutError> {
        let wrong = |field| LayoutError::Field { structure, field };
        let (first, second) = (u64_at(bytes, at), u64_at(bytes, at + 8));
        let (birth, crc) = (u64_at(bytes, at + 16), u32_at(bytes, at + 24));
        if u32_at(bytes, at + 28) != 0 {
            return Err(wrong("reserved bytes of a pointer"));
        }
        if first == 0 && second == 0 && birth == 0 && crc == 0 {
            return Ok(None);
        }
        let pointer = Self {
            first: BlockAddress::from_raw(first).ok_or(wrong("first copy of a pointer"))?,
            second: BlockAddress::from_raw(second).ok_or(wrong("second copy of a pointer"))?,
            birth,
            crc,
        };
        if pointer.first == pointer.second {
            return Err(wrong("second copy of a pointer"));
        }
        Ok(Some(pointer))
    }
}
