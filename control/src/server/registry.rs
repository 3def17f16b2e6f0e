//! Calls of engines.

use std::sync::Arc;

use pollux_api::control::v1::registry_server::Registry;
use pollux_api::control::v1::{ChangeInSyncRequest, ChangeInSyncResponse, EngineReport, Node, ReportAnswer};
use tonic::{Request, Response, Status};

use crate::registry::change_in_sync;
use crate::security::Action;

use super::errors::CallError;
use super::records::require_name;
use super::{Services, answer};

/// An engine reports so often in the time after which it counts as unreachable.
const REPORTS_PER_LEASE: u64 = 4;

#[tonic::async_trait]
impl Registry for Services {
    async fn report(&self, request: Request<EngineReport>) -> Result<Response<ReportAnswer>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let report = request.into_inner();
        require_name(&report.node)?;
        caller.require_node(&report.node)?;
        self.find::<Node>(&report.node).await?;
        let now = self.parts.clock.now_unix_us();
        self.parts.observations.put(Arc::new(report), now);
        let lease_us = self.parts.limits.unreachable_after_us;
        answer!(ReportAnswer {
            next_report_us: lease_us / REPORTS_PER_LEASE,
            lease_us,
        })
    }

    async fn change_in_sync(
        &self,
        request: Request<ChangeInSyncRequest>,
    ) -> Result<Response<ChangeInSyncResponse>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let request = request.into_inner();
        require_name(&request.volume).map_err(|_| CallError::field("volume", "is no name of a volume"))?;
        if let Some(node) = caller.node() {
            // Its target alone may, and that is on one node.
            let volume = self
                .find::<pollux_api::control::v1::Volume>(&request.volume)
                .await?;
            let target = volume.status.map(|status| status.target_node).unwrap_or_default();
            if target != node {
                return Err(CallError::Role {
                    caller: node.to_owned(),
                    role: "engine".to_owned(),
                    needed: format!("engine on node {target}, the target of the volume"),
                }
                .into());
            }
        }
        let changed = change_in_sync(self.parts.store.as_ref(), None, &request).await;
        answer!(ChangeInSyncResponse {
            version: changed.map_err(CallError::from)?,
        })
    }
}
