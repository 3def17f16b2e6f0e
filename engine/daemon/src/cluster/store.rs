//! The store of the mirror's record: the control plane, asked through threads that may wait.

use pollux_api::control::v1 as api;
use pollux_trace::{Origin, span};
use pollux_volume::membership::{Membership, MembershipStore, StoreError, StoreFuture};
use tokio::runtime::Handle;
use tonic::{Code, Status};
use tracing::Instrument;
use uuid::Uuid;

use super::record::{from_api, to_api};
use super::registry::Registry;

/// The record of one volume, kept by the control plane. It may be made anywhere and is used on a reactor.
#[derive(Clone)]
pub(super) struct ControlStore {
    pub(super) registry: Registry,
    /// Where calls are made.
    pub(super) runtime: Handle,
    /// This node.
    pub(super) node: String,
    /// The name of the volume.
    pub(super) volume: String,
    /// For whom it was opened.
    pub(super) origin: Option<Origin>,
}

impl ControlStore {
    /// Has the call made where there may be waiting. Dropping the answer ends the call, whose outcome is not
    /// known then.
    fn on_runtime<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> StoreFuture<T> {
        let span = span!(parent: None, "record", otel.name = what, volume = self.volume);
        if let Some(origin) = &self.origin {
            origin.adopt(&span);
        }
        let called = self.runtime.spawn(call.instrument(span));
        Box::pin(async move { called.await.unwrap_or(Err(StoreError::Unavailable)) })
    }
}

/// What a refusal means to the mirror.
fn refused(status: &Status, volume: Uuid) -> StoreError {
    match status.code() {
        // Gone, or to be served by another node: this one has no part in it any more.
        Code::NotFound | Code::FailedPrecondition | Code::PermissionDenied => StoreError::NoVolume(volume),
        _ => StoreError::Unavailable,
    }
}

impl MembershipStore for ControlStore {
    fn load(&self, volume: Uuid) -> StoreFuture<Membership> {
        let (registry, name) = (self.registry.clone(), self.volume.clone());
        let request = api::GetMembershipRequest {
            volume: name.clone(),
            volume_uid: volume.to_string(),
            node: self.node.clone(),
        };
        self.on_runtime("load record", async move {
            let record = registry.membership(&request).await;
            let record = record.map_err(|status| {
                tracing::debug!(volume = %name, %status, "the record cannot be had");
                refused(&status, volume)
            })?;
            from_api(&record).map_err(|error| {
                tracing::error!(volume = %name, %error, "the record makes no sense");
                StoreError::Unavailable
            })
        })
    }

    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()> {
        let (registry, name) = (self.registry.clone(), self.volume.clone());
        let request = api::SwapMembershipRequest {
            volume: name.clone(),
            node: self.node.clone(),
            next: Some(to_api(&next)),
        };
        self.on_runtime("swap record", async move {
            let answer = registry.swap(&request).await.map_err(|status| {
                tracing::debug!(volume = %name, %status, "the record is not changed");
                refused(&status, next.volume)
            })?;
            if answer.swapped {
                return Ok(());
            }
            let current = answer.current.as_ref().map(from_api);
            match current {
                Some(Ok(current)) => Err(StoreError::Conflict(Box::new(current))),
                Some(Err(_)) | None => Err(StoreError::Unavailable),
            }
        })
    }
}
