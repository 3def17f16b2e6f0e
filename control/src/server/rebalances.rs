//! Calls about rebalancing.

use pollux_api::control::v1::rebalances_server::Rebalances;
use pollux_api::control::v1::{
    CommitRebalanceRequest, DeleteRebalanceRequest, DeleteRebalanceResponse, GetRebalanceRequest,
    ListRebalancesRequest, ListRebalancesResponse, PlanRebalanceRequest, Rebalance, RebalanceState,
};
use tonic::{Request, Response, Status};

use crate::model::{Kind, Record};
use crate::plan::propose;
use crate::security::Action;
use crate::store::Condition;
use crate::world::World;

use super::errors::CallError;
use super::records::{Managed, require_name};
use super::{Services, answer};

#[tonic::async_trait]
impl Managed for Rebalance {
    fn sanitize(&mut self) {
        self.status = None;
    }

    async fn refer(
        &mut self,
        before: Option<&Self>,
        services: &Services,
    ) -> Result<Vec<Condition>, CallError> {
        if before.is_none() {
            let spec = self.spec.unwrap_or_default();
            let look = |world: &World| propose(world, services.limits(), &spec);
            self.status = Some(services.view(look).await?);
        }
        Ok(Vec::new())
    }
}

#[tonic::async_trait]
impl Rebalances for Services {
    async fn plan_rebalance(
        &self,
        request: Request<PlanRebalanceRequest>,
    ) -> Result<Response<Rebalance>, Status> {
        self.permit(&request, Action::Operate)?;
        answer!(self.create(request.into_inner().rebalance).await?)
    }

    async fn get_rebalance(
        &self,
        request: Request<GetRebalanceRequest>,
    ) -> Result<Response<Rebalance>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_rebalances(
        &self,
        request: Request<ListRebalancesRequest>,
    ) -> Result<Response<ListRebalancesResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListRebalancesResponse {
            rebalances: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn commit_rebalance(
        &self,
        request: Request<CommitRebalanceRequest>,
    ) -> Result<Response<Rebalance>, Status> {
        self.permit(&request, Action::Operate)?;
        let CommitRebalanceRequest { name, revision } = request.into_inner();
        require_name(&name)?;
        let commit = |rebalance: &mut Rebalance| {
            let stale = || CallError::RevisionStale {
                kind: Kind::Rebalance,
                name: name.clone(),
                revision,
            };
            if rebalance.is_deleting() {
                return Err(CallError::Deleting {
                    kind: Kind::Rebalance,
                    name: name.clone(),
                });
            }
            let is_looked_at = revision == 0 || revision == rebalance.meta().revision;
            let status = rebalance.status.get_or_insert_default();
            match status.state() {
                RebalanceState::Committed | RebalanceState::Done => Ok(()),
                RebalanceState::Planned | RebalanceState::Unspecified if is_looked_at => {
                    status.state = RebalanceState::Committed.into();
                    Ok(())
                }
                RebalanceState::Planned | RebalanceState::Unspecified => Err(stale()),
            }
        };
        answer!(self.change::<Rebalance>(&name, commit).await?)
    }

    async fn delete_rebalance(
        &self,
        request: Request<DeleteRebalanceRequest>,
    ) -> Result<Response<DeleteRebalanceResponse>, Status> {
        self.permit(&request, Action::Operate)?;
        self.delete::<Rebalance>(&request.into_inner().name).await?;
        answer!(DeleteRebalanceResponse {})
    }
}
