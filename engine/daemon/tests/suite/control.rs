//! The control interface, by the command line and by gRPC.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use pollux_api::control::v1::{QosLimits, QosRate};
use pollux_api::engine::v1::PoolSpaceLevel;
use pollux_api::engine::v1::engine_client::EngineClient;
use pollux_api::engine::v1::event::What;
use pollux_api::engine::v1::{
    AddNamespaceRequest, EngineState, Event, GetInfoRequest, GetStatisticsRequest, ListNamespacesRequest,
    Qos, RemoveNamespaceRequest, ResizeNamespaceRequest, SetQosRequest, WatchEventsRequest,
};
use pollux_engine::client;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::common::{EngineProcess, PATIENCE, answer, errors, run};

const DEVICE: &str = "malloc:///a?size=1MiB";

async fn connect(engine: &EngineProcess) -> EngineClient<Channel> {
    let address = engine.control().parse().expect("an address");
    client::connect(&address).await.expect("it listens")
}

/// Cores as the command line takes them.
fn list(cores: &[u32]) -> String {
    let cores: Vec<String> = cores.iter().map(u32::to_string).collect();
    cores.join(",")
}

fn reason(status: &Status) -> String {
    let details = status.get_details_error_info().expect("every error has a reason");
    assert_eq!(details.domain, pollux_api::ERROR_DOMAIN);
    details.reason
}

async fn next(events: &mut Streaming<Event>) -> What {
    let event = tokio::time::timeout(PATIENCE, events.message())
        .await
        .expect("in time");
    event
        .expect("no error")
        .expect("not the end")
        .what
        .expect("something happened")
}

#[test]
fn what_speaks_another_language_is_no_engine() {
    let mut engine = EngineProcess::start(&[DEVICE]);
    let hosts = engine.listener().to_string();
    let list = run(&["namespace", "list", "--grpc", &hosts]);
    assert_eq!(list.status.code(), Some(1));
    let told = errors(&list);
    assert!(
        told.contains(&hosts) && told.contains("another program listens there"),
        "{told}"
    );
    engine.stop();
}

#[test]
fn namespaces_come_change_and_go() {
    let engine = EngineProcess::start(&[DEVICE]);
    let list = engine.namespace(&["list"]);
    assert_eq!(list.status.code(), Some(0), "{}", errors(&list));
    assert!(answer(&list).contains(DEVICE), "{}", answer(&list));

    let added = engine.namespace(&["add", "null:///b?size=1GiB", "--id", "5", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&added.stdout).expect("JSON");
    assert_eq!(value[0]["namespace_id"], 5);
    assert_eq!(value[0]["size_bytes"], 1 << 30);

    let resized = engine.namespace(&["resize", "1", "2MiB"]);
    assert!(answer(&resized).contains("2 MiB"), "{}", errors(&resized));

    let removed = engine.namespace(&["remove", "5"]);
    assert_eq!(removed.status.code(), Some(0), "{}", errors(&removed));
    let list = engine.namespace(&["list", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert_eq!(value.as_array().map(Vec::len), Some(1));
    assert_eq!(value[0]["size_bytes"], 2 << 20);
    engine.stop();
}

#[test]
fn the_command_line_says_what_is_wrong() {
    let engine = EngineProcess::start(&[DEVICE]);
    for (arguments, part) in [
        (&["remove", "7"][..], "no namespace 7"),
        (&["resize", "1", "512KiB"], "only grow"),
        (&["resize", "1", "1000001"], "block size 4096"),
        (&["add", "disk:///x"], "unknown scheme"),
        (&["add", DEVICE], "already, as namespace 1"),
        (&["add", "null:///b?size=1MiB", "--id", "1"], "exists"),
    ] {
        let output = engine.namespace(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = errors(&output);
        assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(engine.namespace(&["remove", "0"]).status.code(), Some(2));
    engine.stop();
}

#[test]
fn an_engine_that_is_not_there_is_told() {
    let output = crate::common::run(&["namespace", "--grpc", "unix:/nonexistent/engine.sock", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let text = errors(&output);
    assert!(
        text.contains("/nonexistent/engine.sock") && text.contains("serve --grpc"),
        "{text}"
    );
}

#[tokio::test]
async fn errors_have_codes_and_reasons() {
    let engine = EngineProcess::start(&[DEVICE]);
    let mut client = connect(&engine).await;
    let add = |uri: &str, namespace_id| AddNamespaceRequest {
        uri: uri.to_owned(),
        namespace_id,
        qos: None,
    };
    for (request, code, wanted) in [
        (add("disk:///a", None), Code::InvalidArgument, "URI_INVALID"),
        (add("", None), Code::InvalidArgument, "URI_INVALID"),
        (
            add("null:///b?size=1MiB", Some(0)),
            Code::InvalidArgument,
            "NAMESPACE_ID_INVALID",
        ),
        (
            add("null:///b?size=1MiB", Some(u32::MAX)),
            Code::InvalidArgument,
            "NAMESPACE_ID_INVALID",
        ),
        (
            add("null:///b?size=1MiB", Some(1)),
            Code::AlreadyExists,
            "NAMESPACE_ID_IN_USE",
        ),
        (add(DEVICE, None), Code::AlreadyExists, "DEVICE_IN_USE"),
        (add(DEVICE, Some(9)), Code::AlreadyExists, "DEVICE_IN_USE"),
    ] {
        let status = client
            .add_namespace(request.clone())
            .await
            .expect_err("it is wrong");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, wanted),
            "{request:?}"
        );
    }
    let remove = RemoveNamespaceRequest { namespace_id: 3 };
    let status = client.remove_namespace(remove).await.expect_err("there is none");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "NAMESPACE_NOT_FOUND")
    );
    for (namespace_id, size_bytes, code, wanted) in [
        (3, 1 << 20, Code::NotFound, "NAMESPACE_NOT_FOUND"),
        (1, 0, Code::InvalidArgument, "SIZE_INVALID"),
        (1, 4097, Code::InvalidArgument, "SIZE_INVALID"),
        (1, 4096, Code::InvalidArgument, "SIZE_INVALID"),
        (1, u64::MAX, Code::InvalidArgument, "SIZE_INVALID"),
    ] {
        let request = ResizeNamespaceRequest {
            namespace_id,
            size_bytes,
        };
        let status = client.resize_namespace(request).await.expect_err("it is wrong");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, wanted),
            "{size_bytes}"
        );
    }
    // A request longer than any URI is refused, and the connection goes on.
    let long = add(&"x".repeat(1 << 20), None);
    client.add_namespace(long).await.expect_err("too long");
    let list = client
        .list_namespaces(ListNamespacesRequest {})
        .await
        .expect("an answer");
    assert_eq!(list.into_inner().namespaces.len(), 1);
    engine.stop();
}

#[tokio::test]
async fn limits_are_set_told_and_lifted() {
    let mut engine = EngineProcess::start(&[DEVICE]);
    let mut client = connect(&engine).await;
    let operations = |per_second| Qos {
        write: Some(QosLimits {
            operations: Some(QosRate {
                per_second,
                ..QosRate::default()
            }),
            bytes: None,
        }),
        ..Qos::default()
    };
    let weighted = |weight| Qos {
        weight: Some(weight),
        ..Qos::default()
    };
    let set = |namespace_id, qos| SetQosRequest { namespace_id, qos };
    for (request, code, wanted) in [
        (set(3, None), Code::NotFound, "NAMESPACE_NOT_FOUND"),
        (
            set(1, Some(operations(0))),
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (
            set(1, Some(operations(u64::MAX))),
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (set(1, Some(weighted(0))), Code::InvalidArgument, "FIELD_INVALID"),
        (
            set(1, Some(weighted(10_001))),
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
    ] {
        let status = client.set_qos(request).await.expect_err("it is wrong");
        assert_eq!((status.code(), reason(&status).as_str()), (code, wanted));
    }
    let host = crate::common::host::Host::connect(engine.listener(), "?reconnect=off").expect("it connects");
    let write = |count: u64| {
        let began = std::time::Instant::now();
        host.run(move |device| async move {
            for block in 0..count {
                crate::common::content::write(&device, block, 1)
                    .await
                    .expect("it is written");
            }
        });
        began.elapsed()
    };
    let limited = client
        .set_qos(set(1, Some(operations(50))))
        .await
        .expect("it is set");
    let namespace = limited.into_inner().namespace.expect("the namespace");
    assert_eq!(namespace.qos, Some(operations(50)));
    // 40 ms of credit are two of them, and one begins at once; a slow machine only makes it take longer.
    assert!(write(20) > Duration::from_millis(300));
    let listed = answer(&engine.namespace(&["list"]));
    assert!(listed.contains("write 50/s"), "{listed}");
    let lifted = answer(&engine.namespace(&["qos", "1", "--unlimited"]));
    assert!(lifted.contains("none"), "{lifted}");
    let total = answer(&engine.namespace(&["qos", "1", "--total", "operations=5,bytes=1KiB"]));
    assert!(total.contains("5/s, 1 KiB/s"), "{total}");
    let weight = answer(&engine.namespace(&["qos", "1", "--weight", "300", "--read", "operations=5"]));
    assert!(weight.contains("read 5/s, weight 300"), "{weight}");
    let too_much = engine.namespace(&["qos", "1", "--weight", "10001"]);
    assert_eq!(too_much.status.code(), Some(2));
    assert_eq!(engine.namespace(&["qos", "1"]).status.code(), Some(2));
    // What is held does not keep the engine from stopping.
    drop(host);
    engine.stop();
}

#[tokio::test]
async fn repeats_and_races_give_one_result() {
    let engine = EngineProcess::start(&[]);
    let client = connect(&engine).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let mut client = client.clone();
        calls.spawn(async move {
            let request = AddNamespaceRequest {
                uri: DEVICE.to_owned(),
                namespace_id: Some(4),
                qos: None,
            };
            client.add_namespace(request).await
        });
    }
    while let Some(added) = calls.join_next().await {
        let added = added.expect("no panic").expect("the same for all").into_inner();
        assert_eq!(added.namespace.map(|namespace| namespace.namespace_id), Some(4));
    }
    let mut client = client.clone();
    let list = client
        .list_namespaces(ListNamespacesRequest {})
        .await
        .expect("an answer");
    assert_eq!(list.into_inner().namespaces.len(), 1);
    engine.stop();
}

#[tokio::test]
async fn events_tell_what_happens_in_order() {
    let mut engine = EngineProcess::start(&[]);
    let mut client = connect(&engine).await;
    let request = WatchEventsRequest {};
    let mut events = client.watch_events(request).await.expect("a stream").into_inner();
    assert!(matches!(next(&mut events).await, What::Started(_)));
    for uri in [DEVICE, "null:///b?size=1MiB"] {
        let request = AddNamespaceRequest {
            uri: uri.to_owned(),
            namespace_id: None,
            qos: None,
        };
        client.add_namespace(request).await.expect("added");
    }
    let request = ResizeNamespaceRequest {
        namespace_id: 1,
        size_bytes: 2 << 20,
    };
    client.resize_namespace(request).await.expect("resized");
    assert!(matches!(next(&mut events).await, What::NamespaceAdded(namespace) if namespace.uri == DEVICE));
    assert!(
        matches!(next(&mut events).await, What::NamespaceAdded(namespace) if namespace.namespace_id == 2)
    );
    let What::NamespaceResized(resized) = next(&mut events).await else {
        panic!("it was resized")
    };
    assert_eq!(resized.size_bytes, 2 << 20);
    let request = RemoveNamespaceRequest { namespace_id: 2 };
    client.remove_namespace(request).await.expect("removed");
    assert!(matches!(next(&mut events).await, What::NamespaceRemoved(removed) if removed.namespace_id == 2));

    engine.signal("TERM");
    assert!(matches!(next(&mut events).await, What::Draining(_)));
    assert!(matches!(events.message().await, Ok(None)));
    assert_eq!(engine.wait().code(), Some(0));
}

#[tokio::test]
async fn events_tell_of_pools() {
    let file = crate::common::pool::PoolFile::new(64 << 20);
    let engine = EngineProcess::start(&[]);
    let mut client = connect(&engine).await;
    let request = WatchEventsRequest {};
    let mut events = client.watch_events(request).await.expect("a stream").into_inner();
    assert!(matches!(next(&mut events).await, What::Started(_)));
    let control = engine.control();
    let ask = |arguments: &[&str]| crate::common::pool::succeed(&[arguments, &["--grpc", &control]].concat());
    ask(&["pool", "create", "tank", &file.uri()]);
    assert!(matches!(next(&mut events).await, What::PoolOpened(opened) if opened.pool == "tank"));
    // A tenth is left, and then all of it again.
    ask(&["volume", "create", "tank/a", "55MiB", "--thick"]);
    let What::PoolSpaceChanged(low) = next(&mut events).await else {
        panic!("it fills")
    };
    assert_eq!(low.level(), PoolSpaceLevel::Low, "{low:?}");
    assert!(
        low.free_bytes < 10 << 20 && low.total_bytes == 64 << 20,
        "{low:?}"
    );
    ask(&["volume", "delete", "tank/a", "--wait"]);
    let What::PoolSpaceChanged(plenty) = next(&mut events).await else {
        panic!("it has space again")
    };
    assert_eq!(plenty.level(), PoolSpaceLevel::Plenty, "{plenty:?}");
    ask(&["pool", "export", "tank"]);
    assert!(matches!(next(&mut events).await, What::PoolClosed(closed) if closed.pool == "tank"));
    engine.stop();
}

#[tokio::test]
async fn an_engine_tells_what_it_is_and_does() {
    let cores = crate::common::cores(2);
    let mut engine = EngineProcess::start(&["--cores", &list(&cores), DEVICE]);
    let mut client = connect(&engine).await;
    let info = client
        .get_info(GetInfoRequest {})
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.state(), EngineState::Serving);
    assert_eq!(info.process_id, engine.id());
    assert_eq!(info.cores, cores);
    assert_eq!(info.nvmf_listeners, [engine.listener().to_string()]);
    assert!(info.schemes.contains(&"malloc".to_owned()));

    // A reactor tells of its turns now and then, and may not have had one on a busy machine.
    let deadline = Instant::now() + PATIENCE;
    let reactors = loop {
        let statistics = client.get_statistics(GetStatisticsRequest {}).await;
        let reactors = statistics.expect("an answer").into_inner().reactors;
        if reactors.iter().all(|reactor| reactor.iterations > 0) {
            break reactors;
        }
        assert!(Instant::now() < deadline, "{reactors:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let told: Vec<_> = reactors.iter().map(|reactor| reactor.core).collect();
    let expected: Vec<_> = cores.into_iter().map(Some).collect();
    assert_eq!(told, expected);
    engine.stop();
}

#[test]
fn the_socket_is_for_its_owner_and_goes_away() {
    let engine = EngineProcess::start(&[DEVICE]);
    let socket = engine.socket();
    let mode = std::fs::metadata(&socket)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let directory = socket.parent().expect("it is in a directory").to_owned();
    let mut engine = engine;
    engine.signal("TERM");
    assert_eq!(engine.wait().code(), Some(0));
    assert!(directory.exists() && !socket.exists());
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let control = format!("unix:{}", path.display());
    let mut child = crate::common::program()
        .args([
            "serve",
            "--nvmf",
            "127.0.0.1:0",
            "--memory",
            "16MiB",
            "--grpc",
            &control,
            DEVICE,
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program can be started");
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let output = crate::common::run(&["namespace", "--grpc", &control, "list"]);
        if output.status.success() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{}", errors(&output));
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}
