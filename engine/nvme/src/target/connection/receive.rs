//! From received bytes to commands.
//!
//! A command capsule is taken whole, and its data cut out of the receive buffer without copying where the
//! device does not ask for aligned memory. The data of H2CData PDUs goes to the buffer of its command: what
//! was received along with the header is copied, the rest is received right into it.

use pollux_device::Gather;
use pollux_hugepages::Buffer;

use super::super::queue::Command;
use super::fused_order::FusedTicket;
use super::live::{End, Live};
use super::transfers::{Awaiting, HostDataHeader, Transfer};
use crate::wire::command::{
    CompletionEntry, DataPointer, FabricsCommandType, Fuse, OPCODE_FABRICS, SubmissionEntry,
};
use crate::wire::digest::{DIGEST_BYTES, crc32c};
use crate::wire::pdu::{Decoded, Direction, Header, Pdu, PduFlags, PduType, Violation, decode_header};
use crate::wire::status::Status;

/// Data of a PDU that is better not copied: what follows its header is received where it belongs.
const LARGE_DATA_BYTES: usize = 16 * 1024;

/// Payload that is received straight into the buffer it is meant for.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) buffer: Buffer,
    pub(super) filled: usize,
    /// Where the PDU under way ends in `buffer`.
    pub(super) end: usize,
}

/// What the next received bytes are.
pub(super) enum Receiving {
    /// The header of a PDU.
    Header,
    /// Data of an H2CData PDU for the transfer with this tag, whose buffer is in the sink meanwhile.
    Data { tag: u16, sink: Sink, digest: bool },
}

/// What one step of parsing did.
pub(super) enum Parsed {
    /// Something was consumed.
    One,
    /// The rest has not arrived.
    NeedMore,
}

/// Which way the data of a command goes: bits 1:0 of the opcode, or of the command type of a fabrics command
/// (NVMe Base, Opcode field; Fabrics Command Type).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfers {
    None,
    ToController,
    ToHost,
    Both,
}

fn transfers(entry: &SubmissionEntry) -> Transfers {
    let kind = match entry.opcode {
        OPCODE_FABRICS => entry
            .fabrics_command_type()
            .map_or(0, FabricsCommandType::to_wire),
        opcode => opcode,
    };
    match kind & 0b11 {
        0b00 => Transfers::None,
        0b01 => Transfers::ToController,
        0b10 => Transfers::ToHost,
        _ => Transfers::Both,
    }
}

/// A command capsule that is there whole.
struct Capsule {
    entry: SubmissionEntry,
    pdu_bytes: usize,
    data_offset: usize,
    data_bytes: usize,
    data_digest: bool,
}

impl Live {
    /// Takes one PDU, or as much of its data as is there.
    pub(super) fn parse_one(&mut self) -> Result<Parsed, End> {
        if matches!(self.receiving, Receiving::Data { .. }) {
            return self.parse_data();
        }
        let received = self.input.bytes().len();
        if received == 0 {
            return Ok(Parsed::NeedMore);
        }
        let decoded = decode_header(
            self.input.bytes(),
            Direction::HostToController,
            &self.transport.limits,
        )?;
        let Decoded::Pdu(pdu) = decoded else {
            return Ok(Parsed::NeedMore);
        };
        let Pdu {
            header,
            pdu_bytes,
            data_offset,
            data_bytes,
            data_digest,
        } = pdu;
        match header {
            Header::Command(_) if received < pdu_bytes => Ok(Parsed::NeedMore),
            Header::Command(capsule) => {
                let entry = capsule.entry;
                self.parse_capsule(Capsule {
                    entry,
                    pdu_bytes,
                    data_offset,
                    data_bytes,
                    data_digest,
                })
            }
            Header::HostData(data) => {
                let header = HostDataHeader {
                    command_id: data.command_id.get(),
                    transfer_tag: data.transfer_tag.get(),
                    offset_bytes: data.offset_bytes.get() as usize,
                    length_bytes: data.length_bytes.get() as usize,
                    last: PduFlags::from_bits_truncate(data.common.flags).contains(PduFlags::LAST),
                };
                self.begin_data(&header, data_offset, data_digest)
            }
            Header::Terminate(request) => Err(End::TerminatedByHost(request.status_field.get())),
            Header::InitializeRequest(_) => Err(Violation::OutOfSequence {
                pdu_type: PduType::InitializeRequest,
            }
            .into()),
            Header::InitializeResponse(_)
            | Header::Response(_)
            | Header::ControllerData(_)
            | Header::ReadyToTransfer(_) => Err(Violation::UnknownType {
                pdu_type: self.input.bytes().first().copied().unwrap_or(0),
            }
            .into()),
        }
    }

    fn parse_capsule(&mut self, capsule: Capsule) -> Result<Parsed, End> {
        if self.outstanding() >= usize::from(self.depth) {
            return Err(End::Overrun);
        }
        let entry = capsule.entry;
        if entry.opcode != OPCODE_FABRICS && !entry.uses_sgl() {
            return Ok(self.fail(&capsule, Status::INVALID_FIELD));
        }
        let pointer = entry.data_pointer.data_pointer();
        match (transfers(&entry), pointer) {
            (Transfers::None, _) => self.without_data(&capsule, 0),
            (Transfers::Both, _) => Ok(self.fail(&capsule, Status::INVALID_FIELD)),
            (_, None) => Ok(self.fail(&capsule, Status::SGL_TYPE_INVALID)),
            (Transfers::ToHost, Some(DataPointer::Transport { length_bytes })) => {
                self.without_data(&capsule, length_bytes)
            }
            (Transfers::ToHost, Some(DataPointer::InCapsule { length_bytes: 0, .. })) => {
                self.without_data(&capsule, 0)
            }
            (Transfers::ToHost, Some(DataPointer::InCapsule { .. })) => {
                Ok(self.fail(&capsule, Status::SGL_TYPE_INVALID))
            }
            (Transfers::ToController, Some(DataPointer::InCapsule { offset, length_bytes })) => {
                self.in_capsule(&capsule, offset, length_bytes as usize)
            }
            (Transfers::ToController, Some(DataPointer::Transport { length_bytes: 0 })) => {
                self.without_data(&capsule, 0)
            }
            (Transfers::ToController, Some(DataPointer::Transport { length_bytes })) => {
                self.begin_transfer(&capsule, length_bytes)
            }
        }
    }

    /// The host's queue entry has been taken; its place in the queue is free.
    fn advance_head(&mut self) {
        self.submission_head = (self.submission_head + 1) % self.depth;
    }

    /// Takes a capsule and answers it with an error.
    fn fail(&mut self, capsule: &Capsule, status: Status) -> Parsed {
        self.input.consume(capsule.pdu_bytes);
        self.advance_head();
        self.interrupt_fused();
        let command_id = capsule.entry.command_id.get();
        self.push_response(&CompletionEntry::new(command_id, status.without_retry(), 0));
        Parsed::One
    }

    fn without_data(&mut self, capsule: &Capsule, transfer_bytes_max: u32) -> Result<Parsed, End> {
        self.input.consume(capsule.pdu_bytes);
        self.advance_head();
        let ticket = self.enter_fused(&capsule.entry);
        let command = Command::without_data(capsule.entry, transfer_bytes_max);
        if ticket.is_some() || transfer_bytes_max == 0 {
            self.complete(command, ticket)?;
        } else if let Some(command) = self.reads.admit(command) {
            self.dispatch(command)?;
        }
        Ok(Parsed::One)
    }

    fn in_capsule(&mut self, capsule: &Capsule, offset: u64, length: usize) -> Result<Parsed, End> {
        self.large_data = false;
        let entry = capsule.entry;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if offset
            .checked_add(length)
            .is_none_or(|end| end > capsule.data_bytes)
        {
            return Ok(self.fail(capsule, Status::INVALID_SGL_OFFSET));
        }
        let align_bytes = self.queue.data_align_bytes(&entry);
        let start = capsule.data_offset + offset;
        let aligned = align_bytes <= 1
            || self.input.bytes().get(start..).is_some_and(|data| {
                (data.as_ptr() as usize).is_multiple_of(align_bytes) && length.is_multiple_of(align_bytes)
            });
        let mut pdu = self.input.take(capsule.pdu_bytes);
        self.advance_head();
        let ticket = self.enter_fused(&entry);
        let damaged = capsule.data_digest && !digest_matches(&pdu, capsule.data_offset, capsule.data_bytes);
        if damaged && ticket.is_none() {
            let status = Status::TRANSIENT_TRANSPORT_ERROR;
            self.push_response(&CompletionEntry::new(entry.command_id.get(), status, 0));
            return Ok(Parsed::One);
        }
        pdu.advance(start);
        // As in `end_data`, without its data it makes the queue fail the pair.
        pdu.truncate(if damaged { 0 } else { length });
        let data = if aligned || pdu.is_empty() {
            Gather::from(pdu)
        } else {
            self.copy(&pdu).into()
        };
        self.complete(
            Command {
                entry,
                data,
                transfer_bytes_max: 0,
            },
            ticket,
        )?;
        Ok(Parsed::One)
    }

    /// A copy that begins where the pages of the memory do.
    #[cold]
    fn copy(&self, data: &[u8]) -> Buffer {
        // On the heap at worst, as this command is about to execute: at most a queue's depth of capsules.
        let mut copy = self
            .pool
            .allocate(data.len())
            .unwrap_or_else(|| Buffer::from_heap(data.len()));
        copy.copy_from_slice(data);
        copy
    }

    /// Takes a command whose data is to be asked for.
    fn begin_transfer(&mut self, capsule: &Capsule, length_bytes: u32) -> Result<Parsed, End> {
        let entry = capsule.entry;
        if let Some(refusal) = self.queue.refuse_early(&entry, length_bytes) {
            if entry.fuse() == Fuse::None {
                self.input.consume(capsule.pdu_bytes);
                self.advance_head();
                self.interrupt_fused();
                self.push_response(&refusal);
                return Ok(Parsed::One);
            }
            // The queue fails both halves of a fused pair when one of them comes without its data.
            return self.without_data(capsule, 0);
        }
        if length_bytes as usize > self.pool.max_buffer_bytes() {
            return Ok(self.fail(capsule, Status::INVALID_FIELD));
        }
        self.input.consume(capsule.pdu_bytes);
        self.advance_head();
        let fused = self.enter_fused(&entry);
        self.transfers.push(Awaiting {
            entry,
            length_bytes,
            fused,
        });
        Ok(Parsed::One)
    }

    fn begin_data(
        &mut self,
        header: &HostDataHeader,
        data_offset: usize,
        digest: bool,
    ) -> Result<Parsed, End> {
        let transfer = self.transfers.expect(header)?;
        // Padding between header and data has to be there to be skipped.
        if self.input.bytes().len() < data_offset {
            return Ok(Parsed::NeedMore);
        }
        self.input.consume(data_offset);
        let sink = Sink {
            buffer: std::mem::replace(&mut transfer.buffer, Buffer::empty()),
            filled: header.offset_bytes,
            end: header.offset_bytes + header.length_bytes,
        };
        self.large_data = header.length_bytes >= LARGE_DATA_BYTES;
        self.receiving = Receiving::Data {
            tag: header.transfer_tag,
            sink,
            digest,
        };
        Ok(Parsed::One)
    }

    /// Moves received data to its buffer; ends the PDU when all of it and its digest are there.
    fn parse_data(&mut self) -> Result<Parsed, End> {
        let Receiving::Data { tag, sink, digest } = &mut self.receiving else {
            return Ok(Parsed::One);
        };
        let (tag, digest) = (*tag, *digest);
        let wanted = sink.end - sink.filled;
        if wanted > 0 {
            let have = self.input.bytes().len().min(wanted);
            if have == 0 {
                return Ok(Parsed::NeedMore);
            }
            sink.buffer[sink.filled..sink.filled + have].copy_from_slice(&self.input.bytes()[..have]);
            sink.filled += have;
            self.input.consume(have);
            if have < wanted {
                return Ok(Parsed::NeedMore);
            }
        }
        let expected = if digest {
            let Some(bytes) = self.input.bytes().first_chunk::<DIGEST_BYTES>() else {
                return Ok(Parsed::NeedMore);
            };
            Some(u32::from_le_bytes(*bytes))
        } else {
            None
        };
        let Receiving::Data { sink, .. } = std::mem::replace(&mut self.receiving, Receiving::Header) else {
            return Ok(Parsed::One);
        };
        if expected.is_some() {
            self.input.consume(DIGEST_BYTES);
        }
        self.end_data(tag, sink, expected)
    }

    fn end_data(&mut self, tag: u16, sink: Sink, expected: Option<u32>) -> Result<Parsed, End> {
        let Some(transfer) = self.transfers.get_mut(tag) else {
            return Err(Violation::OutOfSequence {
                pdu_type: PduType::HostData,
            }
            .into());
        };
        let received = &sink.buffer[transfer.received..sink.end];
        transfer.damaged |= expected.is_some_and(|expected| crc32c(received) != expected);
        transfer.received = sink.end;
        transfer.buffer = sink.buffer;
        if transfer.received < transfer.length_bytes {
            return Ok(Parsed::One);
        }
        let Some(transfer) = self.transfers.remove(tag) else {
            return Ok(Parsed::One);
        };
        let Transfer {
            entry,
            buffer,
            fused,
            damaged,
            ..
        } = transfer;
        if damaged && fused.is_none() {
            let status = Status::TRANSIENT_TRANSPORT_ERROR;
            self.push_response(&CompletionEntry::new(entry.command_id.get(), status, 0));
            return Ok(Parsed::One);
        }
        // A damaged half of a fused pair goes on without data, which makes the queue fail the pair.
        let data = if damaged { Gather::new() } else { buffer.into() };
        self.complete(
            Command {
                entry,
                data,
                transfer_bytes_max: 0,
            },
            fused,
        )?;
        Ok(Parsed::One)
    }

    fn enter_fused(&mut self, entry: &SubmissionEntry) -> Option<FusedTicket> {
        match entry.fuse() {
            Fuse::None => {
                self.interrupt_fused();
                None
            }
            fuse => Some(self.fused.enter(fuse == Fuse::First)),
        }
    }

    /// A command arrived that is none of a pair, or never gets to the queue.
    fn interrupt_fused(&mut self) {
        if self.fused.interrupt() {
            self.queue.fused_interrupted();
        }
    }

    /// A command has all its data: it starts, unless a fused command before it has to start first.
    pub(super) fn complete(&mut self, command: Command, ticket: Option<FusedTicket>) -> Result<(), End> {
        let Some(ticket) = ticket else {
            return self.dispatch(command);
        };
        self.fused.complete(ticket, command);
        while let Some((command, interrupted)) = self.fused.next() {
            self.dispatch(command)?;
            if interrupted {
                self.queue.fused_interrupted();
            }
        }
        Ok(())
    }
}

fn digest_matches(pdu: &[u8], data_offset: usize, data_bytes: usize) -> bool {
    let data_end = data_offset + data_bytes;
    let data = pdu.get(data_offset..data_end);
    let digest = pdu.get(data_end..data_end + DIGEST_BYTES);
    data.zip(digest)
        .is_some_and(|(data, digest)| crc32c(data).to_le_bytes() == digest)
}
