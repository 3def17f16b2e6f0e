//! In-band authentication: the messages of DH-HMAC-CHAP, and the commands that carry them (Base 2.2, 6.1,
//! 6.2, 8.3.4.4 and 8.3.4.5).
//!
//! ```text
//! Send, Receive  41 SPSP0   42 SPSP1   43 SECP   44 TL or AL (32 bits)
//! all            0 AUTH_TYPE   1 AUTH_ID   4 T_ID
//! Negotiate      6 SC_C   7 NAPD   8 descriptors of 64 bytes:
//!                    0 AuthID   2 HALEN   3 DHLEN   4 hashes   34 groups
//! Challenge      6 HL   8 HashID   9 DHgID   10 DHVLEN   12 SEQNUM   16 CVAL   16+HL DHV
//! Reply          6 HL   8 CVALID   10 DHVLEN   12 SEQNUM   16 RVAL   16+HL CVAL   16+2*HL DHV
//! Success1       6 HL   8 RVALID   16 RVAL
//! Success2       16 bytes
//! Failure1, 2    6 RCODE   7 RCODEEX
//! ```
//!
//! Any bytes are a message or [`Malformed`]; what is behind the end of a message is ignored.

use zerocopy::little_endian::U32;

use super::command::{FabricsCommandType, SglDescriptor, SubmissionEntry};
use super::structure::{Field, structure};
use super::wire_enum::wire_enum;

/// The security protocol that NVMe has by assignment (SECP), and what goes with it (SPSP0 and SPSP1).
const SECURITY_PROTOCOL: u8 = 0xe9;
const SECURITY_PROTOCOL_SPECIFIC: u8 = 0x01;

/// The longest message: a reply with SHA-512 and a group of 8192 bits.
pub const MESSAGE_BYTES_MAX: usize = 16 + 2 * 64 + 1024;

const COMMON: u8 = 0x00;
const DH_HMAC_CHAP: u8 = 0x01;

const NEGOTIATE: u8 = 0x00;
const CHALLENGE: u8 = 0x01;
const REPLY: u8 = 0x02;
const SUCCESS_1: u8 = 0x03;
const SUCCESS_2: u8 = 0x04;
const FAILURE_2: u8 = 0xf0;
const FAILURE_1: u8 = 0xf1;

const FIXED_BYTES: usize = Fixed::BYTES;
const SHORT_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 64;
const LIST_MAX: usize = 30;

/// The only reason code: authentication failure.
const REASON_FAILURE: u8 = 0x01;

wire_enum! {
    /// Hash functions (Base 2.2, Figure 741).
    pub enum HashId: u8 {
        /// SHA-256.
        Sha256 = 1,
        /// SHA-384.
        Sha384 = 2,
        /// SHA-512.
        Sha512 = 3,
    }
}

impl HashId {
    /// Length of a hash, in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

wire_enum! {
    /// Diffie-Hellman groups (Base 2.2, Figure 742).
    pub enum GroupId: u8 {
        /// No exchange.
        Null = 0,
        /// 2048 bits.
        Ffdhe2048 = 1,
        /// 3072 bits.
        Ffdhe3072 = 2,
        /// 4096 bits.
        Ffdhe4096 = 3,
        /// 6144 bits.
        Ffdhe6144 = 4,
        /// 8192 bits.
        Ffdhe8192 = 5,
    }
}

impl GroupId {
    /// The group of this name: `null`, or `ffdhe2048` and so on (RFC 7919).
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "ffdhe2048" => Self::Ffdhe2048,
            "ffdhe3072" => Self::Ffdhe3072,
            "ffdhe4096" => Self::Ffdhe4096,
            "ffdhe6144" => Self::Ffdhe6144,
            "ffdhe8192" => Self::Ffdhe8192,
            _ => return None,
        })
    }
}

impl HashId {
    /// The hash function of this name: `sha256`, `sha384` or `sha512`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            _ => return None,
        })
    }
}

wire_enum! {
    /// Why an authentication failed (Base 2.2, Figure 737).
    pub enum FailureReason: u8 {
        /// The other side could not be authenticated.
        Failed = 1,
        /// No protocol that was proposed can be used.
        ProtocolUnusable = 2,
        /// A secure channel is wanted by one side and not by the other.
        SecureChannelMismatch = 3,
        /// No hash function that was proposed can be used.
        HashUnusable = 4,
        /// No group that was proposed can be used.
        GroupUnusable = 5,
        /// A message makes no sense.
        IncorrectPayload = 6,
        /// A message came out of turn.
        IncorrectMessage = 7,
    }
}

/// A message that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A message. Lists and values are borrowed from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// From the host: what it can do (AUTH_Negotiate).
    Negotiate {
        /// The transaction.
        transaction: u16,
        /// The secure channel it wants, 0 for none (SC_C).
        secure_channel: u8,
        /// What it can do, if DH-HMAC-CHAP is among it: hash functions and groups by their numbers, in the
        /// order of its preference.
        proposal: Option<(&'a [u8], &'a [u8])>,
    },
    /// From the controller (DH-HMAC-CHAP_Challenge).
    Challenge {
        /// The transaction.
        transaction: u16,
        /// The hash function chosen, by its number.
        hash_field: u8,
        /// The group chosen, by its number.
        group_field: u8,
        /// Number of the challenge.
        sequence: u32,
        /// The challenge, as long as a hash.
        challenge: &'a [u8],
        /// The value of the exchange, if there is one.
        value: &'a [u8],
    },
    /// From the host (DH-HMAC-CHAP_Reply).
    Reply {
        /// The transaction.
        transaction: u16,
        /// Number of the challenge to the controller.
        sequence: u32,
        /// The response, as long as a hash.
        response: &'a [u8],
        /// The challenge to the controller, if it is to authenticate itself.
        challenge: Option<&'a [u8]>,
        /// The value of the exchange, if there is one.
        value: &'a [u8],
    },
    /// From the controller: the host is who it says (DH-HMAC-CHAP_Success1).
    Success1 {
        /// The transaction.
        transaction: u16,
        /// Length of the hash function, in bytes.
        hash_bytes: u8,
        /// The response, if there was a challenge.
        response: Option<&'a [u8]>,
    },
    /// From the host: the controller is who it says (DH-HMAC-CHAP_Success2).
    Success2 {
        /// The transaction.
        transaction: u16,
    },
    /// From the controller: the end (AUTH_Failure1).
    Failure1 {
        /// The transaction.
        transaction: u16,
        /// Why, by its number; see [`FailureReason`].
        reason_field: u8,
    },
    /// From the host: the end (AUTH_Failure2).
    Failure2 {
        /// The transaction.
        transaction: u16,
        /// Why, by its number; see [`FailureReason`].
        reason_field: u8,
    },
}

structure! {
    /// The first 16 bytes of the messages of DH-HMAC-CHAP. Not every one uses every field.
    struct Fixed: 16 {
        0 => kind: u8,
        1 => id: u8,
        4 => transaction: u16,
        6 => hash_bytes: u8,
        7 => count: u8,
        8 => first: u8,
        9 => second: u8,
        10 => value_bytes: u16,
        12 => sequence: u32,
    }
}

/// The next `bytes` bytes.
fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], Malformed> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

/// A flag that is 0 or 1.
fn flag(field: u8) -> Result<bool, Malformed> {
    match field {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed),
    }
}

impl<'a> Message<'a> {
    /// The message in these bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < SHORT_BYTES {
            return Err(Malformed);
        }
        let fixed = Fixed::from_bytes(bytes);
        let transaction = fixed.transaction;
        match (fixed.kind, fixed.id) {
            (COMMON, NEGOTIATE) => Self::parse_negotiate(&fixed, bytes.get(SHORT_BYTES..).ok_or(Malformed)?),
            (COMMON, FAILURE_1) => Ok(Self::Failure1 {
                transaction,
                reason_field: fixed.count,
            }),
            (COMMON, FAILURE_2) => Ok(Self::Failure2 {
                transaction,
                reason_field: fixed.count,
            }),
            (DH_HMAC_CHAP, id) => Self::parse_chap(id, &fixed, bytes.get(FIXED_BYTES..).ok_or(Malformed)?),
            _ => Err(Malformed),
        }
    }

    fn parse_negotiate(fixed: &Fixed, mut rest: &'a [u8]) -> Result<Self, Malformed> {
        let mut proposal = None;
        for _ in 0..fixed.count {
            let descriptor = take(&mut rest, DESCRIPTOR_BYTES)?;
            let [protocol, _, hashes, groups, lists @ ..] = descriptor else {
                return Err(Malformed);
            };
            if *protocol != DH_HMAC_CHAP || proposal.is_some() {
                continue;
            }
            let (hashes, groups) = (usize::from(*hashes), usize::from(*groups));
            if !(1..=LIST_MAX).contains(&hashes) || !(1..=LIST_MAX).contains(&groups) {
                return Err(Malformed);
            }
            let (hash_list, group_list) = lists.split_at_checked(LIST_MAX).ok_or(Malformed)?;
            proposal = Some((
                hash_list.get(..hashes).ok_or(Malformed)?,
                group_list.get(..groups).ok_or(Malformed)?,
            ));
        }
        Ok(Self::Negotiate {
            transaction: fixed.transaction,
            secure_channel: fixed.hash_bytes,
            proposal,
        })
    }

    fn parse_chap(id: u8, fixed: &Fixed, mut rest: &'a [u8]) -> Result<Self, Malformed> {
        let transaction = fixed.transaction;
        let (hash_bytes, value_bytes) = (usize::from(fixed.hash_bytes), usize::from(fixed.value_bytes));
        let rest = &mut rest;
        Ok(match id {
            CHALLENGE => Self::Challenge {
                transaction,
                hash_field: fixed.first,
                group_field: fixed.second,
                sequence: fixed.sequence,
                challenge: take(rest, hash_bytes)?,
                value: take(rest, value_bytes)?,
            },
            REPLY => Self::Reply {
                transaction,
                sequence: fixed.sequence,
                response: take(rest, hash_bytes)?,
                challenge: Some(take(rest, hash_bytes)?).filter(|_| fixed.first == 1),
                value: {
                    flag(fixed.first)?;
                    take(rest, value_bytes)?
                },
            },
            SUCCESS_1 => Self::Success1 {
                transaction,
                hash_bytes: fixed.hash_bytes,
                response: if flag(fixed.first)? {
                    Some(take(rest, hash_bytes)?)
                } else {
                    None
                },
            },
            SUCCESS_2 => Self::Success2 { transaction },
            _ => return Err(Malformed),
        })
    }

    /// The message as it travels. Lists are cut to what fits.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "hashes have 64 bytes at most, values 1024"
    )]
    pub fn to_bytes(&self) -> Vec<u8> {
        let fixed = |kind, id, transaction| Fixed {
            kind,
            id,
            transaction,
            ..Fixed::default()
        };
        match *self {
            Self::Negotiate {
                transaction,
                secure_channel,
                proposal,
            } => {
                let (hashes, groups) = proposal.unwrap_or_default();
                let (hashes, groups) = (cut(hashes), cut(groups));
                let header = Fixed {
                    hash_bytes: secure_channel,
                    count: proposal.is_some().into(),
                    ..fixed(COMMON, NEGOTIATE, transaction)
                };
                let mut descriptor = [0; DESCRIPTOR_BYTES];
                [DH_HMAC_CHAP, 0, hashes.len() as u8, groups.len() as u8].write(&mut descriptor);
                for (at, list) in [(4, hashes), (4 + LIST_MAX, groups)] {
                    for (slot, byte) in descriptor.iter_mut().skip(at).zip(list) {
                        *slot = *byte;
                    }
                }
                let descriptors: &[u8] = if proposal.is_some() { &descriptor } else { &[] };
                short(&header, descriptors)
            }
            Self::Failure1 {
                transaction,
                reason_field,
            } => short(&failure(fixed(COMMON, FAILURE_1, transaction), reason_field), &[]),
            Self::Failure2 {
                transaction,
                reason_field,
            } => short(&failure(fixed(COMMON, FAILURE_2, transaction), reason_field), &[]),
            Self::Challenge {
                transaction,
                hash_field,
                group_field,
                sequence,
                challenge,
                value,
            } => {
                let header = Fixed {
                    hash_bytes: challenge.len() as u8,
                    first: hash_field,
                    second: group_field,
                    value_bytes: value.len() as u16,
                    sequence,
                    ..fixed(DH_HMAC_CHAP, CHALLENGE, transaction)
                };
                long(&header, &[challenge, value])
            }
            Self::Reply {
                transaction,
                sequence,
                response,
                challenge,
                value,
            } => {
                let header = Fixed {
                    hash_bytes: response.len() as u8,
                    first: challenge.is_some().into(),
                    value_bytes: value.len() as u16,
                    sequence,
                    ..fixed(DH_HMAC_CHAP, REPLY, transaction)
                };
                let none = vec![0; response.len()];
                long(&header, &[response, challenge.unwrap_or(&none), value])
            }
            Self::Success1 {
                transaction,
                hash_bytes,
                response,
            } => {
                let header = Fixed {
                    hash_bytes,
                    first: response.is_some().into(),
                    ..fixed(DH_HMAC_CHAP, SUCCESS_1, transaction)
                };
                let none = vec![0; hash_bytes.into()];
                long(&header, &[response.unwrap_or(&none)])
            }
            Self::Success2 { transaction } => long(&fixed(DH_HMAC_CHAP, SUCCESS_2, transaction), &[]),
        }
    }
}

fn cut(list: &[u8]) -> &[u8] {
    list.get(..LIST_MAX).unwrap_or(list)
}

fn failure(fixed: Fixed, reason_field: u8) -> Fixed {
    Fixed {
        hash_bytes: REASON_FAILURE,
        count: reason_field,
        ..fixed
    }
}

fn short(fixed: &Fixed, rest: &[u8]) -> Vec<u8> {
    let mut bytes = fixed.to_bytes().to_vec();
    bytes.truncate(SHORT_BYTES);
    bytes.extend_from_slice(rest);
    bytes
}

fn long(fixed: &Fixed, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = fixed.to_bytes().to_vec();
    rest.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Authentication Send or Authentication Receive (Base 2.2, 6.1 and 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthenticationCommand {
    /// The message is one of NVMe's own protocol.
    pub is_nvme: bool,
    /// Bytes to send (TL), or that the host takes (AL).
    pub bytes: u32,
}

impl AuthenticationCommand {
    /// The fields of `entry`, which is taken to be one of the two.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [_, specific_0, specific_1, protocol] = entry.cdw10.to_bytes();
        Self {
            is_nvme: protocol == SECURITY_PROTOCOL
                && specific_0 == SECURITY_PROTOCOL_SPECIFIC
                && specific_1 == SECURITY_PROTOCOL_SPECIFIC,
            bytes: entry.cdw11.get(),
        }
    }

    /// Authentication Send of so many bytes, which are in the capsule.
    #[must_use]
    pub fn send(command_id: u16, bytes: u32) -> SubmissionEntry {
        let data = SglDescriptor::in_capsule(bytes);
        Self::entry(FabricsCommandType::AuthenticationSend, command_id, bytes, data)
    }

    /// Authentication Receive of so many bytes at most.
    #[must_use]
    pub fn receive(command_id: u16, bytes: u32) -> SubmissionEntry {
        let data = SglDescriptor::transport(bytes);
        Self::entry(FabricsCommandType::AuthenticationReceive, command_id, bytes, data)
    }

    fn entry(kind: FabricsCommandType, command_id: u16, bytes: u32, data: SglDescriptor) -> SubmissionEntry {
        let mut entry = SubmissionEntry::fabrics(kind, command_id).with_data(data);
        entry.cdw10 = U32::from_bytes([
            0,
            SECURITY_PROTOCOL_SPECIFIC,
            SECURITY_PROTOCOL_SPECIFIC,
            SECURITY_PROTOCOL,
        ]);
        entry.cdw11 = U32::new(bytes);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;

    #[test]
    fn freezes_negotiate() {
        let message = Message::Negotiate {
            transaction: 0x0102,
            secure_channel: 0,
            proposal: Some((&[1, 2, 3], &[0, 1])),
        };
        let expected = at_offsets(72, &[(4, &[2, 1, 0, 1, 1, 0, 3, 2, 1, 2, 3]), (42, &[0, 1])]);
        assert_eq!(message.to_bytes(), expected);
        assert_eq!(Message::parse(&expected), Ok(message));
    }

    #[test]
    fn freezes_challenge_and_reply() {
        let message = Message::Challenge {
            transaction: 0x0102,
            hash_field: 1,
            group_field: 2,
            sequence: 0x0304_0506,
            challenge: &[7; 32],
            value: &[8; 4],
        };
        let expected = at_offsets(
            52,
            &[
                (0, &[1, 1, 0, 0, 2, 1, 32, 0, 1, 2, 4, 0, 6, 5, 4, 3]),
                (16, &[7; 32]),
                (48, &[8; 4]),
            ],
        );
        assert_eq!(message.to_bytes(), expected);
        assert_eq!(Message::parse(&expected), Ok(message));
        let message = Message::Reply {
            transaction: 0x0102,
            sequence: 9,
            response: &[7; 32],
            challenge: Some(&[8; 32]),
            value: &[],
        };
        let expected = at_offsets(
            80,
            &[
                (0, &[1, 2, 0, 0, 2, 1, 32, 0, 1, 0, 0, 0, 9]),
                (16, &[7; 32]),
                (48, &[8; 32]),
            ],
        );
        assert_eq!(message.to_bytes(), expected);
        assert_eq!(Message::parse(&expected), Ok(message));
    }

    #[test]
    fn freezes_the_ends() {
        let transaction = 0x0102;
        let success = Message::Success1 {
            transaction,
            hash_bytes: 32,
            response: None,
        };
        assert_eq!(
            success.to_bytes(),
            at_offsets(48, &[(0, &[1, 3, 0, 0, 2, 1, 32])])
        );
        assert_eq!(Message::parse(&success.to_bytes()), Ok(success));
        let success = Message::Success2 { transaction };
        assert_eq!(success.to_bytes(), at_offsets(16, &[(0, &[1, 4, 0, 0, 2, 1])]));
        let failure = Message::Failure1 {
            transaction,
            reason_field: FailureReason::IncorrectMessage.to_wire(),
        };
        assert_eq!(failure.to_bytes(), [0, 0xf1, 0, 0, 2, 1, 1, 7]);
        assert_eq!(Message::parse(&failure.to_bytes()), Ok(failure));
        let failure = Message::Failure2 {
            transaction,
            reason_field: 1,
        };
        assert_eq!(failure.to_bytes(), [0, 0xf0, 0, 0, 2, 1, 1, 1]);
    }

    #[test]
    fn freezes_the_commands() {
        let entry = AuthenticationCommand::send(7, 72);
        assert_eq!(
            entry.fabrics_command_type(),
            Some(FabricsCommandType::AuthenticationSend)
        );
        assert_eq!((entry.cdw10.to_bytes(), entry.cdw11.get()), ([0, 1, 1, 0xe9], 72));
        let read = AuthenticationCommand::from_entry(&AuthenticationCommand::receive(7, 4096));
        assert_eq!((read.is_nvme, read.bytes), (true, 4096));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_not(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = Message::parse(&bytes) {
                let again = message.to_bytes();
                prop_assert!(Message::parse(&again).is_ok());
            }
        }

        #[test]
        fn a_message_that_is_cut_is_none(cut in 0usize..116) {
            let message = Message::Reply {
                transaction: 1,
                sequence: 2,
                response: &[3; 32],
                challenge: Some(&[4; 32]),
                value: &[5; 36],
            };
            let bytes = message.to_bytes();
            prop_assert_eq!(bytes.len(), 116);
            prop_assert_eq!(Message::parse(&bytes[..cut]), Err(Malformed));
        }
    }
}
