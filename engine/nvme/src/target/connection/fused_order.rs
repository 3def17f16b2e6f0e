//! The order of fused commands on a connection.

use std::collections::VecDeque;

use super::super::queue::Command;

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
    use crate::wire::command::SubmissionEntry;
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
}
