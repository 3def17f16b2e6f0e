//! A transaction as the host sees it.

use zeroize::Zeroizing;

use super::group::Exchange;
use super::response::{Proof, Role};
use super::{Credentials, Entropy, Names, fill, sequence};
use crate::wire::auth::{FailureReason, GroupId, HashId, Message};

/// What the host does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Sends this, and then takes a message.
    SendAndReceive(Vec<u8>),
    /// Sends this: the end, and all is well.
    SendAndEnd(Vec<u8>),
    /// Nothing: the end, and all is well.
    End,
    /// Sends this and disconnects.
    SendAndFail(Vec<u8>, FailureReason),
    /// Disconnects: the controller refused.
    Refused(Option<FailureReason>),
}

enum State {
    Negotiating,
    Replied {
        hash: HashId,
        shared: Option<Zeroizing<Vec<u8>>>,
        challenge: Option<(u32, Vec<u8>)>,
    },
    Ended,
}

/// See the module.
pub(crate) struct HostSide {
    credentials: Credentials,
    names: Names,
    transaction: u16,
    state: State,
}

impl HostSide {
    /// A transaction, and its first message.
    pub(crate) fn begin(credentials: Credentials, names: Names, transaction: u16) -> (Self, Vec<u8>) {
        let hashes: Vec<_> = credentials
            .methods
            .hashes
            .iter()
            .map(|hash| hash.to_wire())
            .collect();
        let groups: Vec<_> = credentials
            .methods
            .groups
            .iter()
            .map(|group| group.to_wire())
            .collect();
        let message = Message::Negotiate {
            transaction,
            secure_channel: 0,
            proposal: Some((&hashes, &groups)),
        };
        let bytes = message.to_bytes();
        let side = Self {
            credentials,
            names,
            transaction,
            state: State::Negotiating,
        };
        (side, bytes)
    }

    /// Takes a message of the controller.
    pub(crate) fn receive(&mut self, bytes: &[u8], entropy: &mut Entropy<'_>) -> Next {
        match self.step(bytes, entropy) {
            Ok(next) => next,
            Err(reason) => {
                let failure = Message::Failure2 {
                    transaction: self.transaction,
                    reason_field: reason.to_wire(),
                };
                Next::SendAndFail(failure.to_bytes(), reason)
            }
        }
    }

    fn step(&mut self, bytes: &[u8], entropy: &mut Entropy<'_>) -> Result<Next, FailureReason> {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let message = Message::parse(bytes).map_err(|_| FailureReason::IncorrectPayload)?;
        match (state, message) {
            (_, Message::Failure1 { reason_field, .. }) => {
                Ok(Next::Refused(FailureReason::from_wire(reason_field)))
            }
            (State::Negotiating, challenge @ Message::Challenge { .. }) => self.reply(challenge, entropy),
            (
                State::Replied {
                    hash,
                    shared,
                    challenge,
                },
                Message::Success1 {
                    transaction,
                    hash_bytes,
                    response,
                },
            ) => {
                if transaction != self.transaction || usize::from(hash_bytes) != hash.bytes() {
                    return Err(FailureReason::IncorrectPayload);
                }
                self.verify(
                    hash,
                    shared.as_ref().map(|shared| shared.as_slice()),
                    challenge,
                    response,
                )
            }
            _ => Err(FailureReason::IncorrectMessage),
        }
    }

    fn reply(&mut self, message: Message<'_>, entropy: &mut Entropy<'_>) -> Result<Next, FailureReason> {
        let Message::Challenge {
            transaction,
            hash_field,
            group_field,
            sequence: their_sequence,
            challenge,
            value,
        } = message
        else {
            return Err(FailureReason::IncorrectMessage);
        };
        // Only what was proposed may be chosen.
        let hash =
            HashId::from_wire(hash_field).filter(|hash| self.credentials.methods.hashes.contains(hash));
        let group =
            GroupId::from_wire(group_field).filter(|group| self.credentials.methods.groups.contains(group));
        let (Some(hash), Some(group)) = (hash, group) else {
            return Err(FailureReason::IncorrectPayload);
        };
        if transaction != self.transaction || challenge.len() != hash.bytes() || their_sequence == 0 {
            return Err(FailureReason::IncorrectPayload);
        }
        let exchange = Exchange::new(group, entropy);
        let shared = match &exchange {
            Some(exchange) => Some(exchange.shared(value).ok_or(FailureReason::IncorrectPayload)?),
            None if value.is_empty() && group == GroupId::Null => None,
            None => return Err(FailureReason::IncorrectPayload),
        };
        let proof = Proof {
            role: Role::Host,
            hash,
            names: &self.names,
            transaction,
            sequence: their_sequence,
            challenge,
            shared: shared.as_ref().map(|shared| shared.as_slice()),
        };
        let response = proof.response(&self.credentials.host.key(&self.names.host));
        let own = self.credentials.controller.as_ref().map(|_| {
            let mut own = vec![0; hash.bytes()];
            fill(entropy, &mut own);
            (sequence(entropy), own)
        });
        let reply = Message::Reply {
            transaction,
            sequence: own.as_ref().map_or(0, |(sequence, _)| *sequence),
            response: &response,
            challenge: own.as_ref().map(|(_, own)| own.as_slice()),
            value: exchange.as_ref().map_or(&[], |exchange| &exchange.public),
        };
        let bytes = reply.to_bytes();
        self.state = State::Replied {
            hash,
            shared,
            challenge: own,
        };
        Ok(Next::SendAndReceive(bytes))
    }

    fn verify(
        &self,
        hash: HashId,
        shared: Option<&[u8]>,
        challenge: Option<(u32, Vec<u8>)>,
        response: Option<&[u8]>,
    ) -> Result<Next, FailureReason> {
        let (Some((sequence, challenge)), Some(secret)) = (challenge, &self.credentials.controller) else {
            return match response {
                None => Ok(Next::End),
                Some(_) => Err(FailureReason::IncorrectPayload),
            };
        };
        // A controller that was asked and does not answer has not proved who it is.
        let response = response.ok_or(FailureReason::Failed)?;
        let proof = Proof {
            role: Role::Controller,
            hash,
            names: &self.names,
            transaction: self.transaction,
            sequence,
            challenge: &challenge,
            shared,
        };
        if !proof.verify(&secret.key(&self.names.subsystem), response) {
            return Err(FailureReason::Failed);
        }
        let success = Message::Success2 {
            transaction: self.transaction,
        };
        Ok(Next::SendAndEnd(success.to_bytes()))
    }
}
