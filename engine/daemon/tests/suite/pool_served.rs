//! Volumes of pools as hosts see them.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pollux_api::engine::v1::GetStatisticsRequest;
use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use pollux_engine::client;
use pollux_hugepages::Buffer;

use crate::common::content::{BLOCK_BYTES, content, read, read_all, write};
use crate::common::host::{Host, block_on};
use crate::common::pool::{PoolFile, json, refused, succeeded};
use crate::common::{EngineProcess, answer, cores, errors, run};

const POOL_BYTES: u64 = 256 << 20;
const BLOCKS: u64 = 512;

const IMPATIENT: &str = "?reconnect=off&timeout=5s";

fn serve(file: &PoolFile, more: &[&str]) -> EngineProcess {
    let uri = file.uri();
    EngineProcess::start(&[&["--pool", &uri, "pool://tank/db"], more].concat())
}

fn write_all(host: &Host, version: u64) {
    host.run(move |device| async move {
        for block in 0..BLOCKS {
            write(&device, block, version).await.expect("written");
        }
        device.flush().await.expect("flushed");
    });
}

fn versions(host: &Host) -> Vec<u64> {
    host.run(|device| async move { read_all(&device, BLOCKS).await.expect("it reads") })
}

/// A file that may only be read can be looked at.
#[test]
fn a_pool_on_a_device_that_is_read_only_is_opened_read_only() {
    let file = PoolFile::with_volume(POOL_BYTES, "64MiB");
    let before = std::fs::read(file.path()).expect("it can be read");
    let uri = format!("{}&readonly=true", file.uri());
    let listed = succeeded(&run(&["volume", "list", "tank", "--pool", &uri]));
    assert!(listed.contains("db"), "{listed}");
    let errors = refused(&run(&["volume", "create", "tank/more", "1MiB", "--pool", &uri]));
    assert!(errors.contains("read-only"), "{errors}");
    assert!(
        before == std::fs::read(file.path()).expect("it can be read"),
        "something was written"
    );
    file.check();
}

#[test]
fn data_and_identity_are_there_after_a_restart() {
    let file = PoolFile::with_volume(POOL_BYTES, "64MiB");
    let mut engine = serve(&file, &[]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    assert_eq!(host.device().geometry().bytes(), 64 << 20);
    write_all(&host, 7);
    drop(host);
    engine.stop();
    let text = file.command(&["pool", "show", "tank"]);
    assert!(text.contains("in good order"), "{text}");
    let engine_again = |parameters: &str| {
        let mut engine = serve(&file, &[]);
        let host = Host::connect(engine.listener(), parameters).expect("it connects");
        assert_eq!(versions(&host), vec![7; BLOCKS as usize]);
        drop(host);
        engine
    };
    // After an end in good order, and after a kill; by the UUID of the volume, under whatever name.
    let volume = json(&file.command(&["volume", "show", "tank/db", "-o", "json"]));
    let uuid = volume["uuid"].as_str().expect("a text").to_owned();
    engine_again(&format!("{IMPATIENT}&uuid={uuid}")).kill();
    engine_again(IMPATIENT).stop();
    file.command(&["volume", "rename", "tank/db", "other"]);
    file.command(&["volume", "rename", "tank/other", "db"]);
    engine_again(&format!("{IMPATIENT}&uuid={uuid}")).stop();
    file.check();
}

/// How many connections each reactor has.
fn connections(engine: &EngineProcess) -> Vec<u64> {
    let address = engine.control().parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let statistics = runtime.expect("a runtime").block_on(async {
        let mut client = client::connect(&address).await.expect("it listens");
        let answer = client.get_statistics(GetStatisticsRequest {}).await;
        answer.expect("counters").into_inner()
    });
    let reactors = statistics.reactors.iter();
    reactors.map(|reactor| reactor.connections).collect()
}

#[test]
fn two_reactors_serve_one_pool() {
    let usable = cores(2);
    if usable.len() < 2 {
        // Nothing to forward to on a machine of one core.
        return;
    }
    let file = PoolFile::with_volume(POOL_BYTES, "64MiB");
    let list: Vec<String> = usable.iter().map(u32::to_string).collect();
    let mut engine = serve(&file, &["--cores", &list.join(",")]);
    // Hosts are spread over the reactors of the engine.
    let hosts: Vec<Host> = (0..3)
        .map(|_| Host::connect(engine.listener(), IMPATIENT).expect("it connects"))
        .collect();
    std::thread::scope(|scope| {
        for (host, first) in hosts.iter().zip(0..) {
            scope.spawn(move || {
                host.run(move |device| async move {
                    for round in 1..=4 {
                        for block in (first..BLOCKS).step_by(3) {
                            write(&device, block, round).await.expect("written");
                            assert_eq!(read(&device, block).await, Ok(round));
                        }
                        device.flush().await.expect("flushed");
                    }
                });
            });
        }
    });
    assert!(
        connections(&engine).iter().all(|count| *count > 0),
        "every reactor has some"
    );
    let shown = succeeded(&engine.command("pool", &["show", "tank", "-o", "json"]));
    assert_eq!(json(&shown)["checksum_mismatches"], 0);
    assert_eq!(versions(&hosts[1]), vec![4; BLOCKS as usize]);
    drop(hosts);
    engine.stop();
    file.check();
}

/// Writes all blocks in order, one version after the other, until told to stop.
async fn write_rounds(
    device: Rc<dyn BlockDevice>,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<(), IoError> {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        write(&device, number % BLOCKS, number / BLOCKS + 1).await?;
        written.store(number + 1, Ordering::SeqCst);
    }
    device.flush().await
}

#[test]
fn snapshots_under_load_are_of_one_instant() {
    const SNAPSHOTS: u64 = 5;
    let file = PoolFile::with_volume(POOL_BYTES, "64MiB");
    let mut engine = serve(&file, &[]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, end) = (written.clone(), stop.clone());
    let writing = host.start(move |device| write_rounds(device, count, end));
    let mut spans = Vec::new();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| block_on(writing));
        for number in 0..SNAPSHOTS {
            let name = format!("s{number}");
            let before = written.load(Ordering::SeqCst);
            succeeded(&engine.command("volume", &["snapshot", "tank/db", &name]));
            spans.push((name, before, written.load(Ordering::SeqCst) + 1));
        }
        stop.store(true, Ordering::SeqCst);
        writing.join().expect("no panic").expect("every write succeeds");
    });
    // Live, each as a namespace of its own, which cannot be written.
    for (name, before, after) in &spans {
        let uri = format!("pool://tank/{name}");
        let added = succeeded(&engine.namespace(&["add", &uri, "-o", "json"]));
        let added = json(&added)[0].clone();
        assert_eq!(added["read_only"], true);
        let parameters = format!("?nsid={}&reconnect=off&timeout=5s", added["namespace_id"]);
        let snapshot = Host::connect(engine.listener(), &parameters).expect("it connects");
        let found = versions(&snapshot);
        // So many writes, one after the other, and no other state.
        let number: u64 = found.iter().sum();
        assert!(
            (*before..=*after).contains(&number),
            "{name}: {number} of {before} to {after}"
        );
        for (block, version) in (0..).zip(&found) {
            let expected = (number + BLOCKS - 1 - block) / BLOCKS;
            assert_eq!(*version, expected, "{name}: block {block} after {number} writes");
        }
        let denied = snapshot.run(|device| async move { write(&device, 0, 1).await });
        assert!(denied.is_err(), "a snapshot was written");
    }
    drop(host);
    engine.stop();
    file.check();
}

#[test]
fn changed_ranges_are_told() {
    let file = PoolFile::with_volume(POOL_BYTES, "64MiB");
    let mut engine = serve(&file, &[]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    let put = |blocks: std::ops::Range<u64>, version| {
        host.run(move |device| async move {
            for block in blocks {
                write(&device, block, version).await.expect("written");
            }
            device.flush().await.expect("flushed");
        });
    };
    put(0..64, 1);
    succeeded(&engine.command("volume", &["snapshot", "tank/db", "monday"]));
    put(10..20, 2);
    put(5000..5001, 2);
    let diff = |arguments: &[&str]| -> Vec<(u64, u64)> {
        let all = [&["diff", "tank/db", "-o", "json"], arguments].concat();
        let text = succeeded(&engine.command("volume", &all));
        let ranges = text.lines().map(|line| {
            let range = json(line);
            let block = |field: &str| range[field].as_u64().expect("a number") / BLOCK_BYTES as u64;
            (block("offset_bytes"), block("length_bytes"))
        });
        ranges.collect()
    };
    assert_eq!(diff(&["--since", "monday"]), [(10, 10), (5000, 1)]);
    assert_eq!(diff(&[]), [(0, 64), (5000, 1)]);
    drop(host);
    engine.stop();
}

#[test]
fn a_pool_that_is_full_says_so_and_heals() {
    let file = PoolFile::with_volume(32 << 20, "64MiB");
    let mut engine = serve(&file, &[]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    let filled = host.run(|device| async move {
        let blocks = device.geometry().blocks;
        for block in (0..blocks).step_by(16) {
            let mut data = Buffer::from_heap(16 * BLOCK_BYTES);
            data.fill(1);
            if let Err(error) = device.write(block, data, false).await {
                device.flush().await.expect("flushed");
                let read = device
                    .read(0, Buffer::from_heap(BLOCK_BYTES))
                    .await
                    .expect("it reads");
                assert!(read.iter().all(|byte| *byte == 1));
                // What is there can be written, and given up.
                write(&device, 0, 5).await.expect("overwritten");
                device.deallocate(16, 160).await.expect("deallocated");
                device.flush().await.expect("flushed");
                write(&device, blocks - 1, 6).await.expect("there is room again");
                assert_eq!(read_one(&device, blocks - 1).await, 6);
                return error;
            }
        }
        unreachable!("64 MiB in 32 MiB")
    });
    assert_eq!(filled, IoError::CapacityExceeded);
    drop(host);
    engine.stop();
    file.check();
}

#[test]
fn a_device_goes_on_leaving_when_the_pool_is_opened_again() {
    let files = [PoolFile::new(POOL_BYTES), PoolFile::new(POOL_BYTES)];
    let [first, second] = files.each_ref().map(PoolFile::uri);
    let both = format!("{first},{second}");
    let on = |devices: &str, arguments: &[&str]| run(&[arguments, &["--pool", devices]].concat());
    succeeded(&run(&["pool", "create", "tank", &first, &second]));
    succeeded(&on(&both, &["volume", "create", "tank/db", "64MiB"]));
    let serve = || {
        let mut engine = EngineProcess::start(&["--pool", &both, "pool://tank/db"]);
        let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
        (engine, host)
    };
    let (engine, host) = serve();
    write_all(&host, 7);
    drop(host);
    engine.stop();
    // Nothing of it can be read but for labels and journal.
    let broken = format!(
        "faulty:///uring://{}?inner.block=4096&read.error=media-read;blocks=1056-65500",
        files[0].path().display()
    );
    let failed = on(&format!("{broken},{second}"), &["pool", "remove", "tank", "0"]);
    refused(&failed);
    let shown = json(&succeeded(&on(&both, &["pool", "show", "tank", "-o", "json"])));
    assert_eq!(shown["members"].as_array().map(Vec::len), Some(2), "{shown}");

    let (mut engine, host) = serve();
    engine.wait_for("a device was removed");
    assert_eq!(versions(&host), vec![7; BLOCKS as usize]);
    drop(host);
    engine.stop();
    let checked = succeeded(&on(&second, &["pool", "check", "tank"]));
    assert!(checked.contains("is sound"), "{checked}");
}

#[test]
fn what_cannot_be_read_is_given_up_when_that_is_said() {
    let files = [PoolFile::new(POOL_BYTES), PoolFile::new(POOL_BYTES)];
    let [first, second] = files.each_ref().map(PoolFile::uri);
    let both = format!("{first},{second}");
    succeeded(&run(&["pool", "create", "tank", &first, &second]));
    succeeded(&run(&["volume", "create", "tank/db", "64MiB", "--pool", &both]));
    let serve = |devices: &str| {
        let mut engine = EngineProcess::start(&["--pool", devices, "pool://tank/db"]);
        let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
        (engine, host)
    };
    let (engine, host) = serve(&both);
    write_all(&host, 7);
    drop(host);
    engine.stop();
    // Nothing of it can be read but for labels and journal.
    let broken = format!(
        "faulty:///uring://{}?inner.block=4096&read.error=media-read;blocks=1056-65500,{second}",
        files[0].path().display()
    );
    let remove = ["pool", "remove", "tank", "0", "--pool", &broken];
    let errors = refused(&run(&remove));
    assert!(errors.contains("--lose-unreadable"), "{errors}");
    let both_asked = run(&[&remove[..], &["--call-off", "--lose-unreadable"]].concat());
    assert_eq!(both_asked.status.code(), Some(2));
    let told = succeeded(&run(&[&remove[..], &["--lose-unreadable"]].concat()));
    assert!(told.contains("could not be read, and are lost"), "{told}");

    let (engine, host) = serve(&second);
    let read_each = || {
        host.run(|device| async move {
            let mut found = Vec::new();
            for block in 0..BLOCKS {
                found.push(read(&device, block).await);
            }
            found
        })
    };
    let found = read_each();
    let lost = found.iter().filter(|found| found.is_err()).count();
    for found in found {
        assert!(matches!(found, Ok(7) | Err(IoError::MediaRead)), "{found:?}");
    }
    assert!((1..BLOCKS as usize).contains(&lost), "{lost}");
    assert!(
        told.contains(&format!("{lost} blocks of 4 KiB")),
        "{lost}, and {told}"
    );
    write_all(&host, 8);
    assert!(read_each().into_iter().all(|found| found == Ok(8)));
    let report = json(&succeeded(
        &engine.command("pool", &["scrub", "tank", "-o", "json"]),
    ));
    assert_eq!(report["bad_block_count"], 0, "{report}");
    drop(host);
    engine.stop();
    let checked = succeeded(&run(&["pool", "check", "tank", "--pool", &second]));
    assert!(checked.contains("is sound"), "{checked}");
}

async fn read_one(device: &Rc<dyn BlockDevice>, block: u64) -> u64 {
    read(device, block).await.expect("it reads")
}

#[test]
fn a_scrub_finds_what_a_drive_has_spoiled() {
    let file = PoolFile::with_volume(POOL_BYTES, "64MiB");
    let mut engine = serve(&file, &[]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    write_all(&host, 3);
    // While it is in use.
    let report = succeeded(&engine.command("pool", &["scrub", "tank", "--rate", "1GiB", "-o", "json"]));
    let report = json(&report);
    assert_eq!(
        (&report["blocks"], &report["bad_block_count"]),
        (&BLOCKS.into(), &0.into())
    );
    let shown = json(&succeeded(
        &engine.command("pool", &["show", "tank", "-o", "json"]),
    ));
    let last = &shown["last_scrub"];
    assert_eq!(last["report"]["blocks"], BLOCKS, "{last}");
    assert!(
        last["ended_unix_s"].as_u64() >= last["started_unix_s"].as_u64(),
        "{last}"
    );
    let volume = json(&succeeded(
        &engine.command("volume", &["show", "tank/db", "-o", "json"]),
    ));
    let usage = &volume["usage"];
    assert_eq!(usage["used_bytes"], BLOCKS * BLOCK_BYTES as u64, "{usage}");
    assert_eq!(
        (&usage["unique_bytes"], &usage["shared_bytes"]),
        (&usage["used_bytes"], &0.into())
    );
    drop(host);
    engine.stop();

    // A bit of block 77, wherever it is.
    let mut bytes = std::fs::read(file.path()).expect("readable");
    let wanted = content(77, 3);
    let at = bytes.chunks(BLOCK_BYTES).position(|block| block == wanted);
    bytes[at.expect("it is there") * BLOCK_BYTES + 1000] ^= 4;
    std::fs::write(file.path(), &bytes).expect("written");
    let uri = file.uri();
    let output = run(&["pool", "scrub", "tank", "--pool", &uri]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let text = answer(&output);
    let offset = 77 * BLOCK_BYTES;
    assert!(
        text.contains(&format!("tank/db: 4 KiB at {offset} are lost")),
        "{text}"
    );
    assert!(text.contains("512 blocks of data compared, 1 bad"), "{text}");

    // A host is told, and given no such data.
    let mut engine = serve(&file, &[]);
    let host = Host::connect(engine.listener(), IMPATIENT).expect("it connects");
    host.run(|device| async move {
        let error = read(&device, 77).await.expect_err("it is lost");
        assert!(
            matches!(
                error,
                IoError::MediaRead | IoError::ChecksumMismatch | IoError::Nvme(_)
            ),
            "{error}"
        );
        assert_eq!(read(&device, 78).await, Ok(3));
        write(&device, 77, 9).await.expect("written anew");
        assert_eq!(read(&device, 77).await, Ok(9));
    });
    let shown = json(&succeeded(
        &engine.command("pool", &["show", "tank", "-o", "json"]),
    ));
    assert_ne!(shown["checksum_mismatches"], 0);
    drop(host);
    engine.stop();
    let report = file.command(&["pool", "scrub", "tank"]);
    assert!(report.contains("512 blocks of data compared, 0 bad"), "{report}");
}
