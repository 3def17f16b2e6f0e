//! From bytes to requests, and their data to the device.

use std::task::{Context, Poll};

use pollux_device::{Gather, Geometry, Request};

use super::{CUT_BYTES_MAX, End, PIECES_PER_REQUEST, Receiving, Session, Slot};
use crate::request::{self, TRANSFER_BYTES_MAX, piece_bytes};
use crate::wire::{CommandKind, NbdError, ReplyStyle, RequestHeader};

/// Refused requests whose data is skipped; beyond that the connection ends.
const SKIPPED_BYTES_MAX: u64 = 64 * TRANSFER_BYTES_MAX;

enum Parsed {
    One,
    NeedMore,
    /// A slot or a piece has to become free first.
    Busy,
}

impl Session {
    pub(super) fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if self.output.is_full() {
            return Ok(false);
        }
        if self.unparsed {
            let parsed = self.parse()?;
            if self.unparsed || self.disconnecting {
                return Ok(parsed);
            }
        }
        self.input.make_room(&self.pool);
        let direct: &mut [u8] = match &mut self.receiving {
            Receiving::Data {
                piece: Some((buffer, filled)),
                ..
            } => &mut buffer[*filled..],
            _ => &mut [],
        };
        let received = match self.input.poll_receive(&mut *self.stream, context, direct) {
            Poll::Pending => {
                self.input.rest(&self.pool);
                return Ok(false);
            }
            Poll::Ready(received) => received?,
        };
        if received.is_end() {
            return Err(End::Closed);
        }
        self.watch.note_progress();
        if let Receiving::Data {
            piece: Some((_, filled)),
            ..
        } = &mut self.receiving
        {
            *filled += received.direct;
        }
        self.parse()?;
        Ok(true)
    }

    /// Parses what has arrived; `unparsed` is set when something has to become free before more is received.
    /// Says whether anything was parsed.
    fn parse(&mut self) -> Result<bool, End> {
        let mut parsed = false;
        self.unparsed = false;
        while !self.disconnecting {
            if self.output.is_full() {
                self.unparsed = true;
                break;
            }
            match self.parse_one()? {
                Parsed::One => parsed = true,
                Parsed::NeedMore => break,
                Parsed::Busy => {
                    self.unparsed = true;
                    break;
                }
            }
        }
        Ok(parsed)
    }

    fn parse_one(&mut self) -> Result<Parsed, End> {
        match &mut self.receiving {
            Receiving::Header => self.parse_header(),
            Receiving::Data { .. } => self.parse_data(),
            Receiving::Skip { left, header, error } => {
                let have = u64::try_from(self.input.bytes().len())
                    .unwrap_or(u64::MAX)
                    .min(*left);
                self.input.consume(have as usize);
                *left -= have;
                if *left > 0 {
                    return Ok(Parsed::NeedMore);
                }
                let (header, error) = (*header, *error);
                self.receiving = Receiving::Header;
                self.replies().end(&header, Err(error));
                Ok(Parsed::One)
            }
        }
    }

    fn parse_header(&mut self) -> Result<Parsed, End> {
        if self.alone.is_some() {
            return Ok(Parsed::Busy);
        }
        let Some((header, len)) = RequestHeader::decode(self.input.bytes(), self.style)? else {
            return Ok(Parsed::NeedMore);
        };
        let Some(&slot) = self.free.last() else {
            return Ok(Parsed::Busy);
        };
        let geometry = self.device.geometry();
        let checked = request::check(&header, &geometry, self.block_status, self.allow_resize);
        if header.kind == CommandKind::Disconnect {
            self.disconnecting = true;
            return Ok(Parsed::One);
        }
        self.input.consume(len);
        let accepted = match checked {
            Ok(accepted) => accepted,
            Err(error) => return self.refuse(header, error),
        };
        self.free.pop();
        self.slots[usize::from(slot)] = Some(Slot {
            accepted,
            begun: 0,
            pieces_under_way: 0,
            error: None,
        });
        match header.kind {
            CommandKind::Write if header.length > 0 => {
                self.receiving = Receiving::Data {
                    slot,
                    piece: None,
                    received: 0,
                };
            }
            CommandKind::Read if header.length > 0 => {
                if self.style == ReplyStyle::Simple
                    && piece_bytes(header.length, 0, &geometry) < header.length
                {
                    self.alone = Some(slot);
                }
                self.stalled.push_back(slot);
            }
            CommandKind::BlockStatus | CommandKind::Resize => self.slow.push(slot),
            _ => self.execute_without_data(slot)?,
        }
        Ok(Parsed::One)
    }

    /// Answers a request that is not executed; its data, if it has any, comes first.
    fn refuse(&mut self, header: RequestHeader, error: NbdError) -> Result<Parsed, End> {
        if request::carries_data(&header) && header.length > 0 {
            if header.length > SKIPPED_BYTES_MAX {
                return Err(End::Oversized(header.length));
            }
            self.receiving = Receiving::Skip {
                left: header.length,
                header,
                error,
            };
        } else {
            self.replies().end(&header, Err(error));
        }
        Ok(Parsed::One)
    }

    fn parse_data(&mut self) -> Result<Parsed, End> {
        let geometry = self.device.geometry();
        let Receiving::Data {
            slot,
            piece,
            received,
        } = &mut self.receiving
        else {
            return Ok(Parsed::One);
        };
        let index = *slot;
        let Some(state) = self.slots.get(usize::from(index)).and_then(Option::as_ref) else {
            return Ok(Parsed::One);
        };
        let length = state.accepted.header.length;
        let from = *received;
        let data = match piece {
            None => {
                if state.pieces_under_way >= PIECES_PER_REQUEST || self.pieces.is_full() {
                    return Ok(Parsed::Busy);
                }
                let wanted = piece_bytes(length, from, &geometry) as usize;
                let here = self.input.bytes();
                if here.is_empty() {
                    return Ok(Parsed::NeedMore);
                }
                if here.len() >= wanted && wanted <= CUT_BYTES_MAX && is_aligned(here, &geometry) {
                    Gather::from(self.input.take(wanted))
                } else if let Some(buffer) = self.pool.allocate(wanted) {
                    *piece = Some((buffer, 0));
                    return Ok(Parsed::One);
                } else {
                    // Short of memory: what has arrived is written where it lies, one piece at a time.
                    if !self.pieces.is_empty() {
                        return Ok(Parsed::Busy);
                    }
                    let whole = here.len().min(wanted) & !(geometry.block_bytes as usize - 1);
                    if whole == 0 {
                        return Ok(Parsed::NeedMore);
                    }
                    Gather::from(self.input.take(whole))
                }
            }
            Some((buffer, filled)) => {
                let have = self.input.bytes().len().min(buffer.len() - *filled);
                buffer[*filled..*filled + have].copy_from_slice(&self.input.bytes()[..have]);
                self.input.consume(have);
                *filled += have;
                if *filled < buffer.len() {
                    return Ok(Parsed::NeedMore);
                }
                match piece.take() {
                    Some((buffer, _)) => Gather::from(buffer),
                    None => return Ok(Parsed::One),
                }
            }
        };
        *received += data.len_bytes() as u64;
        if *received >= length {
            self.receiving = Receiving::Header;
        }
        self.begin_write(index, from, data)?;
        Ok(Parsed::One)
    }

    fn begin_write(&mut self, index: u16, from: u64, data: Gather) -> Result<(), End> {
        let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(());
        };
        slot.begun = from + data.len_bytes() as u64;
        if slot.error.is_some() {
            // The rest of a write that has failed is received and dropped.
            if slot.pieces_under_way == 0 && slot.begun >= slot.accepted.header.length {
                self.end(index);
            }
            return Ok(());
        }
        let block = slot.accepted.block + from / u64::from(self.device.geometry().block_bytes);
        let force_unit_access = slot.accepted.force_unit_access;
        self.start(
            index,
            from,
            Request::Write {
                block,
                from: data,
                force_unit_access,
            },
        )
    }
}

fn is_aligned(bytes: &[u8], geometry: &Geometry) -> bool {
    geometry.memory_align_bytes <= 1
        || (bytes.as_ptr() as usize).is_multiple_of(geometry.memory_align_bytes as usize)
}
