//! A process that sends no traces makes no spans: a program of its own, as this is set once in a process.

use std::convert::Infallible;

use http::{Request, Response};
use pollux_trace::{Calls, Origin, Origins, Process, ServedLayer, TraceSettings, span};
use tower::{Layer, Service, ServiceExt, service_fn};
use tracing_subscriber::filter::LevelFilter;

async fn ask<S>(service: S)
where
    S: Service<Request<()>, Error = Infallible>,
{
    let request = Request::builder().uri("/s/m").header(
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    );
    drop(service.oneshot(request.body(()).expect("a request")).await);
}

#[tokio::test]
async fn without_a_collector_there_are_no_spans() {
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    let process = Process {
        name: "test",
        instance: "",
    };
    let settings = TraceSettings::default();
    let tracing = pollux_trace::start(log, LevelFilter::TRACE, &settings, process);
    let tracing = tracing.expect("it is the first");
    let origins = Origins::default();
    let service = service_fn(|_: Request<()>| {
        assert!(span!("anything").is_disabled());
        assert!(Origin::current().is_none());
        origins.note("thing");
        async {
            // What the caller has told is its own.
            let next = service_fn(async |request: Request<()>| {
                assert!(!request.headers().contains_key("traceparent"));
                Ok::<_, Infallible>(Response::new(String::new()))
            });
            let request = Request::builder().uri("/s/m").body(()).expect("a request");
            drop(Calls::new(next, "far").oneshot(request).await);
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    ask(ServedLayer.layer(service)).await;
    assert!(origins.of("thing").is_none());
    // What is logged is logged as before.
    assert!(tracing_enabled());
    tracing.stop();
}

fn tracing_enabled() -> bool {
    tracing::enabled!(tracing::Level::INFO)
}
