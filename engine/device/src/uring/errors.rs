//! What the kernel's errors mean to a device.

use std::io;

use crate::error::IoError;

/// Whether data came from or went to the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The error of a request, by that of an operation.
pub(super) fn io_error(error: &io::Error, direction: Direction) -> IoError {
    let Some(code) = error.raw_os_error() else {
        return match error.kind() {
            io::ErrorKind::ResourceBusy => IoError::ResourceShortage,
            io::ErrorKind::Unsupported => IoError::Unsupported,
            _ => IoError::Internal,
        };
    };
    match code {
        // EREMOTEIO is a drive that found the command itself wanting; EILSEQ below is about its checksums.
        libc::EIO | libc::ENODATA | libc::EREMOTEIO => match direction {
            Direction::Read => IoError::MediaRead,
            Direction::Write => IoError::MediaWrite,
        },
        libc::EILSEQ | libc::EBADMSG => IoError::ChecksumMismatch,
        libc::ENOSPC | libc::EDQUOT => IoError::CapacityExceeded,
        libc::EAGAIN
        | libc::EINTR
        | libc::EBUSY
        | libc::ENOMEM
        | libc::ENOBUFS
        | libc::EMFILE
        | libc::ENFILE => IoError::ResourceShortage,
        libc::ETIMEDOUT | libc::ETIME => IoError::TimedOut,
        libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ESTALE | libc::ESHUTDOWN => IoError::Gone,
        libc::ENOLINK => IoError::PathDown,
        libc::EROFS | libc::EPERM | libc::EACCES => IoError::ReadOnly,
        libc::EOPNOTSUPP | libc::ENOSYS => IoError::Unsupported,
        libc::EBADE => IoError::ReservationConflict,
        libc::ECANCELED => IoError::Aborted,
        code => IoError::Os(code),
    }
}

/// Whether the same operation may be tried again at once.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Whether the kernel refused the kind of operation, for this file or this range, before anything was done.
pub(super) fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_meaning() {
        let error = io::Error::from_raw_os_error;
        for (code, expected) in [
            (libc::EIO, IoError::MediaWrite),
            (libc::ENOSPC, IoError::CapacityExceeded),
            (libc::EDQUOT, IoError::CapacityExceeded),
            (libc::EAGAIN, IoError::ResourceShortage),
            (libc::EINTR, IoError::ResourceShortage),
            (libc::ENOMEM, IoError::ResourceShortage),
            (libc::ENODEV, IoError::Gone),
            (libc::EROFS, IoError::ReadOnly),
            (libc::EBADE, IoError::ReservationConflict),
            (libc::EOPNOTSUPP, IoError::Unsupported),
            (libc::EINVAL, IoError::Os(libc::EINVAL)),
        ] {
            assert_eq!(io_error(&error(code), Direction::Write), expected);
        }
        assert_eq!(io_error(&error(libc::EIO), Direction::Read), IoError::MediaRead);
        let busy = io::Error::from(io::ErrorKind::ResourceBusy);
        assert_eq!(io_error(&busy, Direction::Read), IoError::ResourceShortage);
    }
}
