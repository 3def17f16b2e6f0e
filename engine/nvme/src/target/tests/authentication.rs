//! Queues of hosts that have to authenticate: what is refused before, how it fails, and how it ends.

use super::io::read;
use super::*;
use crate::auth::{Credentials, HostSide, Methods, Names, Next, Secret};
use crate::wire::auth::{AuthenticationCommand, FailureReason, GroupId, HashId, Message};

const SECRET: &str = "DHHC-1:01:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

fn credentials() -> Credentials {
    Credentials {
        host: Secret::parse(SECRET).unwrap(),
        controller: Some(Secret::parse(&SECRET.replace(":01:", ":02:")).unwrap()),
        methods: Methods {
            hashes: vec![HashId::Sha256],
            groups: vec![GroupId::Null],
        },
    }
}

fn names() -> Names {
    Names {
        host: HOST.parse().unwrap(),
        subsystem: SUBSYSTEM.parse().unwrap(),
    }
}

/// A fixture whose host has to authenticate.
fn fixture() -> Fixture {
    let (fixture, _drive) = Fixture::with_drive();
    fixture
        .subsystem
        .set_credentials(HOST, Some(credentials()))
        .unwrap();
    fixture
}

fn send(message: &[u8]) -> Command {
    writing(AuthenticationCommand::send(9, message.len() as u32), message)
}

fn receive() -> Command {
    reading(AuthenticationCommand::receive(9, 2048), 2048)
}

fn entropy() -> impl FnMut() -> u64 {
    let mut seed = 5u64;
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed
    }
}

/// Authenticates; whether all went well, and whether the connection is to end.
fn authenticate(fixture: &Fixture, queue: &TestQueue, credentials: Credentials) -> (bool, bool) {
    let (mut host, mut message) = HostSide::begin(credentials, names(), 3);
    loop {
        let sent = fixture.run(queue, send(&message));
        assert_eq!(sent.entry.status(), Status::SUCCESS);
        let answer = fixture.run(queue, receive());
        assert_eq!(answer.entry.status(), Status::SUCCESS);
        match host.receive(&answer.bytes(), &mut entropy()) {
            Next::SendAndReceive(next) => message = next,
            Next::End => return (true, answer.disconnect),
            Next::SendAndEnd(last) => {
                let sent = fixture.run(queue, send(&last));
                return (sent.entry.status() == Status::SUCCESS, sent.disconnect);
            }
            Next::SendAndFail(last, _) => {
                let sent = fixture.run(queue, send(&last));
                return (false, sent.disconnect);
            }
            Next::Refused(_) => return (false, answer.disconnect),
        }
    }
}

fn asks(queue: &TestQueue) -> bool {
    let result = ConnectResult::from_result(queue.response.result_low());
    result.authentication == ConnectResult::AUTHENTICATION_REQUIRED
}

fn get_csts() -> Command {
    let get = PropertyGet {
        size: PropertySize::Four,
        offset: CSTS,
    };
    plain(get.to_entry(2))
}

#[test]
fn nothing_is_done_for_a_host_that_is_not_authenticated() {
    let fixture = fixture();
    let admin = fixture.admin();
    assert!(asks(&admin));
    let refused = Status::AUTHENTICATION_REQUIRED;
    assert_eq!(fixture.status(&admin, get_csts()), refused);
    assert_eq!(fixture.set_cc(&admin, ENABLE), refused);
    let early = admin.queue.refuse_early(&SubmissionEntry::new(0x09, 4, 0), 512);
    assert!(early.unwrap().status().is(refused));
    assert_eq!(authenticate(&fixture, &admin, credentials()), (true, false));
    fixture.enable(&admin);

    let io = fixture.io_queue(&admin, 1);
    assert!(asks(&io));
    assert_eq!(fixture.status(&io, read(0, 1)), refused);
    assert_eq!(authenticate(&fixture, &io, credentials()), (true, false));
    assert_eq!(fixture.status(&io, read(0, 1)), Status::SUCCESS);

    // Another host does not have to.
    let other = data_for(SUBSYSTEM, "nqn.2026-11.io.pollux:other", DYNAMIC_CONTROLLER);
    let other = fixture.connect(&connect(0), &other);
    assert!(!asks(&other));
    fixture.enable(&other);
    assert_eq!(fixture.status(&other, receive()), Status::INVALID_OPCODE);
}

#[test]
fn a_failure_is_told_and_ends_the_connection() {
    let fixture = fixture();
    let admin = fixture.admin();
    let wrong = Credentials {
        host: Secret::parse(&SECRET.replace(":01:", ":03:")).unwrap(),
        ..credentials()
    };
    assert_eq!(authenticate(&fixture, &admin, wrong), (false, true));
    assert_eq!(
        fixture.status(&admin, get_csts()),
        Status::AUTHENTICATION_REQUIRED
    );
    // It cannot try again over this connection.
    let (_, first) = HostSide::begin(credentials(), names(), 3);
    assert_eq!(
        fixture.status(&admin, send(&first)),
        Status::COMMAND_SEQUENCE_ERROR
    );
    // A host that is not satisfied with the controller.
    let admin = fixture.admin();
    let wrong = Credentials {
        controller: Some(Secret::parse(&SECRET.replace(":01:", ":03:")).unwrap()),
        ..credentials()
    };
    assert_eq!(authenticate(&fixture, &admin, wrong), (false, true));
    assert_eq!(
        fixture.status(&admin, get_csts()),
        Status::AUTHENTICATION_REQUIRED
    );
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    let fixture = fixture();
    let admin = fixture.admin();
    let (_, first) = HostSide::begin(credentials(), names(), 3);
    assert_eq!(fixture.status(&admin, receive()), Status::COMMAND_SEQUENCE_ERROR);
    let mut other = send(&first);
    other.entry.cdw10 = 0.into();
    assert_eq!(fixture.status(&admin, other), Status::INVALID_FIELD);
    for (told, sent) in [(0, 72), (4100, 72)] {
        let entry = AuthenticationCommand::send(9, told);
        assert_eq!(
            fixture.status(&admin, writing(entry, &vec![0; sent])),
            Status::INVALID_FIELD
        );
    }
    let entry = AuthenticationCommand::send(9, 80);
    assert_eq!(
        fixture.status(&admin, writing(entry, &first)),
        Status::DATA_SGL_LENGTH_INVALID
    );
    let entry = AuthenticationCommand::send(9, 80);
    assert!(admin.queue.refuse_early(&entry, 4100).is_some());
    assert!(admin.queue.refuse_early(&entry, 4096).is_none());
    // One with room for far more is given what it takes, up to a bound.
    for (room, given) in [(4096, 4096), (65_536, 4096), (48, 48)] {
        assert_eq!(fixture.status(&admin, send(&first)), Status::SUCCESS);
        let entry = AuthenticationCommand::receive(9, room);
        let outcome = fixture.run(&admin, reading(entry, room as usize));
        assert_eq!(outcome.entry.status(), Status::SUCCESS);
        assert_eq!(outcome.bytes().len(), given);
    }
    // A host without room for the answer has to begin again.
    assert_eq!(fixture.status(&admin, send(&first)), Status::SUCCESS);
    let small = reading(AuthenticationCommand::receive(9, 16), 16);
    assert_eq!(fixture.status(&admin, small), Status::DATA_SGL_LENGTH_INVALID);
    assert_eq!(fixture.status(&admin, receive()), Status::COMMAND_SEQUENCE_ERROR);
    assert_eq!(authenticate(&fixture, &admin, credentials()), (true, false));
    // No bytes are a message: that ends it.
    let admin = fixture.admin();
    assert_eq!(fixture.status(&admin, send(&[0xff; 40])), Status::SUCCESS);
    let answer = fixture.run(&admin, receive());
    let failure = Message::Failure1 {
        transaction: 0,
        reason_field: FailureReason::IncorrectPayload.to_wire(),
    };
    assert_eq!(Message::parse(&answer.bytes()), Ok(failure));
    assert!(answer.disconnect);
}

#[test]
fn a_host_that_takes_too_long_is_disconnected() {
    let fixture = fixture();
    let admin = fixture.admin();
    fixture.run_for(Duration::from_secs(119));
    assert_eq!(admin.ended(), None);
    // A message begins the time anew, once.
    let (_, first) = HostSide::begin(credentials(), names(), 3);
    assert_eq!(fixture.status(&admin, send(&first)), Status::SUCCESS);
    fixture.run_for(Duration::from_secs(125));
    assert!(admin.ended().is_some());
}

#[test]
fn a_host_may_authenticate_again_and_stays_until_it_fails() {
    let fixture = fixture();
    let admin = fixture.admin();
    assert_eq!(authenticate(&fixture, &admin, credentials()), (true, false));
    fixture.enable(&admin);
    let (mut host, first) = HostSide::begin(credentials(), names(), 4);
    assert_eq!(fixture.status(&admin, send(&first)), Status::SUCCESS);
    assert_eq!(fixture.csts(&admin) & 1, 1, "it goes on meanwhile");
    let answer = fixture.run(&admin, receive());
    let Next::SendAndReceive(reply) = host.receive(&answer.bytes(), &mut entropy()) else {
        panic!("a challenge");
    };
    // The transaction stands still: it is forgotten, and nothing else happens.
    let keep_alive = || plain(SubmissionEntry::new(0x18, 1, 0));
    for _ in 0..4 {
        fixture.run_for(Duration::from_secs(60));
        assert_eq!(fixture.status(&admin, keep_alive()), Status::SUCCESS);
    }
    assert_eq!(admin.ended(), None);
    assert_eq!(authenticate(&fixture, &admin, credentials()), (true, false));
    // A reply to a challenge that is forgotten is out of turn.
    assert_eq!(fixture.status(&admin, send(&reply)), Status::SUCCESS);
    assert!(fixture.run(&admin, receive()).disconnect);
    assert_eq!(
        fixture.status(&admin, get_csts()),
        Status::AUTHENTICATION_REQUIRED
    );
}

#[test]
fn credentials_can_be_taken_back() {
    let fixture = fixture();
    fixture.subsystem.set_credentials(HOST, None).unwrap();
    let admin = fixture.enabled();
    assert!(!asks(&admin));
    assert!(fixture.subsystem.set_credentials("no name", None).is_err());
}
