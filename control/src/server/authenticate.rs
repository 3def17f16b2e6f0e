//! Who calls by a token: found out before a call is looked at, for gRPC and REST alike.
//!
//! Nothing is refused here. What was found out goes with the request; the call itself says whether the
//! caller may, in the words of its own interface.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use pollux_api::control::v1::StoredToken;
use tonic::Status;

use crate::model::{Kind, Record};
use crate::security::{Authenticated, BearerToken, Caller};

use super::Services;
use super::errors::CallError;

/// How often it is looked whether a token is still good while its bearer is being answered.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);

impl Services {
    /// Who bears a token.
    async fn bearer(&self, token: &BearerToken) -> Result<Caller, CallError> {
        // A name that is none has no record; the key is not even looked for.
        let is_name = super::records::require_name(token.name()).is_ok();
        let entry = match is_name {
            true => self.parts.store.get(&Kind::Token.key(token.name())).await?,
            false => None,
        };
        let stored = entry.as_ref().map(StoredToken::read).transpose()?;
        token.caller(stored.as_ref(), self.parts.clock.now_unix_us())
    }

    /// Returns once a token is not good any more.
    async fn until_void(self, token: BearerToken) {
        loop {
            tokio::time::sleep(RECHECK_INTERVAL).await;
            // A store that is away for a moment is no reason.
            if let Err(CallError::Unauthenticated(_)) = self.bearer(&token).await {
                return;
            }
        }
    }
}

/// Looks at the token of a request, if it has one.
pub(super) async fn authenticate(
    State(services): State<Services>,
    mut request: Request,
    next: Next,
) -> Response {
    // It goes no further: nothing behind this could tell of it.
    let Some(header) = request.headers_mut().remove(AUTHORIZATION) else {
        return next.run(request).await;
    };
    let token = BearerToken::of_header(header.as_bytes());
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let found = match &token {
        Ok(token) => services.bearer(token).await,
        Err(error) => Err(error.clone()),
    };
    let is_let_in = found.is_ok();
    request.extensions_mut().insert(Authenticated(found));
    let response = next.run(request).await;
    match token {
        Ok(token) if is_let_in && !response.body().is_end_stream() => response.map(|body| {
            Body::new(WhileGood {
                body,
                void: Box::pin(services.until_void(token)),
                is_grpc,
                has_ended: false,
            })
        }),
        _ => response,
    }
}

/// A body that breaks off when the token is void that it was asked for by; of a call by gRPC it says so.
struct WhileGood {
    body: Body,
    void: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_grpc: bool,
    has_ended: bool,
}

/// What is told then.
const VOID: &str = "the token was revoked, or has expired";

impl HttpBody for WhileGood {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if self.void.as_mut().poll(context).is_ready() {
            self.has_ended = true;
            let told = match self.is_grpc {
                true => {
                    let mut trailers = HeaderMap::new();
                    let added = Status::unauthenticated(VOID).add_header(&mut trailers);
                    added
                        .map(|()| Frame::trailers(trailers))
                        .map_err(axum::Error::new)
                }
                false => Err(axum::Error::new(VOID)),
            };
            return Poll::Ready(Some(told));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
