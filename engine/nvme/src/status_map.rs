//! What an [`IoError`] is on the wire, and back: one table for target and initiator.
//!
//! Every pair of the table is one to one, so that an error that crosses a wire arrives as what it was. What
//! is not in it travels whole: an error of a drive as the status it gave, a status of a foreign target as
//! [`IoError::Nvme`].

use pollux_device::{IoError, NvmeStatus};

use crate::wire::status::{Status, StatusType};

/// Whether another try of the same command may end otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// It may: the host is to try again.
    Helps,
    /// It will not: sent with DNR.
    Vain,
}

/// The errors that have a status of their own.
const TABLE: &[(IoError, Status, Retry)] = &[
    (IoError::OutOfRange, Status::LBA_OUT_OF_RANGE, Retry::Vain),
    (IoError::InvalidField, Status::INVALID_FIELD, Retry::Vain),
    (IoError::Unsupported, Status::INVALID_OPCODE, Retry::Vain),
    (IoError::ReadOnly, Status::NAMESPACE_WRITE_PROTECTED, Retry::Vain),
    (IoError::CapacityExceeded, Status::CAPACITY_EXCEEDED, Retry::Vain),
    (IoError::MediaRead, Status::UNRECOVERED_READ_ERROR, Retry::Vain),
    (IoError::MediaWrite, Status::WRITE_FAULT, Retry::Vain),
    (IoError::ChecksumMismatch, Status::GUARD_CHECK_ERROR, Retry::Vain),
    (IoError::CompareFailed, Status::COMPARE_FAILURE, Retry::Vain),
    (
        IoError::ReservationConflict,
        Status::RESERVATION_CONFLICT,
        Retry::Vain,
    ),
    (
        IoError::ResourceShortage,
        Status::COMMAND_INTERRUPTED,
        Retry::Helps,
    ),
    (IoError::NotReady, Status::NAMESPACE_NOT_READY, Retry::Helps),
    (IoError::Aborted, Status::ABORT_REQUESTED, Retry::Helps),
    (IoError::TimedOut, Status::TRANSIENT_TRANSPORT_ERROR, Retry::Helps),
    // The path statuses make a multipath host try another path at once.
    (IoError::Gone, Status::INTERNAL_PATH_ERROR, Retry::Helps),
    (IoError::PathDown, Status::CONTROLLER_PATHING_ERROR, Retry::Helps),
    (IoError::Fenced, Status::ANA_INACCESSIBLE, Retry::Helps),
    (IoError::Internal, Status::INTERNAL_ERROR, Retry::Vain),
];

/// What only arrives: statuses of other targets that mean one of the errors above.
const ALSO: &[(Status, IoError)] = &[
    (Status::INVALID_NAMESPACE_OR_FORMAT, IoError::Gone),
    (Status::WRITE_TO_READ_ONLY_RANGE, IoError::ReadOnly),
    (Status::ABORTED_QUEUE_DELETED, IoError::Aborted),
    (Status::ABORTED_POWER_LOSS, IoError::Aborted),
    (Status::ANA_PERSISTENT_LOSS, IoError::Fenced),
    (Status::ANA_TRANSITION, IoError::NotReady),
    (Status::FORMAT_IN_PROGRESS, IoError::NotReady),
    (Status::HOST_PATHING_ERROR, IoError::PathDown),
];

/// The status that tells a host of an error, with DNR where another try is in vain.
#[must_use]
pub fn status_of(error: IoError) -> Status {
    match error {
        IoError::Nvme(status) => {
            let told = Status::new(
                StatusType::from_wire(status.code_type & 0x7).unwrap_or(StatusType::Generic),
                status.code,
            );
            // A drive cannot have failed with success.
            let told = if told.is_success() {
                Status::INTERNAL_ERROR
            } else {
                told
            };
            if status.do_not_retry {
                told.without_retry()
            } else {
                told
            }
        }
        IoError::Os(_) => Status::INTERNAL_ERROR,
        _ => match TABLE.iter().find(|(entry, ..)| *entry == error) {
            Some((_, status, Retry::Vain)) => status.without_retry(),
            Some((_, status, Retry::Helps)) => *status,
            None => Status::INTERNAL_ERROR,
        },
    }
}

/// The error that a status of a target or drive means; `None` for success.
#[must_use]
pub fn error_of(status: Status) -> Option<IoError> {
    if status.is_success() {
        return None;
    }
    let exact = TABLE.iter().find(|(_, entry, _)| status.is(*entry));
    let alike = || ALSO.iter().find(|(entry, _)| status.is(*entry));
    Some(match exact {
        Some((error, ..)) => *error,
        None => alike().map_or(
            IoError::Nvme(NvmeStatus {
                code_type: status.status_type().to_wire(),
                code: status.code(),
                do_not_retry: status.do_not_retry(),
            }),
            |(_, error)| *error,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_error_of_the_table_survives_the_wire() {
        for (error, status, _) in TABLE {
            assert!(status_of(*error).is(*status));
            assert_eq!(error_of(status_of(*error)), Some(*error), "{error:?}");
        }
    }

    /// A new variant of `IoError` must be thought about here: this match has no wildcard.
    #[test]
    fn every_error_has_a_place() {
        for (error, ..) in TABLE {
            match error {
                IoError::OutOfRange
                | IoError::InvalidField
                | IoError::Unsupported
                | IoError::ReadOnly
                | IoError::CapacityExceeded
                | IoError::MediaRead
                | IoError::MediaWrite
                | IoError::ChecksumMismatch
                | IoError::CompareFailed
                | IoError::ReservationConflict
                | IoError::ResourceShortage
                | IoError::NotReady
                | IoError::Aborted
                | IoError::TimedOut
                | IoError::Gone
                | IoError::PathDown
                | IoError::Fenced
                | IoError::Internal => {}
                IoError::Nvme(_) | IoError::Os(_) => panic!("{error:?} has no one status"),
            }
        }
        assert_eq!(TABLE.len(), 18);
    }

    #[test]
    fn no_status_stands_for_two_errors() {
        for (at, (_, status, _)) in TABLE.iter().enumerate() {
            assert!(
                !TABLE[at + 1..].iter().any(|(_, other, _)| other.is(*status)),
                "{status}"
            );
            assert!(!ALSO.iter().any(|(other, _)| other.is(*status)), "{status}");
        }
    }

    #[test]
    fn shortage_is_to_be_tried_again_and_a_bad_request_is_not() {
        assert!(!status_of(IoError::ResourceShortage).do_not_retry());
        assert!(!status_of(IoError::NotReady).do_not_retry());
        assert!(status_of(IoError::OutOfRange).do_not_retry());
        assert!(status_of(IoError::CompareFailed).do_not_retry());
    }

    #[test]
    fn a_failure_is_never_told_as_success() {
        let none = NvmeStatus {
            code_type: 0,
            code: 0,
            do_not_retry: false,
        };
        assert!(!status_of(IoError::Nvme(none)).is_success());
        assert!(!status_of(IoError::Os(5)).is_success());
        assert_eq!(error_of(Status::SUCCESS), None);
    }

    proptest! {
        #[test]
        fn a_status_of_a_drive_survives(code_type in 0u8..8, code: u8, do_not_retry: bool) {
            let error = IoError::Nvme(NvmeStatus { code_type, code, do_not_retry });
            let status = status_of(error);
            prop_assert!(!status.is_success());
            let back = error_of(status);
            let known = TABLE.iter().any(|(_, entry, _)| entry.is(status))
                || ALSO.iter().any(|(entry, _)| entry.is(status));
            prop_assert!(known || back == Some(error));
        }
    }
}
