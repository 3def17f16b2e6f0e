//! The table of all routes: which method and path is which call.

use std::future::Future;
use std::pin::Pin;

use axum::http::Method;
use pollux_api::control::v1::events_server::Events;
use pollux_api::control::v1::group_snapshots_server::GroupSnapshots;
use pollux_api::control::v1::groups_server::Groups;
use pollux_api::control::v1::measurements_server::Measurements;
use pollux_api::control::v1::nodes_server::Nodes;
use pollux_api::control::v1::pools_server::Pools;
use pollux_api::control::v1::rebalances_server::Rebalances;
use pollux_api::control::v1::recoveries_server::Recoveries;
use pollux_api::control::v1::snapshots_server::Snapshots;
use pollux_api::control::v1::templates_server::Templates;
use pollux_api::control::v1::tokens_server::Tokens;
use pollux_api::control::v1::volumes_server::Volumes;
use serde::Serialize;
use serde_json::Value;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Status};

use crate::server::Services;

use super::problem::Problem;
use super::request::typed;

/// A method of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Looks.
    Get,
    /// Makes something, or does what is no other method.
    Post,
    /// Changes fields.
    Patch,
    /// Deletes.
    Delete,
}

impl Verb {
    /// The method.
    pub fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Post => Method::POST,
            Self::Patch => Method::PATCH,
            Self::Delete => Method::DELETE,
        }
    }

    /// Its name in descriptions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// What the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// The whole message, but for what is in the path.
    Whole,
    /// One field of it.
    Field(&'static str),
}

/// What a call is made of.
pub struct Call {
    pub(super) services: Services,
    pub(super) metadata: MetadataMap,
    pub(super) extensions: axum::http::Extensions,
    pub(super) message: Value,
}

/// What a call answers.
pub enum Answer {
    /// One message.
    One(Value),
    /// One after the other.
    Many(Pin<Box<dyn Stream<Item = Result<Value, Status>> + Send>>),
}

/// A call under way.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

/// A method and a path, and the call that they are.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub verb: Verb,
    /// The path, with `{name}` for a name.
    pub path: &'static str,
    /// The service.
    pub service: &'static str,
    /// The call.
    pub rpc: &'static str,
    /// The field that the name in the path is, as `volume.metadata.name`.
    pub(super) name_field: &'static str,
    /// What the body is.
    pub(super) body: Body,
    /// Whether it answers with a stream.
    pub is_watch: bool,
    /// Calls.
    pub(super) call: fn(Call) -> Answering,
}

/// Whether a path is one of a route; if so, the name in it.
pub(super) fn matched<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let Some((before, after)) = pattern.split_once("{name}") else {
        return (pattern == path).then_some(None);
    };
    let name = path.strip_prefix(before)?.strip_suffix(after)?;
    let is_name = !name.is_empty() && !name.contains(['/', ':']);
    is_name.then_some(Some(name))
}

fn request<T: serde::de::DeserializeOwned>(call: Call) -> Result<(Services, Request<T>), Problem> {
    let message = typed(call.message)?;
    let mut extensions = Extensions::new();
    if let Some(caller) = call.extensions.get::<crate::security::Authenticated>() {
        extensions.insert(caller.clone());
    }
    if let Some(certificates) = call.extensions.get::<pollux_http::PeerCertificates>() {
        extensions.insert(certificates.clone());
    }
    Ok((
        call.services,
        Request::from_parts(call.metadata, extensions, message),
    ))
}

fn value(message: &impl Serialize) -> Result<Value, Status> {
    serde_json::to_value(message).map_err(|error| Status::internal(format!("an answer has no JSON: {error}")))
}

macro_rules! verb {
    (GET) => {
        Verb::Get
    };
    (POST) => {
        Verb::Post
    };
    (PATCH) => {
        Verb::Patch
    };
    (DELETE) => {
        Verb::Delete
    };
}

macro_rules! body {
    () => {
        Body::None
    };
    (*) => {
        Body::Whole
    };
    ($field:literal) => {
        Body::Field($field)
    };
}

macro_rules! routes {
    ($($verb:ident $path:literal $service:ident $rpc:ident $function:ident
       $(name $name:literal)? $(body $body:tt)? $(watch $watch:tt)?;)*) => {
        /// All routes.
        pub static ROUTES: &[Route] = &[$(
            Route {
                verb: verb!($verb),
                path: $path,
                service: stringify!($service),
                rpc: stringify!($rpc),
                name_field: concat!($($name)?),
                body: body!($($body)?),
                is_watch: !concat!($(stringify!($watch))?).is_empty(),
                call: routes!(@call $service $function $($watch)?),
            },
        )*];
    };
    (@call $service:ident $function:ident) => {
        |call| Box::pin(async move {
            let (services, request) = request(call)?;
            let answer = $service::$function(&services, request).await?;
            Ok(Answer::One(value(answer.get_ref())?))
        })
    };
    (@call $service:ident $function:ident changes) => {
        |call| Box::pin(async move {
            let (services, request) = request(call)?;
            let changes = $service::$function(&services, request).await?.into_inner();
            Ok(Answer::Many(Box::pin(changes.map(|change| value(&change?)))))
        })
    };
}

routes! {
    GET "/v1/nodes" Nodes ListNodes list_nodes;
    POST "/v1/nodes" Nodes CreateNode create_node body "node";
    GET "/v1/nodes/{name}" Nodes GetNode get_node name "name";
    PATCH "/v1/nodes/{name}" Nodes UpdateNode update_node name "node.metadata.name" body "node";
    DELETE "/v1/nodes/{name}" Nodes DeleteNode delete_node name "name";
    GET "/v1/nodes:watch" Nodes WatchNodes watch_nodes watch changes;

    GET "/v1/pools" Pools ListPools list_pools;
    POST "/v1/pools" Pools CreatePool create_pool body "pool";
    GET "/v1/pools/{name}" Pools GetPool get_pool name "name";
    PATCH "/v1/pools/{name}" Pools UpdatePool update_pool name "pool.metadata.name" body "pool";
    DELETE "/v1/pools/{name}" Pools DeletePool delete_pool name "name";
    GET "/v1/pools:watch" Pools WatchPools watch_pools watch changes;

    GET "/v1/volumes" Volumes ListVolumes list_volumes;
    POST "/v1/volumes" Volumes CreateVolume create_volume body "volume";
    POST "/v1/volumes:plan" Volumes PlanVolume plan_volume body "volume";
    GET "/v1/volumes/{name}" Volumes GetVolume get_volume name "name";
    PATCH "/v1/volumes/{name}" Volumes UpdateVolume update_volume name "volume.metadata.name" body "volume";
    DELETE "/v1/volumes/{name}" Volumes DeleteVolume delete_volume name "name";
    POST "/v1/volumes/{name}:publish" Volumes PublishVolume publish_volume name "name" body *;
    POST "/v1/volumes/{name}:unpublish" Volumes UnpublishVolume unpublish_volume name "name" body *;
    POST "/v1/volumes/{name}:rollback" Volumes RollBackVolume roll_back_volume name "name" body *;
    GET "/v1/volumes:watch" Volumes WatchVolumes watch_volumes watch changes;

    GET "/v1/snapshots" Snapshots ListSnapshots list_snapshots;
    POST "/v1/snapshots" Snapshots CreateSnapshot create_snapshot body "snapshot";
    GET "/v1/snapshots/{name}" Snapshots GetSnapshot get_snapshot name "name";
    DELETE "/v1/snapshots/{name}" Snapshots DeleteSnapshot delete_snapshot name "name";
    GET "/v1/snapshots:watch" Snapshots WatchSnapshots watch_snapshots watch changes;
    GET "/v1/snapshots/{name}:blocks" Snapshots StreamSnapshotBlocks stream_snapshot_blocks
        name "name" watch changes;

    GET "/v1/groups" Groups ListGroups list_groups;
    POST "/v1/groups" Groups CreateGroup create_group body "group";
    GET "/v1/groups/{name}" Groups GetGroup get_group name "name";
    PATCH "/v1/groups/{name}" Groups UpdateGroup update_group name "group.metadata.name" body "group";
    DELETE "/v1/groups/{name}" Groups DeleteGroup delete_group name "name";
    GET "/v1/groups:watch" Groups WatchGroups watch_groups watch changes;

    GET "/v1/group-snapshots" GroupSnapshots ListGroupSnapshots list_group_snapshots;
    POST "/v1/group-snapshots" GroupSnapshots CreateGroupSnapshot create_group_snapshot
        body "group_snapshot";
    GET "/v1/group-snapshots/{name}" GroupSnapshots GetGroupSnapshot get_group_snapshot name "name";
    DELETE "/v1/group-snapshots/{name}" GroupSnapshots DeleteGroupSnapshot delete_group_snapshot name "name";
    GET "/v1/group-snapshots:watch" GroupSnapshots WatchGroupSnapshots watch_group_snapshots watch changes;

    GET "/v1/templates" Templates ListTemplates list_templates;
    POST "/v1/templates" Templates CreateTemplate create_template body "template";
    GET "/v1/templates/{name}" Templates GetTemplate get_template name "name";
    PATCH "/v1/templates/{name}" Templates UpdateTemplate update_template
        name "template.metadata.name" body "template";
    POST "/v1/templates/{name}:preview" Templates PreviewTemplate preview_template
        name "template.metadata.name" body "template";
    DELETE "/v1/templates/{name}" Templates DeleteTemplate delete_template name "name";
    GET "/v1/templates:watch" Templates WatchTemplates watch_templates watch changes;

    GET "/v1/events" Events ListEvents list_events;
    GET "/v1/events:watch" Events WatchEvents watch_events watch changes;

    GET "/v1/rebalances" Rebalances ListRebalances list_rebalances;
    POST "/v1/rebalances" Rebalances PlanRebalance plan_rebalance body "rebalance";
    GET "/v1/rebalances/{name}" Rebalances GetRebalance get_rebalance name "name";
    POST "/v1/rebalances/{name}:commit" Rebalances CommitRebalance commit_rebalance name "name" body *;
    DELETE "/v1/rebalances/{name}" Rebalances DeleteRebalance delete_rebalance name "name";

    POST "/v1/recovery:survey" Recoveries SurveyEngines survey_engines body *;
    POST "/v1/recovery:commit" Recoveries CommitRecovery commit_recovery body *;

    GET "/v1/measurements" Measurements GetMeasurements get_measurements;

    GET "/v1/tokens" Tokens ListTokens list_tokens;
    POST "/v1/tokens" Tokens CreateToken create_token body "token";
    DELETE "/v1/tokens/{name}" Tokens RevokeToken revoke_token name "name";
}
