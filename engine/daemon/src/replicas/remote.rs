//! The way of a target to a replica on another engine: a promise by call, and then a session by NVMe/TCP.
//!
//! A session that is lost is lost. The initiator neither reconnects nor sends anything again whose fate is
//! unknown: whether that may be done is for the mirror to say, which asks for a promise first, and that
//! drains what the old session left behind. What the mirror is told of a lost session is
//! [`PathDown`](pollux_device::IoError::PathDown) or [`Gone`](pollux_device::IoError::Gone); a session that
//! was superseded says [`Fenced`](pollux_device::IoError::Fenced), which has a status of its own on the
//! wire.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::promise_response::Outcome;
use pollux_api::engine::v1::replicas_client::ReplicasClient;
use pollux_device::{BlockDevice, Device};
use pollux_nvme::initiator::device::{Endpoint, LossOptions, NvmfDevice, NvmfOptions, Resubmit, Unflushed};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::initiator::namespace::NamespaceSelector;
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{
    CommandError, Commanding, Granted, OpeningSnapshot, PromiseError, Promising, ReplicaAnswer,
    ReplicaCommand, ReplicaPort,
};
use uuid::Uuid;

use super::calls::{CallError, Calls};
use super::hosted::NAMESPACE_ID;
use super::{Nqn, wire};
use crate::settings::ControlAddress;

/// How long a target that says nothing counts as alive: the keep alive timeout of a session.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long each step of connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a command may take before its session counts as lost. The mirror has given up long before; this
/// is what an abandoned session may linger for.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Commands under way in a session; more wait.
const DEPTH: u16 = 512;

/// Addresses of an engine that are tried.
const LISTENERS_MAX: usize = 16;

/// How sessions are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Who this engine is to those that have the replicas.
    pub host: HostIdentity,
    /// The keep alive timeout.
    pub keep_alive: Duration,
    /// How long each step of connecting may take.
    pub connect_timeout: Duration,
    /// How long a command may take before the session counts as lost.
    pub command_timeout: Duration,
    /// Commands under way in a session; more wait.
    pub depth: u16,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            host: HostIdentity::of_this_machine(),
            keep_alive: KEEP_ALIVE,
            connect_timeout: CONNECT_TIMEOUT,
            command_timeout: COMMAND_TIMEOUT,
            depth: DEPTH,
        }
    }
}

/// A replica of another engine. To be used on the reactor that the target lives on; it may be made anywhere.
#[derive(Clone)]
pub struct RemoteReplica {
    calls: Calls,
    address: ControlAddress,
    volume: Uuid,
    replica: Uuid,
    options: SessionOptions,
}

/// What became of an attempt that brought no promise, for the log.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the answer makes no sense: {0}")]
    Nonsense(&'static str),
    #[error("no session at {listeners}: {why}")]
    Session { listeners: String, why: String },
}

impl RemoteReplica {
    /// The replica of an engine whose control interface is at `address`.
    pub fn new(
        calls: Calls,
        address: ControlAddress,
        volume: Uuid,
        replica: Uuid,
        options: SessionOptions,
    ) -> Self {
        Self {
            calls,
            address,
            volume,
            replica,
            options,
        }
    }

    async fn promise(self, epoch: Epoch) -> Result<Granted, PromiseError> {
        match self.attempt(epoch).await {
            Ok(result) => result,
            Err(failure) => {
                let (replica, address) = (self.replica, &self.address);
                tracing::debug!(%replica, %address, epoch = epoch.0, %failure, "no promise");
                Err(PromiseError::Unreachable)
            }
        }
    }

    async fn attempt(&self, epoch: Epoch) -> Result<Result<Granted, PromiseError>, Failure> {
        let request = api::PromiseRequest {
            volume: self.volume.to_string(),
            replica: self.replica.to_string(),
            epoch: epoch.0,
            host_nqn: self.options.host.name.to_string(),
        };
        let call = |mut client: ReplicasClient<_>| async move { client.promise(request).await };
        let answer = self.calls.ask(self.address.clone(), call).await?;
        let granted = match answer.outcome.ok_or(Failure::Nonsense("it is empty"))? {
            Outcome::Granted(granted) => granted,
            // What is not newer supersedes nobody.
            Outcome::Superseded(by) if by.epoch > epoch.0 => {
                return Ok(Err(PromiseError::Superseded(Epoch(by.epoch))));
            }
            Outcome::Superseded(_) => return Err(Failure::Nonsense("superseded by no newer epoch")),
            Outcome::Interrupted(_) => return Ok(Err(PromiseError::Interrupted)),
        };
        Ok(Ok(Granted {
            session: self
                .connect(&granted.subsystem_nqn, NAMESPACE_ID, &granted.listeners)
                .await?,
            instance: granted.instance,
            settled: granted.settled_epoch.map(Epoch),
            flush_failures: granted.flush_failures,
            quiet: Duration::from_micros(granted.quiet_us),
        }))
    }

    /// Connects to a namespace that was named.
    async fn connect(
        &self,
        subsystem: &str,
        namespace_id: u32,
        listeners: &[String],
    ) -> Result<Rc<dyn BlockDevice>, Failure> {
        let subsystem: Nqn = subsystem
            .parse()
            .map_err(|_| Failure::Nonsense("the name of the subsystem is none"))?;
        let mut why = "it listens nowhere".to_owned();
        for listener in listeners.iter().take(LISTENERS_MAX) {
            let listener: SocketAddr = listener
                .parse()
                .map_err(|_| Failure::Nonsense("a listener is no address"))?;
            let mut options = session_options(&self.options, self.reached(listener), subsystem.clone());
            options.namespace = NamespaceSelector::Id(namespace_id);
            match open(options).await {
                Ok(session) => return Ok(session),
                Err(error) => why = error,
            }
        }
        Err(Failure::Session {
            listeners: listeners.join(", "),
            why,
        })
    }

    /// The address that stands for all addresses of the engine is the one that it was called at.
    fn reached(&self, listener: SocketAddr) -> SocketAddr {
        if !listener.ip().is_unspecified() {
            return listener;
        }
        let ip = match &self.address {
            ControlAddress::Tcp(called) => called.ip(),
            ControlAddress::Unix(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        SocketAddr::new(ip, listener.port())
    }

    async fn command(self, epoch: Epoch, command: ReplicaCommand) -> Result<ReplicaAnswer, CommandError> {
        let request = api::CommandRequest {
            volume: self.volume.to_string(),
            replica: self.replica.to_string(),
            epoch: epoch.0,
            command: Some(wire::command(command)),
        };
        let call = |mut client: ReplicasClient<_>| async move { client.command(request).await };
        let answer = self.calls.ask(self.address.clone(), call).await;
        let answer = answer.map_err(|error| self.unreachable(epoch, &error))?;
        wire::answer(command, answer)
    }

    async fn open_snapshot(self, epoch: Epoch, cut: Uuid) -> Result<Rc<dyn BlockDevice>, CommandError> {
        let request = api::OpenSnapshotRequest {
            volume: self.volume.to_string(),
            replica: self.replica.to_string(),
            epoch: epoch.0,
            cut: cut.to_string(),
        };
        let call = |mut client: ReplicasClient<_>| async move { client.open_snapshot(request).await };
        let answer = self.calls.ask(self.address.clone(), call).await;
        let answer = answer.map_err(|error| self.unreachable(epoch, &error))?;
        let opened = wire::opened(answer, cut)?;
        let connected = self
            .connect(&opened.subsystem_nqn, opened.namespace_id, &opened.listeners)
            .await;
        connected.map_err(|error| self.unreachable(epoch, &error))
    }

    fn unreachable(&self, epoch: Epoch, error: &dyn std::error::Error) -> CommandError {
        let (replica, address) = (self.replica, &self.address);
        tracing::debug!(%replica, %address, epoch = epoch.0, %error, "no answer to a command");
        CommandError::Unreachable
    }
}

async fn open(options: NvmfOptions) -> Result<Rc<dyn BlockDevice>, String> {
    let device = NvmfDevice::open(options)
        .await
        .map_err(|error| error.to_string())?;
    let queue = device.attach().await;
    queue.map_err(|error| error.to_string())
}

fn session_options(options: &SessionOptions, listener: SocketAddr, subsystem: Nqn) -> NvmfOptions {
    let mut session = NvmfOptions::new(Endpoint::from(listener), subsystem);
    session.host = options.host.clone();
    session.queues = 1;
    session.keep_alive = options.keep_alive;
    session.command_timeout = options.command_timeout;
    session.connection.depth = options.depth;
    session.connection.connect_timeout = options.connect_timeout;
    session.loss = LossOptions {
        reconnect_pause_max: None,
        // Those that wait are told at once.
        fail_fast: Some(Duration::ZERO),
        loss_timeout: Duration::ZERO,
        resubmit: Resubmit::None,
        unflushed: Unflushed::Fail,
    };
    session
}

impl ReplicaPort for RemoteReplica {
    fn promise(&self, epoch: Epoch) -> Promising {
        Box::pin(self.clone().promise(epoch))
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        Box::pin(self.clone().command(epoch, command))
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        Box::pin(self.clone().open_snapshot(epoch, cut))
    }

    fn is_local(&self) -> bool {
        false
    }
}
