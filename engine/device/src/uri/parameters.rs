//! Parameters of a URI, taken one by one by type; what nobody took is an error.

use std::time::Duration;

use super::size::{ByteSize, SIZE_EXPECTED};
use super::{DeviceUri, INNER_PREFIX, REDACTED, UriError, is_secret};

/// A type that a parameter's value can be.
pub trait Parameter: Sized {
    /// What a value looks like, as in "which is not ...".
    const EXPECTED: &'static str;

    /// Reads a value; `None` if it is not one.
    fn read(text: &str) -> Option<Self>;
}

impl Parameter for ByteSize {
    const EXPECTED: &'static str = SIZE_EXPECTED;

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Parameter for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Parameter for u16 {
    const EXPECTED: &'static str = "a number from 0 to 65535";

    fn read(text: &str) -> Option<Self> {
        read_digits(text)
    }
}

impl Parameter for u32 {
    const EXPECTED: &'static str = "a number from 0 to 4294967295";

    fn read(text: &str) -> Option<Self> {
        read_digits(text)
    }
}

impl Parameter for u64 {
    const EXPECTED: &'static str = "a number";

    fn read(text: &str) -> Option<Self> {
        read_digits(text)
    }
}

impl Parameter for String {
    const EXPECTED: &'static str = "a text that is not empty";

    fn read(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.to_owned())
    }
}

impl Parameter for Duration {
    const EXPECTED: &'static str = "a time such as 10us, 5ms or 1s, of one day at most";

    fn read(text: &str) -> Option<Self> {
        let number_len = text.find(|character: char| !character.is_ascii_digit())?;
        let (number, unit) = text.split_at(number_len);
        let nanoseconds = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            _ => return None,
        };
        let span = Duration::from_nanos(read_digits::<u64>(number)?.checked_mul(nanoseconds)?);
        (span <= Duration::from_secs(24 * 60 * 60)).then_some(span)
    }
}

/// Digits only: the standard library takes a plus sign too.
fn read_digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    text.parse().ok()
}

/// The parameters of one URI that were not taken yet.
#[derive(Debug)]
#[must_use = "`finish` finds the parameters that nobody knows"]
pub struct Parameters<'a> {
    uri: &'a DeviceUri,
    left: Vec<(&'a str, &'a str)>,
    known: Vec<&'static str>,
}

impl<'a> Parameters<'a> {
    pub(super) fn new(uri: &'a DeviceUri, all: &'a [(String, String)]) -> Self {
        Self {
            uri,
            left: all
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
            known: Vec::new(),
        }
    }

    /// Takes a parameter, if it is given.
    ///
    /// # Errors
    ///
    /// [`UriError::Value`].
    pub fn take<T: Parameter>(&mut self, name: &'static str) -> Result<Option<T>, UriError> {
        self.take_with(name, T::EXPECTED, T::read)
    }

    /// Takes a parameter that must be given.
    ///
    /// # Errors
    ///
    /// [`UriError::Value`] and [`UriError::MissingParameter`].
    pub fn require<T: Parameter>(&mut self, name: &'static str) -> Result<T, UriError> {
        self.take(name)?.ok_or_else(|| UriError::MissingParameter {
            uri: self.uri.to_string(),
            parameter: name,
            expected: T::EXPECTED.to_owned(),
        })
    }

    /// Takes a parameter, if it is given, by a function that gives `None` for what is not `expected`.
    ///
    /// # Errors
    ///
    /// [`UriError::Value`].
    pub fn take_with<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, UriError> {
        self.known.push(name);
        let Some(index) = self.left.iter().position(|(given, _)| *given == name) else {
            return Ok(None);
        };
        let (_, value) = self.left.remove(index);
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(UriError::Value {
                uri: self.uri.to_string(),
                parameter: name.to_owned(),
                value: if is_secret(name) { REDACTED } else { value }.to_owned(),
                expected: expected.to_owned(),
            }),
        }
    }

    /// Takes all parameters whose names `matches` is true for, unread. `pattern` tells people what they look
    /// like.
    pub fn take_matching(
        &mut self,
        pattern: &'static str,
        matches: impl Fn(&str) -> bool,
    ) -> Vec<(&'a str, &'a str)> {
        self.known.push(pattern);
        self.left.extract_if(.., |(name, _)| matches(name)).collect()
    }

    /// Leaves the parameters of the inner device to [`DeviceUri::inner`].
    pub fn leave_inner(&mut self) {
        self.known.push("inner.PARAMETER");
        self.left.retain(|(name, _)| !name.starts_with(INNER_PREFIX));
    }

    /// Checks that every parameter was taken.
    ///
    /// # Errors
    ///
    /// [`UriError::UnknownParameter`] for the first that was not, with all that were asked for.
    pub fn finish(self) -> Result<(), UriError> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => Err(UriError::UnknownParameter {
                uri: self.uri.to_string(),
                parameter: (*name).to_owned(),
                allowed: self.known,
            }),
        }
    }
}
