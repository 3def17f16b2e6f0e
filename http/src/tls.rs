//! Who a peer is, by TLS.

use std::io;
use std::sync::Arc;

use pollux_tls::{Callers, Certificates};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a peer proved to be, as DER; none if it gave no certificate. An extension of each request.
#[derive(Debug, Clone, Default)]
pub struct PeerCertificates(pub Arc<[Vec<u8>]>);

/// Does the handshake. Peers may come without a certificate: what they may do is for the services to say. One
/// that is of another authority or has expired is refused.
pub(crate) async fn accept(
    certificates: &Certificates,
    stream: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, PeerCertificates)> {
    let stream = certificates.accept(stream, Callers::Any).await?;
    let peer = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = peer.iter().map(|der| der.to_vec()).collect();
    Ok((stream, PeerCertificates(peer)))
}
