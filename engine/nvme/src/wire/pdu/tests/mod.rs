//! Frozen bytes of every PDU, one test for every violation, and properties of the codec.

mod frozen;
mod properties;
mod violations;

use super::*;

/// Limits of an established connection without digests.
fn limits() -> ConnectionLimits {
    ConnectionLimits {
        phase: Phase::Established,
        header_digest: false,
        data_digest: false,
        data_alignment: DataAlignment::NONE,
        in_capsule_data_bytes_max: 8192,
        host_data_bytes_max: 131_072,
        controller_data_bytes_max: 1 << 20,
    }
}

fn alignment(wire: u8) -> DataAlignment {
    DataAlignment::from_wire(wire).unwrap()
}

/// Decodes what must be a valid header.
fn decode<'a>(bytes: &'a [u8], direction: Direction, limits: &ConnectionLimits) -> Pdu<'a> {
    match decode_header(bytes, direction, limits) {
        Ok(Decoded::Pdu(pdu)) => pdu,
        other => panic!("{other:?}"),
    }
}
