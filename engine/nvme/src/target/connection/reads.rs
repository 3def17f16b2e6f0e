//! Memory that commands of one connection take for data on its way to the host.
//!
//! A host with a deep queue of large reads would get all of a reactor's memory, and keep it for as long as it
//! does not take the data. So reads beyond a limit wait here until others have left; what follows them on the
//! connection goes on.
//!
//! Invariants:
//! - `under_way_bytes` is the sum of `bytes`, and of what was taken out by [`Reads::end`] and is not
//!   [released](Reads::release).
//! - It is above [`READ_BYTES_MAX`] only with a single command.
//! - Reads start in the order in which they arrived.

use std::collections::VecDeque;

use super::super::queue::Command;

/// Data that commands under way on one connection may return, in bytes: enough for a drive to be busy with
/// the largest transfers.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// See the module.
pub(super) struct Reads {
    under_way_bytes: usize,
    /// The most that each command under way may return, by its slot in the set of those that execute.
    bytes: Box<[u32]>,
    waiting: VecDeque<Command>,
}

impl Reads {
    pub(super) fn new(depth: u16) -> Self {
        Self {
            under_way_bytes: 0,
            bytes: (0..depth).map(|_| 0).collect(),
            waiting: VecDeque::new(),
        }
    }

    /// Commands that wait to be started.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Says whether a command may start now; otherwise it waits.
    #[inline]
    pub(super) fn admit(&mut self, command: Command) -> Option<Command> {
        if self.waiting.is_empty() && self.has_room(&command) {
            return Some(command);
        }
        self.waiting.push_back(command);
        None
    }

    /// The next command that has waited and may start now.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Command> {
        if !self.has_room(self.waiting.front()?) {
            return None;
        }
        self.waiting.pop_front()
    }

    fn has_room(&self, command: &Command) -> bool {
        let bytes = command.transfer_bytes_max as usize;
        bytes == 0 || self.under_way_bytes == 0 || self.under_way_bytes + bytes <= READ_BYTES_MAX
    }

    /// A command that may return so many bytes executes in this slot.
    #[inline]
    pub(super) fn begin(&mut self, slot: u16, bytes: u32) {
        if let Some(held) = self.bytes.get_mut(usize::from(slot)) {
            *held = bytes;
            self.under_way_bytes += bytes as usize;
        }
    }

    /// The command in this slot is done; what it may hold is to be released when it has gone to the output.
    #[inline]
    pub(super) fn end(&mut self, slot: u16) -> u32 {
        self.bytes.get_mut(usize::from(slot)).map_or(0, std::mem::take)
    }

    /// Data of a command has gone to the output, which has a limit of its own.
    #[inline]
    pub(super) fn release(&mut self, bytes: u32) {
        self.under_way_bytes -= bytes as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::command::SubmissionEntry;
    use pollux_device::Gather;

    fn read(id: u16, bytes: u32) -> Command {
        Command {
            entry: SubmissionEntry::new(2, id, 1),
            data: Gather::new(),
            transfer_bytes_max: bytes,
        }
    }

    #[test]
    fn reads_beyond_the_limit_start_in_order_when_others_have_left() {
        const LARGE: u32 = 3 * 1024 * 1024;
        let mut reads = Reads::new(8);
        for slot in 0..2 {
            assert!(reads.admit(read(slot, LARGE)).is_some());
            reads.begin(slot, LARGE);
        }
        assert!(reads.admit(read(2, LARGE)).is_none());
        assert!(
            reads.admit(read(3, 4096)).is_none(),
            "it would overtake the one before"
        );
        assert_eq!((reads.waiting(), reads.next().is_some()), (2, false));
        let bytes = reads.end(1);
        assert!(reads.next().is_none(), "its data has not left");
        reads.release(bytes);
        let started = reads.next().expect("there is room");
        assert_eq!(started.entry.command_id.get(), 2);
        reads.begin(1, LARGE);
        assert_eq!(reads.next().expect("there is room").entry.command_id.get(), 3);
        assert!(reads.next().is_none());
    }

    #[test]
    fn a_single_read_may_be_larger_than_the_limit() {
        let mut reads = Reads::new(2);
        assert!(reads.admit(read(0, u32::MAX)).is_some());
        reads.begin(0, u32::MAX);
        assert!(reads.admit(read(1, 1)).is_none());
        let bytes = reads.end(0);
        reads.release(bytes);
        assert!(reads.next().is_some());
        assert_eq!(reads.end(0), 0);
    }
}
