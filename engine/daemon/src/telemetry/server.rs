//! The HTTP interface of an engine: to look at, never to change anything.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pollux_http::HttpListener;
use pollux_http::health::Check;
use pollux_http::metrics;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::text::{self, PoolSpace};
use crate::engine::Engine;
use crate::pools::Pools;

/// What is told of.
#[derive(Clone)]
struct Told {
    engine: Arc<Engine>,
    pools: Arc<Pools>,
}

/// The interface as it runs.
pub(crate) struct TelemetryServer {
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl TelemetryServer {
    /// Answers from now on.
    pub(crate) fn start(listener: HttpListener, engine: Arc<Engine>, pools: Arc<Pools>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let address = listener.address();
        let task = tokio::spawn(listener.serve(router(engine, pools), stopped));
        Self { address, stop, task }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Answers no more.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the HTTP interface ended by itself");
        }
    }
}

fn router(engine: Arc<Engine>, pools: Arc<Pools>) -> Router {
    let checked = engine.clone();
    let reactors = Check::vital("reactors", move || {
        let engine = checked.clone();
        async move { engine.turn_reactors().await }
    });
    let checked = engine.clone();
    let serving = Check::ready("serving", move || {
        let engine = checked.clone();
        async move {
            match engine.is_draining() {
                true => Err("it was told to stop".to_owned()),
                false => Ok(()),
            }
        }
    });
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(Told { engine, pools })
        .merge(pollux_http::health::router(vec![reactors, serving]))
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
