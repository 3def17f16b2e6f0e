//! The way of a target to a replica on its own engine.

use std::sync::Arc;

use pollux_device::Device;
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{
    Commanding, Granted, OpeningSnapshot, PromiseError, Promising, ReplicaCommand, ReplicaPort,
};
use uuid::Uuid;

use super::{Admitted, Given, Replicas};

/// A replica of this engine, for a target on any of its reactors. On the reactor that has the replica a
/// session is its device itself; on another one requests go there and back.
#[derive(Clone)]
pub struct LocalReplica {
    replicas: Arc<Replicas>,
    volume: Uuid,
    replica: Uuid,
}

impl LocalReplica {
    pub(super) fn new(replicas: Arc<Replicas>, volume: Uuid, replica: Uuid) -> Self {
        Self {
            replicas,
            volume,
            replica,
        }
    }
}

impl ReplicaPort for LocalReplica {
    fn promise(&self, epoch: Epoch) -> Promising {
        let Self {
            replicas,
            volume,
            replica,
        } = self.clone();
        Box::pin(async move {
            let given = replicas.promise(volume, replica, epoch, Admitted::Local).await?;
            let Given {
                device,
                instance,
                settled,
                flush_failures,
                quiet,
                ..
            } = given;
            let session = device.attach().await.map_err(|_| PromiseError::Unreachable)?;
            Ok(Granted {
                session,
                instance,
                settled,
                flush_failures,
                quiet,
            })
        })
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        let Self {
            replicas,
            volume,
            replica,
        } = self.clone();
        Box::pin(async move { replicas.command(volume, replica, epoch, command).await })
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        let Self {
            replicas,
            volume,
            replica,
        } = self.clone();
        Box::pin(async move {
            let device = replicas.open_snapshot(volume, replica, epoch, cut).await?;
            Ok(device.attach().await?)
        })
    }

    fn is_local(&self) -> bool {
        true
    }
}
