//! Start, serve, stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{EngineProcess, answer, program, run};

const DEVICE: &str = "malloc:///a?size=1MiB";

#[test]
fn signals_end_it_in_good_order() {
    for signal in ["TERM", "INT"] {
        let mut engine = EngineProcess::start(&[DEVICE]);
        engine.signal(signal);
        assert_eq!(engine.wait().code(), Some(0));
        let log = engine.rest_of_log();
        let last = log.last().expect("it said something");
        assert_eq!(last["message"], "stopped; every device is flushed");
    }
}

#[test]
fn a_signal_and_its_echo_are_one() {
    let mut engine = EngineProcess::start(&[DEVICE]);
    engine.signal("TERM");
    engine.signal("TERM");
    assert_eq!(engine.wait().code(), Some(0));
}

#[test]
fn it_ends_in_good_order_with_hosts_that_say_nothing() {
    let mut engine = EngineProcess::start(&[DEVICE]);
    let listener = engine.listener();
    let mut hosts: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(listener).expect("it listens"))
        .collect();
    engine.signal("TERM");
    assert_eq!(engine.wait().code(), Some(0));
    for host in &mut hosts {
        host.set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        // The end of the stream or a reset, and no data.
        assert_eq!(host.read(&mut [0; 64]).unwrap_or(0), 0);
    }
}

#[test]
fn every_log_record_is_an_object_with_the_same_fields() {
    let mut engine = EngineProcess::start(&[DEVICE, "null:///b?size=1GiB"]);
    let serving = engine.wait_for("serving");
    assert_eq!(serving["namespaces"], 2);
    assert_eq!(serving["process"], engine.id());
    assert_eq!(serving["subsystem"], "nqn.2026-11.io.pollux:serve");
    engine.signal("TERM");
    engine.wait();
    for record in engine.rest_of_log() {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(record[field].is_string(), "{field} is missing: {record}");
        }
    }
}

#[test]
fn people_are_told_how_to_connect() {
    let mut child = program()
        .args([
            "serve",
            DEVICE,
            "--nvmf",
            "127.0.0.1:0",
            "--nvmf",
            "[::1]:0",
            "--memory",
            "16MiB",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program can be started");
    let stdout = child.stdout.take().expect("it was asked for");
    let mut text = String::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("UTF-8");
        text.push_str(&line);
        text.push('\n');
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    let connects: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("nvme connect"))
        .collect();
    assert_eq!(connects.len(), 2, "{text}");
    for (line, address) in connects.iter().zip(["127.0.0.1", "::1"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["nvme", "connect", "-t", "tcp", "-a", told, "-s", port, "-n", nqn] = words.as_slice() else {
            panic!("{line}")
        };
        assert_eq!((*told, *nqn), (address, "nqn.2026-11.io.pollux:serve"));
        let port: u16 = port.parse().expect("a port");
        TcpStream::connect((*told, port)).expect("it listens there");
    }
    assert!(text.contains("nvme discover -t tcp -a 127.0.0.1"), "{text}");
    assert!(text.contains("malloc:///a?size=1MiB"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn it_needs_nobody_who_reads_what_it_says() {
    let mut child = program()
        .args(["serve", DEVICE, "--nvmf", "127.0.0.1:0", "--memory", "16MiB"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    drop(child.stdout.take());
    let stderr = child.stderr.take().expect("it was asked for");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    assert!(
        lines.any(|line| line.contains("namespace added")),
        "it does not serve"
    );
    let status = std::process::Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .expect("kill is there");
    assert!(status.success());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn settings_from_a_file_are_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "[nvmf]\nsubsystem = \"nqn.2026-11.io.pollux:other\"\n\
                [[namespaces]]\nuri = \"null:///x?size=1MiB\"\nid = 7\n";
    let config = crate::common::write(directory.path(), "engine.toml", text);
    let mut engine = EngineProcess::start(&["--config", &config, DEVICE]);
    assert_eq!(
        engine.wait_for("serving")["subsystem"],
        "nqn.2026-11.io.pollux:other"
    );
    let list = answer(&engine.namespace(&["list", "-o", "json"]));
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let ids: Vec<u64> = list
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|namespace| namespace["namespace_id"].as_u64())
        .collect();
    assert_eq!(ids, [1, 7]);
    engine.stop();
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let mut engine = EngineProcess::start(&[DEVICE]);
    let listener = engine.listener();
    let mut host = TcpStream::connect(listener).expect("it listens");
    // Whether all of it is taken does not matter.
    let _ = host.write_all(b"GET / HTTP/1.1\r\nHost: pollux\r\n\r\n");
    host.set_read_timeout(Some(crate::common::PATIENCE))
        .expect("a timeout");
    let mut reply = Vec::new();
    let _ = host.read_to_end(&mut reply);
    assert!(
        reply.len() < 256,
        "a termination request at most, not {} bytes",
        reply.len()
    );
    TcpStream::connect(listener).expect("it goes on");
    engine.stop();
}

#[test]
fn versions_and_help_are_there() {
    let version = answer(&run(&["version"]));
    assert_eq!(version, answer(&run(&["--version"])));
    assert!(version.starts_with("pollux-engine "), "{version}");
    assert!(answer(&run(&["serve", "--help"])).contains("--drain-timeout-ms"));
    assert_eq!(run(&[]).status.code(), Some(2));
}
