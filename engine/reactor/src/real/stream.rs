//! Connected sockets: plain non-blocking receives and sends, tried when they may succeed.

use std::io::{self, IoSlice, IoSliceMut};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use super::readiness::{Direction, Source, Tried};
use super::ring::Ring;
use super::socket::{Connected, SocketSettings};
use crate::net::{Address, Detached, Stream};

/// Pieces the kernel takes in one call (`IOV_MAX`).
const PIECES_MAX: usize = 1024;

pub(super) struct SocketStream {
    /// `None` once it was detached.
    source: Option<Rc<Source>>,
    peer: Address,
    local: Address,
    ring: Ring,
}

impl SocketStream {
    pub(super) fn new(ring: &Ring, connected: Connected, settings: &SocketSettings) -> Self {
        let hot = Duration::from_micros(u64::from(settings.hot_us));
        Self {
            source: Some(Source::new(connected.descriptor, hot, ring.readiness().now())),
            peer: connected.peer,
            local: connected.local,
            ring: ring.clone(),
        }
    }

    fn source(&self) -> io::Result<&Rc<Source>> {
        self.source
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Stream for SocketStream {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = into
            .iter()
            .fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        if room == 0 {
            return Poll::Ready(Ok(0));
        }
        let count = into.len().min(PIECES_MAX);
        let source = self.source()?;
        self.ring.attempt(source, Direction::Readable, context, |socket| {
            let received = match into.get_mut(..count) {
                Some([one]) => rustix::net::recv(socket, &mut **one, RecvFlags::empty())?.0,
                Some(pieces) => {
                    let mut control = RecvAncillaryBuffer::default();
                    rustix::net::recvmsg(socket, pieces, &mut control, RecvFlags::empty())?.bytes
                }
                None => 0,
            };
            Ok(Tried {
                value: received,
                exhausted: received < room,
            })
        })
    }

    fn poll_send(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let pieces = from.get(..PIECES_MAX).unwrap_or(from);
        let offered = pieces
            .iter()
            .fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        if offered == 0 {
            return Poll::Ready(Ok(0));
        }
        let source = self.source()?;
        self.ring.attempt(source, Direction::Writable, context, |socket| {
            let sent = match pieces {
                [one] => rustix::net::send(socket, one, SendFlags::NOSIGNAL)?,
                pieces => {
                    let mut control = SendAncillaryBuffer::default();
                    rustix::net::sendmsg(socket, pieces, &mut control, SendFlags::NOSIGNAL)?
                }
            };
            Ok(Tried {
                value: sent,
                exhausted: sent < offered,
            })
        })
    }

    fn shutdown(&mut self) -> io::Result<()> {
        match rustix::net::shutdown(self.source()?.descriptor(), Shutdown::Write) {
            // The peer has gone already.
            Err(rustix::io::Errno::NOTCONN) => Ok(()),
            result => Ok(result?),
        }
    }

    fn peer(&self) -> &Address {
        &self.peer
    }

    fn local(&self) -> &Address {
        &self.local
    }

    fn detach(mut self: Box<Self>) -> io::Result<Detached> {
        let source = self.source.take().ok_or(io::ErrorKind::NotConnected)?;
        self.ring.forget(&source);
        Ok(Detached::new(Connected {
            descriptor: Source::into_descriptor(source)?,
            peer: self.peer.clone(),
            local: self.local.clone(),
        }))
    }
}

impl Drop for SocketStream {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            self.ring.forget(source);
        }
    }
}
