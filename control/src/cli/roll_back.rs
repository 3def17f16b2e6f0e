//! Having a volume go back to a snapshot.

use clap::Args;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{RollBackState, RollBackVolumeRequest, VolumeRollBack};
use uuid::Uuid;

use crate::model::is_over;

use super::connection::Channel;
use super::wait::asked;
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
        let request = RollBackVolumeRequest {
            name: self.name.clone(),
            snapshot: self.snapshot.clone(),
            request_uid: self.request.unwrap_or_else(Uuid::new_v4).to_string(),
            wait_us: None,
        };
        let ask = async |wait_us: Option<u64>| {
            let request = RollBackVolumeRequest {
                wait_us,
                ..request.clone()
            };
            let mut client = VolumesClient::new(channel.clone());
            let answer = client.roll_back_volume(request).await?.into_inner();
            Ok(answer.roll_back.unwrap_or_default())
        };
        let seconds = self.wait.timeout;
        let known = match self.wait.wait {
            true => {
                asked(
                    seconds,
                    async |wait_us| ask(Some(wait_us)).await,
                    is_over,
                    |known| self.patience(known),
                )
                .await?
            }
            false => ask(None).await?,
        };
        let (name, snapshot, uid) = (&self.name, &self.snapshot, &known.request_uid);
        match known.state() {
            RollBackState::Done => Ok(format!("volume {name} is what it was in snapshot {snapshot}")),
            RollBackState::Failed => Err(CommandError::Refused(known.message)),
            _ => Ok(format!(
                "volume {name} goes back to snapshot {snapshot}: request {uid}"
            )),
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
