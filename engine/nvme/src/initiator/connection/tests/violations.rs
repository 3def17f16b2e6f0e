//! Everything a target can do wrong: each ends the connection with the error that says what, and the right
//! termination request.

use super::*;
use crate::wire::pdu::{FatalErrorStatus, PduType, Violation};

/// A connection with a read of 4096 bytes and a write of 16 KiB, both sent.
struct Scene {
    host: Host,
    read: CommandId,
    write: CommandId,
}

impl Scene {
    fn new() -> Self {
        Self::agreed(PLAIN)
    }

    fn agreed(agreed: Agreed) -> Self {
        let mut host = Host::new(agreed);
        let read = host.read(4096);
        let write = host.write(&pattern(0, 16_384));
        host.sent();
        Self { host, read, write }
    }

    /// Hears `bytes`, which must end the connection and make no command a success.
    fn ends(mut self, bytes: &[u8]) -> ConnectionError {
        let error = self.host.hear(bytes).expect_err("a violation");
        assert!(self.host.protocol.end(), "the write may be executed still");
        assert_eq!(self.host.protocol.slots.outstanding(), 0);
        for id in [self.read, self.write] {
            let outcome = self.host.finished(id).expect("settled").outcome;
            assert!(!outcome.is_ok_and(|completion| completion.status().is_success()));
        }
        error
    }
}

fn status_told(error: &ConnectionError) -> Option<FatalErrorStatus> {
    error.to_tell().map(|violation| violation.status())
}

#[test]
fn an_unknown_command_is_answered() {
    let scene = Scene::new();
    let bytes = scene.host.response(CommandId(3), Status::SUCCESS);
    let error = scene.ends(&bytes);
    assert_eq!(
        error,
        ConnectionError::UnknownCommand {
            pdu_type: PduType::Response,
            command_id: 3
        }
    );
    assert_eq!(error.to_tell().map(|told| told.information()), Some(20));
}

#[test]
fn a_command_is_answered_twice() {
    let scene = Scene::new();
    let mut bytes = scene.host.response(scene.read, Status::INTERNAL_ERROR);
    bytes.extend_from_within(..);
    assert!(matches!(
        scene.ends(&bytes),
        ConnectionError::UnknownCommand { .. }
    ));
}

#[test]
fn data_comes_after_the_answer() {
    let scene = Scene::new();
    let mut bytes = scene.host.response(scene.read, Status::INTERNAL_ERROR);
    bytes.extend(scene.host.data(scene.read, 0, &[0; 512], DataEnd::More));
    assert!(matches!(
        scene.ends(&bytes),
        ConnectionError::UnknownCommand {
            pdu_type: PduType::ControllerData,
            ..
        }
    ));
}

#[test]
fn data_is_out_of_order_or_out_of_range() {
    for (offset, length) in [(512, 512), (0, 4100), (4096, 4), (0xffff_f000, 512)] {
        let scene = Scene::new();
        let bytes = scene
            .host
            .data(scene.read, offset, &vec![0; length], DataEnd::More);
        let error = scene.ends(&bytes);
        assert_eq!(
            status_told(&error),
            Some(FatalErrorStatus::DataOutOfRange),
            "{error}"
        );
    }
}

#[test]
fn data_repeats_or_goes_on_behind_the_last() {
    let scene = Scene::new();
    let mut bytes = scene.host.data(scene.read, 0, &[0; 512], DataEnd::More);
    bytes.extend_from_within(..);
    assert_eq!(
        scene.ends(&bytes),
        Violation::DataOutOfRange {
            pdu_type: PduType::ControllerData
        }
        .into()
    );
    let scene = Scene::new();
    let mut bytes = scene.host.data(scene.read, 0, &[0; 512], DataEnd::Last);
    bytes.extend(scene.host.data(scene.read, 512, &[0; 512], DataEnd::More));
    assert_eq!(
        scene.ends(&bytes),
        Violation::OutOfSequence {
            pdu_type: PduType::ControllerData
        }
        .into()
    );
}

#[test]
fn data_comes_for_a_write_or_a_flush() {
    let mut scene = Scene::new();
    let flush = scene.host.flush();
    scene.host.sent();
    for id in [scene.write, flush] {
        let bytes = scene.host.data(id, 0, &[0; 512], DataEnd::More);
        let error = scene.host.hear(&bytes).unwrap_err();
        assert_eq!(status_told(&error), Some(FatalErrorStatus::SequenceError));
    }
}

#[test]
fn a_read_succeeds_without_all_its_data() {
    for data in [0usize, 512, 4092] {
        let scene = Scene::new();
        let mut bytes = Vec::new();
        if data > 0 {
            bytes.extend(scene.host.data(scene.read, 0, &vec![0; data], DataEnd::Last));
        }
        bytes.extend(scene.host.response(scene.read, Status::SUCCESS));
        assert_eq!(
            scene.ends(&bytes),
            ConnectionError::ShortData {
                command_id: 0x0400,
                received_bytes: data as u32,
                expected_bytes: 4096
            }
        );
    }
    let scene = Scene::new();
    let bytes = scene.host.data(scene.read, 0, &[0; 512], DataEnd::LastAndSuccess);
    assert!(matches!(scene.ends(&bytes), ConnectionError::ShortData { .. }));
}

#[test]
fn a_write_succeeds_before_its_data_was_sent() {
    // Never asked for; asked for in part; asked for whole, and not sent yet.
    for asked in [None, Some(8192), Some(16_384)] {
        let scene = Scene::new();
        let mut bytes = asked.map_or_else(Vec::new, |length| scene.host.ready(scene.write, 1, 0, length));
        bytes.extend(scene.host.response(scene.write, Status::SUCCESS));
        let error = scene.ends(&bytes);
        assert!(matches!(error, ConnectionError::Premature { .. }), "{error}");
        assert_eq!(status_told(&error), Some(FatalErrorStatus::SequenceError));
    }
}

#[test]
fn a_command_is_answered_before_it_was_sent() {
    let mut host = Host::new(PLAIN);
    let id = host.flush();
    let bytes = host.response(id, Status::INTERNAL_ERROR);
    let command_id = id.to_wire();
    assert_eq!(host.hear(&bytes), Err(ConnectionError::Premature { command_id }));
    let read = host.read(512);
    let bytes = host.data(read, 0, &[0; 512], DataEnd::LastAndSuccess);
    assert!(host.hear(&bytes).is_err());
    host.protocol.end();
    let buffer = host.finished(read).unwrap().transfer.into_buffer();
    assert!(buffer.iter().all(|&byte| byte == UNTOUCHED));
}

#[test]
fn data_is_asked_for_out_of_order_twice_or_out_of_range() {
    for (offset, length) in [(4096, 4096), (0, 16_388), (16_384, 4)] {
        let scene = Scene::new();
        let bytes = scene.host.ready(scene.write, 1, offset, length);
        assert_eq!(
            status_told(&scene.ends(&bytes)),
            Some(FatalErrorStatus::DataOutOfRange)
        );
    }
    let scene = Scene::new();
    let mut bytes = scene.host.ready(scene.write, 1, 0, 4096);
    bytes.extend_from_within(..);
    assert_eq!(
        status_told(&scene.ends(&bytes)),
        Some(FatalErrorStatus::DataOutOfRange)
    );
}

#[test]
fn data_is_asked_for_that_there_is_none_of() {
    let mut scene = Scene::new();
    let flush = scene.host.flush();
    let small = scene.host.write(&[0; 512]);
    scene.host.sent();
    for id in [scene.read, flush, small] {
        let bytes = scene.host.ready(id, 1, 0, 512);
        let error = scene.host.hear(&bytes).unwrap_err();
        assert_eq!(status_told(&error), Some(FatalErrorStatus::SequenceError));
    }
    let bytes = scene.host.ready(CommandId(99), 1, 0, 512);
    assert_eq!(
        scene.host.hear(&bytes),
        Err(ConnectionError::UnknownCommand {
            pdu_type: PduType::ReadyToTransfer,
            command_id: 99
        })
    );
}

#[test]
fn too_much_is_asked_for_at_once() {
    let scene = Scene::new();
    let bytes: Vec<u8> = (0..5)
        .flat_map(|number| {
            scene
                .host
                .ready(scene.write, number, u32::from(number) * 1024, 1024)
        })
        .collect();
    assert_eq!(
        status_told(&scene.ends(&bytes)),
        Some(FatalErrorStatus::LimitExceeded)
    );
}

#[test]
fn headers_that_make_no_sense() {
    type Damage = fn(&mut [u8]);
    let cases: [(Damage, FatalErrorStatus); 7] = [
        (|pdu| pdu[0] = 0x04, FatalErrorStatus::InvalidHeaderField), // a command
        (|pdu| pdu[0] = 0x08, FatalErrorStatus::InvalidHeaderField), // no type
        (|pdu| pdu[0] = 0x01, FatalErrorStatus::SequenceError),      // ICResp
        (|pdu| pdu[1] = 0x01, FatalErrorStatus::InvalidHeaderField), // a digest not agreed on
        (|pdu| pdu[2] = 23, FatalErrorStatus::InvalidHeaderField),   // HLEN
        (|pdu| pdu[4] = 25, FatalErrorStatus::InvalidHeaderField),   // PLEN
        (|pdu| pdu[7] = 0xff, FatalErrorStatus::InvalidHeaderField), // PLEN
    ];
    for (damage, status) in cases {
        let scene = Scene::new();
        let mut bytes = scene.host.response(scene.read, Status::INTERNAL_ERROR);
        damage(&mut bytes);
        let error = scene.ends(&bytes);
        assert_eq!(status_told(&error), Some(status), "{error}");
    }
}

#[test]
fn a_damaged_header() {
    let scene = Scene::agreed(DIGESTS);
    let mut bytes = scene.host.response(scene.read, Status::INTERNAL_ERROR);
    bytes[21] ^= 0x40;
    let error = scene.ends(&bytes);
    assert_eq!(status_told(&error), Some(FatalErrorStatus::HeaderDigestError));
}

#[test]
fn the_offending_header_is_kept_for_the_target() {
    let mut scene = Scene::new();
    let mut bytes = scene.host.response(scene.read, Status::INTERNAL_ERROR);
    let offender = scene.host.response(scene.read, Status::SUCCESS);
    bytes.extend(&offender);
    bytes.extend([0xaa; 50]);
    assert!(scene.host.hear(&bytes).is_err());
    assert_eq!(scene.host.protocol.offender, offender);
}

#[test]
fn a_termination_is_not_answered() {
    let scene = Scene::new();
    let violation = Violation::LimitExceeded {
        pdu_type: PduType::HostData,
    };
    let mut bytes = vec![0; 300];
    let length = crate::wire::pdu::encode_terminate_request(
        Direction::ControllerToHost,
        &violation,
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &mut bytes,
    );
    bytes.truncate(length.unwrap());
    let error = scene.ends(&bytes);
    assert_eq!(
        error,
        ConnectionError::Terminated {
            status_field: 5,
            information: 0
        }
    );
    assert_eq!(
        error.to_string(),
        "the target terminated the connection: LimitExceeded, information 0x0"
    );
    assert_eq!(error.to_tell(), None);
}
