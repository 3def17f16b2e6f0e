//! NVMe Qualified Names (Base 2.0, 4.5): one rule for those who serve, and for those who only keep records.
//!
//! A name is UTF-8 of at most 223 bytes. Two forms exist, and one well-known name that is neither:
//!
//! ```text
//! nqn.YYYY-MM.REVERSE.DOMAIN:STRING                       named by who owned the domain in that month
//! nqn.2014-08.org.nvmexpress:uuid:xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
//! nqn.2014-08.org.nvmexpress.discovery                    the discovery service
//! ```
//!
//! In a data structure a name stands in 256 bytes, followed by at least one zero byte.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

/// Longest name in bytes, without the terminating zero (Base 2.0, 4.5).
pub const NQN_BYTES_MAX: usize = 223;

/// Size of the field a name travels in (Base 2.0, 6.3 and 5.17.2.1).
pub const NQN_FIELD_BYTES: usize = 256;

/// The name of every discovery subsystem (Base 2.0, 4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

const UUID_FORM_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
const UUID_TEXT_BYTES: usize = 36;

/// A name that is not an NVMe Qualified Name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NqnError {
    /// Too long.
    #[error("the name has {bytes} bytes; shorten it to at most {NQN_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The field holds no zero byte.
    #[error("the name fills its field of {NQN_FIELD_BYTES} bytes; end it with a zero byte")]
    NotTerminated,
    /// Not UTF-8.
    #[error("the name is not UTF-8 from byte {at_byte} on; encode it in UTF-8")]
    NotUtf8 {
        /// The first byte that does not belong.
        at_byte: usize,
    },
    /// Neither of the forms.
    #[error("{name:?} is not of the form nqn.YYYY-MM.reverse.domain:string; {reason}")]
    Malformed {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A valid NVMe Qualified Name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(Arc<str>);

impl Nqn {
    /// The name of every discovery subsystem.
    #[must_use]
    pub fn discovery() -> Self {
        Self(Arc::from(DISCOVERY_NQN))
    }

    /// The name made of a UUID.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(Arc::from(format!("{UUID_FORM_PREFIX}{uuid}")))
    }

    /// The name in a field of a data structure.
    ///
    /// # Errors
    /// If the field holds anything but a valid name that ends with a zero byte.
    pub fn from_field(field: &[u8; NQN_FIELD_BYTES]) -> Result<Self, NqnError> {
        let mut pieces = field.splitn(2, |byte| *byte == 0);
        let name = pieces.next().unwrap_or_default();
        if pieces.next().is_none() {
            return Err(NqnError::NotTerminated);
        }
        let name = std::str::from_utf8(name).map_err(|error| NqnError::NotUtf8 {
            at_byte: error.valid_up_to(),
        })?;
        name.parse()
    }

    /// The field of a data structure with this name.
    #[must_use]
    pub fn to_field(&self) -> [u8; NQN_FIELD_BYTES] {
        let mut field = [0; NQN_FIELD_BYTES];
        for (slot, byte) in field.iter_mut().zip(self.0.bytes()) {
            *slot = byte;
        }
        field
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the name of the discovery subsystem.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.as_str() == DISCOVERY_NQN
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(name: &str) -> Result<Self, NqnError> {
        if name.len() > NQN_BYTES_MAX {
            return Err(NqnError::TooLong { bytes: name.len() });
        }
        match fault(name) {
            None => Ok(Self(Arc::from(name))),
            Some(reason) => Err(NqnError::Malformed {
                name: name.to_owned(),
                reason,
            }),
        }
    }
}

/// What keeps `name` from being of one of the forms.
fn fault(name: &str) -> Option<&'static str> {
    if name == DISCOVERY_NQN {
        return None;
    }
    if name.chars().any(char::is_control) {
        return Some("take the control characters out");
    }
    if let Some(text) = name.strip_prefix(UUID_FORM_PREFIX) {
        let valid = text.len() == UUID_TEXT_BYTES && Uuid::try_parse(text).is_ok();
        return (!valid).then_some("write a UUID of 36 characters behind \"uuid:\"");
    }
    let Some(rest) = name.strip_prefix("nqn.") else {
        return Some("begin with \"nqn.\"");
    };
    let Some((date, rest)) = rest.split_once('.') else {
        return Some("write a reverse domain name behind the date");
    };
    if !is_year_and_month(date) {
        return Some("write year and month as YYYY-MM behind \"nqn.\"");
    }
    let Some((domain, string)) = rest.split_once(':') else {
        return Some("write a colon and a string behind the domain");
    };
    if !domain.split('.').all(is_domain_label) {
        return Some("write a reverse domain name of letters, digits and hyphens behind the date");
    }
    string.is_empty().then_some("write a string behind the colon")
}

fn is_year_and_month(date: &str) -> bool {
    let Some((year, month)) = date.split_once('-') else {
        return false;
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    year.len() == 4
        && month.len() == 2
        && digits(year)
        && month
            .parse::<u8>()
            .is_ok_and(|number| digits(month) && (1..=12).contains(&number))
}

/// RFC 1034, 3.5: letters, digits and hyphens, no hyphen at either end.
fn is_domain_label(label: &str) -> bool {
    const LABEL_BYTES_MAX: usize = 63;
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Nqn({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_forms() {
        for name in [
            "nqn.2026-11.io.pollux:serve",
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555",
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2014-08.com.example:nvme.host-1:a:b",
            "nqn.1992-08.com.3-d.x:ü",
        ] {
            let nqn: Nqn = name.parse().unwrap();
            assert_eq!(nqn.as_str(), name);
            assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
        }
    }

    #[test]
    fn refuses_everything_else() {
        for name in [
            "",
            "nqn",
            "nqn.",
            "iqn.2026-11.io.pollux:serve",
            "nqn.2026-11",
            "nqn.2026-11.io.pollux",
            "nqn.2026-11.io.pollux:",
            "nqn.2026-13.io.pollux:a",
            "nqn.2026-00.io.pollux:a",
            "nqn.2026-+1.io.pollux:a",
            "nqn.226-11.io.pollux:a",
            "nqn.2026.11.io.pollux:a",
            "nqn.2026-11.:a",
            "nqn.2026-11.io..pollux:a",
            "nqn.2026-11.io.-pollux:a",
            "nqn.2026-11.io.pollux-:a",
            "nqn.2026-11.io.poll ux:a",
            "nqn.2026-11.io.pollux:a\nb",
            "nqn.2014-08.org.nvmexpress:uuid:",
            "nqn.2014-08.org.nvmexpress:uuid:11111111222233334444555555555555",
            "nqn.2014-08.org.nvmexpress:uuid:x1111111-2222-3333-4444-555555555555",
        ] {
            assert!(
                matches!(name.parse::<Nqn>(), Err(NqnError::Malformed { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn counts_bytes() {
        let prefix = "nqn.2026-11.io.pollux:";
        let longest = format!("{prefix}{}", "a".repeat(NQN_BYTES_MAX - prefix.len()));
        assert!(longest.parse::<Nqn>().is_ok());
        assert_eq!(
            format!("{longest}a").parse::<Nqn>(),
            Err(NqnError::TooLong { bytes: 224 })
        );
    }

    #[test]
    fn refuses_bad_fields() {
        assert_eq!(Nqn::from_field(&[b'n'; 256]), Err(NqnError::NotTerminated));
        let mut field = "nqn.2026-11.io.pollux:serve".parse::<Nqn>().unwrap().to_field();
        field[10] = 0xff;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::NotUtf8 { at_byte: 10 }));
        assert!(matches!(
            Nqn::from_field(&[0; 256]),
            Err(NqnError::Malformed { .. })
        ));
    }

    proptest! {
        #[test]
        fn never_panics_on_a_field(bytes in prop::collection::vec(any::<u8>(), 256)) {
            let mut field = [0; 256];
            field.copy_from_slice(&bytes);
            if let Ok(nqn) = Nqn::from_field(&field) {
                prop_assert!(nqn.as_str().len() <= NQN_BYTES_MAX);
            }
        }

        #[test]
        fn never_panics_on_text(text in "(nqn\\.)?[0-9]{0,5}-?[0-9]{0,3}\\.?\\PC{0,40}") {
            if let Ok(nqn) = text.parse::<Nqn>() {
                prop_assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
            }
        }
    }
}
