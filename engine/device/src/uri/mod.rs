//! Device URIs: `SCHEME://AUTHORITY/PATH?PARAMETER=VALUE&...`.
//!
//! The scheme says what kind of device, the path which one, the parameters how. Every parameter is known to
//! the device it is for, is given once at most, and is understood completely, or the URI is refused: a typing
//! error in `size` must not become a device of the default size.
//!
//! | URI | parameters |
//! | --- | --- |
//! | `null:///NAME` | `size`, `block` |
//! | `malloc:///NAME` | `size`, `block`, `node` |
//! | `uring:///PATH` | `size`, `block`, `direct`, `readonly` |
//! | `pcie:///ADDRESS/NAMESPACE` | `depth`, `timeout`, `abort_timeout` |
//! | `faulty:///URI` | its [faults](crate::faulty); those of the inner device with `inner.` in front |
//!
//! Characters that mean something in a URI are percent-encoded in paths and values:
//! `uring:///data/my%20disk?size=1GiB`.

mod parameters;
mod size;

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use url::Url;

pub use parameters::{Parameter, Parameters};
pub use size::{ByteSize, SIZE_EXPECTED, SizeError};

/// Longest URI that is read, in bytes.
pub const URI_BYTES_MAX: usize = 4096;

/// Longest device name, in bytes; NBD export names may be no longer.
pub const NAME_BYTES_MAX: usize = 255;

/// How deep devices may be nested in one URI.
pub const NESTING_MAX: usize = 8;

/// What stands in for a secret.
const REDACTED: &str = "***";

/// Parameters whose last word is one of these are secrets.
const SECRET_WORDS: [&str; 7] = [
    "secret",
    "password",
    "psk",
    "key",
    "token",
    "keyring",
    "credentials",
];

/// What may not stand in the path of a URI as it is.
const PATH_ENCODE_SET: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?');

/// What may not stand in a parameter of a URI as it is.
const VALUE_ENCODE_SET: &AsciiSet = &PATH_ENCODE_SET.add(b'&').add(b'+').add(b'\'');

/// What is wrong with a device URI. The text tells the URI, without secrets, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not a URI at all.
    #[error(
        "{uri:?} is not a device URI ({reason}): write SCHEME:///NAME?PARAMETER=VALUE, such as malloc:///scratch?size=1GiB"
    )]
    Syntax {
        /// What was given, without its parameters.
        uri: String,
        /// What the parser found.
        reason: String,
    },
    /// A scheme nobody opens.
    #[error("{uri}: unknown scheme {scheme:?}; known are {}", .known.join(", "))]
    UnknownScheme {
        /// The URI.
        uri: String,
        /// Its scheme.
        scheme: String,
        /// The schemes there are.
        known: Vec<String>,
    },
    /// An authority where there is none.
    #[error(
        "{uri}: {authority:?} stands where a host would be, and {scheme} devices have none: write {scheme}:///{authority}"
    )]
    Authority {
        /// The URI.
        uri: String,
        /// Its scheme.
        scheme: String,
        /// What stands there.
        authority: String,
    },
    /// No name, or one that cannot be one.
    #[error("{uri}: {reason}")]
    Name {
        /// The URI.
        uri: String,
        /// What is wrong with the path and what is allowed.
        reason: &'static str,
    },
    /// A parameter the device does not have.
    #[error("{uri}: unknown parameter {parameter:?}; allowed are {}", .allowed.join(", "))]
    UnknownParameter {
        /// The URI.
        uri: String,
        /// The parameter.
        parameter: String,
        /// Those there are.
        allowed: Vec<&'static str>,
    },
    /// A parameter given twice.
    #[error("{uri}: parameter {parameter:?} is given more than once; give it once")]
    DuplicateParameter {
        /// The URI.
        uri: String,
        /// The parameter.
        parameter: String,
    },
    /// A value that cannot be.
    #[error("{uri}: parameter {parameter:?} is {value:?}, which is not {expected}")]
    Value {
        /// The URI.
        uri: String,
        /// The parameter.
        parameter: String,
        /// Its value, if it is no secret.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// A parameter that must be given.
    #[error("{uri}: parameter {parameter:?} is missing; give {expected}")]
    MissingParameter {
        /// The URI.
        uri: String,
        /// The parameter.
        parameter: &'static str,
        /// What it should be.
        expected: String,
    },
}

/// Where a device is and how to open it. `Display` and `Debug` leave secrets out.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceUri {
    url: Url,
    /// Names and values, decoded, in the order given; no name twice.
    parameters: Vec<(String, String)>,
}

impl DeviceUri {
    /// Reads a URI.
    ///
    /// # Errors
    ///
    /// [`UriError::Syntax`] and [`UriError::DuplicateParameter`].
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let syntax = |reason: String| UriError::Syntax {
            // Whatever follows the path or precedes a host may be a secret.
            uri: text
                .split(['?', '@'])
                .next()
                .unwrap_or_default()
                .chars()
                .take(64)
                .collect(),
            reason,
        };
        if text.len() > URI_BYTES_MAX {
            return Err(syntax(format!("it is longer than {URI_BYTES_MAX} bytes")));
        }
        let url = Url::parse(text).map_err(|error| syntax(error.to_string()))?;
        if url.cannot_be_a_base() {
            return Err(syntax("the slashes after the scheme are missing".to_owned()));
        }
        if let Some(fragment) = url.fragment() {
            let len = fragment.len();
            return Err(syntax(format!(
                "the last {len} bytes follow a #: encode it as %23"
            )));
        }
        let parameters = url
            .query_pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let uri = Self { url, parameters };
        for (index, (name, _)) in uri.parameters.iter().enumerate() {
            if uri.parameters.iter().take(index).any(|(other, _)| other == name) {
                return Err(UriError::DuplicateParameter {
                    uri: uri.to_string(),
                    parameter: name.clone(),
                });
            }
        }
        Ok(uri)
    }

    /// The whole text, with its secrets: for what is kept where only its owner can read it.
    pub fn reveal(&self) -> &str {
        self.url.as_str()
    }

    /// The same with one parameter more, unless it is given.
    #[must_use]
    pub fn or_parameter(&self, name: &str, value: &str) -> Self {
        let mut with = self.clone();
        if !self.parameters.iter().any(|(given, _)| given == name) {
            with.url.query_pairs_mut().append_pair(name, value);
            with.parameters.push((name.to_owned(), value.to_owned()));
        }
        with
    }

    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        self.url.scheme()
    }

    /// The host, if there is one; an IPv6 address without its brackets.
    pub fn host(&self) -> Option<&str> {
        let host = self.url.host_str().filter(|host| !host.is_empty())?;
        Some(
            host.strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
                .unwrap_or(host),
        )
    }

    /// The port, if there is one.
    pub fn port(&self) -> Option<u16> {
        self.url.port()
    }

    /// The path without its first slash, percent-decoded; what is not UTF-8 is replaced.
    pub fn path(&self) -> String {
        let encoded = self.url.path();
        percent_decode_str(encoded.strip_prefix('/').unwrap_or(encoded))
            .decode_utf8_lossy()
            .into_owned()
    }

    /// The path as one of the file system: absolute, percent-decoded, any bytes.
    pub fn file_path(&self) -> PathBuf {
        OsString::from_vec(percent_decode_str(self.url.path()).collect()).into()
    }

    /// The name of the device: the last part of its path, percent-decoded.
    ///
    /// # Errors
    ///
    /// [`UriError::Name`] if there is none, or it is too long or holds control characters.
    pub fn name(&self) -> Result<String, UriError> {
        let last = self.url.path().rsplit('/').next().unwrap_or_default();
        let name = percent_decode_str(last).decode_utf8_lossy().into_owned();
        let reason = if name.is_empty() {
            "the device has no name: the last part of the path is its name"
        } else if name.len() > NAME_BYTES_MAX {
            "the name, the last part of the path, is longer than 255 bytes"
        } else if name.chars().any(char::is_control) {
            "the name, the last part of the path, holds control characters"
        } else {
            return Ok(name);
        };
        Err(UriError::Name {
            uri: self.to_string(),
            reason,
        })
    }

    /// Checks that no host, port or user is given, and takes the parameters apart.
    ///
    /// # Errors
    ///
    /// [`UriError::Authority`].
    pub fn local_parameters(&self) -> Result<Parameters<'_>, UriError> {
        let authority = self.authority();
        if authority.is_empty() {
            return Ok(self.parameters());
        }
        Err(UriError::Authority {
            uri: self.to_string(),
            scheme: self.scheme().to_owned(),
            authority,
        })
    }

    /// The parameters, to be taken one by one.
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters::new(self, &self.parameters)
    }

    /// The URI that a wrapping device (`faulty`) has in its path: the path percent-decoded once, with the
    /// parameters whose names begin with `inner.` added. So
    /// `faulty:///malloc:///scratch?inner.size=1GiB&seed=7` and
    /// `faulty:///malloc:%2F%2F%2Fscratch%3Fsize=1GiB?seed=7` are the same device.
    ///
    /// # Errors
    ///
    /// Those of [`DeviceUri::parse`] about the inner URI.
    pub fn inner(&self) -> Result<Self, UriError> {
        let mut text = self.path();
        for (name, value) in &self.parameters {
            let Some(name) = name.strip_prefix(INNER_PREFIX) else {
                continue;
            };
            text.push(if text.contains('?') { '&' } else { '?' });
            text.extend(utf8_percent_encode(name, VALUE_ENCODE_SET));
            text.push('=');
            text.extend(utf8_percent_encode(value, VALUE_ENCODE_SET));
        }
        Self::parse(&text)
    }

    /// How many URIs are nested in this one, itself not counted; [`NESTING_MAX`] at most.
    pub fn nesting(&self) -> usize {
        let mut depth = 0;
        let mut current = self.clone();
        while depth < NESTING_MAX
            && let Ok(inner) = current.inner()
        {
            depth += 1;
            current = inner;
        }
        depth
    }

    /// User, host and port, without the password.
    fn authority(&self) -> String {
        let mut text = String::new();
        if !self.url.username().is_empty() || self.url.password().is_some() {
            text.push_str(self.url.username());
            if self.url.password().is_some() {
                text.push(':');
                text.push_str(REDACTED);
            }
            text.push('@');
        }
        text.push_str(self.url.host_str().unwrap_or_default());
        if let Some(port) = self.url.port() {
            text.push(':');
            text.push_str(&port.to_string());
        }
        text
    }

    fn write(&self, into: &mut String, depth: usize) {
        into.push_str(self.scheme());
        into.push_str("://");
        into.push_str(&self.authority());
        // A nested URI has secrets of its own, in its authority or its encoded parameters.
        match Self::parse(&self.path()) {
            Ok(_) if depth == 0 => into.push_str("/***"),
            Ok(inner) => {
                let mut text = String::new();
                inner.write(&mut text, depth - 1);
                into.push('/');
                into.extend(utf8_percent_encode(&text, PATH_ENCODE_SET));
            }
            Err(_) => into.push_str(self.url.path()),
        }
        for (index, (name, value)) in self.parameters.iter().enumerate() {
            into.push(if index == 0 { '?' } else { '&' });
            into.extend(utf8_percent_encode(name, VALUE_ENCODE_SET));
            into.push('=');
            if is_secret(name) {
                into.push_str(REDACTED);
            } else {
                into.extend(utf8_percent_encode(value, VALUE_ENCODE_SET));
            }
        }
    }
}

/// What parameters of an inner device begin with.
pub(crate) const INNER_PREFIX: &str = "inner.";

/// Whether a parameter's value is a secret, by its name.
fn is_secret(name: &str) -> bool {
    let last = name.rsplit(['.', '-', '_']).next().unwrap_or(name);
    SECRET_WORDS.iter().any(|word| last.eq_ignore_ascii_case(word))
}

impl FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text, NESTING_MAX);
        formatter.write_str(&text)
    }
}

impl fmt::Debug for DeviceUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DeviceUri({self})")
    }
}

#[cfg(test)]
mod tests;
