//! What the control plane tells of itself and of the cluster, to those who watch over both: `/metrics`,
//! `/healthz`, `/readyz`.
//!
//! Counters are of this process. What is told of the cluster is what is on record, read from the store when
//! it is asked for: any instance can tell it, not only the one that leads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pollux_http::CertificatesInUse;
use pollux_http::families::control as families;
use pollux_http::health::Check;
use pollux_http::metrics::{self, Exposition, Histogram};

use crate::gateway::Problem;
use crate::security::Action;
use crate::server::Services;

mod cluster;

/// Upper bounds of what is timed, in seconds.
const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Methods and codes that are told apart; there are fewer, as what is not known counts as one.
const CALLS_MAX: usize = 1000;

/// How often something took how long.
#[derive(Debug, Default)]
struct Timings {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Timings {
    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let place = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, samples: &mut metrics::Samples<'_>, labels: &[&str]) {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        let histogram = Histogram {
            bounds: &BOUNDS,
            counts: &counts,
            sum: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6,
        };
        samples.add_histogram(labels, histogram);
    }
}

/// How the interface was used: its name, the method, the code.
type CallKey = (&'static str, String, String);

/// What is counted of the work of this instance.
#[derive(Debug, Default)]
pub struct Telemetry {
    leads: AtomicBool,
    term: AtomicU64,
    passes: AtomicU64,
    pass_seconds: Timings,
    commits: AtomicU64,
    commands: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    calls: Mutex<BTreeMap<CallKey, u64>>,
    grpc_seconds: Timings,
    http_seconds: Timings,
    certificates: CertificatesInUse,
}

impl Telemetry {
    /// This instance leads from now on.
    pub fn leads(&self, term: u64) {
        self.term.store(term, Ordering::Relaxed);
        self.leads.store(true, Ordering::Relaxed);
    }

    /// It leads no more.
    pub fn follows(&self) {
        self.leads.store(false, Ordering::Relaxed);
    }

    /// The certificates that are used.
    pub(crate) fn certificates(&self) -> &CertificatesInUse {
        &self.certificates
    }

    pub(crate) fn planned(&self, commits: usize, commands: usize) {
        self.commits.fetch_add(commits as u64, Ordering::Relaxed);
        self.commands.fetch_add(commands as u64, Ordering::Relaxed);
    }

    pub(crate) fn passed(&self, time: Duration) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.pass_seconds.add(time);
    }

    pub(crate) fn command_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn command_unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    fn called(&self, key: CallKey, time: Duration) {
        match key.0 {
            GRPC => self.grpc_seconds.add(time),
            _ => self.http_seconds.add(time),
        }
        // Counting cannot leave it half done.
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() < CALLS_MAX || calls.contains_key(&key) {
            *calls.entry(key).or_default() += 1;
        }
    }

    fn write(&self, text: &mut Exposition) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        text.family(&families::BUILD)
            .add(&[env!("CARGO_PKG_VERSION")], 1.0);
        let leads = f64::from(u8::from(self.leads.load(Ordering::Relaxed)));
        text.family(&families::LEADER).add(&[], leads);
        text.family(&families::TERM).add(&[], read(&self.term));
        text.family(&families::PASSES).add(&[], read(&self.passes));
        self.pass_seconds
            .write(&mut text.family(&families::PASS_SECONDS), &[]);
        text.family(&families::STEPS)
            .add(&["commit"], read(&self.commits))
            .add(&["command"], read(&self.commands));
        text.family(&families::COMMANDS_FAILED)
            .add(&["refused"], read(&self.refused))
            .add(&["unanswered"], read(&self.unanswered));
        self.certificates.write(text);
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut samples = text.family(&families::CALLS);
        for ((interface, method, code), count) in &calls {
            samples.add(&[interface, method, code], *count as f64);
        }
        let mut samples = text.family(&families::CALL_SECONDS);
        self.grpc_seconds.write(&mut samples, &[GRPC]);
        self.http_seconds.write(&mut samples, &[HTTP]);
    }
}

const GRPC: &str = "grpc";
const HTTP: &str = "http";

/// Counts a call of gRPC.
pub(crate) async fn count_grpc(State(services): State<Services>, request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let began = Instant::now();
    let response = next.run(request).await;
    // An error that comes before any answer is in the headers; a call that answers is good.
    let code = response
        .headers()
        .get("grpc-status")
        .and_then(|code| code.to_str().ok());
    let code: i32 = code.and_then(|code| code.parse().ok()).unwrap_or(0);
    let code = tonic::Code::from_i32(code);
    let method = match code {
        // Anything can be asked for: what there is not is one thing.
        tonic::Code::Unimplemented => "unknown".to_owned(),
        _ => path
            .strip_prefix("pollux.control.v1.")
            .unwrap_or("unknown")
            .to_owned(),
    };
    let code = crate::gateway::code_name(code).to_owned();
    services.telemetry().called((GRPC, method, code), began.elapsed());
    response
}

/// Counts a request of HTTP.
pub(crate) async fn count_http(State(services): State<Services>, request: Request, next: Next) -> Response {
    let method = match request.method().as_str() {
        method @ ("GET" | "POST" | "PATCH" | "DELETE" | "PUT" | "HEAD" | "OPTIONS") => method.to_owned(),
        _ => "unknown".to_owned(),
    };
    let began = Instant::now();
    let response = next.run(request).await;
    let code = response.status().as_u16().to_string();
    services.telemetry().called((HTTP, method, code), began.elapsed());
    response
}

/// Answers `/metrics`, for those who may look, and `/healthz` and `/readyz`, for all.
pub(crate) fn router(services: Services) -> Router {
    let ready = services.clone();
    let store = Check::ready("store", move || {
        let services = ready.clone();
        async move { services.is_ready().await.map_err(|error| error.to_string()) }
    });
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(services)
        .merge(pollux_http::health::router(vec![store]))
}

async fn scrape(State(services): State<Services>, request: Request) -> Response {
    let permitted = services.permit_http(request.extensions(), Action::Read);
    let mut text = Exposition::default();
    services.telemetry().write(&mut text);
    let written = match permitted {
        Ok(_) => services.view(|world| cluster::write(world, &mut text)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        return Problem::from(error).into_response();
    }
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text.finish()).into_response()
}
