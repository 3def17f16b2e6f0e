//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// Units, the largest first.
const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: give a whole number with KiB, MiB, GiB or TiB");
        let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
        let (number, factor) = match unit {
            Some((unit, factor)) => (text.trim_end_matches(unit), *factor),
            None => (text, 1),
        };
        let number: u64 = number.trim().parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS
            .iter()
            .find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let large = UNITS.iter().find(|(_, factor)| self.0 >= *factor);
        match (exact, large) {
            (Some((unit, factor)), Some((_, biggest))) if self.0 / factor < 10_000 || factor == biggest => {
                write!(formatter, "{}{unit}", self.0 / factor)
            }
            (_, Some((unit, factor))) => {
                let tenths = u128::from(self.0) * 10 / u128::from(*factor);
                write!(formatter, "{}.{}{unit}", tenths / 10, tenths % 10)
            }
            _ => write!(formatter, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [("10GiB", 10 << 30), ("1TiB", 1 << 40), ("512MiB", 512 << 20)] {
            assert_eq!(text.parse(), Ok(Size(bytes)));
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!(Size(4096).to_string(), "4KiB");
        assert_eq!(Size(5).to_string(), "5B");
        assert_eq!(Size((1 << 40) + 1).to_string(), "1.0TiB");
        for text in ["", "GiB", "-1GiB", "1.5GiB", "1GB", "99999999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
