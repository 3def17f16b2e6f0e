//! Hosts that have to authenticate by DH-HMAC-CHAP.

use std::path::PathBuf;

use pollux_nvme::auth::{Credentials, Methods, Secret, SecretError};
use pollux_nvme::wire::auth::{GroupId, HashId};
use serde::{Deserialize, Serialize};

/// A host that has to authenticate. Secrets are in files of their own, so that settings can be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthenticationSettings {
    /// Its NVMe qualified name. No default.
    pub host: String,
    /// The file of its secret, `DHHC-1:xx:BASE64:`. No default.
    pub secret_file: PathBuf,
    /// The file of the secret by which the engine authenticates to it, if it asks. Default: none, and a host
    /// that asks is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_secret_file: Option<PathBuf>,
    /// Hash functions that may be used, the best first. Default: `sha256`, `sha384`, `sha512`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Vec<String>>,
    /// Diffie-Hellman groups that may be used, the best first; without `null` an exchange is required.
    /// Default: `ffdhe2048`, `ffdhe3072`, `ffdhe4096`, `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhgroups: Option<Vec<String>>,
}

impl AuthenticationSettings {
    /// Whether every name is known, and there is one of each kind.
    pub(super) fn is_valid(&self) -> bool {
        self.methods().is_some()
    }

    fn methods(&self) -> Option<Methods> {
        fn read<T>(names: &[String], by_name: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
            let list: Option<Vec<T>> = names.iter().map(|name| by_name(name)).collect();
            list.filter(|list| !list.is_empty())
        }
        let mut methods = Methods::default();
        if let Some(names) = &self.hashes {
            methods.hashes = read(names, HashId::by_name)?;
        }
        if let Some(names) = &self.dhgroups {
            methods.groups = read(names, GroupId::by_name)?;
        }
        Some(methods)
    }

    /// Reads the secrets.
    ///
    /// # Errors
    ///
    /// [`SecretError`].
    pub fn credentials(&self) -> Result<Credentials, SecretError> {
        let controller = self.controller_secret_file.as_deref().map(Secret::read);
        Ok(Credentials {
            host: Secret::read(&self.secret_file)?,
            controller: controller.transpose()?,
            methods: self.methods().unwrap_or_default(),
        })
    }
}
