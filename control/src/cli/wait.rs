//! Waiting for what was asked for, with a bar that tells how far it is.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    GroupSnapshot, GroupSnapshotState, PublishVolumeRequest, PublishVolumeResponse, ReplicaState, Volume,
    VolumeState,
};
use tokio_stream::StreamExt;

use crate::model::Record;

use super::connection::{Channel, CommandError};
use super::resource::Listed;

/// How long the control plane is asked to wait at a time: less than it may.
const WAIT_AT_A_TIME: Duration = Duration::from_secs(10);

/// Waits until a volume is healthy.
pub(super) async fn healthy(channel: &Channel, name: &str, seconds: u64) -> Result<Volume, CommandError> {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {bar:20} {pos}/{len} replicas  {msg}")
    {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    let mut state = "it is not there".to_owned();
    let wait = async {
        let mut changes = Volume::watch(channel.clone()).await?;
        while let Some(change) = changes.next().await {
            match change? {
                Ok(volume) if volume.name() == name => {
                    let status = volume.status.clone().unwrap_or_default();
                    let in_sync = status
                        .replicas
                        .iter()
                        .filter(|replica| replica.state() == ReplicaState::InSync)
                        .count();
                    bar.set_length(status.replicas.len().max(1) as u64);
                    bar.set_position(in_sync as u64);
                    bar.set_message(status.message.clone());
                    state = match status.message.is_empty() {
                        true => format!("{in_sync} of {} replicas are in sync", status.replicas.len()),
                        false => status.message.clone(),
                    };
                    if status.state() == VolumeState::Healthy {
                        return Ok(volume);
                    }
                }
                Err(gone) if gone == name => {
                    return Err(CommandError::Refused(format!(
                        "volume {name} was deleted meanwhile"
                    )));
                }
                Ok(_) | Err(_) => {}
            }
        }
        Err(CommandError::Refused("the control plane has ended".to_owned()))
    };
    let done = tokio::time::timeout(Duration::from_secs(seconds), wait).await;
    bar.finish_and_clear();
    done.unwrap_or_else(|_| {
        Err(CommandError::Patience {
            what: format!("volume {name}"),
            seconds,
            state,
            look: format!("volume get {name}"),
        })
    })
}

/// Publishes a volume, and waits until all its paths admit the host. The control plane waits, and is asked
/// again when it has waited as long as it does.
pub(super) async fn published(
    channel: &Channel,
    mut request: PublishVolumeRequest,
    seconds: u64,
) -> Result<PublishVolumeResponse, CommandError> {
    let began = Instant::now();
    let patience = Duration::from_secs(seconds);
    let mut client = VolumesClient::new(channel.clone());
    loop {
        let left = patience.saturating_sub(began.elapsed());
        let wait = left.min(WAIT_AT_A_TIME);
        request.wait_us = Some(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX));
        let answer = client.publish_volume(request.clone()).await?.into_inner();
        if answer.ready {
            return Ok(answer);
        }
        if began.elapsed() >= patience {
            return Err(CommandError::Patience {
                what: format!("publishing volume {}", request.name),
                seconds,
                state: answer.message,
                look: format!("volume get {}", request.name),
            });
        }
    }
}

/// Waits until snapshots of several volumes are taken.
pub(super) async fn taken(
    channel: &Channel,
    name: &str,
    seconds: u64,
) -> Result<GroupSnapshot, CommandError> {
    let refused = |why: String| CommandError::Refused(format!("group snapshot {name} {why}"));
    let wait = async {
        let mut changes = GroupSnapshot::watch(channel.clone()).await?;
        while let Some(change) = changes.next().await {
            match change? {
                Ok(found) if found.name() == name => {
                    let status = found.status.clone().unwrap_or_default();
                    match status.state() {
                        GroupSnapshotState::Ready => return Ok(found),
                        GroupSnapshotState::Failed => {
                            return Err(refused(format!("is not taken: {}", status.message)));
                        }
                        _ => {}
                    }
                }
                Err(gone) if gone == name => return Err(refused("was deleted meanwhile".to_owned())),
                Ok(_) | Err(_) => {}
            }
        }
        Err(CommandError::Refused("the control plane has ended".to_owned()))
    };
    let done = tokio::time::timeout(Duration::from_secs(seconds), wait).await;
    done.unwrap_or_else(|_| {
        Err(CommandError::Patience {
            what: format!("group snapshot {name}"),
            seconds,
            state: "it is not taken yet".to_owned(),
            look: format!("group snapshot get {name}"),
        })
    })
}
