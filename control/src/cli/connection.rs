//! How the command line reaches the control plane, and tells what went wrong.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the control plane is asked whether it is still there while an answer is waited for, and how long
/// it may take to say so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest file that a token may be in.
const TOKEN_BYTES_MAX: usize = 512;

/// A connection to the control plane.
pub(super) type Channel = InterceptedService<tonic::transport::Channel, Bearer>;

/// Sends a token with each call, if there is one.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Who calls, and whom.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// HOST:PORT.
    pub(super) address: String,
    /// The directory of certificates.
    pub(super) certificates: Option<PathBuf>,
    /// The file of a token.
    pub(super) token_file: Option<PathBuf>,
}

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
    /// One of the two does not trust the other.
    #[error(
        "the control plane at {address} and the certificates in {directory} do not fit: {reason}; those of \
         both come from one authority, and `pollux cert issue` makes new ones"
    )]
    Trust {
        /// Where it is.
        address: String,
        /// Where the certificates are.
        directory: PathBuf,
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
    /// Whoever read the answer has read enough, as `head` does.
    #[error("nobody reads the answer any more")]
    Unread,
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
        let text = status.message();
        match status.source() {
            Some(source) if is_silence(source) => Self::Refused(
                "the control plane does not answer any more: see whether it runs and can be reached"
                    .to_owned(),
            ),
            // It is not the control plane that says so.
            Some(source) => {
                let reason = match is_trust(source) {
                    true => innermost(source),
                    false => text.to_owned(),
                };
                if let Some(expired) = expired(&reason) {
                    return Self::Refused(expired.to_owned());
                }
                Self::Refused(format!(
                    "the connection was lost: {reason}; if it is each time, see that --control names a \
                     control plane, that --certificates is given where it has some, and that those of both \
                     come from one authority"
                ))
            }
            None if text.is_empty() && status.code() == Code::Unavailable => {
                Self::Refused("the connection was lost".to_owned())
            }
            None => Self::Refused(text.to_owned()),
        }
    }
}

impl From<serde_json::Error> for CommandError {
    fn from(error: serde_json::Error) -> Self {
        // Whatever it was printed to may be gone.
        io::Error::from(error).into()
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Print(error.to_string()),
        }
    }
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    std::fs::read(path).map_err(|error| CommandError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The token in a file.
fn bearer(path: &Path) -> Result<Bearer, CommandError> {
    let wrong = |reason: &str| CommandError::File {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes)
        .ok()
        .filter(|text| text.len() <= TOKEN_BYTES_MAX && !text.trim().is_empty())
        .ok_or_else(|| wrong("is no token of `pollux token create`"))?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
        .parse()
        .map_err(|_| wrong("is no token of `pollux token create`"))?;
    value.set_sensitive(true);
    Ok(Bearer(Some(value)))
}

/// An error and what it comes from, the innermost last.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What an error comes from in the end.
fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}

/// Whether an error is one of TLS: that is told as data that is not valid.
fn is_trust(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// What to do about a certificate that is good no more, if that is what an error of TLS says.
fn expired(reason: &str) -> Option<&'static str> {
    if reason.contains("CertificateExpired") {
        Some(
            "the certificate in --certificates has expired: issue another with `pollux cert issue`, and see \
             that the clocks of both machines are right",
        )
    } else if reason.contains("certificate expired") || reason.ends_with("certificate: Expired") {
        Some(
            "the certificate of the control plane has expired: issue another with `pollux cert issue`, start \
             the control plane anew with it, and see that the clocks of both machines are right",
        )
    } else {
        None
    }
}

/// Whether an error is that nothing was heard for too long.
fn is_silence(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.to_string().contains("keep-alive timed out"))
}

/// Connects to the control plane.
pub(super) async fn connect(access: &Access) -> Result<Channel, CommandError> {
    let address = &access.address;
    let failed = |error: tonic::transport::Error| {
        let (address, reason) = (address.clone(), innermost(&error));
        if let Some(expired) = expired(&reason) {
            return CommandError::Refused(expired.to_owned());
        }
        match &access.certificates {
            Some(directory) if is_trust(&error) => CommandError::Trust {
                address,
                directory: directory.clone(),
                reason,
            },
            _ => CommandError::Connect { address, reason },
        }
    };
    let bearer = match &access.token_file {
        Some(path) => bearer(path)?,
        None => Bearer(None),
    };
    let scheme = if access.certificates.is_some() {
        "https"
    } else {
        "http"
    };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    if let Some(directory) = &access.certificates {
        let authority = Certificate::from_pem(read(&directory.join("authority.pem"))?);
        let mut tls = ClientTlsConfig::new().ca_certificate(authority);
        let own = directory.join("own.pem");
        // Who has a token needs no certificate of its own, only that of the authority.
        if bearer.0.is_none() || own.exists() {
            tls = tls.identity(Identity::from_pem(read(&own)?, read(&directory.join("own.key"))?));
        }
        endpoint = endpoint.tls_config(tls).map_err(failed)?;
    }
    let channel = endpoint.connect().await.map_err(failed)?;
    Ok(InterceptedService::new(channel, bearer))
}
