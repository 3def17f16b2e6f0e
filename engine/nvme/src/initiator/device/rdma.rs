//! Remote namespaces by RDMA, with SPDK's initiator: `nvmf://HOST:4420/NQN?transport=rdma`.
//!
//! Parameters are those of TCP that make sense here: `nsid`, `hostnqn`, `hostid`, `depth`, `kato`, `timeout`,
//! `loss_timeout`. TCP is Pollux's own.

use std::sync::Arc;
use std::time::Duration;

use pollux_device::spdk::{DEPTH_MAX, FabricsAddress, SpdkDevice, SpdkOptions, Transport};
use pollux_device::uri::Parameter;
use pollux_device::{Device, DeviceUri, OpenError, UriError};
use pollux_reactor::net::Address;

use super::endpoint::Endpoint;
use super::options::{
    NAMESPACE_EXPECTED, TIMEOUT_EXPECTED, read_host, read_namespace_id, read_place, timeout,
};

/// What a URI says, but for the address, which may be a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RdmaUri {
    endpoint: Endpoint,
    subsystem: String,
    namespace: Option<u32>,
    host_nqn: String,
    host_id: [u8; 16],
    depth: Option<u16>,
    keep_alive: Option<Duration>,
    timeout: Option<Duration>,
    loss_timeout: Option<Duration>,
}

impl RdmaUri {
    fn read(uri: &DeviceUri) -> Result<Self, UriError> {
        let (endpoint, subsystem) = read_place(uri)?;
        let mut parameters = uri.parameters();
        let host = read_host(&mut parameters)?;
        let namespace = parameters.take_with("nsid", NAMESPACE_EXPECTED, read_namespace_id)?;
        let depth = parameters.take_with("depth", "a number from 1 to 4096", |text| {
            u16::read(text).filter(|depth| (1..=DEPTH_MAX).contains(depth))
        })?;
        let mut time = |name| parameters.take_with(name, TIMEOUT_EXPECTED, timeout);
        let read = Self {
            endpoint,
            subsystem: subsystem.to_string(),
            namespace,
            host_nqn: host.name.to_string(),
            host_id: host.id.into_bytes(),
            depth,
            keep_alive: time("kato")?,
            timeout: time("timeout")?,
            loss_timeout: time("loss_timeout")?,
        };
        parameters.take_with("transport", "`tcp` or `rdma`", |text| {
            (text == "rdma").then_some(())
        })?;
        parameters.finish()?;
        Ok(read)
    }

    fn options(self, address: std::net::SocketAddr) -> SpdkOptions {
        let name = match self.namespace {
            Some(id) => format!("{}:{id}", self.subsystem),
            None => self.subsystem.clone(),
        };
        let transport = Transport::Rdma(FabricsAddress {
            address: address.ip(),
            port: address.port(),
            subsystem: self.subsystem,
            host_nqn: Some(self.host_nqn),
            host_id: Some(self.host_id),
        });
        let defaults = SpdkOptions::new(name, transport, self.namespace);
        SpdkOptions {
            depth: self.depth.unwrap_or(defaults.depth),
            keep_alive: self.keep_alive.unwrap_or(defaults.keep_alive),
            timeout: self.timeout.unwrap_or(defaults.timeout),
            loss_timeout: self.loss_timeout.unwrap_or(defaults.loss_timeout),
            ..defaults
        }
    }
}

/// Opens a remote namespace by RDMA; on a reactor.
///
/// # Errors
///
/// [`OpenError`].
pub(super) async fn open(uri: &DeviceUri) -> Result<Arc<dyn Device>, OpenError> {
    let read = RdmaUri::read(uri)?;
    let failed = |error: std::io::Error| OpenError::failed(uri, format!("cannot find the target: {error}"));
    let found = read.endpoint.resolve().await.map_err(failed)?;
    let address = found.iter().find_map(|address| match address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    });
    let address = address.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let device = SpdkDevice::open(read.options(address)).await;
    Ok(device.map_err(|error| OpenError::failed(uri, error))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_becomes_options() {
        let uri = "nvmf://192.0.2.7/nqn.2026-11.io.pollux:serve?transport=rdma&nsid=3&depth=64&timeout=9s\
                   &hostnqn=nqn.2026-11.io.pollux:host";
        let read = RdmaUri::read(&DeviceUri::parse(uri).unwrap()).unwrap();
        let options = read.options("192.0.2.7:4420".parse().unwrap());
        assert_eq!(options.name, "nqn.2026-11.io.pollux:serve:3");
        assert_eq!((options.namespace, options.depth), (Some(3), 64));
        assert_eq!(options.timeout, Duration::from_secs(9));
        let Transport::Rdma(address) = options.transport else {
            panic!("{options:?}");
        };
        assert_eq!((address.port, address.address.is_ipv4()), (4420, true));
        assert_eq!(address.host_nqn.as_deref(), Some("nqn.2026-11.io.pollux:host"));
    }

    #[test]
    fn parameters_of_tcp_alone_are_refused() {
        for parameter in ["hdgst=true", "queues=3", "deallocate=dataset", "transport=fc"] {
            let uri = format!("nvmf://192.0.2.7/nqn.2026-11.io.pollux:serve?{parameter}");
            assert!(
                RdmaUri::read(&DeviceUri::parse(&uri).unwrap()).is_err(),
                "{parameter}"
            );
        }
    }
}
