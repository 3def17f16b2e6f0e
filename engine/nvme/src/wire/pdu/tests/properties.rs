//! What holds for all inputs: no panic, no partial reading, and every encoding decodes to what was encoded.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::wire::command::{CompletionEntry, SubmissionEntry};

fn any_limits() -> impl Strategy<Value = ConnectionLimits> {
    (any::<(bool, bool, bool)>(), 0..=31_u8, any::<[u32; 3]>()).prop_map(
        |(switches, alignment_wire, maxima)| ConnectionLimits {
            phase: if switches.0 {
                Phase::Established
            } else {
                Phase::Initializing
            },
            header_digest: switches.1,
            data_digest: switches.2,
            data_alignment: alignment(alignment_wire),
            in_capsule_data_bytes_max: maxima[0],
            host_data_bytes_max: maxima[1],
            controller_data_bytes_max: maxima[2],
        },
    )
}

fn any_direction() -> impl Strategy<Value = Direction> {
    prop_oneof![
        Just(Direction::HostToController),
        Just(Direction::ControllerToHost)
    ]
}

fn any_framing() -> impl Strategy<Value = Framing> {
    (any::<bool>(), any::<bool>(), 0..=31_u8).prop_map(|(header_digest, data_digest, alignment_wire)| {
        Framing {
            header_digest,
            data_digest,
            data_alignment: alignment(alignment_wire),
        }
    })
}

/// Limits that let everything pass that `framing` frames.
fn limits_for(framing: &Framing) -> ConnectionLimits {
    ConnectionLimits {
        phase: Phase::Established,
        header_digest: framing.header_digest,
        data_digest: framing.data_digest,
        data_alignment: framing.data_alignment,
        in_capsule_data_bytes_max: u32::MAX,
        host_data_bytes_max: u32::MAX,
        controller_data_bytes_max: u32::MAX,
    }
}

/// What must hold of any PDU the decoder lets pass.
fn check_accepted(pdu: &Pdu<'_>, bytes: &[u8], limits: &ConnectionLimits) {
    let digest_bytes = if pdu.data_digest { 4 } else { 0 };
    assert_eq!(pdu.data_offset + pdu.data_bytes + digest_bytes, pdu.pdu_bytes);
    assert!(pdu.data_offset <= 255 && pdu.data_offset >= usize::from(bytes[2]));
    assert!(!pdu.data_digest || (limits.data_digest && pdu.data_bytes > 0));
    let most = match pdu.header {
        Header::Command(_) => limits.in_capsule_data_bytes_max,
        Header::HostData(_) => limits.host_data_bytes_max,
        Header::ControllerData(_) => limits.controller_data_bytes_max,
        Header::Terminate(_) => 128,
        Header::InitializeRequest(_)
        | Header::InitializeResponse(_)
        | Header::Response(_)
        | Header::ReadyToTransfer(_) => 0,
    };
    assert!(pdu.data_bytes <= most as usize);
}

fn data_range() -> impl Strategy<Value = DataRange> {
    (any::<u16>(), 0..1_u32 << 28, 1..1_u32 << 28).prop_map(|(command_id, dwords, length_bytes)| DataRange {
        command_id,
        offset_bytes: dwords * 4,
        length_bytes,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        direction in any_direction(),
        limits in any_limits(),
    ) {
        if let Ok(Decoded::Pdu(pdu)) = decode_header(&bytes, direction, &limits) {
            check_accepted(&pdu, &bytes, &limits);
        }
    }

    /// Headers that get past the first checks, so that the later ones see strange values.
    #[test]
    fn never_panics_near_validity(
        mut bytes in prop::collection::vec(any::<u8>(), 132..200),
        type_index in 0..PduType::ALL.len(),
        flags in 0..16_u8,
        data_offset in prop_oneof![0..=u8::MAX, Just(72), Just(24), Just(128)],
        pdu_bytes in prop_oneof![any::<u32>(), 0..300_u32],
        limits in any_limits(),
    ) {
        let pdu_type = PduType::ALL[type_index];
        bytes[0] = pdu_type.to_wire();
        bytes[1] = flags;
        bytes[2] = u8::try_from(pdu_type.header_bytes()).unwrap();
        bytes[3] = data_offset;
        bytes[4..8].copy_from_slice(&pdu_bytes.to_le_bytes());
        if flags & 1 != 0 {
            let digest = crate::wire::digest::crc32c(&bytes[..pdu_type.header_bytes()]);
            bytes[pdu_type.header_bytes()..][..4].copy_from_slice(&digest.to_le_bytes());
        }
        if let Ok(Decoded::Pdu(pdu)) = decode_header(&bytes, pdu_type.direction(), &limits) {
            check_accepted(&pdu, &bytes, &limits);
        }
    }

    /// Any prefix either asks for more, never more than needed, or already shows the same violation.
    #[test]
    fn prefixes_ask_for_more(framing in any_framing(), range in data_range(), tag: u16, last: bool) {
        let mut out = [0; HEADER_BYTES_MAX];
        let data_offset = encode_host_data(range, tag, last, &framing, &mut out).unwrap();
        let header_end = framing.header_bytes(PduType::HostData);
        for length in 0..=data_offset {
            match decode_header(&out[..length], Direction::HostToController, &limits_for(&framing)) {
                Ok(Decoded::NeedMore { bytes }) => {
                    prop_assert!(length < header_end && length < bytes && bytes <= header_end);
                }
                Ok(Decoded::Pdu(pdu)) => {
                    prop_assert!(length >= header_end);
                    prop_assert_eq!(pdu.data_offset, data_offset);
                }
                Err(violation) => prop_assert!(false, "{}", violation),
            }
        }
    }

    #[test]
    fn commands_survive(framing in any_framing(), entry: [u8; 64], in_capsule_bytes in 0..1_u32 << 30) {
        let entry = SubmissionEntry::read_from_bytes(&entry).unwrap();
        let mut out = [0xaa; HEADER_BYTES_MAX];
        let written = encode_command(&entry, in_capsule_bytes, &framing, &mut out).unwrap();
        let pdu = decode(&out[..written], Direction::HostToController, &limits_for(&framing));
        let Header::Command(capsule) = pdu.header else { panic!("{pdu:?}") };
        prop_assert_eq!(capsule.entry, entry);
        prop_assert_eq!(pdu.data_offset, written);
        prop_assert_eq!(pdu.data_bytes, in_capsule_bytes as usize);
        check_accepted(&pdu, &out, &limits_for(&framing));
    }

    #[test]
    fn responses_survive(framing in any_framing(), entry: [u8; 16]) {
        let entry = CompletionEntry::read_from_bytes(&entry).unwrap();
        let mut out = [0xaa; HEADER_BYTES_MAX];
        let written = encode_response(&entry, &framing, &mut out).unwrap();
        let pdu = decode(&out[..written], Direction::ControllerToHost, &limits_for(&framing));
        let Header::Response(capsule) = pdu.header else { panic!("{pdu:?}") };
        prop_assert_eq!(capsule.entry.as_bytes(), entry.as_bytes());
        prop_assert_eq!(pdu.pdu_bytes, written);
    }

    #[test]
    fn data_survives(framing in any_framing(), range in data_range(), tag: u16, end in 0..3_u8) {
        let limits = limits_for(&framing);
        let mut out = [0xaa; HEADER_BYTES_MAX];
        let last = end != 0;
        let written = encode_host_data(range, tag, last, &framing, &mut out).unwrap();
        let pdu = decode(&out[..written], Direction::HostToController, &limits);
        let Header::HostData(data) = pdu.header else { panic!("{pdu:?}") };
        prop_assert_eq!(data.transfer_tag.get(), tag);
        prop_assert_eq!(PduFlags::from_bits_retain(data.common.flags).contains(PduFlags::LAST), last);
        prop_assert_eq!(
            (data.command_id.get(), data.offset_bytes.get(), data.length_bytes.get()),
            (range.command_id, range.offset_bytes, range.length_bytes)
        );
        prop_assert_eq!((pdu.data_offset, pdu.data_bytes), (written, range.length_bytes as usize));

        let data_end = [DataEnd::More, DataEnd::Last, DataEnd::LastAndSuccess][usize::from(end)];
        let written = encode_controller_data(range, data_end, &framing, &mut out).unwrap();
        let pdu = decode(&out[..written], Direction::ControllerToHost, &limits);
        let Header::ControllerData(data) = pdu.header else { panic!("{pdu:?}") };
        let flags = PduFlags::from_bits_retain(data.common.flags);
        prop_assert_eq!(flags.contains(PduFlags::LAST), last);
        prop_assert_eq!(flags.contains(PduFlags::SUCCESS), data_end == DataEnd::LastAndSuccess);
        prop_assert_eq!(
            (data.command_id.get(), data.offset_bytes.get(), data.length_bytes.get()),
            (range.command_id, range.offset_bytes, range.length_bytes)
        );
        prop_assert_eq!((pdu.data_offset, pdu.data_bytes), (written, range.length_bytes as usize));
    }

    #[test]
    fn ready_to_transfer_survives(framing in any_framing(), range in data_range(), tag: u16) {
        let mut out = [0xaa; HEADER_BYTES_MAX];
        let written = encode_ready_to_transfer(range, tag, &framing, &mut out).unwrap();
        let pdu = decode(&out[..written], Direction::ControllerToHost, &limits_for(&framing));
        let Header::ReadyToTransfer(ready) = pdu.header else { panic!("{pdu:?}") };
        prop_assert_eq!(ready.transfer_tag.get(), tag);
        prop_assert_eq!(
            (ready.command_id.get(), ready.offset_bytes.get(), ready.length_bytes.get()),
            (range.command_id, range.offset_bytes, range.length_bytes)
        );
    }

    #[test]
    fn initialization_survives(
        wire in 0..=31_u8,
        digests in 0..4_u8,
        count in 1..=u32::MAX,
        max in 1024..1_u32 << 30,
    ) {
        let limits = ConnectionLimits { phase: Phase::Initializing, ..limits() };
        let digests = Digests::from_bits(digests).unwrap();
        let mut out = [0xaa; HEADER_BYTES_MAX];
        encode_initialize_request(alignment(wire), digests, count, &mut out).unwrap();
        let pdu = decode(&out, Direction::HostToController, &limits);
        let Header::InitializeRequest(request) = pdu.header else { panic!("{pdu:?}") };
        prop_assert_eq!((request.host_data_alignment, request.digests), (wire, digests.bits()));
        prop_assert_eq!(request.max_ready_to_transfer_minus_one.get(), count - 1);

        encode_initialize_response(alignment(wire), digests, max * 4, &mut out).unwrap();
        let pdu = decode(&out, Direction::ControllerToHost, &limits);
        let Header::InitializeResponse(response) = pdu.header else { panic!("{pdu:?}") };
        prop_assert_eq!((response.controller_data_alignment, response.digests), (wire, digests.bits()));
        prop_assert_eq!(response.max_h2c_data_bytes.get(), max * 4);
    }
}
