//! Expected bytes are written by hand from the figures of TCP 3.6.2.

use super::*;
use crate::wire::command::{CompletionEntry, SglDescriptor, SubmissionEntry};
use crate::wire::status::Status;
use crate::wire::test_bytes::at_offsets;

const INITIALIZING: Phase = Phase::Initializing;

#[test]
fn initialize_request() {
    let mut out = [0xaa; 128];
    let written = encode_initialize_request(alignment(31), Digests::HEADER | Digests::DATA, 17, &mut out);
    assert_eq!(written, Some(128));
    let expected = at_offsets(
        128,
        &[
            (0, &[0x00, 0x00, 128, 0, 128, 0, 0, 0]),
            (8, &[0, 0]),
            (10, &[31]),
            (11, &[0x03]),
            (12, &[16, 0, 0, 0]),
        ],
    );
    assert_eq!(out.as_slice(), expected);
    let limits = ConnectionLimits {
        phase: INITIALIZING,
        ..limits()
    };
    let pdu = decode(&out, Direction::HostToController, &limits);
    let Header::InitializeRequest(request) = pdu.header else {
        panic!("{pdu:?}")
    };
    assert_eq!(request.host_data_alignment, 31);
    assert_eq!(Digests::from_bits(request.digests), Some(Digests::all()));
    assert_eq!(request.max_ready_to_transfer_minus_one.get(), 16);
    assert_eq!(
        (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes, pdu.data_digest),
        (128, 128, 0, false)
    );
}

#[test]
fn initialize_response() {
    let mut out = [0xaa; 128];
    assert_eq!(
        encode_initialize_response(alignment(3), Digests::DATA, 0x0002_0000, &mut out),
        Some(128)
    );
    let expected = at_offsets(
        128,
        &[
            (0, &[0x01, 0x00, 128, 0, 128, 0, 0, 0]),
            (10, &[3]),
            (11, &[0x02]),
            (12, &[0, 0, 2, 0]),
        ],
    );
    assert_eq!(out.as_slice(), expected);
    let limits = ConnectionLimits {
        phase: INITIALIZING,
        ..limits()
    };
    let pdu = decode(&out, Direction::ControllerToHost, &limits);
    let Header::InitializeResponse(response) = pdu.header else {
        panic!("{pdu:?}")
    };
    assert_eq!(response.controller_data_alignment, 3);
    assert_eq!(response.max_h2c_data_bytes.get(), 131_072);
}

#[test]
fn terminate_requests() {
    let violation = Violation::Field {
        pdu_type: PduType::HostData,
        offset: 16,
    };
    let offender: Vec<u8> = (1..=24).collect();
    let mut out = [0xaa; 152];
    let written = encode_terminate_request(Direction::ControllerToHost, &violation, &offender, &mut out);
    assert_eq!(written, Some(48));
    let expected = at_offsets(
        48,
        &[
            (0, &[0x03, 0x00, 24, 0, 48, 0, 0, 0]),
            (8, &[0x01, 0x00]),
            (10, &[16, 0, 0, 0]),
            (24, &offender),
        ],
    );
    assert_eq!(out[..48], expected);
    for phase in [Phase::Initializing, Phase::Established] {
        let limits = ConnectionLimits {
            phase,
            header_digest: true,
            data_digest: true,
            ..limits()
        };
        let pdu = decode(&out[..48], Direction::ControllerToHost, &limits);
        let Header::Terminate(request) = pdu.header else {
            panic!("{pdu:?}")
        };
        assert_eq!(request.status(), Some(FatalErrorStatus::InvalidHeaderField));
        assert_eq!(request.information.get(), 16);
        assert_eq!(
            (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes, pdu.data_digest),
            (48, 24, 24, false)
        );
    }

    let violation = Violation::HeaderDigest {
        received: 0x0403_0201,
        computed: 0,
    };
    let written = encode_terminate_request(Direction::HostToController, &violation, &[7; 200], &mut out);
    assert_eq!(written, Some(152));
    let expected = at_offsets(
        152,
        &[
            (0, &[0x02, 0x00, 24, 0, 152, 0, 0, 0]),
            (8, &[0x03, 0x00]),
            (10, &[1, 2, 3, 4]),
            (24, &[7; 128]),
        ],
    );
    assert_eq!(out.as_slice(), expected);
    assert_eq!(
        decode(&out, Direction::HostToController, &limits()).data_bytes,
        128
    );
}

#[test]
fn command_without_data() {
    let entry = SubmissionEntry::new(0x02, 0x0102, 1).with_data(SglDescriptor::transport(4096));
    let mut out = [0xaa; HEADER_BYTES_MAX];
    assert_eq!(encode_command(&entry, 0, &Framing::default(), &mut out), Some(72));
    let expected = at_offsets(
        72,
        &[
            (0, &[0x04, 0x00, 72, 0, 72, 0, 0, 0]),
            (8, &[0x02, 0x40, 0x02, 0x01, 1, 0, 0, 0]),
            (40, &[0, 0x10, 0, 0, 0, 0, 0, 0x5a]),
        ],
    );
    assert_eq!(out[..72], expected);
    assert_eq!(out[72..], [0xaa; 72], "nothing is written behind the header");
    let pdu = decode(&out[..72], Direction::HostToController, &limits());
    let Header::Command(capsule) = pdu.header else {
        panic!("{pdu:?}")
    };
    assert_eq!(capsule.entry, entry);
    assert_eq!(
        (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes, pdu.data_digest),
        (72, 72, 0, false)
    );
}

/// 4 KiB in the capsule, both digests, data aligned to 16 bytes: the header ends at 76, the data starts at
/// 80.
#[test]
fn command_with_data_digests_and_padding() {
    let entry = SubmissionEntry::new(0x01, 9, 1).with_data(SglDescriptor::in_capsule(4096));
    let framing = Framing {
        header_digest: true,
        data_digest: true,
        data_alignment: alignment(3),
    };
    let mut out = [0xaa; HEADER_BYTES_MAX];
    assert_eq!(encode_command(&entry, 4096, &framing, &mut out), Some(80));
    assert_eq!(
        out[..8],
        [0x04, 0x03, 72, 80, 0x54, 0x10, 0, 0],
        "PLEN is 80 + 4096 + 4"
    );
    assert_eq!(out[72..76], crate::wire::digest::crc32c(&out[..72]).to_le_bytes());
    assert_eq!(out[76..80], [0; 4]);
    let limits = ConnectionLimits {
        header_digest: true,
        data_digest: true,
        data_alignment: alignment(3),
        ..limits()
    };
    let pdu = decode(&out[..76], Direction::HostToController, &limits);
    assert_eq!(
        (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes, pdu.data_digest),
        (4180, 80, 4096, true)
    );
}

#[test]
fn command_without_data_has_no_data_digest() {
    let framing = Framing {
        header_digest: true,
        data_digest: true,
        data_alignment: alignment(31),
    };
    let mut out = [0xaa; HEADER_BYTES_MAX];
    assert_eq!(
        encode_command(&SubmissionEntry::new(0, 1, 1), 0, &framing, &mut out),
        Some(76)
    );
    assert_eq!(out[..8], [0x04, 0x01, 72, 0, 76, 0, 0, 0]);
    let limits = ConnectionLimits {
        header_digest: true,
        data_digest: true,
        data_alignment: alignment(31),
        ..limits()
    };
    let pdu = decode(&out[..76], Direction::HostToController, &limits);
    assert_eq!(
        (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes, pdu.data_digest),
        (76, 76, 0, false)
    );
}

#[test]
fn response() {
    let entry = CompletionEntry::new(0x0102, Status::LBA_OUT_OF_RANGE, 5).with_queue_head(7);
    let mut out = [0xaa; 24];
    assert_eq!(encode_response(&entry, &Framing::default(), &mut out), Some(24));
    assert_eq!(
        out,
        [
            5, 0, 24, 0, 24, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0x02, 0x01, 0x00, 0x01
        ]
    );
    let pdu = decode(&out, Direction::ControllerToHost, &limits());
    let Header::Response(capsule) = pdu.header else {
        panic!("{pdu:?}")
    };
    assert_eq!(capsule.entry, entry);

    let mut out = [0xaa; 28];
    let framing = Framing {
        header_digest: true,
        data_digest: true,
        ..Framing::default()
    };
    assert_eq!(encode_response(&entry, &framing, &mut out), Some(28));
    assert_eq!(out[..8], [5, 1, 24, 0, 28, 0, 0, 0]);
    // CRC-32C of the 24 bytes, computed apart from this code with the bitwise definition.
    assert_eq!(out[24..], bitwise_crc32c(&out[..24]).to_le_bytes());
    let limits = ConnectionLimits {
        header_digest: true,
        data_digest: true,
        ..limits()
    };
    assert_eq!(decode(&out, Direction::ControllerToHost, &limits).pdu_bytes, 28);
}

fn bitwise_crc32c(bytes: &[u8]) -> u32 {
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = if register & 1 == 1 {
                (register >> 1) ^ 0x82f6_3b78
            } else {
                register >> 1
            };
        }
    }
    !register
}

#[test]
fn host_data() {
    let range = DataRange {
        command_id: 0x0102,
        offset_bytes: 0x2000,
        length_bytes: 0x1000,
    };
    let mut out = [0xaa; 24];
    assert_eq!(
        encode_host_data(range, 0x0304, true, &Framing::default(), &mut out),
        Some(24)
    );
    assert_eq!(
        out,
        [
            6, 0x04, 24, 24, 0x18, 0x10, 0, 0, 0x02, 0x01, 0x04, 0x03, 0, 0x20, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
            0
        ]
    );
    let pdu = decode(&out, Direction::HostToController, &limits());
    let Header::HostData(data) = pdu.header else {
        panic!("{pdu:?}")
    };
    assert_eq!((data.command_id.get(), data.transfer_tag.get()), (0x0102, 0x0304));
    assert_eq!(
        (data.offset_bytes.get(), data.length_bytes.get()),
        (0x2000, 0x1000)
    );
    assert_eq!((pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes), (4120, 24, 4096));
}

#[test]
fn controller_data() {
    let range = DataRange {
        command_id: 0x0102,
        offset_bytes: 0x2000,
        length_bytes: 0x1000,
    };
    let framing = Framing {
        header_digest: false,
        data_digest: true,
        data_alignment: alignment(31),
    };
    for (data_end, flags) in [
        (DataEnd::More, 0x02),
        (DataEnd::Last, 0x06),
        (DataEnd::LastAndSuccess, 0x0e),
    ] {
        let mut out = [0xaa; 128];
        assert_eq!(
            encode_controller_data(range, data_end, &framing, &mut out),
            Some(128)
        );
        let expected = at_offsets(
            128,
            &[
                (0, &[7, flags, 24, 128, 0x84, 0x10, 0, 0]),
                (8, &[0x02, 0x01, 0, 0]),
                (12, &[0, 0x20, 0, 0, 0, 0x10, 0, 0]),
            ],
        );
        assert_eq!(out.as_slice(), expected, "PLEN is 128 + 4096 + 4");
        let limits = ConnectionLimits {
            data_digest: true,
            data_alignment: alignment(31),
            ..limits()
        };
        let pdu = decode(&out, Direction::ControllerToHost, &limits);
        assert_eq!(
            (pdu.pdu_bytes, pdu.data_offset, pdu.data_bytes, pdu.data_digest),
            (4228, 128, 4096, true)
        );
    }
}

#[test]
fn ready_to_transfer() {
    let range = DataRange {
        command_id: 0x0102,
        offset_bytes: 0x2000,
        length_bytes: 0x1000,
    };
    let mut out = [0xaa; 24];
    assert_eq!(
        encode_ready_to_transfer(range, 0x0304, &Framing::default(), &mut out),
        Some(24)
    );
    assert_eq!(
        out,
        [
            9, 0, 24, 0, 24, 0, 0, 0, 0x02, 0x01, 0x04, 0x03, 0, 0x20, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0
        ]
    );
    let pdu = decode(&out, Direction::ControllerToHost, &limits());
    let Header::ReadyToTransfer(ready) = pdu.header else {
        panic!("{pdu:?}")
    };
    assert_eq!(
        (ready.command_id.get(), ready.transfer_tag.get()),
        (0x0102, 0x0304)
    );
    assert_eq!(
        (ready.offset_bytes.get(), ready.length_bytes.get()),
        (0x2000, 0x1000)
    );
}

#[test]
fn short_buffers_stay_untouched() {
    let framing = Framing {
        header_digest: true,
        data_digest: true,
        data_alignment: alignment(31),
    };
    let range = DataRange {
        command_id: 1,
        offset_bytes: 0,
        length_bytes: 4,
    };
    let (command, completion) = (SubmissionEntry::default(), CompletionEntry::default());
    let violation = Violation::UnknownType { pdu_type: 8 };
    type Encode<'a> = &'a dyn Fn(&mut [u8]) -> Option<usize>;
    let encoders: [(&str, usize, Encode<'_>); 8] = [
        ("icreq", 128, &|out| {
            encode_initialize_request(DataAlignment::NONE, Digests::empty(), 1, out)
        }),
        ("icresp", 128, &|out| {
            encode_initialize_response(DataAlignment::NONE, Digests::empty(), 4096, out)
        }),
        ("term", 34, &|out| {
            encode_terminate_request(Direction::HostToController, &violation, &[1; 10], out)
        }),
        ("command", 128, &|out| encode_command(&command, 4, &framing, out)),
        ("response", 28, &|out| encode_response(&completion, &framing, out)),
        ("h2c", 128, &|out| {
            encode_host_data(range, 1, false, &framing, out)
        }),
        ("c2h", 128, &|out| {
            encode_controller_data(range, DataEnd::More, &framing, out)
        }),
        ("r2t", 28, &|out| {
            encode_ready_to_transfer(range, 1, &framing, out)
        }),
    ];
    for (name, bytes, encode) in encoders {
        let mut out = [0xaa; HEADER_BYTES_MAX];
        assert_eq!(encode(&mut out[..bytes]), Some(bytes), "{name}");
        for short in 0..bytes {
            let mut out = [0xaa; HEADER_BYTES_MAX];
            assert_eq!(encode(&mut out[..short]), None, "{name}");
            assert_eq!(out, [0xaa; HEADER_BYTES_MAX], "{name}");
        }
    }
}
