//! The interface of the control plane as REST and JSON, for those who script with curl.
//!
//! It is the gRPC interface in other clothes: each route is one call of one service, made with the same
//! message, the same caller and the same checks. What can be asked, and how, is in one table ([`routes`]);
//! the description that is served at `/openapi.json` is made from that table and the `.proto` files, so that
//! none of the three can say something else.
//!
//! - Messages are in protobuf's own JSON mapping, with the names of the `.proto` files.
//! - `{name}` in a path is the name of a resource. A verb that is no HTTP method follows a colon:
//!   `POST /v1/volumes/database:publish`.
//! - `PATCH` takes the resource and, in the query, `update_mask=spec.size_bytes,metadata.labels`.
//! - Lists take `page_size` and `page_token`.
//! - Watches answer with one JSON object a line, or with server-sent events for those who accept
//!   `text/event-stream`; the identifier of an event is its revision, from which `Last-Event-ID` goes on.
//! - Errors are problem details (RFC 9457) with the reason, the gRPC code and all wrong fields.

mod answer;
mod descriptors;
mod openapi;
mod problem;
mod request;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tonic::Status;
use tracing::Instrument;

use crate::server::Services;

pub use problem::Problem;
pub(crate) use problem::code_name;
pub use routes::{ROUTES, Route, Verb};

/// The largest body of a request, in bytes: as for gRPC.
const BODY_BYTES_MAX: usize = 1 << 20;

/// How long a request may take to be read and answered; of watches, until they begin.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the description is served.
const DESCRIPTION_PATH: &str = "/openapi.json";

/// Answers all routes of the interface, and the description of it.
pub fn router(services: Services) -> Router {
    let description: Arc<str> = openapi::description().to_string().into();
    let describe = move || async move { ([(CONTENT_TYPE, "application/json")], description.to_string()) };
    Router::new()
        .route(DESCRIPTION_PATH, get(describe))
        .fallback(dispatch)
        .with_state(services)
}

/// The description of the interface, as OpenAPI 3.1.
pub fn description() -> serde_json::Value {
    openapi::description()
}

async fn dispatch(State(services): State<Services>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (route, name) = match find(&parts.method, parts.uri.path()) {
        Ok(found) => found,
        Err(problem) => return problem.into_response(),
    };
    let span = span(route, &parts.headers);
    let called = call(services, route, name, parts, body).instrument(span.clone());
    let response = match tokio::time::timeout(CALL_TIMEOUT, called).await {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => problem.into_response(),
        Err(_) => {
            Problem::of(&Status::deadline_exceeded("the call took too long: ask again")).into_response()
        }
    };
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}

/// The span of a call, which is part of what its caller does. Of a watch it is until that begins.
fn span(route: &Route, headers: &HeaderMap) -> tracing::Span {
    let span = pollux_trace::span!(
        parent: None,
        "served",
        otel.name = format_args!("{} {}", route.verb.method(), route.path),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = route.verb.method().as_str(),
        http.route = route.path,
        http.response.status_code = tracing::field::Empty,
        rpc.service = route.service,
        rpc.method = route.rpc,
    );
    pollux_trace::adopt(&span, headers);
    span
}

/// Calls by a route.
async fn call(
    services: Services,
    route: &Route,
    name: Option<String>,
    parts: Parts,
    body: Body,
) -> Result<Response, Problem> {
    let body = read(route, &parts.headers, body).await?;
    let message = request::message(route, name.as_deref(), parts.uri.query(), body)?;
    let message = request::resumed(route, &parts.headers, message)?;
    let headers = parts.headers.clone();
    let mut metadata = tonic::metadata::MetadataMap::from_headers(parts.headers);
    metadata.remove("te");
    let call = routes::Call {
        services,
        metadata,
        extensions: parts.extensions,
        message,
    };
    let answered = (route.call)(call).await;
    Ok(answer::response(&headers, answered?))
}

/// The route of a request, and the name that is in its path.
fn find(method: &Method, path: &str) -> Result<(&'static Route, Option<String>), Problem> {
    let mut others = Vec::new();
    for route in ROUTES {
        let Some(name) = routes::matched(route.path, path) else {
            continue;
        };
        if route.verb.method() == *method {
            let name = name.map(request::decoded).transpose()?;
            return Ok((route, name));
        }
        others.push(route.verb.method().to_string());
    }
    match others.is_empty() {
        true => Err(Problem::plain(
            StatusCode::NOT_FOUND,
            &format!("there is nothing at {path}: {DESCRIPTION_PATH} tells all that there is"),
        )),
        false => Err(Problem::plain(
            StatusCode::METHOD_NOT_ALLOWED,
            &format!("{path} takes {}", others.join(", ")),
        )
        .allowing(&others)),
    }
}

/// The body of a request, if it is of a kind and a size that is taken.
async fn read(route: &Route, headers: &HeaderMap, body: Body) -> Result<Option<serde_json::Value>, Problem> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        Problem::plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body cannot be read, or has more than {BODY_BYTES_MAX} bytes"),
        )
    })?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if matches!(route.body, routes::Body::None) {
        return Err(Problem::field("body", "is given; this call takes none"));
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        return Err(Problem::plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body has to be application/json: say so in the header content-type",
        ));
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Problem::field("body", &format!("is no JSON: {error}")))
}
