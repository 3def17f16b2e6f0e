//! What the kernel's io_uring can do: by making one and asking it.

use std::io;
use std::path::Path;

use io_uring::{Probe, opcode};
use serde::Serialize;

use super::files;

/// A ring of ordinary entries.
type Ring = io_uring::IoUring;

/// Entries of the rings that are made to ask.
const ENTRIES: u32 = 4;

/// What an io_uring can do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IoUring {
    /// Whether one can be made.
    pub available: bool,
    /// The error of the operating system when it cannot.
    pub error: Option<RingError>,
    /// `kernel.io_uring_disabled`: 0 allowed, 1 for some, 2 forbidden; nothing on kernels that do not have
    /// it.
    pub disabled_setting: Option<u64>,
    /// Whether the kernel takes `SINGLE_ISSUER` (6.0 and later).
    pub single_issuer: bool,
    /// Whether the kernel takes `DEFER_TASKRUN` (6.1 and later).
    pub defer_taskrun: bool,
    /// Whether the kernel keeps completions that do not fit (5.5 and later). Needed.
    pub keeps_completions: bool,
    /// Whether a wait can have a time limit (5.11 and later). Needed.
    pub timed_wait: bool,
    /// The operations that the engine uses.
    pub operations: Vec<Operation>,
}

/// Why no io_uring can be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RingError {
    /// The number of the error.
    pub code: Option<i32>,
    /// Its text.
    pub message: String,
}

/// An operation that the engine uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Its name, as `io_uring_enter(2)` writes it.
    pub name: &'static str,
    /// Whether the kernel knows it.
    pub supported: bool,
    /// Whether an engine can run without it.
    pub required: bool,
}

/// Operations by name and number, and whether an engine can run without them.
const OPERATIONS: [(&str, u8, bool); 10] = [
    ("POLL_ADD", opcode::PollAdd::CODE, true),
    ("POLL_REMOVE", opcode::PollRemove::CODE, true),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE, true),
    ("READ", opcode::Read::CODE, true),
    ("WRITE", opcode::Write::CODE, true),
    ("WRITEV", opcode::Writev::CODE, true),
    ("FSYNC", opcode::Fsync::CODE, true),
    ("FALLOCATE", opcode::Fallocate::CODE, true),
    ("FTRUNCATE", opcode::Ftruncate::CODE, false),
    ("URING_CMD", opcode::UringCmd16::CODE, false),
];

/// Makes an io_uring and asks it.
pub fn probe(proc: &Path) -> IoUring {
    let disabled_setting = files::number(&proc.join("sys/kernel/io_uring_disabled"));
    let mut answer = match ask() {
        Ok(answer) => answer,
        Err(error) => IoUring {
            error: Some(RingError {
                code: error.raw_os_error(),
                message: error.to_string(),
            }),
            ..IoUring::default()
        },
    };
    answer.disabled_setting = disabled_setting;
    answer
}

fn ask() -> io::Result<IoUring> {
    let ring = Ring::new(ENTRIES)?;
    let mut probe = Probe::new();
    // A kernel too old to be asked knows none of what is asked for.
    let asked = ring.submitter().register_probe(&mut probe).is_ok();
    let parameters = ring.params();
    Ok(IoUring {
        available: true,
        error: None,
        disabled_setting: None,
        single_issuer: Ring::builder().setup_single_issuer().build(ENTRIES).is_ok(),
        defer_taskrun: Ring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES)
            .is_ok(),
        keeps_completions: parameters.is_feature_nodrop(),
        timed_wait: parameters.is_feature_ext_arg(),
        operations: OPERATIONS
            .into_iter()
            .map(|(name, code, required)| Operation {
                name,
                supported: asked && probe.is_supported(code),
                required,
            })
            .collect(),
    })
}

/// An io_uring that can do everything, for tests of what else is wrong with a machine.
#[cfg(test)]
pub(super) fn complete() -> IoUring {
    IoUring {
        available: true,
        error: None,
        disabled_setting: Some(0),
        single_issuer: true,
        defer_taskrun: true,
        keeps_completions: true,
        timed_wait: true,
        operations: OPERATIONS
            .into_iter()
            .map(|(name, _, required)| Operation {
                name,
                supported: true,
                required,
            })
            .collect(),
    }
}
