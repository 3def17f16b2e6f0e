//! How engines are asked and told: by a trait, so that tests have engines in memory, and by gRPC.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pollux_api::control::v1::agent_client::AgentClient;
use pollux_api::control::v1::meter_client::MeterClient;
use pollux_api::control::v1::{
    EngineCommand, EngineMeasurements, EngineReport, EngineSurvey, ExecuteRequest, GetReportRequest,
    ListReplicaBlocksRequest, ListReplicaBlocksResponse, MeasureRequest, SurveyRequest,
    engine_command::Command,
};
use pollux_tls::Certificates;
use pollux_trace::Calls;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long connecting to an engine may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a command may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest report: about 20,000 replicas.
const REPORT_BYTES_MAX: usize = 16 << 20;

/// Largest survey: as many replicas, each with a record of all the snapshots that there can be.
const SURVEY_BYTES_MAX: usize = 128 << 20;

/// How long a survey may take: pools are opened for it.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(50);

/// An engine, and where it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineAddress {
    /// The name of its node.
    pub node: String,
    /// HOST:PORT or unix:PATH.
    pub address: String,
}

/// Why an engine did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// It does not answer. What it was told may be done or not.
    #[error("the engine on node {node} does not answer: {reason}")]
    Unreachable {
        /// Its node.
        node: String,
        /// What went wrong.
        reason: String,
    },
    /// It said no, and nothing is done.
    #[error("the engine on node {node} refused: {reason}")]
    Refused {
        /// Its node.
        node: String,
        /// What it said.
        reason: String,
    },
    /// It has been told something by a later leader: the caller leads no more.
    #[error("the engine on node {node} follows a later leader")]
    TermStale {
        /// Its node.
        node: String,
    },
}

/// Engines as the control plane sees them.
#[tonic::async_trait]
pub trait EngineClient: Send + Sync + fmt::Debug + 'static {
    /// Tells an engine what is to be. Returns once it is so. Told twice, nothing happens the second time.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError>;

    /// All that is on an engine.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unreachable`].
    async fn report(&self, engine: &EngineAddress) -> Result<Arc<EngineReport>, EngineError>;

    /// What an engine measured since it was started.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unreachable`], also of one that measures nothing.
    async fn measure(&self, engine: &EngineAddress) -> Result<EngineMeasurements, EngineError> {
        Err(EngineError::Unreachable {
            node: engine.node.clone(),
            reason: "it measures nothing".to_owned(),
        })
    }

    /// Some of the ranges of a snapshot of a replica on an engine.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unreachable`], also of one that has no snapshots; [`EngineError::Refused`] if it has
    /// not that one.
    async fn blocks(
        &self,
        engine: &EngineAddress,
        request: ListReplicaBlocksRequest,
    ) -> Result<ListReplicaBlocksResponse, EngineError> {
        drop(request);
        Err(EngineError::Unreachable {
            node: engine.node.clone(),
            reason: "it tells nothing of snapshots".to_owned(),
        })
    }

    /// What is on all pools of an engine, with all that replicas know of their volumes.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unreachable`], also of one that cannot tell.
    async fn survey(
        &self,
        engine: &EngineAddress,
        request: SurveyRequest,
    ) -> Result<EngineSurvey, EngineError> {
        drop(request);
        Err(EngineError::Unreachable {
            node: engine.node.clone(),
            reason: "it cannot tell what is on its pools".to_owned(),
        })
    }
}

/// How an engine is called: each call is part of the trace of what it is told for.
type Connection = Calls<Channel>;

/// Engines by gRPC: each serves `pollux.control.v1.Agent` at its address.
#[derive(Debug, Default)]
pub struct GrpcEngines {
    /// How they are trusted, and the control plane by them; none on one machine.
    tls: Option<Certificates>,
    /// Connections, by engine. They connect when they are used, and again when they broke.
    channels: Mutex<HashMap<EngineAddress, Connection>>,
}

impl GrpcEngines {
    /// Engines that are called with these certificates, or without.
    pub fn new(tls: Option<Certificates>) -> Self {
        Self {
            tls,
            channels: Mutex::default(),
        }
    }

    fn client(&self, engine: &EngineAddress) -> Result<AgentClient<Connection>, EngineError> {
        Ok(AgentClient::new(self.channel(engine)?).max_decoding_message_size(REPORT_BYTES_MAX))
    }

    fn channel(&self, engine: &EngineAddress) -> Result<Connection, EngineError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(engine) {
            Some(channel) => channel.clone(),
            None => {
                let channel = Calls::new(self.connect(engine)?, &engine.node);
                channels.insert(engine.clone(), channel.clone());
                channel
            }
        };
        Ok(channel)
    }

    fn connect(&self, engine: &EngineAddress) -> Result<Channel, EngineError> {
        let unreachable = |error: tonic::transport::Error| EngineError::Unreachable {
            node: engine.node.clone(),
            reason: error.to_string(),
        };
        let is_socket = engine.address.starts_with("unix:");
        let uri = match (is_socket, &self.tls) {
            (true, _) => engine.address.clone(),
            (false, Some(_)) => format!("https://{}", engine.address),
            (false, None) => format!("http://{}", engine.address),
        };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(unreachable)?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        match self.tls.as_ref().filter(|_| !is_socket) {
            Some(certificates) => certificates.channel(vec![endpoint]).map_err(unreachable),
            None => Ok(endpoint.connect_lazy()),
        }
    }
}

fn failed(engine: &EngineAddress, status: &Status) -> EngineError {
    let node = engine.node.clone();
    // What went wrong below says more than that the transport failed.
    let cause = std::iter::successors(status.source(), |&cause| cause.source()).last();
    let reason = cause.map_or_else(|| status.message().to_owned(), ToString::to_string);
    match status.code() {
        Code::FailedPrecondition => EngineError::TermStale { node },
        Code::Unimplemented => EngineError::Unreachable {
            node,
            reason: "it is of a version that takes no commands of a control plane".to_owned(),
        },
        // Aborted: not now, because something else is in the way.
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted => EngineError::Refused { node, reason },
        _ => EngineError::Unreachable { node, reason },
    }
}

#[tonic::async_trait]
impl EngineClient for GrpcEngines {
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError> {
        let request = ExecuteRequest {
            term,
            command: Some(EngineCommand {
                command: Some(command),
            }),
        };
        let done = self.client(engine)?.execute(request).await;
        done.map(drop).map_err(|status| failed(engine, &status))
    }

    async fn report(&self, engine: &EngineAddress) -> Result<Arc<EngineReport>, EngineError> {
        let report = self.client(engine)?.get_report(GetReportRequest {}).await;
        match report {
            Ok(report) => Ok(Arc::new(report.into_inner())),
            Err(status) => Err(failed(engine, &status)),
        }
    }

    async fn measure(&self, engine: &EngineAddress) -> Result<EngineMeasurements, EngineError> {
        let client = MeterClient::new(self.channel(engine)?);
        let measured = client
            .max_decoding_message_size(REPORT_BYTES_MAX)
            .measure(MeasureRequest {})
            .await;
        let measured = measured.map(tonic::Response::into_inner);
        measured.map_err(|status| match status.code() {
            Code::Unimplemented => EngineError::Unreachable {
                node: engine.node.clone(),
                reason: "it is of a version that measures nothing".to_owned(),
            },
            _ => failed(engine, &status),
        })
    }

    async fn blocks(
        &self,
        engine: &EngineAddress,
        request: ListReplicaBlocksRequest,
    ) -> Result<ListReplicaBlocksResponse, EngineError> {
        let listed = self.client(engine)?.list_replica_blocks(request).await;
        let listed = listed.map(tonic::Response::into_inner);
        listed.map_err(|status| failed(engine, &status))
    }

    async fn survey(
        &self,
        engine: &EngineAddress,
        request: SurveyRequest,
    ) -> Result<EngineSurvey, EngineError> {
        let mut request = tonic::Request::new(request);
        request.set_timeout(SURVEY_TIMEOUT);
        let client = AgentClient::new(self.channel(engine)?).max_decoding_message_size(SURVEY_BYTES_MAX);
        let surveyed = { client }.survey(request).await;
        let surveyed = surveyed.map(tonic::Response::into_inner);
        surveyed.map_err(|status| failed(engine, &status))
    }
}
