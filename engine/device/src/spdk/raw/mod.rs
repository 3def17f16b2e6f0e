//! All calls into SPDK, each behind a function that is safe to call.
//!
//! | module | what | threads |
//! | --- | --- | --- |
//! | [`environment`] | start-up, log, clock | once a process |
//! | [`memory`] | registered memory, memory of SPDK's own | any |
//! | [`controller`] | a controller and its admin queue | that of its supervisor; any for what is only read |
//! | [`commands`] | commands under way, and SPDK's callbacks | that of their queue |
//! | [`queue`] | an I/O queue pair | one for life |

pub(super) mod commands;
pub(super) mod controller;
pub(super) mod environment;
pub(super) mod memory;
pub(super) mod queue;

/// What SPDK's functions return: 0 or more is fine, less is an error of the operating system, negated.
pub(super) fn check(code: i32) -> Result<i32, Errno> {
    if code < 0 { Err(Errno(-code)) } else { Ok(code) }
}

/// An error that SPDK returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl std::fmt::Display for Errno {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(formatter)
    }
}

impl std::error::Error for Errno {}
