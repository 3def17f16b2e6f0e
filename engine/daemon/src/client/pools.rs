//! `pollux-engine pool` and `pollux-engine volume`.

use std::io::{self, Write};

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::pools_client::PoolsClient;
use pollux_api::engine::v1::scrub_pool_response::What;
use pollux_api::engine::v1::volumes_client::VolumesClient;
use pollux_device::ByteSize;
use serde::Serialize;
use tonic::Status;
use tonic::transport::Channel;

use super::devices;
use super::local::Local;
use super::progress::Progress;
use super::{ClientError, channel};
use crate::cli::Output;
use crate::cli::pools::{Place, PoolArguments, PoolCommand, VolumeArguments, VolumeCommand, VolumeName};
use crate::settings::{ControlAddress, DeviceList};
use crate::table::Table;

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
            let progress = Progress::new("checking the pool");
            let request = api::CheckPoolRequest { name: name.clone() };
            let report = client.check_pool(request).await.map_err(refused)?.into_inner();
            drop(progress);
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
        PoolCommand::Grow { .. }
        | PoolCommand::Add { .. }
        | PoolCommand::Replace { .. }
        | PoolCommand::Remove { .. } => {
            let pool = devices::change(command, client).await.map_err(refused)?;
            if let Some((pool, output)) = pool {
                show(Some(pool), output, into, pool_lines)?;
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
            let request = api::DeleteVolumeRequest {
                pool,
                name,
                allow_missing: *if_exists,
                // Nobody would go on with it when this process has ended.
                wait: *wait || matches!(reached, Reached::Local(_)),
            };
            client.delete_volume(request).await.map_err(refused)?;
            drop(progress);
            writeln!(into, "{} is deleted", of.volume)?;
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

fn scrub_lines(name: &str, report: &api::ScrubReport, into: &mut impl Write) -> io::Result<()> {
    for bad in &report.bad_blocks {
        let volume = match bad.volume.as_str() {
            "" => "a deleted volume".to_owned(),
            volume => format!("{name}/{volume}"),
        };
        writeln!(into, "{volume}: 4 KiB at {} are lost", bad.offset_bytes)?;
    }
    let api::ScrubReport {
        blocks,
        unchecked_blocks,
        bad_block_count,
        pages,
        repaired_pages,
        lost_pages,
        ..
    } = report;
    writeln!(
        into,
        "pool {name}: {blocks} blocks of data compared, {bad_block_count} bad, {unchecked_blocks} without a \
         checksum; {pages} pages of metadata read, {repaired_pages} copies repaired, {lost_pages} lost"
    )
}

fn json(value: &impl Serialize, into: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *into, value)?;
    writeln!(into)
}

fn print<T: Serialize>(
    things: &[T],
    output: Output,
    into: &mut impl Write,
    table: impl FnOnce(&[T], &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    match output {
        Output::Json => json(&things, into),
        Output::Table => table(things, into),
    }
}

fn one(volume: Option<api::Volume>, output: Output, into: &mut impl Write) -> io::Result<()> {
    let volumes: Vec<_> = volume.into_iter().collect();
    print(&volumes, output, into, volume_table)
}

fn show<T: Serialize>(
    thing: Option<T>,
    output: Output,
    into: &mut impl Write,
    lines: impl FnOnce(&T) -> Vec<(&'static str, String)>,
) -> io::Result<()> {
    match (&thing, output) {
        (thing, Output::Json) => json(thing, into),
        (Some(thing), Output::Table) => {
            for (name, value) in lines(thing) {
                writeln!(into, "{name:<14}  {value}")?;
            }
            Ok(())
        }
        (None, Output::Table) => Ok(()),
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn pool_table(pools: &[api::Pool], mut into: &mut dyn Write) -> io::Result<()> {
    if pools.is_empty() {
        return writeln!(into, "no pools are open");
    }
    let names = [
        "NAME",
        "SIZE",
        "FREE",
        "PROMISED",
        "VOLUMES",
        "SNAPSHOTS",
        "STATE",
        "DEVICES",
    ];
    let mut table = Table::new(names);
    for pool in pools {
        table.push([
            pool.name.clone(),
            size(pool.total_bytes),
            size(pool.free_bytes),
            size(pool.provisioned_bytes),
            pool.volumes.to_string(),
            pool.snapshots.to_string(),
            state(pool).to_owned(),
            pool.devices.join(", "),
        ]);
    }
    table.write(0, &mut into)
}

fn state(pool: &api::Pool) -> &'static str {
    match (&pool.stopped, pool.read_only) {
        (Some(_), _) => "stopped",
        (None, true) => "read-only",
        (None, false) => "open",
    }
}

/// What volumes would take if they were full, and how often the pool has that.
fn promised(pool: &api::Pool) -> String {
    let promised = size(pool.provisioned_bytes);
    match pool.total_bytes {
        0 => promised,
        total => {
            let ratio = pool.provisioned_bytes as f64 / total as f64;
            format!("{promised}, {ratio:.2} times its size")
        }
    }
}

/// A line for each device, below one another.
fn member_lines(pool: &api::Pool) -> String {
    let lines = pool.members.iter().map(|member| {
        let mut line = format!("{}: {}, {}", member.number, member.uri, size(member.size_bytes));
        if member.state() == api::PoolDeviceState::Draining {
            line.push_str(", being removed");
        }
        if member.device_bytes > member.size_bytes {
            line.push_str(&format!(", can grow to {}", size(member.device_bytes)));
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n                ")
}

fn pool_lines(pool: &api::Pool) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("name", pool.name.clone()),
        ("uuid", pool.uuid.clone()),
        ("devices", member_lines(pool)),
        ("size", size(pool.total_bytes)),
        ("free", size(pool.free_bytes)),
        ("free soon", size(pool.freeing_bytes)),
        ("set aside", size(pool.set_aside_bytes)),
        ("metadata", size(pool.metadata_bytes)),
        ("promised", promised(pool)),
        ("volumes", pool.volumes.to_string()),
        ("snapshots", pool.snapshots.to_string()),
        ("being deleted", pool.deleting.to_string()),
        ("reactor", pool.reactor.to_string()),
        ("bad checksums", pool.checksum_mismatches.to_string()),
    ];
    if pool.read_only {
        let features = pool.import.as_ref().map_or(0, |import| import.unknown_features);
        let why = match features {
            0 => "yes, as it was asked for".to_owned(),
            features => format!("yes: it uses features that are not known here ({features:#x})"),
        };
        lines.push(("read-only", why));
    }
    if let Some(reason) = &pool.stopped {
        lines.push(("stopped", reason.clone()));
    }
    if let Some(scrub) = &pool.last_scrub {
        let report = scrub.report.clone().unwrap_or_default();
        let found = format!(
            "{} bad of {} blocks, {} lost and {} repaired of {} pages",
            report.bad_block_count, report.blocks, report.lost_pages, report.repaired_pages, report.pages
        );
        lines.push((
            "last scrub",
            match scrub.ended_unix_s {
                Some(ended) => format!("ended at {ended} s of Unix time: {found}"),
                None => format!(
                    "begun at {} s of Unix time, not ended: {found}",
                    scrub.started_unix_s
                ),
            },
        ));
    }
    if let Some(import) = &pool.import {
        let left = match import.was_exported {
            true => "in good order".to_owned(),
            false => format!(
                "as after a crash: {} changes in {} blocks of the journal done again",
                import.records, import.journal_blocks
            ),
        };
        lines.push(("was left", left));
        if import.newer_blocks > 0 {
            lines.push(("newer blocks", import.newer_blocks.to_string()));
        }
        if import.unreadable_blocks > 0 {
            lines.push(("lost blocks", import.unreadable_blocks.to_string()));
        }
    }
    lines
}

fn volume_table(volumes: &[api::Volume], mut into: &mut dyn Write) -> io::Result<()> {
    if volumes.is_empty() {
        return writeln!(into, "no volumes are in the pool");
    }
    let mut table = Table::new(["NAME", "KIND", "SIZE", "OWN", "THICK", "CHECKSUMS", "OF", "UUID"]);
    for volume in volumes {
        table.push([
            format!("{}/{}", volume.pool, volume.name),
            kind(volume).to_owned(),
            size(volume.size_bytes),
            size(volume.own_bytes),
            yes(volume.thick),
            yes(volume.checksums),
            volume.origin.clone().unwrap_or_else(|| "-".to_owned()),
            volume.uuid.clone(),
        ]);
    }
    table.write(0, &mut into)
}

fn yes(answer: bool) -> String {
    if answer { "yes" } else { "no" }.to_owned()
}

fn kind(volume: &api::Volume) -> &'static str {
    match volume.kind() {
        api::VolumeKind::Snapshot => "snapshot",
        api::VolumeKind::Volume => "volume",
        api::VolumeKind::Unspecified => "unknown",
    }
}

fn volume_lines(volume: &api::Volume) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("name", format!("{}/{}", volume.pool, volume.name)),
        ("uuid", volume.uuid.clone()),
        ("kind", kind(volume).to_owned()),
        ("size", size(volume.size_bytes)),
        ("own", size(volume.own_bytes)),
        ("thick", yes(volume.thick)),
        ("checksums", yes(volume.checksums)),
        ("of", volume.origin.clone().unwrap_or_else(|| "-".to_owned())),
        ("made", format!("{} s of Unix time", volume.created_unix_s)),
    ];
    if let Some(usage) = &volume.usage {
        lines.push(("used", size(usage.used_bytes)));
        lines.push(("unique", size(usage.unique_bytes)));
        lines.push(("shared", size(usage.shared_bytes)));
    }
    lines
}

fn check_lines(name: &str, report: &api::CheckPoolResponse, into: &mut impl Write) -> io::Result<()> {
    let (pages, extents) = (report.pages, report.extents);
    for finding in &report.findings {
        writeln!(into, "{finding}")?;
    }
    match report.findings_count {
        0 => writeln!(
            into,
            "pool {name} is sound: {pages} pages, {extents} extents of data"
        ),
        count => writeln!(
            into,
            "pool {name} is not sound: {count} things are wrong in {pages} pages, {extents} extents of data"
        ),
    }
}
