//! Calls about measurements.

use std::time::Duration;

use pollux_api::control::v1::measurements_server::Measurements;
use pollux_api::control::v1::{GetMeasurementsRequest, GetMeasurementsResponse, Node, NodeMeasurements};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::engines::EngineAddress;
use crate::model::Record;
use crate::security::Action;

use super::errors::CallError;
use super::records::require_name;
use super::{Services, answer};

/// Engines that are asked at a time for one caller.
const ENGINES_AT_ONCE: usize = 64;

/// How long an engine may take.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(2);

impl Services {
    async fn measure(&self, node: &str) -> Result<Vec<NodeMeasurements>, CallError> {
        let nodes = match node {
            "" => self.all::<Node>().await?,
            node => vec![self.find::<Node>(node).await?],
        };
        let mut tasks = JoinSet::new();
        let mut measured = Vec::with_capacity(nodes.len());
        for node in &nodes {
            if tasks.len() >= ENGINES_AT_ONCE
                && let Some(done) = tasks.join_next().await
            {
                measured.extend(done.ok());
            }
            let engine = EngineAddress {
                node: node.name().to_owned(),
                address: node
                    .spec
                    .as_ref()
                    .map_or_else(String::new, |spec| spec.address.clone()),
            };
            let engines = self.parts.engines.clone();
            tasks.spawn(async move {
                let asked = tokio::time::timeout(MEASURE_TIMEOUT, engines.measure(&engine)).await;
                let node = engine.node;
                match asked {
                    Ok(Ok(measurements)) => NodeMeasurements {
                        node,
                        problem: String::new(),
                        measurements: Some(measurements),
                    },
                    Ok(Err(error)) => NodeMeasurements {
                        node,
                        problem: error.to_string(),
                        measurements: None,
                    },
                    Err(_) => NodeMeasurements {
                        problem: format!("the engine on node {node} takes too long"),
                        node,
                        measurements: None,
                    },
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            measured.extend(done.ok());
        }
        measured.sort_by(|left, right| left.node.cmp(&right.node));
        Ok(measured)
    }
}

#[tonic::async_trait]
impl Measurements for Services {
    async fn get_measurements(
        &self,
        request: Request<GetMeasurementsRequest>,
    ) -> Result<Response<GetMeasurementsResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let node = request.into_inner().node;
        if !node.is_empty() {
            require_name(&node).map_err(|_| CallError::field("node", "is no name of a node"))?;
        }
        answer!(GetMeasurementsResponse {
            nodes: self.measure(&node).await?,
        })
    }
}
