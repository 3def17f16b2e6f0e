//! Calls of engines.

use std::sync::Arc;

use pollux_api::control::v1::registry_server::Registry;
use pollux_api::control::v1::{
    EngineReport, GetMembershipRequest, GetReservationsRequest, Membership, Node, ReportAnswer, Reservations,
    SwapMembershipRequest, SwapMembershipResponse, SwapReservationsRequest, SwapReservationsResponse,
};
use tonic::{Request, Response, Status};

use crate::registry::{
    RESERVATIONS_BYTES_MAX, get_membership, get_reservations, swap_membership, swap_reservations,
};
use crate::security::Action;

use super::errors::CallError;
use super::records::require_name;
use super::{Services, answer};

/// An engine reports so often in the time after which it counts as unreachable.
const REPORTS_WHILE_REACHABLE: u64 = 4;

/// The lease of targets: that of `engine/volume`. Never another one, while there are volumes that are served.
const TARGET_LEASE_US: u64 = 2_000_000;

#[tonic::async_trait]
impl Registry for Services {
    async fn report(&self, request: Request<EngineReport>) -> Result<Response<ReportAnswer>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let report = request.into_inner();
        require_name(&report.node)?;
        caller.require_node(&report.node)?;
        self.find::<Node>(&report.node).await?;
        let now_us = self.parts.clock.steady_us();
        self.parts.observations.put(Arc::new(report), now_us);
        answer!(ReportAnswer {
            next_report_us: self.parts.limits.unreachable_after_us / REPORTS_WHILE_REACHABLE,
            lease_us: TARGET_LEASE_US,
        })
    }

    async fn get_membership(
        &self,
        request: Request<GetMembershipRequest>,
    ) -> Result<Response<Membership>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let request = request.into_inner();
        require_volume(&request.volume)?;
        require_name(&request.node)?;
        caller.require_node(&request.node)?;
        let found = get_membership(self.parts.store.as_ref(), &request).await;
        answer!(found.map_err(CallError::from)?)
    }

    async fn swap_membership(
        &self,
        request: Request<SwapMembershipRequest>,
    ) -> Result<Response<SwapMembershipResponse>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let request = request.into_inner();
        require_volume(&request.volume)?;
        require_name(&request.node)?;
        caller.require_node(&request.node)?;
        let now = self.parts.clock.now_unix_us();
        let swapped = swap_membership(self.parts.store.as_ref(), &request, now).await;
        answer!(swapped.map_err(CallError::from)?)
    }

    async fn get_reservations(
        &self,
        request: Request<GetReservationsRequest>,
    ) -> Result<Response<Reservations>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let request = request.into_inner();
        require_volume(&request.volume)?;
        require_name(&request.node)?;
        caller.require_node(&request.node)?;
        let found = get_reservations(self.parts.store.as_ref(), &request).await;
        answer!(found.map_err(CallError::from)?)
    }

    async fn swap_reservations(
        &self,
        request: Request<SwapReservationsRequest>,
    ) -> Result<Response<SwapReservationsResponse>, Status> {
        let caller = self.permit(&request, Action::Report)?;
        let request = request.into_inner();
        require_volume(&request.volume)?;
        require_name(&request.node)?;
        if request.next.len() > RESERVATIONS_BYTES_MAX {
            return Err(CallError::field("next", "has more bytes than reservations can have").into());
        }
        caller.require_node(&request.node)?;
        let swapped = swap_reservations(self.parts.store.as_ref(), &request).await;
        answer!(swapped.map_err(CallError::from)?)
    }
}

fn require_volume(name: &str) -> Result<(), CallError> {
    require_name(name).map_err(|_| CallError::field("volume", "is no name of a volume"))
}
