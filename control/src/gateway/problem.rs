//! Errors as problem details (RFC 9457).

use axum::http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::server::CallError;

/// Why a request was not done.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    body: Value,
    allowed: Option<String>,
}

impl Problem {
    /// Of a call that failed.
    pub fn of(status: &Status) -> Self {
        let code = status.code();
        let http = http_status(code);
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone());
        let errors: Vec<Value> = details
            .bad_request()
            .map(|bad| &bad.field_violations[..])
            .unwrap_or_default()
            .iter()
            .map(|wrong| json!({"field": wrong.field, "description": wrong.description}))
            .collect();
        let mut body = body(http, status.message());
        if let Value::Object(body) = &mut body {
            body.insert("code".to_owned(), json!(code_name(code)));
            if let Some(reason) = reason {
                body.insert("reason".to_owned(), json!(reason));
            }
            if !errors.is_empty() {
                body.insert("errors".to_owned(), json!(errors));
            }
        }
        Self {
            status: http,
            body,
            allowed: None,
        }
    }

    /// Of a request that is no call.
    pub fn plain(status: StatusCode, detail: &str) -> Self {
        Self {
            status,
            body: body(status, detail),
            allowed: None,
        }
    }

    /// Of a wrong field.
    pub fn field(field: &str, description: &str) -> Self {
        Self::of(&CallError::field(field, description).into())
    }

    /// The reason, for machines.
    pub(super) fn reason(&self) -> Value {
        self.body.get("reason").cloned().unwrap_or_default()
    }

    /// With the methods that could have been used.
    pub(super) fn allowing(self, methods: &[String]) -> Self {
        Self {
            allowed: Some(methods.join(", ")),
            ..self
        }
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Self::of(&status)
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::of(&error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"pollux\""),
            );
        }
        if let Some(allowed) = self
            .allowed
            .and_then(|allowed| HeaderValue::try_from(allowed).ok())
        {
            headers.insert(ALLOW, allowed);
        }
        response
    }
}

fn body(status: StatusCode, detail: &str) -> Value {
    json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    })
}

/// The name of a code as protobuf has it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The HTTP status of a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}
