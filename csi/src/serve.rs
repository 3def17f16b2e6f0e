//! Services at a Unix socket.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::metrics::Metrics;

/// Calls under way on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 256;

/// The longest time for a call whose caller names none: longer than anything that is waited for.
const CALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The endpoint is none.
    #[error("{0} is no endpoint: give unix:///PATH")]
    Endpoint(String),
    /// Another process answers there.
    #[error("another process answers at {0}: end it first, or take another endpoint")]
    Taken(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}: {source}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The server has ended.
    #[error("the services cannot be served: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// The path of an endpoint such as `unix:///csi/csi.sock`.
///
/// # Errors
///
/// [`ServeError::Endpoint`].
pub fn socket_path(endpoint: &str) -> Result<PathBuf, ServeError> {
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"));
    let path = PathBuf::from(path.unwrap_or(endpoint));
    match path.is_absolute() {
        true => Ok(path),
        false => Err(ServeError::Endpoint(endpoint.to_owned())),
    }
}

/// Listens at a path. A socket that nobody answers at is left over from a process that ended.
///
/// # Errors
///
/// [`ServeError::Taken`], [`ServeError::Listen`].
pub async fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(ServeError::Taken(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => {
            return Err(failed(io::Error::new(
                ErrorKind::AlreadyExists,
                "it is no socket",
            )));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory).map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Whoever reaches the socket can delete volumes.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Answers calls until `stop` turns true; then those that are under way, and no more.
///
/// # Errors
///
/// [`ServeError::Transport`].
pub async fn serve(
    listener: UnixListener,
    routes: Routes,
    metrics: Metrics,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let stopped = async move {
        // A sender that is gone stops it too.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .timeout(CALL_TIMEOUT)
        .layer(pollux_trace::ServedLayer)
        .layer(metrics)
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::Shutdown;

    use super::*;

    #[test]
    fn endpoints_are_sockets() {
        for endpoint in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(socket_path(endpoint).ok(), Some(PathBuf::from("/csi/csi.sock")));
        }
        for endpoint in ["", "tcp://127.0.0.1:1", "unix://relative", "csi.sock"] {
            assert!(socket_path(endpoint).is_err(), "{endpoint}");
        }
    }

    #[tokio::test]
    async fn left_over_sockets_are_replaced_and_living_ones_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/csi.sock");
        let first = listen(&path).await.expect("nothing is there");
        assert!(matches!(listen(&path).await, Err(ServeError::Taken(_))));
        // A process that another test has forked has it as well, until it executes its program.
        rustix::net::shutdown(&first, Shutdown::Both).expect("it listens");
        drop(first);
        let again = listen(&path).await.expect("nobody answers there");
        let mode = std::fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(again);
        let file = directory.path().join("file");
        std::fs::write(&file, "data").expect("it can be written");
        assert!(matches!(listen(&file).await, Err(ServeError::Listen { .. })));
        assert_eq!(std::fs::read(&file).expect("it is there"), b"data");
    }
}
