//! The calls of `pollux.control.v1.Meter`.

use std::sync::Arc;

use pollux_api::control::v1 as api;
use pollux_api::control::v1::meter_server::{Meter, MeterServer};
use pollux_device::metered::{BOUNDS_NS, Operation};
use pollux_volume::membership::ReplicaState;
use pollux_volume::mirror::{Pace, RollBackProgress};
use tonic::{Request, Response, Status};

use crate::engine::{Engine, unix_us};
use crate::pools::Pools;
use crate::telemetry::{Measurement, MirrorStatus, Role};

/// Tells what was measured.
pub(crate) struct MeterService {
    engine: Arc<Engine>,
    pools: Arc<Pools>,
}

/// Answers calls about measurements.
pub(crate) fn meter_server(engine: Arc<Engine>, pools: Arc<Pools>) -> MeterServer<MeterService> {
    MeterServer::new(MeterService { engine, pools })
}

fn device(measurement: Measurement) -> api::DeviceMeasurements {
    let role = match measurement.role {
        Role::Volume => api::DeviceRole::Volume,
        Role::Replica => api::DeviceRole::Replica,
        Role::Drive => api::DeviceRole::Drive,
    };
    let operations = measurement.measured.iter().map(|(operation, counts)| {
        let kind = match operation {
            Operation::Read => api::OperationKind::Read,
            Operation::Write => api::OperationKind::Write,
            Operation::Flush => api::OperationKind::Flush,
            Operation::Deallocate => api::OperationKind::Deallocate,
        };
        api::OperationMeasurements {
            operation: kind.into(),
            done: counts.done,
            failed: counts.failed,
            bytes: counts.bytes,
            sum_ns: counts.sum_ns,
            places: counts.places.to_vec(),
        }
    });
    api::DeviceMeasurements {
        role: role.into(),
        operations: operations.collect(),
        name: measurement.name,
        size_bytes: measurement.size_bytes,
    }
}

fn nanoseconds(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn roll_back(progress: RollBackProgress) -> api::RollBackProgress {
    api::RollBackProgress {
        request_uid: progress.id.to_string(),
        snapshot_uid: progress.snapshot.to_string(),
        compared_bytes: progress.compared_bytes,
        size_bytes: progress.size_bytes,
        compared_bytes_per_second: progress.bytes_per_second.map(|speed| speed as u64),
        time_left_us: progress.time_left.map(|left| nanoseconds(left) / 1000),
    }
}

fn mirror(status: MirrorStatus) -> api::MirrorMeasurements {
    let replicas = status.replicas.into_iter().map(|replica| api::MirroredReplica {
        uid: replica.id.to_string(),
        in_sync: replica.state == ReplicaState::InSync,
        pace: match replica.pace {
            Pace::Well => api::ReplicaPace::Well,
            Pace::Slow(_) => api::ReplicaPace::Slow,
            Pace::Out { .. } => api::ReplicaPace::Out,
            Pace::GivenUp => api::ReplicaPace::GivenUp,
        }
        .into(),
        missed_bytes: replica.missed_bytes,
        mean_ns: replica.mean.map(nanoseconds),
        resyncing: replica.is_resyncing,
    });
    api::MirrorMeasurements {
        replicas: replicas.collect(),
        volume: status.volume,
        copied_bytes: status.progress.copied_bytes,
        copied_bytes_per_second: status.progress.bytes_per_second.map(|speed| speed as u64),
        copy_time_left_us: status.progress.time_left.map(|left| nanoseconds(left) / 1000),
        slow_taken_out: status.counters.slow,
        roll_back: status.roll_back.map(roll_back),
    }
}

#[tonic::async_trait]
impl Meter for MeterService {
    async fn measure(
        &self,
        _: Request<api::MeasureRequest>,
    ) -> Result<Response<api::EngineMeasurements>, Status> {
        let mut measurements = self.engine.meters().read();
        measurements.extend(self.pools.meters().read());
        let reactors = self.engine.statistics().into_iter();
        let mirrors = self.engine.mirrors().read().await;
        Ok(Response::new(api::EngineMeasurements {
            unix_us: unix_us(),
            started_unix_us: self.engine.info().started_unix_us,
            bounds_ns: BOUNDS_NS.to_vec(),
            devices: measurements.into_iter().map(device).collect(),
            mirrors: mirrors.into_iter().map(mirror).collect(),
            reactors: reactors
                .map(|reactor| api::ReactorMeasurements {
                    reactor: reactor.reactor,
                    busy_ns: reactor.busy_ns,
                    idle_ns: reactor.idle_ns,
                    asleep_ns: reactor.asleep_ns,
                    connections: reactor.connections,
                })
                .collect(),
        }))
    }
}
