//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// Units, the largest first.
const UNITS: [(&str, u64); 5] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Units of the makers of drives.
const DECIMAL_UNITS: [(&str, u64); 5] = [
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

/// A number of bytes, read as sizes are everywhere else: `512MiB`, `10GB`, `1.5TiB`, in whole bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no size: write one such as 512MiB, 1.5TiB or 10GB (KiB is 1024 bytes, KB is \
                 1000), in whole bytes"
            )
        })
    }
}

fn parse(text: &str) -> Option<u64> {
    let units = UNITS.iter().chain(&DECIMAL_UNITS);
    let found = { units }.find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = found.unwrap_or((text, 1));
    let (whole, fraction) = number.trim().split_once('.').unwrap_or((number.trim(), "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let fraction = fraction.trim_end_matches('0');
    let numerator = match fraction {
        "" => 0,
        fraction => fraction.parse::<u128>().ok()?.checked_mul(u128::from(factor))?,
    };
    let denominator = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    if numerator % denominator != 0 {
        return None;
    }
    whole.checked_add(u64::try_from(numerator / denominator).ok()?)
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
        assert_eq!("1.5GiB".parse(), Ok(Size(3 << 29)));
        assert_eq!("10GB".parse(), Ok(Size(10_000_000_000)));
        assert_eq!("0.5KiB".parse(), Ok(Size(512)));
        assert_eq!("10 GiB".parse(), Ok(Size(10 << 30)));
        for text in [
            "",
            "GiB",
            "-1GiB",
            "+1GiB",
            "1.GiB",
            ".5GiB",
            "0.3KiB",
            "1.5",
            "1G",
            "1GiBGiB",
            "1.2.3GiB",
            "99999999999TiB",
            "1.99999999999999999999999999999999999999999999PiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
