//! What was acknowledged and flushed is there, however an engine ends; and one file has one engine.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pollux_device::events::DeviceEvent;
use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use tokio_stream::StreamExt;

use crate::common::content::{BLOCK_BYTES, read, version, write};
use crate::common::host::{Host, block_on};
use crate::common::{EngineProcess, PATIENCE};

const BLOCKS: u64 = 1024;

/// Parameters of a host that gives up soon when its engine is gone for good.
const IMPATIENT: &str = "?reconnect=off&timeout=5s";

/// A file that engines serve.
struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn uri(&self) -> String {
        format!(
            "uring://{}?size={}",
            self.path().display(),
            BLOCKS * BLOCK_BYTES as u64
        )
    }

    /// The version of each block, read from the file itself.
    fn versions(&self) -> Vec<u64> {
        let file = std::fs::File::open(self.path()).expect("it is there");
        (0..BLOCKS)
            .map(|block| {
                let mut bytes = vec![0; BLOCK_BYTES];
                file.read_exact_at(&mut bytes, block * BLOCK_BYTES as u64)
                    .expect("a whole block");
                version(block, &bytes)
            })
            .collect()
    }
}

/// How far a writer came: rounds over all blocks, in order.
#[derive(Default)]
struct Written {
    /// Writes that were acknowledged.
    acknowledged: AtomicU64,
    /// Writes that a completed flush covers.
    flushed: AtomicU64,
}

/// What block and version the write of this number is.
fn nth(write: u64) -> (u64, u64) {
    (write % BLOCKS, write / BLOCKS + 1)
}

/// Writes for ever, one after the other with a flush now and then, until an error.
async fn write_on(device: Rc<dyn BlockDevice>, written: Arc<Written>) -> IoError {
    let mut number = 0;
    loop {
        let (block, version) = nth(number);
        if let Err(error) = write(&device, block, version).await {
            return error;
        }
        number += 1;
        written.acknowledged.store(number, Ordering::SeqCst);
        if number.is_multiple_of(16) {
            if let Err(error) = device.flush().await {
                return error;
            }
            written.flushed.store(number, Ordering::SeqCst);
        }
    }
}

/// Every block has at least the version that the first `count` writes gave it, and at most one write is new.
fn expect(versions: &[u64], count: u64) {
    let mut wanted = vec![0; BLOCKS as usize];
    for number in 0..count {
        let (block, version) = nth(number);
        wanted[block as usize] = version;
    }
    for (block, (found, wanted)) in versions.iter().zip(wanted).enumerate() {
        assert!(
            *found >= wanted,
            "block {block} has version {found}, and {wanted} was promised"
        );
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a writer, waits until it has come some way, ends the engine by `end`, and returns how far it came.
fn interrupted(disk: &Disk, end: impl FnOnce(EngineProcess)) -> Arc<Written> {
    let mut engine = EngineProcess::start(&[&disk.uri()]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    let written = Arc::new(Written::default());
    let there = written.clone();
    let writer = host.start(move |device| write_on(device, there));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| block_on(writer));
        wait_until("the writer comes some way", || {
            written.flushed.load(Ordering::SeqCst) > BLOCKS + 100
        });
        end(engine);
        writer.join().expect("the writer ends with an error");
    });
    written
}

#[test]
fn sigterm_during_writes_loses_nothing_that_was_acknowledged() {
    let disk = Disk::new();
    let written = interrupted(&disk, EngineProcess::stop);
    // The engine flushed every device before it left: not only what was flushed is there, but all of it.
    expect(&disk.versions(), written.acknowledged.load(Ordering::SeqCst));
}

#[test]
fn sigkill_during_writes_loses_nothing_that_was_flushed() {
    let disk = Disk::new();
    let written = interrupted(&disk, EngineProcess::kill);
    expect(&disk.versions(), written.flushed.load(Ordering::SeqCst));

    let mut engine = EngineProcess::start(&[&disk.uri()]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    let served = host.run(|device| async move {
        let mut versions = Vec::new();
        for block in 0..BLOCKS {
            versions.push(read(&device, block).await.expect("it reads"));
        }
        versions
    });
    assert_eq!(served, disk.versions());
    expect(&served, written.flushed.load(Ordering::SeqCst));
    drop(host);
    engine.stop();
}

#[test]
fn a_host_finds_its_engine_again() {
    let disk = Disk::new();
    // An address of this test alone: while its engine is away nobody else takes the port.
    let [.., a, b, c] = std::process::id().to_be_bytes();
    let own = SocketAddr::from(([127, 64 | a, b, c], 0));
    let mut engine = EngineProcess::start_at(own, &[&disk.uri()]);
    let listener = engine.listener();
    let host = Host::connect(listener, "?reconnect=100ms&loss_timeout=60s").expect("it connects");
    host.run(|device| async move {
        write(&device, 7, 1).await.expect("written");
        device.flush().await.expect("flushed");
    });
    engine.kill();

    let reading = host.start(|device| async move { read(&device, 7).await });
    let engine = std::thread::scope(|scope| {
        let reading = scope.spawn(|| block_on(reading));
        let again = EngineProcess::start_at(listener, &[&disk.uri()]);
        let version = reading
            .join()
            .expect("no panic")
            .expect("it reads once the engine is back");
        assert_eq!(version, 1);
        again
    });
    drop(host);
    engine.stop();
}

#[test]
fn one_file_has_one_engine() {
    let disk = Disk::new();
    let engine = EngineProcess::start(&[&disk.uri()]);
    let uri = disk.uri();
    let text = crate::common::start_error(&["--nvmf", "127.0.0.1:0", &uri], 1);
    let path = disk.path();
    assert!(text.contains(path.to_str().expect("UTF-8")), "{text}");
    assert_eq!(
        text.lines().filter(|line| line.starts_with("error: ")).count(),
        1,
        "{text}"
    );
    // Nor does the same engine open it twice, by another name.
    let link = disk.directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let output = engine.namespace(&["add", &format!("uring://{}", link.display())]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        crate::common::errors(&output)
    );
    engine.stop();
    // Once it has gone, another may.
    EngineProcess::start(&[&disk.uri()]).stop();
}

#[test]
fn an_engine_serves_what_another_serves() {
    let disk = Disk::new();
    let mut storage = EngineProcess::start(&["malloc:///scratch?size=1MiB", &disk.uri()]);
    let listener = storage.listener();
    let uri = |id| format!("nvmf://{listener}/nqn.2026-11.io.pollux:serve?nsid={id}");
    let mut relay = EngineProcess::start(&[&uri(2), &uri(1)]);
    let host = Host::connect(relay.listener(), "?nsid=1&reconnect=off&timeout=5s").expect("it connects");
    host.run(|device| async move {
        assert_eq!(device.geometry().blocks, BLOCKS);
        write(&device, 5, 77).await.expect("written");
        device.flush().await.expect("flushed");
        assert_eq!(read(&device, 5).await, Ok(77));
    });
    assert_eq!(disk.versions()[5], 77);
    drop(host);
    relay.stop();
    storage.stop();
}

#[test]
fn hosts_see_a_namespace_grow() {
    let disk = Disk::new();
    let mut engine = EngineProcess::start(&[&disk.uri()]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    let mut events = host.device().subscribe();
    let output = engine.namespace(&["resize", "1", "8MiB"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        crate::common::errors(&output)
    );
    assert_eq!(block_on(events.next()), Some(DeviceEvent::Resized));
    assert_eq!(host.device().geometry().bytes(), 8 << 20);
    assert_eq!(
        std::fs::metadata(disk.path()).expect("it is there").len(),
        8 << 20
    );
    host.run(|device| async move {
        let last = device.geometry().blocks - 1;
        write(&device, last, 3).await.expect("written");
        assert_eq!(read(&device, last).await, Ok(3));
    });
    drop(host);
    engine.stop();
}

#[test]
fn hosts_lose_a_namespace_that_is_removed() {
    let disk = Disk::new();
    let mut engine = EngineProcess::start(&[&disk.uri()]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    host.run(|device| async move { write(&device, 3, 9).await.expect("written") });
    let output = engine.namespace(&["remove", "1"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        crate::common::errors(&output)
    );
    let error = host.run(|device| async move { read(&device, 3).await });
    error.expect_err("there is nothing to read from");
    // The file is free for another engine, with what was written.
    assert_eq!(disk.versions()[3], 9);
    wait_until("the file is let go of", || {
        let uri = disk.uri();
        let output = engine.namespace(&["add", &uri]);
        output.status.success()
    });
    drop(host);
    engine.stop();
}
