//! ASCII text in fields of fixed size (Base 2.0, 1.4.2 "ASCII strings"): left justified, padded with spaces,
//! printable.

use std::fmt;
use std::ops::RangeInclusive;

use super::structure::Field;

const PRINTABLE: RangeInclusive<u8> = b' '..=b'~';

/// A field of `N` bytes of text, such as a serial number.
///
/// Text from peers may hold anything; what is not printable ASCII shows as `?`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AsciiField<const N: usize>([u8; N]);

impl<const N: usize> AsciiField<N> {
    /// A field with this text: cut at `N` bytes, padded with spaces, and `?` for what is not printable ASCII.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut field = [b' '; N];
        for (slot, character) in field.iter_mut().zip(text.chars()) {
            *slot = u8::try_from(character)
                .ok()
                .filter(|byte| PRINTABLE.contains(byte))
                .unwrap_or(b'?');
        }
        Self(field)
    }

    /// The text, without the padding: trailing spaces and zeros.
    #[must_use]
    pub fn text(&self) -> String {
        let text: String = self
            .0
            .iter()
            .map(|byte| match byte {
                0 => ' ',
                byte if PRINTABLE.contains(byte) => char::from(*byte),
                _ => '?',
            })
            .collect();
        text.trim_end().to_owned()
    }
}

impl<const N: usize> Field for AsciiField<N> {
    const BYTES: usize = N;

    fn read(bytes: &[u8]) -> Self {
        Self(Field::read(bytes))
    }

    fn write(&self, out: &mut [u8]) {
        self.0.write(out);
    }
}

impl<const N: usize> fmt::Display for AsciiField<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text())
    }
}

impl<const N: usize> fmt::Debug for AsciiField<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pads_and_cuts() {
        assert_eq!(AsciiField::<6>::new("ab").0, *b"ab    ");
        assert_eq!(AsciiField::<6>::new("abcdefgh").0, *b"abcdef");
        assert_eq!(AsciiField::<6>::new("ü\n\u{7f}x").0, *b"???x  ");
        assert_eq!(AsciiField::<6>::new("ab").text(), "ab");
        assert_eq!(AsciiField::<6>(*b"a\0b\xff \0").text(), "a b?");
    }

    proptest! {
        #[test]
        fn printable_text_survives(text in "[!-~]{0,20}") {
            prop_assert_eq!(AsciiField::<20>::new(&text).text(), text);
        }

        #[test]
        fn any_bytes_are_text(bytes: [u8; 20]) {
            let text = AsciiField::<20>::read(&bytes).text();
            prop_assert!(text.bytes().all(|byte| PRINTABLE.contains(&byte)));
        }
    }
}
