//! What placement knows of pools, and of what is on them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use pollux_api::control::v1::{MediaClass, Node, NodeState, Pool, PoolState};

use super::DOMAIN_KINDS;

/// What labels begin with that tell where a pool stands: `zone`, `rack` and `node`.
const TOPOLOGY_LABEL: &str = "topology.pollux.io/";

/// How full pools may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementLimits {
    /// The sizes of all replicas in a pool may add up to this part of its capacity.
    pub overcommit_percent: u32,
    /// A pool that is used to this part of its capacity takes no more replicas.
    pub fill_percent_max: u32,
}

impl Default for PlacementLimits {
    fn default() -> Self {
        Self {
            overcommit_percent: 200,
            fill_percent_max: 85,
        }
    }
}

/// A pool by its number in a [`Fleet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(u32);

/// Why a pool takes nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// Its node is not online.
    NodeAway,
    /// It is not online itself.
    PoolAway,
    /// Its node takes nothing new.
    NodeCordoned,
    /// It takes nothing new.
    PoolCordoned,
    /// All is to leave its node.
    NodeDrained,
    /// All is to leave it.
    PoolDrained,
    /// Replicas failed in it lately.
    CoolingDown,
    /// Its node takes part in as many rebuilds as it may.
    Busy,
}

/// A pool as placement sees it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The name of the pool.
    pub pool: String,
    /// The name of its node.
    pub node: String,
    /// The name of its rack.
    pub rack: String,
    /// The name of its zone.
    pub zone: String,
    /// What its data is on.
    pub media: MediaClass,
    /// Why it takes nothing, if so.
    pub closed: Option<Closed>,
    /// Whether its node takes part in as many rebuilds as it may.
    pub busy: bool,
    /// Bytes it has for data.
    pub capacity_bytes: u64,
    /// Bytes of them that are used.
    pub used_bytes: u64,
    /// Sum of the sizes of the replicas in it.
    pub provisioned_bytes: u64,
    /// How many replicas are in it.
    pub replicas: u32,
    /// The domains that it is in, by kind.
    pub(super) domains: [u32; DOMAIN_KINDS],
    /// Labels of the pool, and of its node where the pool has no other.
    labels: HashMap<String, String>,
    tie: u64,
}

impl Site {
    /// The value of a label of the pool, or else of its node.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// The name of the domain of a kind.
    pub fn domain_name(&self, kind: usize) -> &str {
        match kind {
            0 => &self.pool,
            1 => &self.node,
            2 => &self.rack,
            _ => &self.zone,
        }
    }

    /// Decides between equal pools: the same for the same volume, and evenly over volumes.
    pub(super) fn tie(&self, volume_uid: &str) -> u64 {
        let mut mixed = self.tie ^ hash(volume_uid);
        // The finalizer of splitmix64: each bit of the input changes about half of the output.
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// How many replicas of a group's members are in each domain, by kind.
type GroupUse = [HashMap<u32, u32>; DOMAIN_KINDS];

/// All pools, and what is on them.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    sites: Vec<Site>,
    by_pool: HashMap<String, SiteId>,
    groups: HashMap<String, GroupUse>,
    limits: PlacementLimits,
}

/// Numbers for names, in the order in which they come.
#[derive(Debug, Default)]
struct Numbers<K>(HashMap<K, u32>);

impl<K: Hash + Eq> Numbers<K> {
    fn of(&mut self, name: K) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        *self.0.entry(name).or_insert(next)
    }
}

impl Fleet {
    /// The pools of these nodes, with nothing on them. Pools of unknown nodes are left out.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        pools: impl IntoIterator<Item = &'a Pool>,
        limits: PlacementLimits,
    ) -> Self {
        let nodes: HashMap<&str, &Node> = nodes
            .into_iter()
            .filter_map(|node| Some((node.metadata.as_ref()?.name.as_str(), node)))
            .collect();
        let mut fleet = Self {
            limits,
            ..Self::default()
        };
        let mut zones = Numbers::default();
        let mut racks = Numbers::default();
        let mut node_numbers = Numbers::default();
        for pool in pools {
            let (Some(metadata), Some(spec)) = (&pool.metadata, &pool.spec) else {
                continue;
            };
            let Some(node) = nodes.get(spec.node.as_str()) else {
                continue;
            };
            let node_spec = node.spec.clone().unwrap_or_default();
            let Ok(number) = u32::try_from(fleet.sites.len()) else {
                break;
            };
            let status = pool.status.clone().unwrap_or_default();
            let mut labels: HashMap<String, String> = HashMap::new();
            for metadata in [node.metadata.as_ref(), Some(metadata)].into_iter().flatten() {
                labels.extend(
                    metadata
                        .labels
                        .iter()
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
            }
            // Where a pool stands can be asked for like any label, and said only by its node.
            let stands = [
                ("zone", &node_spec.zone),
                ("rack", &node_spec.rack),
                ("node", &spec.node),
            ];
            for (domain, name) in stands {
                let key = format!("{TOPOLOGY_LABEL}{domain}");
                match name.is_empty() {
                    true => labels.remove(&key),
                    false => labels.insert(key, name.clone()),
                };
            }
            fleet.by_pool.insert(metadata.name.clone(), SiteId(number));
            fleet.sites.push(Site {
                pool: metadata.name.clone(),
                node: spec.node.clone(),
                media: spec.media(),
                closed: closed(node, pool),
                busy: false,
                capacity_bytes: status.capacity_bytes,
                used_bytes: status.used_bytes,
                provisioned_bytes: 0,
                replicas: 0,
                domains: [
                    number,
                    node_numbers.of(spec.node.clone()),
                    racks.of((node_spec.zone.clone(), node_spec.rack.clone())),
                    zones.of(node_spec.zone.clone()),
                ],
                rack: node_spec.rack,
                zone: node_spec.zone,
                labels,
                tie: hash(&metadata.name),
            });
        }
        fleet
    }

    /// How full pools may be.
    pub fn limits(&self) -> PlacementLimits {
        self.limits
    }

    /// All pools.
    pub fn sites(&self) -> impl Iterator<Item = (SiteId, &Site)> {
        (0..).map(SiteId).zip(&self.sites)
    }

    /// One of them.
    pub fn site(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(usize::try_from(id.0).ok()?)
    }

    /// The pool of this name.
    pub fn find(&self, pool: &str) -> Option<SiteId> {
        self.by_pool.get(pool).copied()
    }

    /// A replica is in a pool, or will be.
    pub fn occupy(&mut self, id: SiteId, size_bytes: u64, groups: &[String]) {
        let Some(site) = usize::try_from(id.0)
            .ok()
            .and_then(|index| self.sites.get_mut(index))
        else {
            return;
        };
        site.provisioned_bytes = site.provisioned_bytes.saturating_add(size_bytes);
        site.replicas = site.replicas.saturating_add(1);
        let domains = site.domains;
        for group in groups {
            if !self.groups.contains_key(group) {
                self.groups.insert(group.clone(), GroupUse::default());
            }
            if let Some(group) = self.groups.get_mut(group) {
                for (counts, domain) in group.iter_mut().zip(domains) {
                    *counts.entry(domain).or_default() += 1;
                }
            }
        }
    }

    /// A replica is in a pool no more, or will not be.
    pub fn vacate(&mut self, id: SiteId, size_bytes: u64, groups: &[String]) {
        let Some(site) = usize::try_from(id.0)
            .ok()
            .and_then(|index| self.sites.get_mut(index))
        else {
            return;
        };
        site.provisioned_bytes = site.provisioned_bytes.saturating_sub(size_bytes);
        site.replicas = site.replicas.saturating_sub(1);
        let domains = site.domains;
        for group in groups {
            let Some(group) = self.groups.get_mut(group) else {
                continue;
            };
            for (counts, domain) in group.iter_mut().zip(domains) {
                if let Some(count) = counts.get_mut(&domain) {
                    *count = count.saturating_sub(1);
                }
            }
        }
    }

    /// Takes nothing new for a while.
    pub fn close(&mut self, pool: &str, why: Closed) {
        if let Some(id) = self.find(pool)
            && let Some(site) = usize::try_from(id.0)
                .ok()
                .and_then(|index| self.sites.get_mut(index))
        {
            site.closed.get_or_insert(why);
        }
    }

    /// A node takes part in as many rebuilds as it may.
    pub fn mark_busy(&mut self, node: &str) {
        for site in self.sites.iter_mut().filter(|site| site.node == node) {
            site.busy = true;
        }
    }

    /// How many replicas of a group's members share the domain of this kind with a pool.
    pub(super) fn group_beside(&self, group: &str, site: &Site, kind: usize) -> u32 {
        let counts = self.groups.get(group).and_then(|group| group.get(kind));
        let domain = site.domains.get(kind);
        counts
            .zip(domain)
            .and_then(|(counts, domain)| counts.get(domain).copied())
            .unwrap_or(0)
    }

    /// How many replicas of a group's members there are.
    pub(super) fn group_total(&self, group: &str) -> u32 {
        self.groups
            .get(group)
            .and_then(|group| group.last())
            .map_or(0, |zones| zones.values().sum())
    }
}

/// Why a pool takes nothing, if so.
fn closed(node: &Node, pool: &Pool) -> Option<Closed> {
    let node_spec = node.spec.as_ref();
    let pool_spec = pool.spec.as_ref();
    let node_state = node.status.as_ref().map(|status| status.state());
    let pool_state = pool.status.as_ref().map(|status| status.state());
    if node_spec.is_some_and(|spec| spec.drained) {
        Some(Closed::NodeDrained)
    } else if pool_spec.is_some_and(|spec| spec.drained) {
        Some(Closed::PoolDrained)
    } else if node_spec.is_some_and(|spec| spec.cordoned) {
        Some(Closed::NodeCordoned)
    } else if pool_spec.is_some_and(|spec| spec.cordoned) {
        Some(Closed::PoolCordoned)
    } else if node_state != Some(NodeState::Online) {
        Some(Closed::NodeAway)
    } else if pool_state != Some(PoolState::Online) {
        Some(Closed::PoolAway)
    } else {
        None
    }
}
