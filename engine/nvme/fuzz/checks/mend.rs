//! Lets a fuzzer past the header digests, which it would not guess.

use pollux_nvme::wire::digest::{DIGEST_BYTES, crc32c};
use pollux_nvme::wire::pdu::PduFlags;

/// Puts the right digest behind the header of each PDU that is there whole.
pub fn mend_header_digests(bytes: &mut [u8]) {
    let mut rest = bytes;
    while let Some(&[_, flags, header_bytes, _, a, b, c, d]) = rest.first_chunk::<8>() {
        let header_bytes = usize::from(header_bytes);
        let digested = PduFlags::from_bits_truncate(flags).contains(PduFlags::HEADER_DIGEST);
        if digested && let Some((header, behind)) = rest.split_at_mut_checked(header_bytes) {
            let digest = crc32c(header).to_le_bytes();
            if let Some(place) = behind.first_chunk_mut::<DIGEST_BYTES>() {
                *place = digest;
            }
        }
        let pdu_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        match rest.split_at_mut_checked(pdu_bytes.max(8)) {
            Some((_, behind)) => rest = behind,
            None => return,
        }
    }
}
