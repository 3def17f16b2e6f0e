//! The failures that a controller remembers, for the Error Information log (NVMe Base 2.0, 5.16.1.2).

use std::collections::VecDeque;

use crate::wire::status::Status;

/// Failures remembered; older ones are forgotten.
pub(crate) const ERROR_LOG_ENTRIES: usize = 64;

/// One failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ErrorRecord {
    /// Counts all failures of the subsystem, from 1 (Error Count).
    pub(crate) count: u64,
    /// The queue of the command.
    pub(crate) queue_id: u16,
    /// The command.
    pub(crate) command_id: u16,
    /// How it failed.
    pub(crate) status: Status,
    /// Byte and bit of the field that was wrong; FFFFh if none was.
    pub(crate) parameter: u16,
    /// The first block of the command, 0 if it has none.
    pub(crate) block: u64,
    /// The namespace of the command.
    pub(crate) namespace_id: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog(VecDeque<ErrorRecord>);

impl ErrorLog {
    /// Remembers a failure.
    pub(crate) fn push(&mut self, record: ErrorRecord) {
        self.0.truncate(ERROR_LOG_ENTRIES - 1);
        self.0.push_front(record);
    }

    /// The failures, the newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &ErrorRecord> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_newest() {
        let mut log = ErrorLog::default();
        for count in 1..=100 {
            log.push(ErrorRecord {
                count,
                queue_id: 1,
                command_id: 2,
                status: Status::LBA_OUT_OF_RANGE,
                parameter: 40,
                block: 9,
                namespace_id: 1,
            });
        }
        let counts: Vec<_> = log.newest_first().map(|record| record.count).collect();
        assert_eq!(counts.len(), ERROR_LOG_ENTRIES);
        assert_eq!((counts.first(), counts.last()), (Some(&100), Some(&37)));
    }
}
