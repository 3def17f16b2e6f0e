//! An engine that cannot start says what, where, and how to mend it, in one line, and leaves with an error.

use std::net::TcpListener;

use crate::common::{EngineProcess, start_error, write};

const DEVICE: &str = "null:///a?size=1MiB";
const ANY_PORT: [&str; 2] = ["--nvmf", "127.0.0.1:0"];

/// The one line of an error that stops an engine, which names all of `parts`.
#[track_caller]
fn expect(arguments: &[&str], parts: &[&str]) {
    let mut all = ANY_PORT.to_vec();
    all.extend(arguments);
    let text = start_error(&all, 1);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in: {}", lines[0]);
    }
}

#[test]
fn nothing_to_serve() {
    expect(&[], &["nothing to serve", "malloc:///", "--grpc"]);
}

#[test]
fn uris_that_make_no_sense() {
    expect(&["demo"], &["demo", "SCHEME:///NAME"]);
    expect(&["disk:///a?size=1MiB"], &["unknown scheme", "disk", "malloc"]);
    expect(
        &["null:///a?size=1MiB&colour=red"],
        &["unknown parameter", "colour", "size"],
    );
    expect(&["null:///a"], &["size", "missing"]);
    expect(&["null:///a?size=big"], &["size", "big", "512MiB"]);
    expect(&["null:///a?size=1MiB&block=1000"], &["1000", "512 or 4096"]);
    expect(&["null:///a?size=1MiB&size=2MiB"], &["size", "more than once"]);
    expect(&[DEVICE, DEVICE], &["already", "namespace 1"]);
}

#[test]
fn files_that_cannot_be_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| format!("uring://{}", directory.path().join(name).display());
    let small = write(directory.path(), "small", "x");
    let gone = at("gone");
    expect(&[&gone], &["gone", "does not exist", "size"]);
    let nowhere = format!("{}?size=1MiB", at("no/where"));
    expect(&[&nowhere], &["no/where", "directory"]);
    expect(&[&at("small")], &[&small, "4096"]);
    expect(
        &["uring:///proc/self"],
        &["/proc/self", "neither a file nor a block device"],
    );
}

#[test]
fn names_that_hosts_could_not_tell_apart() {
    expect(&[DEVICE, "malloc:///a?size=1MiB"], &["\"a\"", "namespace 1"]);
}

#[test]
fn addresses_that_cannot_be_listened_on() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let port = address.rsplit(':').next().expect("a port");
    let text = start_error(&["--nvmf", &address, DEVICE], 1);
    for part in ["cannot listen", &address, "in use", "ss -ltnp", port] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }

    // An address for documentation is no machine's own (RFC 5737).
    let text = start_error(&["--nvmf", "192.0.2.1:4420", DEVICE], 1);
    assert!(
        text.contains("192.0.2.1:4420") && text.contains("ip -brief address"),
        "{text}"
    );
}

#[test]
fn cores_that_are_not_there() {
    expect(&["--cores", "9999", DEVICE], &["core 9999", "choose from "]);
}

#[test]
fn settings_that_are_out_of_bounds() {
    expect(&["--memory", "1MiB", DEVICE], &["reactors.memory", "8MiB"]);
    expect(
        &["--drain-timeout-ms", "0", DEVICE],
        &["drain_timeout_ms", "1 to"],
    );
    expect(&["--log-level", "much=loud", DEVICE], &["much=loud", "warn"]);
}

#[test]
fn files_that_make_no_sense() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str, text: &str| write(directory.path(), name, text);

    let unknown = path("unknown.toml", "[reactors]\nspin_us = 1\nspins = 2\n");
    expect(&["--config", &unknown], &["unknown.toml:3:1", "spins", "spin_us"]);

    let broken = path("broken.toml", "[reactors\n");
    expect(&["--config", &broken], &["broken.toml:1:"]);

    let value = path("value.toml", "\n[log]\nformat = \"xml\"\n");
    expect(&["--config", &value], &["value.toml:3:", "xml", "json"]);

    let missing = directory.path().join("missing.toml");
    let missing = missing.to_str().expect("UTF-8");
    expect(&["--config", missing], &["missing.toml", "No such file"]);

    expect(&["--config", "/dev/zero"], &["/dev/zero", "longer than"]);
}

#[test]
fn control_interfaces_that_cannot_be() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(directory.path(), "file", "precious");
    expect(
        &["--grpc", &format!("unix:{file}"), DEVICE],
        &["file", "remove", "--grpc"],
    );
    assert_eq!(
        std::fs::read_to_string(&file).expect("it is still there"),
        "precious"
    );

    expect(
        &["--grpc", "unix:/proc/engine.sock", DEVICE],
        &["/proc/engine.sock", "--grpc"],
    );

    let engine = EngineProcess::start(&[DEVICE]);
    expect(
        &["--grpc", &engine.control(), DEVICE],
        &["in use", "another engine"],
    );
    engine.stop();
}

#[test]
fn usage_errors_have_a_code_of_their_own() {
    for arguments in [
        &["--cores", "1,1", DEVICE][..],
        &["--cores", "a", DEVICE],
        &["--nvmf", "localhost", DEVICE],
        &["--grpc", "0.0.0.0:4430", DEVICE],
        &["--idle", "never", DEVICE],
        &["--memory", "64M", DEVICE],
        &["--unknown", DEVICE],
    ] {
        let text = start_error(arguments, 2);
        assert!(text.starts_with("error: "), "{text}");
    }
    let text = start_error(&["--grpc", "0.0.0.0:4430", DEVICE], 2);
    assert!(
        text.contains("mutual TLS") && text.contains("127.0.0.1:4430"),
        "{text}"
    );
}

#[test]
fn errors_are_json_where_that_was_asked_for() {
    let text = start_error(&["--log-format", "json", "--nvmf", "127.0.0.1:0", "disk:///a"], 1);
    let record: serde_json::Value = serde_json::from_str(text.trim_end()).expect("one JSON object");
    assert_eq!(record["level"], "ERROR");
    assert!(
        record["message"]
            .as_str()
            .expect("a text")
            .contains("unknown scheme")
    );
}
