//! Calls about templates, groups and events.

use pollux_api::control::v1::events_server::Events;
use pollux_api::control::v1::groups_server::Groups;
use pollux_api::control::v1::templates_server::Templates;
use pollux_api::control::v1::{
    CreateGroupRequest, CreateTemplateRequest, DeleteGroupRequest, DeleteGroupResponse,
    DeleteTemplateRequest, DeleteTemplateResponse, Event, EventChange, GetGroupRequest, GetTemplateRequest,
    Group, GroupChange, ListEventsRequest, ListEventsResponse, ListGroupsRequest, ListGroupsResponse,
    ListTemplatesRequest, ListTemplatesResponse, PreviewTemplateResponse, Template, TemplateChange,
    UpdateGroupRequest, UpdateTemplateRequest, Volume, VolumeSpec, WatchRequest,
};
use tonic::{Request, Response, Status};

use crate::model::{Kind, Record};
use crate::plan::preview;
use crate::security::Action;
use crate::world::World;

use super::errors::CallError;
use super::records::{ChangeStream, Managed, masked, require_name};
use super::{Services, answer, change_message};

#[tonic::async_trait]
impl Managed for Template {
    fn sanitize(&mut self) {}

    fn set(&mut self, update: &Self, path: &str) -> bool {
        let spec = self.spec.get_or_insert_default();
        let policy = update.spec.clone().and_then(|spec| spec.policy);
        match path {
            "spec.policy" => spec.policy = policy,
            "spec.policy.qos" => {
                spec.policy.get_or_insert_default().qos = policy.and_then(|policy| policy.qos)
            }
            _ => return false,
        }
        true
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let names = |spec: &VolumeSpec| spec.template == self.name();
        services.unused(self, names).await
    }
}

#[tonic::async_trait]
impl Managed for Group {
    fn sanitize(&mut self) {
        self.status = None;
    }

    fn set(&mut self, update: &Self, path: &str) -> bool {
        let spec = self.spec.get_or_insert_default();
        match path {
            "spec.schedule" => spec.schedule = update.spec.and_then(|spec| spec.schedule),
            _ => return false,
        }
        true
    }

    async fn require_unused(&self, services: &Services) -> Result<(), CallError> {
        let names = |spec: &VolumeSpec| spec.group == self.name();
        services.unused(self, names).await
    }
}

impl Services {
    /// Nothing is deleted that a volume names.
    async fn unused<R: Record>(
        &self,
        record: &R,
        names: impl Fn(&VolumeSpec) -> bool,
    ) -> Result<(), CallError> {
        let volumes = self.all::<Volume>().await?;
        match volumes
            .iter()
            .find(|volume| volume.spec.as_ref().is_some_and(&names))
        {
            Some(volume) => Err(CallError::InUse {
                kind: R::KIND,
                name: record.name().to_owned(),
                by: format!("volume {} names it: delete or change that first", volume.name()),
            }),
            None => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Templates for Services {
    type WatchTemplatesStream = ChangeStream<TemplateChange>;

    async fn create_template(
        &self,
        request: Request<CreateTemplateRequest>,
    ) -> Result<Response<Template>, Status> {
        self.permit(&request, Action::Operate)?;
        answer!(self.create(request.into_inner().template).await?)
    }

    async fn get_template(&self, request: Request<GetTemplateRequest>) -> Result<Response<Template>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_templates(
        &self,
        request: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListTemplatesResponse {
            templates: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn update_template(
        &self,
        request: Request<UpdateTemplateRequest>,
    ) -> Result<Response<Template>, Status> {
        self.permit(&request, Action::Operate)?;
        let UpdateTemplateRequest {
            template,
            update_mask,
        } = request.into_inner();
        answer!(self.update(template, update_mask).await?)
    }

    async fn delete_template(
        &self,
        request: Request<DeleteTemplateRequest>,
    ) -> Result<Response<DeleteTemplateResponse>, Status> {
        self.permit(&request, Action::Operate)?;
        self.delete::<Template>(&request.into_inner().name).await?;
        answer!(DeleteTemplateResponse {})
    }

    async fn preview_template(
        &self,
        request: Request<UpdateTemplateRequest>,
    ) -> Result<Response<PreviewTemplateResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let UpdateTemplateRequest {
            template,
            update_mask,
        } = request.into_inner();
        let update = template.ok_or_else(|| CallError::field("template", "is missing"))?;
        require_name(update.name())?;
        let present = self.find::<Template>(update.name()).await?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let changed = masked(&present, &update, &paths)?;
        let show = |world: &World| preview(world, &self.parts.limits, &changed);
        answer!(self.view(show).await?)
    }

    async fn watch_templates(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchTemplatesStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(TemplateChange, template_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}

#[tonic::async_trait]
impl Groups for Services {
    type WatchGroupsStream = ChangeStream<GroupChange>;

    async fn create_group(&self, request: Request<CreateGroupRequest>) -> Result<Response<Group>, Status> {
        self.permit(&request, Action::Operate)?;
        answer!(self.create(request.into_inner().group).await?)
    }

    async fn get_group(&self, request: Request<GetGroupRequest>) -> Result<Response<Group>, Status> {
        self.permit(&request, Action::Read)?;
        answer!(self.named(&request.into_inner().name).await?)
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let page = self.page(request.into_inner().page, "", |_| true).await?;
        answer!(ListGroupsResponse {
            groups: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn update_group(&self, request: Request<UpdateGroupRequest>) -> Result<Response<Group>, Status> {
        self.permit(&request, Action::Operate)?;
        let UpdateGroupRequest { group, update_mask } = request.into_inner();
        answer!(self.update(group, update_mask).await?)
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        self.permit(&request, Action::Operate)?;
        self.delete::<Group>(&request.into_inner().name).await?;
        answer!(DeleteGroupResponse {})
    }

    async fn watch_groups(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchGroupsStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(GroupChange, group_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}

/// Most characters of a subject that is looked for.
const SUBJECT_CHARACTERS_MAX: usize = 160;

#[tonic::async_trait]
impl Events for Services {
    type WatchEventsStream = ChangeStream<EventChange>;

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        self.permit(&request, Action::Read)?;
        let ListEventsRequest { page, subject } = request.into_inner();
        let is_subject = |subject: &str| {
            let kind = subject.split_once('/').map(|(kind, _)| kind);
            let is_kind = kind.is_some_and(|kind| Kind::ALL.iter().any(|known| known.name() == kind));
            subject.is_empty() || (is_kind && subject.chars().count() <= SUBJECT_CHARACTERS_MAX)
        };
        if !is_subject(&subject) {
            return Err(CallError::field("subject", "is no KIND/NAME, such as volume/database").into());
        }
        let wanted = |event: &Event| subject.is_empty() || event.subject == subject;
        let page = self.page(page, &subject, wanted).await?;
        answer!(ListEventsResponse {
            events: page.records,
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn watch_events(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        self.permit(&request, Action::Read)?;
        let message = change_message!(EventChange, event_change);
        answer!(self.watch(request.into_inner(), message).await?)
    }
}
