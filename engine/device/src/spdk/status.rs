//! Statuses of NVMe completions, as errors: one to one where there is a name for it, kept whole where not.
//!
//! NVMe Base, Status Code Type and Status Code Values; NVM Command Set, Status Values.

use super::raw::commands::CompletionStatus;
use crate::error::{IoError, NvmeStatus};

/// Status code types (SCT).
const GENERIC: u8 = 0x0;
const COMMAND_SPECIFIC: u8 = 0x1;
const MEDIA: u8 = 0x2;
const PATH: u8 = 0x3;

/// What a completion says.
pub(super) fn result(status: CompletionStatus) -> Result<(), IoError> {
    let error = match (status.code_type, status.code) {
        (GENERIC, 0x00) => return Ok(()),
        (GENERIC, 0x01) => IoError::Unsupported, // Invalid Command Opcode
        (GENERIC, 0x02) => IoError::InvalidField, // Invalid Field in Command
        (GENERIC, 0x05 | 0x07 | 0x08) => IoError::Aborted, // Power Loss, Abort Requested, SQ Deletion
        (GENERIC, 0x06) => IoError::Nvme(whole(status)), // Internal Error
        (GENERIC, 0x0b) => IoError::Gone,        // Invalid Namespace or Format
        (GENERIC, 0x20) => IoError::ReadOnly,    // Namespace is Write Protected
        (GENERIC, 0x80) => IoError::OutOfRange,  // LBA Out of Range
        (GENERIC, 0x81) => IoError::CapacityExceeded, // Capacity Exceeded
        (GENERIC, 0x82 | 0x84) => IoError::NotReady, // Namespace Not Ready, Format in Progress
        (GENERIC, 0x83) => IoError::ReservationConflict, // Reservation Conflict
        (COMMAND_SPECIFIC, 0x82) => IoError::ReadOnly, // Attempted Write to Read Only Range
        (MEDIA, 0x80) => IoError::MediaWrite,    // Write Fault
        (MEDIA, 0x81) => IoError::MediaRead,     // Unrecovered Read Error
        (MEDIA, 0x82..=0x84) => IoError::ChecksumMismatch, // End-to-end Guard, Application and Reference Tag
        (MEDIA, 0x85) => IoError::CompareFailed, // Compare Failure
        (PATH, 0x01 | 0x02) => IoError::Fenced,  // Persistent Loss, Inaccessible
        (PATH, 0x03) => IoError::NotReady,       // Transition
        (PATH, 0x60 | 0x70) => IoError::PathDown, // Controller and Host Pathing Error
        (PATH, 0x71) => IoError::Aborted,        // Command Aborted by Host
        _ => IoError::Nvme(whole(status)),
    };
    Err(error)
}

fn whole(status: CompletionStatus) -> NvmeStatus {
    NvmeStatus {
        code_type: status.code_type,
        code: status.code,
        do_not_retry: status.do_not_retry,
    }
}

/// Whether a command was given up with its queue, and may be done again on another one.
pub(super) fn is_lost_with_queue(status: CompletionStatus) -> bool {
    matches!(
        (status.code_type, status.code),
        // Abort Requested, Aborted due to SQ Deletion: what SPDK says of commands of a queue that it frees.
        (GENERIC, 0x07 | 0x08)
            // Host Pathing Error, Command Aborted by Host.
            | (PATH, 0x70 | 0x71)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code_type: u8, code: u8) -> Result<(), IoError> {
        result(CompletionStatus {
            code_type,
            code,
            do_not_retry: true,
        })
    }

    #[test]
    fn errors_keep_their_meaning() {
        for (code_type, code, expected) in [
            (0, 0x80, IoError::OutOfRange),
            (0, 0x81, IoError::CapacityExceeded),
            (0, 0x83, IoError::ReservationConflict),
            (2, 0x80, IoError::MediaWrite),
            (2, 0x81, IoError::MediaRead),
            (2, 0x82, IoError::ChecksumMismatch),
            (2, 0x85, IoError::CompareFailed),
            (3, 0x02, IoError::Fenced),
        ] {
            assert_eq!(of(code_type, code), Err(expected), "{code_type} {code:#x}");
        }
        assert_eq!(of(0, 0), Ok(()));
    }

    /// No two statuses become one unless they mean the same to a caller.
    #[test]
    fn what_has_no_name_is_kept_whole() {
        for code_type in 0..8 {
            for code in 0..=255 {
                if let Err(IoError::Nvme(status)) = of(code_type, code) {
                    assert_eq!((status.code_type, status.code), (code_type, code));
                    assert!(status.do_not_retry);
                }
            }
        }
        assert!(matches!(of(0, 0x06), Err(IoError::Nvme(_))));
        assert!(matches!(of(2, 0x86), Err(IoError::Nvme(_))));
        assert!(matches!(of(7, 0x01), Err(IoError::Nvme(_))));
    }

    #[test]
    fn only_commands_of_a_lost_queue_are_done_again() {
        let is_lost = |code_type, code| {
            is_lost_with_queue(CompletionStatus {
                code_type,
                code,
                do_not_retry: false,
            })
        };
        assert!(is_lost(0, 0x08) && is_lost(0, 0x07));
        assert!(!is_lost(0, 0x00) && !is_lost(2, 0x81) && !is_lost(0, 0x05));
    }
}
