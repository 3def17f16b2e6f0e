//! A helper for enumerations that travel as a number.

/// Declares an enumeration whose variants are numbers on the wire, with `from_wire`, `to_wire` and every
/// variant in `ALL`.
///
/// `from_wire` is total: a number without a variant is `None`, to be answered as the specification says.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        $visibility:vis enum $name:ident: $number:ty {
            $( $(#[$variant_meta:meta])* $variant:ident = $value:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr($number)]
        $visibility enum $name {
            $( $(#[$variant_meta])* $variant = $value, )+
        }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &[Self] = &[$( Self::$variant, )+];

            /// The variant with this number, if there is one.
            #[inline]
            #[must_use]
            pub const fn from_wire(value: $number) -> Option<Self> {
                match value {
                    $( $value => Some(Self::$variant), )+
                    _ => None,
                }
            }

            /// The number that travels.
            #[inline]
            #[must_use]
            pub const fn to_wire(self) -> $number {
                self as $number
            }
        }
    };
}

pub(crate) use wire_enum;
