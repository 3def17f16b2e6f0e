//! Secrets as people write them (NVMe Base 2.2, 8.3.4.5.8): `DHHC-1:xx:BASE64:`, where the text is the secret
//! of 32, 48 or 64 bytes with its CRC-32 behind it, and `xx` says how it becomes a key.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::response::hmac;
use crate::wire::auth::HashId;
use crate::wire::nqn::Nqn;

const PREFIX: &str = "DHHC-1";
const CHECKSUM_BYTES: usize = 4;

/// The longest secret as text: 68 bytes in Base64, with all around it.
const TEXT_BYTES_MAX: usize = 128;

/// What a name is joined with to make a key (Base 2.2, 8.3.4.5.7).
const TRANSFORM: &[u8] = b"NVMe-over-Fabrics";

/// Why a text is no secret. It never holds any of the text.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret in {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is none.
    #[error("the secret {why}; make one with `nvme gen-dhchap-key`")]
    Text {
        /// What is wrong.
        why: &'static str,
    },
}

/// A secret. It is wiped when it is dropped, and never printed.
#[derive(Clone)]
pub struct Secret {
    /// `None` to take it as the key.
    transform: Option<HashId>,
    bytes: Zeroizing<Vec<u8>>,
}

impl Secret {
    /// The secret that a text stands for.
    ///
    /// # Errors
    ///
    /// [`SecretError::Text`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let wrong = |why| SecretError::Text { why };
        if text.len() > TEXT_BYTES_MAX {
            return Err(wrong("is too long"));
        }
        let mut parts = text.trim().split(':');
        let form = "is not of the form DHHC-1:xx:BASE64:";
        let (Some(PREFIX), Some(transform), Some(encoded), Some(""), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(wrong(form));
        };
        let transform = match transform {
            "00" => None,
            "01" => Some(HashId::Sha256),
            "02" => Some(HashId::Sha384),
            "03" => Some(HashId::Sha512),
            _ => return Err(wrong("names a hash function that is not known")),
        };
        let decoded = STANDARD.decode(encoded).map_err(|_| wrong(form))?;
        let decoded = Zeroizing::new(decoded);
        let (bytes, checksum) = decoded
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or_else(|| wrong(form))?;
        if !matches!(bytes.len(), 32 | 48 | 64) {
            return Err(wrong("does not have 32, 48 or 64 bytes"));
        }
        let expected = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes);
        if expected != u64::from(u32::from_le_bytes(*checksum)) {
            return Err(wrong("has a wrong checksum: it is damaged"));
        }
        Ok(Self {
            transform,
            bytes: Zeroizing::new(bytes.to_vec()),
        })
    }

    /// The secret in a file: one line. This blocks, for a file of a few bytes.
    ///
    /// # Errors
    ///
    /// [`SecretError`].
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::Read {
            path: path.display().to_string(),
            source,
        };
        // As long as it can get: what is read must not be left behind by a vector that grows.
        let mut text = Zeroizing::new(String::with_capacity(2 * TEXT_BYTES_MAX));
        let file = File::open(path).map_err(failed)?;
        file.take(TEXT_BYTES_MAX as u64 + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Self::parse(&text)
    }

    /// The key that the owner of a name has by this secret.
    pub(super) fn key(&self, owner: &Nqn) -> Zeroizing<Vec<u8>> {
        match self.transform {
            None => self.bytes.clone(),
            Some(hash) => hmac(hash, &self.bytes, &[owner.as_str().as_bytes(), TRANSFORM]),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.transform == other.transform && bool::from(self.bytes.ct_eq(&other.bytes))
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification (Base 2.2, 8.3.4.5.8).
    const EXAMPLE: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

    #[test]
    fn the_example_of_the_specification_is_a_secret() {
        let secret = Secret::parse(EXAMPLE).unwrap();
        let expected = [
            0x89, 0xae, 0xb3, 0x1a, 0x87, 0x4e, 0xaf, 0x84, 0x84, 0x1b, 0x46, 0x73, 0x6b, 0x0d, 0xfd, 0xf2,
            0xba, 0x58, 0xd3, 0x0a, 0xa2, 0xa5, 0x45, 0xa3, 0xe2, 0x35, 0xa3, 0x52, 0x1e, 0x07, 0x59, 0x4c,
        ];
        let owner: Nqn = "nqn.2026-11.io.pollux:host".parse().unwrap();
        assert_eq!(*secret.key(&owner), expected);
        let transformed = Secret::parse(&EXAMPLE.replace(":00:", ":01:")).unwrap();
        assert_ne!(*transformed.key(&owner), expected);
        assert_eq!(transformed.key(&owner).len(), 32);
        assert_eq!(
            Secret::parse(&EXAMPLE.replace(":00:", ":03:"))
                .unwrap()
                .key(&owner)
                .len(),
            64
        );
        assert!(secret == secret.clone() && secret != transformed);
        assert_eq!(Secret::parse(&format!("{EXAMPLE}\n")).unwrap(), secret);
    }

    #[test]
    fn what_is_damaged_is_refused_without_being_told() {
        let mut bad = vec![
            String::new(),
            "DHHC-1:".to_owned(),
            EXAMPLE.replace("DHHC-1", "DHHC-2"),
            EXAMPLE.replace(":00:", ":04:"),
            EXAMPLE.trim_end_matches(':').to_owned(),
            format!("{EXAMPLE}:"),
            "DHHC-1:00:AAAA:".to_owned(),
            "DHHC-1:00:!!!!:".to_owned(),
            EXAMPLE.repeat(3),
        ];
        // Any other character of the text.
        bad.extend((10..58).map(|at| {
            let mut text = EXAMPLE.to_owned();
            let other = if &text[at..=at] == "B" { "C" } else { "B" };
            text.replace_range(at..=at, other);
            text
        }));
        for text in bad {
            let error = Secret::parse(&text).unwrap_err().to_string();
            assert!(!error.contains("ia6z"), "{error}");
        }
        assert_eq!(format!("{:?}", Secret::parse(EXAMPLE).unwrap()), "Secret(..)");
    }

    #[test]
    fn a_secret_is_read_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        assert!(matches!(Secret::read(&path), Err(SecretError::Read { .. })));
        std::fs::write(&path, format!("{EXAMPLE}\n")).unwrap();
        assert_eq!(Secret::read(&path).unwrap(), Secret::parse(EXAMPLE).unwrap());
        std::fs::write(&path, vec![b'x'; 4096]).unwrap();
        assert!(matches!(Secret::read(&path), Err(SecretError::Text { .. })));
    }
}
