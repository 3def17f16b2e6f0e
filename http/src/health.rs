//! Whether a daemon is well: `/healthz` and `/readyz`.
//!
//! *Well* means that it can go on; who runs it restarts it otherwise. *Ready* means that it can be used now.

use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A check under way: what is wrong, for people, if anything is.
pub type Checking = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// One thing that has to be so.
#[derive(Clone)]
pub struct Check {
    /// Its name, one word.
    pub name: &'static str,
    /// Whether the daemon has to be started anew if it is not so, or only waited for.
    pub is_vital: bool,
    /// Looks.
    pub look: Arc<dyn Fn() -> Checking + Send + Sync>,
}

impl Check {
    /// A check that has to hold for the daemon to be used.
    pub fn ready<F>(name: &'static str, look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self {
            name,
            is_vital: false,
            look: Arc::new(move || Box::pin(look())),
        }
    }

    /// A check without which the daemon is of no use any more.
    pub fn vital<F>(name: &'static str, look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self {
            is_vital: true,
            ..Self::ready(name, look)
        }
    }
}

/// Answers `/healthz` (all vital checks) and `/readyz` (all checks): 200 or 503, one line for each check.
pub fn router(checks: Vec<Check>) -> Router {
    let vital = checks.iter().filter(|check| check.is_vital).cloned().collect();
    let answer = |checks: Vec<Check>| {
        let checks: Arc<[Check]> = checks.into();
        get(move || look(checks.clone()))
    };
    Router::new()
        .route("/healthz", answer(vital))
        .route("/readyz", answer(checks))
}

async fn look(checks: Arc<[Check]>) -> Response {
    let mut text = String::new();
    let mut status = StatusCode::OK;
    for check in checks.iter() {
        let found = match tokio::time::timeout(CHECK_TIMEOUT, (check.look)()).await {
            Ok(found) => found,
            Err(_) => Err(format!("no answer in {} s", CHECK_TIMEOUT.as_secs())),
        };
        let told = found.as_ref().err().map_or("ok", String::as_str);
        // Writing to a text never fails.
        let _ = writeln!(text, "{}: {told}", check.name);
        if found.is_err() {
            status = StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    if text.is_empty() {
        text.push_str("ok\n");
    }
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (status, headers, text).into_response()
}
