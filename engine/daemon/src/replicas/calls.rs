//! Calls of other engines, from reactors: a reactor leaves a message, a task of tokio calls, the answer goes
//! back as a message.
//!
//! Everything is bounded: calls that wait, calls under way, the time of each, connections that are kept.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use pollux_api::engine::v1::replicas_client::ReplicasClient;
use pollux_tls::Certificates;
use pollux_trace::Origin;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::client::{endpoint, innermost};
use crate::settings::ControlAddress;

/// Calls that wait to be made; one more fails.
const WAITING_MAX: usize = 1024;

/// Calls under way at a time.
const UNDER_WAY_MAX: usize = 256;

/// Connections that are kept; beyond that all are let go, and made anew as they are needed.
const CHANNELS_MAX: usize = 1024;

/// How long connecting to an engine may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an answer may take: the host of a replica waits for what older targets have at the drive.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an engine is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Too many wait.
    #[error("more than {WAITING_MAX} calls of other engines wait: try again")]
    Busy,
    /// The process stops.
    #[error("calls of other engines are not made any more: the engine stops")]
    Stopped,
    /// The engine did not answer, or refused.
    #[error("{0}")]
    Failed(String),
}

/// A connection to an engine, whose calls are spans if they are made for somebody.
pub(super) type Traced = pollux_trace::Calls<Channel>;

/// What is done with the connection to an engine, if there is one.
type Work = Box<dyn FnOnce(Result<Channel, CallError>) -> Working + Send>;
type Working = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Call {
    address: ControlAddress,
    work: Work,
}

/// Reaches the task that calls other engines, from any thread. It ends when the last of these is dropped.
#[derive(Clone)]
pub struct Calls {
    waiting: mpsc::Sender<Call>,
    origin: Option<Arc<Origin>>,
}

impl Calls {
    /// Starts the task, on the current runtime of tokio. Engines are called without certificates.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// The same, with certificates: engines at TCP addresses are called by mutual TLS.
    pub fn start_with(tls: Option<Certificates>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(make(receiver, tls));
        Self {
            waiting: sender,
            origin: None,
        }
    }

    /// The same, for what somebody asked for, if that is known: calls are part of its trace.
    pub fn for_origin(&self, origin: Option<Origin>) -> Self {
        Self {
            origin: origin.map(Arc::new),
            ..self.clone()
        }
    }

    /// Calls an engine; from any executor. When it is dropped, the answer is not waited for.
    pub(super) async fn ask<F, T>(
        &self,
        address: ControlAddress,
        call: impl FnOnce(ReplicasClient<Traced>) -> F + Send + 'static,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
        T: Send + 'static,
    {
        let (mut sender, answer) = oneshot::channel();
        let (peer, origin) = (address.to_string(), self.origin.as_deref().cloned());
        let work = move |channel: Result<Channel, CallError>| -> Working {
            Box::pin(async move {
                let traced = channel.map(|channel| Traced::for_origin(channel, &peer, origin));
                let called = match traced {
                    Ok(traced) => tokio::select! {
                        called = in_time(call(ReplicasClient::new(traced))) => called,
                        // Nobody waits for it any more.
                        () = sender.cancellation() => return,
                    },
                    Err(error) => Err(error),
                };
                // Nobody may wait for it any more.
                let _ = sender.send(called);
            })
        };
        let call = Call {
            address,
            work: Box::new(work),
        };
        let left = self.waiting.clone().try_send(call);
        left.map_err(|error| match error.is_full() {
            true => CallError::Busy,
            false => CallError::Stopped,
        })?;
        answer.await.map_err(|_| CallError::Stopped)?
    }
}

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CallError::Failed(status.message().to_owned())),
        Err(_) => Err(CallError::Failed(format!("no answer within {CALL_TIMEOUT:?}"))),
    }
}

/// Makes calls as long as there is somebody to leave them.
async fn make(mut calls: mpsc::Receiver<Call>, tls: Option<Certificates>) {
    let mut channels: BTreeMap<String, Channel> = BTreeMap::new();
    let mut under_way = JoinSet::new();
    while let Some(Call { address, work }) = calls.next().await {
        while under_way.len() >= UNDER_WAY_MAX {
            // How it ended is for who waits for its answer.
            drop(under_way.join_next().await);
        }
        while under_way.try_join_next().is_some() {}
        under_way.spawn(work(channel(&mut channels, &address, tls.as_ref())));
    }
}

/// The connection to an engine, which is made when it is needed, and again when it was lost.
fn channel(
    channels: &mut BTreeMap<String, Channel>,
    address: &ControlAddress,
    tls: Option<&Certificates>,
) -> Result<Channel, CallError> {
    let name = address.to_string();
    if let Some(channel) = channels.get(&name) {
        return Ok(channel.clone());
    }
    if channels.len() >= CHANNELS_MAX {
        channels.clear();
    }
    let failed = |error: tonic::transport::Error| CallError::Failed(innermost(&error));
    let with_times = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
    };
    let channel = match (tls, address) {
        (Some(tls), ControlAddress::Tcp(address)) => Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| tls.channel(vec![with_times(endpoint)]))
            .map_err(failed)?,
        _ => with_times(endpoint(address).map_err(failed)?).connect_lazy(),
    };
    channels.insert(name, channel.clone());
    Ok(channel)
}
