//! CRC-32C header and data digests (TCP 3.3.1 "Digests"; Castagnoli polynomial, as iSCSI uses it).
//!
//! A digest travels as four little-endian bytes behind what it covers: the header digest behind the HLEN header bytes,
//! the data digest behind the data. Padding and the other digest are covered by neither.

/// Size of a digest on the wire, in bytes.
pub const DIGEST_BYTES: usize = 4;

/// Digest of `bytes`.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// A digest computed piece by piece, for data that lies scattered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u32);

impl Digest {
    /// The digest of no bytes.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Takes the next `bytes` in.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// The digest of everything taken in so far.
    #[inline]
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The digest as it travels.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; DIGEST_BYTES] {
        self.0.to_le_bytes()
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
