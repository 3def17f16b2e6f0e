//! Whose span is the parent of which, through calls and after them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tower::{Layer as _, Service, ServiceExt, service_fn};
use tracing::{Instrument, Subscriber};
use tracing_subscriber::layer::SubscriberExt;

use super::*;

const ASKED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("nobody fails with it").extend(batch);
        Ok(())
    }
}

impl Kept {
    fn named(&self, name: &str) -> SpanData {
        let all = self.0.lock().expect("nobody fails with it");
        let found = all.iter().find(|span| span.name == name).cloned();
        found.unwrap_or_else(|| panic!("no {name} in {all:?}"))
    }

    fn count(&self) -> usize {
        self.0.lock().expect("nobody fails with it").len()
    }
}

fn subscriber(kept: &Kept) -> impl Subscriber + Send + Sync {
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(kept.clone())
        .build();
    tracing_subscriber::registry().with(layer(&provider))
}

/// A call, as somebody with this context makes it.
fn call(path: &str, traceparent: Option<&str>) -> Request<String> {
    let mut request = Request::builder()
        .uri(path)
        .header("authorization", "Bearer plx_secret");
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    request.body("a secret".to_owned()).expect("a request")
}

fn traceparent(request: &Request<String>) -> Option<String> {
    let header = request.headers().get("traceparent")?;
    Some(header.to_str().expect("ASCII").to_owned())
}

/// Answers with a code.
async fn answer(code: &'static str) -> Result<Response<String>, Infallible> {
    let answer = Response::builder().header("grpc-status", code);
    Ok(answer.body(String::new()).expect("an answer"))
}

async fn serve<S>(service: S, request: Request<String>)
where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible>,
{
    // The answer ends with its body.
    drop(ServedLayer.layer(service).oneshot(request).await);
}

fn blocking<T>(subscriber: impl Subscriber + Send + Sync, work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    tracing::subscriber::with_default(subscriber, || runtime.expect("a runtime").block_on(work))
}

#[test]
fn a_trace_goes_through_who_is_called() {
    let (kept, heard) = (Kept::default(), Arc::new(Mutex::new(None)));
    let next = heard.clone();
    blocking(subscriber(&kept), async {
        let service = service_fn(move |_| {
            let next = next.clone();
            async move {
                let far = service_fn(move |request| {
                    *next.lock().expect("nobody fails with it") = traceparent(&request);
                    answer("5")
                });
                let _ = Calls::new(far, "far")
                    .oneshot(call("/far.Service/Get", None))
                    .await;
                answer("0").await
            }
        });
        serve(service, call("/near.Service/Create", Some(ASKED))).await;
    });
    let (near, far) = (kept.named("near.Service/Create"), kept.named("far.Service/Get"));
    assert_eq!(near.span_context.trace_id().to_string(), ASKED[3..35]);
    assert_eq!(near.parent_span_id.to_string(), ASKED[36..52]);
    assert_eq!(
        (near.span_kind.clone(), near.status.clone()),
        (SpanKind::Server, Status::Unset)
    );
    assert_eq!(far.parent_span_id, near.span_context.span_id());
    // What there is not is the error of who asks.
    assert!(matches!(
        (far.span_kind.clone(), far.status.clone()),
        (SpanKind::Client, Status::Error { .. })
    ));
    let wanted = format!("00-{}-{}-01", &ASKED[3..35], far.span_context.span_id());
    assert_eq!(
        heard.lock().expect("nobody fails with it").as_deref(),
        Some(wanted.as_str())
    );
    assert!(!format!("{near:?}{far:?}").contains("secret"));
}

#[test]
fn who_makes_no_sense_is_nobody() {
    let kept = Kept::default();
    blocking(subscriber(&kept), async {
        for wrong in [None, Some(""), Some("00-0-0-01"), Some("no context at all")] {
            serve(service_fn(|_| answer("13")), call("/s/m", wrong)).await;
        }
    });
    assert_eq!(kept.count(), 4);
    let span = kept.named("s/m");
    assert_eq!(span.parent_span_id.to_string(), "0".repeat(16));
    assert!(matches!(span.status, Status::Error { .. }));
}

#[test]
fn what_the_asker_does_not_send_is_not_sent() {
    let kept = Kept::default();
    blocking(subscriber(&kept), async {
        let origins = Origins::default();
        let noted = service_fn(|_| {
            origins.note("thing");
            answer("0")
        });
        serve(noted, call("/s/m", Some(UNSENT))).await;
        let later = span!(parent: None, "later");
        origins.of("thing").expect("it was asked for").adopt(&later);
    });
    assert_eq!(kept.count(), 0);
}

#[test]
fn what_is_done_later_is_part_of_what_was_asked() {
    let (kept, origins) = (Kept::default(), Origins::default());
    assert!(origins.of("thing").is_none());
    blocking(subscriber(&kept), async {
        let noted = service_fn(|_| {
            origins.note("thing");
            answer("0")
        });
        serve(noted, call("/s/m", Some(ASKED))).await;
        let later = span!(parent: None, "later");
        origins.of("thing").expect("it was asked for").adopt(&later);
        drop(later);
        assert!(origins.of("another").is_none());
    });
    let (asked, later) = (kept.named("s/m"), kept.named("later"));
    assert_eq!(later.parent_span_id, asked.span_context.span_id());
    assert_eq!(later.span_context.trace_id(), asked.span_context.trace_id());
}

#[test]
fn calls_for_somebody_are_part_of_what_was_asked_and_others_are_no_spans() {
    let (kept, heard) = (Kept::default(), Arc::new(Mutex::new(Vec::new())));
    let calls = async |origin: Option<Origin>| {
        let heard = heard.clone();
        let far = service_fn(move |request| {
            heard
                .lock()
                .expect("nobody fails with it")
                .push(traceparent(&request));
            answer("0")
        });
        let calls = Calls::for_origin(far, "far", origin);
        drop(calls.oneshot(call("/far.Service/Get", None)).await);
    };
    blocking(subscriber(&kept), async {
        let asks = span!(parent: None, "asks");
        let origin = Origin::of(&asks);
        assert!(origin.is_some());
        drop(asks);
        let elsewhere = span!(parent: None, "elsewhere");
        async {
            calls(origin).await;
            calls(None).await;
        }
        .instrument(elsewhere)
        .await;
    });
    let (asks, far) = (kept.named("asks"), kept.named("far.Service/Get"));
    assert_eq!(far.parent_span_id, asks.span_context.span_id());
    assert_eq!(kept.count(), 3, "the second call is none");
    let heard = heard.lock().expect("nobody fails with it").clone();
    assert_eq!(heard.len(), 2);
    assert!(
        heard[0]
            .as_ref()
            .is_some_and(|parent| parent.contains(&far.span_context.span_id().to_string()))
    );
    assert_eq!(heard[1], None);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (kept, origins) = (Kept::default(), Origins::default());
    blocking(subscriber(&kept), async {
        let span = span!("asks");
        let _entered = span.enter();
        for number in 0..10_000 {
            origins.note(&number.to_string());
        }
    });
    assert!(origins.of("0").is_some());
    assert!(origins.of("9999").is_none());
}
