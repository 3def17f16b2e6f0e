//! `spdk-tcp://HOST:PORT/NQN`: a remote namespace by SPDK's TCP initiator, to measure the device that drives
//! it where there is no drive. Parameters: `depth`.

use std::sync::Arc;

use pollux_device::spdk::{FabricsAddress, SpdkDevice, SpdkOptions, Transport};
use pollux_device::{Device, DeviceUri, OpenError, Opener, Opening, Registry};

/// The scheme.
pub const SCHEME: &str = "spdk-tcp";

/// Adds the scheme to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(SCHEME, Arc::new(SpdkTcpOpener));
}

struct SpdkTcpOpener;

impl Opener for SpdkTcpOpener {
    fn open<'a>(&'a self, _: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            let mut parameters = uri.parameters();
            let depth = parameters.take("depth")?;
            parameters.finish()?;
            let host = uri.host().and_then(|host| host.parse().ok());
            let (address, port) = host
                .zip(uri.port())
                .ok_or_else(|| OpenError::failed(uri, "write spdk-tcp://ADDRESS:PORT/NQN"))?;
            let transport = Transport::Tcp(FabricsAddress {
                address,
                port,
                subsystem: uri.path(),
                host_nqn: None,
                host_id: None,
            });
            let mut options = SpdkOptions::new(uri.path(), transport, None);
            options.depth = depth.unwrap_or(options.depth);
            let device = SpdkDevice::open(options).await;
            Ok(device.map_err(|error| OpenError::failed(uri, error))? as Arc<dyn Device>)
        })
    }
}
