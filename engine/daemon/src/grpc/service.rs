//! The calls of `pollux.engine.v1.Engine`.

use std::pin::Pin;
use std::sync::Arc;

use pollux_api::engine::v1::engine_server;
use pollux_api::engine::v1::{
    AddNamespaceRequest, AddNamespaceResponse, Event, GetInfoRequest, GetInfoResponse, GetStatisticsRequest,
    GetStatisticsResponse, ListNamespacesRequest, ListNamespacesResponse, RemoveNamespaceRequest,
    RemoveNamespaceResponse, ResizeNamespaceRequest, ResizeNamespaceResponse, SetQosRequest, SetQosResponse,
    WatchEventsRequest,
};
use pollux_nvme::target::NamespaceConfig;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status;
use crate::engine::{ChangeError, Engine};

/// Events on their way to one caller.
const EVENTS_ON_THE_WAY: usize = 16;

/// Answers calls about an engine.
pub(super) struct EngineService {
    engine: Arc<Engine>,
}

impl EngineService {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl engine_server::Engine for EngineService {
    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn get_info(&self, _request: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        Ok(Response::new(self.engine.info()))
    }

    async fn list_namespaces(
        &self,
        _request: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let namespaces = self.engine.namespaces();
        Ok(Response::new(ListNamespacesResponse { namespaces }))
    }

    async fn add_namespace(
        &self,
        request: Request<AddNamespaceRequest>,
    ) -> Result<Response<AddNamespaceResponse>, Status> {
        let AddNamespaceRequest {
            uri,
            namespace_id,
            qos,
        } = request.into_inner();
        let qos = super::qos::from_api(qos.as_ref());
        let engine = self.engine.clone();
        let config = NamespaceConfig {
            id: namespace_id,
            ..NamespaceConfig::default()
        };
        // On a task of its own: a caller that hangs up must not leave a change half done.
        let added = tokio::spawn(async move { engine.add_namespace(&uri, &config, &qos).await }).await;
        let namespace = Some(finished(added)?);
        Ok(Response::new(AddNamespaceResponse { namespace }))
    }

    async fn remove_namespace(
        &self,
        request: Request<RemoveNamespaceRequest>,
    ) -> Result<Response<RemoveNamespaceResponse>, Status> {
        let id = request.into_inner().namespace_id;
        let engine = self.engine.clone();
        let removed = tokio::spawn(async move { engine.remove_namespace(id).await }).await;
        finished(removed)?;
        Ok(Response::new(RemoveNamespaceResponse {}))
    }

    async fn resize_namespace(
        &self,
        request: Request<ResizeNamespaceRequest>,
    ) -> Result<Response<ResizeNamespaceResponse>, Status> {
        let ResizeNamespaceRequest {
            namespace_id,
            size_bytes,
        } = request.into_inner();
        let engine = self.engine.clone();
        let resized =
            tokio::spawn(async move { engine.resize_namespace(namespace_id, size_bytes).await }).await;
        let namespace = Some(finished(resized)?);
        Ok(Response::new(ResizeNamespaceResponse { namespace }))
    }

    async fn set_qos(&self, request: Request<SetQosRequest>) -> Result<Response<SetQosResponse>, Status> {
        let SetQosRequest { namespace_id, qos } = request.into_inner();
        let qos = super::qos::from_api(qos.as_ref());
        let changed = self.engine.set_qos(namespace_id, &qos).await;
        let namespace = Some(finished(Ok(changed))?);
        Ok(Response::new(SetQosResponse { namespace }))
    }

    async fn get_statistics(
        &self,
        _request: Request<GetStatisticsRequest>,
    ) -> Result<Response<GetStatisticsResponse>, Status> {
        let reactors = self.engine.statistics();
        Ok(Response::new(GetStatisticsResponse { reactors }))
    }

    async fn watch_events(
        &self,
        _request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let mut watch = self.engine.watch();
        let (sender, receiver) = mpsc::channel(EVENTS_ON_THE_WAY);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = watch.next() => event,
                    () = sender.closed() => return,
                };
                let Some(event) = event else { return };
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn finished<T>(result: Result<Result<T, ChangeError>, tokio::task::JoinError>) -> Result<T, Status> {
    let result = result.map_err(|error| status::lost(&error))?;
    result.map_err(|error| status::status(error.reason(), error.to_string()))
}
