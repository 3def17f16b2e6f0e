//! Waiting for what was asked for, with a bar that tells how far it is.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    GroupSnapshot, GroupSnapshotState, Node, NodeState, Pool, PoolState, PublishVolumeRequest,
    PublishVolumeResponse, ReplicaState, Snapshot, SnapshotState, UnpublishVolumeRequest, Volume,
    VolumeState,
};
use tokio_stream::StreamExt;
use tonic::Code;

use super::connection::{Channel, CommandError};
use super::output::words;
use super::resource::Named;
use crate::size::Size;

/// How long the control plane is asked to wait at a time: less than it may.
const WAIT_AT_A_TIME: Duration = Duration::from_secs(10);

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Progress {
    /// Whether it is so.
    done: bool,
    /// What is done of the whole, if that can be counted.
    part: Option<(u64, u64)>,
    /// How far it is, for people.
    state: String,
}

impl Progress {
    fn new(done: bool, state: impl Into<String>) -> Self {
        Self {
            done,
            part: None,
            state: state.into(),
        }
    }
}

/// A bar for one thing, on a terminal.
fn bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {bar:20}  {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar
}

/// Waits until a record is as it is to be.
async fn until<R: Named>(
    channel: &Channel,
    name: &str,
    seconds: u64,
    look: impl Fn(&R) -> Result<Progress, CommandError>,
) -> Result<R, CommandError> {
    let done = watched(channel, name, seconds, look, false).await?;
    done.ok_or_else(|| CommandError::Refused(format!("{} {name} was deleted meanwhile", words::<R>())))
}

/// Waits until a record is gone.
pub(super) async fn gone<R: Named>(channel: &Channel, name: &str, seconds: u64) -> Result<(), CommandError> {
    let look = |_: &R| Ok(Progress::new(false, "it is there still"));
    watched(channel, name, seconds, look, true).await.map(drop)
}

/// Looks at a record until it is as it is to be; nothing if it goes, or is gone already and that is wanted.
async fn watched<R: Named>(
    channel: &Channel,
    name: &str,
    seconds: u64,
    look: impl Fn(&R) -> Result<Progress, CommandError>,
    is_gone_wanted: bool,
) -> Result<Option<R>, CommandError> {
    let bar = bar(name);
    let mut state = "it is not there".to_owned();
    let wait = async {
        let mut changes = R::watch(channel.clone()).await?;
        if is_gone_wanted {
            // What is gone before the watch begins is not told by it.
            match R::get(channel.clone(), name.to_owned()).await {
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                found => drop(found?),
            }
        }
        while let Some(change) = changes.next().await {
            match change? {
                Ok(found) if found.name() == name => {
                    let progress = look(&found)?;
                    if let Some((part, whole)) = progress.part {
                        bar.set_length(whole.max(1));
                        bar.set_position(part);
                    }
                    bar.set_message(progress.state.clone());
                    state = progress.state;
                    if progress.done {
                        return Ok(Some(found));
                    }
                }
                Err(gone) if gone == name => return Ok(None),
                Ok(_) | Err(_) => {}
            }
        }
        Err(CommandError::Refused("the control plane has ended".to_owned()))
    };
    let done = tokio::time::timeout(Duration::from_secs(seconds), wait).await;
    bar.finish_and_clear();
    done.unwrap_or_else(|_| {
        Err(CommandError::Patience {
            what: format!("{} {name}", words::<R>()),
            seconds,
            state,
            look: format!("{} get {name}", words::<R>()),
        })
    })
}

fn replicas(volume: &Volume) -> Progress {
    let status = volume.status.clone().unwrap_or_default();
    let all = status.replicas.len();
    let in_sync = status
        .replicas
        .iter()
        .filter(|replica| replica.state() == ReplicaState::InSync)
        .count();
    let state = match status.message.is_empty() {
        true => format!("{in_sync} of {all} replicas are in sync"),
        false => status.message.clone(),
    };
    Progress {
        done: status.state() == VolumeState::Healthy,
        part: Some((in_sync as u64, all as u64)),
        state,
    }
}

/// What a volume was to be made of is lost.
fn never_made(name: &str, why: &str) -> CommandError {
    CommandError::Refused(format!("volume {name} will never be made: {why}"))
}

/// Waits until a volume is healthy.
pub(super) async fn healthy(channel: &Channel, name: &str, seconds: u64) -> Result<Volume, CommandError> {
    until(channel, name, seconds, |volume: &Volume| {
        let status = volume.status.clone().unwrap_or_default();
        match status.state() {
            VolumeState::Failed => Err(never_made(name, &status.message)),
            _ => Ok(replicas(volume)),
        }
    })
    .await
}

/// Waits until a volume has the size that was asked for last.
pub(super) async fn grown(channel: &Channel, name: &str, seconds: u64) -> Result<Volume, CommandError> {
    until(channel, name, seconds, |volume: &Volume| {
        let wanted = volume.spec.as_ref().map_or(0, |spec| spec.size_bytes);
        let served = volume.status.as_ref().map_or(0, |status| status.size_bytes);
        let message = volume
            .status
            .as_ref()
            .map_or("", |status| status.message.as_str());
        let mut state = format!("it has {} of {}", Size(served), Size(wanted));
        if !message.is_empty() {
            state = format!("{state}: {message}");
        }
        Ok(Progress::new(served >= wanted, state))
    })
    .await
}

/// Waits until a pool can be used.
pub(super) async fn online(channel: &Channel, name: &str, seconds: u64) -> Result<Pool, CommandError> {
    until(channel, name, seconds, |pool: &Pool| {
        let status = pool.status.clone().unwrap_or_default();
        let state = match status.message.as_str() {
            "" => "it is being made",
            message => message,
        };
        Ok(Progress::new(status.state() == PoolState::Online, state))
    })
    .await
}

/// Waits until nothing is on a node that is drained.
pub(super) async fn node_empty(channel: &Channel, name: &str, seconds: u64) -> Result<Node, CommandError> {
    until(channel, name, seconds, |node: &Node| {
        let status = node.status.clone().unwrap_or_default();
        let state = match (status.state(), status.message.as_str()) {
            (NodeState::Online, "") => {
                "replicas or targets are there still: `pollux pool list` tells how many".to_owned()
            }
            (NodeState::Online, message) => format!("replicas are there still: {message}"),
            _ => "replicas or targets are there still, and the node is away".to_owned(),
        };
        Ok(Progress::new(status.empty, state))
    })
    .await
}

/// Waits until no replica is in a pool that is drained.
pub(super) async fn pool_empty(channel: &Channel, name: &str, seconds: u64) -> Result<Pool, CommandError> {
    until(channel, name, seconds, |pool: &Pool| {
        let status = pool.status.clone().unwrap_or_default();
        let mut state = format!("{} replicas are there still", status.replicas);
        if !status.message.is_empty() {
            state = format!("{state}: {}", status.message);
        }
        Ok(Progress::new(status.replicas == 0, state))
    })
    .await
}

/// Waits until a snapshot is taken.
pub(super) async fn ready(channel: &Channel, name: &str, seconds: u64) -> Result<Snapshot, CommandError> {
    until(channel, name, seconds, |snapshot: &Snapshot| {
        let status = snapshot.status.clone().unwrap_or_default();
        if status.state() == SnapshotState::Lost {
            let lost = format!("snapshot {name} is lost: it is on no replica any more");
            return Err(CommandError::Refused(lost));
        }
        let is_taken = status.state() == SnapshotState::Ready;
        Ok(Progress::new(is_taken, "it is not taken yet"))
    })
    .await
}

/// Waits until snapshots of several volumes are taken.
pub(super) async fn taken(
    channel: &Channel,
    name: &str,
    seconds: u64,
) -> Result<GroupSnapshot, CommandError> {
    until(channel, name, seconds, |found: &GroupSnapshot| {
        let status = found.status.clone().unwrap_or_default();
        match status.state() {
            GroupSnapshotState::Failed => Err(CommandError::Refused(format!(
                "group snapshot {name} is not taken: {}",
                status.message
            ))),
            state => Ok(Progress::new(
                state == GroupSnapshotState::Ready,
                "it is not taken yet",
            )),
        }
    })
    .await
}

/// Asks again, each time with a wait in microseconds that the control plane allows, until its answer is that
/// all is ready, or nothing is left of the time.
pub(super) async fn asked<T>(
    seconds: u64,
    mut ask: impl AsyncFnMut(u64) -> Result<T, tonic::Status>,
    is_ready: impl Fn(&T) -> bool,
    patience: impl FnOnce(T) -> CommandError,
) -> Result<T, CommandError> {
    let began = Instant::now();
    let whole = Duration::from_secs(seconds);
    loop {
        let wait = whole.saturating_sub(began.elapsed()).min(WAIT_AT_A_TIME);
        let answer = ask(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)).await?;
        if is_ready(&answer) {
            return Ok(answer);
        }
        if began.elapsed() >= whole {
            return Err(patience(answer));
        }
    }
}

/// Publishes a volume, and waits until all its paths admit the host.
pub(super) async fn published(
    channel: &Channel,
    request: PublishVolumeRequest,
    seconds: u64,
) -> Result<PublishVolumeResponse, CommandError> {
    let name = request.name.clone();
    let ask = async |wait_us| {
        let request = PublishVolumeRequest {
            wait_us: Some(wait_us),
            ..request.clone()
        };
        let mut client = VolumesClient::new(channel.clone());
        Ok(client.publish_volume(request).await?.into_inner())
    };
    let patience = |answer: PublishVolumeResponse| CommandError::Patience {
        what: format!("publishing volume {name}"),
        seconds,
        state: answer.message,
        look: format!("volume get {name}"),
    };
    let is_over = |answer: &PublishVolumeResponse| answer.ready || answer.state() == VolumeState::Failed;
    let answer = asked(seconds, ask, is_over, patience).await?;
    match answer.ready {
        true => Ok(answer),
        false => Err(never_made(&name, &answer.message)),
    }
}

/// Takes a volume away from a host, or from all, and waits until no path admits it any more.
pub(super) async fn unpublished(
    channel: &Channel,
    request: UnpublishVolumeRequest,
    seconds: u64,
) -> Result<(), CommandError> {
    let name = request.name.clone();
    let ask = async |wait_us| {
        let request = UnpublishVolumeRequest {
            wait_us: Some(wait_us),
            ..request.clone()
        };
        let mut client = VolumesClient::new(channel.clone());
        Ok(client.unpublish_volume(request).await?.into_inner())
    };
    let patience = |_| CommandError::Patience {
        what: format!("unpublishing volume {name}"),
        seconds,
        state: "an engine that shows it has not confirmed that yet".to_owned(),
        look: format!("volume get {name}"),
    };
    asked(seconds, ask, |answer| answer.ready, patience)
        .await
        .map(drop)
}
