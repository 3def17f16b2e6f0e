//! TLS for the server: its own certificate, and those of peers where they have one.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// What a peer proved to be, as DER; none if it gave no certificate. An extension of each request.
#[derive(Debug, Clone, Default)]
pub struct PeerCertificates(pub Arc<[Vec<u8>]>);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{what} cannot be used: {reason}")]
    Unusable {
        /// Which.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

fn unusable(what: &'static str) -> impl Fn(String) -> TlsError {
    move |reason| TlsError::Unusable { what, reason }
}

/// How the server proves what it is, and which authority peers are trusted by.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ServerTls")
    }
}

impl ServerTls {
    /// Of files in PEM: the authority, and the own certificate with its key. Peers may come without a
    /// certificate: what they may do is for the services to say. One that is of another authority or has
    /// expired is refused.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn new(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let failed = unusable("the certificate of the authority");
        let mut roots = RootCertStore::empty();
        for root in certificates(authority).map_err(&failed)? {
            roots.add(root).map_err(|error| failed(error.to_string()))?;
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let chain = certificates(certificate).map_err(unusable("the own certificate"))?;
        let failed = unusable("the own key");
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| failed(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| failed(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> std::io::Result<(TlsStream<TcpStream>, PeerCertificates)> {
        let stream = self.0.accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|der| der.to_vec()).collect();
        Ok((stream, PeerCertificates(certificates)))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}
