//! Why a request failed: one variant for each thing that a caller can do something different about.

/// A status of an NVMe completion as a drive or a remote target gave it, kept whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmeStatus {
    /// Status code type (NVMe Base, Completion Queue Entry: Status Field, SCT).
    pub code_type: u8,
    /// Status code (SC).
    pub code: u8,
    /// Do not retry (DNR).
    pub do_not_retry: bool,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The range ends past the end of the device.
    #[error("the range ends past the end of the device")]
    OutOfRange,
    /// A length that is not whole blocks, or a combination that makes no sense.
    #[error("a field of the request is not valid")]
    InvalidField,
    /// The device does not do this.
    #[error("the device does not support this request")]
    Unsupported,
    /// Nothing can be written to the device.
    #[error("the device is read-only")]
    ReadOnly,
    /// Space is needed and there is none; freeing some heals it.
    #[error("no space is left")]
    CapacityExceeded,
    /// The medium could not return the data.
    #[error("the medium could not be read")]
    MediaRead,
    /// The medium could not take the data.
    #[error("the medium could not be written")]
    MediaWrite,
    /// The data is there but does not match its checksum; it is not returned.
    #[error("the data does not match its checksum")]
    ChecksumMismatch,
    /// A compare found a difference.
    #[error("the data differs")]
    CompareFailed,
    /// A reservation of another host forbids it.
    #[error("a reservation of another host forbids it")]
    ReservationConflict,
    /// Memory, descriptors or queue entries are short; trying again later helps, and the device is healthy.
    #[error("resources are short; try again")]
    ResourceShortage,
    /// The device is not ready now and will be; trying again helps.
    #[error("the device is not ready; try again")]
    NotReady,
    /// The request was aborted.
    #[error("the request was aborted")]
    Aborted,
    /// No answer within the time allowed.
    #[error("no answer in time")]
    TimedOut,
    /// The device is gone.
    #[error("the device is gone")]
    Gone,
    /// This target was superseded by one of a newer epoch.
    #[error("fenced off by a newer epoch")]
    Fenced,
    /// The path to the device does not work now; another path may.
    #[error("the path to the device does not work")]
    PathDown,
    /// Any other status of a drive or a remote target.
    #[error("NVMe status type {:#x} code {:#04x}", .0.code_type, .0.code)]
    Nvme(NvmeStatus),
    /// Any other error of the operating system.
    #[error("operating system error {0}")]
    Os(i32),
    /// A mistake in this program; the request did nothing that was acknowledged.
    #[error("internal error")]
    Internal,
}
