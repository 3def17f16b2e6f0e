//! Tokens: what they look like, and how they are known again.
//!
//! A token is `plx_NAME_SECRET`: the name says which record to look at, the secret is 256 random bits. Only
//! its SHA-256 is kept. Invariants:
//!
//! - A secret is in the answer of the call that made it and in no other answer, record, log or error.
//! - Secrets are compared by their hashes, in the same time whatever they are.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pollux_api::control::v1::{StoredToken, TokenRole};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::model::Record;
use crate::server::CallError;

use super::{Caller, Role};

/// What tokens begin with, by which those who look for secrets in the wrong places find them.
const PREFIX: &str = "plx_";

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

/// Longest header that is looked at.
const HEADER_BYTES_MAX: usize = 512;

/// A token as its bearer has it. It is not shown by mistake.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken {
    name: String,
    secret: String,
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BearerToken({}, ...)", self.name)
    }
}

impl BearerToken {
    /// A new one.
    pub fn generate(name: &str) -> Self {
        let secret: [u8; SECRET_BYTES] = rand::random();
        Self {
            name: name.to_owned(),
            secret: URL_SAFE_NO_PAD.encode(secret),
        }
    }

    /// Reads one.
    pub fn parse(text: &str) -> Option<Self> {
        // Names have no underscores, secrets may.
        let (name, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_secret = URL_SAFE_NO_PAD
            .decode(secret)
            .is_ok_and(|secret| secret.len() == SECRET_BYTES);
        (is_secret && !name.is_empty()).then(|| Self {
            name: name.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// That of a header `authorization`.
    ///
    /// # Errors
    ///
    /// [`CallError::Unauthenticated`], which does not tell what was sent.
    pub fn of_header(header: &[u8]) -> Result<Self, CallError> {
        let unknown = |why: &str| CallError::Unauthenticated(why.to_owned());
        let text = std::str::from_utf8(header)
            .ok()
            .filter(|text| text.len() <= HEADER_BYTES_MAX)
            .ok_or_else(|| unknown("its header authorization makes no sense"))?;
        let (scheme, token) = text.trim().split_once(' ').unwrap_or((text, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unknown("give `Bearer TOKEN` in the header authorization"));
        }
        Self::parse(token.trim()).ok_or_else(|| unknown("what it gave is no token of `pollux token create`"))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole of it, for its bearer alone.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.name, self.secret)
    }

    /// What is kept of it.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// Who bears it, if it is the one that is on record and is still good.
    ///
    /// # Errors
    ///
    /// [`CallError::Unauthenticated`].
    pub fn caller(&self, stored: Option<&StoredToken>, now_unix_us: u64) -> Result<Caller, CallError> {
        let unknown = |why: &str| CallError::Unauthenticated(why.to_owned());
        // What is not there is compared too, so that the time tells nothing of names.
        let nothing = [0; 32];
        let hash = stored.map_or(&nothing[..], |stored| &stored.secret_sha256);
        let is_same = bool::from(hash.ct_eq(&self.hash()));
        let stored = stored
            .filter(|_| is_same)
            .ok_or_else(|| unknown("its token is not known, or was taken back"))?;
        let spec = stored.spec.unwrap_or_default();
        if now_unix_us >= spec.expires_unix_us {
            return Err(unknown(
                "its token has expired: make another one with `pollux token create`",
            ));
        }
        let role = match spec.role() {
            TokenRole::Viewer => Role::Viewer,
            TokenRole::Csi => Role::Csi,
            TokenRole::Operator => Role::Operator,
            TokenRole::Admin => Role::Admin,
            TokenRole::Unspecified => return Err(unknown("its token has no role")),
        };
        Ok(Caller {
            name: format!("token/{}", stored.name()),
            role,
        })
    }
}

#[cfg(test)]
mod tests {
    use pollux_api::control::v1::TokenSpec;
    use proptest::prelude::*;

    use super::*;

    fn stored(token: &BearerToken, role: TokenRole, expires_unix_us: u64) -> StoredToken {
        let mut stored = StoredToken {
            metadata: None,
            spec: Some(TokenSpec {
                role: role.into(),
                expires_unix_us,
            }),
            secret_sha256: token.hash().to_vec(),
        };
        stored.meta_mut().name = token.name().to_owned();
        stored
    }

    #[test]
    fn a_token_is_known_again_until_it_expires() {
        let token = BearerToken::generate("ci.1");
        let kept = stored(&token, TokenRole::Operator, 100);
        let again = BearerToken::parse(&token.reveal()).expect("it is one");
        let caller = again.caller(Some(&kept), 99).expect("it is good");
        assert_eq!(
            (caller.name.as_str(), caller.role),
            ("token/ci.1", Role::Operator)
        );
        for (kept, now) in [(Some(&kept), 100), (None, 99)] {
            let refused = again.caller(kept, now);
            assert!(
                matches!(refused, Err(CallError::Unauthenticated(_))),
                "{refused:?}"
            );
        }
        let other = BearerToken::generate("ci.1");
        assert!(other.caller(Some(&kept), 99).is_err());
        assert!(
            again
                .caller(Some(&stored(&token, TokenRole::Unspecified, 100)), 99)
                .is_err()
        );
        let empty = StoredToken {
            secret_sha256: Vec::new(),
            ..kept
        };
        assert!(again.caller(Some(&empty), 99).is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let token = BearerToken::generate("a");
        let secret = token.reveal();
        let secret = secret.rsplit_once("plx_a_").expect("its form").1;
        assert!(!format!("{token:?}").contains(secret));
        for header in [
            format!("Basic {secret}"),
            format!("Bearer {secret}"),
            secret.to_owned(),
        ] {
            let error = BearerToken::of_header(header.as_bytes()).expect_err("it is none");
            assert!(!format!("{error} {error:?}").contains(secret));
        }
    }

    #[test]
    fn headers_have_one_form() {
        let token = BearerToken::generate("a");
        for header in [
            format!("Bearer {}", token.reveal()),
            format!("bearer  {} ", token.reveal()),
        ] {
            assert_eq!(BearerToken::of_header(header.as_bytes()), Ok(token.clone()));
        }
        for header in ["", "Bearer", "Bearer ", "Bearer plx__", "Bearer plx_a_x"] {
            assert!(BearerToken::of_header(header.as_bytes()).is_err(), "{header}");
        }
        assert!(BearerToken::of_header(&[0xff; 20]).is_err());
        assert!(BearerToken::of_header(&[b'a'; 600]).is_err());
    }

    proptest! {
        #[test]
        fn no_header_is_a_panic(header in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(BearerToken::of_header(&header));
        }
    }
}
