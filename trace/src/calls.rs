//! Calls that are made: a span for each, which whoever is called learns of.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower::Service;
use tracing::{Instrument, Span};

use crate::code::{CodedFuture, Side, method};
use crate::{CodedBody, Origin, context, span};

/// A connection by which calls of gRPC are made: each is a span, and tells of it in its headers.
#[derive(Debug, Clone)]
pub struct Calls<C> {
    inner: C,
    /// Who is called: a node, or what it is.
    peer: Arc<str>,
    part_of: PartOf,
}

/// What a call is part of.
#[derive(Debug, Clone)]
enum PartOf {
    /// What is done where it is made.
    Present,
    /// What somebody asked for, if that is known.
    Asked(Option<Origin>),
}

impl<C> Calls<C> {
    /// Calls by this connection; to a node of this name, or to a service that is called so.
    pub fn new(inner: C, peer: &str) -> Self {
        Self {
            inner,
            peer: peer.into(),
            part_of: PartOf::Present,
        }
    }

    /// The same for what is done for somebody elsewhere: calls are part of what was asked for. Those that are
    /// for nobody, or not any more, are no spans.
    pub fn for_origin(inner: C, peer: &str, origin: Option<Origin>) -> Self {
        Self {
            part_of: PartOf::Asked(origin),
            ..Self::new(inner, peer)
        }
    }

    fn span(&self, path: &str) -> Span {
        let (service, method, name) = method(path);
        let origin = match &self.part_of {
            PartOf::Present => None,
            PartOf::Asked(Some(origin)) if origin.is_fresh() => Some(origin),
            PartOf::Asked(_) => return Span::none(),
        };
        let span = span!(
            "call",
            otel.name = name,
            otel.kind = "client",
            otel.status_code = tracing::field::Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = tracing::field::Empty,
            peer = &*self.peer,
        );
        if let Some(origin) = origin {
            origin.adopt(&span);
        }
        span
    }
}

impl<C, A, B> Service<Request<A>> for Calls<C>
where
    C: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<CodedBody<B>>;
    type Error = C::Error;
    type Future = CodedFuture<C::Future>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let span = self.span(request.uri().path());
        if !span.is_disabled() {
            context::tell(&span, request.headers_mut());
        }
        let answered = span.in_scope(|| self.inner.call(request));
        CodedFuture::new(answered.instrument(span), Side::Caller)
    }
}
