//! From the first byte to an admitted queue: ICReq and ICResp, then one Connect command.
//!
//! Nothing here is fast, and nothing is kept: a connection that misbehaves gets its termination request or
//! response and is gone.

use std::io;

use pollux_hugepages::BufferPool;
use pollux_reactor::net::{Address, Detached, Stream};
use pollux_reactor::{ReactorHandle, buffers};

use super::super::queue::{Admission, ConnectRequest, MakeQueue};
use super::{Transport, TransportSettings};
use crate::transport::{Input, Output, finish, flush};
use crate::wire::command::{
    CONNECT_DATA_BYTES, CompletionEntry, DataPointer, FabricsCommandType, SubmissionEntry,
};
use crate::wire::digest::{DIGEST_BYTES, crc32c};
use crate::wire::pdu::{
    ConnectionLimits, DataAlignment, Decoded, Digests, Direction, Framing, HEADER_BYTES_MAX, Header,
    IN_CAPSULE_DATA_BYTES_ADMIN, Pdu, PduType, Phase, Violation, decode_header, encode_initialize_response,
    encode_response, encode_terminate_request,
};
use crate::wire::status::Status;

/// Why a connection was not admitted, for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the host closed the connection")]
    Closed,
    #[error("the host terminated the connection")]
    Terminated,
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    #[error("the Connect command was refused: {0}")]
    Refused(Status),
}

/// Everything that an admitted connection takes along to the reactor of its queue.
pub(super) struct Handover {
    pub(super) stream: Detached,
    pub(super) peer: Address,
    pub(super) transport: Transport,
    pub(super) connect: SubmissionEntry,
    pub(super) make_queue: MakeQueue,
    /// What arrived behind the Connect command.
    pub(super) received: Vec<u8>,
}

/// A connection on its way in.
struct Handshake<'a> {
    stream: Box<dyn Stream>,
    input: Input,
    output: Output,
    pool: BufferPool,
    transport: Transport,
    settings: &'a TransportSettings,
}

/// The Connect command as it arrived.
struct Connect {
    entry: SubmissionEntry,
    data: pollux_hugepages::Slice,
}

/// Takes a new connection as far as its Connect command. `None` when the host was refused and knows it.
///
/// # Errors
///
/// Why the connection is not admitted; the host has been told as far as the protocol lets it.
pub(super) async fn handshake(
    stream: Box<dyn Stream>,
    admission: &dyn Admission,
    settings: &TransportSettings,
) -> Result<Option<(ReactorHandle, Handover)>, NotAdmitted> {
    let limits = ConnectionLimits {
        phase: Phase::Initializing,
        header_digest: false,
        data_digest: false,
        data_alignment: DataAlignment::NONE,
        in_capsule_data_bytes_max: IN_CAPSULE_DATA_BYTES_ADMIN.max(settings.in_capsule_bytes_max),
        host_data_bytes_max: settings.host_data_bytes_max,
        controller_data_bytes_max: 0,
    };
    let mut handshake = Handshake {
        stream,
        input: Input::new(),
        output: Output::new(),
        pool: buffers(),
        transport: Transport {
            limits,
            framing: Framing::default(),
        },
        settings,
    };
    let result = match handshake.initialize().await {
        Ok(()) => handshake.connect(admission).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(admitted) => {
            let (reactor, connect, make_queue) = admitted;
            let received = handshake.input.bytes().to_vec();
            let peer = handshake.stream.peer().clone();
            let handover = Handover {
                stream: handshake.stream.detach()?,
                peer,
                transport: handshake.transport,
                connect,
                make_queue,
                received,
            };
            Ok(Some((reactor, handover)))
        }
        Err(error) => {
            if let NotAdmitted::Violation(violation) = &error {
                handshake.terminate(violation);
            }
            if matches!(error, NotAdmitted::Violation(_) | NotAdmitted::Refused(_)) {
                finish(handshake.stream, handshake.output).await;
            }
            Err(error)
        }
    }
}

impl Handshake<'_> {
    /// Exchanges ICReq and ICResp (NVMe/TCP Transport, Transport Connection Establishment).
    async fn initialize(&mut self) -> Result<(), NotAdmitted> {
        let request = loop {
            match decode_header(
                self.input.bytes(),
                Direction::HostToController,
                &self.transport.limits,
            )? {
                Decoded::NeedMore { .. } => {}
                Decoded::Pdu(Pdu {
                    header: Header::InitializeRequest(request),
                    pdu_bytes,
                    ..
                }) => {
                    let request = *request;
                    self.input.consume(pdu_bytes);
                    break request;
                }
                Decoded::Pdu(Pdu {
                    header: Header::Terminate(_),
                    ..
                }) => return Err(NotAdmitted::Terminated),
                Decoded::Pdu(_) => {
                    return Err(Violation::OutOfSequence {
                        pdu_type: PduType::InitializeRequest,
                    }
                    .into());
                }
            }
            self.receive().await?;
        };
        let asked = Digests::from_bits_truncate(request.digests);
        let header_digest = self.settings.header_digest && asked.contains(Digests::HEADER);
        let data_digest = self.settings.data_digest && asked.contains(Digests::DATA);
        let mut granted = Digests::empty();
        granted.set(Digests::HEADER, header_digest);
        granted.set(Digests::DATA, data_digest);
        let data_alignment =
            DataAlignment::from_wire(request.host_data_alignment).unwrap_or(DataAlignment::NONE);
        let host_data_bytes_max = self.settings.host_data_bytes_max;
        let encoded = self.output.encode(|room| {
            encode_initialize_response(DataAlignment::NONE, granted, host_data_bytes_max, room)
        });
        debug_assert!(encoded, "an empty output has room for an ICResp");
        flush(&mut *self.stream, &mut self.output).await?;
        self.transport.limits.phase = Phase::Established;
        self.transport.limits.header_digest = header_digest;
        self.transport.limits.data_digest = data_digest;
        self.transport.framing = Framing {
            header_digest,
            data_digest,
            data_alignment,
        };
        Ok(())
    }

    /// Waits for the Connect command and has it decided.
    async fn connect(
        &mut self,
        admission: &dyn Admission,
    ) -> Result<(ReactorHandle, SubmissionEntry, MakeQueue), NotAdmitted> {
        let connect = loop {
            if let Some(connect) = self.take_connect()? {
                break connect;
            }
            self.receive().await?;
        };
        let entry = connect.entry;
        let request = ConnectRequest {
            entry,
            data: connect.data,
            peer: self.stream.peer().clone(),
            local: self.stream.local().clone(),
        };
        match admission.connect(request) {
            Ok(admitted) => Ok((admitted.reactor, entry, admitted.make_queue)),
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// The Connect command, once it is there whole.
    fn take_connect(&mut self) -> Result<Option<Connect>, NotAdmitted> {
        let decoded = decode_header(
            self.input.bytes(),
            Direction::HostToController,
            &self.transport.limits,
        )?;
        let Decoded::Pdu(pdu) = decoded else {
            return Ok(None);
        };
        let entry = match pdu.header {
            Header::Command(capsule) => capsule.entry,
            Header::Terminate(_) => return Err(NotAdmitted::Terminated),
            Header::HostData(_) => {
                return Err(Violation::OutOfSequence {
                    pdu_type: PduType::HostData,
                }
                .into());
            }
            _ => {
                return Err(Violation::OutOfSequence {
                    pdu_type: PduType::InitializeRequest,
                }
                .into());
            }
        };
        let (pdu_bytes, data_offset, data_bytes) = (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes);
        let data_digest = pdu.data_digest;
        let command_id = entry.command_id.get();
        let refusal = |status| CompletionEntry::new(command_id, status, 0);
        if entry.fabrics_command_type() != Some(FabricsCommandType::Connect) {
            return Err(self.refuse(refusal(Status::COMMAND_SEQUENCE_ERROR)));
        }
        let in_capsule = match entry.data_pointer.data_pointer() {
            Some(DataPointer::InCapsule {
                offset: 0,
                length_bytes,
            }) => length_bytes as usize,
            _ => return Err(self.refuse(refusal(Status::SGL_TYPE_INVALID))),
        };
        if in_capsule != CONNECT_DATA_BYTES || data_bytes != CONNECT_DATA_BYTES {
            return Err(self.refuse(refusal(Status::DATA_SGL_LENGTH_INVALID)));
        }
        if self.input.bytes().len() < pdu_bytes {
            return Ok(None);
        }
        let mut data = self.input.take(pdu_bytes);
        data.advance(data_offset);
        let digest = data.split_off(data_bytes);
        if data_digest && digest.get(..DIGEST_BYTES) != Some(&crc32c(&data).to_le_bytes()) {
            return Err(self.refuse(refusal(Status::TRANSIENT_TRANSPORT_ERROR)));
        }
        Ok(Some(Connect {
            entry,
            data: data.freeze(),
        }))
    }

    async fn receive(&mut self) -> Result<(), NotAdmitted> {
        self.input.make_room(&self.pool);
        let Self { stream, input, .. } = self;
        let received =
            std::future::poll_fn(|context| input.poll_receive(&mut **stream, context, &mut [])).await?;
        if received.is_end() {
            return Err(NotAdmitted::Closed);
        }
        Ok(())
    }

    fn refuse(&mut self, refusal: CompletionEntry) -> NotAdmitted {
        let framing = self.transport.framing;
        let encoded = self
            .output
            .encode(|room| encode_response(&refusal, &framing, room));
        debug_assert!(encoded, "an empty output has room for a response");
        NotAdmitted::Refused(refusal.status())
    }

    fn terminate(&mut self, violation: &Violation) {
        if violation.deserves_answer() {
            push_terminate(&mut self.output, violation, self.input.bytes());
        }
    }
}

/// Queues a termination request about the PDU at the start of `received`.
pub(super) fn push_terminate(output: &mut Output, violation: &Violation, received: &[u8]) {
    let header_bytes = received
        .get(2)
        .map_or(0, |&bytes| usize::from(bytes))
        .clamp(8, HEADER_BYTES_MAX);
    let offender = received.get(..header_bytes).unwrap_or(received);
    // Without room for it the connection just ends, which says as much.
    let _ = output
        .encode(|room| encode_terminate_request(Direction::ControllerToHost, violation, offender, room));
}
