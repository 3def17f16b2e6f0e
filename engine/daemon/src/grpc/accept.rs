//! Accepting connections to the control interface, a bounded number at a time.
//!
//! A client that leaks connections must not use up the descriptors that hosts need. Beyond the bound,
//! connections wait in the backlog of the kernel until another one ends.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// The pause after an accept that failed, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that streams are accepted from.
pub(crate) trait Accept: Send + Sync + 'static {
    /// What is accepted.
    type Stream: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // An answer is several small writes: the second must not wait until the first is acknowledged.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// The connections of a listener, until nobody takes them any more.
pub(crate) fn connections<L: Accept>(listener: L) -> ReceiverStream<io::Result<Counted<L::Stream>>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = accept_all(&listener, &sender) => {}
            () = sender.closed() => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept_all<L: Accept>(listener: &L, sender: &mpsc::Sender<io::Result<Counted<L::Stream>>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Nobody closes the semaphore.
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok(stream) => {
                let counted = Counted {
                    stream,
                    _permit: permit,
                };
                if sender.send(Ok(counted)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection to the control interface");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that counts until it is dropped.
pub(crate) struct Counted<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: Connected> Connected for Counted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn one_more_waits_until_another_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut incoming = connections(listener);
        let (mut clients, mut accepted) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS_MAX {
            clients.push(TcpStream::connect(address).await.expect("it listens"));
            accepted.push(incoming.next().await.expect("one more").expect("no error"));
        }
        clients.push(TcpStream::connect(address).await.expect("the kernel takes it"));
        let soon = Duration::from_millis(100);
        assert!(
            tokio::time::timeout(soon, incoming.next()).await.is_err(),
            "too many"
        );
        drop(accepted.pop());
        incoming.next().await.expect("one more").expect("no error");
    }

    #[tokio::test]
    async fn nobody_listens_once_nobody_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(connections(listener));
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
