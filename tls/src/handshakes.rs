//! Connections of a server, once their handshake is done.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use super::{Callers, Certificates};

/// Handshakes at a time; one more waits until another one ends, which it does in time.
pub const HANDSHAKES_MAX: usize = 1024;

/// How long to wait after a connection could not be accepted: where there are too many open files, for one,
/// the next one cannot be either.
const PAUSE: Duration = Duration::from_millis(50);

/// Does the handshakes of connections, each on its own, so that a silent caller holds up nobody, as long as
/// there are fewer than [`HANDSHAKES_MAX`]. Connections whose handshake fails are dropped. Ends when nobody
/// takes them any more.
pub fn handshakes<S>(
    incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
    certificates: Certificates,
    callers: Callers,
) -> ReceiverStream<io::Result<TlsStream<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        loop {
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place,
                () = sender.closed() => return,
            };
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
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                None => return,
            };
            let (certificates, sender) = (certificates.clone(), sender.clone());
            tokio::spawn(async move {
                let _place = place;
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
