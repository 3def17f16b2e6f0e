//! A transaction as the controller sees it.
//!
//! Invariant: a host is authenticated only by a reply to the last challenge that was made, which is thrown
//! away by whatever comes next.

use zeroize::Zeroizing;

use super::group::Exchange;
use super::response::{Proof, Role};
use super::{Credentials, Entropy, Names, fill, sequence};
use crate::wire::auth::{FailureReason, GroupId, HashId, Message};

/// What became of a message of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is a message for the host.
    Answer,
    /// There is a message for the host, who is authenticated.
    Authenticated,
    /// The host is satisfied too: the end.
    Complete,
    /// There is a message for the host, after which the connection ends.
    Failed(FailureReason),
    /// The host gave up: the connection ends.
    GivenUp,
}

enum State {
    /// No transaction.
    Idle,
    /// A challenge was made.
    Challenged {
        transaction: u16,
        hash: HashId,
        exchange: Option<Exchange>,
        challenge: Zeroizing<Vec<u8>>,
        sequence: u32,
    },
    /// The host was authenticated, and has to say whether it is satisfied.
    Responded { transaction: u16 },
}

/// See the module.
pub(crate) struct ControllerSide {
    credentials: Credentials,
    names: Names,
    state: State,
    /// The next message for the host.
    message: Option<Vec<u8>>,
    /// The number of the next challenge; 0 before the first one.
    sequence: u32,
}

impl ControllerSide {
    /// One without a transaction.
    pub(crate) fn new(credentials: Credentials, names: Names) -> Self {
        Self {
            credentials,
            names,
            state: State::Idle,
            message: None,
            sequence: 0,
        }
    }

    /// Forgets the transaction.
    pub(crate) fn forget(&mut self) {
        self.state = State::Idle;
        self.message = None;
    }

    /// The message that the host is to get, once.
    pub(crate) fn take_message(&mut self) -> Option<Vec<u8>> {
        self.message.take()
    }

    /// Takes a message of the host.
    pub(crate) fn receive(&mut self, bytes: &[u8], entropy: &mut Entropy<'_>) -> Progress {
        let state = std::mem::replace(&mut self.state, State::Idle);
        let unread = self.message.take().is_some();
        let transaction = match &state {
            State::Idle => 0,
            State::Challenged { transaction, .. } | State::Responded { transaction } => *transaction,
        };
        let Ok(message) = Message::parse(bytes) else {
            return self.fail(transaction, FailureReason::IncorrectPayload);
        };
        let result = match (state, message) {
            (_, Message::Failure2 { .. }) => return Progress::GivenUp,
            // A new transaction may begin at any time.
            (
                _,
                Message::Negotiate {
                    transaction,
                    secure_channel,
                    proposal,
                },
            ) => match self.negotiate(transaction, secure_channel, proposal, entropy) {
                Ok(()) => return Progress::Answer,
                Err(reason) => return self.fail(transaction, reason),
            },
            (challenged @ State::Challenged { .. }, reply @ Message::Reply { .. }) if !unread => {
                self.verify(challenged, reply)
            }
            (State::Responded { transaction }, Message::Success2 { transaction: told }) if !unread => {
                if told == transaction {
                    Ok(Progress::Complete)
                } else {
                    Err(FailureReason::IncorrectPayload)
                }
            }
            _ => Err(FailureReason::IncorrectMessage),
        };
        result.unwrap_or_else(|reason| self.fail(transaction, reason))
    }

    fn fail(&mut self, transaction: u16, reason: FailureReason) -> Progress {
        self.state = State::Idle;
        let failure = Message::Failure1 {
            transaction,
            reason_field: reason.to_wire(),
        };
        self.message = Some(failure.to_bytes());
        Progress::Failed(reason)
    }

    fn negotiate(
        &mut self,
        transaction: u16,
        secure_channel: u8,
        proposal: Option<(&[u8], &[u8])>,
        entropy: &mut Entropy<'_>,
    ) -> Result<(), FailureReason> {
        if secure_channel != 0 {
            return Err(FailureReason::SecureChannelMismatch);
        }
        let (hashes, groups) = proposal.ok_or(FailureReason::ProtocolUnusable)?;
        // What this side likes best of what the host proposes.
        let hash = self
            .credentials
            .methods
            .hashes
            .iter()
            .find(|hash| hashes.contains(&hash.to_wire()));
        let hash = *hash.ok_or(FailureReason::HashUnusable)?;
        let group = self
            .credentials
            .methods
            .groups
            .iter()
            .find(|group| groups.contains(&group.to_wire()));
        let group = *group.ok_or(FailureReason::GroupUnusable)?;
        let exchange = Exchange::new(group, entropy);
        if exchange.is_none() && group != GroupId::Null {
            return Err(FailureReason::GroupUnusable);
        }
        let mut challenge = Zeroizing::new(vec![0; hash.bytes()]);
        fill(entropy, &mut challenge);
        self.sequence = match self.sequence {
            0 => sequence(entropy),
            // 0 is skipped.
            before => before.checked_add(1).unwrap_or(1),
        };
        let message = Message::Challenge {
            transaction,
            hash_field: hash.to_wire(),
            group_field: group.to_wire(),
            sequence: self.sequence,
            challenge: &challenge,
            value: exchange.as_ref().map_or(&[], |exchange| &exchange.public),
        };
        self.message = Some(message.to_bytes());
        self.state = State::Challenged {
            transaction,
            hash,
            exchange,
            challenge,
            sequence: self.sequence,
        };
        Ok(())
    }

    fn verify(&mut self, challenged: State, reply: Message<'_>) -> Result<Progress, FailureReason> {
        let (
            State::Challenged {
                transaction,
                hash,
                exchange,
                challenge,
                sequence,
            },
            Message::Reply {
                transaction: told,
                sequence: their_sequence,
                response,
                challenge: their_challenge,
                value,
            },
        ) = (challenged, reply)
        else {
            return Err(FailureReason::IncorrectMessage);
        };
        if told != transaction || response.len() != hash.bytes() {
            return Err(FailureReason::IncorrectPayload);
        }
        let shared = match exchange {
            Some(exchange) => Some(exchange.shared(value).ok_or(FailureReason::IncorrectPayload)?),
            None if value.is_empty() => None,
            None => return Err(FailureReason::IncorrectPayload),
        };
        if their_challenge == Some(&**challenge) {
            return Err(FailureReason::Failed);
        }
        let proof = Proof {
            role: Role::Host,
            hash,
            names: &self.names,
            transaction,
            sequence,
            challenge: &challenge,
            shared: shared.as_ref().map(|shared| shared.as_slice()),
        };
        if !proof.verify(&self.credentials.host.key(&self.names.host), response) {
            return Err(FailureReason::Failed);
        }
        let own = match their_challenge {
            None => None,
            Some(challenge) => {
                // The host wants what this side cannot prove.
                let secret = self
                    .credentials
                    .controller
                    .as_ref()
                    .ok_or(FailureReason::Failed)?;
                if their_sequence == 0 {
                    return Err(FailureReason::IncorrectPayload);
                }
                let proof = Proof {
                    role: Role::Controller,
                    sequence: their_sequence,
                    challenge,
                    ..proof
                };
                Some(proof.response(&secret.key(&self.names.subsystem)))
            }
        };
        let message = Message::Success1 {
            transaction,
            // At most 64.
            hash_bytes: hash.bytes() as u8,
            response: own.as_ref().map(|own| own.as_slice()),
        };
        self.message = Some(message.to_bytes());
        if own.is_some() {
            self.state = State::Responded { transaction };
        }
        Ok(Progress::Authenticated)
    }
}
