//! What a request asks of the device: checks that need no device, and the pieces it is executed in.

use pollux_device::{Geometry, IoError};

use crate::PIECE_BYTES_MAX;
use crate::wire::{CommandKind, NbdError, RequestHeader, command_flag};

/// The longest read or write, in bytes (proto, "Block size constraints").
pub(crate) const TRANSFER_BYTES_MAX: u64 = 32 << 20;

/// The longest request without data that is executed as one, in bytes; longer ones are executed in such
/// steps.
pub(crate) const STEP_BYTES_MAX: u64 = 1 << 30;

/// A request that may be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) header: RequestHeader,
    /// First block and count.
    pub(crate) block: u64,
    pub(crate) blocks: u64,
    pub(crate) force_unit_access: bool,
}

/// Flags that go with a command (proto, "Command flags").
fn flags_allowed(kind: CommandKind) -> u16 {
    // FUA on a command that writes nothing is ignored; the protocol allows it on every one.
    command_flag::FUA
        | match kind {
            CommandKind::Read => command_flag::DF | command_flag::PAYLOAD_LEN,
            CommandKind::Write => command_flag::PAYLOAD_LEN,
            CommandKind::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            CommandKind::BlockStatus => command_flag::REQ_ONE,
            _ => 0,
        }
}

/// Whether data of the request's length follows its header on the wire.
pub(crate) fn carries_data(header: &RequestHeader) -> bool {
    header.kind == CommandKind::Write || header.flags & command_flag::PAYLOAD_LEN != 0
}

/// Checks a request.
///
/// # Errors
///
/// The error that the client gets.
pub(crate) fn check(
    header: &RequestHeader,
    geometry: &Geometry,
    block_status: bool,
    allow_resize: bool,
) -> Result<Accepted, NbdError> {
    let RequestHeader {
        flags,
        kind,
        offset,
        length,
        ..
    } = *header;
    if flags & !flags_allowed(kind) != 0 {
        return Err(NbdError::Invalid);
    }
    // A payload on anything but a write was not negotiated.
    if flags & command_flag::PAYLOAD_LEN != 0 && kind != CommandKind::Write {
        return Err(NbdError::Invalid);
    }
    match kind {
        CommandKind::Flush if (offset, length) != (0, 0) => return Err(NbdError::Invalid),
        CommandKind::Resize if !allow_resize || geometry.read_only => return Err(NbdError::NotPermitted),
        CommandKind::Flush | CommandKind::Disconnect | CommandKind::Resize => {
            return Ok(Accepted {
                header: *header,
                block: 0,
                blocks: 0,
                force_unit_access: false,
            });
        }
        CommandKind::Unknown => return Err(NbdError::Invalid),
        CommandKind::BlockStatus if !block_status || length == 0 => return Err(NbdError::Invalid),
        CommandKind::Read | CommandKind::Write if length > TRANSFER_BYTES_MAX => {
            return Err(NbdError::Overflow);
        }
        _ => {}
    }
    let writes = matches!(
        kind,
        CommandKind::Write | CommandKind::WriteZeroes | CommandKind::Trim
    );
    if writes && geometry.read_only {
        return Err(NbdError::NotPermitted);
    }
    if flags & command_flag::FAST_ZERO != 0 {
        // Nothing is promised to be faster than writing zeroes.
        return Err(NbdError::NotSupported);
    }
    let past_end = if writes {
        NbdError::NoSpace
    } else {
        NbdError::Invalid
    };
    let end = offset.checked_add(length).ok_or(past_end)?;
    if end > geometry.bytes() {
        return Err(past_end);
    }
    let block_bytes = u64::from(geometry.block_bytes);
    if !offset.is_multiple_of(block_bytes) || !length.is_multiple_of(block_bytes) {
        return Err(NbdError::Invalid);
    }
    Ok(Accepted {
        header: *header,
        block: offset / block_bytes,
        blocks: length / block_bytes,
        force_unit_access: flags & command_flag::FUA != 0 && writes,
    })
}

/// The error of the protocol for an error of a device.
pub(crate) fn error_of(error: IoError) -> NbdError {
    match error {
        IoError::OutOfRange | IoError::InvalidField => NbdError::Invalid,
        IoError::Unsupported => NbdError::NotSupported,
        IoError::ReadOnly | IoError::ReservationConflict => NbdError::NotPermitted,
        IoError::CapacityExceeded => NbdError::NoSpace,
        IoError::ResourceShortage => NbdError::NoMemory,
        IoError::Gone | IoError::Fenced => NbdError::Shutdown,
        IoError::MediaRead
        | IoError::MediaWrite
        | IoError::ChecksumMismatch
        | IoError::CompareFailed
        | IoError::NotReady
        | IoError::Aborted
        | IoError::TimedOut
        | IoError::PathDown
        | IoError::Nvme(_)
        | IoError::Os(_)
        | IoError::Internal => NbdError::Io,
    }
}

/// The bytes of the piece of a transfer that starts `done` bytes in, for a device that takes so many blocks
/// at once.
pub(crate) fn piece_bytes(length: u64, done: u64, geometry: &Geometry) -> u64 {
    let most = u64::from(geometry.transfer_blocks_max).saturating_mul(u64::from(geometry.block_bytes));
    (length - done).min(u64::from(PIECE_BYTES_MAX)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: CommandKind, flags: u16, offset: u64, length: u64) -> RequestHeader {
        RequestHeader {
            flags,
            kind,
            cookie: 1,
            offset,
            length,
        }
    }

    #[test]
    fn refuses_with_the_error_of_the_protocol() {
        use CommandKind::{BlockStatus, Cache, Flush, Read, Resize, Trim, Unknown, Write, WriteZeroes};
        let geometry = Geometry::new(64 << 20, 4096).unwrap();
        let end = geometry.bytes();
        let cases = [
            (header(Read, 0, 0, 4096), None),
            (header(Read, 0, end - 4096, 4096), None),
            (header(Read, 0, end, 4096), Some(NbdError::Invalid)),
            (header(Write, 0, end - 4096, 8192), Some(NbdError::NoSpace)),
            (header(Write, 0, u64::MAX - 4095, 4096), Some(NbdError::NoSpace)),
            (header(WriteZeroes, 0, 4096, u64::MAX), Some(NbdError::NoSpace)),
            (header(Read, 0, 512, 4096), Some(NbdError::Invalid)),
            (header(Read, 0, 0, 100), Some(NbdError::Invalid)),
            (
                header(Read, 0, 0, TRANSFER_BYTES_MAX + 4096),
                Some(NbdError::Overflow),
            ),
            (
                header(Read, command_flag::NO_HOLE, 0, 4096),
                Some(NbdError::Invalid),
            ),
            (header(Write, command_flag::FUA, 0, 4096), None),
            (header(Write, 1 << 15, 0, 4096), Some(NbdError::Invalid)),
            (
                header(WriteZeroes, command_flag::FAST_ZERO, 0, 4096),
                Some(NbdError::NotSupported),
            ),
            (header(Trim, 0, 0, end), None),
            (header(Trim, 0, 0, 0), None),
            (header(Cache, 0, 0, 4096), None),
            (header(Flush, 0, 0, 0), None),
            (header(Flush, 0, 0, 1), Some(NbdError::Invalid)),
            (header(BlockStatus, 0, 0, 0), Some(NbdError::Invalid)),
            (header(BlockStatus, command_flag::REQ_ONE, 0, 4096), None),
            (header(Unknown, 0, 0, 0), Some(NbdError::Invalid)),
            (header(Resize, 0, 2 * end, 0), Some(NbdError::NotPermitted)),
        ];
        for (header, expected) in cases {
            assert_eq!(
                check(&header, &geometry, true, false).err(),
                expected,
                "{header:?}"
            );
        }
        let status = header(BlockStatus, 0, 0, 4096);
        assert_eq!(
            check(&status, &geometry, false, false).err(),
            Some(NbdError::Invalid)
        );
        let resize = header(Resize, 0, 2 * end, 0);
        assert_eq!(check(&resize, &geometry, false, true).err(), None);
        let read_only = Geometry {
            read_only: true,
            ..geometry
        };
        let write = header(Write, 0, 0, 4096);
        assert_eq!(
            check(&write, &read_only, false, false).err(),
            Some(NbdError::NotPermitted)
        );
    }

    #[test]
    fn pieces_cover_a_transfer() {
        let geometry = Geometry {
            transfer_blocks_max: 100,
            ..Geometry::new(64 << 20, 4096).unwrap()
        };
        let (mut done, length) = (0, TRANSFER_BYTES_MAX);
        while done < length {
            let piece = piece_bytes(length, done, &geometry);
            assert!(piece > 0 && piece <= 100 * 4096);
            done += piece;
        }
        assert_eq!(done, length);
    }
}
