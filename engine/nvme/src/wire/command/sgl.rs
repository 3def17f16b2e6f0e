//! SGL descriptors (Base 2.0, 4.1.2): where the data of a command is.
//!
//! NVMe/TCP knows two (TCP 3.3.1 "Capsules and SGLs"), both without metadata and both filling the SGL1 field
//! itself:
//!
//! ```text
//! bytes 0..8 address or offset   8..12 length   12..15 reserved   15 type(7:4) subtype(3:0)
//! 01h  data block, offset              the data is in the capsule, this far behind its start (ICDOFF is 0)
//! 5Ah  transport data block, transport the data travels in data PDUs
//! ```

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a descriptor, in bytes.
pub const SGL_DESCRIPTOR_BYTES: usize = 16;

/// Type 0h, subtype 1h (Base 2.0, figures "SGL Descriptor Type" and "SGL Descriptor Sub Type Values").
const IDENTIFIER_DATA_BLOCK_OFFSET: u8 = 0x01;
/// Type 5h, subtype Ah.
const IDENTIFIER_TRANSPORT_DATA_BLOCK: u8 = 0x5a;

/// An SGL descriptor as it travels.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address, or offset into the capsule's data.
    pub address: U64,
    /// Length of the data in bytes.
    pub length_bytes: U32,
    reserved: [u8; 3],
    /// Descriptor type in bits 7:4, subtype in bits 3:0.
    pub identifier: u8,
}

/// What an SGL descriptor says, of the two that NVMe/TCP knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// The data is in the command capsule.
    InCapsule {
        /// Where it starts, in bytes behind the start of the in-capsule data.
        offset: u64,
        /// Its length in bytes.
        length_bytes: u32,
    },
    /// The data travels in data PDUs.
    Transport {
        /// Its length in bytes.
        length_bytes: u32,
    },
}

impl SglDescriptor {
    /// Data in the capsule from its start.
    #[inline]
    #[must_use]
    pub fn in_capsule(length_bytes: u32) -> Self {
        Self {
            length_bytes: U32::new(length_bytes),
            identifier: IDENTIFIER_DATA_BLOCK_OFFSET,
            ..Self::default()
        }
    }

    /// Data in data PDUs. Also what a command without data carries, with length 0.
    #[inline]
    #[must_use]
    pub fn transport(length_bytes: u32) -> Self {
        Self {
            length_bytes: U32::new(length_bytes),
            identifier: IDENTIFIER_TRANSPORT_DATA_BLOCK,
            ..Self::default()
        }
    }

    /// What the descriptor says, or `None` for one that NVMe/TCP does not know (answer with
    /// [`Status::SGL_TYPE_INVALID`](crate::wire::status::Status::SGL_TYPE_INVALID)).
    #[inline]
    #[must_use]
    pub fn data_pointer(&self) -> Option<DataPointer> {
        match self.identifier {
            IDENTIFIER_DATA_BLOCK_OFFSET => Some(DataPointer::InCapsule {
                offset: self.address.get(),
                length_bytes: self.length_bytes.get(),
            }),
            IDENTIFIER_TRANSPORT_DATA_BLOCK => Some(DataPointer::Transport {
                length_bytes: self.length_bytes.get(),
            }),
            _ => None,
        }
    }
}

const _: () = assert!(size_of::<SglDescriptor>() == SGL_DESCRIPTOR_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freezes_both_descriptors() {
        assert_eq!(
            SglDescriptor::in_capsule(0x0102_0304).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0x01]
        );
        assert_eq!(
            SglDescriptor::transport(4096).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x5a]
        );
    }

    #[test]
    fn knows_two_of_all_identifiers() {
        for identifier in 0..=u8::MAX {
            let descriptor = SglDescriptor {
                address: U64::new(7),
                length_bytes: U32::new(9),
                reserved: [1; 3],
                identifier,
            };
            let expected = match identifier {
                0x01 => Some(DataPointer::InCapsule {
                    offset: 7,
                    length_bytes: 9,
                }),
                0x5a => Some(DataPointer::Transport { length_bytes: 9 }),
                _ => None,
            };
            assert_eq!(descriptor.data_pointer(), expected);
        }
    }
}
