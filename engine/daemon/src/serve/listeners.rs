//! Where NVMe/TCP hosts connect.

use std::net::SocketAddr;
use std::sync::Arc;

use pollux_nvme::target::PortConfig;
use pollux_nvme::target::Target;
use pollux_nvme::target::connection::{self, TransportSettings};
use pollux_reactor::net::Address;
use pollux_reactor::{ReactorHandle, Task};

use super::error::StartError;

/// Listeners, each on a reactor. Dropping them stops accepting; connections go on.
pub(super) struct Listeners {
    addresses: Vec<SocketAddr>,
    accepting: Vec<Task<()>>,
}

impl Listeners {
    /// Listens on every address, and has the discovery service tell hosts of it.
    ///
    /// # Errors
    ///
    /// [`StartError::Listen`].
    pub(super) async fn start(
        addresses: &[SocketAddr],
        target: &Arc<Target>,
        reactors: &[ReactorHandle],
    ) -> Result<Self, StartError> {
        let settings = Arc::new(TransportSettings::default());
        let mut listeners = Self {
            addresses: Vec::new(),
            accepting: Vec::new(),
        };
        for ((address, reactor), port) in addresses.iter().zip(reactors.iter().cycle()).zip(1..) {
            let (wanted, target_there, settings) = (Address::Tcp(*address), target.clone(), settings.clone());
            let failed = |source| StartError::Listen {
                address: *address,
                source,
            };
            let (local, accepting) = reactor
                .call(move || async move { connection::listen(&wanted, target_there, settings) })
                .await
                .map_err(|error| failed(std::io::Error::other(error)))?
                .map_err(failed)?;
            let local = match local {
                Address::Tcp(local) => local,
                Address::Unix(_) => *address,
            };
            let port = PortConfig {
                id: port,
                address: local,
            };
            target
                .add_port(port)
                .map_err(|error| failed(std::io::Error::other(error)))?;
            listeners.addresses.push(local);
            listeners.accepting.push(accepting);
        }
        Ok(listeners)
    }

    /// Where they listen, with the ports that were taken.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Accepts no more connections.
    pub(super) async fn stop(self) {
        for accepting in self.accepting {
            accepting.cancel().await;
        }
    }
}
