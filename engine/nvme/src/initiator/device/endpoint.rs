//! Where a target is, by address or by name.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use pollux_device::blocking;
use pollux_reactor::net::Address;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// The host and port of a target. A name is looked up each time it is connected to, so that a target that has
/// moved is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// An endpoint; `host` is a name or an address, that of IPv6 without brackets.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
        }
    }

    /// Its addresses, at least one. Names are looked up on a thread of their own.
    ///
    /// # Errors
    ///
    /// That of the look-up.
    pub async fn resolve(&self) -> io::Result<Vec<Address>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port).into()]);
        }
        let (host, port) = (self.host.clone(), self.port);
        let looked_up = blocking::run(move || {
            let found = (host.as_str(), port).to_socket_addrs()?;
            Ok(found.take(ADDRESSES_MAX).map(Address::from).collect::<Vec<_>>())
        });
        match looked_up.await {
            Some(Ok(found)) if found.is_empty() => Err(io::ErrorKind::NotFound.into()),
            Some(found) => found,
            None => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(formatter, "[{host}]:{port}")
        } else {
            write!(formatter, "{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_it_was_made_of() {
        assert_eq!(
            Endpoint::new("target.example", 4420).to_string(),
            "target.example:4420"
        );
        assert_eq!(
            Endpoint::new("2001:db8::1", 4420).to_string(),
            "[2001:db8::1]:4420"
        );
        let address: SocketAddr = "[2001:db8::1]:4420".parse().unwrap();
        assert_eq!(Endpoint::from(address), Endpoint::new("2001:db8::1", 4420));
    }
}
