//! Fatal errors of a connection: what a peer did wrong, and what the termination request says of it.

use thiserror::Error;

use super::layout::{Direction, PduType};
use crate::wire::wire_enum::wire_enum;

wire_enum! {
    /// Fatal Error Status (FES) of a termination request, and what the Fatal Error Information (FEI) beside
    /// it holds (TCP 3.6.2, H2CTermReq and C2HTermReq).
    pub enum FatalErrorStatus: u16 {
        /// A field of a header is invalid; FEI is its offset in bytes from the start of the PDU.
        InvalidHeaderField = 0x01,
        /// A PDU that does not belong where it came; FEI is reserved.
        SequenceError = 0x02,
        /// The header digest does not match; FEI is the digest received.
        HeaderDigestError = 0x03,
        /// Data outside of the range of the command or R2T; FEI is reserved.
        DataOutOfRange = 0x04,
        /// More data in a PDU, or more R2Ts for a command, than was agreed; FEI is reserved.
        LimitExceeded = 0x05,
        /// A parameter is valid but not supported; FEI is its offset in bytes from the start of the PDU.
        UnsupportedParameter = 0x06,
    }
}

/// What a peer did that ends the connection.
///
/// The decoder finds what a header shows by itself. [`Violation::OutOfSequence`], and limits and ranges that
/// depend on what went before, are for the connection to find.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// The type is none of the specification's.
    #[error("unknown PDU type {pdu_type:#04x}")]
    UnknownType {
        /// PDU-Type received.
        pdu_type: u8,
    },
    /// The type travels the other way only.
    #[error("{pdu_type:?} PDU may not travel {direction:?}")]
    WrongDirection {
        /// PDU-Type received.
        pdu_type: PduType,
        /// The way it came.
        direction: Direction,
    },
    /// An initialization PDU on a connection that is set up, or another PDU before it.
    #[error("{pdu_type:?} PDU in the wrong phase of the connection")]
    WrongPhase {
        /// PDU-Type received.
        pdu_type: PduType,
    },
    /// HLEN is not that of the type.
    #[error("header length {header_bytes} of a {pdu_type:?} PDU")]
    HeaderLength {
        /// PDU-Type received.
        pdu_type: PduType,
        /// HLEN received.
        header_bytes: u8,
    },
    /// Reserved flags, digest flags other than agreed, SUCCESS without LAST_PDU.
    #[error("flags {flags:#04x} of a {pdu_type:?} PDU")]
    Flags {
        /// PDU-Type received.
        pdu_type: PduType,
        /// FLAGS received.
        flags: u8,
    },
    /// The header digest does not match.
    #[error("header digest {received:#010x} where {computed:#010x} was due")]
    HeaderDigest {
        /// The digest received.
        received: u32,
        /// The digest of the header received.
        computed: u32,
    },
    /// PDO within the header, beyond the PDU or not aligned.
    #[error("data offset {data_offset} of a {pdu_type:?} PDU of {pdu_bytes} bytes")]
    DataOffset {
        /// PDU-Type received.
        pdu_type: PduType,
        /// PDO received.
        data_offset: u8,
        /// PLEN received.
        pdu_bytes: u32,
    },
    /// PLEN does not agree with the type, its limits or the data length.
    #[error("PDU length {pdu_bytes} of a {pdu_type:?} PDU")]
    PduLength {
        /// PDU-Type received.
        pdu_type: PduType,
        /// PLEN received.
        pdu_bytes: u32,
    },
    /// A field of the header, at this offset in bytes, has an invalid value.
    #[error("invalid field at byte {offset} of a {pdu_type:?} PDU")]
    Field {
        /// PDU-Type received.
        pdu_type: PduType,
        /// Where the field starts, in bytes from the start of the PDU.
        offset: u32,
    },
    /// A parameter, at this offset in bytes, is not supported.
    #[error("unsupported parameter at byte {offset} of a {pdu_type:?} PDU")]
    Unsupported {
        /// PDU-Type received.
        pdu_type: PduType,
        /// Where the parameter starts, in bytes from the start of the PDU.
        offset: u32,
    },
    /// More data in a PDU than was agreed, or more R2Ts for a command.
    #[error("a {pdu_type:?} PDU exceeds the agreed limits")]
    LimitExceeded {
        /// PDU-Type received.
        pdu_type: PduType,
    },
    /// Data outside of what the command or R2T covers.
    #[error("a {pdu_type:?} PDU carries data out of range")]
    DataOutOfRange {
        /// PDU-Type received.
        pdu_type: PduType,
    },
    /// A PDU that does not belong where it came, such as data no R2T asked for.
    #[error("{pdu_type:?} PDU out of sequence")]
    OutOfSequence {
        /// PDU-Type received.
        pdu_type: PduType,
    },
}

/// Offsets in the common header.
const TYPE_OFFSET: u32 = 0;
const FLAGS_OFFSET: u32 = 1;
const HEADER_LENGTH_OFFSET: u32 = 2;
const DATA_OFFSET_OFFSET: u32 = 3;
const PDU_LENGTH_OFFSET: u32 = 4;

impl Violation {
    /// Fatal Error Status (FES) for the termination request.
    #[must_use]
    pub const fn status(&self) -> FatalErrorStatus {
        match self {
            Self::UnknownType { .. }
            | Self::WrongDirection { .. }
            | Self::HeaderLength { .. }
            | Self::Flags { .. }
            | Self::DataOffset { .. }
            | Self::PduLength { .. }
            | Self::Field { .. } => FatalErrorStatus::InvalidHeaderField,
            Self::WrongPhase { .. } | Self::OutOfSequence { .. } => FatalErrorStatus::SequenceError,
            Self::HeaderDigest { .. } => FatalErrorStatus::HeaderDigestError,
            Self::DataOutOfRange { .. } => FatalErrorStatus::DataOutOfRange,
            Self::LimitExceeded { .. } => FatalErrorStatus::LimitExceeded,
            Self::Unsupported { .. } => FatalErrorStatus::UnsupportedParameter,
        }
    }

    /// Fatal Error Information (FEI) for the termination request; 0 where it is reserved.
    #[must_use]
    pub const fn information(&self) -> u32 {
        match self {
            Self::UnknownType { .. } | Self::WrongDirection { .. } => TYPE_OFFSET,
            Self::Flags { .. } => FLAGS_OFFSET,
            Self::HeaderLength { .. } => HEADER_LENGTH_OFFSET,
            Self::DataOffset { .. } => DATA_OFFSET_OFFSET,
            Self::PduLength { .. } => PDU_LENGTH_OFFSET,
            Self::Field { offset, .. } | Self::Unsupported { offset, .. } => *offset,
            Self::HeaderDigest { received, .. } => *received,
            Self::WrongPhase { .. }
            | Self::OutOfSequence { .. }
            | Self::DataOutOfRange { .. }
            | Self::LimitExceeded { .. } => 0,
        }
    }

    /// Whether to answer with a termination request: never to one, however malformed (TCP 3.5), lest two
    /// peers answer each other for ever. Close the connection instead.
    #[must_use]
    pub const fn deserves_answer(&self) -> bool {
        match self {
            Self::UnknownType { .. } | Self::HeaderDigest { .. } => true,
            Self::WrongDirection { pdu_type, .. }
            | Self::WrongPhase { pdu_type }
            | Self::HeaderLength { pdu_type, .. }
            | Self::Flags { pdu_type, .. }
            | Self::DataOffset { pdu_type, .. }
            | Self::PduLength { pdu_type, .. }
            | Self::Field { pdu_type, .. }
            | Self::Unsupported { pdu_type, .. }
            | Self::LimitExceeded { pdu_type }
            | Self::DataOutOfRange { pdu_type }
            | Self::OutOfSequence { pdu_type } => {
                !matches!(pdu_type, PduType::HostTerminate | PduType::ControllerTerminate)
            }
        }
    }
}
