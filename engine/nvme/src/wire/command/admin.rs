//! Admin commands (Base 2.0, 5). Keep Alive and Asynchronous Event Request have no fields.
//!
//! ```text
//! Identify       40 CNS   42 CNTID   44 CNS specific identifier   47 CSI   56 UUID index
//! Get Log Page   40 LID   41 LSP(6:0) RAE(7)   42 NUMDL   44 NUMDU   46 LSI   48 LPO (64 bits)
//!                56 UUID index   58 OT(7)   59 CSI
//! Get Features   40 FID   41 SEL(2:0)   44 feature specific   56 UUID index
//! Set Features   40 FID   43 SV(7)   44 feature specific (16 bytes)   56 UUID index
//! Abort          40 SQID  42 CID
//! Format NVM     40 LBAFL(3:0) MSET(4) PI(7:5)   41 PIL(0) SES(3:1) LBAFU(5:4)
//! ```

use zerocopy::little_endian::U32;

use super::entry::SubmissionEntry;
use super::opcode::AdminOpcode;
use super::sgl::SglDescriptor;
use crate::wire::features::{FeatureId, FeatureSelect};
use crate::wire::identify::{CommandSetId, IDENTIFY_BYTES, IdentifyStructure};
use crate::wire::log::LogPageId;

/// Identify (Base 2.0, 5.17).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identify {
    /// Which structure (CNS); see [`Identify::structure`].
    pub structure_field: u8,
    /// Controller that a list starts from (CNTID).
    pub controller_id: u16,
    /// What else the structure needs, such as an NVM set.
    pub specific_id: u16,
    /// Command set (CSI); see [`Identify::command_set`].
    pub command_set_field: u8,
}

impl Identify {
    /// The command for this structure of the NVM command set.
    #[must_use]
    pub fn new(structure: IdentifyStructure) -> Self {
        Self {
            structure_field: structure.to_wire(),
            ..Self::default()
        }
    }

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [structure_field, _, controller_low, controller_high] = entry.cdw10.to_bytes();
        let [specific_low, specific_high, _, command_set_field] = entry.cdw11.to_bytes();
        Self {
            structure_field,
            controller_id: u16::from_le_bytes([controller_low, controller_high]),
            specific_id: u16::from_le_bytes([specific_low, specific_high]),
            command_set_field,
        }
    }

    /// The command.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32) -> SubmissionEntry {
        #[expect(clippy::cast_possible_truncation, reason = "4096 fits")]
        let mut entry = SubmissionEntry::new(AdminOpcode::Identify.to_wire(), command_id, namespace_id)
            .with_data(SglDescriptor::transport(IDENTIFY_BYTES as u32));
        entry.cdw10 = U32::new(u32::from(self.structure_field) | (u32::from(self.controller_id) << 16));
        entry.cdw11 = U32::new(u32::from(self.specific_id) | (u32::from(self.command_set_field) << 24));
        entry
    }

    /// Which structure; `None` for a reserved one.
    #[must_use]
    pub fn structure(&self) -> Option<IdentifyStructure> {
        IdentifyStructure::from_wire(self.structure_field)
    }

    /// Command set; `None` for a reserved one.
    #[must_use]
    pub fn command_set(&self) -> Option<CommandSetId> {
        CommandSetId::from_wire(self.command_set_field)
    }
}

/// Get Log Page (Base 2.0, 5.16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetLogPage {
    /// Which page (LID); see [`GetLogPage::page`].
    pub page_field: u8,
    /// What the page makes of it, 7 bits (LSP).
    pub specific_parameter: u8,
    /// The event that the page clears stays (RAE).
    pub retain_event: bool,
    /// Dwords to return less one (NUMD).
    pub dwords_minus_one: u32,
    /// What the page makes of it (LSI).
    pub specific_id: u16,
    /// Where to start: in bytes, a multiple of 4, or in entries (LPO).
    pub offset: u64,
    /// `offset` counts entries (OT).
    pub offset_in_entries: bool,
    /// Command set (CSI).
    pub command_set_field: u8,
}

impl GetLogPage {
    const PARAMETER_MASK: u8 = 0x7f;
    const RETAIN_EVENT: u8 = 0x80;
    const OFFSET_IN_ENTRIES: u8 = 0x80;
    const DWORD_BYTES: u64 = 4;

    /// The command for `bytes` of this page from `offset_bytes` on; both are to be multiples of 4, and
    /// `bytes` is cut at 16 GiB.
    #[must_use]
    pub fn new(page: LogPageId, offset_bytes: u64, bytes: u64) -> Self {
        Self {
            page_field: page.to_wire(),
            dwords_minus_one: u32::try_from((bytes / Self::DWORD_BYTES).saturating_sub(1))
                .unwrap_or(u32::MAX),
            offset: offset_bytes,
            ..Self::default()
        }
    }

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [page_field, parameter, count_0, count_1] = entry.cdw10.to_bytes();
        let [count_2, count_3, id_low, id_high] = entry.cdw11.to_bytes();
        let [_, _, offset_type, command_set_field] = entry.cdw14.to_bytes();
        Self {
            page_field,
            specific_parameter: parameter & Self::PARAMETER_MASK,
            retain_event: parameter & Self::RETAIN_EVENT != 0,
            dwords_minus_one: u32::from_le_bytes([count_0, count_1, count_2, count_3]),
            specific_id: u16::from_le_bytes([id_low, id_high]),
            offset: u64::from(entry.cdw12.get()) | (u64::from(entry.cdw13.get()) << 32),
            offset_in_entries: offset_type & Self::OFFSET_IN_ENTRIES != 0,
            command_set_field,
        }
    }

    /// The command, with its data in data PDUs; a length that a descriptor cannot hold is cut to what it can.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the offset is split in two dwords"
    )]
    pub fn to_entry(self, command_id: u16, namespace_id: u32) -> SubmissionEntry {
        let data_bytes = u32::try_from(self.data_bytes()).unwrap_or(u32::MAX);
        let mut entry = SubmissionEntry::new(AdminOpcode::GetLogPage.to_wire(), command_id, namespace_id)
            .with_data(SglDescriptor::transport(data_bytes));
        let [count_0, count_1, count_2, count_3] = self.dwords_minus_one.to_le_bytes();
        let [id_low, id_high] = self.specific_id.to_le_bytes();
        let parameter = (self.specific_parameter & Self::PARAMETER_MASK)
            | if self.retain_event { Self::RETAIN_EVENT } else { 0 };
        let offset_type = if self.offset_in_entries {
            Self::OFFSET_IN_ENTRIES
        } else {
            0
        };
        entry.cdw10 = U32::from_bytes([self.page_field, parameter, count_0, count_1]);
        entry.cdw11 = U32::from_bytes([count_2, count_3, id_low, id_high]);
        entry.cdw12 = U32::new(self.offset as u32);
        entry.cdw13 = U32::new((self.offset >> 32) as u32);
        entry.cdw14 = U32::from_bytes([0, 0, offset_type, self.command_set_field]);
        entry
    }

    /// Which page; `None` for a reserved one, or one of a vendor.
    #[must_use]
    pub fn page(&self) -> Option<LogPageId> {
        LogPageId::from_wire(self.page_field)
    }

    /// Bytes to return: 4 to 16 GiB.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        (self.dwords_minus_one as u64 + 1) * Self::DWORD_BYTES
    }
}

/// Get Features (Base 2.0, 5.15). The value is dword 0 of the completion, or data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetFeatures {
    /// Which feature (FID); see [`GetFeatures::feature`].
    pub feature_field: u8,
    /// Which value of it (SEL, 3 bits); see [`GetFeatures::select`].
    pub select_field: u8,
    /// What the feature makes of it (dword 11).
    pub specific: u32,
}

impl GetFeatures {
    const SELECT_MASK: u8 = 0x7;

    /// The command for the value in use.
    #[must_use]
    pub fn current(feature: FeatureId, specific: u32) -> Self {
        Self {
            feature_field: feature.to_wire(),
            select_field: FeatureSelect::Current.to_wire(),
            specific,
        }
    }

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [feature_field, select, _, _] = entry.cdw10.to_bytes();
        Self {
            feature_field,
            select_field: select & Self::SELECT_MASK,
            specific: entry.cdw11.get(),
        }
    }

    /// The command, with room for this much data.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32, data_bytes: u32) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(AdminOpcode::GetFeatures.to_wire(), command_id, namespace_id)
            .with_data(SglDescriptor::transport(data_bytes));
        entry.cdw10 = U32::from_bytes([self.feature_field, self.select_field & Self::SELECT_MASK, 0, 0]);
        entry.cdw11 = U32::new(self.specific);
        entry
    }

    /// Which feature; `None` for a reserved one, or one of a vendor.
    #[must_use]
    pub fn feature(&self) -> Option<FeatureId> {
        FeatureId::from_wire(self.feature_field)
    }

    /// Which value of it; `None` for a reserved one.
    #[must_use]
    pub fn select(&self) -> Option<FeatureSelect> {
        FeatureSelect::from_wire(self.select_field)
    }
}

/// Set Features (Base 2.0, 5.27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetFeatures {
    /// Which feature (FID); see [`SetFeatures::feature`].
    pub feature_field: u8,
    /// Keep the value through resets (SV).
    pub save: bool,
    /// The value, or part of it (dword 11).
    pub value: u32,
}

impl SetFeatures {
    const SAVE: u8 = 0x80;

    /// The command that sets a value that is not kept.
    #[must_use]
    pub fn new(feature: FeatureId, value: u32) -> Self {
        Self {
            feature_field: feature.to_wire(),
            save: false,
            value,
        }
    }

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [feature_field, _, _, save] = entry.cdw10.to_bytes();
        Self {
            feature_field,
            save: save & Self::SAVE != 0,
            value: entry.cdw11.get(),
        }
    }

    /// The command, with its data, if any, where `data` says.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32, data: SglDescriptor) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(AdminOpcode::SetFeatures.to_wire(), command_id, namespace_id)
            .with_data(data);
        entry.cdw10 = U32::from_bytes([self.feature_field, 0, 0, if self.save { Self::SAVE } else { 0 }]);
        entry.cdw11 = U32::new(self.value);
        entry
    }

    /// Which feature; `None` for a reserved one, or one of a vendor.
    #[must_use]
    pub fn feature(&self) -> Option<FeatureId> {
        FeatureId::from_wire(self.feature_field)
    }
}

/// Abort (Base 2.0, 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Queue of the command to abort (SQID).
    pub queue_id: u16,
    /// The command to abort (CID).
    pub command_id: u16,
}

impl Abort {
    /// Bit of dword 0 of the completion: the command was not aborted.
    pub const NOT_ABORTED: u32 = 1 << 0;

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [queue_low, queue_high, command_low, command_high] = entry.cdw10.to_bytes();
        Self {
            queue_id: u16::from_le_bytes([queue_low, queue_high]),
            command_id: u16::from_le_bytes([command_low, command_high]),
        }
    }

    /// The command, with an identifier of its own.
    #[must_use]
    pub fn to_entry(self, command_id: u16) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(AdminOpcode::Abort.to_wire(), command_id, 0);
        entry.cdw10 = U32::new(u32::from(self.queue_id) | (u32::from(self.command_id) << 16));
        entry
    }
}

/// What Format NVM does with the data (SES; Base 2.0, 5.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecureErase {
    /// Nothing is said (000b).
    #[default]
    None,
    /// Erase (001b).
    UserData,
    /// Erase by forgetting the key (010b).
    Cryptographic,
}

/// Format NVM (Base 2.0, 5.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatNvm {
    /// Index of the LBA format, 6 bits (LBAFL and LBAFU).
    pub format_index: u8,
    /// Metadata follows each block (MSET).
    pub extended_metadata: bool,
    /// Type of protection information, 0 for none, 3 bits (PI).
    pub protection_type: u8,
    /// Protection information comes first in the metadata (PIL).
    pub protection_first: bool,
    /// What becomes of the data (SES).
    pub secure_erase: SecureErase,
}

impl FormatNvm {
    /// The fields of `entry`, which is taken to be this command; `None` if what becomes of the data is
    /// reserved (answer with [`Status::INVALID_FIELD`](crate::wire::status::Status::INVALID_FIELD)).
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Option<Self> {
        let [low, high, _, _] = entry.cdw10.to_bytes();
        let secure_erase = match (high >> 1) & 0x7 {
            0 => SecureErase::None,
            1 => SecureErase::UserData,
            2 => SecureErase::Cryptographic,
            _ => return None,
        };
        Some(Self {
            format_index: (low & 0xf) | (high & 0x30),
            extended_metadata: low & 0x10 != 0,
            protection_type: low >> 5,
            protection_first: high & 1 != 0,
            secure_erase,
        })
    }

    /// The command. Fields of few bits are cut to them.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32) -> SubmissionEntry {
        let secure_erase = match self.secure_erase {
            SecureErase::None => 0,
            SecureErase::UserData => 1 << 1,
            SecureErase::Cryptographic => 2 << 1,
        };
        let low =
            (self.format_index & 0xf) | (u8::from(self.extended_metadata) << 4) | (self.protection_type << 5);
        let high = u8::from(self.protection_first) | secure_erase | (self.format_index & 0x30);
        let mut entry = SubmissionEntry::new(AdminOpcode::FormatNvm.to_wire(), command_id, namespace_id);
        entry.cdw10 = U32::from_bytes([low, high, 0, 0]);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;
    use zerocopy::{FromBytes, IntoBytes};

    #[test]
    fn freezes_identify() {
        let identify = Identify {
            structure_field: IdentifyStructure::CommandSetNamespace.to_wire(),
            controller_id: 0x0102,
            specific_id: 0x0304,
            command_set_field: CommandSetId::Zoned.to_wire(),
        };
        let entry = identify.to_entry(7, 9);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x06, 0x40, 7, 0, 9]),
                (32, &[0, 0x10, 0, 0, 0, 0, 0, 0x5a]),
                (40, &[0x05, 0, 2, 1, 4, 3, 0, 2]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(Identify::from_entry(&entry), identify);
        assert_eq!(identify.structure(), Some(IdentifyStructure::CommandSetNamespace));
        assert_eq!(identify.command_set(), Some(CommandSetId::Zoned));
    }

    #[test]
    fn freezes_get_log_page() {
        let command = GetLogPage {
            specific_parameter: 0x7f,
            retain_event: true,
            specific_id: 0x0102,
            offset_in_entries: true,
            command_set_field: 3,
            ..GetLogPage::new(LogPageId::Ana, 0x0807_0605_0403_0200, 0x0005_0004)
        };
        let entry = command.to_entry(7, 0xffff_ffff);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x02, 0x40, 7, 0, 0xff, 0xff, 0xff, 0xff]),
                (32, &[4, 0, 5, 0, 0, 0, 0, 0x5a]),
                (40, &[0x0c, 0xff, 0x00, 0x40, 0x01, 0x00, 2, 1]),
                (48, &[0, 2, 3, 4, 5, 6, 7, 8]),
                (58, &[0x80, 3]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(GetLogPage::from_entry(&entry), command);
        assert_eq!(command.page(), Some(LogPageId::Ana));
        assert_eq!(command.data_bytes(), 0x0005_0004);
    }

    #[test]
    fn log_lengths_have_bounds() {
        assert_eq!(GetLogPage::new(LogPageId::Error, 0, 0).data_bytes(), 4);
        let longest = GetLogPage::new(LogPageId::Error, 0, u64::MAX);
        assert_eq!(longest.data_bytes(), 1 << 34);
        assert_eq!(longest.to_entry(1, 0).data_pointer.length_bytes.get(), u32::MAX);
    }

    #[test]
    fn freezes_features() {
        let command = GetFeatures {
            feature_field: FeatureId::HostIdentifier.to_wire(),
            select_field: FeatureSelect::SupportedCapabilities.to_wire(),
            specific: 1,
        };
        let entry = command.to_entry(7, 0, 16);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x0a, 0x40, 7]),
                (32, &[16, 0, 0, 0, 0, 0, 0, 0x5a]),
                (40, &[0x81, 3, 0, 0, 1]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(GetFeatures::from_entry(&entry), command);
        assert_eq!(command.select(), Some(FeatureSelect::SupportedCapabilities));

        let command = SetFeatures {
            save: true,
            ..SetFeatures::new(FeatureId::KeepAliveTimer, 0x0102_0304)
        };
        let entry = command.to_entry(7, 0, SglDescriptor::transport(0));
        let expected = at_offsets(
            64,
            &[
                (0, &[0x09, 0x40, 7]),
                (39, &[0x5a]),
                (40, &[0x0f, 0, 0, 0x80, 4, 3, 2, 1]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(SetFeatures::from_entry(&entry), command);
        assert_eq!(command.feature(), Some(FeatureId::KeepAliveTimer));
    }

    #[test]
    fn freezes_abort() {
        let abort = Abort {
            queue_id: 0x0102,
            command_id: 0x0304,
        };
        let entry = abort.to_entry(7);
        let expected = at_offsets(64, &[(0, &[0x08, 0x40, 7]), (39, &[0x5a]), (40, &[2, 1, 4, 3])]);
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(Abort::from_entry(&entry), abort);
    }

    #[test]
    fn freezes_format() {
        let format = FormatNvm {
            format_index: 0x2b,
            extended_metadata: true,
            protection_type: 5,
            protection_first: true,
            secure_erase: SecureErase::Cryptographic,
        };
        let entry = format.to_entry(7, 2);
        // LBAFL Bh, MSET, PI 5; PIL, SES 2, LBAFU 2.
        assert_eq!(entry.as_bytes()[40..44], [0xbb, 0x25, 0, 0]);
        assert_eq!(entry.opcode, 0x80);
        assert_eq!(FormatNvm::from_entry(&entry), Some(format));
        for reserved in 3..8_u8 {
            let mut entry = entry;
            entry.cdw10 = U32::from_bytes([0, reserved << 1, 0, 0]);
            assert_eq!(FormatNvm::from_entry(&entry), None);
        }
    }

    proptest! {
        #[test]
        fn any_entry_is_read(bytes: [u8; 64]) {
            let entry = SubmissionEntry::read_from_bytes(&bytes).unwrap();
            let identify = Identify::from_entry(&entry);
            prop_assert_eq!(Identify::from_entry(&identify.to_entry(1, 1)), identify);
            let log = GetLogPage::from_entry(&entry);
            prop_assert_eq!(GetLogPage::from_entry(&log.to_entry(1, 1)), log);
            let get = GetFeatures::from_entry(&entry);
            prop_assert_eq!(GetFeatures::from_entry(&get.to_entry(1, 1, 0)), get);
            let set = SetFeatures::from_entry(&entry);
            prop_assert_eq!(SetFeatures::from_entry(&set.to_entry(1, 1, SglDescriptor::transport(0))), set);
            let abort = Abort::from_entry(&entry);
            prop_assert_eq!(Abort::from_entry(&abort.to_entry(1)), abort);
            if let Some(format) = FormatNvm::from_entry(&entry) {
                prop_assert_eq!(FormatNvm::from_entry(&format.to_entry(1, 1)), Some(format));
            }
        }
    }
}
