//! Changes of the devices of a pool, asked for, and how they get on.

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::pool_device_change::What;
use pollux_api::engine::v1::pools_client::PoolsClient;
use pollux_device::ByteSize;
use tonic::Status;
use tonic::transport::Channel;

use super::progress::Progress;
use crate::cli::Output;
use crate::cli::pools::PoolCommand;

/// A change of devices that has ended.
pub(super) struct Changed {
    /// The pool as it is then.
    pub(super) pool: api::Pool,
    /// How to print it.
    pub(super) output: Output,
    /// Blocks that were given up.
    pub(super) lost_blocks: u64,
}

/// Does what is asked for. `None` for what changes no devices.
pub(super) async fn change(
    command: &PoolCommand,
    mut client: PoolsClient<Channel>,
) -> Result<Option<Changed>, Status> {
    let mut lost_blocks = 0;
    let (pool, output) = match command {
        PoolCommand::Grow { name, output, .. } => {
            let _progress = Progress::new("growing the pool");
            let request = api::GrowPoolRequest { name: name.clone() };
            (client.grow_pool(request).await?.into_inner().pool, *output)
        }
        PoolCommand::Add {
            name,
            device,
            overwrite,
            output,
            ..
        } => {
            let _progress = Progress::new("adding the device");
            let request = api::AddPoolDeviceRequest {
                name: name.clone(),
                device: device.clone(),
                overwrite: *overwrite,
            };
            (client.add_pool_device(request).await?.into_inner().pool, *output)
        }
        PoolCommand::Remove {
            name,
            number,
            call_off,
            lose_unreadable,
            output,
            ..
        } => {
            let request = api::RemovePoolDeviceRequest {
                name: name.clone(),
                number: (*number).into(),
                call_off: *call_off,
                lose_unreadable: *lose_unreadable,
            };
            let answers = client.remove_pool_device(request).await?.into_inner();
            lost_blocks = followed(answers, "emptying the device").await?.lost_blocks;
            (get(&mut client, name).await?, *output)
        }
        _ => return Ok(None),
    };
    let pool = pool.ok_or_else(|| Status::unavailable("the answer has no pool"))?;
    Ok(Some(Changed {
        pool,
        output,
        lost_blocks,
    }))
}

/// Has another device take the place of one.
pub(super) async fn replace(
    command: &PoolCommand,
    client: &mut PoolsClient<Channel>,
) -> Result<api::PoolDeviceDone, Status> {
    let PoolCommand::Replace {
        name,
        number,
        device,
        overwrite,
        worn_out,
        place,
        ..
    } = command
    else {
        return Ok(api::PoolDeviceDone::default());
    };
    let devices = match worn_out {
        true => place.pool.iter().flat_map(|devices| devices.0.clone()).collect(),
        false => Vec::new(),
    };
    let request = api::ReplacePoolDeviceRequest {
        name: name.clone(),
        number: (*number).into(),
        device: device.clone(),
        overwrite: *overwrite,
        devices,
    };
    let answers = client.replace_pool_device(request).await?.into_inner();
    followed(answers, "copying the device").await
}

async fn get(client: &mut PoolsClient<Channel>, name: &str) -> Result<Option<api::Pool>, Status> {
    let request = api::GetPoolRequest {
        name: name.to_owned(),
    };
    Ok(client.get_pool(request).await?.into_inner().pool)
}

/// Shows how a change gets on, up to its end.
async fn followed(
    mut answers: tonic::Streaming<api::PoolDeviceChange>,
    what: &str,
) -> Result<api::PoolDeviceDone, Status> {
    let progress = Progress::new(what);
    while let Some(answer) = answers.message().await? {
        match answer.what {
            Some(What::Progress(how_far)) => progress.tell(|| {
                let (done, total) = (ByteSize(how_far.done_bytes), ByteSize(how_far.total_bytes));
                format!("{what}: {done} of {total}")
            }),
            Some(What::Done(done)) => return Ok(done),
            None => {}
        }
    }
    Err(Status::unavailable("the change ended without an answer"))
}
