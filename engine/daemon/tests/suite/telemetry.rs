//! Metrics and health of an engine, over the network, against what a host did.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pollux_api::engine::v1::RemoveReplicaRequest;
use pollux_device::{BlockDeviceExt, IoError};
use pollux_http::families;
use pollux_http::metrics::{self, Scrape};
use pollux_hugepages::Buffer;

use crate::common::content::write;
use crate::common::host::Host;
use crate::common::pool::{PoolFile, succeed};
use crate::common::target::{TargetThreads, in_tank, replica, replicas};
use crate::common::{EngineProcess, PATIENCE, errors, run};

const WRITES: u64 = 20;
const BLOCK_BYTES: f64 = 4096.0;

/// The answer to a request: its head and its body.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("it listens");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    (head.to_owned(), body.to_owned())
}

fn scrape(address: &str) -> Scrape {
    let (head, body) = get(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains(metrics::CONTENT_TYPE), "{head}");
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    metrics::parse(&body).unwrap_or_else(|error| panic!("{error} in {body}"))
}

#[test]
fn what_hosts_do_is_told() {
    let file = PoolFile::with_volume(256 << 20, "64MiB");
    let uri = file.uri();
    let arguments = ["--pool", &uri, "pool://tank/db", "--http", "127.0.0.1:0"];
    let mut engine = EngineProcess::start(&arguments);
    let address = engine.wait_for("serving")["http"]
        .as_str()
        .expect("an address")
        .to_owned();
    let host = Host::connect(engine.listener(), "?reconnect=off").expect("it connects");
    host.run(|device| async move {
        for block in 0..WRITES {
            write(&device, block, 1).await.expect("it is written");
        }
        device.flush().await.expect("it is flushed");
        let read = device.read(1 << 40, Buffer::from_heap(4096)).await;
        assert_eq!(read.map(drop), Err(IoError::OutOfRange));
        device.read(0, Buffer::from_heap(4096)).await.expect("it is read");
    });
    let scrape = scrape(&address);
    let told: BTreeSet<&str> = scrape.kinds.keys().map(String::as_str).collect();
    let promised = families::daemon::ALL.iter().chain(families::engine::ALL);
    let promised: BTreeSet<&str> = promised.map(|family| family.name).collect();
    assert_eq!(told, promised);

    let of = |name: &str, operation: &str| {
        let labels = [("volume", "tank/db"), ("operation", operation)];
        scrape
            .value(&format!("pollux_engine_volume_{name}"), &labels)
            .expect(name)
    };
    assert_eq!(of("operations_total", "write"), WRITES as f64);
    assert_eq!(of("bytes_total", "write"), WRITES as f64 * BLOCK_BYTES);
    assert_eq!(of("operation_seconds_count", "write"), WRITES as f64);
    assert!(of("operation_seconds_sum", "write") > 0.0);
    assert_eq!(
        (of("operations_total", "read"), of("operations_total", "flush")),
        (1.0, 1.0)
    );
    assert_eq!(of("errors_total", "write"), 0.0);
    let size = scrape.value("pollux_engine_volume_size_bytes", &[("volume", "tank/db")]);
    assert_eq!(size, Some((64 << 20) as f64));
    let drive = uri.split('?').next().expect("a URI");
    let written = [("drive", drive), ("operation", "write")];
    let written = scrape
        .value("pollux_engine_drive_bytes_total", &written)
        .expect("it is told");
    assert!(written >= WRITES as f64 * BLOCK_BYTES, "{written}");
    let pool = [("pool", "tank")];
    let capacity = scrape
        .value("pollux_engine_pool_capacity_bytes", &pool)
        .expect("it is told");
    let free = scrape
        .value("pollux_engine_pool_free_bytes", &pool)
        .expect("it is told");
    assert!(free > 0.0 && free < capacity, "{free} of {capacity}");
    let connections = scrape.value("pollux_engine_reactor_connections", &[("reactor", "0")]);
    assert!(connections >= Some(1.0), "{connections:?}");
    let busy = [("reactor", "0"), ("state", "busy")];
    assert!(scrape.value("pollux_engine_reactor_seconds_total", &busy) > Some(0.0));

    for (path, text) in [
        ("/healthz", "reactors: ok\n"),
        ("/readyz", "reactors: ok\nserving: ok\n"),
    ] {
        let (head, body) = get(&address, path);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(body, text);
    }
    assert!(get(&address, "/secrets").0.starts_with("HTTP/1.1 404"));
    drop(host);
    engine.stop();
    assert!(TcpStream::connect(&address).is_err(), "it goes on");
}

/// A probe that gets no answer has the engine killed while it opens a large pool.
#[test]
fn who_asks_while_pools_are_opened_is_told_so() {
    let file = PoolFile::with_volume(256 << 20, "64MiB");
    let slow = format!(
        "faulty:///uring://{}?inner.block=4096&read.delay=100ms..100ms",
        file.path().display()
    );
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a port").to_string();
    let mut engine = EngineProcess::spawn(&["--pool", &slow, "--http", &address, "pool://tank/db"]);
    let patience = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < patience, "nobody listens");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (head, body) = get(&address, "/readyz");
    assert!(head.starts_with("HTTP/1.1 503"), "{head}: {body}");
    assert!(body.contains("serving: it opens the pool faulty:"), "{body}");
    assert!(get(&address, "/healthz").0.starts_with("HTTP/1.1 200"));
    assert!(get(&address, "/metrics").0.starts_with("HTTP/1.1 200"));
    engine.wait_for("serving");
    let (head, body) = get(&address, "/readyz");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}: {body}");
    engine.stop();
}

#[test]
fn what_targets_do_with_replicas_is_told_as_long_as_there_are_any() {
    let file = PoolFile::new(256 << 20);
    succeed(&["pool", "create", "tank", &file.uri()]);
    let threads = TargetThreads::start();
    let mut engine = EngineProcess::start(&["--pool", &file.uri(), "--http", "127.0.0.1:0"]);
    let address = engine.wait_for("serving")["http"]
        .as_str()
        .expect("an address")
        .to_owned();
    threads.runtime.block_on(async {
        let made = replicas(&engine).await.create_replica(in_tank(1, 16 << 20)).await;
        made.expect("it is made");
    });
    let name = replica(1).to_string();
    let told = |family: &str, operation: &str| {
        let labels = [("replica", name.as_str()), ("operation", operation)];
        scrape(&address).value(&format!("pollux_engine_replica_{family}"), &labels)
    };
    let port = threads.port(&engine, 1, "target");
    // To promise is to write, too.
    let before = told("operations_total", "write").expect("it is open");
    let wrote = threads.promised(&port, 5, |granted| async move {
        for block in 64..64 + WRITES {
            write(&granted.session, block, 1).await.expect("it is written");
        }
        granted.session.flush().await
    });
    assert_eq!(wrote, Ok(Ok(())));
    let writes = told("operations_total", "write").expect("it is open") - before;
    assert!((WRITES as f64..WRITES as f64 + 8.0).contains(&writes), "{writes}");
    assert!(told("bytes_total", "write") >= Some(WRITES as f64 * BLOCK_BYTES));
    assert!(told("operation_seconds_count", "flush") >= Some(1.0));
    assert_eq!(told("errors_total", "write"), Some(0.0));
    threads.runtime.block_on(async {
        let removing = RemoveReplicaRequest {
            replica: name.clone(),
        };
        let removed = replicas(&engine).await.remove_replica(removing).await;
        assert!(removed.expect("it answers").into_inner().removed);
    });
    assert_eq!(told("operations_total", "write"), None);
    engine.stop();
}

#[test]
fn an_address_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one").to_string();
    let output = run(&[
        "serve",
        "malloc:///m?size=16MiB",
        "--nvmf",
        "127.0.0.1:0",
        "--http",
        &address,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output).contains(&format!("cannot listen at {address}")),
        "{}",
        errors(&output)
    );
}
