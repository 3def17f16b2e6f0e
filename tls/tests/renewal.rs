//! New files are taken up by servers and clients, if they are whole.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pollux_tls::{Callers, Certificates, handshakes};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer, X509Certificate};

/// An authority that gives certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Issued {
    pem: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, name: &str, seconds: u64) -> Issued {
        let now = OffsetDateTime::from(SystemTime::now());
        self.issue_for(
            name,
            now - Duration::from_secs(60),
            now + Duration::from_secs(seconds),
        )
    }

    fn issue_for(&self, name: &str, from: OffsetDateTime, until: OffsetDateTime) -> Issued {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (from, until);
        let key = KeyPair::generate().expect("a key");
        Issued {
            pem: params.signed_by(&key, &self.issuer).expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }
}

fn put(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("it can be written");
}

fn put_all(directory: &Path, authority: &str, own: &Issued) {
    put(directory, "authority.pem", authority);
    put(directory, "own.pem", &own.pem);
    put(directory, "own.key", &own.key);
}

fn open(directory: &TempDir) -> Certificates {
    Certificates::open(directory.path(), |_| Ok(())).expect("they can be used")
}

fn name_of(der: &[u8]) -> String {
    let (_, certificate) = X509Certificate::from_der(der).expect("a certificate");
    let mut names = certificate.subject().iter_common_name();
    names
        .next()
        .expect("it has a name")
        .as_str()
        .expect("a text")
        .to_owned()
}

/// A server that tells the names of those who connect.
struct Server {
    endpoint: Endpoint,
    callers: tokio::sync::mpsc::Receiver<String>,
}

impl Server {
    async fn start(certificates: Certificates) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let incoming = TcpListenerStream::new(listener);
        let mut accepted = handshakes(incoming, certificates, Callers::WithCertificate);
        let (sender, callers) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(stream) = accepted.next().await {
                let stream = stream.expect("a connection");
                let peer = stream.get_ref().1.peer_certificates().expect("it has one");
                let name = name_of(peer.first().expect("it has one"));
                if sender.send(name).await.is_err() {
                    return;
                }
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).expect("an address");
        Self { endpoint, callers }
    }

    /// Calls it, and tells as whom; none if the handshake failed.
    async fn called_by(&mut self, channel: &mut Channel) -> Option<String> {
        std::future::poll_fn(|context| channel.poll_ready(context))
            .await
            .expect("it is ready");
        // The connection is dropped as soon as it is made: only the handshake counts.
        assert!(channel.call(http::Request::new(Body::empty())).await.is_err());
        tokio::time::timeout(Duration::from_millis(500), self.callers.recv())
            .await
            .ok()?
    }
}

#[tokio::test]
async fn clients_and_servers_take_up_new_certificates() {
    let authority = Authority::new();
    let (ours, theirs) = (
        TempDir::new().expect("a directory"),
        TempDir::new().expect("a directory"),
    );
    put_all(ours.path(), &authority.pem, &authority.issue("server-1", 100));
    put_all(theirs.path(), &authority.pem, &authority.issue("client-1", 100));
    let (server_side, client_side) = (open(&ours), open(&theirs));
    let mut server = Server::start(server_side.clone()).await;
    let mut channel = client_side
        .channel(vec![server.endpoint.clone()])
        .expect("it can be called");
    assert_eq!(server.called_by(&mut channel).await.as_deref(), Some("client-1"));
    put_all(theirs.path(), &authority.pem, &authority.issue("client-2", 200));
    client_side.look();
    let mut taken = None;
    for _ in 0..50 {
        taken = server.called_by(&mut channel).await;
        if taken.as_deref() == Some("client-2") {
            break;
        }
    }
    assert_eq!(taken.as_deref(), Some("client-2"));
    // The authority changes: the server is not trusted before it has a certificate of the new one, too.
    let next = Authority::new();
    put_all(theirs.path(), &next.pem, &next.issue("client-3", 300));
    client_side.look();
    let mut channel = client_side
        .channel(vec![server.endpoint.clone()])
        .expect("it can be called");
    assert_eq!(server.called_by(&mut channel).await, None);
    put_all(ours.path(), &next.pem, &next.issue("server-2", 300));
    server_side.look();
    assert_eq!(server.called_by(&mut channel).await.as_deref(), Some("client-3"));
}

#[tokio::test]
async fn files_that_do_not_fit_change_nothing() {
    let authority = Authority::new();
    let directory = TempDir::new().expect("a directory");
    put_all(directory.path(), &authority.pem, &authority.issue("n1", 1000));
    let is_refused = |pem: &[u8]| match pem.ends_with(b"#refused\n") {
        true => Err("is refused".to_owned()),
        false => Ok(()),
    };
    let certificates = Certificates::open(directory.path(), is_refused).expect("they can be used");
    let before = certificates.ends();
    let next = authority.issue("n1", 5000);
    for (name, text) in [
        // Half of the change, as between two writes of who renews them.
        ("own.pem", next.pem.clone()),
        ("own.pem", next.pem.chars().take(200).collect()),
        ("own.pem", String::new()),
        ("own.pem", format!("{}#refused\n", next.pem)),
        ("authority.pem", "no certificate".to_owned()),
    ] {
        put(directory.path(), name, &text);
        certificates.look();
        assert_eq!(certificates.ends(), before, "{name}: {text}");
    }
    std::fs::remove_file(directory.path().join("own.key")).expect("it was there");
    certificates.look();
    assert_eq!(certificates.ends(), before);
    put_all(directory.path(), &authority.pem, &next);
    certificates.look();
    let later = certificates.ends().own_unix_s - before.own_unix_s;
    assert!((4000..4100).contains(&later), "{later}");
    assert_eq!(certificates.ends().authority_unix_s, before.authority_unix_s);
}

#[tokio::test]
async fn files_are_looked_for_by_themselves() {
    let authority = Authority::new();
    let directory = TempDir::new().expect("a directory");
    put_all(directory.path(), &authority.pem, &authority.issue("n1", 1000));
    let certificates = open(&directory);
    let before = certificates.ends();
    put_all(directory.path(), &authority.pem, &authority.issue("n1", 5000));
    let began = tokio::time::Instant::now();
    while certificates.ends() == before {
        assert!(began.elapsed() < pollux_tls::LOOK_INTERVAL * 4, "nobody looks");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_is_not_good_now_does_not_take_the_place_of_what_is() {
    let authority = Authority::new();
    let directory = TempDir::new().expect("a directory");
    put_all(directory.path(), &authority.pem, &authority.issue("n1", 1000));
    let certificates = open(&directory);
    let before = certificates.ends();
    let now = OffsetDateTime::from(SystemTime::now());
    let (day, moment) = (Duration::from_secs(86_400), Duration::from_secs(3));
    for (from, until) in [(now - day * 2, now - day), (now + day, now + day * 2)] {
        put_all(
            directory.path(),
            &authority.pem,
            &authority.issue_for("n1", from, until),
        );
        certificates.look();
        certificates.look();
        assert_eq!(certificates.ends(), before, "from {from} until {until}");
    }
    // It is used once it is good.
    put_all(
        directory.path(),
        &authority.pem,
        &authority.issue_for("n1", now + moment, now + day),
    );
    certificates.look();
    assert_eq!(certificates.ends(), before);
    tokio::time::sleep(moment + Duration::from_secs(1)).await;
    certificates.look();
    assert_eq!(certificates.ends().own_unix_s, (now + day).unix_timestamp());
}

#[tokio::test]
async fn files_that_are_slow_to_be_read_hold_up_nobody() {
    let authority = Authority::new();
    let directory = TempDir::new().expect("a directory");
    put_all(directory.path(), &authority.pem, &authority.issue("n1", 1000));
    let _certificates = open(&directory);
    // Nobody can open it before somebody writes to it.
    let slow = directory.path().join("own.pem");
    std::fs::remove_file(&slow).expect("it was there");
    let made = std::process::Command::new("mkfifo").arg(&slow).status();
    assert!(made.expect("it runs").success());
    let writer = std::thread::spawn(move || {
        std::thread::sleep(pollux_tls::LOOK_INTERVAL + Duration::from_secs(3));
        // It waits for who reads.
        drop(std::fs::OpenOptions::new().write(true).open(&slow));
        std::fs::remove_file(&slow).expect("it was there");
    });
    let began = std::time::Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    while began.elapsed() < pollux_tls::LOOK_INTERVAL + Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        longest = longest.max(last.elapsed());
        last = std::time::Instant::now();
    }
    assert!(
        longest < Duration::from_secs(1),
        "nothing was done for {longest:?}"
    );
    writer.join().expect("it wrote");
}
