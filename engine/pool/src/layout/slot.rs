//! Slots: what 64 KiB of a volume consist of. 128 bytes, in leaves of maps and in records of the journal.
//!
//! | byte | field |
//! | --- | --- |
//! | 0 | 16 checksums, u32 each: CRC-32C of each block; 0 where there is none |
//! | 64 | 4 fragments of 16 bytes: extent in 48 bits, its blocks in 16; birth in 48 bits, lost ones in 16 |
//!
//! The place of a block in an extent is its place in the slot. Masks of fragments are disjoint and not
//! empty; a block in no mask reads as zeros. Fragments that are not used are zeros, and come last.
//!
//! A lost block has a place in its extent, with nothing in it that may be returned: it is an error to whoever
//! reads it, until it is written or deallocated. There are such blocks only if the labels say so:
//! [`LOST`](super::label::LOST).

use arrayvec::ArrayVec;

use super::field::{put_u32, put_u64, u32_at, u64_at};
use super::{EXTENT_BLOCKS, ExtentId, LayoutError};

const STRUCTURE: &str = "slot";

/// Fragments of a slot.
pub const FRAGMENTS_MAX: usize = 4;

/// Some blocks of a slot and the extent that holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The extent.
    pub extent: ExtentId,
    /// Which blocks of the slot it holds, a bit each.
    pub mask: u16,
    /// The generation in which the extent was allocated, in 48 bits.
    pub birth: u64,
    /// Which of the blocks in the mask are lost.
    pub lost: u16,
}

/// Bits of a birth.
const BIRTH_BITS: u32 = 48;

impl Fragment {
    /// Blocks that can be read.
    pub fn readable(&self) -> u16 {
        self.mask & !self.lost
    }
}

/// What 64 KiB of a volume consist of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// The checksum of each block; 0 for one that is nowhere, and for all with checksums off.
    pub checksums: [u32; EXTENT_BLOCKS],
    /// Where the blocks are.
    pub fragments: ArrayVec<Fragment, FRAGMENTS_MAX>,
}

impl Slot {
    /// Bytes of a slot.
    pub const BYTES: usize = 128;

    /// Blocks that are somewhere.
    pub fn mask(&self) -> u16 {
        self.fragments
            .iter()
            .fold(0, |mask, fragment| mask | fragment.mask)
    }

    /// Blocks that are lost.
    pub fn lost(&self) -> u16 {
        self.fragments
            .iter()
            .fold(0, |lost, fragment| lost | fragment.lost)
    }

    /// Whether all of it reads as zeros.
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// The fragment that holds a block.
    pub fn fragment_of(&self, block: u8) -> Option<&Fragment> {
        self.fragments
            .iter()
            .find(|fragment| fragment.mask >> block & 1 == 1)
    }

    /// The fragment with an extent.
    pub fn fragment_with(&self, extent: ExtentId) -> Option<&Fragment> {
        self.fragments.iter().find(|fragment| fragment.extent == extent)
    }

    /// The 128 bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (block, crc) in self.checksums.iter().enumerate() {
            put_u32(&mut bytes, block * 4, *crc);
        }
        for (number, fragment) in self.fragments.iter().enumerate() {
            put_u64(
                &mut bytes,
                64 + number * 16,
                fragment.extent.raw() | u64::from(fragment.mask) << ExtentId::BITS,
            );
            put_u64(
                &mut bytes,
                72 + number * 16,
                fragment.birth | u64::from(fragment.lost) << BIRTH_BITS,
            );
        }
        bytes
    }

    /// Decodes 128 bytes; missing ones count as zeros.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] when masks overlap, a fragment is empty, an unused one is not zeros, or a block
    /// is lost that is not there.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayoutError> {
        let wrong = |field| {
            Err(LayoutError::Field {
                structure: STRUCTURE,
                field,
            })
        };
        let mut slot = Self::default();
        let mut held = 0;
        for number in 0..FRAGMENTS_MAX {
            let (place, rest) = (u64_at(bytes, 64 + number * 16), u64_at(bytes, 72 + number * 16));
            if place == 0 && rest == 0 {
                continue;
            }
            let mask = (place >> ExtentId::BITS) as u16;
            let (birth, lost) = birth_and_lost(rest);
            let Some(extent) = ExtentId::from_raw(place & ((1 << ExtentId::BITS) - 1)) else {
                return wrong("extent of a fragment");
            };
            if mask == 0 || mask & held != 0 || number != slot.fragments.len() {
                return wrong("blocks of a fragment");
            }
            if slot.fragment_with(extent).is_some() {
                return wrong("extent of a fragment");
            }
            if lost & !mask != 0 {
                return wrong("lost blocks of a fragment");
            }
            held |= mask;
            slot.fragments.push(Fragment {
                extent,
                mask,
                birth,
                lost,
            });
        }
        for (block, checksum) in slot.checksums.iter_mut().enumerate() {
            *checksum = u32_at(bytes, block * 4);
            if held >> block & 1 == 0 && *checksum != 0 {
                return wrong("checksum of a block that is nowhere");
            }
        }
        Ok(slot)
    }
}

fn birth_and_lost(raw: u64) -> (u64, u16) {
    (raw & ((1 << BIRTH_BITS) - 1), (raw >> BIRTH_BITS) as u16)
}

/// The bytes of a slot that was decoded once, and so is valid, looked at without decoding it again.
#[derive(Clone, Copy)]
pub(crate) struct SlotView<'a>(&'a [u8; Slot::BYTES]);

impl<'a> SlotView<'a> {
    /// `None` unless there are 128 bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    fn fragments(&self) -> impl Iterator<Item = Fragment> {
        (0..FRAGMENTS_MAX).map_while(|number| {
            let place = u64_at(self.0, 64 + number * 16);
            let extent = ExtentId::from_raw(place & ((1 << ExtentId::BITS) - 1))?;
            let mask = (place >> ExtentId::BITS) as u16;
            let (birth, lost) = birth_and_lost(u64_at(self.0, 72 + number * 16));
            Some(Fragment {
                extent,
                mask,
                birth,
                lost,
            })
        })
    }

    /// Blocks that are somewhere.
    pub(crate) fn mask(&self) -> u16 {
        self.fragments().fold(0, |all, fragment| all | fragment.mask)
    }

    /// The fragment that holds all of some blocks, and its birth; `None` if one of them is lost.
    pub(crate) fn fragment_with_all(&self, wanted: u16) -> Option<(ExtentId, u64)> {
        let mut fragments = self.fragments();
        let found = fragments.find(|fragment| fragment.readable() & wanted == wanted);
        found.map(|fragment| (fragment.extent, fragment.birth))
    }

    /// The first extent that is own, born after a generation, if no fragment has any of some blocks: they
    /// have room in it.
    pub(crate) fn own_with_room(&self, wanted: u16, parent_generation: u64) -> Option<ExtentId> {
        if self.mask() & wanted != 0 {
            return None;
        }
        let mut fragments = self.fragments();
        let found = fragments.find(|fragment| fragment.birth > parent_generation);
        found.map(|fragment| fragment.extent)
    }

    /// The checksum of a block.
    #[inline]
    pub(crate) fn checksum(&self, block: u8) -> u32 {
        u32_at(self.0, usize::from(block) * 4)
    }

    /// Has the checksum of a block brought into the processor's caches.
    #[inline]
    pub(crate) fn prefetch_checksum(&self, block: u8) {
        if let Some(byte) = self.0.get(usize::from(block) * 4) {
            pollux_hugepages::prefetch(byte);
        }
    }

    /// Copies the checksums of some blocks to their places.
    pub(crate) fn copy_checksums(&self, first: u8, blocks: u8, into: &mut [u32; EXTENT_BLOCKS]) {
        let first = usize::from(first);
        for (block, checksum) in into.iter_mut().enumerate().skip(first).take(blocks.into()) {
            *checksum = u32_at(self.0, block * 4);
        }
    }
}
