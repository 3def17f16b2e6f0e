//! Commands of the NVM command set (NVM 1.0, 3.2).
//!
//! Read, Write, Compare, Verify, Write Zeroes and Write Uncorrectable share one form:
//!
//! ```text
//! 40 SLBA (64 bits)   48 NLB (0's based)
//! 50 LR(15) FUA(14) PRACT(13) PRCHK(12:10) DEAC(9) STC(8) DTYPE(7:4)
//! ```
//!
//! Dataset Management has the number of ranges less one in dword 10 and its attributes in dword 11, and the
//! ranges as data:
//!
//! ```text
//! 0 context attributes   4 length in blocks   8 starting block   (16 bytes each, at most 256)
//! ```

use bitflags::bitflags;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entry::SubmissionEntry;
use super::opcode::IoOpcode;
use super::sgl::SglDescriptor;

bitflags! {
    /// Bits 31:16 of dword 12 of commands that name a range of blocks (NVM 1.0, 3.2.4 and 3.2.6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlockFlags: u16 {
        /// Limited Retry (LR): give up early on errors.
        const LIMITED_RETRY = 1 << 15;
        /// Force Unit Access (FUA): the data is on, or comes from, non-volatile media when the command
        /// completes.
        const FORCE_UNIT_ACCESS = 1 << 14;
        /// Protection Information Action (PRACT).
        const PROTECTION_ACTION = 1 << 13;
        /// Check the guard (PRCHK bit 2).
        const CHECK_GUARD = 1 << 12;
        /// Check the application tag (PRCHK bit 1).
        const CHECK_APPLICATION_TAG = 1 << 11;
        /// Check the reference tag (PRCHK bit 0).
        const CHECK_REFERENCE_TAG = 1 << 10;
        /// Deallocate (DEAC), of Write Zeroes: the controller may deallocate the blocks, if they then read as
        /// zeros.
        const DEALLOCATE = 1 << 9;
        /// Storage Tag Check (STC).
        const CHECK_STORAGE_TAG = 1 << 8;
        /// Bits without a name pass through.
        const _ = !0;
    }
}

impl BlockFlags {
    /// All flags that ask for protection information, which a namespace without it cannot give.
    pub const PROTECTION: Self = Self::PROTECTION_ACTION
        .union(Self::CHECK_GUARD)
        .union(Self::CHECK_APPLICATION_TAG)
        .union(Self::CHECK_REFERENCE_TAG)
        .union(Self::CHECK_STORAGE_TAG);
}

/// A command that names a range of blocks: Read, Write, Compare, Verify, Write Zeroes or Write Uncorrectable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCommand {
    /// The first logical block (SLBA).
    pub starting_block: u64,
    /// Their number, 1 to 65,536 (NLB is one less).
    pub blocks: u32,
    /// The flags.
    pub flags: BlockFlags,
}

impl BlockCommand {
    /// Most blocks in one command.
    pub const BLOCKS_MAX: u32 = 1 << 16;

    const FLAGS_SHIFT: u32 = 16;
    const BLOCKS_MASK: u32 = 0xffff;

    /// The fields of `entry`, which is taken to be one of these commands.
    #[inline]
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let dword = entry.cdw12.get();
        let flags = (dword >> Self::FLAGS_SHIFT) as u16;
        Self {
            starting_block: u64::from(entry.cdw10.get()) | (u64::from(entry.cdw11.get()) << 32),
            blocks: (dword & Self::BLOCKS_MASK) + 1,
            flags: BlockFlags::from_bits_retain(flags),
        }
    }

    /// The command. `blocks` outside of 1 to 65,536 is brought to the nearest of these.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the block number is split in two dwords"
    )]
    pub fn to_entry(
        self,
        opcode: IoOpcode,
        command_id: u16,
        namespace_id: u32,
        data: SglDescriptor,
    ) -> SubmissionEntry {
        let blocks_minus_one = self.blocks.clamp(1, Self::BLOCKS_MAX) - 1;
        let mut entry = SubmissionEntry::new(opcode.to_wire(), command_id, namespace_id).with_data(data);
        entry.cdw10 = U32::new(self.starting_block as u32);
        entry.cdw11 = U32::new((self.starting_block >> 32) as u32);
        entry.cdw12 = U32::new(blocks_minus_one | (u32::from(self.flags.bits()) << Self::FLAGS_SHIFT));
        entry
    }

    /// Whether the range lies within a namespace of so many blocks; if not, answer with
    /// [`Status::LBA_OUT_OF_RANGE`](crate::wire::status::Status::LBA_OUT_OF_RANGE).
    #[inline]
    #[must_use]
    pub fn is_within(&self, namespace_blocks: u64) -> bool {
        self.starting_block
            .checked_add(u64::from(self.blocks))
            .is_some_and(|end| end <= namespace_blocks)
    }
}

bitflags! {
    /// Dword 11 of Dataset Management (NVM 1.0, 3.2.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DatasetAttributes: u32 {
        /// Integral Dataset for Read (IDR): a hint.
        const INTEGRAL_READ = 1 << 0;
        /// Integral Dataset for Write (IDW): a hint.
        const INTEGRAL_WRITE = 1 << 1;
        /// Deallocate (AD).
        const DEALLOCATE = 1 << 2;
        /// Bits without a name pass through.
        const _ = !0;
    }
}

/// Dataset Management (NVM 1.0, 3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetManagement {
    /// The number of ranges in the data, 1 to 256 (NR is one less).
    pub ranges: u32,
    /// What to do with them.
    pub attributes: DatasetAttributes,
}

impl DatasetManagement {
    /// Most ranges in one command.
    pub const RANGES_MAX: u32 = 256;

    const RANGES_MASK: u32 = 0xff;

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        Self {
            ranges: (entry.cdw10.get() & Self::RANGES_MASK) + 1,
            attributes: DatasetAttributes::from_bits_retain(entry.cdw11.get()),
        }
    }

    /// The command. `ranges` outside of 1 to 256 is brought to the nearest of these.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32, data: SglDescriptor) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(IoOpcode::DatasetManagement.to_wire(), command_id, namespace_id)
            .with_data(data);
        entry.cdw10 = U32::new(self.ranges.clamp(1, Self::RANGES_MAX) - 1);
        entry.cdw11 = U32::new(self.attributes.bits());
        entry
    }

    /// Length of the data in bytes.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        self.ranges as usize * DatasetRange::BYTES
    }

    /// The ranges in the data of the command; `None` if the data is too short (answer with
    /// [`Status::DATA_SGL_LENGTH_INVALID`](crate::wire::status::Status::DATA_SGL_LENGTH_INVALID)).
    #[must_use]
    pub fn parse<'a>(&self, data: &'a [u8]) -> Option<&'a [DatasetRange]> {
        let (ranges, _) = <[DatasetRange]>::ref_from_prefix_with_elems(data, self.ranges as usize).ok()?;
        Some(ranges)
    }
}

/// One range of a Dataset Management command (NVM 1.0, 3.2.3 "Range Definition").
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DatasetRange {
    /// Context attributes: hints.
    pub context: U32,
    /// Number of blocks; may be 0.
    pub blocks: U32,
    /// The first logical block.
    pub starting_block: U64,
}

impl DatasetRange {
    /// Size on the wire, in bytes.
    pub const BYTES: usize = 16;

    /// A range without hints.
    #[must_use]
    pub fn new(starting_block: u64, blocks: u32) -> Self {
        Self {
            context: U32::ZERO,
            blocks: U32::new(blocks),
            starting_block: U64::new(starting_block),
        }
    }

    /// Whether the range lies within a namespace of so many blocks.
    #[must_use]
    pub fn is_within(&self, namespace_blocks: u64) -> bool {
        self.starting_block
            .get()
            .checked_add(u64::from(self.blocks.get()))
            .is_some_and(|end| end <= namespace_blocks)
    }
}

const _: () = {
    assert!(size_of::<DatasetRange>() == DatasetRange::BYTES);
    assert!(std::mem::offset_of!(DatasetRange, blocks) == 4);
    assert!(std::mem::offset_of!(DatasetRange, starting_block) == 8);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;

    #[test]
    fn freezes_a_write() {
        let command = BlockCommand {
            starting_block: 0x0807_0605_0403_0201,
            blocks: 8,
            flags: BlockFlags::FORCE_UNIT_ACCESS,
        };
        let entry = command.to_entry(IoOpcode::Write, 0x1234, 2, SglDescriptor::in_capsule(4096));
        let expected = at_offsets(
            64,
            &[
                (0, &[0x01, 0x40, 0x34, 0x12, 2, 0, 0, 0]),
                (32, &[0, 0x10, 0, 0, 0, 0, 0, 0x01]),
                (40, &[1, 2, 3, 4, 5, 6, 7, 8]),
                (48, &[7, 0, 0x00, 0x40]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(BlockCommand::from_entry(&entry), command);
    }

    #[test]
    fn freezes_the_flags() {
        for (flags, expected) in [
            (BlockFlags::LIMITED_RETRY, 0x8000_0000_u32),
            (BlockFlags::FORCE_UNIT_ACCESS, 0x4000_0000),
            (BlockFlags::DEALLOCATE, 0x0200_0000),
            (BlockFlags::PROTECTION, 0x3d00_0000),
        ] {
            let command = BlockCommand {
                starting_block: 0,
                blocks: 1,
                flags,
            };
            let entry = command.to_entry(IoOpcode::WriteZeroes, 1, 1, SglDescriptor::transport(0));
            assert_eq!(entry.cdw12.get(), expected);
        }
    }

    #[test]
    fn knows_the_edges_of_a_namespace() {
        let within = |starting_block, blocks, namespace_blocks| {
            BlockCommand {
                starting_block,
                blocks,
                flags: BlockFlags::empty(),
            }
            .is_within(namespace_blocks)
                && DatasetRange::new(starting_block, blocks).is_within(namespace_blocks)
        };
        assert!(within(0, 8, 8) && within(7, 1, 8));
        assert!(!within(0, 9, 8) && !within(8, 1, 8));
        assert!(!within(u64::MAX, 1, u64::MAX) && !within(u64::MAX, 2, u64::MAX));
        assert!(DatasetRange::new(8, 0).is_within(8) && !DatasetRange::new(9, 0).is_within(8));
    }

    #[test]
    fn brings_block_counts_into_range() {
        for (blocks, encoded) in [(0, 1), (1, 1), (65_536, 65_536), (65_537, 65_536)] {
            let command = BlockCommand {
                starting_block: 0,
                blocks,
                flags: BlockFlags::empty(),
            };
            let entry = command.to_entry(IoOpcode::Read, 1, 1, SglDescriptor::transport(0));
            assert_eq!(BlockCommand::from_entry(&entry).blocks, encoded);
        }
    }

    #[test]
    fn freezes_dataset_management() {
        let command = DatasetManagement {
            ranges: 2,
            attributes: DatasetAttributes::DEALLOCATE,
        };
        let entry = command.to_entry(5, 1, SglDescriptor::transport(32));
        let expected = at_offsets(
            64,
            &[
                (0, &[0x09, 0x40, 5, 0, 1]),
                (32, &[32, 0, 0, 0, 0, 0, 0, 0x5a]),
                (40, &[1, 0, 0, 0, 4]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(DatasetManagement::from_entry(&entry), command);

        let ranges = [
            DatasetRange::new(0x0102_0304_0506_0708, 0x090a_0b0c),
            DatasetRange::new(1, 2),
        ];
        assert_eq!(
            ranges.as_bytes(),
            [
                0, 0, 0, 0, 0x0c, 0x0b, 0x0a, 0x09, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0,
                0, 0, 0, 0, 0
            ]
        );
        assert_eq!(command.data_bytes(), 32);
        assert_eq!(command.parse(ranges.as_bytes()), Some(ranges.as_slice()));
        assert_eq!(command.parse(&[0; 40]).map(<[_]>::len), Some(2));
        assert_eq!(command.parse(&[0; 31]), None);
    }

    proptest! {
        #[test]
        fn block_commands_survive(starting_block: u64, blocks in 1..=65_536_u32, flags: u16) {
            let command = BlockCommand { starting_block, blocks, flags: BlockFlags::from_bits_retain(flags) };
            let entry = command.to_entry(IoOpcode::Read, 1, 1, SglDescriptor::transport(0));
            prop_assert_eq!(BlockCommand::from_entry(&entry), command);
        }

        #[test]
        fn any_data_is_ranges_or_too_short(
            ranges in 1..=256_u32,
            data in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let command = DatasetManagement { ranges, attributes: DatasetAttributes::empty() };
            let parsed = command.parse(&data);
            prop_assert_eq!(parsed.is_some(), data.len() >= command.data_bytes());
            prop_assert_eq!(parsed.map_or(ranges as usize, <[_]>::len), ranges as usize);
        }
    }
}
