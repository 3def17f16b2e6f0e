//! Who gets in: certificates, authorities, roles, and time.

use std::net::SocketAddr;
use std::sync::Arc;

use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::registry_client::RegistryClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use pollux_control::controller::Observations;
use pollux_control::plan::Limits;
use pollux_control::security::{Authority, Guard, Identity as Person, Issued, Role};
use pollux_control::server::{Listening, ServiceParts, Services};
use pollux_control::store::MemoryStore;
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};
use tonic::{Code, Status};

use crate::common::{VirtualClock, named, put};

fn identity(issued: &Issued) -> Identity {
    Identity::from_pem(&issued.certificate, &issued.key)
}

fn person(name: &str, role: Role, lifetime_days: i64) -> Person {
    Person {
        name: name.to_owned(),
        role,
        hosts: Vec::new(),
        lifetime_days,
    }
}

struct Server {
    address: SocketAddr,
    authority: Authority,
    _stop: watch::Sender<bool>,
}

impl Server {
    async fn start() -> Self {
        let authority = Authority::new("test").expect("it can be made");
        let own = Person {
            hosts: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            ..person("control", Role::Admin, 1)
        };
        let own = authority.issue(&own).expect("it can be given");
        let tls = ServerTlsConfig::new()
            .identity(identity(&own))
            .client_ca_root(Certificate::from_pem(authority.issued().certificate));
        let store = MemoryStore::default();
        for name in ["n1", "n2"] {
            put(&store, &named(Node::default(), name)).await;
        }
        let services = Services::new(ServiceParts {
            store: Arc::new(store),
            observations: Arc::new(Observations::default()),
            clock: Arc::new(VirtualClock::default()),
            limits: Limits::default(),
            guard: Guard::Certificates,
        });
        let address = "127.0.0.1:0".parse().expect("an address");
        let listening = Listening::bind(address, Some(tls)).await.expect("a free port");
        let address = listening.address();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(listening.serve(services, stopped));
        Self {
            address,
            authority,
            _stop: stop,
        }
    }

    /// Lists nodes with a certificate or without, trusting an authority.
    async fn list(&self, own: Option<&Issued>, trusted: &Authority) -> Result<(), String> {
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(trusted.issued().certificate));
        if let Some(own) = own {
            tls = tls.identity(identity(own));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).expect("an address");
        let endpoint = endpoint.tls_config(tls).expect("it can be used");
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let listed = NodesClient::new(channel)
            .list_nodes(ListNodesRequest::default())
            .await;
        listed.map(drop).map_err(|status| status.to_string())
    }

    async fn connect(&self, role: Role, name: &str) -> Channel {
        let own = self
            .authority
            .issue(&person(name, role, 1))
            .expect("it can be given");
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(self.authority.issued().certificate))
            .identity(identity(&own));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).expect("an address");
        let endpoint = endpoint.tls_config(tls).expect("it can be used");
        endpoint.connect().await.expect("it is let in")
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let server = Server::start().await;
    let issue = |authority: &Authority, days| {
        authority
            .issue(&person("someone", Role::Admin, days))
            .expect("it can be given")
    };
    let good = issue(&server.authority, 1);
    assert_eq!(server.list(Some(&good), &server.authority).await, Ok(()));
    assert!(
        server.list(None, &server.authority).await.is_err(),
        "no certificate"
    );
    let foreign = Authority::new("test").expect("it can be made");
    let of_foreign = issue(&foreign, 1);
    assert!(
        server.list(Some(&of_foreign), &server.authority).await.is_err(),
        "another authority"
    );
    let expired = issue(&server.authority, -1);
    assert!(
        server.list(Some(&expired), &server.authority).await.is_err(),
        "expired"
    );
    assert!(
        server.list(Some(&good), &foreign).await.is_err(),
        "the server is of another authority"
    );
    // An authority that was read from its files is the same.
    let loaded = Authority::load(&server.authority.issued()).expect("it can be read");
    assert_eq!(server.list(Some(&issue(&loaded, 1)), &loaded).await, Ok(()));
    // Who is plain is not answered.
    let plain = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    if let Ok(channel) = plain.connect().await {
        let listed = NodesClient::new(channel)
            .list_nodes(ListNodesRequest::default())
            .await;
        assert!(listed.is_err());
    }
}

/// Whether the role was the reason.
fn is_role<T>(answer: Result<T, Status>) -> bool {
    answer.is_err_and(|status| status.code() == Code::PermissionDenied)
}

#[tokio::test]
async fn roles_are_kept() {
    let server = Server::start().await;
    for role in Role::ALL {
        let channel = server.connect(role, "n1").await;
        let list = NodesClient::new(channel.clone())
            .list_nodes(ListNodesRequest::default())
            .await;
        let delete = DeleteVolumeRequest { name: "v".to_owned() };
        let provision = VolumesClient::new(channel.clone()).delete_volume(delete).await;
        let delete = DeleteNodeRequest {
            name: "none".to_owned(),
        };
        let operate = NodesClient::new(channel.clone()).delete_node(delete).await;
        let report = EngineReport {
            node: "n1".to_owned(),
            ..EngineReport::default()
        };
        let reported = RegistryClient::new(channel).report(report).await;
        let refused = [
            is_role(list),
            is_role(provision),
            is_role(operate),
            is_role(reported),
        ];
        let expected = match role {
            Role::Viewer => [false, true, true, true],
            Role::Csi => [false, false, true, true],
            Role::Operator => [false, false, false, true],
            Role::Admin => [false; 4],
            Role::Engine => [true, true, true, false],
        };
        assert_eq!(refused, expected, "{role}");
    }
}

#[tokio::test]
async fn engines_speak_for_themselves_only() {
    let server = Server::start().await;
    let mut engine = RegistryClient::new(server.connect(Role::Engine, "n1").await);
    let report = |node: &str| EngineReport {
        node: node.to_owned(),
        ..EngineReport::default()
    };
    assert!(engine.report(report("n1")).await.is_ok());
    assert!(is_role(engine.report(report("n2")).await));
}
