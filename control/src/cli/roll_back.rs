//! Having a volume go back to a snapshot.

use std::time::{Duration, Instant};

use clap::Args;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{RollBackState, RollBackVolumeRequest, VolumeRollBack};
use uuid::Uuid;

use super::connection::Channel;
use super::wait::WAIT_AT_A_TIME;
use super::{CommandError, WaitArguments};

/// Which volume, and to what.
#[derive(Debug, Args)]
pub(super) struct RollBackArguments {
    /// Its name.
    name: String,
    /// The snapshot, one of this volume.
    snapshot: String,
    /// The request, as a UUID: it is done once. Without it, one is drawn; give the same to ask again.
    #[arg(long, value_name = "UUID")]
    request: Option<Uuid>,
    #[command(flatten)]
    wait: WaitArguments,
}

impl RollBackArguments {
    /// Asks, and waits if that is wanted. Returns what is to be said of it.
    pub(super) async fn run(&self, channel: &Channel) -> Result<String, CommandError> {
        let mut request = RollBackVolumeRequest {
            name: self.name.clone(),
            snapshot: self.snapshot.clone(),
            request_uid: self.request.unwrap_or_else(Uuid::new_v4).to_string(),
            wait_us: None,
        };
        let began = Instant::now();
        let patience = Duration::from_secs(if self.wait.wait { self.wait.timeout } else { 0 });
        let mut client = VolumesClient::new(channel.clone());
        loop {
            let left = patience.saturating_sub(began.elapsed()).min(WAIT_AT_A_TIME);
            request.wait_us = self
                .wait
                .wait
                .then(|| u64::try_from(left.as_micros()).unwrap_or(u64::MAX));
            let answer = client.roll_back_volume(request.clone()).await?.into_inner();
            let known = answer.roll_back.unwrap_or_default();
            let (name, snapshot, uid) = (&self.name, &self.snapshot, &request.request_uid);
            match known.state() {
                RollBackState::Done => {
                    return Ok(format!("volume {name} is what it was in snapshot {snapshot}"));
                }
                RollBackState::Failed => return Err(CommandError::Refused(known.message)),
                _ if !self.wait.wait => {
                    return Ok(format!(
                        "volume {name} goes back to snapshot {snapshot}: request {uid}"
                    ));
                }
                _ if began.elapsed() >= patience => return Err(self.patience(known)),
                _ => {}
            }
        }
    }

    fn patience(&self, known: VolumeRollBack) -> CommandError {
        let state = match known.message.is_empty() {
            true => "it is not done yet".to_owned(),
            false => known.message,
        };
        CommandError::Patience {
            what: format!(
                "rolling back volume {}; it is request {}",
                self.name, known.request_uid
            ),
            seconds: self.wait.timeout,
            state,
            look: format!("volume get {}", self.name),
        }
    }
}
