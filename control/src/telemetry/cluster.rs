//! The cluster as it is on record, as metrics.

use std::collections::BTreeMap;

use pollux_api::control::v1::{NodeState, PoolState, ReplicaState, SnapshotState, VolumeState};
use pollux_http::families::control as families;
use pollux_http::metrics::Exposition;

use crate::model::Record;
use crate::world::World;

/// The part of a name in capitals that tells something, in small letters: `NODE_STATE_ONLINE` is `online`.
fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

const NODE_STATES: [NodeState; 4] = [
    NodeState::Unspecified,
    NodeState::Online,
    NodeState::Unreachable,
    NodeState::Lost,
];

const POOL_STATES: [PoolState; 5] = [
    PoolState::Unspecified,
    PoolState::Online,
    PoolState::Unreachable,
    PoolState::Sick,
    PoolState::Failed,
];

/// Writes all of it.
pub(super) fn write(world: &World, text: &mut Exposition) {
    text.family(&families::REVISION).add(&[], world.revision as f64);
    text.family(&families::RESTORED)
        .add(&[], f64::from(u8::from(world.is_restored)));
    nodes(world, text);
    pools(world, text);
    volumes(world, text);
    let mut snapshots: BTreeMap<String, u32> = BTreeMap::new();
    for snapshot in world.snapshots.values() {
        let state = match snapshot.is_deleting() {
            true => SnapshotState::Deleting,
            false => snapshot
                .status
                .as_ref()
                .map(|status| status.state())
                .unwrap_or_default(),
        };
        *snapshots
            .entry(short(state.as_str_name(), "SNAPSHOT_STATE_"))
            .or_default() += 1;
    }
    let mut samples = text.family(&families::SNAPSHOTS);
    for (state, count) in &snapshots {
        samples.add(&[state], f64::from(*count));
    }
    let mut removals: BTreeMap<&str, u32> = world.nodes.keys().map(|node| (node.as_str(), 0)).collect();
    for removal in world.removals.values() {
        *removals.entry(&removal.node).or_default() += 1;
    }
    let mut samples = text.family(&families::REMOVALS);
    for (node, count) in removals {
        samples.add(&[node], f64::from(count));
    }
}

fn nodes(world: &World, text: &mut Exposition) {
    let mut samples = text.family(&families::NODE_STATE);
    for node in world.nodes.values() {
        let state = node
            .status
            .as_ref()
            .map(|status| status.state())
            .unwrap_or_default();
        let zone = node.spec.as_ref().map_or("", |spec| spec.zone.as_str());
        for known in NODE_STATES {
            let name = short(known.as_str_name(), "NODE_STATE_");
            samples.add(&[node.name(), zone, &name], f64::from(u8::from(known == state)));
        }
    }
    let mut samples = text.family(&families::NODE_REPORT_AGE);
    for (node, observation) in &world.reports {
        let age_us = world.now_unix_us.saturating_sub(observation.at_unix_us);
        samples.add(&[node], age_us as f64 / 1e6);
    }
}

fn pools(world: &World, text: &mut Exposition) {
    let node = |pool: &pollux_api::control::v1::Pool| {
        pool.spec
            .as_ref()
            .map_or_else(String::new, |spec| spec.node.clone())
    };
    let mut samples = text.family(&families::POOL_STATE);
    for pool in world.pools.values() {
        let state = pool
            .status
            .as_ref()
            .map(|status| status.state())
            .unwrap_or_default();
        for known in POOL_STATES {
            let name = short(known.as_str_name(), "POOL_STATE_");
            let labels = [pool.name(), &node(pool), &name];
            samples.add(&labels, f64::from(u8::from(known == state)));
        }
    }
    let families = [
        &families::POOL_CAPACITY,
        &families::POOL_USED,
        &families::POOL_PROVISIONED,
        &families::POOL_REPLICAS,
    ];
    for (index, family) in families.into_iter().enumerate() {
        let mut samples = text.family(family);
        for pool in world.pools.values() {
            let Some(status) = &pool.status else { continue };
            let value = match index {
                0 => status.capacity_bytes,
                1 => status.used_bytes,
                2 => status.provisioned_bytes,
                _ => u64::from(status.replicas),
            };
            samples.add(&[pool.name(), &node(pool)], value as f64);
        }
    }
}

fn volumes(world: &World, text: &mut Exposition) {
    let state = |volume: &pollux_api::control::v1::Volume| {
        let state = match volume.is_deleting() {
            true => VolumeState::Deleting,
            false => volume
                .status
                .as_ref()
                .map(|status| status.state())
                .unwrap_or_default(),
        };
        short(state.as_str_name(), "VOLUME_STATE_")
    };
    let mut states: BTreeMap<String, u32> = BTreeMap::new();
    for name in [
        "pending",
        "creating",
        "healthy",
        "degraded",
        "unavailable",
        "deleting",
        "failed",
    ] {
        states.insert(name.to_owned(), 0);
    }
    for volume in world.volumes.values() {
        *states.entry(state(volume)).or_default() += 1;
    }
    let mut samples = text.family(&families::VOLUMES);
    for (state, count) in &states {
        samples.add(&[state], f64::from(*count));
    }
    let mut samples = text.family(&families::VOLUME_STATE);
    for volume in world.volumes.values() {
        samples.add(&[volume.name(), &state(volume)], 1.0);
    }
    let families = [
        &families::VOLUME_SIZE,
        &families::VOLUME_REPLICAS,
        &families::VOLUME_REPLICAS_IN_SYNC,
        &families::VOLUME_REPLICAS_WANTED,
        &families::VOLUME_EPOCH,
        &families::VOLUME_UNREADABLE,
    ];
    for (index, family) in families.into_iter().enumerate() {
        let mut samples = text.family(family);
        for volume in world.volumes.values() {
            let status = volume.status.clone().unwrap_or_default();
            let in_sync = status
                .replicas
                .iter()
                .filter(|replica| replica.state() == ReplicaState::InSync);
            let value = match index {
                0 => volume.spec.as_ref().map_or(0, |spec| spec.size_bytes),
                1 => status.replicas.len() as u64,
                2 => in_sync.count() as u64,
                3 => u64::from(world.policy(volume).replicas),
                4 => status.epoch,
                _ => status.unreadable.map_or(0, |unreadable| unreadable.blocks),
            };
            samples.add(&[volume.name()], value as f64);
        }
    }
    let mut samples = text.family(&families::REPLICA_STATE);
    for volume in world.volumes.values() {
        for replica in volume.status.iter().flat_map(|status| &status.replicas) {
            let state = short(replica.state().as_str_name(), "REPLICA_STATE_");
            let labels = [volume.name(), &replica.uid, &replica.node, &replica.pool, &state];
            samples.add(&labels, 1.0);
        }
    }
}
