//! Both sides against each other, and against whoever changes, drops, repeats or swaps messages.

use super::controller::{ControllerSide, Progress};
use super::host::{HostSide, Next};
use super::{Credentials, Methods, Names, Secret};
use crate::wire::auth::{FailureReason, GroupId, HashId, Message};

const HOST_SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

fn secret(transform: &str) -> Secret {
    Secret::parse(&HOST_SECRET.replace(":00:", transform)).unwrap()
}

fn entropy(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed ^ seed.rotate_left(31)
    }
}

fn names() -> Names {
    Names {
        host: "nqn.2026-11.io.pollux:host".parse().unwrap(),
        subsystem: "nqn.2026-11.io.pollux:serve".parse().unwrap(),
    }
}

fn credentials(mutual: bool) -> Credentials {
    Credentials {
        host: secret(":01:"),
        controller: mutual.then(|| secret(":02:")),
        methods: Methods::default(),
    }
}

fn only(hash: HashId, group: GroupId) -> Methods {
    Methods {
        hashes: vec![hash],
        groups: vec![group],
    }
}

/// How a transaction ended: whether the host was authenticated, and what each side says.
#[derive(Debug, PartialEq, Eq)]
struct End {
    authenticated: bool,
    controller: Progress,
    host: Next,
}

/// Runs a transaction. Every message may be changed on its way: its number, from 0, and its bytes.
fn run(
    controller: &mut ControllerSide,
    credentials: Credentials,
    methods: Methods,
    mut change: impl FnMut(usize, &mut Vec<u8>),
) -> End {
    let (mut ours, mut theirs) = (entropy(1), entropy(2));
    let credentials = Credentials {
        methods,
        ..credentials
    };
    let (mut host, mut message) = HostSide::begin(credentials, names(), 7);
    let mut authenticated = false;
    let mut number = 0;
    loop {
        change(number, &mut message);
        number += 1;
        let progress = controller.receive(&message, &mut theirs);
        authenticated |= progress == Progress::Authenticated;
        let Some(mut answer) = controller.take_message() else {
            return End {
                authenticated,
                controller: progress,
                host: Next::End,
            };
        };
        change(number, &mut answer);
        number += 1;
        match host.receive(&answer, &mut ours) {
            Next::SendAndReceive(next) => message = next,
            Next::SendAndEnd(mut last) => {
                change(number, &mut last);
                let progress = controller.receive(&last, &mut theirs);
                return End {
                    authenticated,
                    controller: progress,
                    host: Next::End,
                };
            }
            Next::SendAndFail(last, reason) => {
                let progress = controller.receive(&last, &mut theirs);
                let host = Next::SendAndFail(Vec::new(), reason);
                return End {
                    authenticated,
                    controller: progress,
                    host,
                };
            }
            host => {
                return End {
                    authenticated,
                    controller: progress,
                    host,
                };
            }
        }
    }
}

fn controller(mutual: bool, methods: Methods) -> ControllerSide {
    let credentials = Credentials {
        methods,
        ..credentials(mutual)
    };
    ControllerSide::new(credentials, names())
}

#[test]
fn every_hash_goes_with_every_group_one_way_and_mutual() {
    for hash in HashId::ALL {
        for group in [
            GroupId::Null,
            GroupId::Ffdhe2048,
            GroupId::Ffdhe3072,
            GroupId::Ffdhe4096,
        ] {
            // The large ones with one hash: they take long where nothing is optimized.
            if group == GroupId::Ffdhe4096 && *hash != HashId::Sha384 {
                continue;
            }
            for mutual in [false, true] {
                let methods = only(*hash, group);
                let mut controller = controller(true, Methods::default());
                let end = run(&mut controller, credentials(mutual), methods, |_, _| {});
                let last = if mutual {
                    Progress::Complete
                } else {
                    Progress::Authenticated
                };
                assert!(end.authenticated, "{hash:?} {group:?}");
                assert_eq!((end.controller, end.host), (last, Next::End));
                assert_eq!(controller.take_message(), None);
            }
        }
    }
}

#[test]
fn a_wrong_secret_is_refused() {
    let mut one = controller(true, Methods::default());
    let wrong = Credentials {
        host: secret(":03:"),
        ..credentials(false)
    };
    let methods = only(HashId::Sha256, GroupId::Null);
    let end = run(&mut one, wrong, methods.clone(), |_, _| {});
    assert_eq!(end.controller, Progress::Failed(FailureReason::Failed));
    assert_eq!(end.host, Next::Refused(Some(FailureReason::Failed)));
    assert!(!end.authenticated);
    // The host is right, and the controller is not: the host gives up.
    let wrong = Credentials {
        controller: Some(secret(":03:")),
        ..credentials(true)
    };
    let end = run(&mut one, wrong, methods.clone(), |_, _| {});
    assert_eq!(end.host, Next::SendAndFail(Vec::new(), FailureReason::Failed));
    assert_eq!(end.controller, Progress::GivenUp);
    // The host asks for what the controller does not have.
    let mut one = controller(false, Methods::default());
    let end = run(&mut one, credentials(true), methods, |_, _| {});
    assert_eq!(end.controller, Progress::Failed(FailureReason::Failed));
    assert!(!end.authenticated);
}

#[test]
fn what_one_side_may_not_use_is_refused() {
    let strict = || controller(true, only(HashId::Sha384, GroupId::Ffdhe3072));
    let end = run(
        &mut strict(),
        credentials(true),
        only(HashId::Sha256, GroupId::Ffdhe3072),
        |_, _| {},
    );
    assert_eq!(end.host, Next::Refused(Some(FailureReason::HashUnusable)));
    let end = run(
        &mut strict(),
        credentials(true),
        only(HashId::Sha384, GroupId::Null),
        |_, _| {},
    );
    assert_eq!(end.host, Next::Refused(Some(FailureReason::GroupUnusable)));
    // A controller that chooses what was not proposed.
    let end = run(
        &mut strict(),
        credentials(true),
        only(HashId::Sha256, GroupId::Null),
        |number, message| {
            if number == 0 {
                let proposal = (&[2u8][..], &[2u8][..]);
                let other = Message::Negotiate {
                    transaction: 7,
                    secure_channel: 0,
                    proposal: Some(proposal),
                };
                *message = other.to_bytes();
            }
        },
    );
    assert_eq!(
        end.host,
        Next::SendAndFail(Vec::new(), FailureReason::IncorrectPayload)
    );
    for (secure_channel, proposal, reason) in [
        (
            2,
            Some((&[1u8][..], &[0u8][..])),
            FailureReason::SecureChannelMismatch,
        ),
        (0, None, FailureReason::ProtocolUnusable),
    ] {
        let message = Message::Negotiate {
            transaction: 7,
            secure_channel,
            proposal,
        };
        let mut one = controller(true, Methods::default());
        let progress = one.receive(&message.to_bytes(), &mut entropy(1));
        assert_eq!(progress, Progress::Failed(reason));
    }
}

/// Whatever bit of whatever message is flipped: the host is not authenticated, or that bit means nothing.
#[test]
fn every_flipped_bit_is_noticed_or_means_nothing() {
    let methods = || only(HashId::Sha256, GroupId::Null);
    let mut lengths = Vec::new();
    run(
        &mut controller(true, methods()),
        credentials(true),
        methods(),
        |_, message| {
            lengths.push(message.len());
        },
    );
    assert_eq!(lengths, [72, 48, 80, 48, 16]);
    for (number, length) in lengths.into_iter().enumerate() {
        for bit in 0..length * 8 {
            if number == 0 && matches!(bit / 8, 10 | 11) {
                // The lists get longer, by padding, or too long.
                continue;
            }
            let mut one = controller(true, methods());
            let end = run(&mut one, credentials(true), methods(), |at, message| {
                if at == number {
                    message[bit / 8] ^= 1 << (bit % 8);
                }
            });
            let (byte, complete) = (bit / 8, end.controller == Progress::Complete);
            // Reserved bytes, and padding of the descriptor.
            let meaningless = match number {
                0 => matches!(byte, 2 | 3 | 9 | 13..=41 | 43..=71),
                1 => matches!(byte, 2 | 3 | 7),
                2 => matches!(byte, 2 | 3 | 7 | 9),
                3 => matches!(byte, 2 | 3 | 7 | 9..16),
                _ => matches!(byte, 2 | 3 | 6..16),
            };
            assert_eq!(
                complete && end.host == Next::End,
                meaningless,
                "message {number}, byte {byte}: {end:?}"
            );
            // The response of the host, and what it is made of; the rest is about the controller's.
            if number == 2 && !meaningless && matches!(byte, 0..=6 | 16..=47) {
                assert!(!end.authenticated, "byte {byte}: {end:?}");
            }
        }
    }
}

#[test]
fn messages_that_are_cut_or_too_long_are_refused() {
    for number in 0..5 {
        for bytes in [0, 1, 7, 8, 15, 16, 40, 2000] {
            let mut one = controller(true, Methods::default());
            let methods = only(HashId::Sha256, GroupId::Null);
            let mut longer = false;
            let end = run(&mut one, credentials(true), methods, |at, message| {
                if at == number {
                    longer = bytes >= message.len();
                    message.resize(bytes, 0);
                }
            });
            let complete = end.controller == Progress::Complete && end.host == Next::End;
            assert_eq!(complete, longer, "message {number} of {bytes}: {end:?}");
        }
    }
}

/// A reply that was once right does not fit another challenge, and cannot be given twice.
#[test]
fn a_reply_cannot_be_replayed() {
    let mut one = controller(true, Methods::default());
    let methods = || only(HashId::Sha256, GroupId::Null);
    let mut replies = Vec::new();
    run(&mut one, credentials(false), methods(), |number, message| {
        if number == 2 {
            replies.push(message.clone());
        }
    });
    let progress = one.receive(&replies[0], &mut entropy(2));
    assert_eq!(progress, Progress::Failed(FailureReason::IncorrectMessage));
    one.forget();
    let end = run(&mut one, credentials(false), methods(), |number, message| {
        if number == 2 {
            message.clone_from(&replies[0]);
        }
    });
    assert_eq!(end.controller, Progress::Failed(FailureReason::Failed));
    assert!(!end.authenticated);
}

/// The challenge of the controller given back to it, to have it compute the response.
#[test]
fn a_challenge_cannot_be_reflected() {
    let mut one = controller(true, Methods::default());
    let mut challenge = Vec::new();
    let end = run(
        &mut one,
        credentials(true),
        only(HashId::Sha256, GroupId::Null),
        |number, message| {
            if number == 1 {
                challenge = message[16..48].to_vec();
            } else if number == 2 {
                message[48..80].copy_from_slice(&challenge);
            }
        },
    );
    assert_eq!(end.controller, Progress::Failed(FailureReason::Failed));
    assert!(!end.authenticated);
}

#[test]
fn messages_out_of_turn_are_refused() {
    let zeros = [0; 32];
    let messages = [
        Message::Reply {
            transaction: 7,
            sequence: 1,
            response: &zeros,
            challenge: None,
            value: &[],
        },
        Message::Success2 { transaction: 7 },
        Message::Success1 {
            transaction: 7,
            hash_bytes: 32,
            response: None,
        },
        Message::Failure1 {
            transaction: 7,
            reason_field: 1,
        },
    ];
    for message in messages {
        let mut one = controller(true, Methods::default());
        let progress = one.receive(&message.to_bytes(), &mut entropy(1));
        assert_eq!(progress, Progress::Failed(FailureReason::IncorrectMessage));
    }
    let (mut host, first) = HostSide::begin(credentials(true), names(), 7);
    assert!(matches!(
        host.receive(&first, &mut entropy(1)),
        Next::SendAndFail(_, FailureReason::IncorrectMessage)
    ));
    // A controller that skips the challenge, and one that skips the proof it was asked for.
    let success = Message::Success1 {
        transaction: 7,
        hash_bytes: 32,
        response: None,
    }
    .to_bytes();
    let (mut host, _) = HostSide::begin(credentials(true), names(), 7);
    assert!(matches!(
        host.receive(&success, &mut entropy(1)),
        Next::SendAndFail(_, FailureReason::IncorrectMessage)
    ));
    let mut one = controller(true, Methods::default());
    let end = run(
        &mut one,
        credentials(true),
        only(HashId::Sha256, GroupId::Null),
        |number, message| {
            if number == 3 {
                message.clone_from(&success);
            }
        },
    );
    assert_eq!(end.host, Next::SendAndFail(Vec::new(), FailureReason::Failed));
}
