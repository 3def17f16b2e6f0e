//! The headers of all PDUs, byte by byte.

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::violation::FatalErrorStatus;
use crate::wire::command::{CompletionEntry, SubmissionEntry};
use crate::wire::digest::DIGEST_BYTES;
use crate::wire::wire_enum::wire_enum;

wire_enum! {
    /// PDU types (TCP 3.6.2).
    pub enum PduType: u8 {
        /// ICReq: the host asks for a connection.
        InitializeRequest = 0x00,
        /// ICResp: the controller agrees.
        InitializeResponse = 0x01,
        /// H2CTermReq: the host found a fatal error.
        HostTerminate = 0x02,
        /// C2HTermReq: the controller found a fatal error.
        ControllerTerminate = 0x03,
        /// CapsuleCmd: a command.
        Command = 0x04,
        /// CapsuleResp: a completion.
        Response = 0x05,
        /// H2CData: data of a command, as an R2T allowed.
        HostData = 0x06,
        /// C2HData: data of a command.
        ControllerData = 0x07,
        /// R2T: the controller is ready for data.
        ReadyToTransfer = 0x09,
    }
}

/// Which way a PDU travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the host; a target receives it.
    HostToController,
    /// From the controller; an initiator receives it.
    ControllerToHost,
}

impl PduType {
    /// Which way this type travels.
    #[inline]
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::InitializeRequest | Self::HostTerminate | Self::Command | Self::HostData => {
                Direction::HostToController
            }
            Self::InitializeResponse
            | Self::ControllerTerminate
            | Self::Response
            | Self::ControllerData
            | Self::ReadyToTransfer => Direction::ControllerToHost,
        }
    }

    /// Length of the header in bytes (HLEN).
    #[inline]
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::InitializeRequest => size_of::<InitializeRequest>(),
            Self::InitializeResponse => size_of::<InitializeResponse>(),
            Self::HostTerminate | Self::ControllerTerminate => size_of::<TerminateRequest>(),
            Self::Command => size_of::<CommandCapsule>(),
            Self::Response => size_of::<ResponseCapsule>(),
            Self::HostData => size_of::<HostData>(),
            Self::ControllerData => size_of::<ControllerData>(),
            Self::ReadyToTransfer => size_of::<ReadyToTransfer>(),
        }
    }

    /// Flags that mean something in this type; all others are reserved.
    #[inline]
    #[must_use]
    pub const fn flags(self) -> PduFlags {
        match self {
            Self::InitializeRequest
            | Self::InitializeResponse
            | Self::HostTerminate
            | Self::ControllerTerminate => PduFlags::empty(),
            Self::Response | Self::ReadyToTransfer => PduFlags::HEADER_DIGEST,
            Self::Command => PduFlags::HEADER_DIGEST.union(PduFlags::DATA_DIGEST),
            Self::HostData => PduFlags::HEADER_DIGEST
                .union(PduFlags::DATA_DIGEST)
                .union(PduFlags::LAST),
            Self::ControllerData => PduFlags::all(),
        }
    }
}

bitflags! {
    /// FLAGS of the common header (TCP 3.6.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PduFlags: u8 {
        /// HDGSTF: a digest follows the header.
        const HEADER_DIGEST = 1 << 0;
        /// DDGSTF: a digest follows the data.
        const DATA_DIGEST = 1 << 1;
        /// LAST_PDU: the last data PDU of the transfer (H2CData: of the R2T; C2HData: of the command).
        const LAST = 1 << 2;
        /// SUCCESS: the command succeeded, and no completion follows (C2HData with LAST_PDU only).
        const SUCCESS = 1 << 3;
    }
}

bitflags! {
    /// DGST of ICReq and ICResp: the digests asked for, and the digests agreed to (TCP 3.6.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Digests: u8 {
        /// HDGST_ENABLE: headers have digests.
        const HEADER = 1 << 0;
        /// DDGST_ENABLE: data has digests.
        const DATA = 1 << 1;
    }
}

/// The least MAXH2CDATA a controller may announce, in bytes (TCP 3.6.2, ICResp).
pub const MAX_H2C_DATA_BYTES_MIN: u32 = 4096;

/// In-capsule data that every controller takes in fabrics and admin commands, in bytes (TCP 3.3.1 "Capsules
/// and SGLs").
pub const IN_CAPSULE_DATA_BYTES_ADMIN: u32 = 8192;

/// The longest header with digest and padding, in bytes: what an encoder may write at most. A command capsule
/// whose header and digest end at 76 has its data at 144 if that is to be aligned to 72.
pub const HEADER_BYTES_MAX: usize = header_bytes_max();

const fn header_bytes_max() -> usize {
    let header_end = size_of::<CommandCapsule>() + DIGEST_BYTES;
    let mut most = size_of::<InitializeRequest>();
    let mut wire = 0;
    while let Some(alignment) = DataAlignment::from_wire(wire) {
        let data_offset = alignment.round_up(header_end);
        if data_offset > most {
            most = data_offset;
        }
        wire += 1;
    }
    most
}

/// The most data in a termination request, in bytes (TCP 3.6.2: PLEN is at most 152).
pub const TERMINATE_DATA_BYTES_MAX: usize = 128;

/// Alignment of data within PDUs, as HPDA and CPDA tell it: 0's based, in dwords, at most 31 (TCP 3.6.2,
/// ICReq and ICResp).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataAlignment(u8);

impl DataAlignment {
    const WIRE_MAX: u8 = 31;
    const UNIT_BYTES: usize = 4;

    /// No more than the least alignment, 4 bytes, which every header has anyway.
    pub const NONE: Self = Self(0);

    /// The alignment that HPDA or CPDA tells; `None` above 31.
    #[inline]
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        if value <= Self::WIRE_MAX {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The value of HPDA or CPDA.
    #[inline]
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self.0
    }

    /// The alignment in bytes: 4 to 128.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> usize {
        (self.0 as usize + 1) * Self::UNIT_BYTES
    }

    /// The first aligned offset that is not below `offset`.
    #[inline]
    #[must_use]
    pub const fn round_up(self, offset: usize) -> usize {
        if self.0 == 0 {
            offset.next_multiple_of(Self::UNIT_BYTES)
        } else {
            offset.next_multiple_of(self.bytes())
        }
    }

    /// Whether data may start at `offset`.
    #[inline]
    #[must_use]
    pub const fn is_aligned(self, offset: usize) -> bool {
        if self.0 == 0 {
            offset.is_multiple_of(Self::UNIT_BYTES)
        } else {
            offset.is_multiple_of(self.bytes())
        }
    }
}

/// What every header starts with (TCP 3.6.2 "Common Header").
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU-Type.
    pub pdu_type: u8,
    /// FLAGS; see [`PduFlags`].
    pub flags: u8,
    /// HLEN: length of the header without digest, in bytes.
    pub header_bytes: u8,
    /// PDO: where the data starts, in bytes from the start of the PDU; reserved without data.
    pub data_offset: u8,
    /// PLEN: length of the PDU with everything, in bytes.
    pub pdu_bytes: U32,
}

/// ICReq (TCP 3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InitializeRequest {
    /// The common header.
    pub common: CommonHeader,
    /// PFV: version of the PDU format; 0 is the only one.
    pub format_version: U16,
    /// HPDA: alignment the host wants for data in C2HData PDUs; see [`DataAlignment`].
    pub host_data_alignment: u8,
    /// DGST: digests the host asks for; see [`Digests`].
    pub digests: u8,
    /// MAXR2T: R2Ts outstanding for one command that the host can bear, 0's based.
    pub max_ready_to_transfer_minus_one: U32,
    pub(super) reserved: [u8; 112],
}

/// ICResp (TCP 3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InitializeResponse {
    /// The common header.
    pub common: CommonHeader,
    /// PFV: version of the PDU format; 0 is the only one.
    pub format_version: U16,
    /// CPDA: alignment the controller wants for data in command capsules and H2CData PDUs; see
    /// [`DataAlignment`].
    pub controller_data_alignment: u8,
    /// DGST: digests the controller agreed to; see [`Digests`].
    pub digests: u8,
    /// MAXH2CDATA: most data in one H2CData PDU, in bytes; a multiple of 4, at least 4096.
    pub max_h2c_data_bytes: U32,
    pub(super) reserved: [u8; 112],
}

/// H2CTermReq and C2HTermReq (TCP 3.6.2): the last PDU of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TerminateRequest {
    /// The common header.
    pub common: CommonHeader,
    /// FES; see [`TerminateRequest::status`].
    pub status_field: U16,
    /// FEI: where the bad field is, or the digest received; see [`FatalErrorStatus`].
    pub information: U32,
    pub(super) reserved: [u8; 10],
}

impl TerminateRequest {
    /// Why the connection ends (FES); `None` for a reserved value.
    #[must_use]
    pub fn status(&self) -> Option<FatalErrorStatus> {
        FatalErrorStatus::from_wire(self.status_field.get())
    }
}

/// CapsuleCmd (TCP 3.6.2): a command, and maybe its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandCapsule {
    /// The common header.
    pub common: CommonHeader,
    /// The command (CCSQE).
    pub entry: SubmissionEntry,
}

/// CapsuleResp (TCP 3.6.2): a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResponseCapsule {
    /// The common header.
    pub common: CommonHeader,
    /// The completion (RCCQE).
    pub entry: CompletionEntry,
}

/// H2CData (TCP 3.6.2): data a host sends for a command, as an R2T asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HostData {
    /// The common header.
    pub common: CommonHeader,
    /// CCCID: the command this belongs to.
    pub command_id: U16,
    /// TTAG: the transfer tag of the R2T.
    pub transfer_tag: U16,
    /// DATAO: where the data belongs, in bytes from the start of the command's data.
    pub offset_bytes: U32,
    /// DATAL: its length in bytes.
    pub length_bytes: U32,
    pub(super) reserved: [u8; 4],
}

/// C2HData (TCP 3.6.2): data a controller sends for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControllerData {
    /// The common header.
    pub common: CommonHeader,
    /// CCCID: the command this belongs to.
    pub command_id: U16,
    pub(super) reserved_10: [u8; 2],
    /// DATAO: where the data belongs, in bytes from the start of the command's data.
    pub offset_bytes: U32,
    /// DATAL: its length in bytes.
    pub length_bytes: U32,
    pub(super) reserved_20: [u8; 4],
}

/// R2T (TCP 3.6.2): a controller is ready for data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReadyToTransfer {
    /// The common header.
    pub common: CommonHeader,
    /// CCCID: the command this belongs to.
    pub command_id: U16,
    /// TTAG: a tag of the controller's choice that comes back in H2CData PDUs.
    pub transfer_tag: U16,
    /// R2TO: where the data wanted starts, in bytes from the start of the command's data.
    pub offset_bytes: U32,
    /// R2TL: its length in bytes.
    pub length_bytes: U32,
    pub(super) reserved: [u8; 4],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<CommonHeader>() == 8);
    assert!(offset_of!(CommonHeader, flags) == 1);
    assert!(offset_of!(CommonHeader, header_bytes) == 2);
    assert!(offset_of!(CommonHeader, data_offset) == 3);
    assert!(offset_of!(CommonHeader, pdu_bytes) == 4);
    assert!(size_of::<InitializeRequest>() == 128);
    assert!(offset_of!(InitializeRequest, format_version) == 8);
    assert!(offset_of!(InitializeRequest, host_data_alignment) == 10);
    assert!(offset_of!(InitializeRequest, digests) == 11);
    assert!(offset_of!(InitializeRequest, max_ready_to_transfer_minus_one) == 12);
    assert!(size_of::<InitializeResponse>() == 128);
    assert!(offset_of!(InitializeResponse, controller_data_alignment) == 10);
    assert!(offset_of!(InitializeResponse, digests) == 11);
    assert!(offset_of!(InitializeResponse, max_h2c_data_bytes) == 12);
    assert!(size_of::<TerminateRequest>() == 24);
    assert!(offset_of!(TerminateRequest, status_field) == 8);
    assert!(offset_of!(TerminateRequest, information) == 10);
    assert!(size_of::<CommandCapsule>() == 72);
    assert!(offset_of!(CommandCapsule, entry) == 8);
    assert!(size_of::<ResponseCapsule>() == 24);
    assert!(offset_of!(ResponseCapsule, entry) == 8);
    assert!(size_of::<HostData>() == 24);
    assert!(offset_of!(HostData, command_id) == 8);
    assert!(offset_of!(HostData, transfer_tag) == 10);
    assert!(offset_of!(HostData, offset_bytes) == 12);
    assert!(offset_of!(HostData, length_bytes) == 16);
    assert!(size_of::<ControllerData>() == 24);
    assert!(offset_of!(ControllerData, command_id) == 8);
    assert!(offset_of!(ControllerData, offset_bytes) == 12);
    assert!(offset_of!(ControllerData, length_bytes) == 16);
    assert!(size_of::<ReadyToTransfer>() == 24);
    assert!(offset_of!(ReadyToTransfer, command_id) == 8);
    assert!(offset_of!(ReadyToTransfer, transfer_tag) == 10);
    assert!(offset_of!(ReadyToTransfer, offset_bytes) == 12);
    assert!(offset_of!(ReadyToTransfer, length_bytes) == 16);
    assert!(HEADER_BYTES_MAX == 144);
    assert!(HEADER_BYTES_MAX <= u8::MAX as usize);
};
