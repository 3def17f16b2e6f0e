//! Every violation the decoder can find, each with the status and information the termination request gets.

use super::*;
use crate::wire::command::{CompletionEntry, SubmissionEntry};

use Direction::{ControllerToHost, HostToController};

#[track_caller]
fn refused(bytes: &[u8], direction: Direction, limits: &ConnectionLimits, expected: Violation) {
    assert_eq!(decode_header(bytes, direction, limits), Err(expected));
}

/// A command of `bytes`, then changed.
fn command(in_capsule_bytes: u32, framing: &Framing, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES_MAX];
    let written = encode_command(
        &SubmissionEntry::new(1, 7, 1),
        in_capsule_bytes,
        framing,
        &mut out,
    )
    .unwrap();
    out.truncate(written);
    change(&mut out);
    out
}

fn host_data(framing: &Framing, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let range = DataRange {
        command_id: 7,
        offset_bytes: 4096,
        length_bytes: 4096,
    };
    let mut out = vec![0; HEADER_BYTES_MAX];
    let written = encode_host_data(range, 3, false, framing, &mut out).unwrap();
    out.truncate(written);
    change(&mut out);
    out
}

fn controller_data(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let range = DataRange {
        command_id: 7,
        offset_bytes: 4096,
        length_bytes: 4096,
    };
    let mut out = vec![0; HEADER_BYTES_MAX];
    let written = encode_controller_data(range, DataEnd::More, &Framing::default(), &mut out).unwrap();
    out.truncate(written);
    change(&mut out);
    out
}

fn ready_to_transfer(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let range = DataRange {
        command_id: 7,
        offset_bytes: 4096,
        length_bytes: 4096,
    };
    let mut out = vec![0; 24];
    encode_ready_to_transfer(range, 3, &Framing::default(), &mut out).unwrap();
    change(&mut out);
    out
}

fn initialize_request(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut out = vec![0; 128];
    encode_initialize_request(DataAlignment::NONE, Digests::empty(), 1, &mut out).unwrap();
    change(&mut out);
    out
}

fn initialize_response(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut out = vec![0; 128];
    encode_initialize_response(DataAlignment::NONE, Digests::empty(), 131_072, &mut out).unwrap();
    change(&mut out);
    out
}

fn initializing() -> ConnectionLimits {
    ConnectionLimits {
        phase: Phase::Initializing,
        ..limits()
    }
}

const PLAIN: Framing = Framing {
    header_digest: false,
    data_digest: false,
    data_alignment: DataAlignment::NONE,
};
const BOTH_DIGESTS: Framing = Framing {
    header_digest: true,
    data_digest: true,
    data_alignment: DataAlignment::NONE,
};

fn both_digests() -> ConnectionLimits {
    ConnectionLimits {
        header_digest: true,
        data_digest: true,
        ..limits()
    }
}

#[test]
fn unknown_type() {
    for pdu_type in (0..=u8::MAX).filter(|number| PduType::from_wire(*number).is_none()) {
        let bytes = command(0, &PLAIN, |out| out[0] = pdu_type);
        refused(
            &bytes,
            HostToController,
            &limits(),
            Violation::UnknownType { pdu_type },
        );
    }
    assert!(PduType::from_wire(8).is_none() && PduType::from_wire(10).is_none());
}

#[test]
fn wrong_direction() {
    for pdu_type in PduType::ALL.iter().copied() {
        let direction = match pdu_type.direction() {
            HostToController => ControllerToHost,
            ControllerToHost => HostToController,
        };
        let bytes = [pdu_type.to_wire(), 0, 24, 0, 24, 0, 0, 0];
        refused(
            &bytes,
            direction,
            &limits(),
            Violation::WrongDirection { pdu_type, direction },
        );
    }
}

#[test]
fn wrong_phase() {
    for pdu_type in PduType::ALL.iter().copied() {
        let bytes = [pdu_type.to_wire(), 0, 0xff, 0, 24, 0, 0, 0];
        let (wrong, right) = match pdu_type {
            PduType::InitializeRequest | PduType::InitializeResponse => (limits(), initializing()),
            _ => (initializing(), limits()),
        };
        let length = Violation::HeaderLength {
            pdu_type,
            header_bytes: 0xff,
        };
        refused(&bytes, pdu_type.direction(), &right, length);
        match pdu_type {
            PduType::HostTerminate | PduType::ControllerTerminate => {
                refused(&bytes, pdu_type.direction(), &wrong, length);
            }
            _ => refused(
                &bytes,
                pdu_type.direction(),
                &wrong,
                Violation::WrongPhase { pdu_type },
            ),
        }
    }
}

#[test]
fn header_length() {
    for header_bytes in (0..=u8::MAX).filter(|length| *length != 72) {
        let bytes = command(0, &PLAIN, |out| out[2] = header_bytes);
        let violation = Violation::HeaderLength {
            pdu_type: PduType::Command,
            header_bytes,
        };
        refused(&bytes, HostToController, &limits(), violation);
    }
}

#[test]
fn reserved_flags() {
    for pdu_type in PduType::ALL.iter().copied() {
        let limits = match pdu_type {
            PduType::InitializeRequest | PduType::InitializeResponse => initializing(),
            _ => limits(),
        };
        for flags in (0..=u8::MAX).filter(|flags| flags & !pdu_type.flags().bits() != 0) {
            let header_bytes = u8::try_from(pdu_type.header_bytes()).unwrap();
            let mut bytes = [0; 128];
            bytes[..3].copy_from_slice(&[pdu_type.to_wire(), flags, header_bytes]);
            refused(
                &bytes,
                pdu_type.direction(),
                &limits,
                Violation::Flags { pdu_type, flags },
            );
        }
    }
}

#[test]
fn digest_flags_other_than_agreed() {
    let flags_of = |pdu_type, flags| Violation::Flags { pdu_type, flags };
    let bytes = command(0, &PLAIN, |out| out[1] = 0x01);
    refused(
        &bytes,
        HostToController,
        &limits(),
        flags_of(PduType::Command, 0x01),
    );
    let bytes = command(0, &PLAIN, |_| ());
    refused(
        &bytes,
        HostToController,
        &both_digests(),
        flags_of(PduType::Command, 0x00),
    );
    let bytes = command(4096, &PLAIN, |out| out[1] = 0x02);
    refused(
        &bytes,
        HostToController,
        &limits(),
        flags_of(PduType::Command, 0x02),
    );
    let bytes = host_data(&PLAIN, |_| ());
    let data_digest = ConnectionLimits {
        data_digest: true,
        ..limits()
    };
    refused(
        &bytes,
        HostToController,
        &data_digest,
        flags_of(PduType::HostData, 0x00),
    );
    let bytes = host_data(&PLAIN, |out| out[1] = 0x02);
    refused(
        &bytes,
        HostToController,
        &limits(),
        flags_of(PduType::HostData, 0x02),
    );
    let bytes = controller_data(|_| ());
    refused(
        &bytes,
        ControllerToHost,
        &data_digest,
        flags_of(PduType::ControllerData, 0x00),
    );
}

#[test]
fn data_digest_of_a_command() {
    let data_digest = ConnectionLimits {
        data_digest: true,
        ..limits()
    };
    let bytes = command(4096, &PLAIN, |_| ());
    let violation = Violation::Flags {
        pdu_type: PduType::Command,
        flags: 0x00,
    };
    refused(&bytes, HostToController, &data_digest, violation);
    let bytes = command(0, &PLAIN, |out| out[1] = 0x02);
    let violation = Violation::Flags {
        pdu_type: PduType::Command,
        flags: 0x02,
    };
    refused(&bytes, HostToController, &data_digest, violation);
}

#[test]
fn success_without_last() {
    let bytes = controller_data(|out| out[1] = 0x08);
    let violation = Violation::Flags {
        pdu_type: PduType::ControllerData,
        flags: 0x08,
    };
    refused(&bytes, ControllerToHost, &limits(), violation);
}

#[test]
fn header_digest() {
    for at in (8..72).chain(72..76) {
        let mut computed = 0;
        let mut received = 0;
        let bytes = command(4096, &BOTH_DIGESTS, |out| {
            out[at] ^= 0x10;
            computed = crate::wire::digest::crc32c(&out[..72]);
            received = u32::from_le_bytes([out[72], out[73], out[74], out[75]]);
        });
        let violation = Violation::HeaderDigest { received, computed };
        refused(&bytes, HostToController, &both_digests(), violation);
        assert_eq!(violation.information(), received);
    }
}

#[test]
fn length_without_data() {
    for pdu_bytes in [0, 23, 25, 28, u32::MAX] {
        let bytes = ready_to_transfer(|out| out[4..8].copy_from_slice(&pdu_bytes.to_le_bytes()));
        let violation = Violation::PduLength {
            pdu_type: PduType::ReadyToTransfer,
            pdu_bytes,
        };
        refused(&bytes, ControllerToHost, &limits(), violation);

        let mut bytes = [0; 24];
        encode_response(&CompletionEntry::default(), &PLAIN, &mut bytes).unwrap();
        bytes[4..8].copy_from_slice(&pdu_bytes.to_le_bytes());
        let violation = Violation::PduLength {
            pdu_type: PduType::Response,
            pdu_bytes,
        };
        refused(&bytes, ControllerToHost, &limits(), violation);

        let bytes = initialize_request(|out| out[4..8].copy_from_slice(&pdu_bytes.to_le_bytes()));
        let violation = Violation::PduLength {
            pdu_type: PduType::InitializeRequest,
            pdu_bytes,
        };
        refused(&bytes, HostToController, &initializing(), violation);

        let bytes = initialize_response(|out| out[4..8].copy_from_slice(&pdu_bytes.to_le_bytes()));
        let violation = Violation::PduLength {
            pdu_type: PduType::InitializeResponse,
            pdu_bytes,
        };
        refused(&bytes, ControllerToHost, &initializing(), violation);
    }
}

#[test]
fn length_of_a_termination() {
    for (pdu_bytes, valid) in [
        (0, false),
        (23, false),
        (24, true),
        (152, true),
        (153, false),
        (u32::MAX, false),
    ] {
        let mut bytes = [0; 24];
        bytes[..3].copy_from_slice(&[2, 0, 24]);
        bytes[4..8].copy_from_slice(&pdu_bytes.to_le_bytes());
        let violation = Violation::PduLength {
            pdu_type: PduType::HostTerminate,
            pdu_bytes,
        };
        if valid {
            decode(&bytes, HostToController, &limits());
        } else {
            refused(&bytes, HostToController, &limits(), violation);
            assert!(!violation.deserves_answer());
        }
    }
}

#[test]
fn length_of_a_command() {
    for pdu_bytes in [0, 71] {
        let bytes = command(0, &PLAIN, |out| {
            out[4..8].copy_from_slice(&u32::to_le_bytes(pdu_bytes))
        });
        let violation = Violation::PduLength {
            pdu_type: PduType::Command,
            pdu_bytes,
        };
        refused(&bytes, HostToController, &limits(), violation);
    }
    // A data digest of no data.
    let bytes = command(
        4,
        &Framing {
            data_digest: true,
            ..PLAIN
        },
        |out| out[4] = 76,
    );
    let violation = Violation::PduLength {
        pdu_type: PduType::Command,
        pdu_bytes: 76,
    };
    refused(
        &bytes,
        HostToController,
        &ConnectionLimits {
            data_digest: true,
            ..limits()
        },
        violation,
    );
}

#[test]
fn length_against_data_length() {
    for change in [-1, 1, 4] {
        let pdu_bytes = (24 + 4096_u32).strict_add_signed(change);
        let bytes = host_data(&PLAIN, |out| out[4..8].copy_from_slice(&pdu_bytes.to_le_bytes()));
        let violation = Violation::PduLength {
            pdu_type: PduType::HostData,
            pdu_bytes,
        };
        refused(&bytes, HostToController, &limits(), violation);
        let bytes = controller_data(|out| out[4..8].copy_from_slice(&pdu_bytes.to_le_bytes()));
        let violation = Violation::PduLength {
            pdu_type: PduType::ControllerData,
            pdu_bytes,
        };
        refused(&bytes, ControllerToHost, &limits(), violation);
    }
    for pdu_bytes in [0, 3, 24] {
        let bytes = host_data(&PLAIN, |out| {
            out[4..8].copy_from_slice(&u32::to_le_bytes(pdu_bytes))
        });
        let violation = Violation::PduLength {
            pdu_type: PduType::HostData,
            pdu_bytes,
        };
        refused(&bytes, HostToController, &limits(), violation);
    }
}

#[test]
fn data_offset_within_the_header_or_behind_the_end() {
    for data_offset in [0, 4, 68, 84, 255] {
        let bytes = command(12, &PLAIN, |out| out[3] = data_offset);
        let violation = Violation::DataOffset {
            pdu_type: PduType::Command,
            data_offset,
            pdu_bytes: 84,
        };
        refused(&bytes, HostToController, &limits(), violation);
    }
    // Within the header digest.
    let mut offset_72 = command(12, &BOTH_DIGESTS, |out| out[3] = 72);
    let digest = crate::wire::digest::crc32c(&offset_72[..72]);
    offset_72[72..76].copy_from_slice(&digest.to_le_bytes());
    let violation = Violation::DataOffset {
        pdu_type: PduType::Command,
        data_offset: 72,
        pdu_bytes: 92,
    };
    refused(&offset_72, HostToController, &both_digests(), violation);
}

#[test]
fn data_offset_that_is_not_aligned() {
    for wire in [0, 1, 3, 31] {
        let alignment = alignment(wire);
        let limits = ConnectionLimits {
            data_alignment: alignment,
            ..limits()
        };
        for data_offset in 72..=u8::MAX {
            let bytes = command(1000, &PLAIN, |out| out[3] = data_offset);
            let decoded = decode_header(&bytes, HostToController, &limits);
            if usize::from(data_offset) % alignment.bytes() == 0 {
                assert!(
                    matches!(decoded, Ok(Decoded::Pdu(_))),
                    "{data_offset} at {}",
                    alignment.bytes()
                );
            } else {
                let violation = Violation::DataOffset {
                    pdu_type: PduType::Command,
                    data_offset,
                    pdu_bytes: 1072,
                };
                assert_eq!(decoded, Err(violation));
            }
        }
    }
}

#[test]
fn more_data_than_agreed() {
    decode(&command(8192, &PLAIN, |_| ()), HostToController, &limits());
    let violation = Violation::LimitExceeded {
        pdu_type: PduType::Command,
    };
    refused(
        &command(8193, &PLAIN, |_| ()),
        HostToController,
        &limits(),
        violation,
    );

    let tight = ConnectionLimits {
        host_data_bytes_max: 4095,
        controller_data_bytes_max: 4095,
        ..limits()
    };
    let violation = Violation::LimitExceeded {
        pdu_type: PduType::HostData,
    };
    refused(&host_data(&PLAIN, |_| ()), HostToController, &tight, violation);
    let violation = Violation::LimitExceeded {
        pdu_type: PduType::ControllerData,
    };
    refused(&controller_data(|_| ()), ControllerToHost, &tight, violation);
}

#[test]
fn ranges() {
    type Build = fn(&dyn Fn(&mut [u8])) -> Vec<u8>;
    let builds: [(PduType, Build); 3] = [
        (PduType::HostData, |change| host_data(&PLAIN, |out| change(out))),
        (PduType::ControllerData, |change| {
            controller_data(|out| change(out))
        }),
        (PduType::ReadyToTransfer, |change| {
            ready_to_transfer(|out| change(out))
        }),
    ];
    for (pdu_type, build) in builds {
        for misaligned in 1..4 {
            let bytes = build(&|out| out[12] = misaligned);
            let violation = Violation::Field { pdu_type, offset: 12 };
            refused(&bytes, pdu_type.direction(), &limits(), violation);
        }
        let bytes = build(&|out| out[16..20].fill(0));
        let violation = Violation::Field { pdu_type, offset: 16 };
        refused(&bytes, pdu_type.direction(), &limits(), violation);
        let bytes = build(&|out| out[12..16].copy_from_slice(&0xffff_f004_u32.to_le_bytes()));
        refused(
            &bytes,
            pdu_type.direction(),
            &limits(),
            Violation::DataOutOfRange { pdu_type },
        );
    }
}

#[test]
fn initialization_parameters() {
    let pdu_type = PduType::InitializeRequest;
    let bytes = initialize_request(|out| out[9] = 1);
    refused(
        &bytes,
        HostToController,
        &initializing(),
        Violation::Unsupported { pdu_type, offset: 8 },
    );
    let bytes = initialize_request(|out| out[10] = 32);
    refused(
        &bytes,
        HostToController,
        &initializing(),
        Violation::Field { pdu_type, offset: 10 },
    );
    let bytes = initialize_request(|out| out[11] = 0xff);
    decode(&bytes, HostToController, &initializing());

    let pdu_type = PduType::InitializeResponse;
    let bytes = initialize_response(|out| out[8] = 1);
    refused(
        &bytes,
        ControllerToHost,
        &initializing(),
        Violation::Unsupported { pdu_type, offset: 8 },
    );
    let bytes = initialize_response(|out| out[10] = 32);
    refused(
        &bytes,
        ControllerToHost,
        &initializing(),
        Violation::Field { pdu_type, offset: 10 },
    );
    let bytes = initialize_response(|out| out[11] = 4);
    refused(
        &bytes,
        ControllerToHost,
        &initializing(),
        Violation::Field { pdu_type, offset: 11 },
    );
    for max_data_bytes in [0_u32, 4092, 4098, 131_073] {
        let bytes = initialize_response(|out| out[12..16].copy_from_slice(&max_data_bytes.to_le_bytes()));
        refused(
            &bytes,
            ControllerToHost,
            &initializing(),
            Violation::Field { pdu_type, offset: 12 },
        );
    }
}

#[test]
fn status_and_information_of_every_violation() {
    use FatalErrorStatus as Status;
    let pdu_type = PduType::HostData;
    for (violation, status, information) in [
        (
            Violation::UnknownType { pdu_type: 8 },
            Status::InvalidHeaderField,
            0,
        ),
        (
            Violation::WrongDirection {
                pdu_type,
                direction: ControllerToHost,
            },
            Status::InvalidHeaderField,
            0,
        ),
        (Violation::WrongPhase { pdu_type }, Status::SequenceError, 0),
        (
            Violation::HeaderLength {
                pdu_type,
                header_bytes: 9,
            },
            Status::InvalidHeaderField,
            2,
        ),
        (
            Violation::Flags { pdu_type, flags: 9 },
            Status::InvalidHeaderField,
            1,
        ),
        (
            Violation::HeaderDigest {
                received: 5,
                computed: 6,
            },
            Status::HeaderDigestError,
            5,
        ),
        (
            Violation::DataOffset {
                pdu_type,
                data_offset: 9,
                pdu_bytes: 9,
            },
            Status::InvalidHeaderField,
            3,
        ),
        (
            Violation::PduLength {
                pdu_type,
                pdu_bytes: 9,
            },
            Status::InvalidHeaderField,
            4,
        ),
        (
            Violation::Field { pdu_type, offset: 17 },
            Status::InvalidHeaderField,
            17,
        ),
        (
            Violation::Unsupported { pdu_type, offset: 18 },
            Status::UnsupportedParameter,
            18,
        ),
        (Violation::LimitExceeded { pdu_type }, Status::LimitExceeded, 0),
        (Violation::DataOutOfRange { pdu_type }, Status::DataOutOfRange, 0),
        (Violation::OutOfSequence { pdu_type }, Status::SequenceError, 0),
    ] {
        assert_eq!(
            (violation.status(), violation.information()),
            (status, information),
            "{violation}"
        );
        assert!(violation.deserves_answer());
    }
    for pdu_type in [PduType::HostTerminate, PduType::ControllerTerminate] {
        assert!(!Violation::Flags { pdu_type, flags: 1 }.deserves_answer());
    }
    let numbers: Vec<u16> = FatalErrorStatus::ALL
        .iter()
        .map(|status| status.to_wire())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
}
