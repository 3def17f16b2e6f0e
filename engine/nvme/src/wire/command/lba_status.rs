//! Get LBA Status (NVM 1.0, 4.2.1).
//!
//! ```text
//! 40 SLBA (64 bits)   48 MNDW   52 RL(15:0)   55 ATYPE
//! ```

use zerocopy::little_endian::U32;

use super::entry::SubmissionEntry;
use super::opcode::AdminOpcode;
use super::sgl::SglDescriptor;
use crate::wire::wire_enum::wire_enum;

wire_enum! {
    /// Which blocks to tell of (ATYPE).
    pub enum LbaStatusAction: u8 {
        /// Those that are allocated (NVM 1.1).
        Allocated = 0x02,
        /// Those that may be unrecoverable, after a scan for them.
        Scan = 0x10,
        /// Those that may be unrecoverable, as far as is known.
        Tracked = 0x11,
    }
}

/// The command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetLbaStatus {
    /// The first block of the range (SLBA).
    pub starting_block: u64,
    /// Dwords to return less one (MNDW).
    pub dwords_minus_one: u32,
    /// Blocks of the range; 0 for all up to the end of the namespace (RL).
    pub range_blocks: u16,
    /// Which blocks to tell of (ATYPE); see [`GetLbaStatus::action`].
    pub action_field: u8,
}

impl GetLbaStatus {
    const DWORD_BYTES: u64 = 4;

    /// The question which of these blocks are allocated, with room for so many bytes of an answer: a multiple
    /// of 4.
    #[must_use]
    pub fn allocated(starting_block: u64, range_blocks: u16, bytes: u32) -> Self {
        Self {
            starting_block,
            dwords_minus_one: (bytes / 4).saturating_sub(1),
            range_blocks,
            action_field: LbaStatusAction::Allocated.to_wire(),
        }
    }

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [range_low, range_high, _, action_field] = entry.cdw13.to_bytes();
        Self {
            starting_block: u64::from(entry.cdw10.get()) | (u64::from(entry.cdw11.get()) << 32),
            dwords_minus_one: entry.cdw12.get(),
            range_blocks: u16::from_le_bytes([range_low, range_high]),
            action_field,
        }
    }

    /// The command; a length that a descriptor cannot hold is cut to what it can.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the block is split in two dwords")]
    pub fn to_entry(self, command_id: u16, namespace_id: u32) -> SubmissionEntry {
        let data_bytes = u32::try_from(self.data_bytes()).unwrap_or(u32::MAX);
        let mut entry = SubmissionEntry::new(AdminOpcode::GetLbaStatus.to_wire(), command_id, namespace_id)
            .with_data(SglDescriptor::transport(data_bytes));
        let [range_low, range_high] = self.range_blocks.to_le_bytes();
        entry.cdw10 = U32::new(self.starting_block as u32);
        entry.cdw11 = U32::new((self.starting_block >> 32) as u32);
        entry.cdw12 = U32::new(self.dwords_minus_one);
        entry.cdw13 = U32::from_bytes([range_low, range_high, 0, self.action_field]);
        entry
    }

    /// Which blocks to tell of; `None` for a reserved value.
    #[must_use]
    pub fn action(&self) -> Option<LbaStatusAction> {
        LbaStatusAction::from_wire(self.action_field)
    }

    /// Bytes to return: 4 to 16 GiB.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        (self.dwords_minus_one as u64 + 1) * Self::DWORD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;
    use zerocopy::{FromBytes, IntoBytes};

    #[test]
    fn freezes_the_command() {
        let command = GetLbaStatus::allocated(0x0102_0304_0506_0708, 0x090a, 4096);
        let entry = command.to_entry(7, 9);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x86, 0x40, 7, 0, 9]),
                (32, &[0, 0x10, 0, 0, 0, 0, 0, 0x5a]),
                (40, &[8, 7, 6, 5, 4, 3, 2, 1]),
                (48, &[0xff, 3]),
                (52, &[0x0a, 9, 0, 2]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(GetLbaStatus::from_entry(&entry), command);
        assert_eq!(command.action(), Some(LbaStatusAction::Allocated));
        assert_eq!(command.data_bytes(), 4096);
    }

    proptest! {
        #[test]
        fn any_entry_is_a_command(bytes: [[u8; 32]; 2]) {
            let entry = SubmissionEntry::read_from_bytes(bytes.as_bytes()).unwrap();
            let command = GetLbaStatus::from_entry(&entry);
            prop_assert_eq!(GetLbaStatus::from_entry(&command.to_entry(1, 1)), command);
        }
    }
}
