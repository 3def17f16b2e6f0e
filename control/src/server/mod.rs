//! The calls of `pollux.control.v1`: who may, whether it makes sense, then one transaction of the store.
//!
//! Nothing here tells engines anything; they are asked for measurements, for blocks of snapshots, and for
//! what is on their pools. A call that asks for something returns once that is stored; the planner does the
//! rest, and `status` tells how far it is.

mod authenticate;
mod blocks;
mod errors;
mod group_snapshots;
pub(crate) mod host_secrets;
mod measurements;
mod nodes;
mod policies;
mod rebalances;
mod records;
mod recoveries;
mod registry;
mod roll_backs;
mod snapshots;
mod tokens;
mod volumes;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use pollux_api::control::v1::events_server::EventsServer;
use pollux_api::control::v1::group_snapshots_server::GroupSnapshotsServer;
use pollux_api::control::v1::groups_server::GroupsServer;
use pollux_api::control::v1::measurements_server::MeasurementsServer;
use pollux_api::control::v1::nodes_server::NodesServer;
use pollux_api::control::v1::pools_server::PoolsServer;
use pollux_api::control::v1::rebalances_server::RebalancesServer;
use pollux_api::control::v1::recoveries_server::RecoveriesServer;
use pollux_api::control::v1::registry_server::RegistryServer;
use pollux_api::control::v1::snapshots_server::SnapshotsServer;
use pollux_api::control::v1::templates_server::TemplatesServer;
use pollux_api::control::v1::tokens_server::TokensServer;
use pollux_api::control::v1::volumes_server::VolumesServer;
use pollux_http::{HttpError, HttpListener};
use pollux_tls::{Callers, Certificates, handshakes};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::controller::{Clock, Observations};
use crate::engines::EngineClient;
use crate::gateway;
use crate::plan::Limits;
use crate::security::{Action, Caller, Guard};
use crate::store::{LEADER_KEY, Store, StoreError};
use crate::telemetry::{self, Telemetry};
use crate::view::View;
use crate::world::World;

pub use errors::CallError;
pub use records::Managed;

/// Largest request: a volume with all rules that may be given.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Calls under way on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 256;

/// How long a peer may be silent before it is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long a request may take to be answered, but for watches.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What calls are answered from.
#[derive(Debug, Clone)]
pub struct ServiceParts {
    /// Where records are.
    pub store: Arc<dyn Store>,
    /// What engines told last.
    pub observations: Arc<Observations>,
    /// How engines are asked what they measured.
    pub engines: Arc<dyn EngineClient>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What planning may do: for plans that are only shown.
    pub limits: Limits,
    /// Who may do what.
    pub guard: Guard,
}

/// Answers calls.
#[derive(Debug, Clone)]
pub struct Services {
    parts: ServiceParts,
    /// All records, and what engines told last.
    view: View,
}

impl Services {
    /// Answers from these parts.
    pub fn new(parts: ServiceParts) -> Self {
        let (store, observations) = (parts.store.clone(), parts.observations.clone());
        let view = View::new(store, observations, parts.clock.clone());
        Self { parts, view }
    }

    /// Looks at all records and what engines told last.
    pub(crate) async fn view<T>(&self, look: impl FnOnce(&World) -> T) -> Result<T, CallError> {
        Ok(self.view.read(look).await?)
    }

    /// Who calls, if the caller may do that.
    fn permit<T>(&self, request: &Request<T>, action: Action) -> Result<Caller, CallError> {
        self.parts.guard.permit(request, action)
    }

    /// Who asks by HTTP, if the caller may do that.
    pub(crate) fn permit_http(
        &self,
        extensions: &axum::http::Extensions,
        action: Action,
    ) -> Result<Caller, CallError> {
        self.parts.guard.permit_by(extensions, None, action)
    }

    /// What planning may do.
    pub(crate) fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// What is counted of the work of this instance.
    pub(crate) fn telemetry(&self) -> &Telemetry {
        self.parts.observations.telemetry()
    }

    /// Whether calls can be answered: the store does.
    pub(crate) async fn is_ready(&self) -> Result<(), StoreError> {
        self.parts.store.get(LEADER_KEY).await.map(drop)
    }

    /// All services, for a server.
    pub fn routes(self) -> Routes {
        macro_rules! service {
            ($server:ident) => {
                $server::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX)
            };
        }
        let routes = Routes::new(service!(NodesServer))
            .add_service(service!(PoolsServer))
            .add_service(service!(VolumesServer))
            .add_service(service!(SnapshotsServer))
            .add_service(service!(GroupsServer))
            .add_service(service!(GroupSnapshotsServer))
            .add_service(service!(TemplatesServer))
            .add_service(service!(EventsServer))
            .add_service(service!(RegistryServer))
            .add_service(service!(TokensServer))
            .add_service(service!(MeasurementsServer))
            .add_service(service!(RebalancesServer))
            .add_service(service!(RecoveriesServer));
        let router = routes.into_axum_router();
        let authenticated = from_fn_with_state(self.clone(), authenticate::authenticate);
        let counted = from_fn_with_state(self, telemetry::count_grpc);
        let router = router.layer(authenticated).layer(counted);
        Routes::from(router.layer(pollux_trace::ServedLayer))
    }

    /// All that is answered by HTTP: the interface as REST and JSON, metrics and health.
    pub fn http(self) -> Router {
        let authenticated = from_fn_with_state(self.clone(), authenticate::authenticate);
        let counted = from_fn_with_state(self.clone(), telemetry::count_http);
        let watched = telemetry::router(self.clone());
        let router = gateway::router(self).merge(watched);
        router.layer(authenticated).layer(counted)
    }
}

/// Why the interface cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be taken.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// It would be open to all.
    #[error(
        "{0} can be reached from other machines: give certificates (`pollux cert`), or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// The address of HTTP cannot be taken.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The certificates cannot be used, or the server has ended.
    #[error("the interface cannot be served: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// An interface that listens.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Certificates>,
}

impl Listening {
    /// Listens, without taking calls yet. Without certificates, on this machine only.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn bind(address: SocketAddr, tls: Option<Certificates>) -> Result<Self, ServeError> {
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(ServeError::Open(address));
        }
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    /// Listens for HTTP, without answering yet. Without certificates, on this machine only.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn bind_http(
        address: SocketAddr,
        tls: Option<Certificates>,
    ) -> Result<HttpListener, ServeError> {
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(ServeError::Open(address));
        }
        Ok(HttpListener::bind(address, tls).await?)
    }

    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers calls until `stop` turns true.
    ///
    /// # Errors
    ///
    /// [`ServeError::Transport`].
    pub async fn serve(self, services: Services, mut stop: watch::Receiver<bool>) -> Result<(), ServeError> {
        let mut server = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .timeout(CALL_TIMEOUT);
        let stopped = async move {
            // A sender that is gone stops it too.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        // An answer is several small writes: the second must not wait until the first is acknowledged.
        let connections = TcpListenerStream::new(self.listener).map(|stream| {
            let stream = stream?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(stream)
        });
        let router = server.add_routes(services.routes());
        match self.tls {
            Some(certificates) => {
                // Who has none may have a token.
                let connections = handshakes(connections, certificates, Callers::Any);
                router.serve_with_incoming_shutdown(connections, stopped).await?;
            }
            None => router.serve_with_incoming_shutdown(connections, stopped).await?,
        }
        Ok(())
    }
}

/// The methods that all kinds of resources have, in the words of one kind.
macro_rules! answer {
    ($call:expr) => {
        Ok(tonic::Response::new($call))
    };
}

/// The message of a change of one kind.
macro_rules! change_message {
    ($message:ident, $module:ident) => {
        |revision, change| $message {
            revision,
            change: Some(match change {
                Ok(record) => pollux_api::control::v1::$module::Change::Put(record),
                Err(name) => pollux_api::control::v1::$module::Change::Deleted(name),
            }),
        }
    };
}

pub(crate) use {answer, change_message};
