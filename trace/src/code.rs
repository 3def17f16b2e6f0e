//! The codes of gRPC in answers, and methods in paths.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tracing::Span;
use tracing::instrument::Instrumented;

/// The header or trailer with the code (gRPC over HTTP/2, "Responses").
const STATUS: &str = "grpc-status";

/// What is called longer than this is not told by its name.
const METHOD_BYTES_MAX: usize = 160;

/// What is asked for that cannot be a method.
const UNKNOWN: &str = "unknown";

/// Who is wrong with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The caller takes every code but 0 for an error.
    Caller,
    /// Who answers: only codes that are its own fault (OpenTelemetry, "Semantic conventions for gRPC").
    Server,
}

impl Side {
    fn is_error(self, code: i32) -> bool {
        match self {
            Self::Caller => code != 0,
            // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
            Self::Server => matches!(code, 2 | 4 | 12 | 13 | 14 | 15),
        }
    }

    fn note(self, span: &Span, headers: &HeaderMap) {
        let code = headers.get(STATUS).and_then(|code| code.to_str().ok());
        let Some(code) = code.and_then(|code| code.parse::<i32>().ok()) else {
            return;
        };
        self.record(span, code);
    }

    fn record(self, span: &Span, code: i32) {
        span.record("rpc.grpc.status_code", code);
        if self.is_error(code) {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// The service and the method of a path, and both as one: what callers may choose is bounded.
pub(crate) fn method(path: &str) -> (&str, &str, &str) {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    let name = path.strip_prefix('/').unwrap_or(path);
    match name.split_once('/') {
        Some((service, method))
            if name.len() <= METHOD_BYTES_MAX
                && !service.is_empty()
                && !method.is_empty()
                && service.bytes().chain(method.bytes()).all(is_good) =>
        {
            (service, method, name)
        }
        _ => (UNKNOWN, UNKNOWN, UNKNOWN),
    }
}

pin_project! {
    /// An answer on its way, whose code is put into a span.
    pub struct CodedFuture<F> {
        #[pin]
        inner: Instrumented<F>,
        side: Side,
    }
}

impl<F> CodedFuture<F> {
    pub(crate) fn new(inner: Instrumented<F>, side: Side) -> Self {
        Self { inner, side }
    }
}

impl<F> std::fmt::Debug for CodedFuture<F> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CodedFuture").finish_non_exhaustive()
    }
}

impl<F, B, E> Future for CodedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<CodedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let answered = ready!(this.inner.as_mut().poll(task));
        let (span, side) = (this.inner.span(), *this.side);
        Poll::Ready(match answered {
            Ok(response) => {
                side.note(span, response.headers());
                let span = span.clone();
                Ok(response.map(|body| CodedBody {
                    inner: body,
                    span,
                    side,
                }))
            }
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                Err(error)
            }
        })
    }
}

pin_project! {
    /// The body of an answer: the code comes after it, and with it the span ends.
    pub struct CodedBody<B> {
        #[pin]
        inner: B,
        span: Span,
        side: Side,
    }
}

impl<B> std::fmt::Debug for CodedBody<B> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CodedBody").finish_non_exhaustive()
    }
}

impl<B: Default> Default for CodedBody<B> {
    fn default() -> Self {
        Self {
            inner: B::default(),
            span: Span::none(),
            side: Side::Server,
        }
    }
}

impl<B: Body> Body for CodedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let entered = this.span.enter();
        let frame = ready!(this.inner.poll_frame(task));
        drop(entered);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.side.note(this.span, trailers);
                }
            }
            Some(Err(_)) => {
                this.span.record("otel.status_code", "ERROR");
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_read_from_paths() {
        let name = "pollux.control.v1.Volumes/CreateVolume";
        assert_eq!(
            method(&format!("/{name}")),
            ("pollux.control.v1.Volumes", "CreateVolume", name)
        );
        let long = format!("/{}/m", "s".repeat(METHOD_BYTES_MAX));
        for path in ["", "/", "/a", "//", "/a/", "/a/b/c", "/a b/c", "/a/%00", &long] {
            assert_eq!(method(path), (UNKNOWN, UNKNOWN, UNKNOWN), "{path}");
        }
    }

    #[test]
    fn only_faults_of_the_server_are_its_errors() {
        for (code, by_server, by_caller) in [(0, false, false), (5, false, true), (13, true, true)] {
            assert_eq!(Side::Server.is_error(code), by_server, "{code}");
            assert_eq!(Side::Caller.is_error(code), by_caller, "{code}");
        }
    }
}
