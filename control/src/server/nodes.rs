//! Calls about nodes and pools.

use pollux_api::control::v1::nodes_server::Nodes;
use pollux_api::control::v1::pools_server::Pools;
use pollux_api::control::v1::{
    CreateNodeRequest, CreatePoolRequest, DeleteNodeRequest, DeleteNodeResponse, DeletePoolRequest,
    DeletePoolResponse, GetNodeRequest, GetPoolRequest, ListNodesRequest, ListNodesResponse,
    ListPoolsRequest, ListPoolsResponse, Node, NodeChange, NodeSpec, Pool, PoolChange, PoolSpec,
    UpdateNodeRequest, UpdatePoolRequest, Volume, WatchRequest,
};
use tonic::{Request, Response, Status};

use crate::model::{Kind, Record};
use crate::security::Action;
use crate::store::Condition;

use super::errors::CallError;
use super::records::{ChangeStream, Managed};
use super::{Services, answer, change_message};

#[tonic::async_trait]
impl Managed for Node {
    fn sanitize(&mut self) {
        self.status = None;
    }

    fn set(&mut self, update: &Self, path: &str) -> bool {
        let spec = self.spec.get_or_insert_default();
        let from = update.spec.clone().unwrap_or_default();
        let NodeSpec {
            address,
            zone,
            rack,
            cordoned,
            drained,
        } = from;
        match path {
            "spec.address" => spec.address = address,
            "spec.zone" => spec.zone = zone,
            "spec.rack" => spec.rack = rack,
            "spec.cordoned" => spec.cordoned = cordoned,
            "spec.drained" => spec.drained = drained,
            _ => return false,
        }
        true
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let pools = services.all::<Pool>().await?;
        let on_it = pools
            .iter()
            .find(|pool| pool.spec.as_ref().is_some_and(|spec| spec.node == self.name()));
        match on_it {
            Some(pool) => Err(CallError::InUse {
                kind: Kind::Node,
                name: self.name().to_owned(),
                by: format!("pool {} is on it: drain and delete that first", pool.name()),
            }),
            None => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Managed for Pool {
    fn sanitize(&mut self) {
        self.status = None;
    }

    fn set(&mut self, update: &Self, path: &str) -> bool {
        let spec = self.spec.get_or_insert_default();
        let PoolSpec {
            cordoned, drained, ..
        } = update.spec.clone().unwrap_or_default();
        match path {
            "spec.cordoned" => spec.cordoned = cordoned,
            "spec.drained" => spec.drained = drained,
            _ => return false,
        }
        true
    }

    async fn refer(
        &mut self,
        before: Option<&Self>,
        services: &Services,
    ) -> Result<Vec<Condition>, CallError> {
        let node = self.spec.as_ref().map_or("", |spec| spec.node.as_str());
        match before {
            // It stays where it is.
            Some(_) => Ok(Vec::new()),
            None => Ok(vec![services.refer::<Node>("pool.spec.node", node).await?.1]),
        }
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let volumes = services.all::<Volume>().await?;
        let on_it = volumes.iter().find(|volume| {
            let replicas = volume.status.iter().flat_map(|status| &status.replicas);
            replicas.into_iter().any(|replica| replica.pool == self.name())
        });
        match on_it {
            Some(volume) => Err(CallError::InUse {
                kind: Kind::Pool,
                name: self.name().to_owned(),
                by: format!(
                    "a replica of volume {} is in it: drain it first (`pollux pool drain {}`)",
                    volume.name(),
                    self.name()
                ),
            }),
            None => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Nodes for Services {
    type WatchNodesStream = ChangeStream<NodeChange>;

    async fn create_node(&self, request: Request<CreateNodeRequest>) -> Result<Response<Node>, Status> {
        self.permit(&request, Action::Operate)?;
        answer!(self.create(request.into_inner().node).await?)
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListNodesResponse {
            nodes: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Result<Response<Node>, Status> {
        self.permit(&request, Action::Operate)?;
        let UpdateNodeRequest { node, update_mask } = request.into_inner();
        answer!(self.update(node, update_mask).await?)
    }

    async fn delete_node(
        &self,
        request: Request<DeleteNodeRequest>,
    ) -> Result<Response<DeleteNodeResponse>, Status> {
        self.permit(&request, Action::Operate)?;
        self.delete::<Node>(&request.into_inner().name).await?;
        answer!(DeleteNodeResponse {})
    }

    async fn watch_nodes(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(NodeChange, node_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}

#[tonic::async_trait]
impl Pools for Services {
    type WatchPoolsStream = ChangeStream<PoolChange>;

    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Result<Response<Pool>, Status> {
        self.permit(&request, Action::Operate)?;
        answer!(self.create(request.into_inner().pool).await?)
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Result<Response<Pool>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_pools(
        &self,
        request: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListPoolsResponse {
            pools: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn update_pool(&self, request: Request<UpdatePoolRequest>) -> Result<Response<Pool>, Status> {
        self.permit(&request, Action::Operate)?;
        let UpdatePoolRequest { pool, update_mask } = request.into_inner();
        answer!(self.update(pool, update_mask).await?)
    }

    async fn delete_pool(
        &self,
        request: Request<DeletePoolRequest>,
    ) -> Result<Response<DeletePoolResponse>, Status> {
        self.permit(&request, Action::Operate)?;
        self.mark_deleted::<Pool>(&request.into_inner().name).await?;
        answer!(DeletePoolResponse {})
    }

    async fn watch_pools(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchPoolsStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(PoolChange, pool_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}
