//! The encoders: each writes a header with its digest and padding to the start of a buffer, and returns how
//! many bytes that is, which is where the data belongs. `None` means the buffer is too short
//! ([`HEADER_BYTES_MAX`] always suffices, and [`TERMINATE_DATA_BYTES_MAX`] more for a termination request);
//! nothing is written then.
//!
//! Data and data digest are the caller's to append: [`Digest`](crate::wire::digest::Digest) computes it over
//! scattered data.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[cfg(doc)]
use super::layout::HEADER_BYTES_MAX;
use super::layout::{
    CommandCapsule, CommonHeader, ControllerData, DataAlignment, Digests, Direction, HostData,
    InitializeRequest, InitializeResponse, PduFlags, PduType, ReadyToTransfer, ResponseCapsule,
    TERMINATE_DATA_BYTES_MAX, TerminateRequest,
};
use super::violation::Violation;
use crate::wire::command::{CompletionEntry, SubmissionEntry};
use crate::wire::digest::{DIGEST_BYTES, crc32c};

/// What was agreed for the PDUs that are sent on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// Headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// Alignment of data: the receiver's, HPDA at a controller and CPDA at a host.
    pub data_alignment: DataAlignment,
}

impl Framing {
    /// Length in bytes of a header of this type with its digest, without padding.
    #[inline]
    #[must_use]
    pub const fn header_bytes(&self, pdu_type: PduType) -> usize {
        let header_bytes = pdu_type.header_bytes();
        if self.header_digest && pdu_type.flags().contains(PduFlags::HEADER_DIGEST) {
            header_bytes + DIGEST_BYTES
        } else {
            header_bytes
        }
    }

    /// Where the data of a PDU of this type starts, in bytes (PDO).
    #[inline]
    #[must_use]
    pub const fn data_offset(&self, pdu_type: PduType) -> usize {
        self.data_alignment.round_up(self.header_bytes(pdu_type))
    }

    /// Length in bytes of the digest behind data.
    #[inline]
    #[must_use]
    pub const fn data_digest_bytes(&self) -> usize {
        if self.data_digest { DIGEST_BYTES } else { 0 }
    }

    #[inline]
    fn common(&self, pdu_type: PduType, flags: PduFlags) -> CommonHeader {
        let header_digest = if self.header_digest {
            PduFlags::HEADER_DIGEST
        } else {
            PduFlags::empty()
        };
        #[expect(clippy::cast_possible_truncation, reason = "headers have at most 128 bytes")]
        CommonHeader {
            pdu_type: pdu_type.to_wire(),
            flags: flags.union(header_digest.intersection(pdu_type.flags())).bits(),
            header_bytes: pdu_type.header_bytes() as u8,
            data_offset: 0,
            pdu_bytes: U32::new(self.header_bytes(pdu_type) as u32),
        }
    }

    /// As [`Framing::common`], of a PDU with `data_bytes` of data. The length wraps at 4 GiB, which no limit
    /// comes near.
    #[inline]
    fn common_with_data(&self, pdu_type: PduType, flags: PduFlags, data_bytes: u32) -> CommonHeader {
        let data_digest = if self.data_digest {
            PduFlags::DATA_DIGEST
        } else {
            PduFlags::empty()
        };
        let data_offset = self.data_offset(pdu_type);
        #[expect(clippy::cast_possible_truncation, reason = "the data starts within 144 bytes")]
        CommonHeader {
            data_offset: data_offset as u8,
            pdu_bytes: U32::new(data_bytes.wrapping_add((data_offset + self.data_digest_bytes()) as u32)),
            ..self.common(pdu_type, flags.union(data_digest))
        }
    }

    /// Writes header, digest and zeros up to `end`.
    #[inline(always)]
    fn write<H>(&self, header: H, end: usize, out: &mut [u8]) -> Option<usize>
    where
        H: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
    {
        let out = out.get_mut(..end)?;
        // Assigned in place: copied from the stack, the header would wait for its own fields to be stored.
        let (slot, rest) = H::mut_from_prefix(out).ok()?;
        *slot = header;
        let padding = if self.header_digest {
            let (digest_slot, padding) = rest.split_first_chunk_mut::<DIGEST_BYTES>()?;
            *digest_slot = crc32c(slot.as_bytes()).to_le_bytes();
            padding
        } else {
            rest
        };
        if !padding.is_empty() {
            padding.fill(0);
        }
        Some(end)
    }
}

/// Initialization and termination PDUs are framed so, whatever was agreed.
const PLAIN: Framing = Framing {
    header_digest: false,
    data_digest: false,
    data_alignment: DataAlignment::NONE,
};

/// Writes an ICReq.
///
/// `max_ready_to_transfer` is the number of R2Ts to bear for one command, at least 1 (0 counts as 1).
#[must_use]
pub fn encode_initialize_request(
    host_data_alignment: DataAlignment,
    digests: Digests,
    max_ready_to_transfer: u32,
    out: &mut [u8],
) -> Option<usize> {
    let request = InitializeRequest {
        common: PLAIN.common(PduType::InitializeRequest, PduFlags::empty()),
        format_version: U16::ZERO,
        host_data_alignment: host_data_alignment.to_wire(),
        digests: digests.bits(),
        max_ready_to_transfer_minus_one: U32::new(max_ready_to_transfer.saturating_sub(1)),
        reserved: [0; 112],
    };
    PLAIN.write(request, size_of::<InitializeRequest>(), out)
}

/// Writes an ICResp. `max_h2c_data_bytes` is to be a multiple of 4 and at least 4096.
#[must_use]
pub fn encode_initialize_response(
    controller_data_alignment: DataAlignment,
    digests: Digests,
    max_h2c_data_bytes: u32,
    out: &mut [u8],
) -> Option<usize> {
    let response = InitializeResponse {
        common: PLAIN.common(PduType::InitializeResponse, PduFlags::empty()),
        format_version: U16::ZERO,
        controller_data_alignment: controller_data_alignment.to_wire(),
        digests: digests.bits(),
        max_h2c_data_bytes: U32::new(max_h2c_data_bytes),
        reserved: [0; 112],
    };
    PLAIN.write(response, size_of::<InitializeResponse>(), out)
}

/// Writes a termination request that travels in `direction`, whole: `offender` is the header of the PDU in
/// error as it was received, of which the first 128 bytes go along.
#[must_use]
pub fn encode_terminate_request(
    direction: Direction,
    violation: &Violation,
    offender: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let pdu_type = match direction {
        Direction::HostToController => PduType::HostTerminate,
        Direction::ControllerToHost => PduType::ControllerTerminate,
    };
    let offender = offender.get(..TERMINATE_DATA_BYTES_MAX).unwrap_or(offender);
    let end = size_of::<TerminateRequest>() + offender.len();
    #[expect(clippy::cast_possible_truncation, reason = "at most 152")]
    let common = CommonHeader {
        pdu_bytes: U32::new(end as u32),
        ..PLAIN.common(pdu_type, PduFlags::empty())
    };
    let request = TerminateRequest {
        common,
        status_field: U16::new(violation.status().to_wire()),
        information: U32::new(violation.information()),
        reserved: [0; 10],
    };
    let out = out.get_mut(..end)?;
    let written = PLAIN.write(request, size_of::<TerminateRequest>(), out)?;
    out.get_mut(written..)?.copy_from_slice(offender);
    Some(end)
}

/// Writes the header of a CapsuleCmd with `in_capsule_bytes` of data, 0 for none.
#[inline]
#[must_use]
pub fn encode_command(
    entry: &SubmissionEntry,
    in_capsule_bytes: u32,
    framing: &Framing,
    out: &mut [u8],
) -> Option<usize> {
    let (common, end) = if in_capsule_bytes == 0 {
        (
            framing.common(PduType::Command, PduFlags::empty()),
            framing.header_bytes(PduType::Command),
        )
    } else {
        (
            framing.common_with_data(PduType::Command, PduFlags::empty(), in_capsule_bytes),
            framing.data_offset(PduType::Command),
        )
    };
    framing.write(
        CommandCapsule {
            common,
            entry: *entry,
        },
        end,
        out,
    )
}

/// Writes a CapsuleResp.
#[inline]
#[must_use]
pub fn encode_response(entry: &CompletionEntry, framing: &Framing, out: &mut [u8]) -> Option<usize> {
    let common = framing.common(PduType::Response, PduFlags::empty());
    framing.write(
        ResponseCapsule {
            common,
            entry: *entry,
        },
        framing.header_bytes(PduType::Response),
        out,
    )
}

/// A piece of the data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRange {
    /// The command.
    pub command_id: u16,
    /// Where the piece starts, in bytes from the start of the command's data; a multiple of 4.
    pub offset_bytes: u32,
    /// Its length in bytes, at least 1.
    pub length_bytes: u32,
}

/// Writes the header of an H2CData PDU that answers the R2T with `transfer_tag`; `last` if it is the last for
/// that R2T.
#[inline]
#[must_use]
pub fn encode_host_data(
    range: DataRange,
    transfer_tag: u16,
    last: bool,
    framing: &Framing,
    out: &mut [u8],
) -> Option<usize> {
    let flags = if last { PduFlags::LAST } else { PduFlags::empty() };
    let data = HostData {
        common: framing.common_with_data(PduType::HostData, flags, range.length_bytes),
        command_id: U16::new(range.command_id),
        transfer_tag: U16::new(transfer_tag),
        offset_bytes: U32::new(range.offset_bytes),
        length_bytes: U32::new(range.length_bytes),
        reserved: [0; 4],
    };
    framing.write(data, framing.data_offset(PduType::HostData), out)
}

/// Whether a C2HData PDU is the last of its command, and whether it stands for the completion too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEnd {
    /// More follows.
    More,
    /// The last; a CapsuleResp follows.
    Last,
    /// The last, and the command succeeded: no CapsuleResp follows. Only where the host disabled queue flow
    /// control.
    LastAndSuccess,
}

/// Writes the header of a C2HData PDU.
#[inline]
#[must_use]
pub fn encode_controller_data(
    range: DataRange,
    data_end: DataEnd,
    framing: &Framing,
    out: &mut [u8],
) -> Option<usize> {
    let flags = match data_end {
        DataEnd::More => PduFlags::empty(),
        DataEnd::Last => PduFlags::LAST,
        DataEnd::LastAndSuccess => PduFlags::LAST.union(PduFlags::SUCCESS),
    };
    let data = ControllerData {
        common: framing.common_with_data(PduType::ControllerData, flags, range.length_bytes),
        command_id: U16::new(range.command_id),
        reserved_10: [0; 2],
        offset_bytes: U32::new(range.offset_bytes),
        length_bytes: U32::new(range.length_bytes),
        reserved_20: [0; 4],
    };
    framing.write(data, framing.data_offset(PduType::ControllerData), out)
}

/// Writes an R2T that asks for `range`; H2CData PDUs bring `transfer_tag` back.
#[inline]
#[must_use]
pub fn encode_ready_to_transfer(
    range: DataRange,
    transfer_tag: u16,
    framing: &Framing,
    out: &mut [u8],
) -> Option<usize> {
    let ready = ReadyToTransfer {
        common: framing.common(PduType::ReadyToTransfer, PduFlags::empty()),
        command_id: U16::new(range.command_id),
        transfer_tag: U16::new(transfer_tag),
        offset_bytes: U32::new(range.offset_bytes),
        length_bytes: U32::new(range.length_bytes),
        reserved: [0; 4],
    };
    framing.write(ready, framing.header_bytes(PduType::ReadyToTransfer), out)
}
