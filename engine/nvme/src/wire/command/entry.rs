//! The 64-byte submission entry and the 16-byte completion entry.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::opcode::{FabricsCommandType, OPCODE_FABRICS};
use super::sgl::SglDescriptor;
use crate::wire::status::Status;

/// Fused operation, byte 1 bits 1:0 (Base 2.0, 3.3.3.1 and 3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// A command of its own.
    None,
    /// The first of two.
    First,
    /// The second of two.
    Second,
    /// The reserved value.
    Reserved,
}

/// Byte 1 bits 7:6 (PSDT): SGLs for data, metadata pointer is a contiguous buffer. The value fabrics demand.
const DATA_TRANSFER_SGL: u8 = 0b01 << 6;
const DATA_TRANSFER_SHIFT: u32 = 6;
const FUSE: u8 = 0b11;

/// A command (Base 2.0, 3.3.3.1 "Submission Queue Entry").
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SubmissionEntry {
    /// Opcode; its meaning depends on the queue. See [`AdminOpcode`](super::AdminOpcode),
    /// [`IoOpcode`](super::IoOpcode).
    pub opcode: u8,
    /// Fused operation (bits 1:0) and kind of data pointer (bits 7:6).
    pub flags: u8,
    /// Command identifier, unique among the outstanding commands of a queue; the host may choose any bits.
    pub command_id: U16,
    /// Namespace identifier; for fabrics commands, the command type in the first byte.
    pub namespace_id: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer; not used by NVMe/TCP.
    pub metadata_pointer: U64,
    /// Data pointer (SGL1).
    pub data_pointer: SglDescriptor,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

impl SubmissionEntry {
    /// Size on the wire, in bytes.
    pub const BYTES: usize = 64;

    /// A command with its opcode, identifier and namespace, its data pointer an SGL for no data, and zeros
    /// elsewhere.
    #[inline]
    #[must_use]
    pub fn new(opcode: u8, command_id: u16, namespace_id: u32) -> Self {
        Self {
            opcode,
            flags: DATA_TRANSFER_SGL,
            command_id: U16::new(command_id),
            namespace_id: U32::new(namespace_id),
            data_pointer: SglDescriptor::transport(0),
            ..Self::default()
        }
    }

    /// A fabrics command of this type, otherwise as [`SubmissionEntry::new`].
    #[inline]
    #[must_use]
    pub fn fabrics(command_type: FabricsCommandType, command_id: u16) -> Self {
        Self::new(OPCODE_FABRICS, command_id, u32::from(command_type.to_wire()))
    }

    /// The same with this data pointer.
    #[inline]
    #[must_use]
    pub fn with_data(mut self, data_pointer: SglDescriptor) -> Self {
        self.data_pointer = data_pointer;
        self
    }

    /// The same as a half of a fused pair.
    #[inline]
    #[must_use]
    pub fn with_fuse(mut self, fuse: Fuse) -> Self {
        self.flags = (self.flags & !FUSE)
            | match fuse {
                Fuse::None => 0,
                Fuse::First => 1,
                Fuse::Second => 2,
                Fuse::Reserved => 3,
            };
        self
    }

    /// Whether, and which half of, a fused pair this is.
    #[inline]
    #[must_use]
    pub fn fuse(&self) -> Fuse {
        match self.flags & FUSE {
            0 => Fuse::None,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Whether the data pointer is an SGL (PSDT 01b or 10b), as it must be over fabrics. Fabrics commands
    /// themselves have the byte reserved (Base 2.0, 6): check admin and I/O commands only.
    #[inline]
    #[must_use]
    pub fn uses_sgl(&self) -> bool {
        matches!(self.flags >> DATA_TRANSFER_SHIFT, 0b01 | 0b10)
    }

    /// The fabrics command type, byte 4 (Base 2.0, 6); `None` for other opcodes and unknown types.
    #[inline]
    #[must_use]
    pub fn fabrics_command_type(&self) -> Option<FabricsCommandType> {
        if self.opcode != OPCODE_FABRICS {
            return None;
        }
        let [command_type, ..] = self.namespace_id.to_bytes();
        FabricsCommandType::from_wire(command_type)
    }
}

/// A completion (Base 2.0, 3.3.3.2 "Common Completion Queue Entry").
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CompletionEntry {
    /// Dwords 0 and 1, what the command returns: most use the lower half only.
    pub result: U64,
    /// Submission queue head pointer: how far the controller has taken commands.
    pub submission_queue_head: U16,
    /// Submission queue identifier; reserved over fabrics.
    pub submission_queue_id: U16,
    /// Command identifier of the command that completed.
    pub command_id: U16,
    /// Status and phase tag; see [`CompletionEntry::status`].
    pub status_field: U16,
}

impl CompletionEntry {
    /// Size on the wire, in bytes.
    pub const BYTES: usize = 16;

    /// A completion that returns `result`.
    #[inline]
    #[must_use]
    pub fn new(command_id: u16, status: Status, result: u64) -> Self {
        Self {
            result: U64::new(result),
            command_id: U16::new(command_id),
            status_field: U16::new(status.to_field()),
            ..Self::default()
        }
    }

    /// The same with this submission queue head.
    #[inline]
    #[must_use]
    pub fn with_queue_head(mut self, head: u16) -> Self {
        self.submission_queue_head = U16::new(head);
        self
    }

    /// How the command ended.
    #[inline]
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_field(self.status_field.get())
    }

    /// Dword 0 alone.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is asked for"
    )]
    pub fn result_low(&self) -> u32 {
        self.result.get() as u32
    }
}

const _: () = {
    assert!(size_of::<SubmissionEntry>() == SubmissionEntry::BYTES);
    assert!(std::mem::offset_of!(SubmissionEntry, command_id) == 2);
    assert!(std::mem::offset_of!(SubmissionEntry, namespace_id) == 4);
    assert!(std::mem::offset_of!(SubmissionEntry, cdw2) == 8);
    assert!(std::mem::offset_of!(SubmissionEntry, metadata_pointer) == 16);
    assert!(std::mem::offset_of!(SubmissionEntry, data_pointer) == 24);
    assert!(std::mem::offset_of!(SubmissionEntry, cdw10) == 40);
    assert!(std::mem::offset_of!(SubmissionEntry, cdw15) == 60);
    assert!(size_of::<CompletionEntry>() == CompletionEntry::BYTES);
    assert!(std::mem::offset_of!(CompletionEntry, submission_queue_head) == 8);
    assert!(std::mem::offset_of!(CompletionEntry, submission_queue_id) == 10);
    assert!(std::mem::offset_of!(CompletionEntry, command_id) == 12);
    assert!(std::mem::offset_of!(CompletionEntry, status_field) == 14);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;

    #[test]
    fn freezes_the_submission_entry() {
        let mut entry = SubmissionEntry::new(0x01, 0x1234, 0x0000_0005)
            .with_data(SglDescriptor::transport(0x2000))
            .with_fuse(Fuse::Second);
        entry.cdw2 = U32::new(0x2222_2221);
        entry.cdw3 = U32::new(0x3333_3331);
        entry.metadata_pointer = U64::new(0x0807_0605_0403_0201);
        entry.cdw10 = U32::new(0x1010_1011);
        entry.cdw11 = U32::new(0x1111_1112);
        entry.cdw12 = U32::new(0x1212_1213);
        entry.cdw13 = U32::new(0x1313_1314);
        entry.cdw14 = U32::new(0x1414_1415);
        entry.cdw15 = U32::new(0x1515_1516);
        let expected = at_offsets(
            64,
            &[
                (0, &[0x01, 0x42, 0x34, 0x12, 5, 0, 0, 0]),
                (8, &[0x21, 0x22, 0x22, 0x22, 0x31, 0x33, 0x33, 0x33]),
                (16, &[1, 2, 3, 4, 5, 6, 7, 8]),
                (32, &[0x00, 0x20, 0, 0, 0, 0, 0, 0x5a]),
                (40, &[0x11, 0x10, 0x10, 0x10, 0x12, 0x11, 0x11, 0x11]),
                (48, &[0x13, 0x12, 0x12, 0x12, 0x14, 0x13, 0x13, 0x13]),
                (56, &[0x15, 0x14, 0x14, 0x14, 0x16, 0x15, 0x15, 0x15]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        assert!(entry.uses_sgl());
        assert_eq!(entry.fuse(), Fuse::Second);
    }

    #[test]
    fn reads_every_value_of_the_flags() {
        for flags in 0..=u8::MAX {
            let entry = SubmissionEntry {
                flags,
                ..SubmissionEntry::default()
            };
            assert_eq!(entry.uses_sgl(), matches!(flags & 0xc0, 0x40 | 0x80));
            assert_eq!(entry.with_fuse(entry.fuse()).flags, flags);
        }
    }

    #[test]
    fn tells_the_fabrics_command_type() {
        let entry = SubmissionEntry::fabrics(FabricsCommandType::Disconnect, 3);
        assert_eq!(entry.as_bytes()[..5], [0x7f, 0x40, 3, 0, 0x08]);
        assert_eq!(entry.fabrics_command_type(), Some(FabricsCommandType::Disconnect));
        assert_eq!(SubmissionEntry::new(0x06, 3, 1).fabrics_command_type(), None);
        assert_eq!(
            SubmissionEntry::new(OPCODE_FABRICS, 3, 0xee).fabrics_command_type(),
            None
        );
    }

    #[test]
    fn freezes_the_completion_entry() {
        let completion = CompletionEntry::new(
            0x1234,
            Status::LBA_OUT_OF_RANGE.without_retry(),
            0x0807_0605_0403_0201,
        )
        .with_queue_head(0x0a0b);
        assert_eq!(
            completion.as_bytes(),
            [1, 2, 3, 4, 5, 6, 7, 8, 0x0b, 0x0a, 0, 0, 0x34, 0x12, 0x00, 0x81]
        );
        assert_eq!(completion.status(), Status::LBA_OUT_OF_RANGE.without_retry());
        assert_eq!(completion.result_low(), 0x0403_0201);
    }
}
