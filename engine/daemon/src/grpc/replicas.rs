//! The calls of `pollux.engine.v1.Replicas`.

use std::sync::Arc;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::create_replica_request::Place as WantedPlace;
use pollux_api::engine::v1::open_snapshot_response::Outcome as Opened;
use pollux_api::engine::v1::promise_response::Outcome;
use pollux_api::engine::v1::replicas_server;
use pollux_device::DeviceUri;
use pollux_volume::membership::Epoch;
use pollux_volume::replica::PromiseError;
use tokio::task::JoinError;
use tonic::{Request, Response, Status};

use super::{fields, status};
use crate::replicas::{Admitted, NewReplica, Place, ReplicaInfo, Replicas, ReplicasError, wire};

/// Answers calls about replicas.
pub(crate) struct ReplicasService {
    replicas: Arc<Replicas>,
}

impl ReplicasService {
    pub(super) fn new(replicas: Arc<Replicas>) -> Self {
        Self { replicas }
    }
}

fn describe(info: &ReplicaInfo) -> api::Replica {
    api::Replica {
        replica: info.label.replica.to_string(),
        volume: info.label.volume.to_string(),
        uri: info.uri.to_string(),
        data_bytes: info.data_bytes(),
        promised_epoch: info.promised.0,
    }
}

#[tonic::async_trait]
impl replicas_server::Replicas for ReplicasService {
    async fn create_replica(
        &self,
        request: Request<api::CreateReplicaRequest>,
    ) -> Result<Response<api::CreateReplicaResponse>, Status> {
        let request = request.into_inner();
        let new = NewReplica {
            volume: fields::uuid("volume", &request.volume)?,
            replica: fields::uuid("replica", &request.replica)?,
            place: match request.place {
                Some(WantedPlace::InPool(place)) => Place::InPool {
                    pool: fields::name("in_pool.pool", place.pool)?,
                    data_bytes: place.data_bytes,
                },
                Some(WantedPlace::Uri(uri)) => {
                    let uri = DeviceUri::parse(&uri);
                    Place::Device(uri.map_err(|error| status::field("uri", &error.to_string()))?)
                }
                None => return Err(status::field("place", "is missing: give in_pool or uri")),
            },
        };
        let replicas = self.replicas.clone();
        // On a task of its own: a caller that hangs up must not leave a change half done.
        let created = tokio::spawn(async move { replicas.create(&new).await }).await;
        let replica = Some(describe(&finished(created)?));
        Ok(Response::new(api::CreateReplicaResponse { replica }))
    }

    async fn remove_replica(
        &self,
        request: Request<api::RemoveReplicaRequest>,
    ) -> Result<Response<api::RemoveReplicaResponse>, Status> {
        let replica = fields::uuid("replica", &request.into_inner().replica)?;
        let replicas = self.replicas.clone();
        let removed = tokio::spawn(async move { replicas.remove(replica).await }).await;
        let removed = finished(removed)?;
        Ok(Response::new(api::RemoveReplicaResponse { removed }))
    }

    async fn list_replicas(
        &self,
        _request: Request<api::ListReplicasRequest>,
    ) -> Result<Response<api::ListReplicasResponse>, Status> {
        let all = self.replicas.list().await.map_err(|error| failed(&error))?;
        let replicas = all.iter().map(describe).collect();
        Ok(Response::new(api::ListReplicasResponse { replicas }))
    }

    async fn promise(
        &self,
        request: Request<api::PromiseRequest>,
    ) -> Result<Response<api::PromiseResponse>, Status> {
        let request = request.into_inner();
        let volume = fields::uuid("volume", &request.volume)?;
        let replica = fields::uuid("replica", &request.replica)?;
        if request.epoch == 0 {
            return Err(status::field("epoch", "is 0: a target has an epoch of 1 or more"));
        }
        let host = request.host_nqn.parse();
        let host = host.map_err(|error| status::field("host_nqn", &format!("is no name: {error}")))?;
        self.replicas
            .check_open(replica)
            .map_err(|error| failed(&error))?;
        let epoch = Epoch(request.epoch);
        let promised = self
            .replicas
            .promise(volume, replica, epoch, Admitted::Host(host))
            .await;
        let outcome = match promised {
            Ok(given) => Outcome::Granted(api::PromiseGranted {
                subsystem_nqn: given.subsystem.map(|name| name.to_string()).unwrap_or_default(),
                listeners: self
                    .replicas
                    .listeners()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                instance: given.instance,
                settled_epoch: given.settled.map(|epoch| epoch.0),
                flush_failures: given.flush_failures,
                quiet_us: u64::try_from(given.quiet.as_micros()).unwrap_or(u64::MAX),
            }),
            Err(PromiseError::Superseded(by)) => Outcome::Superseded(api::PromiseSuperseded { epoch: by.0 }),
            Err(PromiseError::Interrupted) => Outcome::Interrupted(api::PromiseInterrupted {}),
            Err(error @ (PromiseError::Unreachable | PromiseError::Area(_))) => {
                return Err(failed(&ReplicasError::Unusable {
                    device: format!("replica {replica} of volume {volume}"),
                    why: error.to_string(),
                }));
            }
        };
        Ok(Response::new(api::PromiseResponse {
            outcome: Some(outcome),
        }))
    }

    async fn command(
        &self,
        request: Request<api::CommandRequest>,
    ) -> Result<Response<api::CommandResponse>, Status> {
        let request = request.into_inner();
        let volume = fields::uuid("volume", &request.volume)?;
        let replica = fields::uuid("replica", &request.replica)?;
        let command = request.command.as_ref().and_then(wire::read_command);
        let command = command.ok_or_else(|| status::field("command", "is missing, or names no UUID"))?;
        self.replicas
            .check_open(replica)
            .map_err(|error| failed(&error))?;
        let done = self
            .replicas
            .command(volume, replica, Epoch(request.epoch), command);
        Ok(Response::new(wire::told(done.await)))
    }

    async fn open_snapshot(
        &self,
        request: Request<api::OpenSnapshotRequest>,
    ) -> Result<Response<api::OpenSnapshotResponse>, Status> {
        let request = request.into_inner();
        let volume = fields::uuid("volume", &request.volume)?;
        let replica = fields::uuid("replica", &request.replica)?;
        let cut = fields::uuid("cut", &request.cut)?;
        self.replicas
            .check_open(replica)
            .map_err(|error| failed(&error))?;
        let exported = self
            .replicas
            .export_snapshot(volume, replica, Epoch(request.epoch), cut);
        let outcome = match exported.await {
            Ok((subsystem, namespace_id)) => Opened::Opened(api::SnapshotOpened {
                subsystem_nqn: subsystem.to_string(),
                namespace_id,
                listeners: self
                    .replicas
                    .listeners()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            }),
            Err(error) => Opened::Failed(wire::failed(&error)),
        };
        Ok(Response::new(api::OpenSnapshotResponse {
            outcome: Some(outcome),
        }))
    }
}

fn failed(error: &ReplicasError) -> Status {
    status::status(error.reason(), error.to_string())
}

fn finished<T>(result: Result<Result<T, ReplicasError>, JoinError>) -> Result<T, Status> {
    let result = result.map_err(|error| status::lost(&error))?;
    result.map_err(|error| failed(&error))
}
