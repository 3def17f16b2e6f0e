//! How the command line reaches the control plane, and tells what went wrong.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nobody answers.
    #[error(
        "no control plane answers at {address}: {reason}; start one with `pollux-control serve`, or tell \
         where it is with --control"
    )]
    Connect {
        /// Where one was looked for.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// A file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The answer cannot be printed.
    #[error("cannot print the answer: {0}")]
    Print(String),
    /// It takes longer than was to be waited.
    #[error("{what} is not done after {seconds} s: {state}; it goes on, look again with `pollux {look}`")]
    Patience {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// How far it is.
        state: String,
        /// How to look.
        look: String,
    },
    /// There is no certificate.
    #[error(transparent)]
    Certificate(#[from] crate::security::CertificateError),
}

impl From<Status> for CommandError {
    fn from(status: Status) -> Self {
        let mut text = status.message().to_owned();
        if status.code() == Code::Unavailable && text.is_empty() {
            "the connection was lost".clone_into(&mut text);
        }
        Self::Refused(text)
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Print(error.to_string())
    }
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    std::fs::read(path).map_err(|error| CommandError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Connects to the control plane, with the certificates of a directory if one is given.
pub(super) async fn connect(address: &str, certificates: Option<&Path>) -> Result<Channel, CommandError> {
    let failed = |error: tonic::transport::Error| {
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        CommandError::Connect {
            address: address.to_owned(),
            reason: innermost.to_string(),
        }
    };
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT);
    if let Some(directory) = certificates {
        let own = Identity::from_pem(
            read(&directory.join("own.pem"))?,
            read(&directory.join("own.key"))?,
        );
        let tls = ClientTlsConfig::new()
            .identity(own)
            .ca_certificate(Certificate::from_pem(read(&directory.join("authority.pem"))?));
        endpoint = endpoint.tls_config(tls).map_err(failed)?;
    }
    endpoint.connect().await.map_err(failed)
}
