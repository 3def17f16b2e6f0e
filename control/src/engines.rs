//! How engines are asked and told.

use std::fmt;
use std::sync::Arc;

use pollux_api::control::v1::{EngineReport, engine_command::Command};

/// An engine, and where it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
}
