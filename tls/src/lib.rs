//! Certificates of a daemon, from a directory with `authority.pem`, `own.pem` and `own.key`.
//!
//! Invariants:
//!
//! - What is in use was whole when it was read: the key is that of the certificate, and both can be used.
//!   Files that are not so, and a certificate that has expired or is not good yet, change nothing, which is
//!   told once.
//! - New files are taken up within [`LOOK_INTERVAL`], by servers and clients alike. Connections that there
//!   are go on; those that are made from then on are made with what is new.

#![forbid(unsafe_code)]

mod channel;
mod handshakes;
mod loaded;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use handshakes::{HANDSHAKES_MAX, handshakes};
use loaded::{Files, Loaded};

/// How often is looked for new files.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// Which callers a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Those with a certificate of the authority.
    WithCertificate,
    /// Those without one too: what they may do is for the services to say. A certificate of another
    /// authority, or one that has expired, is refused.
    Any,
}

/// When what is in use ends, in seconds since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The own certificate.
    pub own_unix_s: i64,
    /// That of the authority which ends last.
    pub authority_unix_s: i64,
}

/// Looks at an own certificate in PEM before it is used, and tells what is wrong with it.
type Check = Box<dyn Fn(&[u8]) -> Result<(), String> + Send + Sync>;

struct Shared {
    directory: PathBuf,
    check: Check,
    loaded: watch::Sender<Arc<Loaded>>,
    /// Files that were not taken, and whether that was told: not when they are first seen, as they may be
    /// about to be written.
    refused: Mutex<Option<(Files, bool)>>,
}

/// Certificates of a directory, as they are at the time. Clones are the same.
#[derive(Clone)]
pub struct Certificates(Arc<Shared>);

impl std::fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Certificates")
            .field("directory", &self.0.directory)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads them, and looks for new files from then on, on the current runtime of tokio, until the last
    /// clone is gone. An own certificate that `check` tells something of is not used.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn open(
        directory: &Path,
        check: impl Fn(&[u8]) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let check: Check = Box::new(check);
        let loaded = Loaded::new(Files::read(directory)?, directory, &check, None)?;
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            check,
            loaded: watch::Sender::new(Arc::new(loaded)),
            refused: Mutex::default(),
        });
        tokio::spawn(look_again(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// Looks for new files now. A certificate that is not good yet is used once it is.
    pub fn look(&self) {
        let Shared { directory, check, .. } = &*self.0;
        // Nothing that is done with the lock held can leave it half done. Who looks at the same time waits,
        // so that what was read first is not used last.
        let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        // A file that is not there is one that is about to be written, as far as one can know.
        let files = Files::read(directory);
        let files = files.map_err(|error| (Files::default(), error));
        let found = files.and_then(|files| {
            if files == self.0.loaded.borrow().files {
                return Ok(None);
            }
            let loaded = Loaded::new(files.clone(), directory, check, Some(unix_seconds()));
            loaded.map(Some).map_err(|error| (files, error))
        });
        match found {
            Ok(loaded) => {
                *refused = None;
                if let Some(loaded) = loaded {
                    let (directory, ends_unix_s) = (directory.display(), loaded.ends.own_unix_s);
                    tracing::info!(%directory, ends_unix_s, "new certificates are used");
                    self.0.loaded.send_replace(Arc::new(loaded));
                }
            }
            Err((files, error)) => {
                let was_told = match &*refused {
                    Some((before, was_told)) if *before == files => Some(*was_told),
                    _ => None,
                };
                if was_told == Some(false) {
                    tracing::warn!(%error, "new certificates are not used; those of before stay in use");
                }
                *refused = Some((files, was_told.is_some()));
            }
        }
    }

    /// When what is in use ends.
    pub fn ends(&self) -> Ends {
        self.0.loaded.borrow().ends
    }

    /// Does the handshake with somebody who has connected, by what is in use now.
    ///
    /// # Errors
    ///
    /// Those of the connection; a caller that is not let in; one that takes too long.
    pub async fn accept<S>(&self, stream: S, callers: Callers) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = {
            let loaded = self.0.loaded.borrow();
            match callers {
                Callers::WithCertificate => loaded.server_required.clone(),
                Callers::Any => loaded.server_optional.clone(),
            }
        };
        let accepting = TlsAcceptor::from(config).accept(stream);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
            Ok(accepted) => accepted,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn look_again(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        // Files may be on a disk that is slow to answer.
        let looked = tokio::task::spawn_blocking(move || Certificates(shared).look());
        if let Err(error) = looked.await {
            tracing::warn!(%error, "cannot look for new certificates");
        }
    }
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
