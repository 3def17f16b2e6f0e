//! What must hold of the PDU decoder for any bytes in any state of a connection.
//!
//! An input is six bytes of settings, then what a peer sends:
//!
//! ```text
//! 0 bit 0 direction, 1 phase, 2 header digests, 3 data digests, 4 mend header digests
//! 1 data alignment, modulo 32   2 in-capsule data, 3 H2CData, 4 C2HData: at most 2^(this modulo 32) bytes
//! 5 reserved
//! ```
//!
//! Mending puts the right digest behind each header, so that the checks behind it are reached.

use pollux_nvme::wire::digest::{DIGEST_BYTES, crc32c};
use pollux_nvme::wire::pdu::{
    ConnectionLimits, DataAlignment, DataEnd, DataRange, Decoded, Direction, Framing, HEADER_BYTES_MAX,
    Header, Pdu, PduFlags, PduType, Phase, TERMINATE_DATA_BYTES_MAX, TerminateRequest, Violation,
    decode_header, encode_command, encode_controller_data, encode_host_data, encode_ready_to_transfer,
    encode_response, encode_terminate_request,
};

const SETTINGS_BYTES: usize = 6;

/// Panics if the decoder breaks a promise on `input`.
pub fn check(input: &[u8]) {
    let Some((settings, stream)) = input.split_first_chunk::<SETTINGS_BYTES>() else {
        return;
    };
    let [switches, alignment, in_capsule, host_data, controller_data, _] = *settings;
    let direction = if switches & 1 == 0 {
        Direction::HostToController
    } else {
        Direction::ControllerToHost
    };
    let limits = ConnectionLimits {
        phase: if switches & 2 == 0 {
            Phase::Established
        } else {
            Phase::Initializing
        },
        header_digest: switches & 4 != 0,
        data_digest: switches & 8 != 0,
        data_alignment: DataAlignment::from_wire(alignment % 32).expect("0 to 31 are alignments"),
        in_capsule_data_bytes_max: 1 << (in_capsule % 32),
        host_data_bytes_max: 1 << (host_data % 32),
        controller_data_bytes_max: 1 << (controller_data % 32),
    };
    let mends = switches & 16 != 0;

    let mut stream = stream.to_vec();
    let mut rest = stream.as_mut_slice();
    loop {
        if mends {
            mend_header_digest(rest);
        }
        let pdu_bytes = check_one(rest, direction, &limits);
        // Behind a PDU that is all there comes the next.
        match pdu_bytes.and_then(|bytes| rest.split_at_mut_checked(bytes)) {
            Some((_, behind)) => rest = behind,
            None => return,
        }
    }
}

/// Puts the digest behind the header at the start of `bytes`, if both are there.
fn mend_header_digest(bytes: &mut [u8]) {
    let Some(header_bytes) = bytes
        .first()
        .and_then(|number| PduType::from_wire(*number))
        .map(PduType::header_bytes)
    else {
        return;
    };
    if let Some((header, behind)) = bytes.split_at_mut_checked(header_bytes)
        && let Some(digest) = behind.first_chunk_mut::<DIGEST_BYTES>()
    {
        *digest = crc32c(header).to_le_bytes();
    }
}

/// Checks the header at the start of `bytes`; the length of the PDU, if it is one.
fn check_one(bytes: &[u8], direction: Direction, limits: &ConnectionLimits) -> Option<usize> {
    let decoded = decode_header(bytes, direction, limits);
    let pdu = match decoded {
        Ok(Decoded::NeedMore { bytes: needed }) => {
            assert!(
                needed > bytes.len() && needed <= HEADER_BYTES_MAX,
                "asks for {needed} bytes"
            );
            return None;
        }
        Err(violation) => {
            check_violation(&violation, bytes, direction);
            return None;
        }
        Ok(Decoded::Pdu(pdu)) => pdu,
    };

    let digest_bytes = if pdu.data_digest { DIGEST_BYTES } else { 0 };
    assert_eq!(
        pdu.data_offset + pdu.data_bytes + digest_bytes,
        pdu.pdu_bytes,
        "the parts add up"
    );
    let most = match pdu.header {
        Header::Command(_) => limits.in_capsule_data_bytes_max as usize,
        Header::HostData(_) => limits.host_data_bytes_max as usize,
        Header::ControllerData(_) => limits.controller_data_bytes_max as usize,
        Header::Terminate(_) => TERMINATE_DATA_BYTES_MAX,
        Header::InitializeRequest(_)
        | Header::InitializeResponse(_)
        | Header::Response(_)
        | Header::ReadyToTransfer(_) => 0,
    };
    assert!(
        pdu.data_bytes <= most,
        "{} bytes of data where {most} are allowed",
        pdu.data_bytes
    );

    // The header is all that counts, and no less of it than the decoder took gives the same.
    let header_bytes = bytes.len().min(pdu.data_offset);
    assert_eq!(decode_header(&bytes[..header_bytes], direction, limits), decoded);
    for length in 0..bytes.len().min(8) {
        assert!(matches!(
            decode_header(&bytes[..length], direction, limits),
            Ok(Decoded::NeedMore { .. })
        ));
    }
    check_encoding(&pdu, direction, limits);
    Some(pdu.pdu_bytes)
}

/// The termination request for a violation says what the violation says.
fn check_violation(violation: &Violation, bytes: &[u8], direction: Direction) {
    assert!(!violation.to_string().is_empty());
    let back = match direction {
        Direction::HostToController => Direction::ControllerToHost,
        Direction::ControllerToHost => Direction::HostToController,
    };
    let mut out = [0; size_of::<TerminateRequest>() + TERMINATE_DATA_BYTES_MAX];
    let written = encode_terminate_request(back, violation, bytes, &mut out).expect("it fits");
    let limits = ConnectionLimits {
        phase: Phase::Initializing,
        header_digest: true,
        data_digest: true,
        data_alignment: DataAlignment::NONE,
        in_capsule_data_bytes_max: 0,
        host_data_bytes_max: 0,
        controller_data_bytes_max: 0,
    };
    let Ok(Decoded::Pdu(pdu)) = decode_header(&out[..written], back, &limits) else {
        panic!("a termination request of ours is refused");
    };
    let Header::Terminate(request) = pdu.header else {
        panic!("a termination request of ours is taken for another");
    };
    assert_eq!(request.status(), Some(violation.status()));
    assert_eq!(request.information.get(), violation.information());
    assert_eq!(
        out[pdu.data_offset..written],
        bytes[..bytes.len().min(TERMINATE_DATA_BYTES_MAX)]
    );
}

/// What was decoded, encoded again, decodes to the same.
fn check_encoding(pdu: &Pdu<'_>, direction: Direction, limits: &ConnectionLimits) {
    let framing = Framing {
        header_digest: limits.header_digest,
        data_digest: limits.data_digest,
        data_alignment: limits.data_alignment,
    };
    let mut out = [0; HEADER_BYTES_MAX];
    let range = |command_id: u16, offset_bytes: u32, length_bytes: u32| DataRange {
        command_id,
        offset_bytes,
        length_bytes,
    };
    let flags_of = |flags: u8| PduFlags::from_bits_retain(flags);
    let written = match pdu.header {
        Header::Command(capsule) => {
            let data_bytes = u32::try_from(pdu.data_bytes).expect("PLEN has 32 bits");
            encode_command(&capsule.entry, data_bytes, &framing, &mut out)
        }
        Header::Response(capsule) => encode_response(&capsule.entry, &framing, &mut out),
        Header::HostData(data) => encode_host_data(
            range(
                data.command_id.get(),
                data.offset_bytes.get(),
                data.length_bytes.get(),
            ),
            data.transfer_tag.get(),
            flags_of(data.common.flags).contains(PduFlags::LAST),
            &framing,
            &mut out,
        ),
        Header::ControllerData(data) => {
            let flags = flags_of(data.common.flags);
            let data_end = match (flags.contains(PduFlags::LAST), flags.contains(PduFlags::SUCCESS)) {
                (false, _) => DataEnd::More,
                (true, false) => DataEnd::Last,
                (true, true) => DataEnd::LastAndSuccess,
            };
            let range = range(
                data.command_id.get(),
                data.offset_bytes.get(),
                data.length_bytes.get(),
            );
            encode_controller_data(range, data_end, &framing, &mut out)
        }
        Header::ReadyToTransfer(ready) => encode_ready_to_transfer(
            range(
                ready.command_id.get(),
                ready.offset_bytes.get(),
                ready.length_bytes.get(),
            ),
            ready.transfer_tag.get(),
            &framing,
            &mut out,
        ),
        Header::InitializeRequest(_) | Header::InitializeResponse(_) | Header::Terminate(_) => return,
    }
    .expect("any header fits");
    let Ok(Decoded::Pdu(again)) = decode_header(&out[..written], direction, limits) else {
        panic!("a header of ours is refused: {:?}", &out[..written]);
    };
    assert_eq!(
        (again.data_bytes, again.data_digest),
        (pdu.data_bytes, pdu.data_digest)
    );
    match (pdu.header, again.header) {
        (Header::Command(before), Header::Command(after)) => assert_eq!(before.entry, after.entry),
        (Header::Response(before), Header::Response(after)) => assert_eq!(before.entry, after.entry),
        (Header::HostData(before), Header::HostData(after)) => {
            assert_eq!(
                (before.command_id, before.transfer_tag),
                (after.command_id, after.transfer_tag)
            );
            assert_eq!(
                (before.offset_bytes, before.length_bytes),
                (after.offset_bytes, after.length_bytes)
            );
            assert_eq!(before.common.flags, after.common.flags);
        }
        (Header::ControllerData(before), Header::ControllerData(after)) => {
            assert_eq!(before.command_id, after.command_id);
            assert_eq!(
                (before.offset_bytes, before.length_bytes),
                (after.offset_bytes, after.length_bytes)
            );
            assert_eq!(before.common.flags, after.common.flags);
        }
        (Header::ReadyToTransfer(before), Header::ReadyToTransfer(after)) => {
            assert_eq!(
                (before.command_id, before.transfer_tag),
                (after.command_id, after.transfer_tag)
            );
            assert_eq!(
                (before.offset_bytes, before.length_bytes),
                (after.offset_bytes, after.length_bytes)
            );
        }
        (before, after) => panic!("{before:?} turned into {after:?}"),
    }
}
