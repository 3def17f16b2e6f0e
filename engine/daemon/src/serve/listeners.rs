//! Where hosts and clients connect.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pollux_nbd::Exports;
use pollux_nvme::target::connection::{self, TransportSettings};
use pollux_nvme::target::{PortConfig, Target};
use pollux_reactor::net::Address;
use pollux_reactor::{ReactorHandle, Task};

use super::error::StartError;
use crate::patience::while_in_use;
use crate::settings::{ListenAddress, NbdSettings, NvmfSettings};

/// Listeners, spread over the reactors. Dropping them stops accepting; connections go on.
#[derive(Default)]
pub(super) struct Listeners {
    nvmf: Vec<Address>,
    nbd: Vec<Address>,
    accepting: Vec<Task<()>>,
}

impl Listeners {
    /// Listens for NVMe/TCP hosts, and has the discovery service tell them of each address.
    ///
    /// # Errors
    ///
    /// [`StartError::Listen`].
    pub(super) async fn start_nvmf(
        &mut self,
        nvmf: &NvmfSettings,
        target: &Arc<Target>,
        reactors: &[ReactorHandle],
    ) -> Result<(), StartError> {
        let settings = Arc::new(TransportSettings {
            in_capsule_bytes_max: nvmf.limits.in_capsule_bytes_max,
            ..TransportSettings::default()
        });
        for ((address, reactor), port) in nvmf.listen.iter().zip(reactors.iter().cycle()).zip(1..) {
            let wanted = Address::Tcp(*address);
            let (admission, settings) = (target.clone(), settings.clone());
            let local = self
                .start(reactor, &wanted, move |wanted| {
                    connection::listen(wanted, admission, settings)
                })
                .await?;
            if let Address::Tcp(address) = local {
                target
                    .add_port(PortConfig { id: port, address })
                    .map_err(|error| failed(&wanted, io::Error::other(error)))?;
            }
            self.nvmf.push(local);
        }
        Ok(())
    }

    /// Listens for NBD clients.
    ///
    /// # Errors
    ///
    /// [`StartError::Listen`].
    pub(super) async fn start_nbd(
        &mut self,
        nbd: &NbdSettings,
        exports: &Exports,
        reactors: &[ReactorHandle],
    ) -> Result<(), StartError> {
        let settings = pollux_nbd::NbdSettings {
            connections_max: nbd.connections_max,
            stall_timeout: Duration::from_millis(nbd.stall_timeout_ms),
            allow_resize: nbd.allow_resize,
            ..pollux_nbd::NbdSettings::default()
        };
        for (ListenAddress(wanted), reactor) in nbd.listen.iter().zip(reactors.iter().cycle()) {
            let (exports, all, settings) = (exports.clone(), reactors.to_vec(), settings.clone());
            let local = self
                .start(reactor, wanted, move |wanted| {
                    pollux_nbd::listen(wanted, exports, all, settings)
                })
                .await?;
            self.nbd.push(local);
        }
        Ok(())
    }

    async fn start(
        &mut self,
        reactor: &ReactorHandle,
        wanted: &Address,
        listen: impl FnOnce(&Address) -> io::Result<(Address, Task<()>)> + Clone + Send + 'static,
    ) -> Result<Address, StartError> {
        let attempt = || {
            let (listen, there, reactor) = (listen.clone(), wanted.clone(), reactor.clone());
            async move {
                let listening = reactor.call(move || async move { listen(&there) });
                listening.await.map_err(io::Error::other)?
            }
        };
        let is_in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        let (local, accepting) = while_in_use(attempt, is_in_use)
            .await
            .map_err(|source| failed(wanted, source))?;
        self.accepting.push(accepting);
        Ok(local)
    }

    /// Where NVMe/TCP hosts connect, with the ports that were taken.
    pub(super) fn nvmf(&self) -> &[Address] {
        &self.nvmf
    }

    /// Where NBD clients connect, with the ports that were taken.
    pub(super) fn nbd(&self) -> &[Address] {
        &self.nbd
    }

    /// Accepts no more connections.
    pub(super) async fn stop(self) {
        for accepting in self.accepting {
            accepting.cancel().await;
        }
    }
}

fn failed(address: &Address, source: io::Error) -> StartError {
    StartError::Listen {
        address: address.clone(),
        source,
    }
}
