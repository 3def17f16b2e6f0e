//! REST and JSON, and what is told by HTTP, over real connections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use pollux_api::control::v1::Event;
use pollux_control::controller::Observations;
use pollux_control::gateway::{ROUTES, description};
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{Listening, ServiceParts, Services};
use pollux_control::store::{MemoryStore, hold};
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::common::fleet::Fleet;
use crate::common::{VirtualClock, named, put};

/// An interface that is called without a network.
struct Interface {
    router: axum::Router,
    store: MemoryStore,
    services: Services,
}

/// What is answered.
struct Answered {
    status: StatusCode,
    kind: String,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{} is no JSON", self.text))
    }

    /// The fields that are called wrong.
    fn fields(&self) -> Vec<String> {
        assert_eq!(self.status, StatusCode::BAD_REQUEST, "{}", self.text);
        assert_eq!(self.kind, "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], "INVALID_ARGUMENT", "{problem}");
        assert_eq!(problem["reason"], "FIELD_INVALID", "{problem}");
        let errors = problem["errors"].as_array().expect("it has them");
        let fields = errors.iter().filter_map(|error| error["field"].as_str());
        fields.map(str::to_owned).collect()
    }
}

impl Interface {
    fn new(guard: Guard) -> Self {
        let store = MemoryStore::default();
        let clock = VirtualClock::default();
        clock.advance(1_000_000_000_000);
        let services = Services::new(ServiceParts {
            store: Arc::new(store.clone()),
            observations: Arc::new(Observations::default()),
            engines: Arc::new(Fleet::default()),
            clock: Arc::new(clock),
            limits: Limits::default(),
            guard,
        });
        Self {
            router: services.clone().http(),
            store,
            services,
        }
    }

    async fn send(&self, request: Request<Body>) -> Answered {
        let response = self.router.clone().oneshot(request).await.expect("it answers");
        let kind = response.headers().get("content-type").cloned();
        let kind = kind.map_or_else(String::new, |kind| kind.to_str().expect("ASCII").to_owned());
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24)
            .await
            .expect("a body");
        Answered {
            status,
            kind,
            text: String::from_utf8(bytes.to_vec()).expect("UTF-8"),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(request.body(body).expect("a request")).await
    }

    async fn done(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answered = self.ask(method, path, body).await;
        assert_eq!(
            answered.status,
            StatusCode::OK,
            "{method} {path}: {}",
            answered.text
        );
        assert_eq!(answered.kind, "application/json");
        answered.json()
    }
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"address": format!("{name}:4430"), "zone": "z"}})
}

#[tokio::test]
async fn resources_are_made_listed_changed_and_deleted() {
    let interface = Interface::new(Guard::Local);
    let made = interface.done("POST", "/v1/nodes", Some(node("a"))).await;
    assert_eq!(made["metadata"]["name"], "a");
    assert!(
        made["metadata"]["revision"].is_string(),
        "64 bits are texts: {made}"
    );
    // Once more is the same one; another spec is another one.
    let again = interface.done("POST", "/v1/nodes", Some(node("a"))).await;
    assert_eq!(again, made);
    let mut other = node("a");
    other["spec"]["zone"] = json!("y");
    let taken = interface.ask("POST", "/v1/nodes", Some(other)).await;
    assert_eq!(
        (taken.status, taken.kind.as_str()),
        (StatusCode::CONFLICT, "application/problem+json")
    );
    assert_eq!(taken.json()["reason"], "NAME_TAKEN");

    let change = json!({"spec": {"rack": "r1", "zone": "ignored"}});
    let changed = interface
        .done("PATCH", "/v1/nodes/a?update_mask=spec.rack", Some(change.clone()))
        .await;
    assert_eq!(
        (&changed["spec"]["rack"], &changed["spec"]["zone"]),
        (&json!("r1"), &json!("z"))
    );
    let stale = json!({"metadata": {"revision": "1"}, "spec": {"rack": "r2"}});
    let stale = interface
        .ask("PATCH", "/v1/nodes/a?update_mask=spec.rack", Some(stale))
        .await;
    assert_eq!(stale.json()["reason"], "REVISION_STALE");
    // Several fields, and characters that are encoded.
    let path = "/v1/nodes/%61?update_mask=spec.rack%2Cspec.zone";
    let changed = interface.done("PATCH", path, Some(change)).await;
    assert_eq!(changed["spec"]["zone"], "ignored");

    for name in ["b", "c", "d"] {
        interface.done("POST", "/v1/nodes", Some(node(name))).await;
    }
    let mut names = Vec::new();
    let mut path = "/v1/nodes?page_size=3".to_owned();
    loop {
        let page = interface.done("GET", &path, None).await;
        for node in page["nodes"].as_array().into_iter().flatten() {
            names.push(node["metadata"]["name"].as_str().expect("a name").to_owned());
        }
        match page["next_page_token"].as_str() {
            Some(token) => path = format!("/v1/nodes?page_size=3&page_token={token}"),
            None => break,
        }
    }
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert_eq!(
        interface.done("GET", "/v1/nodes/b", None).await["spec"]["zone"],
        "z"
    );
    assert_eq!(interface.done("DELETE", "/v1/nodes/b", None).await, json!({}));
    let gone = interface.ask("GET", "/v1/nodes/b", None).await;
    assert_eq!(
        (gone.status, gone.json()["reason"].clone()),
        (StatusCode::NOT_FOUND, json!("NOT_FOUND"))
    );
    // Custom verbs.
    let volume = json!({"metadata": {"name": "v"}, "spec": {"size_bytes": "1048576"}});
    let plan = interface
        .done("POST", "/v1/volumes:plan", Some(volume.clone()))
        .await;
    assert_eq!(plan.get("fits"), None, "no pool is there: {plan}");
    interface.done("POST", "/v1/volumes", Some(volume)).await;
    let host = json!({"host": {"host_nqn": "nqn.2026-11.x:h"}});
    let published = interface.done("POST", "/v1/volumes/v:publish", Some(host)).await;
    assert!(
        published["subsystem_nqn"]
            .as_str()
            .is_some_and(|nqn| nqn.starts_with("nqn."))
    );
    interface.done("POST", "/v1/volumes/v:unpublish", None).await;
}

#[tokio::test]
async fn bad_input_is_told_by_its_field() {
    let interface = Interface::new(Guard::Local);
    interface.done("POST", "/v1/nodes", Some(node("a"))).await;
    let long = "x".repeat(300);
    for (method, path, body, field) in [
        ("POST", "/v1/nodes", None, "node"),
        ("POST", "/v1/nodes", Some(json!([])), "node"),
        ("POST", "/v1/nodes", Some(json!({})), "node.metadata"),
        ("POST", "/v1/nodes", Some(json!({"metadata": 1})), "node.metadata"),
        (
            "POST",
            "/v1/nodes",
            Some(json!({"metadata": {"name": 7}})),
            "node.metadata.name",
        ),
        (
            "POST",
            "/v1/nodes",
            Some(json!({"metadata": {"name": "A"}, "spec": {"address": "a:1"}})),
            "node.metadata.name",
        ),
        (
            "POST",
            "/v1/nodes",
            Some(json!({"metadata": {"name": long}, "spec": {"address": "a:1"}})),
            "node.metadata.name",
        ),
        (
            "POST",
            "/v1/nodes",
            Some(json!({"spec": {"colour": 1}})),
            "node.spec.colour",
        ),
        (
            "POST",
            "/v1/nodes",
            Some(json!({"spec": {"drained": "yes"}})),
            "node.spec.drained",
        ),
        (
            "POST",
            "/v1/volumes",
            Some(json!({"spec": {"size_bytes": -1}})),
            "volume.spec.size_bytes",
        ),
        (
            "POST",
            "/v1/volumes",
            Some(json!({"spec": {"size_bytes": "many"}})),
            "volume.spec.size_bytes",
        ),
        (
            "POST",
            "/v1/pools",
            Some(json!({"spec": {"media": "MEDIA_CLASS_PAPER"}})),
            "pool.spec.media",
        ),
        ("POST", "/v1/nodes?page_size=1", Some(node("b")), "page_size"),
        ("GET", "/v1/nodes?page_size=-1", None, "page_size"),
        ("GET", "/v1/nodes?page_size=99999999999", None, "page.size"),
        ("GET", "/v1/nodes?page_size=1&page_size=2", None, "page_size"),
        ("GET", "/v1/nodes?colour=red", None, "colour"),
        ("GET", "/v1/nodes/A", None, "name"),
        ("GET", "/v1/nodes/%ff", None, "name"),
        ("GET", "/v1/snapshots?volume=A", None, "volume"),
        ("GET", "/v1/events?subject=x", None, "subject"),
        ("GET", "/v1/measurements?node=A", None, "node"),
        ("GET", "/v1/nodes:watch?after_revision=x", None, "after_revision"),
        ("DELETE", "/v1/nodes/a", Some(json!({})), "body"),
        ("PATCH", "/v1/nodes/a", Some(json!({"spec": {}})), "update_mask"),
        (
            "PATCH",
            "/v1/nodes/a?update_mask=spec.colour",
            Some(json!({"spec": {}})),
            "update_mask",
        ),
        (
            "PATCH",
            "/v1/nodes/a?update_mask=spec.rack",
            Some(json!({"metadata": {"name": "b"}})),
            "node.metadata.name",
        ),
        (
            "POST",
            "/v1/volumes/v:publish",
            Some(json!({"host": {"host_nqn": "h"}})),
            "host.host_nqn",
        ),
        (
            "POST",
            "/v1/volumes/v:publish",
            Some(json!({"name": "w"})),
            "name",
        ),
        (
            "POST",
            "/v1/tokens",
            Some(json!({"metadata": {"name": "t"}})),
            "token.spec",
        ),
        (
            "POST",
            "/v1/tokens",
            Some(json!({"metadata": {"name": "t"}, "spec": {}})),
            "token.spec.role",
        ),
    ] {
        let answered = interface.ask(method, path, body.clone()).await;
        let fields = answered.fields();
        assert!(
            fields.iter().any(|found| found == field),
            "{method} {path} {body:?}: {fields:?}"
        );
    }
    let token = interface.ask("GET", "/v1/nodes?page_token=zzz", None).await;
    assert_eq!(token.json()["reason"], "PAGE_TOKEN_INVALID");
    for (method, path, status) in [
        ("GET", "/", StatusCode::NOT_FOUND),
        ("GET", "/v1/nodes/", StatusCode::NOT_FOUND),
        ("GET", "/v1/nodes/a/b", StatusCode::NOT_FOUND),
        ("GET", "/v1/nodes/a:explode", StatusCode::NOT_FOUND),
        ("GET", "/v1/registry", StatusCode::NOT_FOUND),
        ("PUT", "/v1/nodes/a", StatusCode::METHOD_NOT_ALLOWED),
        ("POST", "/v1/events", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let answered = interface.ask(method, path, None).await;
        assert_eq!(answered.status, status, "{method} {path}");
        assert_eq!(answered.kind, "application/problem+json");
    }
    let plain = Request::post("/v1/nodes")
        .body(Body::from("{}"))
        .expect("a request");
    assert_eq!(
        interface.send(plain).await.status,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    let request = || Request::post("/v1/nodes").header("content-type", "application/json; charset=utf-8");
    let large = request()
        .body(Body::from(vec![b' '; 2 << 20]))
        .expect("a request");
    assert_eq!(interface.send(large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    for text in [
        "{",
        "nonsense",
        "{\"spec\": {\"zone\": \"\u{0}\"}}",
        &"[".repeat(100_000),
    ] {
        let answered = interface.send(request().body(Body::from(text.to_owned())).expect("a request"));
        assert_eq!(answered.await.fields(), ["body"], "{text:.20}");
    }
}

#[tokio::test]
async fn the_description_covers_every_call_and_is_whole() {
    let description = description();
    assert_eq!(description["openapi"], "3.1.0");
    // Every call of every service but those between the control plane and engines.
    let files =
        prost_types::FileDescriptorSet::decode(pollux_api::DESCRIPTORS).expect("they were compiled in");
    let mut calls = BTreeSet::new();
    for file in files
        .file
        .iter()
        .filter(|file| file.package() == "pollux.control.v1")
    {
        let is_of_engines = ["/engine.proto", "/meter.proto"]
            .iter()
            .any(|name| file.name().ends_with(name));
        for service in file.service.iter().filter(|_| !is_of_engines) {
            calls.extend(
                service
                    .method
                    .iter()
                    .map(|call| format!("{}_{}", service.name(), call.name())),
            );
        }
    }
    let routed: BTreeSet<String> = ROUTES
        .iter()
        .map(|route| format!("{}_{}", route.service, route.rpc))
        .collect();
    assert_eq!(routed.len(), ROUTES.len(), "a call has one route");
    assert_eq!(routed, calls);
    let mut operations = BTreeSet::new();
    for (path, item) in description["paths"].as_object().expect("paths") {
        assert!(path.starts_with("/v1/"), "{path}");
        for (verb, operation) in item.as_object().expect("operations") {
            let route = ROUTES
                .iter()
                .find(|route| route.path == path && route.verb.name() == verb);
            assert!(route.is_some(), "{verb} {path} is described and not there");
            let id = operation["operationId"]
                .as_str()
                .expect("an identifier")
                .to_owned();
            assert!(operations.insert(id.clone()), "{id} is there twice");
            assert!(
                operation["description"]
                    .as_str()
                    .is_some_and(|text| text.len() > 5),
                "{id}"
            );
            let parameters = operation["parameters"].as_array().expect("a list");
            let in_path = parameters.iter().any(|parameter| parameter["in"] == "path");
            assert_eq!(in_path, path.contains("{name}"), "{id}");
            let mut names = BTreeSet::new();
            for parameter in parameters {
                assert!(names.insert(parameter["name"].to_string()), "{id}: {parameter}");
                assert!(
                    parameter["description"]
                        .as_str()
                        .is_some_and(|text| !text.is_empty()),
                    "{id}"
                );
            }
            if path == "/v1/snapshots" && verb == "get" {
                assert!(
                    names.contains("\"page_size\"") && names.contains("\"volume\""),
                    "{names:?}"
                );
            }
            if verb == "patch" {
                assert!(names.contains("\"update_mask\""), "{id}");
            }
        }
    }
    assert_eq!(operations, calls);
    // What is referred to is there, and what is there is referred to.
    let mut references = BTreeSet::new();
    collect(&description, &mut references);
    for reference in &references {
        let pointer = reference.strip_prefix('#').expect("inside the document");
        assert!(description.pointer(pointer).is_some(), "{reference} is not there");
    }
    let schemas = description["components"]["schemas"].as_object().expect("schemas");
    for (name, schema) in schemas {
        assert!(
            references.contains(&format!("#/components/schemas/{name}")),
            "{name} is not used"
        );
        assert!(
            schema["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{name}"
        );
    }
    for secret in ["StoredToken", "Removal", "EngineCommand"] {
        assert!(!schemas.contains_key(secret), "{secret} is never sent");
    }
    assert_eq!(
        schemas["VolumeSpec"]["properties"]["size_bytes"]["type"],
        "string"
    );
    assert_eq!(
        schemas["Metadata"]["properties"]["labels"]["additionalProperties"]["type"],
        "string"
    );
    let served = Interface::new(Guard::Certificates)
        .ask("GET", "/openapi.json", None)
        .await;
    assert_eq!(served.json(), description);
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                references.insert(reference.to_owned());
            }
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

/// What every route answers agrees with its schema: the names of its fields are known there.
#[tokio::test]
async fn answers_have_the_fields_that_are_described() {
    let interface = Interface::new(Guard::Local);
    interface.done("POST", "/v1/nodes", Some(node("a"))).await;
    let description = description();
    let listed = interface.done("GET", "/v1/nodes", None).await;
    check(&description, "ListNodesResponse", &listed);
    let volume = json!({"metadata": {"name": "v", "labels": {"a": "b"}}, "spec": {
        "size_bytes": 1_048_576, "policy": {"replicas": 2, "placement": {"spread": [
            {"domain": "DOMAIN_ZONE", "replicas_max": 1}]}}}});
    check(&description, "Volume", &volume);
    let made = interface.done("POST", "/v1/volumes", Some(volume)).await;
    check(&description, "Volume", &made);
}

fn check(description: &Value, schema: &str, value: &Value) {
    let schema = &description["components"]["schemas"][schema];
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{value}");
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let property = &schema["properties"][name];
        assert!(property.is_object(), "{name} is not described");
        let (property, values) = match value.as_array() {
            Some(values) => (&property["items"], values.clone()),
            None => (property, vec![value.clone()]),
        };
        let reference = property["$ref"].as_str().and_then(|text| text.rsplit('/').next());
        for value in values {
            if let Some(reference) = reference {
                check(description, reference, &value);
            }
        }
    }
}

/// A connection to an interface that listens.
async fn serve(services: Services) -> (SocketAddr, watch::Sender<bool>) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let listening = Listening::bind_http(address, None).await.expect("a free port");
    let address = listening.address();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(listening.serve(services.http(), stopped));
    (address, stop)
}

/// Asks for a watch, and reads until a text is there.
async fn watched(address: SocketAddr, path: &str, header: &str, until: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it listens");
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains(until) {
        let count = stream.read(&mut bytes).await.expect("it answers");
        assert!(count > 0, "it ends with {text}");
        text += std::str::from_utf8(&bytes[..count]).expect("UTF-8");
    }
    text
}

#[tokio::test]
async fn changes_are_told_as_lines_and_as_events() {
    let interface = Interface::new(Guard::Local);
    interface.done("POST", "/v1/nodes", Some(node("a"))).await;
    let (address, stop) = serve(interface.services.clone()).await;
    let lines = watched(address, "/v1/nodes:watch", "Accept: */*", "\"name\":\"a\"").await;
    assert!(lines.contains("content-type: application/jsonl"), "{lines}");
    let accept = "Accept: text/event-stream";
    let events = watched(address, "/v1/nodes:watch", accept, "\n\n").await;
    assert!(events.contains("content-type: text/event-stream"), "{events}");
    let events = watched(address, "/v1/nodes:watch", accept, "\"name\":\"a\"").await;
    assert!(
        events.contains("\nid: ") && events.contains("\ndata: {"),
        "{events}"
    );
    // From where it broke: only what came after.
    let revision = interface.done("GET", "/v1/nodes", None).await["revision"].clone();
    let revision = revision.as_str().expect("a text").to_owned();
    let header = format!("{accept}\r\nLast-Event-ID: {revision}");
    let going_on = tokio::spawn(async move { watched(address, "/v1/nodes:watch", &header, "\"b\"").await });
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    interface.done("POST", "/v1/nodes", Some(node("b"))).await;
    let events = going_on.await.expect("it is told");
    assert!(!events.contains("\"a:4430\""), "{events}");
    let wrong = watched(address, "/v1/nodes:watch", "Last-Event-ID: x", "last-event-id").await;
    assert!(wrong.starts_with("HTTP/1.1 400"), "{wrong}");
    // It ends with the server, also in the middle of a watch.
    let ended = tokio::spawn(watched(address, "/v1/nodes:watch", accept, "never"));
    stop.send_replace(true);
    assert!(ended.await.is_err(), "it ends");
}

#[tokio::test]
async fn metrics_and_health_are_told() {
    let interface = Interface::new(Guard::Local);
    interface.done("POST", "/v1/nodes", Some(node("a"))).await;
    let pool = json!({"metadata": {"name": "a.p"}, "spec": {"node": "a", "devices": ["malloc:///x"]}});
    interface.done("POST", "/v1/pools", Some(pool)).await;
    let volume =
        json!({"metadata": {"name": "v"}, "spec": {"size_bytes": "1048576", "policy": {"replicas": 3}}});
    interface.done("POST", "/v1/volumes", Some(volume)).await;
    put(
        &interface.store,
        &named(Event::default(), "00000000000000000001-0-0"),
    )
    .await;
    let answered = interface.ask("GET", "/metrics", None).await;
    assert_eq!(answered.kind, pollux_http::metrics::CONTENT_TYPE);
    let scrape = pollux_http::metrics::parse(&answered.text).unwrap_or_else(|error| panic!("{error}"));
    // All that is promised is told, and nothing else.
    let told: BTreeSet<&str> = scrape.kinds.keys().map(String::as_str).collect();
    let families = pollux_http::families::daemon::ALL.iter();
    let families = families.chain(pollux_http::families::control::ALL);
    let promised: BTreeSet<&str> = families.map(|family| family.name).collect();
    assert_eq!(told, promised);
    assert_eq!(
        scrape.value("pollux_volume_replicas_wanted", &[("volume", "v")]),
        Some(3.0)
    );
    assert_eq!(scrape.value("pollux_volumes", &[("state", "pending")]), Some(1.0));
    let offline = [("node", "a"), ("zone", "z"), ("state", "online")];
    assert_eq!(scrape.value("pollux_node_state", &offline), Some(0.0));
    let posted = [("interface", "http"), ("method", "POST"), ("code", "200")];
    assert_eq!(scrape.value("pollux_control_calls_total", &posted), Some(3.0));
    assert_eq!(scrape.value("pollux_control_records_restored", &[]), Some(0.0));
    hold(&interface.store).await.expect("it answers");
    let answered = interface.ask("GET", "/metrics", None).await;
    let scrape = pollux_http::metrics::parse(&answered.text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(scrape.value("pollux_control_records_restored", &[]), Some(1.0));
    for path in ["/healthz", "/readyz"] {
        let answered = interface.ask("GET", path, None).await;
        assert_eq!(answered.status, StatusCode::OK);
        assert!(answered.text.contains("ok"), "{}", answered.text);
    }
    // What is told is as much of a secret as the interface itself; health is not.
    let closed = Interface::new(Guard::Certificates);
    let refused = closed.ask("GET", "/metrics", None).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        closed.ask("GET", "/v1/nodes", None).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(closed.ask("GET", "/readyz", None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn methods_that_are_not_known_are_counted_as_one() {
    let interface = Interface::new(Guard::Local);
    for number in 0..20 {
        let method = Method::from_bytes(format!("M{number}").as_bytes()).expect("a method");
        let request = Request::builder()
            .method(method)
            .uri("/v1/nodes")
            .body(Body::empty());
        let answered = interface.send(request.expect("a request")).await;
        assert_eq!(answered.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    let scrape = interface.ask("GET", "/metrics", None).await;
    let scrape = pollux_http::metrics::parse(&scrape.text).expect("it can be read");
    let unknown = [("method", "unknown"), ("code", "405")];
    assert_eq!(scrape.value("pollux_control_calls_total", &unknown), Some(20.0));
}
