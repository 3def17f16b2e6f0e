//! Setting a connection up: ICReq and ICResp (NVMe/TCP Transport, Transport Connection Establishment).

use std::time::Duration;

use pollux_reactor::net::{self, Address, Stream};
use pollux_reactor::timeout;

use super::ConnectionOptions;
use super::error::ConnectionError;
use super::protocol::{READY_TO_TRANSFERS_MAX, Terms};
use crate::transport::{Output, finish};
use crate::wire::pdu::{
    ConnectionLimits, DataAlignment, Decoded, Digests, Direction, Framing, HEADER_BYTES_MAX, Header, Phase,
    TERMINATE_DATA_BYTES_MAX, Violation, decode_header, encode_initialize_request, encode_terminate_request,
};

/// The most that the target may send before the connection is set up: a termination request.
const RECEIVED_BYTES_MAX: usize = HEADER_BYTES_MAX + TERMINATE_DATA_BYTES_MAX;

/// Connects to a target and agrees with it on digests and limits.
pub(super) async fn establish(
    address: &Address,
    options: &ConnectionOptions,
) -> Result<(Box<dyn Stream>, Terms), ConnectionError> {
    let limit = options.connect_timeout;
    let mut stream = within(limit, "the connection attempt", async {
        net::connect(address)
            .await
            .map_err(|error| ConnectionError::Unreachable {
                address: address.clone(),
                kind: error.kind(),
            })
    })
    .await?;
    let mut received = Vec::new();
    let result = within(
        limit,
        "the initialize connection request",
        initialize(&mut *stream, options, &mut received),
    )
    .await;
    match result {
        Ok(terms) => Ok((stream, terms)),
        Err(error) => {
            if let Some(violation) = error.to_tell() {
                let mut output = Output::new();
                push_terminate(&mut output, &violation, &received);
                pollux_reactor::spawn(finish(stream, output)).detach();
            }
            Err(error)
        }
    }
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    act: impl Future<Output = Result<T, ConnectionError>>,
) -> Result<T, ConnectionError> {
    timeout(limit, act)
        .await
        .unwrap_or(Err(ConnectionError::TimedOut { what, limit }))
}

async fn initialize(
    stream: &mut dyn Stream,
    options: &ConnectionOptions,
    received: &mut Vec<u8>,
) -> Result<Terms, ConnectionError> {
    let mut asked = Digests::empty();
    asked.set(Digests::HEADER, options.header_digest);
    asked.set(Digests::DATA, options.data_digest);
    let mut request = [0; HEADER_BYTES_MAX];
    let request_bytes = encode_initialize_request(
        DataAlignment::NONE,
        asked,
        u32::from(READY_TO_TRANSFERS_MAX),
        &mut request,
    );
    let request = request_bytes
        .and_then(|bytes| request.get(..bytes))
        .unwrap_or_default();
    let failed = |error| ConnectionError::from_io(&error);
    net::send_all(stream, request).await.map_err(failed)?;

    let mut limits = ConnectionLimits {
        phase: Phase::Initializing,
        header_digest: false,
        data_digest: false,
        data_alignment: DataAlignment::NONE,
        in_capsule_data_bytes_max: 0,
        host_data_bytes_max: 0,
        // Every range is checked against the command it is for.
        controller_data_bytes_max: u32::MAX,
    };
    let response = loop {
        let wanted = match decode_header(received, Direction::ControllerToHost, &limits)? {
            Decoded::NeedMore { bytes } => bytes,
            Decoded::Pdu(pdu) => match pdu.header {
                Header::InitializeResponse(response) => break *response,
                Header::Terminate(request) => {
                    return Err(ConnectionError::Terminated {
                        status_field: request.status_field.get(),
                        information: request.information.get(),
                    });
                }
                _ => {
                    let pdu_type = crate::wire::pdu::PduType::InitializeResponse;
                    return Err(Violation::WrongPhase { pdu_type }.into());
                }
            },
        };
        // Nothing may follow the response before it is answered by a command, so no byte beyond it is
        // received.
        let start = received.len();
        received.resize(wanted.clamp(start + 1, RECEIVED_BYTES_MAX), 0);
        let into = received.get_mut(start..).unwrap_or_default();
        net::receive_exact(stream, into)
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => ConnectionError::Closed,
                kind => ConnectionError::Failed { kind },
            })?;
    };

    // The decoder refuses bits that are not known.
    let granted = Digests::from_bits_truncate(response.digests);
    if !asked.contains(granted) {
        return Err(ConnectionError::Negotiation {
            what: "enabled a digest that was not asked for",
            parameters: "`hdgst` and `ddgst`",
        });
    }
    if granted != asked {
        return Err(ConnectionError::Negotiation {
            what: "does not do the digests asked for",
            parameters: "`hdgst` and `ddgst`",
        });
    }
    limits.phase = Phase::Established;
    limits.header_digest = options.header_digest;
    limits.data_digest = options.data_digest;
    Ok(Terms {
        limits,
        framing: Framing {
            header_digest: options.header_digest,
            data_digest: options.data_digest,
            data_alignment: DataAlignment::from_wire(response.controller_data_alignment)
                .unwrap_or(DataAlignment::NONE),
        },
        host_data_bytes_max: response.max_h2c_data_bytes.get(),
    })
}

/// Queues a termination request about the PDU whose header is `offender`.
pub(super) fn push_terminate(output: &mut Output, violation: &Violation, offender: &[u8]) {
    // Without room for it the connection just ends, which says as much.
    let _ = output
        .encode(|room| encode_terminate_request(Direction::HostToController, violation, offender, room));
}
