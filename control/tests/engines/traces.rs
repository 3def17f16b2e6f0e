//! Traces of calls and of what is done for them, from the control plane and engines to a collector.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use pollux_api::control::v1::{
    CreateVolumeRequest, HostAccess, HostSecrets, PublishVolumeRequest, Volume, VolumeSpec,
};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::calls::{VOLUME_BYTES, named};
use crate::cluster::{Cluster, HOST, Layout, until};
use crate::scenarios::{SECRETS, Witness, each, policy, tell};

/// The trace of somebody who asks, and the span in it.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ASKING: &str = "b7ad6b7169203331";

/// A trace that its asker does not send.
const UNSENT_TRACE: &str = "1bf7651916cd43dd8448eb211c80319c";

/// For as long batches are sent to a collector that is away: several of them.
const AWAY: Duration = Duration::from_secs(6);

/// A span, with who has sent it.
#[derive(Debug, Clone)]
struct Found {
    service: String,
    instance: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    kind: i32,
    attributes: BTreeMap<String, String>,
}

/// All that was sent.
#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.lock().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(is_so)) => is_so.to_string(),
        other => format!("{other:?}"),
    }
}

fn attributes(all: &[KeyValue]) -> BTreeMap<String, String> {
    let all = all.iter();
    all.map(|one| (one.key.clone(), text(one.value.as_ref())))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, Vec<ExportTraceServiceRequest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spans(&self) -> Vec<Found> {
        let mut spans = Vec::new();
        for sent in self.lock().iter().flat_map(|request| &request.resource_spans) {
            let resource = sent.resource.clone().unwrap_or_default();
            let of = attributes(&resource.attributes);
            let of = |key: &str| of.get(key).cloned().unwrap_or_default();
            for span in sent.scope_spans.iter().flat_map(|scope| &scope.spans) {
                spans.push(Found {
                    service: of("service.name"),
                    instance: of("service.instance.id"),
                    name: span.name.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    kind: span.kind,
                    attributes: attributes(&span.attributes),
                });
            }
        }
        spans
    }

    /// A span of the trace of who asks.
    fn find(&self, wanted: impl Fn(&Found) -> bool) -> Option<Found> {
        let spans = self.spans().into_iter();
        let mut own = spans.filter(|span| span.trace == TRACE);
        own.find(|span| wanted(span))
    }

    /// The same, once it was sent.
    async fn until(&self, what: &str, wanted: impl Fn(&Found) -> bool) -> Found {
        until(what, async || self.find(&wanted)).await
    }

    /// Answers at an address, until it is stopped.
    async fn serve(&self, address: SocketAddr) -> Serving {
        let listener = until("a port", async || TcpListener::bind(address).await.ok()).await;
        let address = listener.local_addr().expect("an address");
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let serving = server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped);
        Serving {
            address,
            stop,
            task: tokio::spawn(async move { serving.await.expect("it serves") }),
        }
    }
}

/// A collector that answers.
struct Serving {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Serving {
    /// Ends it, with all connections.
    async fn stop(self) {
        self.stop.send(()).expect("it serves");
        self.task.await.expect("it ends");
    }
}

/// A request of somebody with a trace of its own.
fn asked<T>(message: T, trace: &str, is_sent: bool) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-{ASKING}-{:02x}", u8::from(is_sent));
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().expect("ASCII"));
    request
}

fn volume(name: &str, replicas: u32) -> CreateVolumeRequest {
    let volume = Volume {
        metadata: named(name),
        spec: Some(VolumeSpec {
            size_bytes: VOLUME_BYTES,
            policy: Some(policy(replicas, 1)),
            ..VolumeSpec::default()
        }),
        status: None,
    };
    CreateVolumeRequest {
        volume: Some(volume),
        wait_us: Some(5_000_000),
    }
}

/// Runs all of it.
pub async fn run() {
    let received = Received::default();
    let serving = received.serve((Ipv4Addr::LOCALHOST, 0).into()).await;
    let address = serving.address;
    let layout = Layout {
        engines: 2,
        collector: Some(address),
        ..Layout::default()
    };
    let witness = Witness(Cluster::with(layout).await);
    let began = Instant::now();
    a_call_and_what_is_done_for_it_are_one_trace(&witness.0, &received).await;
    tell("a_call_and_what_is_done_for_it_are_one_trace", began.elapsed());
    let began = Instant::now();
    a_call_by_rest_is_in_the_trace_of_its_caller(&witness.0, &received).await;
    tell("a_call_by_rest_is_in_the_trace_of_its_caller", began.elapsed());
    serving.stop().await;
    let began = Instant::now();
    a_collector_that_is_away_harms_nothing(&witness.0, &received, address).await;
    tell("a_collector_that_is_away_harms_nothing", began.elapsed());
    drop(witness);
    let witness = Witness(Cluster::new(1).await);
    let cluster = &witness.0;
    each!(cluster: without_a_collector_there_are_no_spans);
}

/// Runs it alone.
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
    ExitCode::SUCCESS
}

async fn a_call_and_what_is_done_for_it_are_one_trace(cluster: &Cluster, received: &Received) {
    let unsent = asked(volume("unsent", 1), UNSENT_TRACE, false);
    cluster.volumes().create_volume(unsent).await.expect("a volume");
    let made = cluster
        .volumes()
        .create_volume(asked(volume("traced", 2), TRACE, true))
        .await;
    let uid = made
        .expect("a volume")
        .into_inner()
        .metadata
        .expect("it has some")
        .uid;
    let publish = PublishVolumeRequest {
        name: "traced".to_owned(),
        host: Some(HostAccess {
            host_nqn: HOST.to_owned(),
            ..HostAccess::default()
        }),
        wait_us: Some(5_000_000),
        secrets: Some(HostSecrets {
            host: SECRETS[0].to_owned(),
            controller: SECRETS[2].to_owned(),
        }),
        ..PublishVolumeRequest::default()
    };
    until("it is published", async || {
        let asked = asked(publish.clone(), TRACE, true);
        let answer = cluster.volumes().publish_volume(asked).await.ok()?;
        answer.into_inner().ready.then_some(())
    })
    .await;

    // The call, as part of what the caller did.
    let create = "pollux.control.v1.Volumes/CreateVolume";
    let served = received.until("the call", |span| span.name == create).await;
    assert_eq!(
        (served.service.as_str(), served.parent.as_str()),
        ("pollux-control", ASKING)
    );
    assert_eq!(served.kind, SpanKind::Server as i32);
    assert_eq!(served.attributes["rpc.method"], "CreateVolume");
    assert_eq!(served.attributes["rpc.grpc.status_code"], "0");

    // What the planner decided for it, and why.
    let is_of = |span: &Found, uid: &str| span.attributes.get("volume_uid").is_some_and(|of| of == uid);
    let placed = received
        .until("its places", |span| span.name == "commit" && is_of(span, &uid))
        .await;
    assert_eq!(placed.parent, served.id);
    assert_eq!(placed.attributes["record"], "/volume/traced");
    assert!(!placed.attributes["why"].is_empty());

    // What it told an engine, what that did, and whom that asked: each is within the one before.
    let told = received
        .until("a replica is told", |span| {
            span.name == "tell" && is_of(span, &uid) && span.attributes["kind"] == "replica"
        })
        .await;
    assert_eq!(told.parent, served.id);
    let execute = "pollux.control.v1.Agent/Execute";
    let called = received
        .until("its call", |span| span.name == execute && span.parent == told.id)
        .await;
    assert_eq!(
        (called.service.as_str(), called.kind),
        ("pollux-control", SpanKind::Client as i32)
    );
    let heard = received
        .until("it is heard", |span| {
            span.name == execute && span.parent == called.id
        })
        .await;
    assert_eq!(
        (heard.service.as_str(), heard.kind),
        ("pollux-engine", SpanKind::Server as i32)
    );
    assert_eq!(heard.instance, told.attributes["node"]);
    let done = received
        .until("it is done", |span| {
            span.parent == heard.id && span.name == "ensure replica"
        })
        .await;
    assert!(is_of(&done, &uid));
    let opened = received
        .until("it is opened", |span| span.name == "open" && is_of(span, &uid))
        .await;
    assert_eq!(opened.service, "pollux-engine");
    let swapped = received
        .until("its record", |span| span.name == "swap record")
        .await;
    assert_eq!(swapped.parent, opened.id);
    let swap = "pollux.control.v1.Registry/SwapMembership";
    let asks = received
        .until("it asks", |span| span.name == swap && span.parent == swapped.id)
        .await;
    let answered = received
        .until("it is answered", |span| {
            span.name == swap && span.parent == asks.id
        })
        .await;
    assert_eq!(
        (asks.service.as_str(), answered.service.as_str()),
        ("pollux-engine", "pollux-control")
    );

    engines_that_ask_each_other_are_in_it(received, &opened).await;

    // A caller whose error it is: told, and no fault of the server.
    let mut wrong = volume("traced", 1);
    wrong.volume.as_mut().expect("it is there").spec = None;
    let refused = cluster.volumes().create_volume(asked(wrong, TRACE, true)).await;
    let code = (refused.expect_err("there is one of this name").code() as i32).to_string();
    received
        .until("the refusal", |span| {
            let given = span.attributes.get("rpc.grpc.status_code");
            span.name == create && given == Some(&code)
        })
        .await;

    // Whoever does not send its trace is in none.
    assert!(!received.spans().iter().any(|span| span.trace == UNSENT_TRACE));
    // Nothing that was said in calls is in spans.
    for request in received.lock().iter() {
        let bytes = request.encode_to_vec();
        for secret in ["DHHC-1", "ia6zGodO", HOST] {
            let is_there = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!is_there, "{secret} is in spans");
        }
    }
}

/// The engine that opened a volume has asked the other one for a promise.
async fn engines_that_ask_each_other_are_in_it(received: &Received, opened: &Found) {
    let promise = "pollux.engine.v1.Replicas/Promise";
    let asks = received
        .until("a promise is asked for", |span| {
            span.name == promise && span.parent == opened.id
        })
        .await;
    assert_eq!(
        (asks.service.as_str(), asks.kind),
        ("pollux-engine", SpanKind::Client as i32)
    );
    assert_eq!(asks.instance, opened.instance);
    let heard = received
        .until("it is heard", |span| {
            span.name == promise && span.parent == asks.id
        })
        .await;
    assert_eq!(
        (heard.service.as_str(), heard.kind),
        ("pollux-engine", SpanKind::Server as i32)
    );
    assert_ne!(heard.instance, asks.instance);
}

/// Asks by REST, as part of a trace; the status.
async fn asked_by_rest(address: SocketAddr, path: &str, body: &str, trace: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\ntraceparent: 00-{trace}-{ASKING}-01\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("it is heard");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.expect("a status")
}

async fn a_call_by_rest_is_in_the_trace_of_its_caller(cluster: &Cluster, received: &Received) {
    let body = format!(
        r#"{{"metadata": {{"name": "rested"}},
             "spec": {{"size_bytes": "{VOLUME_BYTES}", "policy": {{"replicas": 1, "min_in_sync": 1}}}}}}"#
    );
    let address = cluster.control_http();
    assert_eq!(asked_by_rest(address, "/v1/volumes", &body, TRACE).await, 200);
    let name = "POST /v1/volumes";
    let served = received
        .until("the call", |span| {
            span.name == name && span.attributes["http.response.status_code"] == "200"
        })
        .await;
    assert_eq!(
        (served.service.as_str(), served.parent.as_str()),
        ("pollux-control", ASKING)
    );
    assert_eq!(served.kind, SpanKind::Server as i32);
    assert_eq!(served.attributes["rpc.method"], "CreateVolume");
    // What was decided for it, as with gRPC.
    let placed = received
        .until("its places", |span| {
            span.name == "commit" && span.attributes["record"] == "/volume/rested"
        })
        .await;
    assert_eq!(placed.parent, served.id);
    // The name is in no span of its path, and an error is told by its status.
    let publish = "/v1/volumes/rested:publish";
    assert_eq!(asked_by_rest(address, publish, "[]", TRACE).await, 400);
    let refused = received
        .until("the refusal", |span| {
            span.name == "POST /v1/volumes/{name}:publish"
        })
        .await;
    assert_eq!(refused.attributes["http.response.status_code"], "400");
}

/// How often somebody has logged something.
fn logged(cluster: &Cluster, text: &str) -> Vec<usize> {
    let logs = cluster.logs().into_iter();
    let own = logs.filter(|(_, log)| !log.is_empty());
    own.map(|(_, log)| log.matches(text).count()).collect()
}

async fn a_collector_that_is_away_harms_nothing(cluster: &Cluster, received: &Received, address: SocketAddr) {
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < AWAY {
        number += 1;
        let made = cluster
            .volumes()
            .create_volume(asked(volume(&format!("away-{number}"), 2), TRACE, true))
            .await;
        made.expect("a volume");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(number > 5, "{number} volumes in {AWAY:?}");
    assert_eq!(logged(cluster, "traces are lost"), [1, 1, 1]);
    received.lock().clear();
    let serving = received.serve(address).await;
    until("all send again", async || {
        let made = volume(&format!("back-{}", received.lock().len()), 2);
        let made = cluster.volumes().create_volume(asked(made, TRACE, true)).await;
        made.expect("a volume");
        (logged(cluster, "takes traces again") == [1, 1, 1]).then_some(())
    })
    .await;
    assert_eq!(logged(cluster, "traces are lost"), [1, 1, 1]);
    serving.stop().await;
}

async fn without_a_collector_there_are_no_spans(cluster: &Cluster) {
    let made = cluster
        .volumes()
        .create_volume(asked(volume("untraced", 1), TRACE, true))
        .await;
    made.expect("a volume");
    for (name, log) in cluster.logs() {
        let told = ["rpc.method", "otel.", "traces"]
            .into_iter()
            .find(|word| log.contains(word));
        assert_eq!(told, None, "{name} tells of spans");
    }
}
