//! Secrets of hosts, which are in files: arguments can be seen by others.

use std::path::{Path, PathBuf};

use clap::Args;
use pollux_api::control::v1::HostSecrets;
use pollux_api::secrets::check_secret;

use super::connection::{CommandError, read};

/// By which secrets a host is to authenticate.
#[derive(Debug, Args)]
pub(super) struct SecretArguments {
    /// The file of the secret that the host has to authenticate by, as `nvme gen-dhchap-key` makes it; left
    /// out, it is as before.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The file of the secret by which the volume authenticates to the host, if that asks.
    #[arg(long, value_name = "FILE", requires = "secret_file")]
    controller_secret_file: Option<PathBuf>,
}

impl SecretArguments {
    /// The secrets, if there are any.
    ///
    /// # Errors
    ///
    /// [`CommandError::File`]; it holds none of what is in the file.
    pub(super) fn read(&self) -> Result<Option<HostSecrets>, CommandError> {
        let Some(host) = &self.secret_file else {
            return Ok(None);
        };
        let controller = self.controller_secret_file.as_deref().map(secret).transpose()?;
        Ok(Some(HostSecrets {
            host: secret(host)?,
            controller: controller.unwrap_or_default(),
        }))
    }
}

/// The secret in a file: one line.
fn secret(path: &Path) -> Result<String, CommandError> {
    let wrong = |why: &str| CommandError::File {
        path: path.to_owned(),
        reason: format!("the secret {why}"),
    };
    let text = String::from_utf8(read(path)?).map_err(|_| wrong("is no text"))?;
    let text = text.trim_end();
    check_secret(text).map_err(wrong)?;
    Ok(text.to_owned())
}
