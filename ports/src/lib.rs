//! Ports of this machine that are kept for processes that will listen on them.
//!
//! Who starts a cluster has to know its ports before the processes are there. A port that was found free and
//! let go may be somebody else's by the time that its process listens, or while the process is away. So a
//! socket stays bound to it, and never listens. On Linux two sockets that both have `SO_REUSEADDR` may be
//! bound to one port as long as none of them listens yet (socket(7)): a process with that option, which
//! `std`, Tokio and Go set for listeners, takes the port beside the one that keeps it, as often as it is
//! started. The kernel gives the port to nobody who asks for any free one, nor to connections.

#![forbid(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Ports of the loopback interface that nobody else draws as long as this is there.
#[derive(Debug)]
pub struct KeptPorts {
    sockets: Vec<Socket>,
    addresses: Vec<SocketAddr>,
}

impl KeptPorts {
    /// So many ports that nobody has, no two the same.
    ///
    /// # Errors
    ///
    /// There are no more, or no more files may be open.
    pub fn draw(count: usize) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sockets: Vec<Socket> = (0..count).map(|_| bound(any)).collect::<io::Result<_>>()?;
        let address = |socket: &Socket| {
            let address = socket.local_addr()?.as_socket();
            address.ok_or_else(|| io::Error::other("a socket of IPv4 has another address"))
        };
        let addresses = sockets.iter().map(address).collect::<io::Result<_>>()?;
        Ok(Self { sockets, addresses })
    }

    /// These ports, that were drawn at another time. One that somebody listens on is not kept: that is for
    /// the process to tell that is to listen there.
    pub fn again(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let kept = addresses.into_iter().filter_map(|address| {
            let socket = bound(address).ok()?;
            Some((socket, address))
        });
        let (sockets, addresses) = kept.unzip();
        Self { sockets, addresses }
    }

    /// Where they are, in the order in which they were drawn.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Keeps others too.
    pub fn add(&mut self, others: Self) {
        self.sockets.extend(others.sockets);
        self.addresses.extend(others.addresses);
    }
}

/// A socket that has a port and does not listen. Processes that are started do not have it.
fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
