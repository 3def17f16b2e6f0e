//! A target in the test's own process: a reactor, and what it needs to reach replicas of engines.

use std::future::Future;
use std::rc::Rc;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::create_replica_request::Place;
use pollux_api::engine::v1::replicas_client::ReplicasClient;
use pollux_engine::client;
use pollux_engine::replicas::{Calls, RemoteReplica, SessionOptions};
use pollux_engine::settings::ControlAddress;
use pollux_hugepages::{ArenaOptions, PagePreference, PoolOptions};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_reactor::real::{ReactorThread, Settings};
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{Granted, PromiseError, ReplicaPort};
use tonic::transport::Channel;
use uuid::Uuid;

use super::EngineProcess;
use super::host::block_on;

/// Buffers of the target's reactor, in bytes.
const BUFFER_BYTES: usize = 64 << 20;

/// The volume of all tests.
pub const VOLUME: Uuid = Uuid::from_u128(0x706f_6c6c_7578);

/// The replica with a number, from 1.
pub fn replica(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A reactor for a target, and the threads that call engines.
pub struct TargetThreads {
    pub calls: Calls,
    pub runtime: tokio::runtime::Runtime,
    reactor: ReactorThread,
}

impl TargetThreads {
    pub fn start() -> Self {
        let reactor = ReactorThread::spawn(Settings {
            buffers: PoolOptions {
                total_bytes: BUFFER_BYTES,
                arena: ArenaOptions {
                    page: PagePreference::Ordinary,
                    ..ArenaOptions::default()
                },
                ..PoolOptions::default()
            },
            ..Settings::default()
        })
        .expect("a reactor");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let calls = {
            let _entered = runtime.enter();
            Calls::start()
        };
        Self {
            calls,
            runtime,
            reactor,
        }
    }

    /// The replica of an engine, as a target knows it that calls itself `host`.
    pub fn port(&self, engine: &EngineProcess, number: u128, host: &str) -> RemoteReplica {
        self.port_at(&engine.control(), number, host)
    }

    /// The same, for an engine that is at an address when it runs.
    pub fn port_at(&self, address: &str, number: u128, host: &str) -> RemoteReplica {
        let name = format!("nqn.2026-11.io.pollux:{host}");
        let options = SessionOptions {
            host: HostIdentity::from_name(name.parse().expect("a name")),
            ..SessionOptions::default()
        };
        let address = address.parse().expect("an address");
        RemoteReplica::new(self.calls.clone(), address, VOLUME, replica(number), options)
    }

    /// Does something on the reactor.
    pub fn run<F, T>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        block_on(self.reactor.handle().call(work)).expect("the reactor runs")
    }

    /// Asks for a promise, and does something with the session.
    pub fn promised<F, T>(
        &self,
        port: &RemoteReplica,
        epoch: u64,
        work: impl FnOnce(Granted) -> F + Send + 'static,
    ) -> Result<T, PromiseError>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let port = port.clone();
        self.run(move || async move { Ok(work(port.promise(Epoch(epoch)).await?).await) })
    }
}

/// The replicas of an engine.
pub async fn replicas(engine: &EngineProcess) -> ReplicasClient<Channel> {
    let address: ControlAddress = engine.control().parse().expect("an address");
    ReplicasClient::new(client::channel(&address).await.expect("it listens"))
}

/// A request for a replica in the pool `tank`.
pub fn in_tank(number: u128, data_bytes: u64) -> api::CreateReplicaRequest {
    api::CreateReplicaRequest {
        volume: VOLUME.to_string(),
        replica: replica(number).to_string(),
        place: Some(Place::InPool(api::InPool {
            pool: "tank".to_owned(),
            data_bytes,
        })),
    }
}

/// Something that is never read: it keeps a session.
pub type Session = Rc<dyn pollux_device::BlockDevice>;
