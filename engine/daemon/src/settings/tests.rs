use super::*;
use std::path::Path;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::from_toml(Path::new("engine.toml"), text)
}

fn error(text: &str) -> String {
    let error = parse(text).expect_err(text).to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(parse("").expect("an empty file is fine"), Settings::default());
    Settings::default().check().expect("the defaults are in bounds");
}

#[test]
fn every_field_is_read() {
    let settings = parse(
        r#"
        [reactors]
        cores = "1,3-4"
        idle = "poll"
        spin_us = 7
        memory = "128MiB"
        [nvmf]
        listen = ["0.0.0.0:4420", "[::1]:0"]
        subsystem = "nqn.2026-11.io.pollux:other"
        [nbd]
        listen = ["unix:/run/pollux/nbd.sock", "127.0.0.1:10809"]
        [grpc]
        listen = "unix:/run/pollux/engine.sock"
        [shutdown]
        drain_timeout_ms = 500
        [log]
        format = "json"
        level = "debug"
        [nvmf.hosts]
        allow_any = false
        allowed = ["nqn.2026-11.io.pollux:host"]
        [nvmf.limits]
        queue_depth_max = 128
        [[pools]]
        devices = ["uring:///a", "uring:///b"]
        cache = "1GiB"
        dirty = "32MiB"
        commit_interval_ms = 50
        [[replicas]]
        uri = "uring:///c"
        [[namespaces]]
        uri = "null:///a?size=1GiB"
        id = 7
        uuid = "6c1b0a7e-7d3c-4c58-9a5e-0f1d2c3b4a59"
        qos.write.bytes = "10MiB"
        "#,
    )
    .expect("all of it is known");
    assert_eq!(settings.reactors.cores.as_slice(), [1, 3, 4]);
    assert_eq!(settings.reactors.idle, IdleSettings::Poll);
    assert_eq!(settings.reactors.spin_us, 7);
    assert_eq!(settings.reactors.memory, ByteSize(128 << 20));
    assert_eq!(settings.nvmf.listen.len(), 2);
    assert_eq!(settings.nvmf.subsystem, "nqn.2026-11.io.pollux:other");
    assert_eq!(
        settings.grpc.listen.map(|address| address.to_string()),
        Some("unix:/run/pollux/engine.sock".to_owned())
    );
    let nbd: Vec<String> = settings.nbd.listen.iter().map(ToString::to_string).collect();
    assert_eq!(nbd, ["unix:/run/pollux/nbd.sock", "127.0.0.1:10809"]);
    assert_eq!(settings.shutdown.drain_timeout_ms, 500);
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.log.level, "debug");
    assert_eq!(settings.nvmf.hosts.allowed, ["nqn.2026-11.io.pollux:host"]);
    assert_eq!(settings.nvmf.limits.queue_depth_max, 128);
    assert_eq!(settings.pools[0].devices, ["uring:///a", "uring:///b"]);
    assert_eq!(settings.pools[0].cache, ByteSize(1 << 30));
    assert_eq!(settings.pools[0].dirty, ByteSize(32 << 20));
    assert_eq!(settings.pools[0].commit_interval_ms, 50);
    assert_eq!(settings.replicas[0].uri, "uring:///c");
    assert_eq!(settings.namespaces[0].id, Some(7));
    assert!(settings.namespaces[0].uuid.is_some());
    let qos = settings.namespaces[0].qos.as_ref().expect("it is limited");
    assert_eq!(qos.write.bytes, ByteSize(10 << 20));
}

#[test]
fn sizes_and_cores_can_be_numbers() {
    let settings = parse("[reactors]\nmemory = 16777216\ncores = [2, 0]").expect("numbers are fine");
    assert_eq!(settings.reactors.memory, ByteSize(16 << 20));
    assert_eq!(settings.reactors.cores.as_slice(), [2, 0]);
}

#[test]
fn what_is_written_reads_the_same() {
    let mut settings = Settings::default();
    settings
        .namespaces
        .push(NamespaceSettings::new("malloc:///a?size=1GiB"));
    settings.grpc.listen = Some("127.0.0.1:4430".parse().expect("an address"));
    let text = toml::to_string(&settings).expect("settings can be written");
    assert_eq!(parse(&text).expect("and read"), settings);
}

#[test]
fn unknown_keys_are_told_with_their_line() {
    let message = error("[reactors]\ncores = [0]\nspin = 7\n");
    assert!(
        message.starts_with("engine.toml:3:1: unknown key `spin`"),
        "{message}"
    );
    assert!(message.contains("spin_us"), "{message}");
    assert!(error("[reactor]\n").starts_with("engine.toml:1:2: unknown key `reactor`"));
}

#[test]
fn bad_values_are_told_with_their_line() {
    for (text, line, part) in [
        ("[reactors]\nmemory = \"64M\"", 2, "not a size"),
        ("[reactors]\nmemory = -1", 2, "-1"),
        ("\n\n[reactors]\ncores = [0, 0]", 4, "twice"),
        ("[reactors]\nidle = \"never\"", 2, "adaptive"),
        ("[grpc]\nlisten = \"0.0.0.0:1\"", 2, "mutual TLS"),
        ("[nvmf]\nlisten = [\"here\"]", 2, "ADDRESS:PORT"),
        ("[nbd]\nlisten = [\"here\"]", 2, "unix:PATH"),
        ("[[namespaces]]\nid = 1", 1, "uri"),
        ("[[pools]]\ncache = 1", 1, "devices"),
        ("[log]\nformat = ", 2, ""),
    ] {
        let message = error(text);
        assert!(message.starts_with(&format!("engine.toml:{line}:")), "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn limits_out_of_bounds_are_told() {
    let settings = parse("[nvmf.limits]\nio_queues_max = 0").expect("it is a number");
    let error = settings.check().expect_err("out of bounds").to_string();
    assert!(
        error.contains("nvmf.limits") && error.contains("io_queues_max"),
        "{error}"
    );
}

#[test]
fn values_out_of_bounds_are_told() {
    for (text, field) in [
        ("[reactors]\nmemory = \"1MiB\"", "reactors.memory"),
        ("[reactors]\nspin_us = 2000000", "reactors.spin_us"),
        ("[shutdown]\ndrain_timeout_ms = 0", "shutdown.drain_timeout_ms"),
        ("[nvmf]\nlisten = []", "nvmf.listen"),
        ("[[namespaces]]\nuri = \"null:///a\"\nid = 0", "namespaces.id"),
        ("[[pools]]\ndevices = []", "pools.devices"),
        (
            "[[pools]]\ndevices = [\"null:///a\"]\ncache = \"2TiB\"",
            "pools.cache",
        ),
        ("[[pools]]\ndevices = [\"null:///a\"]\ndirty = 1", "pools.dirty"),
        (
            "[[pools]]\ndevices = [\"null:///a\"]\ncommit_interval_ms = 0",
            "pools.commit_interval_ms",
        ),
    ] {
        let checked = parse(text).expect(text).check();
        assert!(
            matches!(checked, Err(SettingsError::Value { field: found, .. }) if found == field),
            "{text}"
        );
    }
}

/// The annotated example shows every key with its default, so that it can never tell something old.
#[test]
fn the_example_shows_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pollux-engine.toml");
    let text = std::fs::read_to_string(&path).expect("the example is there");
    assert_eq!(
        Settings::from_toml(&path, &text).expect("it is valid"),
        Settings::default()
    );

    // With the commented-out keys switched on, it has every key there is.
    let switched_on: String = text
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let complete = Settings::from_toml(&path, &switched_on).expect("what is commented out is valid too");
    let written: toml::Table = toml::Table::try_from(&complete).expect("settings can be written");
    let shown: toml::Table = switched_on.parse().expect("it is TOML");
    assert_eq!(
        keys("", &toml::Value::Table(written)),
        keys("", &toml::Value::Table(shown))
    );
}

/// The names of all keys of a file, with their tables.
fn keys(prefix: &str, value: &toml::Value) -> std::collections::BTreeSet<String> {
    match value {
        toml::Value::Table(table) => table
            .iter()
            .flat_map(|(name, value)| keys(&format!("{prefix}.{name}"), value))
            .collect(),
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            items.iter().flat_map(|item| keys(prefix, item)).collect()
        }
        _ => std::iter::once(prefix.to_owned()).collect(),
    }
}
