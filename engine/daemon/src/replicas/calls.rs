//! Calls of other engines, from reactors: a reactor leaves a message, a task of tokio calls, the answer goes
//! back as a message.
//!
//! Everything is bounded: calls that wait, calls under way, the time of each, connections that are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::replicas_client::ReplicasClient;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

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

/// How long a promise may take: its host waits for what older targets have at the drive.
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

struct Call {
    address: ControlAddress,
    request: api::PromiseRequest,
    answer: oneshot::Sender<Result<api::PromiseResponse, CallError>>,
}

/// Reaches the task that calls other engines, from any thread. It ends when the last of these is dropped.
#[derive(Clone)]
pub struct Calls(mpsc::Sender<Call>);

impl Calls {
    /// Starts the task, on the current runtime of tokio.
    pub fn start() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(make(receiver));
        Self(sender)
    }

    /// Asks an engine for a promise; from any executor. When it is dropped, the call is not waited for.
    pub(super) async fn promise(
        &self,
        address: ControlAddress,
        request: api::PromiseRequest,
    ) -> Result<api::PromiseResponse, CallError> {
        let (sender, answer) = oneshot::channel();
        let call = Call {
            address,
            request,
            answer: sender,
        };
        let left = self.0.clone().try_send(call);
        left.map_err(|error| match error.is_full() {
            true => CallError::Busy,
            false => CallError::Stopped,
        })?;
        answer.await.map_err(|_| CallError::Stopped)?
    }
}

/// Makes calls as long as there is somebody to leave them.
async fn make(mut calls: mpsc::Receiver<Call>) {
    let mut channels: BTreeMap<String, Channel> = BTreeMap::new();
    let mut under_way = JoinSet::new();
    while let Some(call) = calls.next().await {
        while under_way.len() >= UNDER_WAY_MAX {
            // How it ended is for who waits for its answer.
            drop(under_way.join_next().await);
        }
        while under_way.try_join_next().is_some() {}
        let Call {
            address,
            request,
            mut answer,
        } = call;
        let channel = match channel(&mut channels, &address) {
            Ok(channel) => channel,
            Err(error) => {
                // Nobody may wait for it any more.
                let _ = answer.send(Err(error));
                continue;
            }
        };
        under_way.spawn(async move {
            let called = tokio::select! {
                called = promise(channel, request) => called,
                // Nobody waits for it any more.
                () = answer.cancellation() => return,
            };
            let _ = answer.send(called);
        });
    }
}

async fn promise(channel: Channel, request: api::PromiseRequest) -> Result<api::PromiseResponse, CallError> {
    let mut client = ReplicasClient::new(channel);
    let called = tokio::time::timeout(CALL_TIMEOUT, client.promise(request)).await;
    match called {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CallError::Failed(status.message().to_owned())),
        Err(_) => Err(CallError::Failed(format!("no answer within {CALL_TIMEOUT:?}"))),
    }
}

/// The connection to an engine, which is made when it is needed, and again when it was lost.
fn channel(channels: &mut BTreeMap<String, Channel>, address: &ControlAddress) -> Result<Channel, CallError> {
    let name = address.to_string();
    if let Some(channel) = channels.get(&name) {
        return Ok(channel.clone());
    }
    if channels.len() >= CHANNELS_MAX {
        channels.clear();
    }
    let endpoint = endpoint(address).map_err(|error| CallError::Failed(innermost(&error)))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let channel = endpoint.connect_lazy();
    channels.insert(name, channel.clone());
    Ok(channel)
}
