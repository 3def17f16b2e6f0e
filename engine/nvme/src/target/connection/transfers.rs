//! Commands whose data the host has yet to send: those that wait to be asked for it, and those that were, by
//! transfer tag.
//!
//! A command is taken off the connection before there is memory for its data, so that what follows it is read
//! in any case: among that is the data of the transfers that hold memory.
//!
//! Invariants:
//! - A tag names at most one transfer; `received` bytes of `buffer` have arrived, in order and without a gap;
//!   one R2T covers the whole of a transfer.
//! - Commands are asked for their data in the order in which they arrived.
//! - `granted_bytes` is the length of all transfers with a tag, and above [`GRANTED_BYTES_MAX`] only with a
//!   single one.
//! - `memory` waits for the buffer of the first command of `awaiting`, and for no other.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pollux_hugepages::{Buffer, BufferPool, BufferWait};

use super::fused_order::FusedTicket;
use crate::wire::command::SubmissionEntry;
use crate::wire::pdu::{DataRange, PduType, Violation};

/// Data that a host may have been asked for on one connection, in bytes. Enough to keep a fast network busy;
/// more would take memory from other connections, and out of the processor's cache.
const GRANTED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A command that waits to be asked for its data.
#[derive(Debug)]
pub(super) struct Awaiting {
    pub(super) entry: SubmissionEntry,
    pub(super) length_bytes: u32,
    /// Its place among the fused commands, if it is one.
    pub(super) fused: Option<FusedTicket>,
}

/// What came of the first command that waits.
#[derive(Debug)]
pub(super) enum Grant {
    /// The host may send this data, naming this tag.
    Ready { tag: u16, range: DataRange },
    /// There will be no memory: too many wait for it.
    Refused(Awaiting),
}

/// A command that waits for its data.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) entry: SubmissionEntry,
    /// As long as the whole of the data; away while a PDU is received into it.
    pub(super) buffer: Buffer,
    pub(super) length_bytes: usize,
    pub(super) received: usize,
    /// Its place among the fused commands, if it is one.
    pub(super) fused: Option<FusedTicket>,
    /// A data digest did not match: the command will fail.
    pub(super) damaged: bool,
}

/// Commands whose data the host has yet to send. See the module.
pub(super) struct Transfers {
    slots: Box<[Option<Transfer>]>,
    free: Vec<u16>,
    granted_bytes: usize,
    awaiting: VecDeque<Awaiting>,
    memory: Option<BufferWait>,
}

impl Transfers {
    pub(super) fn new(depth: u16) -> Self {
        Self {
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            granted_bytes: 0,
            awaiting: VecDeque::new(),
            memory: None,
        }
    }

    /// Commands without all of their data.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len() + self.awaiting.len()
    }

    /// Adds a command, behind all others.
    pub(super) fn push(&mut self, command: Awaiting) {
        self.awaiting.push_back(command);
    }

    /// Takes the first command that waits, once the host may be asked for its data. The task is woken when
    /// there is memory; data that arrives is what makes room otherwise.
    pub(super) fn poll_grant(&mut self, pool: &BufferPool, context: &mut Context<'_>) -> Poll<Grant> {
        let Some(first) = self.awaiting.front() else {
            return Poll::Pending;
        };
        let length_bytes = first.length_bytes as usize;
        if self.granted_bytes > 0 && self.granted_bytes + length_bytes > GRANTED_BYTES_MAX {
            return Poll::Pending;
        }
        let memory = self.memory.get_or_insert_with(|| pool.wait_for(length_bytes));
        let Poll::Ready(buffer) = Pin::new(memory).poll(context) else {
            return Poll::Pending;
        };
        self.memory = None;
        // There is a slot: the commands outstanding are fewer than the queue is deep.
        let (Some(first), Some(&tag)) = (self.awaiting.pop_front(), self.free.last()) else {
            return Poll::Pending;
        };
        let Ok(buffer) = buffer else {
            return Poll::Ready(Grant::Refused(first));
        };
        self.free.pop();
        self.granted_bytes += length_bytes;
        let range = DataRange {
            command_id: first.entry.command_id.get(),
            offset_bytes: 0,
            length_bytes: first.length_bytes,
        };
        self.slots[usize::from(tag)] = Some(Transfer {
            entry: first.entry,
            buffer,
            length_bytes,
            received: 0,
            fused: first.fused,
            damaged: false,
        });
        Poll::Ready(Grant::Ready { tag, range })
    }

    /// Takes a transfer out.
    pub(super) fn remove(&mut self, tag: u16) -> Option<Transfer> {
        let transfer = self.slots.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        self.granted_bytes -= transfer.length_bytes;
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
        if end > transfer.length_bytes || data.last != (end == transfer.length_bytes) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_hugepages::PoolOptions;
    use std::task::Waker;

    const POOL_BYTES: usize = 2 << 20;

    fn pool() -> BufferPool {
        BufferPool::on_heap(&PoolOptions {
            total_bytes: POOL_BYTES,
            ..PoolOptions::default()
        })
        .expect("there is memory")
    }

    fn push(transfers: &mut Transfers, id: u16, length_bytes: u32) {
        transfers.push(Awaiting {
            entry: SubmissionEntry::new(1, id, 1),
            length_bytes,
            fused: None,
        });
    }

    /// The tags that are granted now, with the identifiers of their commands.
    fn granted(transfers: &mut Transfers, pool: &BufferPool) -> Vec<(u16, u16)> {
        let mut context = Context::from_waker(Waker::noop());
        let mut granted = Vec::new();
        while let Poll::Ready(Grant::Ready { tag, range }) = transfers.poll_grant(pool, &mut context) {
            granted.push((tag, range.command_id));
        }
        granted
    }

    #[test]
    fn a_host_is_asked_for_so_much_at_a_time() {
        let pools = [pool(), pool(), pool()];
        let mut transfers = Transfers::new(16);
        const EACH_BYTES: u32 = 700 * 1024;
        for id in 0..5 {
            push(&mut transfers, id, EACH_BYTES);
        }
        // A slot of 1 MiB each, of which a pool has two.
        let first = granted(&mut transfers, &pools[0]);
        assert_eq!(first.iter().map(|grant| grant.1).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(transfers.len(), 5);
        assert!(transfers.remove(first[1].0).is_some());
        assert_eq!(granted(&mut transfers, &pools[0]).len(), 1);
        push(&mut transfers, 9, u32::MAX);
        let mut context = Context::from_waker(Waker::noop());
        for tag in 0..16 {
            transfers.remove(tag);
        }
        assert_eq!(granted(&mut transfers, &pools[1]).len(), 2);
        for tag in 0..16 {
            transfers.remove(tag);
        }
        let refused = transfers.poll_grant(&pools[2], &mut context);
        assert!(
            matches!(
                refused,
                Poll::Ready(Grant::Refused(Awaiting {
                    length_bytes: u32::MAX,
                    ..
                }))
            ),
            "{refused:?}"
        );
        assert_eq!(transfers.len(), 0);
    }

    #[test]
    fn memory_is_waited_for_in_the_order_of_arrival() {
        let pool = pool();
        let mut transfers = Transfers::new(4);
        let taken = pool.allocate(POOL_BYTES).expect("the pool is empty");
        push(&mut transfers, 0, 1 << 20);
        push(&mut transfers, 1, 4096);
        assert_eq!(granted(&mut transfers, &pool), []);
        drop(taken);
        let ids: Vec<_> = granted(&mut transfers, &pool)
            .into_iter()
            .map(|grant| grant.1)
            .collect();
        assert_eq!(ids, [0, 1]);
    }

    #[test]
    fn data_must_be_what_was_asked_for() {
        let mut transfers = Transfers::new(2);
        push(&mut transfers, 7, 8192);
        let (tag, _) = granted(&mut transfers, &pool())[0];
        transfers.get_mut(tag).expect("it was granted").received = 4096;
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
