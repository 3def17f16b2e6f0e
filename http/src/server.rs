//! A server of HTTP/1.1 and HTTP/2, with or without TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use pollux_tls::Certificates;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::tls::{self, PeerCertificates};

/// Connections at a time; one more waits until another one ends.
const CONNECTIONS_MAX: usize = 1024;

/// Requests under way on one connection.
const STREAMS_MAX: u32 = 64;

/// How long the head of a request may take to come; so a connection that is silent ends as well.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: u32 = 32 << 10;

/// How much of a request is read ahead, in bytes.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How often a silent peer is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long requests under way may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a connection could not be accepted: descriptors may be short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be taken.
    #[error("cannot listen at {address}: {source}; give another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub struct HttpListener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Certificates>,
}

impl HttpListener {
    /// Listens, without answering yet.
    ///
    /// # Errors
    ///
    /// [`HttpError::Listen`].
    pub async fn bind(address: SocketAddr, tls: Option<Certificates>) -> Result<Self, HttpError> {
        let failed = |source| HttpError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` turns true or its sender is gone, then lets what is under way end.
    pub async fn serve(self, router: Router, mut stop: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let closing = stop.clone();
        loop {
            // It is never closed.
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                () = turns_true(&mut stop) => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = turns_true(&mut stop) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Small answers must not wait until what was before is acknowledged; without it, they do.
                    let _ = stream.set_nodelay(true);
                    let (router, tls, closing) = (router.clone(), self.tls.clone(), closing.clone());
                    connections.spawn(async move {
                        let _permit = permit;
                        accepted_connection(stream, tls, router, closing).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        // Who takes longer is cut off.
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
    }
}

async fn accepted_connection(
    stream: TcpStream,
    tls: Option<Certificates>,
    router: Router,
    closing: watch::Receiver<bool>,
) {
    let Some(tls) = tls else {
        return connection(stream, PeerCertificates::default(), router, closing).await;
    };
    match tls::accept(&tls, stream).await {
        Ok((stream, certificates)) => connection(stream, certificates, router, closing).await,
        Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
    }
}

/// Returns when it is true, or nobody can set it any more.
async fn turns_true(stop: &mut watch::Receiver<bool>) {
    // The guard in the answer must not be kept.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Answers the requests of one connection.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    certificates: PeerCertificates,
    router: Router,
    mut closing: watch::Receiver<bool>,
) {
    let service = tower::service_fn(move |request: axum::http::Request<_>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(certificates.clone());
        router.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL));
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = turns_true(&mut closing) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended by an error");
    }
}
