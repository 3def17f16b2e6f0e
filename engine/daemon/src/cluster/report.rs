//! What is on this engine, as the control plane is told: gathered anew each time, nothing is remembered.

use std::rc::Rc;

use pollux_api::control::v1::{EngineReport, PoolHealth, PoolReport, ReplicaConfig, ReplicaReport};
use pollux_device::DeviceUri;
use pollux_pool::{Pool, Space};
use pollux_reactor::net::Address;
use pollux_volume::metadata::BLOCK_BYTES;
use pollux_volume::metadata::codec::Label;

use super::Cluster;
use crate::pools::{OpenPool, SCHEME, names};

impl Cluster {
    /// All that is on this engine.
    pub(super) async fn describe(&self) -> EngineReport {
        let ready = self.ready_pools().clone();
        let mut pools = Vec::new();
        for pool in self.parts.pools.all() {
            if ready.contains(pool.shared.name()) {
                pools.push(describe_pool(&pool).await);
            }
        }
        let (given_up, unreadable) = self.targets.beside();
        EngineReport {
            node: self.settings.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nvmf_listeners: self.advertised(),
            pools,
            replicas: self.describe_replicas(),
            targets: self.targets.report(),
            cuts: self.cuts.report(),
            given_up,
            unreadable,
        }
    }

    fn advertised(&self) -> Vec<String> {
        let advertised = &self.settings.advertise;
        match advertised.is_empty() {
            true => self
                .parts
                .nvmf_listeners
                .iter()
                .filter(|address| matches!(address, Address::Tcp(_)))
                .map(ToString::to_string)
                .collect(),
            false => advertised.iter().map(ToString::to_string).collect(),
        }
    }

    fn describe_replicas(&self) -> Vec<ReplicaReport> {
        let all = self.parts.replicas.all().into_iter();
        let in_pools = all.filter_map(|(uri, label)| {
            let config = Some(replica_config(&uri, &label)?);
            Some(ReplicaReport { config })
        });
        in_pools.collect()
    }
}

/// A replica, if it is in a pool.
pub(super) fn replica_config(uri: &DeviceUri, label: &Label) -> Option<ReplicaConfig> {
    let (pool, _) = names(uri).ok().filter(|_| uri.scheme() == SCHEME)?;
    Some(ReplicaConfig {
        uid: label.replica.to_string(),
        volume_uid: label.volume.to_string(),
        pool_uid: pool,
        size_bytes: label.data_blocks.saturating_mul(BLOCK_BYTES as u64),
        ..ReplicaConfig::default()
    })
}

/// A pool, as its owner tells of it. Its name is the UUID that the control plane gave it.
pub(super) async fn describe_pool(pool: &OpenPool) -> PoolReport {
    let looked = pool.shared.call(look).await;
    let (health, message, space) = match looked {
        Ok((space, None)) => (PoolHealth::Good, String::new(), Some(space)),
        Ok((space, Some(error))) => (PoolHealth::Failed, error, Some(space)),
        Err(error) => (PoolHealth::Failed, error.to_string(), None),
    };
    let (total, free) = space.map_or((0, 0), |space| (space.total_bytes, space.free_bytes));
    PoolReport {
        uid: pool.shared.name().to_owned(),
        health: health.into(),
        message,
        capacity_bytes: total,
        used_bytes: total.saturating_sub(free),
    }
}

/// The space of a pool, and why it takes no more changes, if so.
async fn look(pool: Rc<Pool>) -> (Space, Option<String>) {
    (pool.space(), pool.stopped().map(|error| error.to_string()))
}
