//! Requests at the device, piece by piece, and their replies.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pollux_device::{Reply, Request, ZeroOptions};
use pollux_hugepages::Buffer;
use pollux_reactor::Started;

use super::{End, Finished, Piece, READ_BYTES_MAX, Session, Slot};
use crate::request::{self, Accepted, STEP_BYTES_MAX, piece_bytes};
use crate::wire::{CommandKind, NbdError, ReplyStyle, command_flag};

impl Session {
    /// Hands a piece to the device.
    pub(super) fn start(&mut self, index: u16, from: u64, request: Request) -> Result<(), End> {
        if let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) {
            slot.pieces_under_way += 1;
        }
        let read_bytes = match &request {
            Request::Read { into, .. } => into.len() as u64,
            _ => 0,
        };
        self.read_bytes_under_way += read_bytes;
        let finished = |result| Finished {
            slot: index,
            from,
            read_bytes,
            result,
        };
        let completion = match self.device.submit(request).try_take() {
            Ok(result) => return self.finish_piece(finished(result)),
            Err(completion) => completion,
        };
        let piece = Piece {
            slot: index,
            from,
            read_bytes,
            completion,
        };
        match self.pieces.start(piece) {
            Ok(Started::Ready(finished)) => self.finish_piece(finished),
            Ok(Started::Pending(_)) => Ok(()),
            // There is room for the pieces of all slots.
            Err(_) => self.finish_piece(finished(Err(pollux_device::IoError::ResourceShortage))),
        }
    }

    pub(super) fn execute_without_data(&mut self, index: u16) -> Result<(), End> {
        let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(());
        };
        let Accepted {
            header,
            block,
            blocks,
            force_unit_access,
        } = slot.accepted;
        let block_bytes = u64::from(self.device.geometry().block_bytes);
        let from = slot.begun;
        let step = (header.length - from.min(header.length)).min(STEP_BYTES_MAX);
        let (block, step_blocks) = (block + from / block_bytes, (step / block_bytes).min(blocks));
        slot.begun = from + step;
        let request = match header.kind {
            CommandKind::Flush => Request::Flush,
            CommandKind::Trim => Request::Deallocate {
                block,
                blocks: step_blocks,
            },
            CommandKind::WriteZeroes => Request::WriteZeroes {
                block,
                blocks: step_blocks,
                options: ZeroOptions {
                    force_unit_access,
                    may_deallocate: header.flags & command_flag::NO_HOLE == 0,
                },
            },
            // Cache is a hint, and reads and writes of nothing are done.
            _ => {
                self.end(index);
                return Ok(());
            }
        };
        self.start(index, from, request)
    }

    /// Goes on with reads as long as there are memory and room.
    pub(super) fn resume_reads(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        while let Some(&index) = self.stalled.front() {
            if self.output.is_full() || self.pieces.is_full() {
                break;
            }
            let geometry = self.device.geometry();
            let Some(slot) = self.slots.get(usize::from(index)).and_then(Option::as_ref) else {
                break;
            };
            let (from, length, first_block) = (slot.begun, slot.accepted.header.length, slot.accepted.block);
            if self.alone == Some(index) && from == 0 && self.free.len() + 1 < self.slots.len() {
                // Until all others are answered.
                break;
            }
            let bytes = piece_bytes(length, from, &geometry);
            if self.read_bytes_under_way > 0 && self.read_bytes_under_way + bytes > READ_BYTES_MAX {
                break;
            }
            let Poll::Ready(memory) = self.poll_memory(bytes as usize, context) else {
                break;
            };
            self.stalled.pop_front();
            moved = true;
            match memory {
                Some(into) => {
                    let block = first_block + from / u64::from(geometry.block_bytes);
                    if let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) {
                        slot.begun = from + bytes;
                    }
                    self.start(index, from, Request::Read { block, into })?;
                }
                None => self.fail_read(index, from, NbdError::NoMemory)?,
            }
        }
        Ok(moved)
    }

    /// Memory for the first of the stalled reads; none if there never will be any.
    fn poll_memory(&mut self, bytes: usize, context: &mut Context<'_>) -> Poll<Option<Buffer>> {
        if self.memory.is_none()
            && let Some(buffer) = self.pool.allocate(bytes)
        {
            return Poll::Ready(Some(buffer));
        }
        let pool = &self.pool;
        let memory = self.memory.get_or_insert_with(|| pool.wait_for(bytes));
        let result = std::task::ready!(Pin::new(memory).poll(context));
        self.memory = None;
        Poll::Ready(result.ok().filter(|buffer| buffer.len() == bytes))
    }

    pub(super) fn finish_piece(&mut self, finished: Finished) -> Result<(), End> {
        let Finished {
            slot: index,
            from,
            read_bytes,
            result,
        } = finished;
        self.read_bytes_under_way -= read_bytes;
        let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(());
        };
        slot.pieces_under_way -= 1;
        let header = slot.accepted.header;
        let complete = slot.begun >= header.length;
        match result {
            Ok(data @ (Reply::Data(_) | Reply::Shared { .. })) => {
                self.replies().data(&header, from, data, complete);
                if complete {
                    self.free_slot(index);
                } else {
                    self.stalled.push_back(index);
                }
                return Ok(());
            }
            // A read that brings no data has failed, whatever the device calls it.
            Ok(Reply::Done) if header.kind == CommandKind::Read => {
                slot.error.get_or_insert(NbdError::Io);
            }
            Ok(Reply::Done) => {}
            Err(error) => {
                slot.error.get_or_insert(request::error_of(error));
            }
        }
        let failed = slot.error;
        let idle = slot.pieces_under_way == 0;
        match header.kind {
            CommandKind::Read => self.fail_read(index, from, failed.unwrap_or(NbdError::Io))?,
            CommandKind::Write if idle && complete => self.end(index),
            CommandKind::Write => {}
            _ if failed.is_some() || complete => self.end(index),
            _ => self.execute_without_data(index)?,
        }
        Ok(())
    }

    /// Ends a read with an error, unless a simple reply has said already that it went well.
    fn fail_read(&mut self, index: u16, from: u64, error: NbdError) -> Result<(), End> {
        if from > 0 && self.style == ReplyStyle::Simple {
            return Err(End::HalfRead);
        }
        if let Some(slot) = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut) {
            slot.error.get_or_insert(error);
        }
        self.end(index);
        Ok(())
    }

    /// Answers the request in a slot and frees it.
    pub(super) fn end(&mut self, index: u16) {
        let Some(slot) = self.free_slot(index) else { return };
        let result = slot.error.map_or(Ok(()), Err);
        self.replies().end(&slot.accepted.header, result);
    }

    pub(super) fn free_slot(&mut self, index: u16) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(index))?.take()?;
        self.free.push(index);
        if self.alone == Some(index) {
            self.alone = None;
        }
        Some(slot)
    }
}
