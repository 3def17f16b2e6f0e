//! Connections of a server, once their handshake is done.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use super::{Callers, Certificates};

/// Does the handshakes of connections, each on its own, so that a silent caller holds up nobody. Connections
/// whose handshake fails are dropped. Ends when nobody takes them any more.
pub fn handshakes<S>(
    incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
    certificates: Certificates,
    callers: Callers,
) -> ReceiverStream<io::Result<TlsStream<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        loop {
            let accepted = tokio::select! {
                accepted = incoming.next() => accepted,
                () = sender.closed() => return,
            };
            let stream = match accepted {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => {
                    if sender.send(Err(error)).await.is_err() {
                        return;
                    }
                    continue;
                }
                None => return,
            };
            let (certificates, sender) = (certificates.clone(), sender.clone());
            tokio::spawn(async move {
                let accepted = tokio::select! {
                    accepted = certificates.accept(stream, callers) => accepted,
                    () = sender.closed() => return,
                };
                match accepted {
                    // Nobody may take it any more.
                    Ok(stream) => drop(sender.send(Ok(stream)).await),
                    Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}
