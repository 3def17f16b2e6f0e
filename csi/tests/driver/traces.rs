//! The program sends traces of its calls, and tells the control plane to which they belong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use pollux_api::csi::v1::controller_client::ControllerClient;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::common::{Pollux, connect, new_volume};
use crate::processes::Program;

/// The span of an orchestrator.
const ASKED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let sent = request.into_inner().resource_spans.into_iter();
        let scopes = sent.flat_map(|sent| sent.scope_spans);
        let mut spans = self.0.lock().expect("nobody fails with it");
        spans.extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_orchestrator_asks_and_what_is_asked_for_it_are_one_trace() {
    let pollux = Pollux::start().await.ready().await;
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let collector = format!(
        "--tracing-otlp=http://{}",
        listener.local_addr().expect("it has one")
    );
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(received.clone()));
    let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("csi.sock");
    let control = format!("--control={}", pollux.address);
    let program = Program::start(&["controller", &control, &collector], &socket);
    let mut driver = ControllerClient::new(connect(socket.clone()).await);
    let mut asked = Request::new(new_volume("traced"));
    asked
        .metadata_mut()
        .insert("traceparent", ASKED.parse().expect("ASCII"));
    driver.create_volume(asked).await.expect("it is new");
    // It sends the last ones before it ends.
    let stopped = tokio::task::spawn_blocking(|| program.stop());
    assert!(stopped.await.expect("it ends"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    serving.abort();
    let spans = received.0.lock().expect("nobody fails with it").clone();
    let find = |name: &str| {
        let found = spans.iter().find(|span| span.name == name).cloned();
        found.unwrap_or_else(|| panic!("no {name} in {spans:?}"))
    };
    let served = find("csi.v1.Controller/CreateVolume");
    assert_eq!(hex(&served.trace_id), ASKED[3..35]);
    assert_eq!(hex(&served.parent_span_id), ASKED[36..52]);
    assert_eq!(served.kind, SpanKind::Server as i32);
    let called = find("pollux.control.v1.Volumes/CreateVolume");
    assert_eq!(called.trace_id, served.trace_id);
    assert_eq!(called.parent_span_id, served.span_id);
    assert_eq!(called.kind, SpanKind::Client as i32);
}
