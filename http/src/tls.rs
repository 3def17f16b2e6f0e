//! Who a peer is, by TLS, and when the own certificates end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use pollux_tls::{Callers, Certificates};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::families::daemon::CERTIFICATE_END;
use crate::metrics::Exposition;

/// Certificates that a daemon uses, and what each is for.
#[derive(Debug, Default)]
pub struct CertificatesInUse(Mutex<Vec<(&'static str, Certificates)>>);

impl CertificatesInUse {
    /// Certificates are used from now on, for what the word says.
    pub fn add(&self, of: &'static str, certificates: Certificates) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.push((of, certificates));
    }

    /// When they end, as measurements.
    pub fn write(&self, text: &mut Exposition) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut samples = text.family(&CERTIFICATE_END);
        for (of, certificates) in &known {
            let ends = certificates.ends();
            samples
                .add(&[of, "own"], ends.own_unix_s as f64)
                .add(&[of, "authority"], ends.authority_unix_s as f64);
        }
    }
}

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
