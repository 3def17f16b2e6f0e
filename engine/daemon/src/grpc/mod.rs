//! The control interface: gRPC on a Unix socket, or on a TCP port of this machine.
//!
//! There is no authentication yet: whoever reaches it may change what is served. A Unix socket is for its
//! owner alone; TCP is refused anywhere but on the loopback interface ([`ControlAddress`]).

mod accept;
mod devices;
mod fields;
mod look;
mod meter;
mod pools;
mod progress;
pub(crate) mod qos;
mod replicas;
mod service;
mod status;
mod volumes;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pollux_api::engine::v1::engine_server::EngineServer;
use pollux_api::engine::v1::pools_server::PoolsServer;
use pollux_api::engine::v1::replicas_server::ReplicasServer;
use pollux_api::engine::v1::volumes_server::VolumesServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Server;

use crate::engine::Engine;
use crate::pools::Pools;
use crate::replicas::Replicas;
use crate::settings::ControlAddress;
pub(crate) use accept::connections;
pub(crate) use meter::meter_server;
pub(crate) use pools::PoolsService;
pub(crate) use replicas::ReplicasService;
use service::EngineService;
pub(crate) use volumes::VolumesService;

/// Calls that one connection may have under way.
const CALLS_PER_CONNECTION_MAX: u32 = 64;

/// Bytes of one request, at most; the longest are the URIs of the devices of a pool.
const REQUEST_BYTES_MAX: usize = 512 << 10;

/// How often a silent connection is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long calls may take to end when the engine stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The socket is for its owner alone.
const SOCKET_MODE: u32 = 0o600;

/// The control interface as it runs.
pub struct ControlServer {
    address: ControlAddress,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// A socket that nobody has been accepted from yet.
pub enum ControlListener {
    /// A Unix socket; the file goes away with it.
    Unix(UnixListener, SocketFile),
    /// A TCP port.
    Tcp(TcpListener),
}

/// The file of a Unix socket, removed when dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ControlListener {
    /// Listens. A Unix socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// Those of the operating system; [`io::ErrorKind::AddrInUse`] when somebody listens there.
    pub async fn bind(address: &ControlAddress) -> io::Result<Self> {
        match address {
            ControlAddress::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            ControlAddress::Unix(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                remove_stale(path).await?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// Where it listens, with the port that was taken.
    ///
    /// # Errors
    ///
    /// Those of the operating system.
    pub fn address(&self) -> io::Result<ControlAddress> {
        match self {
            Self::Unix(_, file) => Ok(ControlAddress::Unix(file.0.clone())),
            Self::Tcp(listener) => listener.local_addr().map(ControlAddress::Tcp),
        }
    }
}

/// Removes what an engine that was killed left behind, and nothing else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;

    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file of this name that is no socket",
            ));
        }
        Ok(_) => {}
    }
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Answers calls about pools.
pub(crate) fn pools_server(pools: Arc<Pools>) -> PoolsServer<PoolsService> {
    PoolsServer::new(PoolsService::new(pools)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// Answers calls about volumes.
pub(crate) fn volumes_server(pools: Arc<Pools>) -> VolumesServer<VolumesService> {
    VolumesServer::new(VolumesService::new(pools)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// Answers calls about replicas.
pub(crate) fn replicas_server(replicas: Arc<Replicas>) -> ReplicasServer<ReplicasService> {
    ReplicasServer::new(ReplicasService::new(replicas)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

impl ControlServer {
    /// Answers calls about an engine.
    ///
    /// # Errors
    ///
    /// When the listener cannot tell where it listens.
    pub fn start(
        listener: ControlListener,
        engine: Arc<Engine>,
        pools: Arc<Pools>,
        replicas: Arc<Replicas>,
    ) -> io::Result<Self> {
        let address = listener.address()?;
        let service = EngineServer::new(EngineService::new(engine.clone()))
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let router = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .layer(pollux_trace::ServedLayer)
            .add_service(service)
            .add_service(pools_server(pools.clone()))
            .add_service(volumes_server(pools.clone()))
            .add_service(
                ReplicasServer::new(ReplicasService::new(replicas))
                    .max_decoding_message_size(REQUEST_BYTES_MAX),
            )
            .add_service(meter_server(engine, pools));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            // A sender that is gone stops it too.
            let stopped = async { drop(stopped.await) };
            match listener {
                ControlListener::Unix(listener, _file) => {
                    let incoming = accept::connections(listener);
                    router.serve_with_incoming_shutdown(incoming, stopped).await
                }
                ControlListener::Tcp(listener) => {
                    let incoming = accept::connections(listener);
                    router.serve_with_incoming_shutdown(incoming, stopped).await
                }
            }
        });
        Ok(Self { address, stop, task })
    }

    /// Where it listens.
    pub fn address(&self) -> &ControlAddress {
        &self.address
    }

    /// Takes no more calls, and waits a moment for those under way.
    pub async fn stop(mut self) {
        // The task may have ended by itself.
        let _ = self.stop.send(());
        match tokio::time::timeout(STOP_TIMEOUT, &mut self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the control interface ended with an error"),
            Ok(Err(error)) => tracing::warn!(%error, "the control interface ended by itself"),
            Err(_) => {
                tracing::warn!("calls to the control interface were cut off");
                self.task.abort();
            }
        }
    }
}
