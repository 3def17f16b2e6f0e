//! Answers: one JSON object, or one after the other.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tonic::Status;

use super::problem::{Problem, code_name};
use super::routes::Answer;

const EVENT_STREAM: &str = "text/event-stream";

/// How a change is written.
type Write = fn(Result<Value, Status>) -> String;

/// The response with an answer.
pub(super) fn response(headers: &HeaderMap, answer: Answer) -> Response {
    let changes = match answer {
        Answer::One(value) => {
            let headers = [
                (CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            return (headers, value.to_string()).into_response();
        }
        Answer::Many(changes) => changes,
    };
    let accepted = headers.get_all(ACCEPT).iter();
    let is_events = accepted
        .filter_map(|accepted| accepted.to_str().ok())
        .any(|accepted| accepted.contains(EVENT_STREAM));
    let (kind, write): (_, Write) = match is_events {
        true => (EVENT_STREAM, event),
        false => ("application/jsonl", line),
    };
    let chunks = changes.map(move |change| Ok::<_, Infallible>(Bytes::from(write(change))));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}

/// The end of a stream that failed, in the words of a change.
fn failure(status: &Status) -> Value {
    let reason = Problem::of(status).reason();
    json!({"error": {"code": code_name(status.code()), "reason": reason, "detail": status.message()}})
}

fn line(change: Result<Value, Status>) -> String {
    let value = change.unwrap_or_else(|status| failure(&status));
    format!("{value}\n")
}

/// An event (HTML, "Server-sent events"). JSON has no line ends in it.
fn event(change: Result<Value, Status>) -> String {
    match change {
        Ok(value) => {
            let revision = value.get("revision").and_then(Value::as_str).unwrap_or_default();
            format!("id: {revision}\ndata: {value}\n\n")
        }
        Err(status) => format!("event: error\ndata: {}\n\n", failure(&status)),
    }
}
