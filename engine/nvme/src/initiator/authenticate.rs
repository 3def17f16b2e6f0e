//! A queue's host says who it is, and has the controller say who that is, if it is to (NVMe Base 2.2, 8.3.4).

use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::random_u64;

use super::admin::AdminQueue;
use super::connection::Transfer;
use super::error::InitiatorError;
use crate::auth::{Credentials, HostSide, Names, Next};
use crate::wire::auth::{AuthenticationCommand, MESSAGE_BYTES_MAX};
use crate::wire::command::ConnectResult;

const SEND: &str = "an Authentication Send command";
const RECEIVE: &str = "an Authentication Receive command";

/// Does what the answer to a Connect command asks for (Base 2.2, Figure 749).
///
/// # Errors
///
/// [`InitiatorError::AuthenticationRequired`] without credentials, [`InitiatorError::SecureChannelRequired`],
/// [`InitiatorError::NotAuthenticated`], and those of the commands. The queue is to be closed then.
pub(super) async fn authenticate_as_asked(
    queue: &AdminQueue,
    result: ConnectResult,
    credentials: Option<&Credentials>,
    names: Names,
) -> Result<(), InitiatorError> {
    if result.authentication & ConnectResult::SECURE_CHANNEL_REQUIRED != 0 {
        return Err(InitiatorError::SecureChannelRequired);
    }
    let asked = result.authentication & ConnectResult::AUTHENTICATION_REQUIRED != 0;
    match credentials {
        None if asked => Err(InitiatorError::AuthenticationRequired),
        // Whoever pretends to be the controller would not ask: it is asked all the same.
        Some(credentials) if asked || credentials.controller.is_some() => {
            authenticate(queue, credentials, names).await
        }
        None | Some(_) => Ok(()),
    }
}

async fn authenticate(
    queue: &AdminQueue,
    credentials: &Credentials,
    names: Names,
) -> Result<(), InitiatorError> {
    let mut entropy = random_u64;
    // Any number but that of the transaction before.
    let transaction = random_u64() as u16;
    let (mut side, mut message) = HostSide::begin(credentials.clone(), names, transaction);
    loop {
        send(queue, &message).await?;
        let answer = receive(queue).await?;
        match side.receive(&answer, &mut entropy) {
            Next::SendAndReceive(next) => message = next,
            Next::End => return Ok(()),
            Next::SendAndEnd(last) => return send(queue, &last).await,
            Next::SendAndFail(last, reason) => {
                // Whether the controller still takes it changes nothing.
                let _ = send(queue, &last).await;
                return Err(InitiatorError::NotAuthenticated {
                    who: "the target",
                    why: reason.to_string(),
                });
            }
            Next::Refused(reason) => {
                return Err(InitiatorError::NotAuthenticated {
                    who: "this host, says the target",
                    why: reason.map_or_else(|| "for no known reason".to_owned(), |reason| reason.to_string()),
                });
            }
        }
    }
}

async fn send(queue: &AdminQueue, message: &[u8]) -> Result<(), InitiatorError> {
    // At most MESSAGE_BYTES_MAX.
    let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let entry = AuthenticationCommand::send(0, bytes);
    let data = Slice::copy_from(message);
    queue
        .succeed(SEND, &entry, || Transfer::Send(data.clone().into()))
        .await?;
    Ok(())
}

async fn receive(queue: &AdminQueue) -> Result<Buffer, InitiatorError> {
    let bytes = MESSAGE_BYTES_MAX.next_power_of_two();
    let entry = AuthenticationCommand::receive(0, u32::try_from(bytes).unwrap_or(u32::MAX));
    // A controller may send no more than its message.
    let make = || {
        let mut buffer = Buffer::from_heap(bytes);
        buffer.fill(0);
        Transfer::Receive(buffer)
    };
    let (completion, transfer) = queue.execute(RECEIVE, &entry, make()).await?;
    let status = completion.status();
    if !status.is_success() {
        return Err(InitiatorError::Refused {
            what: RECEIVE,
            status,
        });
    }
    Ok(transfer.into_buffer())
}
