//! Commands whose data is on its way from the host, by transfer tag, and the order of fused commands.
//!
//! Invariants: a tag names at most one transfer; `received` bytes of `buffer` have arrived, in order and
//! without a gap; one R2T covers the whole of a transfer.

use std::collections::VecDeque;

use pollux_hugepages::Buffer;

use super::super::queue::Command;
use crate::wire::command::SubmissionEntry;
use crate::wire::pdu::{PduType, Violation};

/// A command that waits for its data.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) entry: SubmissionEntry,
    /// As long as the whole of the data.
    pub(super) buffer: Buffer,
    pub(super) received: usize,
    /// Its place among the fused commands, if it is one.
    pub(super) fused: Option<FusedTicket>,
    /// A data digest did not match: the command will fail.
    pub(super) damaged: bool,
}

/// Transfers under way, by tag.
pub(super) struct Transfers {
    slots: Box<[Option<Transfer>]>,
    free: Vec<u16>,
}

impl Transfers {
    pub(super) fn new(depth: u16) -> Self {
        Self {
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a transfer and names it.
    pub(super) fn insert(&mut self, transfer: Transfer) -> Option<u16> {
        let tag = self.free.pop()?;
        self.slots[usize::from(tag)] = Some(transfer);
        Some(tag)
    }

    /// Takes a transfer out.
    pub(super) fn remove(&mut self, tag: u16) -> Option<Transfer> {
        let transfer = self.slots.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        Some(transfer)
    }

    /// Finds the transfer that an H2CData PDU continues (NVMe/TCP Transport, H2CData PDU: CCCID, TTAG, DATAO,
    /// DATAL).
    ///
    /// # Errors
    ///
    /// [`Violation::OutOfSequence`] when no R2T asked for the data, [`Violation::Field`] for a command
    /// identifier that is not the transfer's or an offset that is not the next, [`Violation::DataOutOfRange`]
    /// past its end or with the last flag set or missing where it should not be.
    pub(super) fn expect(&mut self, data: &HostDataHeader) -> Result<&mut Transfer, Violation> {
        const COMMAND_ID_OFFSET: u32 = 8;
        const DATA_OFFSET_OFFSET: u32 = 12;
        let pdu_type = PduType::HostData;
        let transfer = self
            .slots
            .get_mut(usize::from(data.transfer_tag))
            .and_then(Option::as_mut)
            .ok_or(Violation::OutOfSequence { pdu_type })?;
        if transfer.entry.command_id.get() != data.command_id {
            return Err(Violation::Field {
                pdu_type,
                offset: COMMAND_ID_OFFSET,
            });
        }
        if data.offset_bytes != transfer.received {
            return Err(Violation::Field {
                pdu_type,
                offset: DATA_OFFSET_OFFSET,
            });
        }
        let end = data.offset_bytes.saturating_add(data.length_bytes);
        if end > transfer.buffer.len() || data.last != (end == transfer.buffer.len()) {
            return Err(Violation::DataOutOfRange { pdu_type });
        }
        Ok(transfer)
    }

    /// The transfer with this tag.
    pub(super) fn get_mut(&mut self, tag: u16) -> Option<&mut Transfer> {
        self.slots.get_mut(usize::from(tag))?.as_mut()
    }
}

/// What an H2CData header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostDataHeader {
    pub(super) command_id: u16,
    pub(super) transfer_tag: u16,
    pub(super) offset_bytes: usize,
    pub(super) length_bytes: usize,
    pub(super) last: bool,
}

/// The place of a fused command in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FusedTicket(u64);

/// Fused commands leave for the queue in the order in which they arrived, however long each one's data
/// takes: the queue pairs a first with the second that follows it (NVMe Base, Fused Operations). What
/// interrupts a pair keeps its place in that order too.
#[derive(Default)]
pub(super) struct FusedOrder {
    waiting: VecDeque<Place>,
    first_ticket: u64,
    /// The last command that arrived is a first half.
    open: bool,
}

#[derive(Default)]
struct Place {
    command: Option<Command>,
    /// Another command followed where the second half should have.
    interrupted: bool,
}

impl FusedOrder {
    /// A place behind all fused commands so far, for a first half or for another fused command.
    pub(super) fn enter(&mut self, first_half: bool) -> FusedTicket {
        self.open = first_half;
        self.waiting.push_back(Place::default());
        FusedTicket(self.first_ticket + self.waiting.len() as u64 - 1)
    }

    /// A command arrived that is not fused. Says whether the queue is to hear now that it interrupts a
    /// pair; when the first half has not left yet, the queue hears after it.
    #[inline]
    pub(super) fn interrupt(&mut self) -> bool {
        if !std::mem::replace(&mut self.open, false) {
            return false;
        }
        match self.waiting.back_mut() {
            Some(first_half) => {
                first_half.interrupted = true;
                false
            }
            None => true,
        }
    }

    /// The command of a place is complete.
    pub(super) fn complete(&mut self, ticket: FusedTicket, command: Command) {
        let place = ticket
            .0
            .checked_sub(self.first_ticket)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(place) = place.and_then(|index| self.waiting.get_mut(index)) {
            place.command = Some(command);
        }
    }

    /// Takes the first command if it is complete, and whether its pair was interrupted.
    pub(super) fn next(&mut self) -> Option<(Command, bool)> {
        let first = self.waiting.front_mut()?;
        let taken = (first.command.take()?, first.interrupted);
        self.waiting.pop_front();
        self.first_ticket += 1;
        Some(taken)
    }

    /// Commands that wait for one before them, or for their own data.
    pub(super) fn complete_and_waiting(&self) -> usize {
        self.waiting
            .iter()
            .filter(|place| place.command.is_some())
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_device::Gather;

    fn command(id: u16) -> Command {
        Command {
            entry: SubmissionEntry::new(0, id, 1),
            data: Gather::new(),
            transfer_bytes_max: 0,
        }
    }

    #[test]
    fn fused_commands_keep_their_order() {
        let mut order = FusedOrder::default();
        let tickets: Vec<_> = (0..3).map(|_| order.enter(false)).collect();
        order.complete(tickets[1], command(1));
        assert!(order.next().is_none());
        order.complete(tickets[0], command(0));
        let ids: Vec<_> = std::iter::from_fn(|| order.next())
            .map(|(command, _)| command.entry.command_id.get())
            .collect();
        assert_eq!(ids, [0, 1]);
        order.complete(tickets[2], command(2));
        assert_eq!(
            order.next().map(|(command, _)| command.entry.command_id.get()),
            Some(2)
        );
        assert!(order.next().is_none());
    }

    #[test]
    fn an_interruption_keeps_its_place() {
        let mut order = FusedOrder::default();
        assert!(!order.interrupt(), "there is no pair");
        let first = order.enter(true);
        assert!(!order.interrupt() && !order.interrupt());
        let second = order.enter(false);
        assert!(!order.interrupt(), "the pair is whole");
        order.complete(second, command(2));
        order.complete(first, command(1));
        assert!(order.next().is_some_and(|(_, interrupted)| interrupted));
        assert!(order.next().is_some_and(|(_, interrupted)| !interrupted));
        let first = order.enter(true);
        order.complete(first, command(3));
        assert!(order.next().is_some_and(|(_, interrupted)| !interrupted));
        assert!(order.interrupt(), "the first half has left already");
        assert!(!order.interrupt());
    }

    #[test]
    fn data_must_be_what_was_asked_for() {
        let mut transfers = Transfers::new(2);
        let tag = transfers
            .insert(Transfer {
                entry: SubmissionEntry::new(1, 7, 1),
                buffer: Buffer::from_heap(8192),
                received: 4096,
                fused: None,
                damaged: false,
            })
            .unwrap();
        let good = HostDataHeader {
            command_id: 7,
            transfer_tag: tag,
            offset_bytes: 4096,
            length_bytes: 4096,
            last: true,
        };
        let pdu_type = PduType::HostData;
        assert!(transfers.expect(&good).is_ok());
        let cases = [
            (
                HostDataHeader {
                    transfer_tag: 1 - tag,
                    ..good
                },
                Violation::OutOfSequence { pdu_type },
            ),
            (
                HostDataHeader {
                    transfer_tag: 999,
                    ..good
                },
                Violation::OutOfSequence { pdu_type },
            ),
            (
                HostDataHeader {
                    command_id: 8,
                    ..good
                },
                Violation::Field { pdu_type, offset: 8 },
            ),
            (
                HostDataHeader {
                    offset_bytes: 0,
                    ..good
                },
                Violation::Field { pdu_type, offset: 12 },
            ),
            (
                HostDataHeader {
                    length_bytes: 8192,
                    ..good
                },
                Violation::DataOutOfRange { pdu_type },
            ),
            (
                HostDataHeader { last: false, ..good },
                Violation::DataOutOfRange { pdu_type },
            ),
            (
                HostDataHeader {
                    length_bytes: 512,
                    ..good
                },
                Violation::DataOutOfRange { pdu_type },
            ),
        ];
        for (header, expected) in cases {
            assert_eq!(transfers.expect(&header).err(), Some(expected), "{header:?}");
        }
    }
}
