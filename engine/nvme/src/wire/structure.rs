//! A helper for the large data structures: each is declared once, with the offset of every field as the
//! specification prints it, and gets a plain Rust struct, an encoder, a decoder, and a check at compile time
//! that no two fields overlap.
//!
//! These structures travel on the admin queue, so clarity comes before speed here. What the data path uses
//! has layouts instead (see [`command`](super::command) and [`pdu`](super::pdu)).

use uuid::Uuid;

/// A value of fixed size within a structure. Decoding is total: any bytes are a value.
pub trait Field: Sized {
    /// Size in bytes.
    const BYTES: usize;

    /// Decodes the value at the start of `bytes`; missing bytes count as zeros.
    fn read(bytes: &[u8]) -> Self;

    /// Encodes the value at the start of `out`; what does not fit is dropped.
    fn write(&self, out: &mut [u8]);
}

/// The first `N` bytes, padded with zeros.
fn chunk<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut chunk = [0; N];
    for (slot, byte) in chunk.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    chunk
}

fn put(out: &mut [u8], bytes: &[u8]) {
    for (slot, byte) in out.iter_mut().zip(bytes) {
        *slot = *byte;
    }
}

macro_rules! integer_fields {
    ($($integer:ty),+) => {
        $(impl Field for $integer {
            const BYTES: usize = size_of::<$integer>();

            fn read(bytes: &[u8]) -> Self {
                Self::from_le_bytes(chunk(bytes))
            }

            fn write(&self, out: &mut [u8]) {
                put(out, &self.to_le_bytes());
            }
        })+
    };
}

integer_fields!(u8, u16, u32, u64, u128);

/// A UUID travels in the byte order of RFC 4122.
impl Field for Uuid {
    const BYTES: usize = 16;

    fn read(bytes: &[u8]) -> Self {
        Self::from_bytes(chunk(bytes))
    }

    fn write(&self, out: &mut [u8]) {
        put(out, self.as_bytes());
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    const BYTES: usize = T::BYTES * N;

    fn read(bytes: &[u8]) -> Self {
        std::array::from_fn(|index| T::read(bytes.get(index * T::BYTES..).unwrap_or_default()))
    }

    fn write(&self, out: &mut [u8]) {
        for (value, slot) in self.iter().zip(out.chunks_mut(T::BYTES)) {
            value.write(slot);
        }
    }
}

/// Declares a structure:
///
/// ```text
/// structure! {
///     /// What it is, and where the specification has it.
///     pub struct Name: 4096 {
///         /// What the field is.
///         0 => field: u16,
///         /// …
///         4 => another: [u8; 3],
///     }
/// }
/// ```
///
/// Fields stand in the order of their offsets. Gaps are reserved: written as zeros and ignored.
macro_rules! structure {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident: $bytes:literal {
            $( $(#[$field_meta:meta])* $offset:literal => $field:ident: $type:ty, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        $visibility struct $name {
            $( $(#[$field_meta])* pub $field: $type, )+
        }

        impl $name {
            /// Size on the wire, in bytes.
            pub const BYTES: usize = $bytes;

            /// The structure in `bytes`, of which missing ones count as zeros. Any bytes are a value.
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Self {
                <Self as $crate::wire::structure::Field>::read(bytes)
            }

            /// The structure as it travels.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; $bytes] {
                let mut bytes = [0; $bytes];
                $crate::wire::structure::Field::write(self, &mut bytes);
                bytes
            }
        }

        impl Default for $name {
            /// The structure of all zeros.
            fn default() -> Self {
                Self::from_bytes(&[])
            }
        }

        impl $crate::wire::structure::Field for $name {
            const BYTES: usize = $bytes;

            fn read(bytes: &[u8]) -> Self {
                use $crate::wire::structure::Field;
                Self {
                    $( $field: <$type as Field>::read(bytes.get($offset..).unwrap_or_default()), )+
                }
            }

            fn write(&self, out: &mut [u8]) {
                $(
                    if let Some(out) = out.get_mut($offset..) {
                        $crate::wire::structure::Field::write(&self.$field, out);
                    }
                )+
            }
        }

        const _: () = {
            let offsets = [$( ($offset as usize, <$type as $crate::wire::structure::Field>::BYTES), )+];
            let mut end = 0;
            let mut index = 0;
            while index < offsets.len() {
                let (offset, bytes) = offsets[index];
                assert!(offset >= end, "fields overlap or are out of order");
                end = offset + bytes;
                index += 1;
            }
            assert!(end <= $bytes, "a field reaches over the end");
        };
    };
}

/// Declares flags of a structure or dword: `bitflags!`, with all bits passing through, as a [`Field`].
macro_rules! wire_flags {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident: $bits:ty {
            $( $(#[doc = $flag_doc:literal])* $flag:ident = $value:expr, )+
        }
    ) => {
        bitflags::bitflags! {
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            $visibility struct $name: $bits {
                $( $(#[doc = $flag_doc])* const $flag = $value; )+
                /// Bits without a name pass through.
                const _ = !0;
            }
        }

        impl $crate::wire::structure::Field for $name {
            const BYTES: usize = size_of::<$bits>();

            fn read(bytes: &[u8]) -> Self {
                Self::from_bits_retain(<$bits as $crate::wire::structure::Field>::read(bytes))
            }

            fn write(&self, out: &mut [u8]) {
                $crate::wire::structure::Field::write(&self.bits(), out);
            }
        }
    };
}

pub(crate) use structure;
pub(crate) use wire_flags;

#[cfg(test)]
mod tests {
    use super::*;

    wire_flags! {
        /// Flags to try.
        pub struct Flags: u16 {
            /// One.
            ONE = 1 << 0,
            /// Nine.
            NINE = 1 << 9,
        }
    }

    structure! {
        /// A structure to try.
        pub struct Sample: 40 {
            /// At the start.
            0 => first: u16,
            /// Behind a gap of one.
            3 => array: [u16; 2],
            /// Flags.
            8 => flags: Flags,
            /// In the order of RFC 4122.
            16 => uuid: Uuid,
            /// Up to the end.
            32 => last: u64,
        }
    }

    fn sample() -> (Sample, [u8; 40]) {
        let sample = Sample {
            first: 0x0102,
            array: [0x0304, 0x0506],
            flags: Flags::ONE | Flags::from_bits_retain(0x8000),
            uuid: Uuid::from_bytes([9; 16]),
            last: 0x1112_1314_1516_1718,
        };
        let mut bytes = [0; 40];
        bytes[..10].copy_from_slice(&[2, 1, 0, 4, 3, 6, 5, 0, 0x01, 0x80]);
        bytes[16..32].fill(9);
        bytes[32..].copy_from_slice(&[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
        (sample, bytes)
    }

    #[test]
    fn encodes_at_the_offsets() {
        let (sample, bytes) = sample();
        assert_eq!(sample.to_bytes(), bytes);
        assert_eq!(Sample::from_bytes(&bytes), sample);
    }

    #[test]
    fn knows_its_size() {
        assert_eq!(Sample::BYTES, 40);
        assert_eq!(<Sample as Field>::BYTES, 40);
    }

    #[test]
    fn ignores_gaps_and_missing_bytes() {
        let (sample, mut bytes) = sample();
        bytes[2] = 0xff;
        bytes[10..16].fill(0xff);
        assert_eq!(Sample::from_bytes(&bytes), sample);
        let cut = Sample::from_bytes(&bytes[..34]);
        assert_eq!(
            cut,
            Sample {
                last: 0x1718,
                ..sample
            }
        );
        assert_eq!(Sample::from_bytes(&[]), Sample::default());
    }
}
