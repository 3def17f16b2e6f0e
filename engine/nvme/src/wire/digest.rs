//! CRC-32C header and data digests (TCP 3.3.1 "Digests"; Castagnoli polynomial, as iSCSI uses it).
//!
//! A digest travels as four little-endian bytes behind what it covers: the header digest behind the HLEN
//! header bytes, the data digest behind the data. Padding and the other digest are covered by neither.

/// Size of a digest on the wire, in bytes.
pub const DIGEST_BYTES: usize = 4;

/// Digest of `bytes`.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A digest computed piece by piece, for data that lies scattered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The register of the CRC, not yet inverted.
    register: u32,
}

/// The register before the first byte, and what it is XORed with after the last.
const ALL_ONES: u32 = u32::MAX;

impl Digest {
    /// The digest of no bytes.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self { register: ALL_ONES }
    }

    /// Takes the next `bytes` in.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the register of a CRC-32 has 32 bits"
    )]
    pub fn update(&mut self, bytes: &[u8]) {
        if self.register == ALL_ONES {
            // From the start register the one-shot function gives the same, without setting up an engine.
            self.register = crc32c(bytes) ^ ALL_ONES;
            return;
        }
        let mut engine =
            crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc32Iscsi, self.register.into());
        engine.update(bytes);
        self.register = engine.get_state() as u32;
    }

    /// The digest of everything taken in so far.
    #[inline]
    #[must_use]
    pub const fn value(self) -> u32 {
        self.register ^ ALL_ONES
    }

    /// The digest as it travels.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; DIGEST_BYTES] {
        self.value().to_le_bytes()
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 3720, B.4: the CRC-32C examples.
    #[test]
    fn agrees_with_the_published_examples() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&descending), 0x113f_db5c);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn travels_little_endian() {
        let mut digest = Digest::new();
        digest.update(b"123456789");
        assert_eq!(digest.to_bytes(), [0x83, 0x92, 0x06, 0xe3]);
    }

    /// One bit at a time, straight from the definition of the polynomial.
    fn bitwise(bytes: &[u8]) -> u32 {
        const REFLECTED_POLYNOMIAL: u32 = 0x82f6_3b78;
        let mut register = u32::MAX;
        for byte in bytes {
            register ^= u32::from(*byte);
            for _ in 0..8 {
                let carry = register & 1;
                register = (register >> 1) ^ (REFLECTED_POLYNOMIAL * carry);
            }
        }
        !register
    }

    proptest! {
        #[test]
        fn agrees_with_the_bitwise_definition(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
        ) {
            let mut digest = Digest::new();
            for piece in &pieces {
                digest.update(piece);
            }
            let whole = pieces.concat();
            prop_assert_eq!(digest.value(), bitwise(&whole));
            prop_assert_eq!(crc32c(&whole), bitwise(&whole));
        }
    }
}
