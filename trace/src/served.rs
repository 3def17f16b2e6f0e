//! Calls that are served: a span for each, whose parent is that of the caller.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::code::{CodedFuture, Side, method};
use crate::{CodedBody, adopt, span};

/// Makes a span of each call of gRPC that is served: method, code, time.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServedLayer;

impl<S> Layer<S> for ServedLayer {
    type Service = Served<S>;

    fn layer(&self, inner: S) -> Served<S> {
        Served(inner)
    }
}

/// See [`ServedLayer`].
#[derive(Debug, Clone)]
pub struct Served<S>(S);

impl<S, A, B> Service<Request<A>> for Served<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<CodedBody<B>>;
    type Error = S::Error;
    type Future = CodedFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(task)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (service, method, name) = method(request.uri().path());
        let span = span!(
            parent: None,
            "served",
            otel.name = name,
            otel.kind = "server",
            otel.status_code = tracing::field::Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = tracing::field::Empty,
        );
        adopt(&span, request.headers());
        let answered = span.in_scope(|| self.0.call(request));
        CodedFuture::new(answered.instrument(span), Side::Server)
    }
}
