//! The calls of `pollux.engine.v1.Volumes`.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::volumes_server;
use pollux_pool::layout::volume::{VolumeEntry, VolumeKind};
use pollux_pool::layout::{BLOCK_BYTES, EXTENT_BYTES};
use pollux_pool::{Pool, PoolError, RangePage, VolumeOptions};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::fields;
use super::pools::{failed, finished};
use crate::patience::while_users_leave;
use crate::pools::{Pools, PoolsError, unix_seconds};

/// Answers with ranges on their way to one caller.
const ANSWERS_ON_THE_WAY: usize = 4;

/// Answers calls about volumes.
pub(crate) struct VolumesService {
    pools: Arc<Pools>,
}

impl VolumesService {
    pub(super) fn new(pools: Arc<Pools>) -> Self {
        Self { pools }
    }

    /// Changes a pool, to the end even if the caller hangs up, and describes the volume that `act` returns. A
    /// volume that is in use is waited for a moment, as its users may be leaving.
    async fn change<F>(
        &self,
        pool: String,
        act: impl FnOnce(Rc<Pool>) -> F + Clone + Send + Sync + 'static,
    ) -> Result<api::Volume, Status>
    where
        F: Future<Output = Result<VolumeEntry, PoolError>> + 'static,
    {
        let pools = self.pools.clone();
        let changed = tokio::spawn(async move {
            let attempt = || {
                let act = act.clone();
                pools.with(&pool, move |pool| async move {
                    let entry = act(pool.clone()).await?;
                    Ok(describe(&pool, &entry))
                })
            };
            while_users_leave(attempt, PoolsError::is_volume_in_use).await
        });
        finished(changed.await)
    }
}

fn describe(pool: &Pool, entry: &VolumeEntry) -> api::Volume {
    let kind = match entry.kind {
        VolumeKind::Volume => api::VolumeKind::Volume,
        VolumeKind::Snapshot => api::VolumeKind::Snapshot,
    };
    // While what it comes from is being deleted, some may still be counted there.
    let own_extents = i64::try_from(entry.own_extents).unwrap_or(0).max(0) as u64;
    api::Volume {
        pool: pool.name().to_owned(),
        name: entry.name.clone(),
        uuid: entry.uuid.to_string(),
        kind: kind.into(),
        size_bytes: entry.size_blocks * BLOCK_BYTES as u64,
        checksums: entry.checksums,
        own_bytes: own_extents * EXTENT_BYTES,
        origin: pool.name_of(entry.origin),
        created_unix_s: entry.created_seconds,
        thick: entry.thick,
        usage: None,
    }
}

/// What is there under a name already, if it is as it was asked for.
fn again(
    pool: &Pool,
    name: &str,
    error: PoolError,
    is_same: impl FnOnce(&VolumeEntry) -> bool,
) -> Result<VolumeEntry, PoolError> {
    if !matches!(error, PoolError::Exists { .. }) {
        return Err(error);
    }
    match pool.volume(name) {
        Ok(entry) if is_same(&entry) => Ok(entry),
        _ => Err(error),
    }
}

#[tonic::async_trait]
impl volumes_server::Volumes for VolumesService {
    type StreamChangesStream = Pin<Box<dyn Stream<Item = Result<api::StreamChangesResponse, Status>> + Send>>;

    async fn create_volume(
        &self,
        request: Request<api::CreateVolumeRequest>,
    ) -> Result<Response<api::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let name = fields::name("name", request.name)?;
        let uuid = request.uuid.map(|uuid| fields::uuid("uuid", &uuid)).transpose()?;
        let options = VolumeOptions {
            checksums: request.checksums.unwrap_or(true),
            thick: request.thick,
            uuid,
            created_seconds: unix_seconds(),
            ..VolumeOptions::new(fields::blocks("size_bytes", request.size_bytes)?)
        };
        let act = move |pool: Rc<Pool>| async move {
            match pool.create_volume(&name, &options).await {
                Err(error) => again(&pool, &name, error, |entry| {
                    entry.kind == VolumeKind::Volume
                        && entry.size_blocks == options.size_blocks
                        && entry.checksums == options.checksums
                        && entry.thick == options.thick
                        && options.uuid.is_none_or(|uuid| uuid == entry.uuid)
                }),
                created => created,
            }
        };
        let volume = Some(self.change(pool, act).await?);
        Ok(Response::new(api::CreateVolumeResponse { volume }))
    }

    async fn create_snapshot(
        &self,
        request: Request<api::CreateSnapshotRequest>,
    ) -> Result<Response<api::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let volume = fields::name("volume", request.volume)?;
        let name = fields::name("name", request.name)?;
        let act = move |pool: Rc<Pool>| async move {
            match pool.snapshot(&volume, &name, unix_seconds()).await {
                Err(error) => {
                    let of = pool.volume(&volume)?;
                    again(&pool, &name, error, |entry| {
                        entry.kind == VolumeKind::Snapshot && entry.origin == of.id
                    })
                }
                taken => taken,
            }
        };
        let snapshot = Some(self.change(pool, act).await?);
        Ok(Response::new(api::CreateSnapshotResponse { snapshot }))
    }

    async fn clone_snapshot(
        &self,
        request: Request<api::CloneSnapshotRequest>,
    ) -> Result<Response<api::CloneSnapshotResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let snapshot = fields::name("snapshot", request.snapshot)?;
        let name = fields::name("name", request.name)?;
        let act = move |pool: Rc<Pool>| async move {
            match pool.clone_snapshot(&snapshot, &name, unix_seconds()).await {
                Err(error) => {
                    let of = pool.volume(&snapshot)?;
                    again(&pool, &name, error, |entry| {
                        entry.kind == VolumeKind::Volume && entry.origin == of.id
                    })
                }
                cloned => cloned,
            }
        };
        let volume = Some(self.change(pool, act).await?);
        Ok(Response::new(api::CloneSnapshotResponse { volume }))
    }

    async fn roll_back_volume(
        &self,
        request: Request<api::RollBackVolumeRequest>,
    ) -> Result<Response<api::RollBackVolumeResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let volume = fields::name("volume", request.volume)?;
        let snapshot = fields::name("snapshot", request.snapshot)?;
        let act = move |pool: Rc<Pool>| async move { pool.roll_back(&volume, &snapshot).await };
        let volume = Some(self.change(pool, act).await?);
        Ok(Response::new(api::RollBackVolumeResponse { volume }))
    }

    async fn resize_volume(
        &self,
        request: Request<api::ResizeVolumeRequest>,
    ) -> Result<Response<api::ResizeVolumeResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let name = fields::name("name", request.name)?;
        let size_blocks = fields::blocks("size_bytes", request.size_bytes)?;
        let may_drop = request.may_drop;
        let act = move |pool: Rc<Pool>| async move {
            pool.resize(&name, size_blocks, may_drop).await?;
            pool.volume(&name)
        };
        let volume = Some(self.change(pool, act).await?);
        Ok(Response::new(api::ResizeVolumeResponse { volume }))
    }

    async fn rename_volume(
        &self,
        request: Request<api::RenameVolumeRequest>,
    ) -> Result<Response<api::RenameVolumeResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let name = fields::name("name", request.name)?;
        let new_name = fields::name("new_name", request.new_name)?;
        let act = move |pool: Rc<Pool>| async move {
            if name != new_name {
                pool.rename(&name, &new_name).await?;
            }
            pool.volume(&new_name)
        };
        let volume = Some(self.change(pool, act).await?);
        Ok(Response::new(api::RenameVolumeResponse { volume }))
    }

    async fn delete_volume(
        &self,
        request: Request<api::DeleteVolumeRequest>,
    ) -> Result<Response<api::DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let name = fields::name("name", request.name)?;
        let (allow_missing, wait) = (request.allow_missing, request.wait);
        let act = move |pool: Rc<Pool>| {
            let name = name.clone();
            async move {
                match pool.delete(&name).await {
                    Err(PoolError::NotFound { .. }) if allow_missing => {}
                    deleted => deleted?,
                }
                if wait {
                    pool.reclaim().await?;
                }
                Ok(())
            }
        };
        let pools = self.pools.clone();
        let deleted = tokio::spawn(async move {
            let attempt = || pools.with(&pool, act.clone());
            while_users_leave(attempt, PoolsError::is_volume_in_use).await
        });
        finished(deleted.await)?;
        Ok(Response::new(api::DeleteVolumeResponse {}))
    }

    async fn list_volumes(
        &self,
        request: Request<api::ListVolumesRequest>,
    ) -> Result<Response<api::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let size = fields::page_size("page_size", request.page_size)?;
        let token = fields::page_token("page_token", request.page_token)?;
        let listed = self.pools.with(&pool, move |pool| async move {
            let entries = pool.volumes_after(&token, size + 1);
            let volumes = entries.iter().map(|entry| describe(&pool, entry));
            Ok(volumes.collect::<Vec<_>>())
        });
        let listed = listed.await.map_err(failed)?;
        let (volumes, next_page_token) = fields::page(listed, size, |volume| &volume.name);
        Ok(Response::new(api::ListVolumesResponse {
            volumes,
            next_page_token,
        }))
    }

    async fn get_volume(
        &self,
        request: Request<api::GetVolumeRequest>,
    ) -> Result<Response<api::GetVolumeResponse>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let name = fields::name("name", request.name)?;
        let found = self.pools.with(&pool, move |pool| async move {
            let entry = pool.volume(&name)?;
            let mut volume = describe(&pool, &entry);
            if request.usage {
                let usage = pool.usage(&name).await?;
                volume.usage = Some(api::VolumeUsage {
                    used_bytes: usage.used_bytes,
                    unique_bytes: usage.unique_bytes,
                    shared_bytes: usage.shared_bytes(),
                });
            }
            Ok(volume)
        });
        let volume = Some(found.await.map_err(failed)?);
        Ok(Response::new(api::GetVolumeResponse { volume }))
    }

    async fn stream_changes(
        &self,
        request: Request<api::StreamChangesRequest>,
    ) -> Result<Response<Self::StreamChangesStream>, Status> {
        let request = request.into_inner();
        let pool = fields::name("pool", request.pool)?;
        let name = fields::name("name", request.name)?;
        let since = request
            .since
            .map(|since| fields::name("since", since))
            .transpose()?;
        let mut next = Some(fields::block("offset_bytes", request.offset_bytes)?);
        let pools = self.pools.clone();
        // What there is not is told before the stream begins.
        let names: Vec<String> = [Some(name.clone()), since.clone()]
            .into_iter()
            .flatten()
            .collect();
        let known = pools.with(&pool, move |pool| async move {
            names.iter().try_for_each(|name| pool.volume(name).map(drop))
        });
        known.await.map_err(failed)?;
        let (sender, receiver) = mpsc::channel(ANSWERS_ON_THE_WAY);
        tokio::spawn(async move {
            while let Some(block) = next {
                let (name, since) = (name.clone(), since.clone());
                let found = pools.with(&pool, move |pool| async move {
                    changes(&pool, &name, since.as_deref(), block).await
                });
                let answer = match found.await {
                    Ok(page) => {
                        next = page.next;
                        Ok(answer(&page))
                    }
                    Err(error) => {
                        next = None;
                        Err(failed(error))
                    }
                };
                let is_empty = matches!(&answer, Ok(answer) if answer.ranges.is_empty());
                if !is_empty && sender.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Some of the blocks, from one on, in which a volume differs from another, or that are allocated.
async fn changes(
    pool: &Rc<Pool>,
    name: &str,
    since: Option<&str>,
    block: u64,
) -> Result<RangePage, PoolError> {
    match since {
        Some(since) => pool.changed_blocks(since, name, block).await,
        None => {
            let end = pool.volume(name)?.size_blocks;
            pool.open_volume(name)?.allocated(block, end).await
        }
    }
}

fn answer(page: &RangePage) -> api::StreamChangesResponse {
    let block_bytes = BLOCK_BYTES as u64;
    let ranges = page.ranges.iter().map(|range| api::ByteRange {
        offset_bytes: range.block * block_bytes,
        length_bytes: range.blocks * block_bytes,
    });
    api::StreamChangesResponse {
        ranges: ranges.collect(),
    }
}
