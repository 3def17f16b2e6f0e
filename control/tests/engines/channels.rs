//! Connections to processes, with certificates and without.

use std::net::SocketAddr;

use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::{GetNodeRequest, NodeState};
use pollux_control::security::{Authority, Identity, Issued, Role};
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
        hosts: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
        lifetime_days,
    };
    authority.issue(&identity).expect("it can be given")
}
