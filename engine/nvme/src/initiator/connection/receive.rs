//! What a connection hears: received bytes to completions, data and R2Ts. No sockets, no clock.
//!
//! Everything that a target can send ends in one of three ways: it is what the protocol allows and a command
//! moves on; it damages the data of one command, which then fails; or it ends the connection with a
//! [`ConnectionError`]. Data is written to the buffer of the outstanding command it names, at the place that
//! comes next, and nowhere else.

use super::error::ConnectionError;
use super::protocol::{Grant, Protocol};
use super::slots::{CommandId, Slot, Transfer};
use crate::wire::command::CompletionEntry;
use crate::wire::digest::{DIGEST_BYTES, Digest};
use crate::wire::pdu::{
    Decoded, Direction, HEADER_BYTES_MAX, Header, Pdu, PduFlags, PduType, Violation, decode_header,
};
use crate::wire::status::Status;

/// Data of a PDU that is better not copied: what follows its header is received where it belongs.
const LARGE_DATA_BYTES: u32 = 16 * 1024;

/// Bytes received at a time while large data is expected: headers and completions, and little of the data.
const BUFFERED_BYTES_WITH_LARGE_DATA: usize = 2048;

/// What the next received bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Receiving {
    /// The header of a PDU.
    Header,
    /// Data of a command.
    Data(Data),
    /// The digest of the data before it.
    DataDigest(Data),
}

/// A C2HData PDU under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    command: CommandId,
    /// Where the next byte belongs in the buffer of the command.
    offset: usize,
    end: usize,
    success: bool,
    digest: Option<Digest>,
}

impl Protocol {
    /// Where the next received bytes belong, if they are data: they may be received right there, and are then
    /// reported with [`Protocol::received_direct`].
    pub(super) fn direct(&mut self) -> &mut [u8] {
        let Receiving::Data(data) = self.receiving else {
            return &mut [];
        };
        self.buffer_of(&data)
    }

    /// How many bytes to receive at a time that are not known to be data.
    pub(super) fn buffered_bytes_max(&self) -> usize {
        if self.large_data {
            BUFFERED_BYTES_WITH_LARGE_DATA
        } else {
            usize::MAX
        }
    }

    /// The part of a command's buffer that a PDU under way has yet to fill.
    fn buffer_of(&mut self, data: &Data) -> &mut [u8] {
        match self.slots.outstanding_mut(data.command) {
            Some(Slot {
                transfer: Transfer::Receive(buffer),
                ..
            }) => buffer.get_mut(data.offset..data.end).unwrap_or_default(),
            _ => &mut [],
        }
    }

    /// `received` bytes are in the place that [`Protocol::direct`] gave.
    ///
    /// # Errors
    ///
    /// As for [`Protocol::receive`].
    pub(super) fn received_direct(&mut self, received: usize) -> Result<(), ConnectionError> {
        let Receiving::Data(mut data) = self.receiving else {
            return Ok(());
        };
        if let Some(mut digest) = data.digest {
            let filled = self.buffer_of(&data);
            digest.update(filled.get(..received).unwrap_or(filled));
            data.digest = Some(digest);
        }
        data.offset += received;
        self.advance(data)
    }

    /// Takes received bytes; returns how many were of use. The rest is the start of something that has not
    /// arrived whole, and is to be given again with what follows it.
    ///
    /// # Errors
    ///
    /// The connection has to end; [`Protocol::end`] is to be called.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            let step = match self.receiving {
                Receiving::Header => self
                    .receive_header(rest)
                    .inspect_err(|_| self.keep_offender(rest))?,
                Receiving::Data(data) => self.receive_data(data, rest)?,
                Receiving::DataDigest(data) => self.receive_digest(data, rest)?,
            };
            if step == 0 {
                break;
            }
            used += step;
        }
        Ok(used)
    }

    fn receive_header(&mut self, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let decoded = decode_header(bytes, Direction::ControllerToHost, &self.terms.limits)?;
        let Decoded::Pdu(pdu) = decoded else {
            return Ok(0);
        };
        match pdu.header {
            Header::Response(capsule) => self.complete(&capsule.entry)?,
            Header::ControllerData(_) => return self.begin_data(&pdu, bytes.len()),
            Header::ReadyToTransfer(ready) => {
                let offset_bytes = ready.offset_bytes.get();
                self.ready_to_transfer(Grant {
                    command: CommandId(ready.command_id.get()),
                    transfer_tag: ready.transfer_tag.get(),
                    offset_bytes,
                    // The decoder has seen that it does not wrap.
                    end_bytes: offset_bytes.saturating_add(ready.length_bytes.get()),
                })?;
            }
            Header::Terminate(request) => {
                return Err(ConnectionError::Terminated {
                    status_field: request.status_field.get(),
                    information: request.information.get(),
                });
            }
            // The decoder lets none of these through; were it to, they are out of sequence.
            Header::InitializeRequest(_)
            | Header::InitializeResponse(_)
            | Header::Command(_)
            | Header::HostData(_) => {
                let pdu_type = PduType::InitializeResponse;
                return Err(Violation::WrongPhase { pdu_type }.into());
            }
        }
        Ok(pdu.pdu_bytes)
    }

    fn begin_data(&mut self, pdu: &Pdu<'_>, received: usize) -> Result<usize, ConnectionError> {
        let Header::ControllerData(header) = pdu.header else {
            return Ok(0);
        };
        // Padding between header and data has to be there to be skipped.
        if received < pdu.data_offset {
            return Ok(0);
        }
        let pdu_type = PduType::ControllerData;
        let sent_position = self.output.sent_position();
        let command = CommandId(header.command_id.get());
        let Some(slot) = self.slots.outstanding_mut(command) else {
            let command_id = command.to_wire();
            return Err(ConnectionError::UnknownCommand { pdu_type, command_id });
        };
        let wants_data = matches!(slot.transfer, Transfer::Receive(_)) && !slot.last_data_seen;
        if !wants_data || sent_position < slot.capsule_end {
            return Err(Violation::OutOfSequence { pdu_type }.into());
        }
        let offset_bytes = header.offset_bytes.get();
        // The decoder has seen that it does not wrap.
        let end_bytes = offset_bytes.saturating_add(header.length_bytes.get());
        if offset_bytes != slot.moved_bytes || end_bytes > slot.length_bytes {
            return Err(Violation::DataOutOfRange { pdu_type }.into());
        }
        let flags = PduFlags::from_bits_truncate(header.common.flags);
        slot.moved_bytes = end_bytes;
        slot.last_data_seen = flags.contains(PduFlags::LAST);
        self.large_data = header.length_bytes.get() >= LARGE_DATA_BYTES;
        self.receiving = Receiving::Data(Data {
            command,
            offset: offset_bytes as usize,
            end: end_bytes as usize,
            success: flags.contains(PduFlags::SUCCESS),
            digest: pdu.data_digest.then(Digest::new),
        });
        Ok(pdu.data_offset)
    }

    fn receive_data(&mut self, mut data: Data, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let into = self.buffer_of(&data);
        let length = into.len().min(bytes.len());
        let Some((into, from)) = into
            .get_mut(..length)
            .zip(bytes.get(..length))
            .filter(|_| length > 0)
        else {
            // No command ends while its data is under way, so its buffer is there.
            let (pdu_type, command_id) = (PduType::ControllerData, data.command.to_wire());
            return Err(ConnectionError::UnknownCommand { pdu_type, command_id });
        };
        into.copy_from_slice(from);
        if let Some(digest) = &mut data.digest {
            digest.update(from);
        }
        data.offset += length;
        self.advance(data)?;
        Ok(length)
    }

    /// Goes on behind data that has arrived.
    fn advance(&mut self, data: Data) -> Result<(), ConnectionError> {
        if data.offset < data.end {
            self.receiving = Receiving::Data(data);
            return Ok(());
        }
        if data.digest.is_some() {
            self.receiving = Receiving::DataDigest(data);
            return Ok(());
        }
        self.end_data(data)
    }

    fn receive_digest(&mut self, data: Data, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let Some(received) = bytes.first_chunk::<DIGEST_BYTES>() else {
            return Ok(0);
        };
        if data.digest.is_some_and(|digest| digest.to_bytes() != *received)
            && let Some(slot) = self.slots.outstanding_mut(data.command)
        {
            // Not fatal: the command fails, the connection goes on (NVMe/TCP Transport, Data Digest Error
            // handling).
            slot.damaged = true;
        }
        self.end_data(data)?;
        Ok(DIGEST_BYTES)
    }

    fn end_data(&mut self, data: Data) -> Result<(), ConnectionError> {
        self.receiving = Receiving::Header;
        if data.success {
            let completion = CompletionEntry::new(data.command.to_wire(), Status::SUCCESS, 0);
            return self.complete(&completion);
        }
        Ok(())
    }

    /// Keeps the header at the start of `bytes`, for the termination request.
    fn keep_offender(&mut self, bytes: &[u8]) {
        let header_bytes = bytes
            .get(2)
            .map_or(0, |&bytes| usize::from(bytes))
            .clamp(8, HEADER_BYTES_MAX);
        self.offender.clear();
        self.offender
            .extend_from_slice(bytes.get(..header_bytes).unwrap_or(bytes));
    }
}
