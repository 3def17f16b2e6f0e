//! Byte streams as the engine sees them: readiness by polling, no buffer owned by the driver.
//!
//! A stream is polled by one task. The task's own loop receives, works and sends until nothing moves, so that
//! one receive and one send carry as many protocol units as there are.

mod finish;
mod input;
mod output;

pub use finish::{finish, flush};
pub use input::{Input, RECEIVE_BYTES, Received};
pub use output::Output;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use crate::context::Reactor;

/// Where a listener listens or a stream leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// The text is neither `HOST:PORT` with a numeric host nor `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address: give ADDRESS:PORT (as 127.0.0.1:4420 or [::1]:4420) or unix:PATH")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(AddressError(text.to_owned())),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| AddressError(text.to_owned())),
        }
    }
}

/// One connected byte stream, on the reactor that it is attached to.
pub trait Stream {
    /// Receives into the buffers, in order. `Ready(Ok(0))` with room in the buffers is the end of the stream.
    ///
    /// # Errors
    ///
    /// Those of the connection; it is of no more use after one.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends from the buffers, in order, as much as fits now; at least one byte when ready.
    ///
    /// # Errors
    ///
    /// Those of the connection; it is of no more use after one.
    fn poll_send(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Ends the sending half: the peer receives what was sent and then the end of the stream.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    fn shutdown(&mut self) -> io::Result<()>;

    /// Where the peer is.
    fn peer(&self) -> &Address;

    /// Where this end is.
    fn local(&self) -> &Address;

    /// Takes the stream off this reactor, to be attached to another.
    ///
    /// # Errors
    ///
    /// When the driver cannot let go of it.
    fn detach(self: Box<Self>) -> io::Result<Detached>;
}

/// Accepts streams.
pub trait Listener {
    /// The next stream, attached to no reactor yet.
    ///
    /// # Errors
    ///
    /// Of one stream that failed on the way in, or short of descriptors: accepting may go on after a pause.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Detached>>;

    /// Where it listens, with the port that was taken.
    fn local(&self) -> &Address;
}

/// A connect under way.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>>>>;

/// A stream between reactors: what the driver needs to attach it again, opaque to everyone else.
pub struct Detached(Box<dyn Any + Send>);

impl Detached {
    /// Wraps what a driver needs to attach the stream again.
    pub fn new(stream: impl Any + Send) -> Self {
        Self(Box::new(stream))
    }

    /// What the driver put in.
    ///
    /// # Errors
    ///
    /// The stream itself, when it is of another driver.
    pub fn downcast<T: Any>(self) -> Result<T, Self> {
        self.0.downcast().map(|inner| *inner).map_err(Self)
    }
}

impl fmt::Debug for Detached {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Detached")
    }
}

/// Listens on the current reactor.
///
/// # Errors
///
/// Those of [`Driver::listen`](crate::Driver::listen).
pub fn listen(address: &Address) -> io::Result<Box<dyn Listener>> {
    Reactor::current().driver().listen(address)
}

/// Connects on the current reactor.
///
/// # Errors
///
/// Those of the connection attempt.
pub async fn connect(address: &Address) -> io::Result<Box<dyn Stream>> {
    let connecting = Reactor::current().driver().connect(address);
    connecting.await
}

/// Attaches a stream to the current reactor.
///
/// # Errors
///
/// Those of [`Driver::attach`](crate::Driver::attach).
pub fn attach(detached: Detached) -> io::Result<Box<dyn Stream>> {
    Reactor::current().driver().attach(detached)
}

/// The next stream of a listener.
///
/// # Errors
///
/// Those of [`Listener::poll_accept`].
pub async fn accept(listener: &mut dyn Listener) -> io::Result<Detached> {
    std::future::poll_fn(|context| listener.poll_accept(context)).await
}

/// Receives some bytes; 0 is the end of the stream.
///
/// # Errors
///
/// Those of [`Stream::poll_receive`].
pub async fn receive(stream: &mut dyn Stream, into: &mut [u8]) -> io::Result<usize> {
    std::future::poll_fn(|context| stream.poll_receive(context, &mut [IoSliceMut::new(into)])).await
}

/// Receives exactly as many bytes as fit.
///
/// # Errors
///
/// Those of [`Stream::poll_receive`], and [`io::ErrorKind::UnexpectedEof`].
pub async fn receive_exact(stream: &mut dyn Stream, into: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match receive(stream, rest).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => filled += received,
        }
    }
    Ok(())
}

/// Sends all bytes.
///
/// # Errors
///
/// Those of [`Stream::poll_send`].
pub async fn send_all(stream: &mut dyn Stream, mut from: &[u8]) -> io::Result<()> {
    while !from.is_empty() {
        let sent = std::future::poll_fn(|context| stream.poll_send(context, &[IoSlice::new(from)])).await?;
        from = from.get(sent..).ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(())
}
