//! The HTTP interface of an engine: to look at, never to change anything.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pollux_http::health::Check;
use pollux_http::metrics;
use pollux_http::{HttpListener, PeerCertificates};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::text::{self, PoolSpace};
use crate::cluster::role_of;
use crate::engine::Engine;
use crate::pools::Pools;

/// What is told of.
#[derive(Clone)]
struct Told {
    engine: Arc<Engine>,
    pools: Arc<Pools>,
}

/// Who may look at metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looking {
    /// Whoever reaches it.
    Anyone,
    /// Those whose certificate has a role that may.
    Certificates,
}

/// The roles of certificates that may look: all but those of engines.
const ROLES: [&str; 4] = ["viewer", "csi", "operator", "admin"];

/// The interface as it runs.
pub(crate) struct TelemetryServer {
    address: std::net::SocketAddr,
    looking: Looking,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl TelemetryServer {
    /// Answers from now on.
    pub(crate) fn start(
        listener: HttpListener,
        looking: Looking,
        engine: Arc<Engine>,
        pools: Arc<Pools>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let address = listener.address();
        let task = tokio::spawn(listener.serve(router(looking, engine, pools), stopped));
        Self {
            address,
            looking,
            stop,
            task,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// How it is asked.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.looking {
            Looking::Anyone => "http",
            Looking::Certificates => "https",
        }
    }

    /// Answers no more.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the HTTP interface ended by itself");
        }
    }
}

fn router(looking: Looking, engine: Arc<Engine>, pools: Arc<Pools>) -> Router {
    let checked = engine.clone();
    let reactors = Check::vital("reactors", move || {
        let engine = checked.clone();
        async move { engine.turn_reactors().await }
    });
    let checked = engine.clone();
    let serving = Check::ready("serving", move || {
        let engine = checked.clone();
        async move {
            match (engine.is_draining(), engine.opening()) {
                (true, _) => Err("it was told to stop".to_owned()),
                (false, Some(what)) => Err(format!("it opens {what}")),
                (false, None) => Ok(()),
            }
        }
    });
    Router::new()
        .route("/metrics", get(scrape))
        .route_layer(from_fn_with_state(looking, require_role))
        .with_state(Told { engine, pools })
        .merge(pollux_http::health::router(vec![reactors, serving]))
}

/// Refuses whoever may not look. Whether the engine is well is no secret, and asked by those without.
async fn require_role(State(looking): State<Looking>, request: Request, next: Next) -> Response {
    if looking == Looking::Certificates {
        let certificates = request.extensions().get::<PeerCertificates>();
        let own = certificates.and_then(|certificates| certificates.0.first());
        let Some(role) = own.and_then(|own| role_of(own)) else {
            let why = "give a certificate of the cluster\n";
            return (StatusCode::UNAUTHORIZED, why).into_response();
        };
        if !ROLES.contains(&role.as_str()) {
            let why = format!("the role {role} may not look; it takes {}\n", ROLES.join(", "));
            return (StatusCode::FORBIDDEN, why).into_response();
        }
    }
    next.run(request).await
}

async fn scrape(State(told): State<Told>) -> Response {
    let mut measurements = told.engine.meters().read();
    measurements.extend(told.pools.meters().read());
    let mut spaces = Vec::new();
    for pool in told.pools.all() {
        let space = pool.shared.call(|pool| async move {
            let space = pool.space();
            (space.total_bytes, space.free_bytes, pool.volumes().len() as u64)
        });
        // One that is being closed has nothing to tell any more.
        if let Ok((total_bytes, free_bytes, volumes)) = space.await {
            spaces.push(PoolSpace {
                name: pool.shared.name().to_owned(),
                total_bytes,
                free_bytes,
                volumes,
            });
        }
    }
    let mirrors = told.engine.mirrors().read().await;
    let text = text::write(&told.engine, &measurements, &spaces, &mirrors);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}
