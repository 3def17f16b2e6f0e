//! Why a command failed, with what the error log tells about it, and the outcomes that queues answer with.

use pollux_device::IoError;

use super::queue::{Execution, Outcome, Payload};
use crate::status_map::status_of;
use crate::wire::command::CompletionEntry;
use crate::wire::status::Status;

/// The parameter location of an error that no parameter caused (NVMe Base 2.0, 5.16.1.2, Parameter Error
/// Location).
const NO_PARAMETER: u16 = 0xffff;

/// Bytes of the fields that commands are refused for, as offsets into the submission entry.
pub(crate) mod field {
    /// Opcode.
    pub(crate) const OPCODE: u8 = 0;
    /// Fused operation and kind of data pointer.
    pub(crate) const FLAGS: u8 = 1;
    /// Namespace identifier, and fabrics command type.
    pub(crate) const NAMESPACE: u8 = 4;
    /// Data pointer.
    pub(crate) const DATA: u8 = 24;
    /// Command dword 10.
    pub(crate) const DWORD_10: u8 = 40;
    /// Command dword 11.
    pub(crate) const DWORD_11: u8 = 44;
    /// Command dword 12.
    pub(crate) const DWORD_12: u8 = 48;
    /// Command dword 13.
    pub(crate) const DWORD_13: u8 = 52;
    /// Command dword 14.
    pub(crate) const DWORD_14: u8 = 56;
}

/// A command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    /// Byte of the submission entry in bits 7:0, bit in bits 10:8.
    pub(crate) parameter: u16,
}

impl Refusal {
    /// Because of a field of the command; the same command would fail again.
    pub(crate) const fn at(status: Status, byte: u8) -> Self {
        Self {
            status: status.without_retry(),
            parameter: byte as u16,
        }
    }

    /// A field holds a value that is not supported.
    pub(crate) const fn invalid_field(byte: u8) -> Self {
        Self::at(Status::INVALID_FIELD, byte)
    }

    /// For another reason; the same command would fail again.
    pub(crate) const fn of(status: Status) -> Self {
        Self {
            status: status.without_retry(),
            parameter: NO_PARAMETER,
        }
    }

    /// The host is to try again.
    pub(crate) const fn for_now(status: Status) -> Self {
        Self {
            status,
            parameter: NO_PARAMETER,
        }
    }
}

impl From<IoError> for Refusal {
    fn from(error: IoError) -> Self {
        Self {
            status: status_of(error),
            parameter: NO_PARAMETER,
        }
    }
}

impl Outcome {
    /// Success that returns nothing.
    pub(crate) fn done(command_id: u16) -> Self {
        Self::result(command_id, 0)
    }

    /// Success that returns a value in dwords 0 and 1.
    pub(crate) fn result(command_id: u16, result: u64) -> Self {
        Self {
            entry: CompletionEntry::new(command_id, Status::SUCCESS, result),
            payload: Payload::Empty,
            disconnect: false,
        }
    }

    /// Success that returns data.
    pub(crate) fn data(command_id: u16, payload: Payload) -> Self {
        Self {
            payload,
            ..Self::done(command_id)
        }
    }

    /// Failure.
    pub(crate) fn failed(command_id: u16, status: Status) -> Self {
        Self {
            entry: CompletionEntry::new(command_id, status, 0),
            payload: Payload::Empty,
            disconnect: false,
        }
    }
}

impl From<Outcome> for Execution {
    fn from(outcome: Outcome) -> Self {
        Self::ready(outcome)
    }
}
