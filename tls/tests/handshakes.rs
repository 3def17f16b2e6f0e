//! Handshakes of a server are bounded in number and in time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pollux_tls::{Callers, Certificates, HANDSHAKES_MAX, handshakes};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio_stream::StreamExt;

fn certificates(directory: &TempDir) -> Certificates {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate").pem();
    let issuer = Issuer::new(params, key);
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let own = params.signed_by(&key, &issuer).expect("a certificate").pem();
    for (name, text) in [
        ("authority.pem", authority),
        ("own.pem", own),
        ("own.key", key.serialize_pem()),
    ] {
        std::fs::write(directory.path().join(name), text).expect("it can be written");
    }
    Certificates::open(directory.path(), |_| Ok(())).expect("they can be used")
}

#[tokio::test(start_paused = true)]
async fn no_more_connections_are_accepted_than_handshakes_can_be_under_way() {
    let directory = TempDir::new().expect("a directory");
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = accepted.clone();
    // Callers that say nothing, and never hang up.
    let (sender, held) = tokio::sync::mpsc::unbounded_channel();
    let silent = tokio_stream::iter(0..HANDSHAKES_MAX * 3).map(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = tokio::io::duplex(64);
        sender.send(theirs).expect("it is held");
        Ok(ours)
    });
    let _taken = handshakes(silent, certificates(&directory), Callers::Any);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(accepted.load(Ordering::Relaxed), HANDSHAKES_MAX);
    // They are let go after a time, and the next ones are heard.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(accepted.load(Ordering::Relaxed), HANDSHAKES_MAX * 2);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_fails_is_not_asked_all_the_time() {
    let directory = TempDir::new().expect("a directory");
    let failing = tokio_stream::iter(0..).map(|_| Err::<DuplexStream, _>(io::Error::other("too many files")));
    let mut taken = handshakes(failing, certificates(&directory), Callers::Any);
    let mut failures = 0;
    let second = tokio::time::sleep(Duration::from_secs(1));
    tokio::pin!(second);
    loop {
        tokio::select! {
            biased;
            () = &mut second => break,
            failed = taken.next() => {
                assert!(failed.is_some_and(|failed| failed.is_err()));
                failures += 1;
                assert!(failures < 100, "it is asked without a pause");
            }
        }
    }
    assert!(failures > 1);
}
