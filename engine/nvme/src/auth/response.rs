//! The hashes that prove who knows a key (NVMe Base 2.2, 8.3.4.5.4 and 8.3.4.5.5).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Names;
use crate::wire::auth::HashId;

/// HMAC (RFC 2104) of the parts, one behind the other.
pub(super) fn hmac(hash: HashId, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    fn of<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        // A key of any length will do: none is refused.
        let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else {
            return Vec::new();
        };
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().to_vec()
    }
    Zeroizing::new(match hash {
        HashId::Sha256 => of::<Hmac<Sha256>>(key, parts),
        HashId::Sha384 => of::<Hmac<Sha384>>(key, parts),
        HashId::Sha512 => of::<Hmac<Sha512>>(key, parts),
    })
}

fn digest(hash: HashId, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(match hash {
        HashId::Sha256 => Sha256::digest(bytes).to_vec(),
        HashId::Sha384 => Sha384::digest(bytes).to_vec(),
        HashId::Sha512 => Sha512::digest(bytes).to_vec(),
    })
}

/// Who responds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Host,
    Controller,
}

/// What a response is made of, beside the key.
pub(super) struct Proof<'a> {
    pub(super) role: Role,
    pub(super) hash: HashId,
    pub(super) names: &'a Names,
    pub(super) transaction: u16,
    pub(super) sequence: u32,
    pub(super) challenge: &'a [u8],
    /// What the exchange came to, if there was one.
    pub(super) shared: Option<&'a [u8]>,
}

/// The secure channel that is part of every response: none (NOSC).
const SECURE_CHANNEL_NONE: u8 = 0;

impl Proof<'_> {
    /// The response with this key.
    pub(super) fn response(&self, key: &[u8]) -> Zeroizing<Vec<u8>> {
        let augmented = self.shared.map(|shared| {
            let session = digest(self.hash, shared);
            hmac(self.hash, &session, &[self.challenge])
        });
        let challenge = augmented.as_ref().map_or(self.challenge, |augmented| augmented);
        let (host, subsystem) = (self.names.host.as_str(), self.names.subsystem.as_str());
        let (title, own, other) = match self.role {
            Role::Host => ("HostHost", host, subsystem),
            Role::Controller => ("Controller", subsystem, host),
        };
        let parts = [
            challenge,
            &self.sequence.to_le_bytes(),
            &self.transaction.to_le_bytes(),
            &[SECURE_CHANNEL_NONE],
            title.as_bytes(),
            own.as_bytes(),
            &[0],
            other.as_bytes(),
        ];
        hmac(self.hash, key, &parts)
    }

    /// Whether a response is the right one, in constant time.
    pub(super) fn verify(&self, key: &[u8], response: &[u8]) -> bool {
        self.response(key).ct_eq(response).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 4231, test case 2.
    #[test]
    fn the_hashes_are_those_of_the_rfc() {
        let of = |hash| hex(&hmac(hash, b"Jefe", &[b"what do ya want ", b"for nothing?"]));
        assert_eq!(
            of(HashId::Sha256),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(of(HashId::Sha384).starts_with("af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47"));
        assert!(of(HashId::Sha512).starts_with("164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd6"));
    }

    /// Computed with another implementation, byte by byte from the specification.
    #[test]
    fn responses_are_frozen() {
        let names = Names {
            host: "nqn.2026-11.io.pollux:host".parse().unwrap(),
            subsystem: "nqn.2026-11.io.pollux:serve".parse().unwrap(),
        };
        let proof = |role, shared| Proof {
            role,
            hash: HashId::Sha256,
            names: &names,
            transaction: 0x0102,
            sequence: 0x0304_0506,
            challenge: &[7; 32],
            shared,
        };
        let key = [9; 32];
        for (role, shared, expected) in RESPONSES {
            let proof = proof(role, shared);
            assert_eq!(hex(&proof.response(&key)), expected, "{role:?}");
            assert!(proof.verify(&key, &proof.response(&key)));
            assert!(!proof.verify(&[8; 32], &proof.response(&key)));
            assert!(!proof.verify(&key, &[]));
        }
    }

    const RESPONSES: [(Role, Option<&[u8]>, &str); 3] = [
        (
            Role::Host,
            None,
            "4cb47d6a35a26e0d503feba6ef6fd28a6802319dcae10e866e598ad2225dd830",
        ),
        (
            Role::Controller,
            None,
            "48ee98ed24cadb7681d3975690a29d1621d0ce16446a3761c288037879ae31a1",
        ),
        (
            Role::Host,
            Some(&[5; 256]),
            "3ff8a5ac85de0d37706fbada022b148d3a340ff598926519a48d8b594a9cd402",
        ),
    ];
}
