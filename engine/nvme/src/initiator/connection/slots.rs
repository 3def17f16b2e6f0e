//! The commands of a queue pair, by slot.
//!
//! A command identifier is the number of a slot and a generation that changes whenever the slot is taken, so
//! that a second answer to a command is not mistaken for the answer to the next one in its slot:
//!
//! ```text
//! bits 15..10 generation, 0 to 62    bits 9..0 slot
//! ```
//!
//! FFFFh, which the error log uses for "no command", is none of them.
//!
//! Invariants:
//! - `free` holds every slot in state `Free` once.
//! - The memory of a read stays in its slot from submission until the target has completed the command or the
//!   connection has ended, whether somebody still waits for it or not. Late data finds its own buffer, or
//!   nothing.
//! - A finished slot is freed by whoever waits for it, or at once if nobody does.

use std::task::{Context, Poll, Waker};

use pollux_device::Gather;
use pollux_hugepages::Buffer;
use pollux_reactor::Instant;

use super::error::CommandError;
use crate::wire::command::{CompletionEntry, SubmissionEntry};

/// Most commands that a queue pair can have outstanding.
pub const DEPTH_MAX: u16 = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 10;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;

/// One less than there are numbers, which keeps FFFFh out.
const GENERATIONS: u8 = (1 << (u16::BITS - SLOT_BITS)) - 1;

/// The data of a command, and the way it goes. It stays with the connection until the command is over.
#[derive(Debug, Default)]
pub enum Transfer {
    /// No data.
    #[default]
    None,
    /// To the target: write, compare, and the like.
    Send(Gather),
    /// From the target, to fill the buffer: read, identify, and the like.
    Receive(Buffer),
}

impl Transfer {
    /// How much data, in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Send(data) => data.len_bytes(),
            Self::Receive(buffer) => buffer.len(),
        }
    }

    /// The buffer of a read; an empty one for anything else.
    pub fn into_buffer(self) -> Buffer {
        match self {
            Self::Receive(buffer) => buffer,
            Self::None | Self::Send(_) => Buffer::empty(),
        }
    }
}

/// How a command ended, and its data back.
#[derive(Debug)]
pub struct Finished {
    /// The completion of the target, whatever its status, or why there is none.
    pub outcome: Result<CompletionEntry, CommandError>,
    /// The data as it was submitted; a buffer holds what was read only when the status says success.
    pub transfer: Transfer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// The target may still send or ask for data.
    Outstanding,
    Finished(Result<CompletionEntry, CommandError>),
}

/// The place of a command.
#[derive(Debug)]
pub(super) struct Slot {
    generation: u8,
    state: State,
    /// Nobody waits for the command any more.
    abandoned: bool,
    waker: Option<Waker>,
    pub(super) entry: SubmissionEntry,
    pub(super) transfer: Transfer,
    pub(super) length_bytes: u32,
    pub(super) started: Instant,
    /// Data received, or data asked for by R2Ts.
    pub(super) moved_bytes: u32,
    /// Where the capsule starts in the output stream; `u64::MAX` while it waits to be encoded.
    pub(super) capsule_start: u64,
    /// Where the capsule ends in the output stream; `u64::MAX` while it waits to be encoded.
    pub(super) capsule_end: u64,
    /// Where all that was queued for the command so far ends in the output stream.
    pub(super) queued_end: u64,
    /// R2Ts whose data is not queued yet.
    pub(super) ready_to_transfers: u16,
    pub(super) in_capsule: bool,
    /// The PDU with LAST_PDU has come.
    pub(super) last_data_seen: bool,
    /// Data did not match its digest.
    pub(super) damaged: bool,
}

/// Names a command of a queue pair while it is outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommandId(pub(super) u16);

impl CommandId {
    /// As it travels (CID).
    pub fn to_wire(self) -> u16 {
        self.0
    }

    pub(super) fn slot(self) -> usize {
        usize::from(self.0 & SLOT_MASK)
    }

    fn generation(self) -> u8 {
        (self.0 >> SLOT_BITS) as u8
    }
}

/// All slots of a queue pair.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    outstanding: u16,
}

impl Slots {
    /// `depth` free slots, [`DEPTH_MAX`] at most.
    pub(super) fn new(depth: u16) -> Self {
        let depth = depth.clamp(1, DEPTH_MAX);
        let slot = || Slot {
            generation: 0,
            state: State::Free,
            abandoned: false,
            waker: None,
            entry: SubmissionEntry::default(),
            transfer: Transfer::None,
            length_bytes: 0,
            started: Instant::ORIGIN,
            moved_bytes: 0,
            capsule_start: u64::MAX,
            capsule_end: u64::MAX,
            queued_end: u64::MAX,
            ready_to_transfers: 0,
            in_capsule: false,
            last_data_seen: false,
            damaged: false,
        };
        Self {
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            outstanding: 0,
        }
    }

    pub(super) fn depth(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Commands that the target may still have.
    pub(super) fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Slots that can be taken.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free slot for a command.
    pub(super) fn take(
        &mut self,
        entry: &SubmissionEntry,
        transfer: Transfer,
        now: Instant,
    ) -> Result<CommandId, Transfer> {
        let Some(index) = self.free.pop() else {
            return Err(transfer);
        };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(transfer);
        };
        slot.generation = (slot.generation + 1) % GENERATIONS;
        let id = CommandId((u16::from(slot.generation) << SLOT_BITS) | index);
        slot.state = State::Outstanding;
        slot.abandoned = false;
        slot.waker = None;
        slot.entry = *entry;
        slot.length_bytes = transfer.len_bytes() as u32;
        slot.transfer = transfer;
        slot.started = now;
        slot.moved_bytes = 0;
        slot.capsule_start = u64::MAX;
        slot.capsule_end = u64::MAX;
        slot.queued_end = u64::MAX;
        slot.ready_to_transfers = 0;
        slot.in_capsule = false;
        slot.last_data_seen = false;
        slot.damaged = false;
        self.outstanding += 1;
        Ok(id)
    }

    /// The slot of an outstanding command.
    pub(super) fn outstanding_mut(&mut self, id: CommandId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.slot())?;
        (slot.generation == id.generation() && slot.state == State::Outstanding).then_some(slot)
    }

    /// Ends an outstanding command. Says whether somebody is to be woken for it.
    pub(super) fn finish(&mut self, id: CommandId, outcome: Result<CompletionEntry, CommandError>) -> bool {
        let Some(slot) = self.outstanding_mut(id) else {
            return false;
        };
        slot.state = State::Finished(outcome);
        let (abandoned, waits) = (slot.abandoned, slot.waker.is_some());
        self.outstanding -= 1;
        if abandoned {
            self.release(id);
        }
        waits && !abandoned
    }

    /// Takes the waker of a command out.
    pub(super) fn take_waker(&mut self, slot: u16) -> Option<Waker> {
        self.slots.get_mut(usize::from(slot))?.waker.take()
    }

    /// How a command ended, once it has; the slot is free then. `None` for a command that is not this
    /// caller's.
    pub(super) fn poll_finished(
        &mut self,
        id: CommandId,
        context: &mut Context<'_>,
    ) -> Poll<Option<Finished>> {
        let Some(slot) = self
            .slots
            .get_mut(id.slot())
            .filter(|slot| slot.generation == id.generation())
        else {
            return Poll::Ready(None);
        };
        match slot.state {
            State::Free => Poll::Ready(None),
            State::Outstanding => {
                match &mut slot.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            State::Finished(outcome) => {
                let transfer = self.release(id);
                Poll::Ready(Some(Finished { outcome, transfer }))
            }
        }
    }

    /// Nobody waits for a command any more.
    pub(super) fn abandon(&mut self, id: CommandId) {
        let Some(slot) = self
            .slots
            .get_mut(id.slot())
            .filter(|slot| slot.generation == id.generation())
        else {
            return;
        };
        match slot.state {
            State::Free => {}
            State::Outstanding => {
                slot.abandoned = true;
                slot.waker = None;
            }
            State::Finished(_) => {
                self.release(id);
            }
        }
    }

    fn release(&mut self, id: CommandId) -> Transfer {
        let Some(slot) = self.slots.get_mut(id.slot()) else {
            return Transfer::None;
        };
        slot.state = State::Free;
        slot.waker = None;
        self.free.push(id.0 & SLOT_MASK);
        std::mem::take(&mut slot.transfer)
    }

    /// Every outstanding command.
    pub(super) fn each_outstanding(&self) -> impl Iterator<Item = (CommandId, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = CommandId((u16::from(slot.generation) << SLOT_BITS) | index as u16);
            (slot.state == State::Outstanding).then_some((id, slot))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::status::Status;
    use proptest::prelude::*;

    fn take(slots: &mut Slots) -> Option<CommandId> {
        slots
            .take(&SubmissionEntry::default(), Transfer::None, Instant::ORIGIN)
            .ok()
    }

    fn poll(slots: &mut Slots, id: CommandId) -> Poll<Option<Finished>> {
        slots.poll_finished(id, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn every_identifier_is_new_and_none_is_reserved() {
        let mut slots = Slots::new(DEPTH_MAX);
        let mut last = vec![None; usize::from(DEPTH_MAX)];
        for _ in 0..130 {
            let ids: Vec<_> = std::iter::from_fn(|| take(&mut slots)).collect();
            assert_eq!(ids.len(), usize::from(DEPTH_MAX));
            for id in ids {
                assert_ne!(id.to_wire(), u16::MAX);
                assert_ne!(last[id.slot()], Some(id));
                last[id.slot()] = Some(id);
                slots.finish(id, Err(CommandError::DataDigest));
                assert!(matches!(poll(&mut slots, id), Poll::Ready(Some(_))));
            }
        }
    }

    #[test]
    fn an_old_identifier_names_nothing() {
        let mut slots = Slots::new(1);
        let old = take(&mut slots).unwrap();
        slots.finish(old, Err(CommandError::DataDigest));
        assert!(poll(&mut slots, old).is_ready());
        let new = take(&mut slots).unwrap();
        assert_ne!(old, new);
        assert!(slots.outstanding_mut(old).is_none());
        assert!(!slots.finish(old, Err(CommandError::DataDigest)));
        slots.abandon(old);
        assert!(slots.outstanding_mut(new).is_some());
        assert!(matches!(poll(&mut slots, old), Poll::Ready(None)));
    }

    #[test]
    fn an_abandoned_read_keeps_its_buffer_until_it_ends() {
        let mut slots = Slots::new(1);
        let transfer = Transfer::Receive(Buffer::from_heap(4096));
        let id = slots
            .take(&SubmissionEntry::default(), transfer, Instant::ORIGIN)
            .unwrap();
        slots.abandon(id);
        assert!(take(&mut slots).is_none());
        assert!(
            slots
                .outstanding_mut(id)
                .is_some_and(|slot| slot.transfer.len_bytes() == 4096)
        );
        assert!(!slots.finish(id, Ok(CompletionEntry::new(id.to_wire(), Status::SUCCESS, 0))));
        assert_eq!((slots.free(), slots.outstanding()), (1, 0));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take,
        Finish(usize),
        Poll(usize),
        Abandon(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            2 => (0usize..16).prop_map(Step::Finish),
            2 => (0usize..16).prop_map(Step::Poll),
            1 => (0usize..16).prop_map(Step::Abandon),
        ]
    }

    proptest! {
        /// Against a list of what each command is.
        #[test]
        fn a_slot_is_free_exactly_when_its_command_is_over(steps in prop::collection::vec(step(), 0..300)) {
            #[derive(PartialEq, Clone, Copy, Debug)]
            enum Model { Outstanding, Abandoned, Finished, Over }
            const DEPTH: usize = 5;
            let mut slots = Slots::new(DEPTH as u16);
            let mut commands: Vec<(CommandId, Model)> = Vec::new();
            for step in steps {
                let used = commands.iter().filter(|(_, model)| *model != Model::Over).count();
                match step {
                    Step::Take => match take(&mut slots) {
                        Some(id) => { prop_assert!(used < DEPTH); commands.push((id, Model::Outstanding)); }
                        None => prop_assert_eq!(used, DEPTH),
                    },
                    Step::Finish(back) => {
                        let Some((id, model)) = commands.iter_mut().rev().nth(back) else { continue };
                        let was = *model;
                        slots.finish(*id, Err(CommandError::DataDigest));
                        *model = match was {
                            Model::Outstanding => Model::Finished,
                            Model::Abandoned => Model::Over,
                            other => other,
                        };
                    }
                    Step::Poll(back) => {
                        let Some((id, model)) = commands.iter_mut().rev().nth(back) else { continue };
                        if *model == Model::Abandoned { continue }
                        match poll(&mut slots, *id) {
                            Poll::Pending => prop_assert_eq!(*model, Model::Outstanding),
                            Poll::Ready(Some(_)) => {
                                prop_assert_eq!(*model, Model::Finished);
                                *model = Model::Over;
                            }
                            Poll::Ready(None) => prop_assert_eq!(*model, Model::Over),
                        }
                    }
                    Step::Abandon(back) => {
                        let Some((id, model)) = commands.iter_mut().rev().nth(back) else { continue };
                        slots.abandon(*id);
                        *model = match *model {
                            Model::Outstanding | Model::Abandoned => Model::Abandoned,
                            Model::Finished | Model::Over => Model::Over,
                        };
                    }
                }
                let used = commands.iter().filter(|(_, model)| *model != Model::Over).count();
                prop_assert_eq!(slots.free(), DEPTH - used);
                let outstanding = commands.iter()
                    .filter(|(_, model)| matches!(model, Model::Outstanding | Model::Abandoned)).count();
                prop_assert_eq!(usize::from(slots.outstanding()), outstanding);
                prop_assert_eq!(slots.each_outstanding().count(), outstanding);
            }
        }
    }
}
