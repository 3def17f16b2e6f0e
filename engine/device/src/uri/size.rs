//! Sizes as people write them: `512MiB`, `1.5 TiB`, `10GB`, `4096`.

use std::fmt;
use std::str::FromStr;

/// Binary units, largest first.
const BINARY_UNITS: [(&str, u32); 6] = [
    ("EiB", 60),
    ("PiB", 50),
    ("TiB", 40),
    ("GiB", 30),
    ("MiB", 20),
    ("KiB", 10),
];

/// Decimal units and their powers of ten.
const DECIMAL_UNITS: [(&str, u32); 6] = [
    ("EB", 18),
    ("PB", 15),
    ("TB", 12),
    ("GB", 9),
    ("MB", 6),
    ("KB", 3),
];

/// Most digits after the decimal point that are read; more cannot matter for whole bytes.
const FRACTION_DIGITS_MAX: usize = 18;

/// What a size looks like, for error messages.
pub const SIZE_EXPECTED: &str = "a size such as 4096, 512MiB, 1.5TiB or 10GB (KiB is 1024 bytes, KB is 1000)";

/// A number of bytes, read from and written for people.
///
/// Written in the largest binary unit of which it has at least one: `1 GiB`, `1.5 TiB`, and with two
/// decimals, cut off, where it is not exact: `9.31 GiB`. Read with binary (`GiB`) and decimal (`GB`) units,
/// in either case, and without a unit as bytes. A lone `G` is refused: half of all tools mean one thing by
/// it, half the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: write {SIZE_EXPECTED}, below 16EiB and in whole bytes")]
pub struct SizeError {
    /// What was given.
    pub text: String,
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse(text.trim()).map(Self).ok_or_else(|| SizeError {
            text: text.chars().take(64).collect(),
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        let Some((unit, shift)) = BINARY_UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
            return write!(formatter, "{bytes} B");
        };
        let whole = bytes >> shift;
        let rest = u128::from(bytes & ((1 << shift) - 1));
        match (rest * 100) >> shift {
            0 => write!(formatter, "{whole} {unit}"),
            hundredths if hundredths % 10 == 0 => write!(formatter, "{whole}.{} {unit}", hundredths / 10),
            hundredths => write!(formatter, "{whole}.{hundredths:02} {unit}"),
        }
    }
}

fn parse(text: &str) -> Option<u64> {
    let number_len = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(number_len);
    let unit_bytes = unit_bytes(unit.trim_start())?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction.trim_end_matches('0')),
        None => (number, ""),
    };
    if whole.is_empty() || number.ends_with('.') || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?;
    let mut bytes = u128::from(whole) * unit_bytes;
    if !fraction.is_empty() {
        let numerator = u128::from(fraction.parse::<u64>().ok()?).checked_mul(unit_bytes)?;
        let denominator = 10_u128.pow(fraction.len() as u32);
        if numerator % denominator != 0 {
            return None;
        }
        bytes += numerator / denominator;
    }
    u64::try_from(bytes).ok()
}

fn unit_bytes(unit: &str) -> Option<u128> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("B") {
        return Some(1);
    }
    let binary = BINARY_UNITS.iter().map(|&(name, shift)| (name, 1_u128 << shift));
    let decimal = DECIMAL_UNITS
        .iter()
        .map(|&(name, power)| (name, 10_u128.pow(power)));
    binary
        .chain(decimal)
        .find(|(name, _)| unit.eq_ignore_ascii_case(name))
        .map(|(_, bytes)| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512 B", 512),
            ("1KiB", 1 << 10),
            ("1kb", 1000),
            ("512MiB", 512 << 20),
            ("10GB", 10_000_000_000),
            ("10 GiB", 10 << 30),
            ("1tib", 1 << 40),
            ("1.5TiB", 3 << 39),
            ("1.50TiB", 3 << 39),
            ("0.5KiB", 512),
            ("15EiB", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_size() {
        for text in [
            "",
            "GiB",
            "1G",
            "1Gi",
            "-1",
            "+1",
            "1e9",
            "1.GiB",
            ".5GiB",
            "1.2.3GiB",
            "0.3",
            "16EiB",
            "18446744073709551616",
            "99999999999999999999999999999999999999GiB",
            "1.00000000000000000000000001EiB",
            "1 GiB x",
            "é",
        ] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.to_string().contains("512MiB"), "{error}");
        }
    }

    #[test]
    fn writes_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 30, "1 GiB"),
            (3 << 39, "1.5 TiB"),
            (10_000_000_000, "9.31 GiB"),
            ((1 << 30) + 1, "1 GiB"),
            ((1 << 30) + (1 << 24) + (1 << 23), "1.02 GiB"),
            (u64::MAX, "15.99 EiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn never_panics_on_nearly_right_ones(text in "[0-9]{0,40}\\.?[0-9]{0,40} ?[a-zA-Z]{0,4}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn exact_sizes_come_back(whole in 1_u64..1023, unit in 0_usize..6) {
            let (_, shift) = BINARY_UNITS[unit];
            prop_assume!(whole <= u64::MAX >> shift);
            let bytes = whole << shift;
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>(), Ok(ByteSize(bytes)));
        }
    }
}
