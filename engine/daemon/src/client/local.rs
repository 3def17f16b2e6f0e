//! Pools that no engine has: opened by this process for one command.
//!
//! What answers is the same service as in an engine, on a reactor that lives as long as the command, reached
//! by a pair of sockets. At the end the pools are left in good order.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use pollux_hugepages::PoolOptions;
use pollux_reactor::real::{ReactorThread, Settings};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Server};

use super::ClientError;
use crate::devices;
use crate::grpc::{pools_server, volumes_server};
use crate::pools::Pools;
use crate::settings::{DeviceList, PoolSettings};

/// Buffers of the reactor, in bytes.
const BUFFER_BYTES: usize = 32 << 20;

/// See the module.
pub(super) struct Local {
    /// Reaches the service.
    pub(super) channel: Channel,
    pools: Arc<Pools>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    // Dropped last: the pools live on it.
    _reactor: ReactorThread,
}

impl Local {
    /// Opens pools on these devices.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub(super) async fn open(devices: &[DeviceList]) -> Result<Self, ClientError> {
        let reactor = ReactorThread::spawn(Settings {
            buffers: PoolOptions {
                total_bytes: BUFFER_BYTES,
                ..PoolOptions::default()
            },
            ..Settings::default()
        });
        let reactor = reactor.map_err(ClientError::Reactor)?;
        let pools = Pools::new(devices::registry(), vec![reactor.handle()]);
        for devices in devices {
            if let Err(error) = pools.import(&PoolSettings::new(devices.0.clone())).await {
                drop(pools.close().await);
                return Err(ClientError::Refused(error.to_string()));
            }
        }
        let (near, far) = UnixStream::pair().map_err(ClientError::Reactor)?;
        let router = Server::builder()
            .add_service(pools_server(pools.clone()))
            .add_service(volumes_server(pools.clone()));
        let server =
            tokio::spawn(router.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(far))));
        let mut near = Some(near);
        let connector = tower::service_fn(move |_| {
            // Once: there is no other socket to the service.
            let near = near.take().ok_or(std::io::ErrorKind::NotConnected);
            async move { Ok::<_, std::io::Error>(TokioIo::new(near?)) }
        });
        let endpoint = Endpoint::from_static("http://pools.local");
        let channel = endpoint.connect_with_connector(connector).await;
        Ok(Self {
            channel: channel.map_err(|error| ClientError::Refused(super::innermost(&error)))?,
            pools,
            server,
            _reactor: reactor,
        })
    }

    /// Leaves the pools in good order.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotExported`].
    pub(super) async fn close(self) -> Result<(), ClientError> {
        self.server.abort();
        match self.pools.close().await {
            Ok(()) => Ok(()),
            Err(error) => Err(ClientError::Refused(error.to_string())),
        }
    }
}
