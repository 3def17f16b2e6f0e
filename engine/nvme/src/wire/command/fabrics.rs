//! Fabrics commands: Connect, Property Get and Set (Base 2.0, 6).
//!
//! ```text
//! Connect        40 RECFMT  42 QID  44 SQSIZE (0's based)  46 CATTR  48 KATO (ms)
//! Connect data   0 HOSTID  16 CNTLID  256 SUBNQN  512 HOSTNQN   (1024 bytes)
//! Property Get   40 ATTRIB (2:0 size)  44 OFST              completes with the value in dwords 0 and 1
//! Property Set   40 ATTRIB (2:0 size)  44 OFST  48 VALUE
//! ```

use bitflags::bitflags;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entry::SubmissionEntry;
use super::opcode::FabricsCommandType;
use super::sgl::SglDescriptor;
use crate::wire::nqn::{NQN_FIELD_BYTES, Nqn, NqnError};

/// Size of the data of a Connect command, in bytes (Base 2.0, 6.3).
pub const CONNECT_DATA_BYTES: usize = 1024;

/// Controller identifier by which a host asks for any controller of a subsystem of the dynamic controller
/// model (Base 2.0, 6.3). FFFEh asks for any one of the static model.
pub const DYNAMIC_CONTROLLER: u16 = 0xffff;

bitflags! {
    /// Connect Attributes (CATTR; Base 2.0, 6.3). Bits 1:0 hold the priority class of the queue.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ConnectAttributes: u8 {
        /// The host does without submission queue flow control: SQHD is FFFFh or reserved in every
        /// completion, and a C2HData PDU may carry SUCCESS instead of a completion.
        const DISABLE_QUEUE_FLOW_CONTROL = 1 << 2;
        /// The host can delete single I/O queues with Disconnect.
        const DELETES_SINGLE_QUEUES = 1 << 3;
        /// Bits yet unnamed pass through.
        const _ = !0;
    }
}

/// The Connect command (Base 2.0, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Format of command and data; 0 is the only one defined.
    pub record_format: u16,
    /// The queue to make of this connection: 0 is the admin queue.
    pub queue_id: u16,
    /// Size of the submission queue, 0's based: 0 is not allowed, 31 is the least for an admin queue.
    pub queue_size_minus_one: u16,
    /// Attributes of the queue.
    pub attributes: ConnectAttributes,
    /// Keep alive timeout in ms, 0 for none; admin queue only.
    pub keep_alive_ms: u32,
}

impl Connect {
    /// The only record format defined.
    pub const RECORD_FORMAT: u16 = 0;
    /// Offset of the record format in the command, for [`ConnectRefusal::Command`].
    pub const RECORD_FORMAT_OFFSET: u16 = 40;
    /// Offset of the queue identifier in the command.
    pub const QUEUE_ID_OFFSET: u16 = 42;
    /// Offset of the queue size in the command.
    pub const QUEUE_SIZE_OFFSET: u16 = 44;
    /// Offset of the attributes in the command.
    pub const ATTRIBUTES_OFFSET: u16 = 46;
    /// Offset of the keep alive timeout in the command.
    pub const KEEP_ALIVE_OFFSET: u16 = 48;

    /// The fields of `entry`, which is taken to be a Connect command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [format_low, format_high, queue_low, queue_high] = entry.cdw10.to_bytes();
        let [size_low, size_high, attributes, _] = entry.cdw11.to_bytes();
        Self {
            record_format: u16::from_le_bytes([format_low, format_high]),
            queue_id: u16::from_le_bytes([queue_low, queue_high]),
            queue_size_minus_one: u16::from_le_bytes([size_low, size_high]),
            attributes: ConnectAttributes::from_bits_retain(attributes),
            keep_alive_ms: entry.cdw12.get(),
        }
    }

    /// The command, with its data in the capsule.
    #[must_use]
    pub fn to_entry(&self, command_id: u16) -> SubmissionEntry {
        #[expect(clippy::cast_possible_truncation, reason = "1024 fits")]
        let mut entry = SubmissionEntry::fabrics(FabricsCommandType::Connect, command_id)
            .with_data(SglDescriptor::in_capsule(CONNECT_DATA_BYTES as u32));
        entry.cdw10 = U32::new(u32::from(self.record_format) | (u32::from(self.queue_id) << 16));
        entry.cdw11 =
            U32::new(u32::from(self.queue_size_minus_one) | (u32::from(self.attributes.bits()) << 16));
        entry.cdw12 = U32::new(self.keep_alive_ms);
        entry
    }
}

/// The data of a Connect command (Base 2.0, 6.3 "Connect Command – Data").
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier, the same for all connections of a host (HOSTID).
    pub host_id: [u8; 16],
    /// The controller to connect to; [`DYNAMIC_CONTROLLER`] for the admin queue of a new one.
    pub controller_id: U16,
    reserved_18: [u8; 238],
    /// Field of the subsystem's name; see [`ConnectData::subsystem`].
    pub subsystem_field: [u8; NQN_FIELD_BYTES],
    /// Field of the host's name; see [`ConnectData::host`].
    pub host_field: [u8; NQN_FIELD_BYTES],
    reserved_768: [u8; 256],
}

impl ConnectData {
    /// Offset of the host identifier in the data, for [`ConnectRefusal::Data`].
    pub const HOST_ID_OFFSET: u16 = 0;
    /// Offset of the controller identifier in the data.
    pub const CONTROLLER_ID_OFFSET: u16 = 16;
    /// Offset of the subsystem's name in the data.
    pub const SUBSYSTEM_OFFSET: u16 = 256;
    /// Offset of the host's name in the data.
    pub const HOST_OFFSET: u16 = 512;

    /// The data that names a host, the subsystem it wants, and the controller.
    #[must_use]
    pub fn new(host_id: Uuid, host: &Nqn, subsystem: &Nqn, controller_id: u16) -> Self {
        Self {
            host_id: host_id.into_bytes(),
            controller_id: U16::new(controller_id),
            reserved_18: [0; 238],
            subsystem_field: subsystem.to_field(),
            host_field: host.to_field(),
            reserved_768: [0; 256],
        }
    }

    /// The name of the subsystem to connect to (SUBNQN).
    ///
    /// # Errors
    /// If the field holds no valid name.
    pub fn subsystem(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subsystem_field)
    }

    /// The name of the host (HOSTNQN).
    ///
    /// # Errors
    /// If the field holds no valid name.
    pub fn host(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.host_field)
    }
}

/// Dword 0 of the completion of a Connect that succeeded (Base 2.0, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResult {
    /// The controller connected to (CNTLID).
    pub controller_id: u16,
    /// Authentication and secure channel requirements (AUTHREQ, bits 31:16): bit 1 asks for in-band
    /// authentication, bit 2 for authentication with a secure channel.
    pub authentication: u16,
}

impl ConnectResult {
    /// Bit of `authentication`: the host has to authenticate before any other command (ATR).
    pub const AUTHENTICATION_REQUIRED: u16 = 1 << 1;
    /// Bit of `authentication`: the host has to authenticate and open a secure channel (ASCR).
    pub const SECURE_CHANNEL_REQUIRED: u16 = 1 << 2;

    /// The value to complete with.
    #[must_use]
    pub fn to_result(self) -> u64 {
        u64::from(self.controller_id) | (u64::from(self.authentication) << 16)
    }

    /// What dword 0 of a completion says.
    #[must_use]
    pub fn from_result(dword: u32) -> Self {
        let [id_low, id_high, authentication_low, authentication_high] = dword.to_le_bytes();
        Self {
            controller_id: u16::from_le_bytes([id_low, id_high]),
            authentication: u16::from_le_bytes([authentication_low, authentication_high]),
        }
    }
}

/// Dword 0 of the completion of a Connect with
/// [`Status::CONNECT_INVALID_PARAMETERS`](crate::wire::status::Status::CONNECT_INVALID_PARAMETERS): where the
/// bad parameter is (IPO and IATTR; Base 2.0, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefusal {
    /// At this byte of the submission entry.
    Command {
        /// Offset of the parameter.
        offset: u16,
    },
    /// At this byte of the data.
    Data {
        /// Offset of the parameter.
        offset: u16,
    },
}

impl ConnectRefusal {
    const IN_DATA: u32 = 1 << 16;

    /// The value to complete with.
    #[must_use]
    pub fn to_result(self) -> u64 {
        match self {
            Self::Command { offset } => u64::from(offset),
            Self::Data { offset } => u64::from(offset) | u64::from(Self::IN_DATA),
        }
    }

    /// What dword 0 of a completion says.
    #[must_use]
    pub fn from_result(dword: u32) -> Self {
        let [low, high, ..] = dword.to_le_bytes();
        let offset = u16::from_le_bytes([low, high]);
        if dword & Self::IN_DATA == 0 {
            Self::Command { offset }
        } else {
            Self::Data { offset }
        }
    }
}

/// Size of a property in Property Get and Set (ATTRIB; Base 2.0, 6.5 and 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropertySize {
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl PropertySize {
    const MASK: u8 = 0x07;

    fn from_entry(entry: &SubmissionEntry) -> Option<Self> {
        let [attributes, ..] = entry.cdw10.to_bytes();
        match attributes & Self::MASK {
            0 => Some(Self::Four),
            1 => Some(Self::Eight),
            _ => None,
        }
    }

    fn to_dword(self) -> U32 {
        U32::new(match self {
            Self::Four => 0,
            Self::Eight => 1,
        })
    }
}

/// Property Get (Base 2.0, 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyGet {
    /// Size of the property.
    pub size: PropertySize,
    /// Its offset; see [`Property`](crate::wire::properties::Property).
    pub offset: u32,
}

impl PropertyGet {
    /// The fields of `entry`, which is taken to be a Property Get; `None` if the size is reserved (answer
    /// with [`Status::INVALID_FIELD`](crate::wire::status::Status::INVALID_FIELD)).
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Option<Self> {
        Some(Self {
            size: PropertySize::from_entry(entry)?,
            offset: entry.cdw11.get(),
        })
    }

    /// The command.
    #[must_use]
    pub fn to_entry(self, command_id: u16) -> SubmissionEntry {
        let mut entry = SubmissionEntry::fabrics(FabricsCommandType::PropertyGet, command_id);
        entry.cdw10 = self.size.to_dword();
        entry.cdw11 = U32::new(self.offset);
        entry
    }
}

/// Property Set (Base 2.0, 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySet {
    /// Size of the property.
    pub size: PropertySize,
    /// Its offset; see [`Property`](crate::wire::properties::Property).
    pub offset: u32,
    /// The value to set; of a property of 4 bytes, the lower half.
    pub value: u64,
}

impl PropertySet {
    /// The fields of `entry`, which is taken to be a Property Set; `None` if the size is reserved (answer
    /// with [`Status::INVALID_FIELD`](crate::wire::status::Status::INVALID_FIELD)). The upper half of a value
    /// of 4 bytes is dropped.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Option<Self> {
        let size = PropertySize::from_entry(entry)?;
        let low = u64::from(entry.cdw12.get());
        let value = match size {
            PropertySize::Four => low,
            PropertySize::Eight => low | (u64::from(entry.cdw13.get()) << 32),
        };
        Some(Self {
            size,
            offset: entry.cdw11.get(),
            value,
        })
    }

    /// The command.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the value is split in two dwords")]
    pub fn to_entry(self, command_id: u16) -> SubmissionEntry {
        let mut entry = SubmissionEntry::fabrics(FabricsCommandType::PropertySet, command_id);
        entry.cdw10 = self.size.to_dword();
        entry.cdw11 = U32::new(self.offset);
        entry.cdw12 = U32::new(self.value as u32);
        if self.size == PropertySize::Eight {
            entry.cdw13 = U32::new((self.value >> 32) as u32);
        }
        entry
    }
}

const _: () = {
    assert!(size_of::<ConnectData>() == CONNECT_DATA_BYTES);
    assert!(std::mem::offset_of!(ConnectData, controller_id) == ConnectData::CONTROLLER_ID_OFFSET as usize);
    assert!(std::mem::offset_of!(ConnectData, subsystem_field) == ConnectData::SUBSYSTEM_OFFSET as usize);
    assert!(std::mem::offset_of!(ConnectData, host_field) == ConnectData::HOST_OFFSET as usize);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;

    #[test]
    fn freezes_connect() {
        let connect = Connect {
            record_format: 0,
            queue_id: 0x0102,
            queue_size_minus_one: 127,
            attributes: ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL,
            keep_alive_ms: 120_000,
        };
        let entry = connect.to_entry(0x0304);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x7f, 0x40, 0x04, 0x03, 0x01]),
                (32, &[0x00, 0x04, 0, 0, 0, 0, 0, 0x01]),
                (42, &[0x02, 0x01, 0x7f, 0x00, 0x04]),
                (48, &[0xc0, 0xd4, 0x01, 0x00]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(Connect::from_entry(&entry), connect);
    }

    #[test]
    fn freezes_connect_data() {
        let host: Nqn = "nqn.2026-11.io.pollux:host".parse().unwrap();
        let subsystem: Nqn = "nqn.2026-11.io.pollux:serve".parse().unwrap();
        let host_id = Uuid::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let data = ConnectData::new(host_id, &host, &subsystem, DYNAMIC_CONTROLLER);
        let expected = at_offsets(
            1024,
            &[
                (
                    0,
                    &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0xff, 0xff],
                ),
                (256, b"nqn.2026-11.io.pollux:serve"),
                (512, b"nqn.2026-11.io.pollux:host"),
            ],
        );
        assert_eq!(data.as_bytes(), expected);
        assert_eq!(data.subsystem(), Ok(subsystem));
        assert_eq!(data.host(), Ok(host));
    }

    #[test]
    fn freezes_connect_results() {
        let result = ConnectResult {
            controller_id: 0x0102,
            authentication: ConnectResult::AUTHENTICATION_REQUIRED,
        };
        assert_eq!(result.to_result(), 0x0002_0102);
        assert_eq!(ConnectResult::from_result(0x0002_0102), result);
        let refusal = ConnectRefusal::Data {
            offset: ConnectData::SUBSYSTEM_OFFSET,
        };
        assert_eq!(refusal.to_result(), 0x0001_0100);
        assert_eq!(ConnectRefusal::from_result(0x0001_0100), refusal);
        let refusal = ConnectRefusal::Command {
            offset: Connect::QUEUE_ID_OFFSET,
        };
        assert_eq!(refusal.to_result(), 42);
        assert_eq!(ConnectRefusal::from_result(42), refusal);
    }

    #[test]
    fn freezes_property_commands() {
        let get = PropertyGet {
            size: PropertySize::Eight,
            offset: 0,
        };
        let entry = get.to_entry(7);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x7f, 0x40, 7, 0, 0x04]),
                (39, &[0x5a]),
                (40, &[1]),
                (44, &[0]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(PropertyGet::from_entry(&entry), Some(get));

        let set = PropertySet {
            size: PropertySize::Four,
            offset: 0x14,
            value: 0x0046_0001,
        };
        let entry = set.to_entry(8);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x7f, 0x40, 8, 0, 0x00]),
                (39, &[0x5a]),
                (44, &[0x14, 0, 0, 0, 0x01, 0x00, 0x46, 0x00]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(PropertySet::from_entry(&entry), Some(set));
    }

    #[test]
    fn refuses_reserved_property_sizes() {
        for size in 2..8 {
            let mut entry = SubmissionEntry::fabrics(FabricsCommandType::PropertyGet, 1);
            entry.cdw10 = U32::new(size);
            assert_eq!(PropertyGet::from_entry(&entry), None);
            assert_eq!(PropertySet::from_entry(&entry), None);
        }
    }

    proptest! {
        #[test]
        fn every_connect_survives(
            record_format: u16, queue_id: u16, queue_size_minus_one: u16,
            attributes: u8, keep_alive_ms: u32, id: u16,
        ) {
            let attributes = ConnectAttributes::from_bits_retain(attributes);
            let connect =
                Connect { record_format, queue_id, queue_size_minus_one, attributes, keep_alive_ms };
            prop_assert_eq!(Connect::from_entry(&connect.to_entry(id)), connect);
        }

        #[test]
        fn every_property_set_survives(eight: bool, offset: u32, value: u64) {
            let (size, value) =
                if eight { (PropertySize::Eight, value) } else { (PropertySize::Four, value & 0xffff_ffff) };
            let set = PropertySet { size, offset, value };
            prop_assert_eq!(PropertySet::from_entry(&set.to_entry(1)), Some(set));
        }

        #[test]
        fn every_result_survives(dword: u32) {
            let masked = dword & 0x0001_ffff;
            prop_assert_eq!(ConnectRefusal::from_result(dword).to_result(), u64::from(masked));
            prop_assert_eq!(ConnectResult::from_result(dword).to_result(), u64::from(dword));
        }
    }
}
