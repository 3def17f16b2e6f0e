//! Volumes: from asked for to served, from one size to another, and gone.
//!
//! What is decided for a volume is drafted on a copy of its status and stored in one transaction. Commands
//! follow from what is stored, never from a draft.

use pollux_api::control::v1::{
    PlacementPolicy, Removal, Replica, ReplicaConfig, ReplicaState, Severity, SnapshotState, Volume,
    VolumeSpec, VolumeState, VolumeStatus, engine_command::Command,
};
use uuid::Uuid;

use crate::model::{
    EffectivePolicy, Guarded, Record, SLOTS, check_follows, forget_snapshots, free_slot, membership,
};
use crate::placement::{PlacementRequest, SiteId, decide, explain};
use crate::store::Transaction;

use super::context::Context;
use super::repair::{self, Fitness, fitness};
use super::{roll_backs, stored, targets, unreadable};

/// A volume with what is decided for it.
pub(super) struct Draft<'a> {
    pub(super) volume: &'a Volume,
    pub(super) spec: &'a VolumeSpec,
    pub(super) policy: EffectivePolicy<'a>,
    pub(super) status: VolumeStatus,
    pub(super) removals: Vec<Removal>,
    pub(super) events: Vec<(Severity, String)>,
    /// Replicas that were placed here: each gets another UUID.
    placed: usize,
}

impl Draft<'_> {
    pub(super) fn uid(&self) -> &str {
        &self.volume.meta().uid
    }

    /// Something is to go from an engine.
    pub(super) fn remove(&mut self, node: &str, what: &str, command: Command) {
        let mut removal = Removal {
            metadata: None,
            node: node.to_owned(),
            command: stored(command),
            volume_uid: self.uid().to_owned(),
        };
        removal.meta_mut().name = format!("{node}.{what}");
        self.removals.push(removal);
    }

    /// Whether there is a snapshot that no other replica has: one that was being brought back when it was cut
    /// does not get it.
    pub(super) fn has_alone(&self, replica: &Replica) -> bool {
        let bit = 1_u32 << replica.slot.min(SLOTS);
        let mut snapshots = self.status.snapshots.iter();
        snapshots.any(|snapshot| snapshot.held_by == bit)
    }

    /// Takes a replica off the record, and has it removed, with the path to the volume beside it.
    pub(super) fn drop_replica(&mut self, replica: &Replica, why: &str) {
        self.status.replicas.retain(|other| other.uid != replica.uid);
        forget_snapshots(&mut self.status);
        let what = format!("replica.{}", replica.uid);
        self.remove(&replica.node, &what, Command::RemoveReplica(replica.uid.clone()));
        if self.status.epoch > 0 && replica.node != self.status.target_node {
            targets::remove(self, &replica.node, self.status.epoch);
        }
        self.events.push((
            Severity::Info,
            format!("its replica in pool {} is removed: {why}", replica.pool),
        ));
    }

    /// Gives a new replica its place, and its UUID: always another one, and the same if this is decided
    /// again.
    pub(super) fn add_replica(&mut self, context: &mut Context<'_>, site: SiteId) {
        let place = context.fleet.site(site);
        let place = place.map(|site| (site.pool.clone(), site.node.clone()));
        let (Some((pool, node)), Some(slot)) = (place, free_slot(&self.status)) else {
            return;
        };
        context
            .fleet
            .occupy(site, self.spec.size_bytes, &self.policy.placement.affinity_groups);
        let name = format!("{}/{}/{}", self.uid(), self.volume.meta().revision, self.placed);
        self.placed += 1;
        self.events.push((
            Severity::Info,
            format!("gets a replica in pool {pool} on node {node}"),
        ));
        self.status.replicas.push(Replica {
            uid: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string(),
            node,
            pool,
            state: ReplicaState::Assigned.into(),
            slot,
            leaving: false,
            given_up_unix_us: None,
        });
    }

    /// The pools of its replicas.
    pub(super) fn sites(&self, context: &Context<'_>, wanted: impl Fn(&Replica) -> bool) -> Vec<SiteId> {
        let replicas = self.status.replicas.iter().filter(|replica| wanted(replica));
        replicas
            .filter_map(|replica| context.fleet.find(&replica.pool))
            .collect()
    }
}

/// Plans for volumes, the most endangered first.
pub(super) fn plan_volumes(context: &mut Context<'_>) {
    let world = context.world;
    let mut order: Vec<(u32, &Volume)> = world
        .volumes
        .values()
        .map(|volume| (repair::urgency(context, volume), volume))
        .collect();
    // Stable: volumes that are alike stay in the order of their names.
    order.sort_by_key(|(urgency, _)| *urgency);
    for (_, volume) in order {
        if context.is_full() {
            return;
        }
        if volume.is_deleting() {
            plan_deletion(context, volume);
        } else if let Some(spec) = &volume.spec {
            plan_volume(context, volume, spec);
        }
    }
}

/// Whether an engine that has something of a volume has yet to be heard since this instance began to listen.
/// Until then nothing is decided for the volume: what its engines tell would be missed in it, and it would
/// count as lost, or be moved, only because another engine was heard first.
fn is_awaited(context: &Context<'_>, status: &VolumeStatus) -> bool {
    let replicas = status.replicas.iter().map(|replica| replica.node.as_str());
    replicas
        .chain([status.target_node.as_str()])
        .any(|node| context.is_awaited(node))
}

fn plan_volume(context: &mut Context<'_>, volume: &Volume, spec: &VolumeSpec) {
    let world = context.world;
    let old = volume.status.clone().unwrap_or_default();
    if is_awaited(context, &old) {
        send(context, volume, spec, &old);
        targets::send(context, volume, spec, &old);
        return;
    }
    let mut draft = Draft {
        volume,
        spec,
        policy: world.policy(volume),
        status: old.clone(),
        removals: Vec::new(),
        events: Vec::new(),
        placed: 0,
    };
    draft.status.message.clear();
    if draft.status.epoch == 0 {
        create(context, &mut draft);
        if draft.status.message.is_empty() {
            draft.status.message = hindrance(context, &draft.status);
        }
    } else {
        repair::repair(context, &mut draft);
        targets::choose(context, &mut draft);
        roll_backs::advance(context, &mut draft);
        unreadable::note(context, &mut draft);
        if targets::serves(context, draft.uid(), &draft.status) {
            draft.status.moving_since_unix_us = None;
        }
    }
    let state = state(context, &draft);
    draft.status.state = state.into();
    if !number_change(&mut draft, &old) {
        return;
    }
    if draft.status == old {
        send(context, volume, spec, &old);
        targets::send(context, volume, spec, &old);
        return;
    }
    let mut changed = volume.clone();
    changed.status = Some(draft.status.clone());
    let mut transaction = Transaction::default();
    transaction.put(&changed);
    for removal in &draft.removals {
        transaction.put_always(removal);
    }
    if draft.status.state != old.state {
        let (severity, text) = match draft.status.state() {
            VolumeState::Healthy => (Severity::Info, "is healthy"),
            VolumeState::Degraded => (Severity::Warning, "has fewer replicas than it should have"),
            VolumeState::Unavailable => (Severity::Error, "does not serve"),
            VolumeState::Pending => (Severity::Warning, "has no place yet"),
            VolumeState::Failed => (Severity::Error, "will never be made"),
            VolumeState::Creating => (Severity::Info, "is being made"),
            VolumeState::Deleting | VolumeState::Unspecified => (Severity::Info, "is being deleted"),
        };
        let message = match draft.status.message.is_empty() {
            true => text.to_owned(),
            false => format!("{text}: {}", draft.status.message),
        };
        draft.events.push((severity, message));
    }
    for (severity, message) in draft.events {
        context.event(&mut transaction, severity, volume.subject(), message);
    }
    context.commit(transaction);
}

/// A change of who takes part has the next version: targets that know an older one change nothing then.
/// Whether it is a change that may be made.
fn number_change(draft: &mut Draft<'_>, old: &VolumeStatus) -> bool {
    if old.epoch == 0 {
        return true;
    }
    draft.status.min_in_sync = draft.policy.min_in_sync;
    let (before, mut after) = (
        membership(draft.uid(), old),
        membership(draft.uid(), &draft.status),
    );
    if before == after {
        return true;
    }
    after.version = before.version + 1;
    draft.status.version = after.version;
    match check_follows(&after, &before) {
        Ok(()) => true,
        Err(reason) => {
            tracing::error!(volume = draft.volume.name(), %reason, "a plan is not carried out");
            false
        }
    }
}

/// Why replicas are not made yet that are to be made, if it is known: an engine that reports may not be
/// reached at the address of its node.
fn hindrance(context: &Context<'_>, status: &VolumeStatus) -> String {
    let mut unmade = status
        .replicas
        .iter()
        .filter(|replica| context.replica(&replica.uid).is_none());
    let why = unmade.find_map(|replica| {
        let why = context.world.unheard.get(&replica.node)?;
        Some(format!(
            "{why}: it is called at the address that `pollux node get {}` tells",
            replica.node
        ))
    });
    why.unwrap_or_default()
}

/// Before the first epoch: replicas get places and are made; none of them has data yet.
fn create(context: &mut Context<'_>, draft: &mut Draft<'_>) {
    for replica in draft.status.replicas.clone() {
        let fitness = fitness(context, &replica);
        if fitness != Fitness::Good {
            draft.drop_replica(&replica, "it was not finished before its place became unfit");
        }
    }
    let lost = lost_source(context, draft.spec);
    let is_lost = lost.is_some();
    if is_lost && context.may_decide() {
        // Those that were made of it have all that it had, and repair makes others of them.
        for replica in draft.status.replicas.clone() {
            if context.replica(&replica.uid).is_none() {
                draft.drop_replica(&replica, "its source was lost before it was made");
            }
        }
    }
    let source = match lost {
        Some(lost) if !draft.status.replicas.is_empty() => Some(lost),
        _ => match source(context, draft.spec) {
            Ok(source) => source,
            Err(message) => {
                draft.status.message = message;
                return;
            }
        },
    };
    let wanted = usize::try_from(draft.policy.replicas).unwrap_or(1);
    if draft.status.replicas.len() < wanted && !is_lost {
        let only = source.as_ref().map(Source::sites);
        place_first(context, draft, wanted, only.as_deref());
    }
    if draft.status.replicas.is_empty() {
        return;
    }
    let rooms: Option<Vec<u64>> = draft
        .status
        .replicas
        .iter()
        .map(|replica| Some(context.replica(&replica.uid)?.config.as_ref()?.size_bytes))
        .collect();
    let Some(room_bytes) = rooms.and_then(|rooms| rooms.into_iter().min()) else {
        return;
    };
    // All are there, and all hold the same: nothing, or the same snapshot.
    for replica in &mut draft.status.replicas {
        replica.state = ReplicaState::InSync.into();
    }
    draft.status.epoch = 1;
    draft.status.version = 1;
    draft.status.min_in_sync = draft.policy.min_in_sync;
    // A copy begins with the size of what it is a copy of, and grows from there; so does a volume that is
    // asked to be larger than its replicas were made.
    let begun_bytes = source
        .map(|source| source.size_bytes)
        .filter(|bytes| *bytes > 0)
        .unwrap_or(draft.spec.size_bytes);
    draft.status.size_bytes = begun_bytes.min(room_bytes);
    targets::choose(context, draft);
}

/// What a volume begins as a copy of.
struct Source {
    /// The pools that have it, each with the replica there.
    places: Vec<(SiteId, String, String)>,
    /// What replicas know it by.
    cut: String,
    /// Its size.
    size_bytes: u64,
}

impl Source {
    /// Where it is.
    fn sites(&self) -> Vec<SiteId> {
        self.places.iter().map(|(site, ..)| *site).collect()
    }
}

/// The snapshot that a volume begins as a copy of, if that is lost: it is nowhere.
fn lost_source(context: &Context<'_>, spec: &VolumeSpec) -> Option<Source> {
    let snapshot = context.world.snapshots.get(&spec.source_snapshot)?;
    let status = snapshot.status.as_ref()?;
    (status.state() == SnapshotState::Lost).then(|| Source {
        places: Vec::new(),
        cut: String::new(),
        size_bytes: status.size_bytes,
    })
}

/// The snapshot that a volume begins as a copy of, if it does.
fn source(context: &Context<'_>, spec: &VolumeSpec) -> Result<Option<Source>, String> {
    let name = &spec.source_snapshot;
    if name.is_empty() {
        return Ok(None);
    }
    let snapshot = context.world.snapshots.get(name);
    let status = snapshot.and_then(|snapshot| snapshot.status.as_ref());
    let (Some(snapshot), Some(status)) = (snapshot, status) else {
        return Err(format!("its source, snapshot {name}, is gone"));
    };
    if status.state() == SnapshotState::Lost {
        return Err(format!(
            "its source, snapshot {name}, is lost, as no replica has it any more: delete this volume"
        ));
    }
    if status.state() != SnapshotState::Ready {
        return Err(format!("its source, snapshot {name}, is not taken yet"));
    }
    let origin = snapshot.spec.as_ref().map(|spec| spec.volume.as_str());
    let origin = origin.and_then(|name| context.world.volumes.get(name));
    let origin = origin
        .filter(|origin| origin.meta().uid == status.volume_uid)
        .and_then(|origin| origin.status.as_ref());
    let recorded = origin.and_then(|origin| {
        let mut recorded = origin.snapshots.iter();
        recorded.find(|recorded| recorded.uid == snapshot.meta().uid)
    });
    let (Some(origin), Some(recorded)) = (origin, recorded) else {
        return Err(format!("its source, snapshot {name}, is on no replica"));
    };
    let holders = origin.replicas.iter().filter(|replica| {
        let is_held = recorded.held_by & 1_u32 << replica.slot.min(SLOTS) != 0;
        is_held && replica.state() == ReplicaState::InSync && context.replica(&replica.uid).is_some()
    });
    let places = holders.filter_map(|replica| {
        let site = context.fleet.find(&replica.pool)?;
        Some((site, replica.pool.clone(), replica.uid.clone()))
    });
    Ok(Some(Source {
        places: places.collect(),
        cut: recorded.cut.clone(),
        size_bytes: status.size_bytes,
    }))
}

/// Chooses places for a volume that has none or too few. A copy of a snapshot begins where the snapshot is;
/// what it lacks then is made by repair.
fn place_first(context: &mut Context<'_>, draft: &mut Draft<'_>, wanted: usize, source: Option<&[SiteId]>) {
    if !context.may_decide() {
        return;
    }
    let kept = draft.sites(context, |_| true);
    let nowhere = PlacementPolicy::default();
    let request = PlacementRequest {
        volume_uid: &draft.volume.meta().uid,
        size_bytes: draft.spec.size_bytes,
        // Where the snapshot is, the volume has to begin, whatever its own rules: repair moves it later.
        policy: match source {
            Some(_) => &nowhere,
            None => draft.policy.placement,
        },
        kept: &kept,
        own: &kept,
        count: wanted.saturating_sub(kept.len()),
        only: source,
        is_rebuild: false,
    };
    let decision = decide(&context.fleet, &request);
    let is_enough = match source {
        Some(_) => !decision.placed.is_empty() || !kept.is_empty(),
        None => decision.fits(),
    };
    if !is_enough {
        draft.status.message = explain(&context.fleet, &request).summary;
        return;
    }
    for placed in decision.placed {
        draft.add_replica(context, placed.site);
    }
}

fn state(context: &Context<'_>, draft: &Draft<'_>) -> VolumeState {
    let status = &draft.status;
    if status.epoch == 0 {
        return match status.replicas.is_empty() {
            true if lost_source(context, draft.spec).is_some() => VolumeState::Failed,
            true => VolumeState::Pending,
            false => VolumeState::Creating,
        };
    }
    let serves = targets::serves(context, draft.uid(), status) || targets::is_moving(context, status);
    if !serves && matches!(status.state(), VolumeState::Creating | VolumeState::Pending) {
        return VolumeState::Creating;
    }
    let in_sync: Vec<Fitness> = status
        .replicas
        .iter()
        .filter(|replica| replica.state() == ReplicaState::InSync)
        .map(|replica| fitness(context, replica))
        .collect();
    let usable = in_sync.iter().filter(|fitness| fitness.is_usable()).count();
    let wanted = usize::try_from(draft.policy.replicas).unwrap_or(1);
    let least = usize::try_from(draft.policy.min_in_sync).unwrap_or(1);
    if usable < least || !serves {
        VolumeState::Unavailable
    } else if usable >= wanted && status.replicas.len() == in_sync.len() {
        VolumeState::Healthy
    } else {
        VolumeState::Degraded
    }
}

/// Has replicas made.
fn send(context: &mut Context<'_>, volume: &Volume, spec: &VolumeSpec, status: &VolumeStatus) {
    let source = match status.epoch {
        0 => source(context, spec),
        _ => Ok(None),
    };
    // Without its source it cannot be made now.
    let Ok(source) = source else { return };
    let source_snapshot_uid = match &source {
        Some(_) => context.world.snapshots.get(&spec.source_snapshot),
        None => None,
    };
    let source_snapshot_uid =
        source_snapshot_uid.map_or_else(String::new, |snapshot| snapshot.meta().uid.clone());
    for replica in &status.replicas {
        // Once it was there, it is not made again: that would be an empty one that counts as in sync.
        let is_due = replica.state() == ReplicaState::Assigned && context.replica(&replica.uid).is_none();
        let Some(pool) = context.world.pools.get(&replica.pool) else {
            continue;
        };
        if !is_due || !fitness(context, replica).is_usable() {
            continue;
        }
        let mut config = ReplicaConfig {
            uid: replica.uid.clone(),
            volume_uid: volume.meta().uid.clone(),
            pool_uid: pool.meta().uid.clone(),
            size_bytes: spec.size_bytes,
            ..ReplicaConfig::default()
        };
        if let Some(source) = &source {
            let held = source.places.iter().find(|(_, pool, _)| *pool == replica.pool);
            let Some((.., holder)) = held else { continue };
            config.source_snapshot_uid.clone_from(&source_snapshot_uid);
            config.source_replica_uid.clone_from(holder);
            config.source_cut.clone_from(&source.cut);
        }
        context.command(&replica.node, Command::EnsureReplica(config));
    }
}

/// The volume is forgotten, and what may be of it on engines becomes removals, in one transaction.
fn plan_deletion(context: &mut Context<'_>, volume: &Volume) {
    let (Some(spec), status) = (&volume.spec, volume.status.clone().unwrap_or_default()) else {
        return;
    };
    // They are being deleted, and go first.
    if !context.snapshots(&volume.meta().uid).is_empty() {
        return;
    }
    let mut draft = Draft {
        volume,
        spec,
        policy: context.world.policy(volume),
        status: status.clone(),
        removals: Vec::new(),
        events: Vec::new(),
        placed: 0,
    };
    if !status.target_node.is_empty() {
        targets::remove(&mut draft, &status.target_node, status.epoch);
    }
    for replica in &status.replicas {
        draft.drop_replica(replica, "its volume is deleted");
    }
    let mut transaction = Transaction::default();
    transaction.delete(volume);
    for removal in &draft.removals {
        transaction.put_always(removal);
    }
    context.event(
        &mut transaction,
        Severity::Info,
        volume.subject(),
        "is deleted".to_owned(),
    );
    context.commit(transaction);
}
