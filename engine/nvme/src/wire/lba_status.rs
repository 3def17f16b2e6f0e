//! What Get LBA Status returns (NVM 1.0, 4.2.1): a header, and descriptors of ranges of blocks.
//!
//! ```text
//! header       0 NLSD   4 CMPC
//! descriptor   0 DSLBA   8 NLB   13 status
//! ```

use crate::wire::structure::{Field, structure};
use crate::wire::wire_enum::wire_enum;

wire_enum! {
    /// How far an answer goes (CMPC; NVM 1.0, 4.2.1).
    pub enum LbaStatusCompletion: u8 {
        /// Nothing is said.
        Unknown = 0,
        /// There is more than there was room for: behind the last descriptor nothing is known.
        Incomplete = 1,
        /// All of the range was looked at, and all there is to tell is told.
        Complete = 2,
    }
}

structure! {
    /// LBA Status Descriptor List, without its descriptors.
    pub struct LbaStatusHeader: 8 {
        /// How many descriptors follow (NLSD).
        0 => descriptors: u32,
        /// How far they go (CMPC); see [`LbaStatusCompletion`].
        4 => completion_field: u8,
    }
}

structure! {
    /// LBA Status Descriptor.
    pub struct LbaStatusDescriptor: 16 {
        /// The first block of the range (DSLBA).
        0 => starting_block: u64,
        /// Blocks of the range (NLB).
        8 => blocks: u32,
        /// More about the range; nothing where it is told for being allocated.
        13 => status: u8,
    }
}

/// Most bytes of a list: as many descriptors as a transfer of 4096 bytes holds.
pub const LBA_STATUS_BYTES_MAX: usize = 4096;

/// A list, as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LbaStatusList {
    /// How far it goes; `None` for a reserved value.
    pub completion: Option<LbaStatusCompletion>,
    /// Ranges.
    pub descriptors: Vec<LbaStatusDescriptor>,
}

impl LbaStatusList {
    /// Bytes of a list of so many descriptors.
    #[must_use]
    pub const fn bytes_of(descriptors: usize) -> usize {
        LbaStatusHeader::BYTES + descriptors * LbaStatusDescriptor::BYTES
    }

    /// How many descriptors so many bytes have room for.
    #[must_use]
    pub const fn room_of(bytes: usize) -> usize {
        bytes.saturating_sub(LbaStatusHeader::BYTES) / LbaStatusDescriptor::BYTES
    }

    /// The list in `bytes`; `None` if it says that it has more descriptors than are there.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header = LbaStatusHeader::from_bytes(bytes.get(..LbaStatusHeader::BYTES)?);
        let count = usize::try_from(header.descriptors).ok()?;
        if count > Self::room_of(bytes.len()) {
            return None;
        }
        let descriptors = bytes
            .get(LbaStatusHeader::BYTES..)?
            .chunks_exact(LbaStatusDescriptor::BYTES)
            .take(count)
            .map(LbaStatusDescriptor::from_bytes)
            .collect();
        Some(Self {
            completion: LbaStatusCompletion::from_wire(header.completion_field),
            descriptors,
        })
    }

    /// The list, in so many bytes; what has no room is left out.
    #[must_use]
    pub fn to_bytes(&self, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        let count = self.descriptors.len().min(Self::room_of(bytes));
        let completion = self.completion.unwrap_or(LbaStatusCompletion::Unknown);
        let header = LbaStatusHeader {
            descriptors: u32::try_from(count).unwrap_or(u32::MAX),
            completion_field: completion.to_wire(),
        };
        header.write(&mut out);
        let room = out.get_mut(LbaStatusHeader::BYTES..).unwrap_or_default();
        for (slot, descriptor) in room
            .chunks_exact_mut(LbaStatusDescriptor::BYTES)
            .zip(&self.descriptors)
        {
            descriptor.write(slot);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;

    #[test]
    fn freezes_a_list() {
        let list = LbaStatusList {
            completion: Some(LbaStatusCompletion::Incomplete),
            descriptors: vec![
                LbaStatusDescriptor {
                    starting_block: 0x0102_0304_0506_0708,
                    blocks: 0x090a_0b0c,
                    status: 0,
                },
                LbaStatusDescriptor {
                    starting_block: 7,
                    blocks: 1,
                    status: 5,
                },
            ],
        };
        let expected = at_offsets(
            44,
            &[
                (0, &[2, 0, 0, 0, 1]),
                (8, &[8, 7, 6, 5, 4, 3, 2, 1, 0x0c, 0x0b, 0x0a, 9]),
                (24, &[7]),
                (32, &[1]),
                (37, &[5]),
            ],
        );
        assert_eq!(list.to_bytes(44), expected);
        assert_eq!(LbaStatusList::parse(&expected), Some(list.clone()));
        assert_eq!((LbaStatusList::bytes_of(2), LbaStatusList::room_of(44)), (40, 2));
        // One that does not fit is left out, and not counted.
        let cut = LbaStatusList::parse(&list.to_bytes(39)).unwrap();
        assert_eq!(cut.descriptors, list.descriptors[..1]);
    }

    #[test]
    fn more_descriptors_than_there_are_is_no_list() {
        assert_eq!(LbaStatusList::parse(&[0; 7]), None);
        assert!(LbaStatusList::parse(&[0; 8]).is_some());
        let mut bytes = [0; 40];
        bytes[0] = 3;
        assert_eq!(LbaStatusList::parse(&bytes), None);
        bytes[..4].fill(0xff);
        assert_eq!(LbaStatusList::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(list) = LbaStatusList::parse(&bytes) {
                prop_assert!(list.descriptors.len() <= LbaStatusList::room_of(bytes.len()));
            }
        }
    }
}
