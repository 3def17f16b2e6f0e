//! Opening the device of a replica, on the reactor that is to have it.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, Device, DeviceUri, Registry};
use pollux_nvme::target::Target;
use pollux_pool::shared::{Owned, SharedPool};
use pollux_volume::metadata::codec::Label;
use pollux_volume::metadata::{Area, AreaError, FormatOptions};
use pollux_volume::replica::{PlainMedium, PoolMedium, ReplicaHost, ReplicaMedium};

use super::hosted::Hosted;
use super::{Replica, ReplicasError};
use crate::pools::{Pools, PoolsError};
use crate::telemetry::Role;

/// Where a device comes from.
#[derive(Clone)]
pub(super) enum Source {
    /// A volume of a pool, which has snapshots.
    Pool(SharedPool, String),
    /// Whatever its URI says.
    Registry(Registry),
}

/// Opens a replica on the current reactor, and has it measured; makes its device one first, if it is to be
/// and is blank.
pub(super) async fn open(
    source: Source,
    pools: Arc<Pools>,
    target: Arc<Target>,
    uri: DeviceUri,
    format: Option<FormatOptions>,
) -> Result<Replica, ReplicasError> {
    let unusable = |why: String| ReplicasError::Unusable {
        device: uri.to_string(),
        why,
    };
    let (device, volume): (Arc<dyn Device>, _) = match &source {
        Source::Pool(pool, volume) => {
            let device = pool.device(volume).await;
            let device = device.map_err(|error| PoolsError::of_shared(pool.name(), error))?;
            (device.clone(), Some(device))
        }
        Source::Registry(registry) => (registry.open(&uri).await?, None),
    };
    let queue = device.clone().attach().await;
    let queue = queue.map_err(|error| unusable(error.to_string()))?;
    if let Some(options) = format {
        prepare(&queue, &options).await.map_err(unusable)?;
    }
    let label = Area::open(queue.clone()).await.map(|area| area.label());
    let label = label.map_err(|error| unusable(error.to_string()))?;
    drop(queue);
    let medium: Rc<dyn ReplicaMedium> = match volume {
        Some(volume) => Rc::new(PoolMedium::new(volume, label.replica)),
        None => Rc::new(PlainMedium::new(device.clone())),
    };
    let name = label.replica.to_string();
    let device = pools.meters().wrap(Role::Replica, &name, device);
    let queue = device.clone().attach().await;
    let queue = queue.map_err(|error| unusable(error.to_string()))?;
    let host = ReplicaHost::open(queue, medium).await;
    let host = host.map_err(|error| unusable(error.to_string()))?;
    let label = host.label();
    let hosted = Hosted::new(host, target);
    Ok(Replica {
        label,
        data_blocks: hosted.data_blocks(),
        hosted: Owned::new(Rc::new(hosted)),
        device,
        uri,
    })
}

/// Makes a device the replica that it is to be, unless it is that already.
async fn prepare(queue: &Rc<dyn BlockDevice>, options: &FormatOptions) -> Result<(), String> {
    match Area::open(queue.clone()).await {
        Ok(area) => {
            let Label { volume, replica, .. } = area.label();
            match (volume, replica) == (options.volume, options.replica) {
                true => Ok(()),
                false => Err(format!("it is replica {replica} of volume {volume}")),
            }
        }
        Err(AreaError::Missing(_)) => {
            let is_blank = Area::is_blank(queue).await.map_err(|error| error.to_string())?;
            if !is_blank {
                return Err(
                    "there is something at its start: wipe the first 8 KiB if it may be lost".to_owned(),
                );
            }
            let formatted = Area::format(queue.clone(), options).await;
            formatted.map(drop).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Makes the device of a replica blank.
pub(super) async fn wipe(replica: Replica) -> Result<(), ReplicasError> {
    let Replica {
        uri, hosted, device, ..
    } = replica;
    let reactor = hosted.owner().clone();
    drop(hosted);
    let wiped = reactor.call(move || async move {
        let queue = device.attach().await.map_err(AreaError::from)?;
        Area::wipe(queue).await
    });
    wiped.await?.map_err(|error| ReplicasError::Unusable {
        device: uri.to_string(),
        why: error.to_string(),
    })
}
