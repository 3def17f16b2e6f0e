//! The calls of `pollux.engine.v1.Pools`.

use std::rc::Rc;
use std::sync::Arc;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::pools_server;
use pollux_device::ByteSize;
use pollux_pool::layout::superblock::DeviceState;
use pollux_pool::layout::volume::VolumeKind;
use pollux_pool::{DeviceStatus, Pool, ScrubOptions, Unreadable};
use tokio::task::JoinError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{devices, fields, look, status};
use crate::pools::{NewDevice, NewPool, OpenPool, Pools, PoolsError, Removal, WornOut};
use crate::settings::PoolSettings;

/// Bytes of a journal, at most: longer ones only make imports long.
const JOURNAL_BYTES_MAX: u64 = 1 << 40;

/// Answers calls about pools.
pub(crate) struct PoolsService {
    pools: Arc<Pools>,
}

impl PoolsService {
    pub(super) fn new(pools: Arc<Pools>) -> Self {
        Self { pools }
    }
}

/// A pool as it is open now.
async fn describe(pool: &OpenPool) -> Result<api::Pool, Status> {
    let counted = pool
        .shared
        .call(|pool| async move { (count(&pool), pool.devices()) });
    let (counted, members) = counted.await.map_err(|error| failed(PoolsError::from(error)))?;
    let report = &pool.report;
    Ok(api::Pool {
        name: pool.shared.name().to_owned(),
        uuid: pool.shared.uuid().to_string(),
        devices: pool.uris.iter().map(ToString::to_string).collect(),
        reactor: pool.shared.owner().id().0,
        read_only: report.read_only,
        import: Some(api::ImportReport {
            was_exported: report.was_exported,
            journal_blocks: report.journal_blocks,
            records: report.records,
            newer_blocks: report.newer_blocks,
            unreadable_blocks: report.unreadable.len() as u64,
            unknown_features: report.unknown_features,
        }),
        members: members
            .iter()
            .map(|member| describe_member(pool, member))
            .collect(),
        ..counted
    })
}

fn describe_member(pool: &OpenPool, member: &DeviceStatus) -> api::PoolDevice {
    let state = match member.state {
        DeviceState::InUse => api::PoolDeviceState::InUse,
        DeviceState::Draining => api::PoolDeviceState::Draining,
        DeviceState::Absent => api::PoolDeviceState::Unspecified,
    };
    api::PoolDevice {
        number: member.number.into(),
        uuid: member.uuid.to_string(),
        uri: pool
            .uri_of(member.uuid)
            .map(ToString::to_string)
            .unwrap_or_default(),
        state: state.into(),
        size_bytes: member.size_bytes,
        device_bytes: member.device_bytes,
        free_bytes: member.free_bytes,
        has_journal: member.has_journal,
    }
}

/// What changes in a pool, as its owner sees it.
fn count(pool: &Rc<Pool>) -> api::Pool {
    let space = pool.space();
    let counters = pool.counters();
    let all = pool.volumes();
    let snapshots = all
        .iter()
        .filter(|entry| entry.kind == VolumeKind::Snapshot)
        .count();
    api::Pool {
        total_bytes: space.total_bytes,
        free_bytes: space.free_bytes,
        freeing_bytes: space.freeing_bytes,
        set_aside_bytes: space.set_aside_bytes,
        metadata_bytes: space.metadata_bytes,
        provisioned_bytes: space.provisioned_bytes,
        volumes: (all.len() - snapshots) as u64,
        snapshots: snapshots as u64,
        deleting: pool.deleting() as u64,
        stopped: pool.stopped().map(|error| error.to_string()),
        checkpoints: counters.checkpoints,
        checksum_mismatches: counters.checksum_mismatches,
        last_scrub: look::last(pool),
        ..api::Pool::default()
    }
}

#[tonic::async_trait]
impl pools_server::Pools for PoolsService {
    type CheckPoolStream = ReceiverStream<Result<api::CheckPoolResponse, Status>>;
    type ScrubPoolStream = ReceiverStream<Result<api::ScrubPoolResponse, Status>>;
    type ReplacePoolDeviceStream = ReceiverStream<devices::Answer>;
    type RemovePoolDeviceStream = ReceiverStream<devices::Answer>;

    async fn create_pool(
        &self,
        request: Request<api::CreatePoolRequest>,
    ) -> Result<Response<api::CreatePoolResponse>, Status> {
        let request = request.into_inner();
        if let Some(bytes) = request.journal_bytes
            && !(1..=JOURNAL_BYTES_MAX).contains(&bytes)
        {
            return Err(status::field("journal_bytes", "is not from 1 to 1 TiB"));
        }
        let new = NewPool {
            name: fields::name("name", request.name)?,
            settings: PoolSettings::new(fields::devices("devices", request.devices)?),
            overwrite: match request.overwrite.is_empty() {
                true => Vec::new(),
                false => fields::devices("overwrite", request.overwrite)?,
            },
            journal: request.journal_bytes.map(ByteSize),
        };
        let pools = self.pools.clone();
        // On a task of its own: a caller that hangs up must not leave a change half done.
        let created = tokio::spawn(async move {
            let pool = pools.create(&new).await?;
            pools.remember(pool.shared.name()).await;
            Ok(pool)
        });
        let created = created.await;
        let pool = describe(&finished(created)?).await?;
        Ok(Response::new(api::CreatePoolResponse { pool: Some(pool) }))
    }

    async fn import_pool(
        &self,
        request: Request<api::ImportPoolRequest>,
    ) -> Result<Response<api::ImportPoolResponse>, Status> {
        let request = request.into_inner();
        let settings = PoolSettings {
            read_only: request.read_only,
            ..PoolSettings::new(fields::devices("devices", request.devices)?)
        };
        let pools = self.pools.clone();
        let imported = tokio::spawn(async move {
            let pool = pools.import(&settings).await?;
            pools.remember(pool.shared.name()).await;
            pools.go_on_draining(&pool).await;
            Ok(pool)
        });
        let imported = imported.await;
        let pool = describe(&finished(imported)?).await?;
        Ok(Response::new(api::ImportPoolResponse { pool: Some(pool) }))
    }

    async fn export_pool(
        &self,
        request: Request<api::ExportPoolRequest>,
    ) -> Result<Response<api::ExportPoolResponse>, Status> {
        let name = fields::name("name", request.into_inner().name)?;
        let pools = self.pools.clone();
        finished(tokio::spawn(async move { pools.export(&name).await }).await)?;
        Ok(Response::new(api::ExportPoolResponse {}))
    }

    async fn list_pools(
        &self,
        request: Request<api::ListPoolsRequest>,
    ) -> Result<Response<api::ListPoolsResponse>, Status> {
        let request = request.into_inner();
        let size = fields::page_size("page_size", request.page_size)?;
        let token = fields::page_token("page_token", request.page_token)?;
        let all = self.pools.all().into_iter();
        let after = all.filter(|pool| *pool.shared.name() > *token).take(size + 1);
        let (page, next_page_token) = fields::page(after.collect(), size, |pool| pool.shared.name());
        let mut pools = Vec::new();
        for pool in &page {
            pools.push(describe(pool).await?);
        }
        Ok(Response::new(api::ListPoolsResponse {
            pools,
            next_page_token,
        }))
    }

    async fn get_pool(
        &self,
        request: Request<api::GetPoolRequest>,
    ) -> Result<Response<api::GetPoolResponse>, Status> {
        let name = fields::name("name", request.into_inner().name)?;
        let pool = self.pools.get(&name).map_err(failed)?;
        let pool = Some(describe(&pool).await?);
        Ok(Response::new(api::GetPoolResponse { pool }))
    }

    async fn check_pool(
        &self,
        request: Request<api::CheckPoolRequest>,
    ) -> Result<Response<Self::CheckPoolStream>, Status> {
        let name = fields::name("name", request.into_inner().name)?;
        // What there is not, or is in use, is told before the stream begins.
        self.pools.check_unused(&name).await.map_err(failed)?;
        Ok(Response::new(look::check(self.pools.clone(), name)))
    }

    async fn scrub_pool(
        &self,
        request: Request<api::ScrubPoolRequest>,
    ) -> Result<Response<Self::ScrubPoolStream>, Status> {
        let request = request.into_inner();
        let name = fields::name("name", request.name)?;
        if request.bytes_per_second == Some(0) {
            return Err(status::field(
                "bytes_per_second",
                "is 0: leave it out for no limit",
            ));
        }
        // What there is not is told before the stream begins.
        self.pools.get(&name).map_err(failed)?;
        let options = ScrubOptions {
            bytes_per_second: request.bytes_per_second.unwrap_or(0),
            begin_anew: request.begin_anew,
        };
        Ok(Response::new(look::scrub(self.pools.clone(), name, options)))
    }

    async fn grow_pool(
        &self,
        request: Request<api::GrowPoolRequest>,
    ) -> Result<Response<api::GrowPoolResponse>, Status> {
        let name = fields::name("name", request.into_inner().name)?;
        let (pools, grown) = (self.pools.clone(), name.clone());
        let grown = finished(tokio::spawn(async move { pools.grow(&grown).await }).await)?;
        let pool = self.pools.get(&name).map_err(failed)?;
        Ok(Response::new(api::GrowPoolResponse {
            pool: Some(describe(&pool).await?),
            grown: grown.into_iter().map(u32::from).collect(),
        }))
    }

    async fn add_pool_device(
        &self,
        request: Request<api::AddPoolDeviceRequest>,
    ) -> Result<Response<api::AddPoolDeviceResponse>, Status> {
        let request = request.into_inner();
        let name = fields::name("name", request.name)?;
        let new = new_device(request.device, request.overwrite)?;
        let pools = self.pools.clone();
        let added = tokio::spawn(async move { pools.add_device(&name, new).await }).await;
        let pool = describe(&finished(added)?).await?;
        Ok(Response::new(api::AddPoolDeviceResponse { pool: Some(pool) }))
    }

    async fn replace_pool_device(
        &self,
        request: Request<api::ReplacePoolDeviceRequest>,
    ) -> Result<Response<Self::ReplacePoolDeviceStream>, Status> {
        let request = request.into_inner();
        let name = fields::name("name", request.name)?;
        let number = fields::device_number("number", request.number)?;
        let new = new_device(request.device, request.overwrite)?;
        let pools = self.pools.clone();
        if !request.devices.is_empty() {
            let worn_out = WornOut {
                pool: name,
                devices: fields::devices("devices", request.devices)?,
                number,
            };
            return Ok(Response::new(devices::stream(|waiting| async move {
                let replaced = pools.replace_worn_out(worn_out, new, waiting).await?;
                Ok(devices::replaced(replaced))
            })));
        }
        // What there is not is told before the stream begins.
        self.pools.get(&name).map_err(failed)?;
        Ok(Response::new(devices::stream(|waiting| async move {
            let replaced = pools.replace_device(&name, number, new, waiting).await?;
            Ok(devices::replaced(replaced))
        })))
    }

    async fn remove_pool_device(
        &self,
        request: Request<api::RemovePoolDeviceRequest>,
    ) -> Result<Response<Self::RemovePoolDeviceStream>, Status> {
        let request = request.into_inner();
        let name = fields::name("name", request.name)?;
        let number = fields::device_number("number", request.number)?;
        self.pools.get(&name).map_err(failed)?;
        let removal = match (request.call_off, request.lose_unreadable) {
            (true, true) => {
                let what = "lose_unreadable: a removal that is called off loses nothing; ask for one of both";
                return Err(Status::invalid_argument(what));
            }
            (true, false) => Removal::CallOff,
            (false, true) => Removal::Drain(Unreadable::Lose),
            (false, false) => Removal::Drain(Unreadable::Stay),
        };
        let pools = self.pools.clone();
        let stream = devices::stream(move |waiting| async move {
            let drained = pools.remove_device(&name, number, removal, waiting).await?;
            Ok(api::PoolDeviceDone {
                lost_blocks: drained.lost_blocks,
                ..api::PoolDeviceDone::default()
            })
        });
        Ok(Response::new(stream))
    }

    async fn destroy_pool(
        &self,
        request: Request<api::DestroyPoolRequest>,
    ) -> Result<Response<api::DestroyPoolResponse>, Status> {
        let name = fields::name("name", request.into_inner().name)?;
        let pools = self.pools.clone();
        finished(tokio::spawn(async move { pools.destroy(&name).await }).await)?;
        Ok(Response::new(api::DestroyPoolResponse {}))
    }
}

/// A device that comes to a pool.
fn new_device(uri: String, overwrite: bool) -> Result<NewDevice, Status> {
    let mut uris = fields::devices("device", vec![uri])?;
    let uri = uris.pop().unwrap_or_default();
    Ok(NewDevice { uri, overwrite })
}

/// The status of an error.
pub(super) fn failed(error: PoolsError) -> Status {
    match &error {
        PoolsError::NotADevice { .. } => status::field("overwrite", &error.to_string()),
        _ => status::status(error.reason(), error.to_string()),
    }
}

/// The outcome of a task.
pub(super) fn finished<T>(result: Result<Result<T, PoolsError>, JoinError>) -> Result<T, Status> {
    result.map_err(|error| status::lost(&error))?.map_err(failed)
}
