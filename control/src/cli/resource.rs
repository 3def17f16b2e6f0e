//! What the command line can ask of all kinds of resources.

use std::pin::Pin;

use pollux_api::FieldMask;
use pollux_api::control::v1::events_client::EventsClient;
use pollux_api::control::v1::group_snapshots_client::GroupSnapshotsClient;
use pollux_api::control::v1::groups_client::GroupsClient;
use pollux_api::control::v1::nodes_client::NodesClient;
use pollux_api::control::v1::pools_client::PoolsClient;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::connection::Channel;
use super::output::Row;

/// Records of a page.
const PAGE_SIZE: u32 = 1000;

/// Changes: a record, or the name of one that is gone.
pub(super) type Changes<R> = Pin<Box<dyn Stream<Item = Result<Result<R, String>, Status>> + Send>>;

/// A kind that can be listed.
#[tonic::async_trait]
pub(super) trait Listed: Row {
    /// One page, and the token of the next.
    async fn page(channel: Channel, token: String) -> Result<(Vec<Self>, String), Status>;

    /// What is, and what changes.
    async fn watch(channel: Channel) -> Result<Changes<Self>, Status>;
}

/// A kind that can be asked for by name.
#[tonic::async_trait]
pub(super) trait Named: Listed {
    async fn get(channel: Channel, name: String) -> Result<Self, Status>;
    async fn create(channel: Channel, record: Self) -> Result<Self, Status>;
    async fn delete(channel: Channel, name: String) -> Result<(), Status>;
}

/// A kind that can be changed.
#[tonic::async_trait]
pub(super) trait Changed: Named {
    async fn update(channel: Channel, record: Self, paths: Vec<String>) -> Result<Self, Status>;
}

/// All records of a kind.
pub(super) async fn all<R: Listed>(channel: &Channel) -> Result<Vec<R>, Status> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (records, next) = R::page(channel.clone(), token).await?;
        all.extend(records);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

macro_rules! listed {
    ($record:ident, $client:ident, $list:ident, $request:ident, $field:ident, $watch:ident,
     $module:ident) => {
        #[tonic::async_trait]
        impl Listed for $record {
            async fn page(channel: Channel, token: String) -> Result<(Vec<Self>, String), Status> {
                #[allow(clippy::needless_update, reason = "some requests have more fields")]
                let request = $request {
                    page: Some(PageRequest {
                        size: PAGE_SIZE,
                        token,
                    }),
                    ..$request::default()
                };
                let answer = $client::new(channel).$list(request).await?.into_inner();
                Ok((answer.$field, answer.next_page_token))
            }

            async fn watch(channel: Channel) -> Result<Changes<Self>, Status> {
                let changes = $client::new(channel)
                    .$watch(WatchRequest::default())
                    .await?;
                let changes = changes.into_inner().filter_map(|change| match change {
                    Ok(change) => match change.change? {
                        $module::Change::Put(record) => Some(Ok(Ok(record))),
                        $module::Change::Deleted(name) => Some(Ok(Err(name))),
                    },
                    Err(status) => Some(Err(status)),
                });
                Ok(Box::pin(changes))
            }
        }
    };
}

macro_rules! named {
    ($record:ident, $client:ident, $field:ident, $get:ident, $get_request:ident, $create:ident,
     $create_request:ident, $delete:ident, $delete_request:ident) => {
        #[tonic::async_trait]
        impl Named for $record {
            async fn get(channel: Channel, name: String) -> Result<Self, Status> {
                Ok($client::new(channel)
                    .$get($get_request { name })
                    .await?
                    .into_inner())
            }

            async fn create(channel: Channel, record: Self) -> Result<Self, Status> {
                #[allow(clippy::needless_update, reason = "some of these requests say more")]
                let request = $create_request {
                    $field: Some(record),
                    ..Default::default()
                };
                Ok($client::new(channel).$create(request).await?.into_inner())
            }

            async fn delete(channel: Channel, name: String) -> Result<(), Status> {
                $client::new(channel)
                    .$delete($delete_request { name })
                    .await?;
                Ok(())
            }
        }
    };
}

macro_rules! changed {
    ($record:ident, $client:ident, $field:ident, $update:ident, $request:ident) => {
        #[tonic::async_trait]
        impl Changed for $record {
            async fn update(channel: Channel, record: Self, paths: Vec<String>) -> Result<Self, Status> {
                let request = $request {
                    $field: Some(record),
                    update_mask: Some(FieldMask { paths }),
                };
                Ok($client::new(channel).$update(request).await?.into_inner())
            }
        }
    };
}

listed!(
    Node,
    NodesClient,
    list_nodes,
    ListNodesRequest,
    nodes,
    watch_nodes,
    node_change
);
listed!(
    Pool,
    PoolsClient,
    list_pools,
    ListPoolsRequest,
    pools,
    watch_pools,
    pool_change
);
listed!(
    Volume,
    VolumesClient,
    list_volumes,
    ListVolumesRequest,
    volumes,
    watch_volumes,
    volume_change
);
listed!(
    Snapshot,
    SnapshotsClient,
    list_snapshots,
    ListSnapshotsRequest,
    snapshots,
    watch_snapshots,
    snapshot_change
);
listed!(
    Group,
    GroupsClient,
    list_groups,
    ListGroupsRequest,
    groups,
    watch_groups,
    group_change
);
listed!(
    GroupSnapshot,
    GroupSnapshotsClient,
    list_group_snapshots,
    ListGroupSnapshotsRequest,
    group_snapshots,
    watch_group_snapshots,
    group_snapshot_change
);
listed!(
    Template,
    TemplatesClient,
    list_templates,
    ListTemplatesRequest,
    templates,
    watch_templates,
    template_change
);
listed!(
    Event,
    EventsClient,
    list_events,
    ListEventsRequest,
    events,
    watch_events,
    event_change
);

named!(
    Node,
    NodesClient,
    node,
    get_node,
    GetNodeRequest,
    create_node,
    CreateNodeRequest,
    delete_node,
    DeleteNodeRequest
);
named!(
    Pool,
    PoolsClient,
    pool,
    get_pool,
    GetPoolRequest,
    create_pool,
    CreatePoolRequest,
    delete_pool,
    DeletePoolRequest
);
named!(
    Volume,
    VolumesClient,
    volume,
    get_volume,
    GetVolumeRequest,
    create_volume,
    CreateVolumeRequest,
    delete_volume,
    DeleteVolumeRequest
);
named!(
    Snapshot,
    SnapshotsClient,
    snapshot,
    get_snapshot,
    GetSnapshotRequest,
    create_snapshot,
    CreateSnapshotRequest,
    delete_snapshot,
    DeleteSnapshotRequest
);
named!(
    Group,
    GroupsClient,
    group,
    get_group,
    GetGroupRequest,
    create_group,
    CreateGroupRequest,
    delete_group,
    DeleteGroupRequest
);
named!(
    GroupSnapshot,
    GroupSnapshotsClient,
    group_snapshot,
    get_group_snapshot,
    GetGroupSnapshotRequest,
    create_group_snapshot,
    CreateGroupSnapshotRequest,
    delete_group_snapshot,
    DeleteGroupSnapshotRequest
);
named!(
    Template,
    TemplatesClient,
    template,
    get_template,
    GetTemplateRequest,
    create_template,
    CreateTemplateRequest,
    delete_template,
    DeleteTemplateRequest
);

changed!(Node, NodesClient, node, update_node, UpdateNodeRequest);
changed!(Pool, PoolsClient, pool, update_pool, UpdatePoolRequest);
changed!(Volume, VolumesClient, volume, update_volume, UpdateVolumeRequest);
changed!(Group, GroupsClient, group, update_group, UpdateGroupRequest);
changed!(
    Template,
    TemplatesClient,
    template,
    update_template,
    UpdateTemplateRequest
);
