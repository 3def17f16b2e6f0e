//! Listening sockets, and connecting.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::SocketFlags;
use socket2::{SockAddr, SockRef, Socket};

use super::readiness::{Direction, Source, Tried};
use super::ring::Ring;
use super::socket::{Connected, LISTEN_BACKLOG, SocketSettings, address_of, explain};
use super::stream::SocketStream;
use crate::net::{Address, Detached, Listener, Stream};
use crate::timer;

/// The pause before a connect is tried again that found the backlog of a Unix listener full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// How often such a connect is tried.
const BACKLOG_TRIES: u32 = 400;

pub(super) struct SocketListener {
    source: Rc<Source>,
    local: Address,
    ring: Ring,
    /// The file of a Unix socket; removed with the listener.
    file: Option<PathBuf>,
}

impl SocketListener {
    pub(super) fn new(ring: &Ring, address: &Address, settings: &SocketSettings) -> io::Result<Self> {
        let (socket, local) =
            Self::bind(address, settings).map_err(|error| explain("listen on", address, &error))?;
        let file = match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        };
        Ok(Self {
            source: Source::new(socket.into(), Duration::ZERO, ring.readiness().now()),
            local,
            ring: ring.clone(),
            file,
        })
    }

    fn bind(address: &Address, settings: &SocketSettings) -> io::Result<(Socket, Address)> {
        let (socket, name) = settings.open(address)?;
        match address {
            Address::Tcp(_) => {
                socket.set_reuse_address(true)?;
                socket.bind(&name)?;
            }
            Address::Unix(path) => match socket.bind(&name) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(&name) => {
                    std::fs::remove_file(path)?;
                    socket.bind(&name)?;
                }
                result => result?,
            },
        }
        socket.listen(LISTEN_BACKLOG)?;
        let local = address_of(&socket.local_addr()?);
        Ok((socket, local))
    }
}

/// Whether a socket file is left over from a process that has ended: nobody listens there.
fn is_abandoned(name: &SockAddr) -> bool {
    let is_socket = name.as_pathname().is_some_and(|path: &Path| {
        use std::os::unix::fs::FileTypeExt;
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
    });
    let connected = Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.nonblocking(), None)
        .and_then(|socket| socket.connect(name));
    is_socket && connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Listener for SocketListener {
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Detached>> {
        let accepted = self
            .ring
            .attempt(&self.source, Direction::Readable, context, |socket| {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                Ok(Tried {
                    value: rustix::net::accept_with(socket, flags)?,
                    exhausted: false,
                })
            });
        accepted.map(|descriptor| {
            let descriptor = descriptor?;
            let peer = SockRef::from(&descriptor).peer_addr()?;
            Ok(Detached::new(Connected::new(descriptor, address_of(&peer))?))
        })
    }

    fn local(&self) -> &Address {
        &self.local
    }
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        self.ring.forget(&self.source);
        if let Some(file) = &self.file {
            // It may have been removed by hand; that is no harm.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// A source that is forgotten when a connect is given up.
struct Attempt<'ring> {
    ring: &'ring Ring,
    source: Rc<Source>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.ring.forget(&self.source);
    }
}

pub(super) async fn connect(
    ring: Ring,
    address: Address,
    settings: SocketSettings,
) -> io::Result<Box<dyn Stream>> {
    let connected = establish(&ring, &address, &settings).await;
    let connected = connected.map_err(|error| explain("connect to", &address, &error))?;
    Ok(Box::new(SocketStream::new(&ring, connected, &settings)))
}

async fn establish(ring: &Ring, address: &Address, settings: &SocketSettings) -> io::Result<Connected> {
    for _ in 0..BACKLOG_TRIES {
        let (socket, name) = settings.open(address)?;
        match socket.connect(&name) {
            Ok(()) => return Connected::new(socket.into(), address.clone()),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                let attempt = Attempt {
                    ring,
                    source: Source::new(socket.into(), Duration::ZERO, ring.readiness().now()),
                };
                std::future::poll_fn(|context| {
                    let direction = Direction::Writable;
                    ring.attempt(&attempt.source, direction, context, |socket| {
                        let socket = SockRef::from(socket);
                        match (socket.take_error()?, socket.peer_addr()) {
                            (Some(error), _) => Err(error),
                            (None, Ok(_)) => Ok(Tried {
                                value: (),
                                exhausted: true,
                            }),
                            (None, Err(_)) => Err(io::ErrorKind::WouldBlock.into()),
                        }
                    })
                })
                .await?;
                let descriptor = attempt.source.descriptor().try_clone()?;
                return Connected::new(descriptor, address.clone());
            }
            // The backlog of a Unix listener is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => timer::sleep(BACKLOG_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "its backlog stayed full: it does not accept connections",
    ))
}
