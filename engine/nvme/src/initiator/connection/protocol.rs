//! What a connection says: commands to capsules, R2Ts to data PDUs. No sockets, no clock.
//!
//! Invariants:
//! - What is to be said is encoded at once while the output has room, and waits in order otherwise; what
//!   waits is bounded by the depth of the queue and the R2Ts agreed on.
//! - Data is asked for by the target in order and never twice, so the data PDUs of a command cover it once.
//! - A command is settled once: by its completion, or by the end of the connection.

use std::collections::VecDeque;

use pollux_device::Gather;
use pollux_reactor::Instant;
use zerocopy::little_endian::U16;

use super::error::{CommandError, ConnectionError};
use super::receive::Receiving;
use super::slots::{CommandId, Slots, Transfer};
use crate::transport::Output;
use crate::wire::command::{CompletionEntry, IoOpcode, OPCODE_FABRICS, SglDescriptor, SubmissionEntry};
use crate::wire::digest::Digest;
use crate::wire::pdu::{
    ConnectionLimits, DataRange, Framing, HEADER_BYTES_MAX, IN_CAPSULE_DATA_BYTES_ADMIN, PduType, Violation,
    encode_command, encode_host_data,
};

/// R2Ts for one command that the target may have outstanding (MAXR2T, counted from 1).
pub(super) const READY_TO_TRANSFERS_MAX: u16 = 4;

/// What was agreed with the target when the connection was set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) limits: ConnectionLimits,
    pub(super) framing: Framing,
    /// Most data in an H2CData PDU (MAXH2CDATA).
    pub(super) host_data_bytes_max: u32,
}

/// What waits for room in the output.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    Command(CommandId),
    Data(Grant),
}

/// Data that the target is ready for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) command: CommandId,
    pub(super) transfer_tag: u16,
    pub(super) offset_bytes: u32,
    pub(super) end_bytes: u32,
}

/// Why a command was not taken; it comes back untouched.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub reason: RefusedReason,
    /// The data that came with the command.
    pub transfer: Transfer,
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedReason {
    /// As many commands as the queue is deep are outstanding; wait for one of them.
    #[error("the queue is full")]
    Full,
    /// The connection has ended.
    #[error("the connection has ended")]
    Ended,
    /// More data than a command can describe, 4 GiB.
    #[error("the data is longer than a command can describe")]
    TooLong,
}

/// One end of a connection, without the socket.
pub(super) struct Protocol {
    pub(super) slots: Slots,
    pub(super) output: Output,
    pub(super) receiving: Receiving,
    /// The data PDU that came last was a large one, so the next one is likely to be.
    pub(super) large_data: bool,
    pub(super) terms: Terms,
    /// Data that an I/O command capsule may carry, in bytes (IOCCSZ).
    pub(super) in_capsule_bytes_max: u32,
    waiting: VecDeque<Waiting>,
    /// Slots of commands that ended and are waited for.
    pub(super) finished: Vec<u16>,
    /// The header of the PDU that ended the connection.
    pub(super) offender: Vec<u8>,
}

impl Protocol {
    pub(super) fn new(terms: Terms, depth: u16) -> Self {
        let slots = Slots::new(depth);
        let depth = usize::from(slots.depth());
        Self {
            slots,
            output: Output::new(),
            receiving: Receiving::Header,
            large_data: false,
            terms,
            in_capsule_bytes_max: 0,
            waiting: VecDeque::with_capacity(depth * (1 + usize::from(READY_TO_TRANSFERS_MAX))),
            finished: Vec::with_capacity(depth),
            offender: Vec::with_capacity(HEADER_BYTES_MAX),
        }
    }

    /// Takes a command: its identifier and data pointer are filled in here.
    pub(super) fn submit(
        &mut self,
        entry: &SubmissionEntry,
        transfer: Transfer,
        now: Instant,
    ) -> Result<CommandId, Refused> {
        let Ok(length_bytes) = u32::try_from(transfer.len_bytes()) else {
            let reason = RefusedReason::TooLong;
            return Err(Refused { reason, transfer });
        };
        let id = self
            .slots
            .take(entry, transfer, now)
            .map_err(|transfer| Refused {
                reason: RefusedReason::Full,
                transfer,
            })?;
        let in_capsule_bytes_max = if entry.opcode == OPCODE_FABRICS {
            IN_CAPSULE_DATA_BYTES_ADMIN
        } else {
            self.in_capsule_bytes_max
        };
        if let Some(slot) = self.slots.outstanding_mut(id) {
            slot.in_capsule =
                matches!(slot.transfer, Transfer::Send(_)) && length_bytes <= in_capsule_bytes_max;
            slot.entry.command_id = U16::new(id.to_wire());
            slot.entry.data_pointer = if slot.in_capsule && length_bytes > 0 {
                SglDescriptor::in_capsule(length_bytes)
            } else {
                SglDescriptor::transport(length_bytes)
            };
        }
        if self.waiting.is_empty() && !self.output.is_full() {
            self.encode_command(id);
        } else {
            self.waiting.push_back(Waiting::Command(id));
        }
        Ok(id)
    }

    /// Encodes what waits, while there is room.
    pub(super) fn fill_output(&mut self) {
        while !self.output.is_full()
            && let Some(waiting) = self.waiting.pop_front()
        {
            match waiting {
                Waiting::Command(id) => self.encode_command(id),
                Waiting::Data(grant) => {
                    if let Some(rest) = self.encode_data(grant) {
                        self.waiting.push_front(Waiting::Data(rest));
                    }
                }
            }
        }
    }

    /// There is room: [`Output::is_full`] was asked.
    fn encode_command(&mut self, id: CommandId) {
        let Some(slot) = self.slots.outstanding_mut(id) else {
            return;
        };
        slot.capsule_start = self.output.position();
        let framing = self.terms.framing;
        let in_capsule_bytes = if slot.in_capsule { slot.length_bytes } else { 0 };
        let entry = &slot.entry;
        let encoded = self
            .output
            .encode(|room| encode_command(entry, in_capsule_bytes, &framing, room));
        debug_assert!(encoded, "the output was asked for room");
        if in_capsule_bytes > 0
            && let Transfer::Send(data) = &slot.transfer
        {
            push_data(&mut self.output, data, framing.data_digest);
        }
        slot.capsule_end = self.output.position();
        slot.queued_end = slot.capsule_end;
    }

    /// Encodes one data PDU; returns what is left of the grant. There is room: [`Output::is_full`] was asked.
    fn encode_data(&mut self, grant: Grant) -> Option<Grant> {
        // The target may have completed the command with an error meanwhile, and then wants no data any more.
        let slot = self.slots.outstanding_mut(grant.command)?;
        let Transfer::Send(data) = &slot.transfer else {
            return None;
        };
        let length_bytes = (grant.end_bytes - grant.offset_bytes).min(self.terms.host_data_bytes_max);
        let end_bytes = grant.offset_bytes + length_bytes;
        let last = end_bytes == grant.end_bytes;
        let range = DataRange {
            command_id: grant.command.to_wire(),
            offset_bytes: grant.offset_bytes,
            length_bytes,
        };
        let framing = self.terms.framing;
        let encoded = self
            .output
            .encode(|room| encode_host_data(range, grant.transfer_tag, last, &framing, room));
        debug_assert!(encoded, "the output was asked for room");
        let piece = data.range(grant.offset_bytes as usize, length_bytes as usize);
        push_data(&mut self.output, &piece, framing.data_digest);
        slot.queued_end = self.output.position();
        if last {
            slot.ready_to_transfers -= 1;
            return None;
        }
        Some(Grant {
            offset_bytes: end_bytes,
            ..grant
        })
    }

    /// The target is ready for data (NVMe/TCP Transport, R2T PDU).
    pub(super) fn ready_to_transfer(&mut self, grant: Grant) -> Result<(), ConnectionError> {
        let pdu_type = PduType::ReadyToTransfer;
        let sent_position = self.output.sent_position();
        let Some(slot) = self.slots.outstanding_mut(grant.command) else {
            return Err(unknown(pdu_type, grant.command));
        };
        let wants_data = matches!(slot.transfer, Transfer::Send(_)) && !slot.in_capsule;
        if !wants_data || sent_position < slot.capsule_end {
            return Err(Violation::OutOfSequence { pdu_type }.into());
        }
        if slot.ready_to_transfers >= READY_TO_TRANSFERS_MAX {
            return Err(Violation::LimitExceeded { pdu_type }.into());
        }
        if grant.offset_bytes != slot.moved_bytes || grant.end_bytes > slot.length_bytes {
            return Err(Violation::DataOutOfRange { pdu_type }.into());
        }
        slot.moved_bytes = grant.end_bytes;
        slot.ready_to_transfers += 1;
        // Larger ones are bounded by what waits already; what is left of this one waits behind them.
        self.waiting.push_back(Waiting::Data(grant));
        Ok(())
    }

    /// The target has completed a command (NVMe/TCP Transport, CapsuleResp PDU, and C2HData PDU with
    /// SUCCESS).
    pub(super) fn complete(&mut self, completion: &CompletionEntry) -> Result<(), ConnectionError> {
        let id = CommandId(completion.command_id.get());
        let sent_position = self.output.sent_position();
        let Some(slot) = self.slots.outstanding_mut(id) else {
            return Err(unknown(PduType::Response, id));
        };
        let command_id = id.to_wire();
        if sent_position < slot.capsule_end {
            return Err(ConnectionError::Premature { command_id });
        }
        if completion.status().is_success() {
            let unsent = slot.ready_to_transfers > 0 || sent_position < slot.queued_end;
            match &slot.transfer {
                Transfer::Send(_) if slot.in_capsule => {}
                Transfer::Send(_) if unsent || slot.moved_bytes < slot.length_bytes => {
                    return Err(ConnectionError::Premature { command_id });
                }
                // Of an authentication message nobody knows beforehand how long it is.
                Transfer::Receive(_) if slot.entry.opcode == OPCODE_FABRICS => {}
                Transfer::Receive(_) if slot.moved_bytes < slot.length_bytes => {
                    return Err(ConnectionError::ShortData {
                        command_id,
                        received_bytes: slot.moved_bytes,
                        expected_bytes: slot.length_bytes,
                    });
                }
                Transfer::None | Transfer::Send(_) | Transfer::Receive(_) => {}
            }
        }
        let outcome = if slot.damaged {
            Err(CommandError::DataDigest)
        } else {
            Ok(*completion)
        };
        self.finish(id, outcome);
        Ok(())
    }

    fn finish(&mut self, id: CommandId, outcome: Result<CompletionEntry, CommandError>) {
        if self.slots.finish(id, outcome) {
            self.finished.push(id.slot() as u16);
        }
    }

    /// The connection has ended: nothing more is sent, and every command is settled. Says whether one of them
    /// may still change data at the target.
    pub(super) fn end(&mut self) -> bool {
        let sent_position = self.output.sent_position();
        self.waiting.clear();
        self.receiving = Receiving::Header;
        let mut unsettled_mutation = false;
        loop {
            let next = self.slots.each_outstanding().next().map(|(id, slot)| {
                let sent = slot.capsule_start < sent_position;
                (id, sent, sent && is_mutation(&slot.entry))
            });
            let Some((id, sent, mutation)) = next else {
                break;
            };
            unsettled_mutation |= mutation;
            self.finish(id, Err(CommandError::ConnectionLost { sent }));
        }
        unsettled_mutation
    }
}

/// Whether a command may change data. What is not known not to, may.
fn is_mutation(entry: &SubmissionEntry) -> bool {
    !matches!(
        IoOpcode::from_wire(entry.opcode),
        Some(
            IoOpcode::Flush
                | IoOpcode::Read
                | IoOpcode::Compare
                | IoOpcode::Verify
                | IoOpcode::ReservationReport
                | IoOpcode::Fabrics
        )
    )
}

fn unknown(pdu_type: PduType, id: CommandId) -> ConnectionError {
    let command_id = id.to_wire();
    ConnectionError::UnknownCommand { pdu_type, command_id }
}

/// Queues data and its digest. The data is not copied.
fn push_data(output: &mut Output, data: &Gather, data_digest: bool) {
    let mut digest = Digest::new();
    for piece in data.pieces() {
        if data_digest {
            digest.update(piece);
        }
        output.push_slice(piece.clone());
    }
    if data_digest {
        let pushed = output.push_bytes(&digest.to_bytes());
        debug_assert!(pushed, "the output was asked for room");
    }
}
