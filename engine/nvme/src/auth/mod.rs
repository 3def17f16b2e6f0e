//! In-band authentication by DH-HMAC-CHAP (NVMe Base 2.2, 8.3.4.5), for target and initiator.
//!
//! | module | what |
//! | --- | --- |
//! | [`secret`] | secrets as people write them, and the keys they become |
//! | `response` | the hashes that prove who knows a key |
//! | `group` | the Diffie-Hellman exchange |
//! | `controller` | the transaction as the controller sees it: message in, message out |
//! | `host` | the same as the host sees it |
//!
//! Everything here is pure: messages, and a source of random numbers, which has to be a good one. Secrets and
//! keys are wiped when they are dropped, are never printed, and are compared in constant time.

mod controller;
mod group;
mod host;
mod response;
pub mod secret;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use controller::{ControllerSide, Progress};
pub(crate) use host::{HostSide, Next};
pub use secret::{Secret, SecretError};

use crate::wire::auth::{FailureReason, GroupId, HashId};
use crate::wire::nqn::Nqn;

/// Random numbers.
pub(crate) type Entropy<'a> = dyn FnMut() -> u64 + 'a;

/// Fills bytes at random.
fn fill(entropy: &mut Entropy<'_>, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(size_of::<u64>()) {
        for (slot, byte) in chunk.iter_mut().zip(entropy().to_le_bytes()) {
            *slot = byte;
        }
    }
}

/// A number that is not 0, for the first challenge.
fn sequence(entropy: &mut Entropy<'_>) -> u32 {
    // The low half, at random.
    (entropy() as u32).max(1)
}

/// The secrets of a host and a subsystem that authenticate to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// What the host proves that it knows.
    pub host: Secret,
    /// What the subsystem proves that it knows, if the host asks.
    pub controller: Option<Secret>,
    /// What may be used for it.
    pub methods: Methods,
}

/// What may be used, each in the order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Methods {
    /// Hash functions.
    pub hashes: Vec<HashId>,
    /// Groups.
    pub groups: Vec<GroupId>,
}

impl Default for Methods {
    /// Every hash function, and the groups up to 4096 bits; the exchange is left out with those only that can
    /// do no other. Larger groups take tens of milliseconds of a reactor.
    fn default() -> Self {
        Self {
            hashes: vec![HashId::Sha256, HashId::Sha384, HashId::Sha512],
            groups: vec![
                GroupId::Ffdhe2048,
                GroupId::Ffdhe3072,
                GroupId::Ffdhe4096,
                GroupId::Null,
            ],
        }
    }
}

impl Methods {
    /// Groups by their names, separated by commas; `None` if one is not known, or there is none.
    #[must_use]
    pub fn read_groups(text: &str) -> Option<Vec<GroupId>> {
        text.split(',').map(GroupId::by_name).collect()
    }
}

/// Who talks to whom: part of every response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) host: Nqn,
    pub(crate) subsystem: Nqn,
}

impl fmt::Display for FailureReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Failed => "the response is wrong: is the secret the same on both sides?",
            Self::ProtocolUnusable => "the protocol cannot be used",
            Self::SecureChannelMismatch => "a secure channel is wanted, or is not",
            Self::HashUnusable => "no hash function is known to both",
            Self::GroupUnusable => "no Diffie-Hellman group is known to both",
            Self::IncorrectPayload => "a message makes no sense",
            Self::IncorrectMessage => "a message came out of turn",
        })
    }
}
