//! `pollux-engine pool` and `pollux-engine volume`.

use std::io::{self, Write};

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::check_pool_response::What as CheckWhat;
use pollux_api::engine::v1::pools_client::PoolsClient;
use pollux_api::engine::v1::scrub_pool_response::What;
use pollux_api::engine::v1::volumes_client::VolumesClient;
use pollux_device::ByteSize;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::devices;
use super::local::Local;
use super::print::{
    check_lines, json, one, pool_lines, pool_table, print, scrub_lines, show, volume_lines, volume_table,
};
use super::progress::Progress;
use super::{ClientError, channel};
use crate::cli::Output;
use crate::cli::pools::{Place, PoolArguments, PoolCommand, VolumeArguments, VolumeCommand, VolumeName};
use crate::settings::{ControlAddress, DeviceList};

/// What is asked, and where.
enum Reached {
    Engine(ControlAddress, Channel),
    Local(Box<Local>),
}

impl Reached {
    async fn engine(address: &ControlAddress) -> Result<Self, ClientError> {
        Ok(Self::Engine(address.clone(), channel(address).await?))
    }

    async fn local(devices: &[DeviceList]) -> Result<Self, ClientError> {
        Ok(Self::Local(Box::new(Local::open(devices).await?)))
    }

    async fn at(place: &Place) -> Result<Self, ClientError> {
        match place.pool.as_slice() {
            [] => Self::engine(&place.grpc).await,
            devices => {
                let _progress = Progress::new("opening the pool");
                Self::local(devices).await
            }
        }
    }

    fn pools(&self) -> PoolsClient<Channel> {
        PoolsClient::new(self.channel())
    }

    fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel())
    }

    fn channel(&self) -> Channel {
        match self {
            Self::Engine(_, channel) => channel.clone(),
            Self::Local(local) => local.channel.clone(),
        }
    }

    fn refused(&self, status: &Status) -> ClientError {
        match self {
            Self::Engine(address, _) => super::refused(address, status),
            Self::Local(_) => ClientError::Refused(status.message().to_owned()),
        }
    }

    /// Lets go, in good order, and returns what was done.
    async fn finish<T>(self, done: Result<T, ClientError>) -> Result<T, ClientError> {
        let Self::Local(local) = self else { return done };
        let _progress = Progress::new("closing the pool");
        let closed = local.close().await;
        let done = done?;
        closed?;
        Ok(done)
    }
}

/// Does what was asked for with pools, and prints the answer. Whether all is well.
///
/// # Errors
///
/// [`ClientError`].
pub async fn pool(arguments: &PoolArguments, into: &mut impl Write) -> Result<bool, ClientError> {
    let reached = match &arguments.command {
        PoolCommand::Create { grpc, .. } | PoolCommand::Import { grpc, .. } => match grpc {
            Some(address) => Reached::engine(address).await?,
            None => Reached::local(&[]).await?,
        },
        PoolCommand::Export { grpc, .. } => Reached::engine(grpc).await?,
        PoolCommand::Replace { worn_out: true, .. } => Reached::local(&[]).await?,
        PoolCommand::List { place, .. }
        | PoolCommand::Show { place, .. }
        | PoolCommand::Check { place, .. }
        | PoolCommand::Scrub { place, .. }
        | PoolCommand::Grow { place, .. }
        | PoolCommand::Add { place, .. }
        | PoolCommand::Replace { place, .. }
        | PoolCommand::Remove { place, .. }
        | PoolCommand::Destroy { place, .. } => Reached::at(place).await?,
    };
    let done = pool_command(&arguments.command, &reached, into).await;
    reached.finish(done).await
}

async fn pool_command(
    command: &PoolCommand,
    reached: &Reached,
    into: &mut impl Write,
) -> Result<bool, ClientError> {
    let mut client = reached.pools();
    let refused = |status| reached.refused(&status);
    match command {
        PoolCommand::Create {
            name,
            devices,
            overwrite,
            journal,
            output,
            ..
        } => {
            let progress = Progress::new("making the pool");
            let request = api::CreatePoolRequest {
                name: name.clone(),
                devices: devices.clone(),
                overwrite: overwrite.clone(),
                journal_bytes: journal.map(|size| size.0),
            };
            let made = client.create_pool(request).await.map_err(refused)?.into_inner();
            drop(progress);
            let pools: Vec<_> = made.pool.into_iter().collect();
            print(&pools, *output, into, pool_table)?;
        }
        PoolCommand::Import {
            devices,
            read_only,
            output,
            ..
        } => {
            let progress = Progress::new("opening the pool");
            let request = api::ImportPoolRequest {
                devices: devices.clone(),
                read_only: *read_only,
            };
            let answer = client.import_pool(request).await.map_err(refused)?;
            drop(progress);
            show(answer.into_inner().pool, *output, into, pool_lines)?;
        }
        PoolCommand::Export { name, .. } => {
            let _progress = Progress::new("closing the pool");
            let request = api::ExportPoolRequest { name: name.clone() };
            client.export_pool(request).await.map_err(refused)?;
            writeln!(into, "pool {name} is exported")?;
        }
        PoolCommand::List { output, .. } => {
            let mut pools = Vec::new();
            let mut request = api::ListPoolsRequest::default();
            loop {
                let answer = client.list_pools(request.clone()).await.map_err(refused)?;
                let answer = answer.into_inner();
                pools.extend(answer.pools);
                if answer.next_page_token.is_empty() {
                    break;
                }
                request.page_token = answer.next_page_token;
            }
            print(&pools, *output, into, pool_table)?;
        }
        PoolCommand::Show { name, output, .. } => {
            let request = api::GetPoolRequest { name: name.clone() };
            let answer = client.get_pool(request).await.map_err(refused)?;
            show(answer.into_inner().pool, *output, into, pool_lines)?;
        }
        PoolCommand::Check { name, output, .. } => {
            let request = api::CheckPoolRequest { name: name.clone() };
            let answers = client.check_pool(request).await.map_err(refused)?;
            let report = checked(answers.into_inner()).await.map_err(refused)?;
            match output {
                Output::Json => json(&report, into)?,
                Output::Table => check_lines(name, &report, into)?,
            }
            return Ok(report.findings_count == 0);
        }
        PoolCommand::Scrub {
            name,
            rate,
            anew,
            output,
            ..
        } => {
            let request = api::ScrubPoolRequest {
                name: name.clone(),
                bytes_per_second: rate.map(|rate| rate.0),
                begin_anew: *anew,
            };
            let answers = client.scrub_pool(request).await.map_err(refused)?;
            let report = scrubbed(answers.into_inner()).await.map_err(refused)?;
            match output {
                Output::Json => json(&report, into)?,
                Output::Table => scrub_lines(name, &report, into)?,
            }
            return Ok(report.bad_block_count == 0 && report.lost_pages == 0);
        }
        PoolCommand::Grow { .. } | PoolCommand::Add { .. } | PoolCommand::Remove { .. } => {
            let changed = devices::change(command, client).await.map_err(refused)?;
            if let Some(changed) = changed {
                show(Some(changed.pool), changed.output, into, pool_lines)?;
                if changed.lost_blocks > 0 && changed.output == Output::Table {
                    let blocks = changed.lost_blocks;
                    writeln!(
                        into,
                        "{blocks} blocks of 4 KiB could not be read, and are lost: `pool scrub` lists them"
                    )?;
                }
            }
        }
        PoolCommand::Replace {
            name,
            number,
            device,
            output,
            worn_out,
            ..
        } => {
            let done = devices::replace(command, &mut client).await.map_err(refused)?;
            match (worn_out, output) {
                (true, Output::Json) => json(&done, into)?,
                (true, Output::Table) => {
                    writeln!(
                        into,
                        "device {number} of the pool {name} is {device}: open the pool with it"
                    )?;
                }
                (false, output) => {
                    let request = api::GetPoolRequest { name: name.clone() };
                    let answer = client.get_pool(request).await.map_err(refused)?;
                    show(answer.into_inner().pool, *output, into, pool_lines)?;
                }
            }
            if done.keeps_label && *output == Output::Table {
                writeln!(into, "the label of the old device cannot be wiped: take it out")?;
            }
        }
        PoolCommand::Destroy { name, .. } => {
            let progress = Progress::new("destroying the pool");
            let request = api::DestroyPoolRequest { name: name.clone() };
            client.destroy_pool(request).await.map_err(refused)?;
            drop(progress);
            writeln!(into, "pool {name} is destroyed")?;
        }
    }
    Ok(true)
}

/// Does what was asked for with volumes, and prints the answer.
///
/// # Errors
///
/// [`ClientError`].
pub async fn volume(arguments: &VolumeArguments, into: &mut impl Write) -> Result<(), ClientError> {
    let place = match &arguments.command {
        VolumeCommand::List { place, .. } => place,
        VolumeCommand::Create { of, .. }
        | VolumeCommand::Show { of, .. }
        | VolumeCommand::Snapshot { of, .. }
        | VolumeCommand::Clone { of, .. }
        | VolumeCommand::Rollback { of, .. }
        | VolumeCommand::Resize { of, .. }
        | VolumeCommand::Rename { of, .. }
        | VolumeCommand::Delete { of, .. }
        | VolumeCommand::Diff { of, .. } => &of.place,
    };
    let reached = Reached::at(place).await?;
    let done = volume_command(&arguments.command, &reached, into).await;
    reached.finish(done).await
}

async fn volume_command(
    command: &VolumeCommand,
    reached: &Reached,
    into: &mut impl Write,
) -> Result<(), ClientError> {
    let mut client = reached.volumes();
    let refused = |status| reached.refused(&status);
    match command {
        VolumeCommand::Create {
            of,
            size,
            checksums,
            thick,
            uuid,
            output,
        } => {
            let VolumeName { pool, name } = of.volume.clone();
            let request = api::CreateVolumeRequest {
                pool,
                name,
                size_bytes: size.0,
                checksums: Some(*checksums),
                uuid: uuid.clone(),
                thick: *thick,
            };
            let answer = client.create_volume(request).await.map_err(refused)?;
            one(answer.into_inner().volume, *output, into)?;
        }
        VolumeCommand::List {
            pool_name, output, ..
        } => {
            let mut volumes = Vec::new();
            let mut request = api::ListVolumesRequest {
                pool: pool_name.clone(),
                ..api::ListVolumesRequest::default()
            };
            loop {
                let answer = client.list_volumes(request.clone()).await.map_err(refused)?;
                let answer = answer.into_inner();
                volumes.extend(answer.volumes);
                if answer.next_page_token.is_empty() {
                    break;
                }
                request.page_token = answer.next_page_token;
            }
            print(&volumes, *output, into, volume_table)?;
        }
        VolumeCommand::Show { of, output } => {
            let VolumeName { pool, name } = of.volume.clone();
            let answer = client
                .get_volume(api::GetVolumeRequest {
                    pool,
                    name,
                    usage: true,
                })
                .await;
            show(
                answer.map_err(refused)?.into_inner().volume,
                *output,
                into,
                volume_lines,
            )?;
        }
        VolumeCommand::Snapshot { of, name, output } => {
            let VolumeName { pool, name: volume } = of.volume.clone();
            let name = name.clone();
            let request = api::CreateSnapshotRequest { pool, volume, name };
            let answer = client.create_snapshot(request).await.map_err(refused)?;
            one(answer.into_inner().snapshot, *output, into)?;
        }
        VolumeCommand::Clone { of, name, output } => {
            let VolumeName { pool, name: snapshot } = of.volume.clone();
            let name = name.clone();
            let request = api::CloneSnapshotRequest { pool, snapshot, name };
            let answer = client.clone_snapshot(request).await.map_err(refused)?;
            one(answer.into_inner().volume, *output, into)?;
        }
        VolumeCommand::Rollback { of, snapshot, output } => {
            let VolumeName { pool, name: volume } = of.volume.clone();
            let snapshot = snapshot.clone();
            let request = api::RollBackVolumeRequest {
                pool,
                volume,
                snapshot,
            };
            let answer = client.roll_back_volume(request).await.map_err(refused)?;
            one(answer.into_inner().volume, *output, into)?;
        }
        VolumeCommand::Resize {
            of,
            size,
            may_drop,
            output,
        } => {
            let progress = Progress::new("changing the size");
            let VolumeName { pool, name } = of.volume.clone();
            let request = api::ResizeVolumeRequest {
                pool,
                name,
                size_bytes: size.0,
                may_drop: *may_drop,
            };
            let answer = client.resize_volume(request).await.map_err(refused)?;
            drop(progress);
            one(answer.into_inner().volume, *output, into)?;
        }
        VolumeCommand::Rename { of, name, output } => {
            let VolumeName { pool, name: old } = of.volume.clone();
            let request = api::RenameVolumeRequest {
                pool,
                name: old,
                new_name: name.clone(),
            };
            let answer = client.rename_volume(request).await.map_err(refused)?;
            one(answer.into_inner().volume, *output, into)?;
        }
        VolumeCommand::Delete { of, if_exists, wait } => {
            let progress = Progress::new("deleting");
            let VolumeName { pool, name } = of.volume.clone();
            let look = api::GetVolumeRequest {
                pool: pool.clone(),
                name: name.clone(),
                usage: false,
            };
            let is_there = match client.get_volume(look).await {
                Err(status) if status.code() == Code::NotFound => false,
                found => found.map(|_| true).map_err(refused)?,
            };
            let request = api::DeleteVolumeRequest {
                pool,
                name,
                allow_missing: *if_exists,
                // Nobody would go on with it when this process has ended.
                wait: *wait || matches!(reached, Reached::Local(_)),
            };
            client.delete_volume(request).await.map_err(refused)?;
            drop(progress);
            match is_there {
                true => writeln!(into, "{} is deleted", of.volume)?,
                false => writeln!(into, "there is no {}", of.volume)?,
            }
        }
        VolumeCommand::Diff { of, since, output } => {
            let VolumeName { pool, name } = of.volume.clone();
            let request = api::StreamChangesRequest {
                pool,
                name,
                since: since.clone(),
                offset_bytes: 0,
            };
            let answers = client.stream_changes(request).await.map_err(refused)?;
            ranges(answers.into_inner(), *output, into)
                .await
                .map_err(|error| match error {
                    Interrupted::Status(status) => refused(status),
                    Interrupted::Print(error) => error.into(),
                })?;
        }
    }
    Ok(())
}

/// Why not all ranges were printed.
enum Interrupted {
    Status(Status),
    Print(io::Error),
}

impl From<Status> for Interrupted {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<io::Error> for Interrupted {
    fn from(error: io::Error) -> Self {
        Self::Print(error)
    }
}

/// Prints ranges as they come, those that touch as one, and their sum.
async fn ranges(
    mut answers: tonic::Streaming<api::StreamChangesResponse>,
    output: Output,
    into: &mut impl Write,
) -> Result<(), Interrupted> {
    let progress = Progress::new("comparing");
    let (mut last, mut count, mut bytes) = (None::<api::ByteRange>, 0_u64, 0_u64);
    if output == Output::Table {
        writeln!(into, "{:>20}  {:>20}", "OFFSET", "BYTES")?;
    }
    let mut write = |range: &api::ByteRange| match output {
        Output::Json => {
            serde_json::to_writer(&mut *into, range)?;
            writeln!(into)
        }
        Output::Table => writeln!(into, "{:>20}  {:>20}", range.offset_bytes, range.length_bytes),
    };
    while let Some(answer) = answers.message().await? {
        for range in answer.ranges {
            bytes += range.length_bytes;
            match &mut last {
                Some(last) if last.offset_bytes + last.length_bytes == range.offset_bytes => {
                    last.length_bytes += range.length_bytes;
                }
                _ => {
                    count += 1;
                    if let Some(before) = last.replace(range) {
                        write(&before)?;
                    }
                }
            }
        }
        progress.tell(|| format!("comparing: {} in {count} ranges", ByteSize(bytes)));
    }
    if let Some(range) = &last {
        write(range)?;
    }
    drop(progress);
    if output == Output::Table {
        let ranges = if count == 1 { "range" } else { "ranges" };
        writeln!(into, "{} in {count} {ranges}", ByteSize(bytes))?;
    }
    Ok(())
}

/// Shows how a check gets on, and returns what it found.
async fn checked(mut answers: tonic::Streaming<api::CheckPoolResponse>) -> Result<api::CheckReport, Status> {
    let progress = Progress::new("checking the pool");
    while let Some(answer) = answers.message().await? {
        match answer.what {
            Some(CheckWhat::Progress(how_far)) => progress.tell(|| {
                let api::CheckProgress {
                    volumes_done,
                    volumes,
                    pages,
                } = how_far;
                format!("checking: {volumes_done} of {volumes} volumes and snapshots, {pages} pages read")
            }),
            Some(CheckWhat::Report(report)) => return Ok(report),
            None => {}
        }
    }
    Err(Status::unavailable("the check ended without a report"))
}

/// Shows how a scrub gets on, and returns what it found.
async fn scrubbed(mut answers: tonic::Streaming<api::ScrubPoolResponse>) -> Result<api::ScrubReport, Status> {
    let progress = Progress::new("scrubbing the pool");
    while let Some(answer) = answers.message().await? {
        match answer.what {
            Some(What::Progress(how_far)) => progress.tell(|| {
                let api::ScrubProgress {
                    volumes_done,
                    volumes,
                    read_bytes,
                } = how_far;
                let read = ByteSize(read_bytes);
                format!("scrubbing: {volumes_done} of {volumes} volumes and snapshots, {read} read")
            }),
            Some(What::Report(report)) => return Ok(report),
            None => {}
        }
    }
    Err(Status::unavailable("the scrub ended without a report"))
}
