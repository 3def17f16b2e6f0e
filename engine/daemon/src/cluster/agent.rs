//! The calls of `pollux.control.v1.Agent`: what the control plane tells this engine to be.

use std::sync::Arc;

use pollux_api::control::v1::agent_server::Agent;
use pollux_api::control::v1::{
    BlockRange, EngineReport, EngineSurvey, ExecuteRequest, ExecuteResponse, GetReportRequest,
    ListReplicaBlocksRequest, ListReplicaBlocksResponse, PoolConfig, ReplicaConfig, SurveyRequest,
    engine_command::Command,
};
use pollux_device::ByteSize;
use pollux_trace::span;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span};

use super::Cluster;
use super::certificates::Guard;
use super::cuts::CutError;
use super::record::{RecordError, uuid};
use super::targets::ServeError;
use super::term::TermError;
use crate::pools::{NewPool, PoolsError};
use crate::replicas::{BlocksAsked, ClonedReplica, NewReplica, Place, ReplicasError};
use crate::settings::PoolSettings;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// Of a leader of before.
    #[error(transparent)]
    Term(#[from] TermError),
    /// It makes no sense.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It is none.
    #[error("the command is missing")]
    Missing,
    /// The devices hold something else.
    #[error("{devices} hold the pool {found:?} and not {wanted:?}: nothing was written to them")]
    Foreign {
        /// The devices.
        devices: String,
        /// What is there.
        found: String,
        /// What should be.
        wanted: String,
    },
    /// A device holds something that is not known to be of no use to anybody.
    #[error("{uri} holds {what}: nothing was written to it; give another device, or wipe this one first")]
    Holds {
        /// The device.
        uri: String,
        /// What.
        what: String,
    },
    /// The devices hold no pool any more.
    #[error(
        "{devices} hold no pool, and {wanted:?} was made on them: nothing was written to them; see that they \
         are the same drives, or delete the pool and create another one"
    )]
    Gone {
        /// The devices.
        devices: String,
        /// What should be there.
        wanted: String,
    },
    /// Pools.
    #[error(transparent)]
    Pool(#[from] PoolsError),
    /// Replicas.
    #[error(transparent)]
    Replica(#[from] ReplicasError),
    /// Volumes.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Snapshots of several volumes.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The task that did it ended by itself.
    #[error("the command was not done: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

impl From<CommandError> for Status {
    fn from(error: CommandError) -> Self {
        let text = error.to_string();
        match &error {
            // This alone means that the caller leads no more.
            CommandError::Term(TermError::Over { .. }) => Self::failed_precondition(text),
            CommandError::Record(_)
            | CommandError::Missing
            | CommandError::Serve(ServeError::Record(_) | ServeError::Target(_) | ServeError::Subsystem(_))
            | CommandError::Cut(CutError::Record(_)) => Self::invalid_argument(text),
            CommandError::Foreign { .. } | CommandError::Holds { .. } => Self::already_exists(text),
            CommandError::Gone { .. } => Self::not_found(text),
            CommandError::Pool(_) | CommandError::Replica(_) => Self::resource_exhausted(text),
            CommandError::Serve(ServeError::Older { .. }) | CommandError::Cut(_) => Self::aborted(text),
            // This alone means that the engine can do nothing else either.
            CommandError::Term(TermError::Keep { .. })
            | CommandError::Serve(ServeError::Stopping)
            | CommandError::Lost(_) => Self::unavailable(text),
        }
    }
}

/// See the module.
pub(super) struct AgentService {
    cluster: Arc<Cluster>,
    guard: Guard,
}

impl AgentService {
    pub(super) fn new(cluster: Arc<Cluster>, guard: Guard) -> Self {
        Self { cluster, guard }
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        self.guard.require_control(&request)?;
        let ExecuteRequest { term, command } = request.into_inner();
        let command = command.and_then(|command| command.command);
        let command = command.ok_or(CommandError::Missing)?;
        let cluster = self.cluster.clone();
        // On a task of its own: a caller that hangs up must not leave a command half done.
        let span = step(&command);
        let doing = async move { cluster.execute(term, command).await };
        let done = tokio::spawn(doing.instrument(span)).await;
        done.map_err(CommandError::from)??;
        Ok(Response::new(ExecuteResponse {}))
    }

    async fn get_report(&self, request: Request<GetReportRequest>) -> Result<Response<EngineReport>, Status> {
        self.guard.require_control(&request)?;
        Ok(Response::new(self.cluster.describe().await))
    }

    async fn list_replica_blocks(
        &self,
        request: Request<ListReplicaBlocksRequest>,
    ) -> Result<Response<ListReplicaBlocksResponse>, Status> {
        self.guard.require_control(&request)?;
        let asked = blocks_asked(&request.into_inner()).map_err(CommandError::from)?;
        let page = self.cluster.parts.replicas.blocks(&asked).await;
        let page = page.map_err(CommandError::from)?;
        let ranges = page.ranges.iter().map(|range| BlockRange {
            offset_bytes: range.offset_bytes,
            length_bytes: range.length_bytes,
        });
        Ok(Response::new(ListReplicaBlocksResponse {
            ranges: ranges.collect(),
            next_offset_bytes: page.next_offset_bytes,
        }))
    }

    async fn survey(&self, request: Request<SurveyRequest>) -> Result<Response<EngineSurvey>, Status> {
        self.guard.require_control(&request)?;
        let request = request.into_inner();
        let cluster = self.cluster.clone();
        // As with commands: a pool must not be left half open.
        let done = tokio::spawn(async move { cluster.survey(&request).await }).await;
        let survey = done.map_err(CommandError::from)??;
        self.cluster.changed.notify_one();
        Ok(Response::new(survey))
    }
}

/// What is done for a command.
fn step(command: &Command) -> Span {
    let (name, volume_uid, replica_uid) = match command {
        Command::EnsurePool(_) => ("ensure pool", "", ""),
        Command::RemovePool(_) => ("remove pool", "", ""),
        Command::EnsureReplica(config) => {
            let ReplicaConfig { volume_uid, uid, .. } = config;
            ("ensure replica", volume_uid.as_str(), uid.as_str())
        }
        Command::RemoveReplica(uid) => ("remove replica", "", uid.as_str()),
        Command::EnsureTarget(config) if config.standby => ("ensure standby", config.volume_uid.as_str(), ""),
        Command::EnsureTarget(config) => ("ensure target", config.volume_uid.as_str(), ""),
        Command::RemoveTarget(removal) => ("remove target", removal.volume_uid.as_str(), ""),
        Command::CutTargets(_) => ("cut targets", "", ""),
    };
    span!("step", otel.name = name, volume_uid, replica_uid)
}

fn blocks_asked(request: &ListReplicaBlocksRequest) -> Result<BlocksAsked, RecordError> {
    let since = Some(&request.since_cut).filter(|cut| !cut.is_empty());
    Ok(BlocksAsked {
        volume: uuid(&request.volume_uid)?,
        replica: uuid(&request.replica_uid)?,
        cut: uuid(&request.cut)?,
        since: since.map(|cut| uuid(cut)).transpose()?,
        offset_bytes: request.offset_bytes,
    })
}

impl Cluster {
    /// Does what a leader of a term says. What is so already stays as it is.
    async fn execute(&self, term: u64, command: Command) -> Result<(), CommandError> {
        self.term.admit(term).await?;
        match command {
            Command::EnsurePool(config) => self.ensure_pool(&config).await?,
            Command::RemovePool(uid) => self.remove_pool(&uid).await?,
            Command::EnsureReplica(config) => self.ensure_replica(&config).await?,
            Command::RemoveReplica(uid) => {
                self.parts.replicas.remove(uuid(&uid)?).await?;
            }
            Command::EnsureTarget(config) => self.targets.ensure(config).await?,
            Command::RemoveTarget(removal) => {
                self.targets.remove(&removal.volume_uid, removal.epoch).await?;
            }
            Command::CutTargets(told) => {
                self.cuts
                    .step(&told, |volume| self.targets.mirror(volume))
                    .await?;
            }
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Imports the pool, or makes it where the devices hold nothing and it was never made. Its name is its
    /// UUID.
    async fn ensure_pool(&self, config: &PoolConfig) -> Result<(), CommandError> {
        let name = uuid(&config.uid)?.to_string();
        let pools = &self.parts.pools;
        if self.ready_pools().contains(&name) {
            return Ok(());
        }
        let settings = PoolSettings::new(config.devices.clone());
        // One that is open already is not looked at: its devices are in use.
        let label = match pools.get(&name) {
            Ok(_) => Some(name.clone()),
            Err(_) => pools.label(&settings).await?,
        };
        match label {
            Some(found) if found == name => {
                pools.import(&settings).await?;
            }
            Some(found) => {
                return Err(CommandError::Foreign {
                    devices: config.devices.join(", "),
                    found,
                    wanted: name,
                });
            }
            None if config.made => {
                return Err(CommandError::Gone {
                    devices: config.devices.join(", "),
                    wanted: name,
                });
            }
            None => {
                let new = NewPool {
                    name: name.clone(),
                    settings,
                    overwrite: Vec::new(),
                    journal: None::<ByteSize>,
                };
                pools.create(&new).await.map_err(|error| match error {
                    // There is nothing by which a control plane could say that it may be lost.
                    PoolsError::Holds { uri, what } => CommandError::Holds { uri, what },
                    error => error.into(),
                })?;
            }
        }
        self.parts.replicas.open_in_pool(&name).await?;
        self.ready_pools().insert(name);
        Ok(())
    }

    async fn remove_pool(&self, uid: &str) -> Result<(), CommandError> {
        let name = uuid(uid)?.to_string();
        self.ready_pools().remove(&name);
        match self.parts.pools.destroy(&name).await {
            Ok(()) | Err(PoolsError::NotOpen { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn ensure_replica(&self, config: &ReplicaConfig) -> Result<(), CommandError> {
        let (volume, replica) = (uuid(&config.volume_uid)?, uuid(&config.uid)?);
        let pool = uuid(&config.pool_uid)?.to_string();
        let replicas = &self.parts.replicas;
        // It grows with its volume, and its target sees to that.
        if config.source_snapshot_uid.is_empty() {
            let place = Place::InPool {
                pool,
                data_bytes: config.size_bytes,
            };
            let new = NewReplica {
                volume,
                replica,
                place,
            };
            replicas.create(&new).await?;
        } else {
            let new = ClonedReplica {
                volume,
                replica,
                pool,
                source: uuid(&config.source_replica_uid)?,
                cut: uuid(&config.source_cut)?,
            };
            replicas.clone_snapshot(&new).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pollux_nvme::wire::nqn::Nqn;
    use tonic::Code;

    use super::*;

    fn code(error: ServeError) -> Code {
        Status::from(CommandError::from(error)).code()
    }

    /// The control plane tells an engine nothing more that is unavailable: one volume that cannot be shown
    /// must not keep the others of a node from being served.
    #[test]
    fn only_an_engine_that_can_do_nothing_is_unavailable() {
        let name = "nqn.2014-08.org.nvmexpress:uuid:1"
            .parse::<Nqn>()
            .expect_err("it has no UUID");
        assert_eq!(code(ServeError::Subsystem(name.into())), Code::InvalidArgument);
        assert_eq!(code(ServeError::Stopping), Code::Unavailable);
    }
}
