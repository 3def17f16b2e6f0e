//! The calls of `pollux.control.v1.Meter`.

use std::sync::Arc;

use pollux_api::control::v1 as api;
use pollux_api::control::v1::meter_server::{Meter, MeterServer};
use pollux_device::metered::{BOUNDS_NS, Operation};
use tonic::{Request, Response, Status};

use crate::engine::{Engine, unix_us};
use crate::pools::Pools;
use crate::telemetry::{Measurement, Role};

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

#[tonic::async_trait]
impl Meter for MeterService {
    async fn measure(
        &self,
        _: Request<api::MeasureRequest>,
    ) -> Result<Response<api::EngineMeasurements>, Status> {
        let mut measurements = self.engine.meters().read();
        measurements.extend(self.pools.meters().read());
        let reactors = self.engine.statistics().into_iter();
        Ok(Response::new(api::EngineMeasurements {
            unix_us: unix_us(),
            started_unix_us: self.engine.info().started_unix_us,
            bounds_ns: BOUNDS_NS.to_vec(),
            devices: measurements.into_iter().map(device).collect(),
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
