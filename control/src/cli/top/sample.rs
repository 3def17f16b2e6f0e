//! One look at the cluster.

use std::time::Instant;

use pollux_api::control::v1::measurements_client::MeasurementsClient;
use pollux_api::control::v1::{GetMeasurementsRequest, Node, NodeMeasurements, Pool, Volume};

use crate::cli::connection::{Channel, CommandError};
use crate::cli::resource::all;

/// Largest answer: some thousand volumes with all their numbers.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// What is on record, and what engines measured, at about one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) taken: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) pools: Vec<Pool>,
    pub(super) volumes: Vec<Volume>,
    pub(super) measured: Vec<NodeMeasurements>,
}

impl Sample {
    /// Looks.
    pub(super) async fn take(channel: &Channel) -> Result<Self, CommandError> {
        let client = MeasurementsClient::new(channel.clone());
        let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
        let measured = client.get_measurements(GetMeasurementsRequest::default());
        let measured = measured.await?.into_inner().nodes;
        let taken = Instant::now();
        Ok(Self {
            taken,
            nodes: all(channel).await?,
            pools: all(channel).await?,
            volumes: all(channel).await?,
            measured,
        })
    }
}
