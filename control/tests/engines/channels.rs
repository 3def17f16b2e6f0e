//! Connections to processes, with certificates and without.

use std::net::SocketAddr;
use std::sync::Arc;

use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::{GetNodeRequest, NodeState};
use pollux_control::security::{Authority, Identity, Issued, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};

/// Whether a node is online, if the control plane answers.
pub async fn is_online(channel: Channel, name: &str) -> Option<bool> {
    let name = name.to_owned();
    let found = NodesClient::new(channel)
        .get_node(GetNodeRequest { name })
        .await
        .ok()?;
    Some(found.into_inner().status?.state() == NodeState::Online)
}

/// A connection without certificates.
pub fn plain_channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_lazy()
}

/// A connection of somebody who trusts an authority, and may have a certificate.
pub fn trusted_channel(address: SocketAddr, trusted: &Authority, own: Option<&Issued>) -> Channel {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted.issued().certificate));
    if let Some(own) = own {
        tls = tls.identity(TlsIdentity::from_pem(&own.certificate, &own.key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    endpoint.tls_config(tls).expect("it can be used").connect_lazy()
}

/// A certificate for somebody on this machine.
pub fn certificate(authority: &Authority, name: &str, role: Role, lifetime_days: i64) -> Issued {
    let identity = Identity {
        name: name.to_owned(),
        role,
        hosts: vec!["127.0.0.1".to_owned()],
        lifetime_days,
    };
    authority.issue(&identity).expect("it can be given")
}

/// The status of what is asked for by HTTPS; nothing if it is cut off.
pub async fn ask_https(
    address: SocketAddr,
    trusted: &Authority,
    own: Option<&Issued>,
    path: &str,
) -> Option<u16> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(trusted.issued().certificate.as_bytes());
    roots.add(authority.expect("PEM")).expect("a certificate");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
            builder
                .with_client_auth_cert(vec![certificate], key)
                .expect("it fits")
        }
    };
    let name = "127.0.0.1".try_into().expect("a name");
    let stream = TcpStream::connect(address).await.expect("it listens");
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.ok()?;
    String::from_utf8_lossy(&text).split(' ').nth(1)?.parse().ok()
}
