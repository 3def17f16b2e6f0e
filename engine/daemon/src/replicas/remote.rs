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
use pollux_device::{BlockDevice, Device};
use pollux_nvme::initiator::device::{Endpoint, LossOptions, NvmfDevice, NvmfOptions, Resubmit, Unflushed};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::initiator::namespace::NamespaceSelector;
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{Granted, PromiseError, Promising, ReplicaPort};
use uuid::Uuid;

use super::Nqn;
use super::calls::{CallError, Calls};
use super::hosted::NAMESPACE_ID;
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
        let answer = self.calls.promise(self.address.clone(), request).await?;
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
            session: self.connect(&granted).await?,
            instance: granted.instance,
            previous: granted.previous_epoch.map(Epoch),
            flush_failures: granted.flush_failures,
        }))
    }

    /// Connects to the session of a promise.
    async fn connect(&self, granted: &api::PromiseGranted) -> Result<Rc<dyn BlockDevice>, Failure> {
        let subsystem: Nqn = granted
            .subsystem_nqn
            .parse()
            .map_err(|_| Failure::Nonsense("the name of the subsystem is none"))?;
        let mut why = "it listens nowhere".to_owned();
        for listener in granted.listeners.iter().take(LISTENERS_MAX) {
            let listener: SocketAddr = listener
                .parse()
                .map_err(|_| Failure::Nonsense("a listener is no address"))?;
            match self.session(self.reached(listener), subsystem.clone()).await {
                Ok(session) => return Ok(session),
                Err(error) => why = error,
            }
        }
        Err(Failure::Session {
            listeners: granted.listeners.join(", "),
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

    async fn session(&self, listener: SocketAddr, subsystem: Nqn) -> Result<Rc<dyn BlockDevice>, String> {
        let options = session_options(&self.options, listener, subsystem);
        let device = NvmfDevice::open(options)
            .await
            .map_err(|error| error.to_string())?;
        let queue = device.attach().await;
        queue.map_err(|error| error.to_string())
    }
}

fn session_options(options: &SessionOptions, listener: SocketAddr, subsystem: Nqn) -> NvmfOptions {
    let mut session = NvmfOptions::new(Endpoint::from(listener), subsystem);
    session.namespace = NamespaceSelector::Id(NAMESPACE_ID);
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

    fn is_local(&self) -> bool {
        false
    }
}
