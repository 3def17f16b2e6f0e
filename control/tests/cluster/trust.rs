//! Who gets in: certificates, authorities, roles, and time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::registry_client::RegistryClient;
use pollux_api::control::v1::tokens_client::TokensClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use pollux_control::controller::Observations;
use pollux_control::plan::Limits;
use pollux_control::security::{Authority, Guard, Identity as Person, Issued, Role};
use pollux_control::server::{Listening, ServiceParts, Services};
use pollux_control::store::{MemoryStore, Store};
use pollux_tls::Certificates;
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::common::fleet::Fleet;
use crate::common::{VirtualClock, named, put};
use crate::https::ask_https;

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
    http: SocketAddr,
    authority: Authority,
    store: MemoryStore,
    clock: VirtualClock,
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
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("authority.pem", authority.issued().certificate),
            ("own.pem", own.certificate),
            ("own.key", own.key),
        ] {
            std::fs::write(directory.path().join(name), text).expect("it can be written");
        }
        let tls = Certificates::open(directory.path(), |_| Ok(())).expect("they can be used");
        let clock = VirtualClock::default();
        let store = MemoryStore::default();
        for name in ["n1", "n2"] {
            put(&store, &named(Node::default(), name)).await;
        }
        let services = Services::new(ServiceParts {
            store: Arc::new(store.clone()),
            observations: Arc::new(Observations::default()),
            engines: Arc::new(Fleet::default()),
            clock: Arc::new(clock.clone()),
            limits: Limits::default(),
            guard: Guard::Certificates,
        });
        let address = "127.0.0.1:0".parse().expect("an address");
        let listening = Listening::bind(address, Some(tls.clone()))
            .await
            .expect("a free port");
        let http = Listening::bind_http("127.0.0.1:0".parse().expect("an address"), Some(tls));
        let http = http.await.expect("a free port");
        let http_address = http.address();
        let address = listening.address();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(http.serve(services.clone().http(), stopped.clone()));
        tokio::spawn(listening.serve(services, stopped));
        Self {
            address,
            http: http_address,
            authority,
            store,
            clock,
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

    /// A connection of somebody who trusts the authority and has no certificate.
    async fn connect_without(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(self.authority.issued().certificate));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).expect("an address");
        let endpoint = endpoint.tls_config(tls).expect("it can be used");
        endpoint.connect().await.expect("it is let in")
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

/// What the command line fails with, with the certificates in a directory.
async fn told_by_command_line(address: SocketAddr, certificates: Option<&Path>) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pollux"));
    command.args(["--control", &address.to_string(), "node", "list"]);
    if let Some(directory) = certificates {
        command.arg("--certificates").arg(directory);
    }
    let output = command.output().await.expect("it was built");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Who is refused by TLS is told that it is the certificates, and not that nobody is there.
#[tokio::test]
async fn strangers_are_told_what_is_wrong() {
    let server = Server::start().await;
    let foreign = Authority::new("test").expect("it can be made");
    let directory = tempfile::tempdir().expect("a directory");
    let write = |authority: &Authority, own: &Authority, name: &str| {
        let directory = directory.path().join(name);
        let own = own
            .issue(&person("someone", Role::Admin, 1))
            .expect("it can be given");
        std::fs::create_dir(&directory).expect("a directory");
        for (file, text) in [
            ("authority.pem", &authority.issued().certificate),
            ("own.pem", &own.certificate),
            ("own.key", &own.key),
        ] {
            std::fs::write(directory.join(file), text).expect("a file");
        }
        directory
    };
    let good = write(&server.authority, &server.authority, "good");
    assert_eq!(told_by_command_line(server.address, Some(&good)).await, "");
    let none = told_by_command_line(server.address, None).await;
    assert!(none.contains("that --certificates is given"), "{none}");
    // The control plane does not trust these.
    let unknown = write(&server.authority, &foreign, "unknown");
    let unknown = told_by_command_line(server.address, Some(&unknown)).await;
    assert!(
        unknown.contains("those of both come from one authority"),
        "{unknown}"
    );
    // These do not trust the control plane.
    let other = write(&foreign, &foreign, "other");
    let told = told_by_command_line(server.address, Some(&other)).await;
    let expected = format!("the certificates in {} do not fit", other.display());
    assert!(told.contains(&expected), "{told}");
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

fn token(name: &str, role: TokenRole, expires_unix_us: u64) -> CreateTokenRequest {
    let token = Token {
        metadata: Some(Metadata {
            name: name.to_owned(),
            ..Metadata::default()
        }),
        spec: Some(TokenSpec {
            role: role.into(),
            expires_unix_us,
        }),
    };
    CreateTokenRequest { token: Some(token) }
}

/// A request with a token.
fn by<T>(secret: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {secret}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}

const HOUR_US: u64 = 3_600_000_000;

#[tokio::test]
async fn tokens_let_in_without_a_certificate() {
    let server = Server::start().await;
    let mut admin = TokensClient::new(server.connect(Role::Admin, "admin").await);
    let plain = server.connect_without().await;
    for (role, permitted) in [
        (TokenRole::Viewer, [true, false, false, false]),
        (TokenRole::Csi, [true, true, false, false]),
        (TokenRole::Operator, [true, true, true, false]),
        (TokenRole::Admin, [true; 4]),
    ] {
        let name = role.as_str_name().to_lowercase().replace('_', "-");
        let made = admin
            .create_token(token(&name, role, HOUR_US))
            .await
            .expect("it is new");
        let made = made.into_inner();
        let secret = made.secret;
        let list = by(&secret, ListNodesRequest::default());
        let list = NodesClient::new(plain.clone()).list_nodes(list).await;
        let delete = by(&secret, DeleteVolumeRequest { name: "v".to_owned() });
        let provision = VolumesClient::new(plain.clone()).delete_volume(delete).await;
        let delete = by(
            &secret,
            DeleteNodeRequest {
                name: "none".to_owned(),
            },
        );
        let operate = NodesClient::new(plain.clone()).delete_node(delete).await;
        let listed = by(&secret, ListTokensRequest::default());
        let administer = TokensClient::new(plain.clone()).list_tokens(listed).await;
        let found = [
            !is_role(list),
            !is_role(provision),
            !is_role(operate),
            !is_role(administer),
        ];
        assert_eq!(found, permitted, "{role:?}");
        // What was told once is told never again.
        let again = admin.create_token(token(&name, role, HOUR_US)).await;
        assert_eq!(again.expect_err("it is taken").code(), Code::AlreadyExists);
        let hidden = secret.rsplit_once(&format!("{name}_")).expect("its form").1;
        let listed = admin
            .list_tokens(ListTokensRequest::default())
            .await
            .expect("a list");
        assert!(!format!("{listed:?}").contains(hidden));
        for entry in server.store.list_all("/").await.expect("it answers").entries {
            assert!(
                !String::from_utf8_lossy(&entry.value).contains(hidden),
                "{}",
                entry.key
            );
        }
    }
}

#[tokio::test]
async fn tokens_that_are_none_let_nobody_in() {
    let server = Server::start().await;
    let mut admin = TokensClient::new(server.connect(Role::Admin, "admin").await);
    let plain = server.connect_without().await;
    let list = async |channel: &Channel, secret: &str| {
        let request = by(secret, ListNodesRequest::default());
        let listed = NodesClient::new(channel.clone()).list_nodes(request).await;
        listed.map(drop).map_err(|status| status.code())
    };
    let nobody = NodesClient::new(plain.clone())
        .list_nodes(ListNodesRequest::default())
        .await;
    assert_eq!(nobody.expect_err("nobody calls").code(), Code::Unauthenticated);
    let made = admin
        .create_token(token("t", TokenRole::Viewer, HOUR_US))
        .await
        .expect("it is new");
    let secret = made.into_inner().secret;
    assert_eq!(list(&plain, &secret).await, Ok(()));
    let mut changed = secret.clone();
    changed.replace_range(6..7, if &secret[6..7] == "A" { "B" } else { "A" });
    let other = secret.replace("plx_t_", "plx_u_");
    for wrong in [
        "",
        "x",
        "plx_t_",
        "plx_../t_x",
        &changed,
        &other,
        &secret[..secret.len() - 1],
    ] {
        assert_eq!(list(&plain, wrong).await, Err(Code::Unauthenticated), "{wrong}");
        // A certificate does not make up for it: who gives a token means it.
        let certified = server.connect(Role::Admin, "admin").await;
        assert_eq!(
            list(&certified, wrong).await,
            Err(Code::Unauthenticated),
            "{wrong}"
        );
    }
    // Expired.
    server.clock.advance(HOUR_US);
    assert_eq!(list(&plain, &secret).await, Err(Code::Unauthenticated));
    // Taken back, also in the middle of a watch.
    let made = admin
        .create_token(token("w", TokenRole::Viewer, 2 * HOUR_US))
        .await
        .expect("it is new");
    let secret = made.into_inner().secret;
    let watch = by(&secret, WatchRequest::default());
    let mut changes = NodesClient::new(plain.clone())
        .watch_nodes(watch)
        .await
        .expect("it is let in");
    let changes = changes.get_mut();
    assert!(matches!(changes.message().await, Ok(Some(_))));
    for _ in 0..2 {
        let revoked = admin
            .revoke_token(RevokeTokenRequest { name: "w".to_owned() })
            .await;
        assert!(revoked.is_ok(), "{revoked:?}");
    }
    assert_eq!(list(&plain, &secret).await, Err(Code::Unauthenticated));
    let ended = async {
        loop {
            match changes.message().await {
                Ok(Some(_)) => {}
                ended => return ended.expect_err("it is told why"),
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    let ended = ended.expect("the watch ends");
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("the token was revoked"), "{ended}");
}

#[tokio::test]
async fn what_makes_no_token_is_told() {
    let server = Server::start().await;
    let mut admin = TokensClient::new(server.connect(Role::Admin, "admin").await);
    let mut no_spec = token("t", TokenRole::Viewer, HOUR_US);
    no_spec.token.as_mut().expect("it has one").spec = None;
    let mut no_role = token("t", TokenRole::Viewer, HOUR_US);
    no_role
        .token
        .as_mut()
        .and_then(|token| token.spec.as_mut())
        .expect("it has one")
        .role = 77;
    for (request, field) in [
        (CreateTokenRequest::default(), "token"),
        (no_spec, "token.spec"),
        (no_role, "token.spec.role"),
        (token("", TokenRole::Viewer, HOUR_US), "token.metadata.name"),
        (token("A_b", TokenRole::Viewer, HOUR_US), "token.metadata.name"),
        (
            token(&"x".repeat(129), TokenRole::Viewer, HOUR_US),
            "token.metadata.name",
        ),
        (token("t", TokenRole::Unspecified, HOUR_US), "token.spec.role"),
        (token("t", TokenRole::Viewer, 0), "token.spec.expires_unix_us"),
        (
            token("t", TokenRole::Viewer, u64::MAX),
            "token.spec.expires_unix_us",
        ),
    ] {
        let status = admin
            .create_token(request.clone())
            .await
            .expect_err("it is wrong");
        assert_eq!(status.code(), Code::InvalidArgument, "{request:?}");
        let details = status.get_details_bad_request().expect("fields");
        let fields: Vec<String> = details
            .field_violations
            .into_iter()
            .map(|wrong| wrong.field)
            .collect();
        assert_eq!(fields, [field], "{request:?}");
    }
    let status = admin
        .revoke_token(RevokeTokenRequest { name: "A".to_owned() })
        .await;
    assert_eq!(status.expect_err("it is no name").code(), Code::InvalidArgument);
}

/// Asks for the nodes by HTTPS. Returns the status.
async fn ask_nodes(server: &Server, own: Option<&Issued>, token: Option<&str>) -> Option<u16> {
    let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let asked = ask_https(server.http, &server.authority, own, &token, "/v1/nodes").await;
    asked.ok()
}

#[tokio::test]
async fn rest_has_the_same_door() {
    let server = Server::start().await;
    let issue = |authority: &Authority, role, days| {
        authority
            .issue(&person("n1", role, days))
            .expect("it can be given")
    };
    let mut admin = TokensClient::new(server.connect(Role::Admin, "admin").await);
    let made = admin
        .create_token(token("t", TokenRole::Viewer, HOUR_US))
        .await
        .expect("it is new");
    let secret = made.into_inner().secret;
    assert_eq!(ask_nodes(&server, None, Some(&secret)).await, Some(200));
    assert_eq!(ask_nodes(&server, None, None).await, Some(401));
    assert_eq!(ask_nodes(&server, None, Some("x")).await, Some(401));
    let viewer = issue(&server.authority, Role::Viewer, 1);
    assert_eq!(ask_nodes(&server, Some(&viewer), None).await, Some(200));
    assert_eq!(ask_nodes(&server, Some(&viewer), Some("x")).await, Some(401));
    let engine = issue(&server.authority, Role::Engine, 1);
    assert_eq!(ask_nodes(&server, Some(&engine), None).await, Some(403));
    let expired = issue(&server.authority, Role::Admin, -1);
    assert!(ask_nodes(&server, Some(&expired), None).await.is_none());
    let foreign = issue(&Authority::new("other").expect("it can be made"), Role::Admin, 1);
    assert!(ask_nodes(&server, Some(&foreign), None).await.is_none());
    server.clock.advance(HOUR_US);
    assert_eq!(ask_nodes(&server, None, Some(&secret)).await, Some(401));
}
