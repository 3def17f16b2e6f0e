//! Sockets of this machine: how they are made, and what is set on them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::net::Address;

/// Connections that the kernel keeps for a listener until they are accepted.
pub(super) const LISTEN_BACKLOG: i32 = 1024;

/// Settings of sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    /// Bytes of the receive buffer, `SO_RCVBUF`. `None`, the default, leaves its size to the kernel, which
    /// adapts it.
    pub receive_buffer_bytes: Option<usize>,
    /// Bytes of the send buffer, `SO_SNDBUF`. `None`, the default, leaves its size to the kernel, which
    /// adapts it.
    pub send_buffer_bytes: Option<usize>,
    /// Microseconds for which a socket that makes no progress is tried in every turn, before the kernel is
    /// asked to tell when to try again. Default: 100.
    pub hot_us: u32,
}

impl Default for SocketSettings {
    fn default() -> Self {
        Self {
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            hot_us: 100,
        }
    }
}

impl SocketSettings {
    /// A new socket for an address, not bound or connected.
    pub(super) fn open(&self, address: &Address) -> io::Result<(Socket, SockAddr)> {
        let (domain, protocol, address) = match address {
            Address::Tcp(address) => (
                Domain::for_address(*address),
                Some(Protocol::TCP),
                SockAddr::from(*address),
            ),
            Address::Unix(path) => (Domain::UNIX, None, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), protocol)?;
        // Before listening or connecting: they decide on the window that is offered to the peer.
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        Ok((socket, address))
    }
}

/// A connected socket on its way from one reactor to another.
pub(super) struct Connected {
    pub(super) descriptor: OwnedFd,
    pub(super) peer: Address,
    pub(super) local: Address,
}

impl Connected {
    /// Takes over a socket that has just been connected or accepted.
    pub(super) fn new(descriptor: OwnedFd, peer: Address) -> io::Result<Self> {
        let socket = SockRef::from(&descriptor);
        if let Address::Tcp(_) = peer {
            socket.set_tcp_nodelay(true)?;
        }
        let local = address_of(&socket.local_addr()?);
        Ok(Self {
            descriptor,
            peer,
            local,
        })
    }
}

/// The address as the engine names it; that of a nameless Unix socket is an empty path.
pub(super) fn address_of(address: &SockAddr) -> Address {
    match address.as_socket() {
        Some(address) => Address::Tcp(address),
        None if address.is_unix() => {
            Address::Unix(address.as_pathname().map_or_else(PathBuf::new, PathBuf::from))
        }
        None => Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
    }
}

/// The error with what was tried in front.
pub(super) fn explain(what: &str, address: &Address, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {address}: {error}"))
}
