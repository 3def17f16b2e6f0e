//! The protocol of a connection against a target that is a list of bytes.

mod exchange;
mod properties;
mod violations;

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, Waker};

use pollux_device::Gather;
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::Instant;
use pollux_reactor::net::{Address, Detached, Stream};

use super::error::{CommandError, ConnectionError};
use super::protocol::{Protocol, Terms};
use super::slots::{CommandId, Finished, Transfer};
use crate::wire::command::{CompletionEntry, IoOpcode, SubmissionEntry};
use crate::wire::digest::crc32c;
use crate::wire::pdu::{
    ConnectionLimits, DataAlignment, DataEnd, DataRange, Decoded, Direction, Framing, HEADER_BYTES_MAX,
    Header, Phase, decode_header, encode_controller_data, encode_ready_to_transfer, encode_response,
};
use crate::wire::status::Status;

/// Takes everything that is sent, and keeps it.
#[derive(Default)]
struct Sent(Vec<u8>);

impl Stream for Sent {
    fn poll_receive(&mut self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }
    fn poll_send(&mut self, _: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let before = self.0.len();
        from.iter().for_each(|piece| self.0.extend_from_slice(piece));
        Poll::Ready(Ok(self.0.len() - before))
    }
    fn shutdown(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn peer(&self) -> &Address {
        unreachable!()
    }
    fn local(&self) -> &Address {
        unreachable!()
    }
    fn detach(self: Box<Self>) -> io::Result<Detached> {
        unreachable!()
    }
}

/// What a test agrees on with its target.
#[derive(Debug, Clone, Copy)]
struct Agreed {
    header_digest: bool,
    data_digest: bool,
    in_capsule_bytes_max: u32,
    host_data_bytes_max: u32,
    depth: u16,
}

const PLAIN: Agreed = Agreed {
    header_digest: false,
    data_digest: false,
    in_capsule_bytes_max: 8192,
    host_data_bytes_max: 65_536,
    depth: 4,
};

const DIGESTS: Agreed = Agreed {
    header_digest: true,
    data_digest: true,
    ..PLAIN
};

/// A host and what it heard and said.
struct Host {
    protocol: Protocol,
    framing: Framing,
}

impl Host {
    fn new(agreed: Agreed) -> Self {
        let framing = Framing {
            header_digest: agreed.header_digest,
            data_digest: agreed.data_digest,
            data_alignment: DataAlignment::NONE,
        };
        let limits = ConnectionLimits {
            phase: Phase::Established,
            header_digest: agreed.header_digest,
            data_digest: agreed.data_digest,
            data_alignment: DataAlignment::NONE,
            in_capsule_data_bytes_max: 0,
            host_data_bytes_max: 0,
            controller_data_bytes_max: u32::MAX,
        };
        let terms = Terms {
            limits,
            framing,
            host_data_bytes_max: agreed.host_data_bytes_max,
        };
        let mut protocol = Protocol::new(terms, agreed.depth);
        protocol.in_capsule_bytes_max = agreed.in_capsule_bytes_max;
        Self { protocol, framing }
    }

    fn submit(&mut self, opcode: IoOpcode, transfer: Transfer) -> CommandId {
        let entry = SubmissionEntry::new(opcode.to_wire(), 0, 1);
        self.protocol
            .submit(&entry, transfer, Instant::ORIGIN)
            .expect("there is room")
    }

    fn read(&mut self, bytes: usize) -> CommandId {
        let mut buffer = Buffer::from_heap(bytes);
        buffer.fill(UNTOUCHED);
        self.submit(IoOpcode::Read, Transfer::Receive(buffer))
    }

    fn write(&mut self, bytes: &[u8]) -> CommandId {
        self.submit(IoOpcode::Write, Transfer::Send(Slice::copy_from(bytes).into()))
    }

    fn flush(&mut self) -> CommandId {
        self.submit(IoOpcode::Flush, Transfer::None)
    }

    /// What the host sends now.
    fn sent(&mut self) -> Vec<u8> {
        let mut sent = Sent::default();
        let mut context = Context::from_waker(Waker::noop());
        loop {
            self.protocol.fill_output();
            if self.protocol.output.is_empty() {
                return sent.0;
            }
            assert!(self.protocol.output.poll_send(&mut sent, &mut context).is_ready());
        }
    }

    /// Gives received bytes in pieces of `piece_bytes`, the way the task does: data straight to where it
    /// belongs when `direct`, everything else through a buffer.
    fn hear_in_pieces(
        &mut self,
        bytes: &[u8],
        piece_bytes: usize,
        direct: bool,
    ) -> Result<(), ConnectionError> {
        let mut buffered = Vec::new();
        for piece in bytes.chunks(piece_bytes) {
            let mut rest = piece;
            if direct && buffered.is_empty() {
                let into = self.protocol.direct();
                let length = into.len().min(rest.len());
                into[..length].copy_from_slice(&rest[..length]);
                rest = &rest[length..];
                if length > 0 {
                    self.protocol.received_direct(length)?;
                }
            }
            buffered.extend_from_slice(rest);
            let used = self.protocol.receive(&buffered)?;
            buffered.drain(..used);
        }
        Ok(())
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.hear_in_pieces(bytes, usize::MAX, false)
    }

    fn finished(&mut self, id: CommandId) -> Option<Finished> {
        match self
            .protocol
            .slots
            .poll_finished(id, &mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(finished) => Some(finished.expect("it is this test's command")),
            Poll::Pending => None,
        }
    }

    /// A completion of this status.
    fn response(&self, id: CommandId, status: Status) -> Vec<u8> {
        encoded(|out| encode_response(&CompletionEntry::new(id.to_wire(), status, 0), &self.framing, out))
    }

    fn data(&self, id: CommandId, offset: u32, data: &[u8], end: DataEnd) -> Vec<u8> {
        let range = DataRange {
            command_id: id.to_wire(),
            offset_bytes: offset,
            length_bytes: data.len() as u32,
        };
        let mut bytes = encoded(|out| encode_controller_data(range, end, &self.framing, out));
        bytes.extend_from_slice(data);
        if self.framing.data_digest {
            bytes.extend_from_slice(&crc32c(data).to_le_bytes());
        }
        bytes
    }

    fn ready(&self, id: CommandId, tag: u16, offset: u32, length: u32) -> Vec<u8> {
        let range = DataRange {
            command_id: id.to_wire(),
            offset_bytes: offset,
            length_bytes: length,
        };
        encoded(|out| encode_ready_to_transfer(range, tag, &self.framing, out))
    }
}

/// What the buffer of a read holds before anything arrives.
const UNTOUCHED: u8 = 0xee;

fn encoded(encode: impl FnOnce(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES_MAX];
    let bytes = encode(&mut out).expect("there is room");
    out.truncate(bytes);
    out
}

/// A PDU that a host sent.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Command {
        entry: SubmissionEntry,
        data: Vec<u8>,
    },
    Data {
        command_id: u16,
        tag: u16,
        offset: u32,
        last: bool,
        data: Vec<u8>,
    },
}

/// Takes apart what a host sent, checking every digest.
fn parse(mut bytes: &[u8], agreed: Agreed) -> Vec<Said> {
    let limits = ConnectionLimits {
        phase: Phase::Established,
        header_digest: agreed.header_digest,
        data_digest: agreed.data_digest,
        data_alignment: DataAlignment::NONE,
        in_capsule_data_bytes_max: 8192.max(agreed.in_capsule_bytes_max),
        host_data_bytes_max: agreed.host_data_bytes_max,
        controller_data_bytes_max: 0,
    };
    let mut said = Vec::new();
    while !bytes.is_empty() {
        let decoded = decode_header(bytes, Direction::HostToController, &limits).expect("valid");
        let Decoded::Pdu(pdu) = decoded else {
            panic!("cut off")
        };
        let data = bytes[pdu.data_offset..pdu.data_offset + pdu.data_bytes].to_vec();
        if pdu.data_digest {
            assert_eq!(
                bytes[pdu.pdu_bytes - 4..pdu.pdu_bytes],
                crc32c(&data).to_le_bytes()
            );
        }
        said.push(match pdu.header {
            Header::Command(capsule) => Said::Command {
                entry: capsule.entry,
                data,
            },
            Header::HostData(header) => Said::Data {
                command_id: header.command_id.get(),
                tag: header.transfer_tag.get(),
                offset: header.offset_bytes.get(),
                last: header.common.flags & 4 != 0,
                data,
            },
            other => panic!("{other:?}"),
        });
        bytes = &bytes[pdu.pdu_bytes..];
    }
    said
}

/// `length` bytes that differ with their position and with `seed`.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed)
        .collect()
}
