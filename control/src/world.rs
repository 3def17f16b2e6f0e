//! All that a decision is made from: the records of the store, the newest reports of engines, the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pollux_api::control::v1::{
    EngineReport, Group, GroupSnapshot, Node, Pool, Rebalance, Removal, Snapshot, Template, Volume,
};

use crate::model::{EffectivePolicy, Kind, Record};
use crate::store::{Change, Listing, RESTORED_KEY, StoreError, TERM_BASE_KEY, term_base};

/// What an engine told last.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// All that is on it.
    pub report: Arc<EngineReport>,
    /// When it came.
    pub at_unix_us: u64,
}

/// All that a decision is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct World {
    /// The time. Grows from one decision to the next.
    pub now_unix_us: u64,
    /// Since when reports could come here: before that, silence means nothing.
    pub observing_since_unix_us: u64,
    /// Machines, by name.
    pub nodes: BTreeMap<String, Node>,
    /// Pools, by name.
    pub pools: BTreeMap<String, Pool>,
    /// Volumes, by name.
    pub volumes: BTreeMap<String, Volume>,
    /// Snapshots, by name.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Groups, by name.
    pub groups: BTreeMap<String, Group>,
    /// Snapshots of several volumes, by name.
    pub group_snapshots: BTreeMap<String, GroupSnapshot>,
    /// Templates, by name.
    pub templates: BTreeMap<String, Template>,
    /// Plans to rebalance, by name.
    pub rebalances: BTreeMap<String, Rebalance>,
    /// What is to be removed from engines, by name.
    pub removals: BTreeMap<String, Removal>,
    /// Names of the secrets of hosts that there are. Nothing is planned by the secrets themselves.
    pub host_secrets: BTreeSet<String>,
    /// Names of events, oldest first.
    pub events: BTreeSet<String>,
    /// What engines told last, by node.
    pub reports: BTreeMap<String, Observation>,
    /// When a replica could not be made in a pool, the last time, by pool.
    pub failures: BTreeMap<String, u64>,
    /// Why an engine did not make or open a pool the last time, by the UUID of the pool: those that are open
    /// are not here.
    pub pool_refusals: BTreeMap<String, String>,
    /// Why engines could not be told something the last time, by node: those that could are not here.
    pub unheard: BTreeMap<String, String>,
    /// Why engines that were asked gave no report the last time, by node.
    pub silent: BTreeMap<String, String>,
    /// What is added to the terms of leaders.
    pub term_base: u64,
    /// Whether the records are those of a backup, and nobody has compared them with what engines have:
    /// nothing is done by them.
    pub is_restored: bool,
    /// The revision of the store that the records are of.
    pub revision: u64,
}

fn replace<R: Record>(
    records: &mut BTreeMap<String, R>,
    key: &str,
    name: &str,
    value: Option<(&[u8], u64)>,
) -> Result<(), StoreError> {
    match value {
        Some((value, revision)) => {
            records.insert(name.to_owned(), R::read_value(key, value, revision)?);
        }
        None => {
            records.remove(name);
        }
    }
    Ok(())
}

/// There is a record of this name, or there is none any more.
fn note(names: &mut BTreeSet<String>, name: &str, is_there: bool) -> Result<(), StoreError> {
    match is_there {
        true => names.insert(name.to_owned()),
        false => names.remove(name),
    };
    Ok(())
}

impl World {
    /// The records of a store, with nothing observed yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`].
    pub fn load(listing: &Listing, now_unix_us: u64) -> Result<Self, StoreError> {
        let mut world = Self {
            now_unix_us,
            observing_since_unix_us: now_unix_us,
            ..Self::default()
        };
        for entry in &listing.entries {
            world.set(&entry.key, Some((&entry.value, entry.revision)))?;
        }
        world.revision = listing.revision;
        Ok(world)
    }

    /// A record is another one from now on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`].
    pub fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        let value = change.value.as_deref().map(|value| (value, change.revision));
        self.set(&change.key, value)?;
        self.revision = self.revision.max(change.revision);
        Ok(())
    }

    fn set(&mut self, key: &str, value: Option<(&[u8], u64)>) -> Result<(), StoreError> {
        if key == TERM_BASE_KEY {
            self.term_base = term_base(value.map(|(value, _)| value))?;
        }
        if key == RESTORED_KEY {
            self.is_restored = value.is_some();
        }
        // Other keys are not records: those, and the leader's.
        let Some((kind, name)) = Kind::parse(key) else {
            return Ok(());
        };
        match kind {
            Kind::Node => replace(&mut self.nodes, key, name, value),
            Kind::Pool => replace(&mut self.pools, key, name, value),
            Kind::Volume => replace(&mut self.volumes, key, name, value),
            Kind::Snapshot => replace(&mut self.snapshots, key, name, value),
            Kind::Group => replace(&mut self.groups, key, name, value),
            Kind::GroupSnapshot => replace(&mut self.group_snapshots, key, name, value),
            Kind::Template => replace(&mut self.templates, key, name, value),
            Kind::Removal => replace(&mut self.removals, key, name, value),
            // Nothing is planned by them, and nobody is shown them.
            Kind::Token => Ok(()),
            Kind::Rebalance => replace(&mut self.rebalances, key, name, value),
            Kind::HostSecrets => note(&mut self.host_secrets, name, value.is_some()),
            Kind::Event => note(&mut self.events, name, value.is_some()),
        }
    }

    /// An engine has reported. A report of an unknown node is dropped.
    pub fn observe(&mut self, report: Arc<EngineReport>, at_unix_us: u64) {
        if self.nodes.contains_key(&report.node) {
            self.reports
                .insert(report.node.clone(), Observation { report, at_unix_us });
        }
    }

    /// What applies to a volume.
    pub fn policy<'a>(&'a self, volume: &'a Volume) -> EffectivePolicy<'a> {
        let template = volume.spec.as_ref().map(|spec| spec.template.as_str());
        EffectivePolicy::of(volume, template.and_then(|name| self.templates.get(name)))
    }
}
