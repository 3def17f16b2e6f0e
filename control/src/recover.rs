//! What is on engines and not on record: what can be said of it, and the records that it gets.
//!
//! Each replica keeps a copy of the record of who takes part in its volume. A change of the set of those in
//! sync counts only when all of the new set that live have a copy, and sets that follow each other share a
//! replica. So if all that the newest copy names were asked, and none has a newer one, no set came after it.
//!
//! Invariants:
//! - A volume is put on record as the newest copy has it, if all that may have a newer one were asked: those
//!   that it calls in sync or stale. Otherwise only if somebody has named the volume.
//! - Nobody is called in sync whom the newest copy does not call so.
//! - The epoch is above all that was promised, so that targets of before change nothing any more.
//! - What is on record stays as it is, unless engines know later versions of it; so does what is to be
//!   removed. Nothing is removed from engines.

use std::collections::{BTreeMap, BTreeSet};

use pollux_api::control::v1::{
    Certainty, EngineSurvey, FoundPool, FoundReplica, FoundVolume, HostAccess, HostSharing, Membership, Pool,
    PoolSpec, RecoverySpec, Replica, ReplicaState, Severity, Snapshot, SnapshotSpec, SnapshotState,
    SnapshotStatus, Survey, SurveyedNode, SurveyedReplica, TargetConfig, TargetHost, Volume, VolumePolicy,
    VolumeRollBack, VolumeSpec, VolumeState, VolumeStatus, engine_command::Command,
};
use prost::Message;
use uuid::Uuid;

use crate::model::{
    Checker, Guarded, HOSTS_MAX, REPLICAS_MAX, Record, VOLUME_UNIT_BYTES, check_membership, check_name,
    forget_snapshots, host_nqn, recovered_roll_backs,
};
use crate::plan::add_event;
use crate::store::Transaction;
use crate::world::World;

/// What engines answered, by node; or why one did not.
pub type Answers = BTreeMap<String, Result<EngineSurvey, String>>;

/// A replica, and the node where it was found.
#[derive(Clone, Copy)]
struct Found<'a> {
    node: &'a str,
    replica: &'a SurveyedReplica,
}

impl<'a> Found<'a> {
    fn uid(&self) -> &'a str {
        self.replica.config.as_ref().map_or("", |config| &config.uid)
    }

    fn pool_uid(&self) -> &'a str {
        self.replica.config.as_ref().map_or("", |config| &config.pool_uid)
    }

    fn version(&self) -> u64 {
        self.replica.record.as_ref().map_or(0, |record| record.version)
    }
}

/// What is on engines and not on record.
pub fn examine(world: &World, answers: &Answers, spec: &RecoverySpec) -> Survey {
    let mut survey = Survey::default();
    for (name, answer) in answers {
        let mut node = SurveyedNode {
            name: name.clone(),
            ..SurveyedNode::default()
        };
        match answer {
            Ok(answer) => {
                node.term = answer.term;
                node.problems.clone_from(&answer.problems);
            }
            Err(problem) => node.problems.push(problem.clone()),
        }
        survey.nodes.push(node);
    }
    let mut names = Names::new(spec);
    survey.pools = pools(world, answers, &mut names);
    survey.volumes = volumes(world, answers, &survey.pools, spec, &mut names);
    survey.digest = digest(&survey);
    survey
}

/// What stands for all that decides on what is put on record.
fn digest(survey: &Survey) -> String {
    let mut told = survey.clone();
    told.nodes.clear();
    for pool in &mut told.pools {
        pool.capacity_bytes = 0;
    }
    let name = Uuid::new_v5(&Uuid::NAMESPACE_OID, &told.encode_to_vec());
    name.simple().to_string().chars().take(12).collect()
}

/// Names that are given, and those that are taken.
struct Names<'a> {
    given: &'a BTreeMap<String, String>,
    taken: BTreeSet<String>,
}

impl<'a> Names<'a> {
    fn new(spec: &'a RecoverySpec) -> Self {
        Self {
            given: &spec.names,
            taken: BTreeSet::new(),
        }
    }

    /// The first that is a name and is free; the UUID is always one.
    fn choose(
        &mut self,
        kind: &str,
        uid: &str,
        proposed: Option<String>,
        is_free: impl Fn(&str) -> bool,
    ) -> String {
        let given = self.given.get(uid).cloned();
        let mut candidates = given.into_iter().chain(proposed);
        let chosen = candidates.find(|name| {
            let is_taken = self.taken.contains(&format!("{kind}/{name}"));
            is_name(name) && is_free(name) && !is_taken
        });
        let chosen = chosen.unwrap_or_else(|| uid.to_owned());
        self.taken.insert(format!("{kind}/{chosen}"));
        chosen
    }
}

fn is_name(name: &str) -> bool {
    let mut errors = Vec::new();
    check_name(name, &mut Checker::new("name", &mut errors));
    errors.is_empty()
}

fn is_uuid(text: &str) -> bool {
    text.parse::<Uuid>().is_ok_and(|uuid| uuid.to_string() == text)
}

/// The pools that are not on record.
fn pools(world: &World, answers: &Answers, names: &mut Names<'_>) -> Vec<FoundPool> {
    let recorded: BTreeSet<&str> = world
        .pools
        .values()
        .map(|pool| pool.meta().uid.as_str())
        .collect();
    let mut found: Vec<FoundPool> = Vec::new();
    for (node, answer) in answers {
        let Ok(answer) = answer else { continue };
        for surveyed in &answer.pools {
            let Some(pool) = &surveyed.pool else { continue };
            if recorded.contains(pool.uid.as_str()) || !is_uuid(&pool.uid) {
                continue;
            }
            let in_it = |replica: &&SurveyedReplica| {
                replica
                    .config
                    .as_ref()
                    .is_some_and(|config| config.pool_uid == pool.uid)
            };
            let replicas = answer.replicas.iter().filter(in_it).count();
            let short = pool.uid.split('-').next().unwrap_or_default();
            let proposed = Some(format!("{node}.{short}"));
            let is_free = |name: &str| !world.pools.contains_key(name);
            found.push(FoundPool {
                uid: pool.uid.clone(),
                node: node.clone(),
                name: names.choose("pool", &pool.uid, proposed, is_free),
                devices: surveyed.devices.clone(),
                replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
                capacity_bytes: pool.capacity_bytes,
                problem: String::new(),
            });
        }
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for pool in &found {
        *seen.entry(pool.uid.clone()).or_default() += 1;
    }
    for pool in &mut found {
        if seen.get(&pool.uid).is_some_and(|count| *count > 1) {
            pool.problem = "another node has a pool of this UUID: one is a copy of the other".to_owned();
        }
    }
    found
}

/// The volumes that are not on record.
fn volumes(
    world: &World,
    answers: &Answers,
    pools: &[FoundPool],
    spec: &RecoverySpec,
    names: &mut Names<'_>,
) -> Vec<FoundVolume> {
    let recorded: BTreeMap<&str, &Volume> = world
        .volumes
        .values()
        .map(|volume| (volume.meta().uid.as_str(), volume))
        .collect();
    // Of those that are on record a removal is of one replica.
    let removed = world.removals.values().map(|removal| removal.volume_uid.as_str());
    let mut removed: BTreeSet<&str> = removed.filter(|uid| !recorded.contains_key(uid)).collect();
    let deleting = recorded.iter().filter(|(_, volume)| volume.is_deleting());
    removed.extend(deleting.map(|(uid, _)| *uid));
    let removed_replicas: BTreeSet<&str> = world
        .removals
        .values()
        .filter_map(|removal| match removal.command.as_ref()?.command.as_ref()? {
            Command::RemoveReplica(uid) => Some(uid.as_str()),
            _ => None,
        })
        .collect();
    let mut by_volume: BTreeMap<&str, Vec<Found<'_>>> = BTreeMap::new();
    let mut targets: BTreeMap<&str, Vec<&TargetConfig>> = BTreeMap::new();
    for (node, answer) in answers {
        let Ok(answer) = answer else { continue };
        for replica in &answer.replicas {
            let Some(config) = &replica.config else { continue };
            let is_left = removed.contains(config.volume_uid.as_str())
                || removed_replicas.contains(config.uid.as_str())
                || !is_uuid(&config.volume_uid)
                || !is_uuid(&config.uid);
            if !is_left {
                let found = Found { node, replica };
                by_volume.entry(&config.volume_uid).or_default().push(found);
            }
        }
        for target in &answer.targets {
            targets.entry(&target.volume_uid).or_default().push(target);
        }
    }
    let on_record = world.pools.values().map(|pool| pool.meta().uid.as_str());
    let usable = pools.iter().filter(|pool| pool.problem.is_empty());
    let usable: BTreeSet<&str> = on_record.chain(usable.map(|pool| pool.uid.as_str())).collect();
    // Of those of which nothing was found, too, is said whether the record can be relied on.
    for uid in recorded.keys().filter(|_| world.is_restored) {
        if !removed.contains(uid) {
            by_volume.entry(uid).or_default();
        }
    }
    let examined = by_volume.into_iter().filter_map(|(uid, replicas)| {
        let targets = targets.get(uid).map_or(&[][..], Vec::as_slice);
        let mut volume = volume(uid, &replicas, targets, &usable);
        if volume.certainty() == Certainty::Missing && spec.accept_missing.iter().any(|named| named == uid) {
            volume.set_certainty(Certainty::Accepted);
        }
        if let Some(recorded) = recorded.get(uid) {
            volume.outdated = true;
            recorded.name().clone_into(&mut volume.name);
            let is_newer = is_outdated(recorded, &volume);
            if world.is_restored && !is_newer {
                judge_as_recorded(&mut volume, recorded, spec);
            }
            let is_listed = is_newer || world.is_restored && !is_certain(&volume);
            return is_listed.then_some(volume);
        }
        let newest = targets.iter().max_by_key(|target| target.epoch);
        let proposed = newest.map(|target| target.volume.clone());
        let is_free = |name: &str| !world.volumes.contains_key(name);
        volume.name = names.choose("volume", uid, proposed, is_free);
        Some(volume)
    });
    examined.collect()
}

/// Whether what was found is put on record, if it is not there as it is.
pub(crate) fn is_committed(volume: &FoundVolume) -> bool {
    matches!(volume.certainty(), Certainty::Sure | Certainty::Accepted)
}

/// Whether what was found can be relied on.
pub(crate) fn is_certain(volume: &FoundVolume) -> bool {
    is_committed(volume) || volume.certainty() == Certainty::Unused
}

/// Whether the volumes that are on record are so as engines have them, once what was found is on record too.
pub(crate) fn is_record_certain(survey: &Survey) -> bool {
    let mut recorded = survey.volumes.iter().filter(|volume| volume.outdated);
    recorded.all(is_certain)
}

/// Says how certain a record of a backup is that no found copy is newer than: those of the set that it names
/// may have a newer one.
fn judge_as_recorded(volume: &mut FoundVolume, recorded: &Volume, spec: &RecoverySpec) {
    let status = recorded.status.clone().unwrap_or_default();
    let is_unserved = status.epoch == 0;
    let contradicts = volume.certainty() == Certainty::Contradictory;
    let is_found = |replica: &Replica| {
        let mut found = volume.replicas.iter();
        found.any(|found| found.uid == replica.uid && !found.node.is_empty() && found.version > 0)
    };
    let knows = |replica: &&Replica| matches!(replica.state(), ReplicaState::InSync | ReplicaState::Stale);
    let missing = status.replicas.iter().filter(knows);
    let missing: Vec<String> = missing
        .filter(|replica| !is_found(replica))
        .map(|replica| format!("{} on node {} is not found", replica.uid, replica.node))
        .collect();
    let is_accepted = spec.accept_missing.contains(&volume.uid);
    let (certainty, message) = match (is_unserved, missing.is_empty(), is_accepted) {
        _ if contradicts => return,
        (true, _, _) => (Certainty::Unused, String::new()),
        (false, true, _) => (Certainty::Sure, String::new()),
        (false, false, true) => (Certainty::Accepted, missing.join("; ")),
        (false, false, false) => (Certainty::Missing, missing.join("; ")),
    };
    volume.set_certainty(certainty);
    volume.message = message;
}

/// Whether somebody knows of a later version or epoch than is on record: no copy is made, and no promise
/// asked for, before the store has it.
fn is_outdated(recorded: &Volume, found: &FoundVolume) -> bool {
    let status = recorded.status.clone().unwrap_or_default();
    found.version > status.version.saturating_add(1) || found.epoch > status.epoch.saturating_add(1)
}

/// What can be said of one volume.
fn volume(
    uid: &str,
    replicas: &[Found<'_>],
    targets: &[&TargetConfig],
    usable_pools: &BTreeSet<&str>,
) -> FoundVolume {
    let newest = replicas.iter().max_by_key(|found| found.version());
    let record = newest.and_then(|found| found.replica.record.clone());
    let promised = replicas.iter().map(|found| found.replica.promised_epoch);
    let copied = replicas.iter().filter_map(|found| found.replica.record.as_ref());
    let served = targets.iter().map(|target| target.epoch);
    let highest = promised
        .chain(copied.map(|record| record.epoch))
        .chain(served)
        .max();
    let mut volume = FoundVolume {
        uid: uid.to_owned(),
        epoch: highest.unwrap_or_default().saturating_add(1),
        hosts: hosts(targets),
        ..FoundVolume::default()
    };
    let versions = targets.iter().map(|target| target.version);
    let newest = record.iter().map(|record| record.version).chain(versions).max();
    volume.version = newest.unwrap_or_default().saturating_add(1);
    let members = record.iter().flat_map(|record| &record.members);
    let mut listed: Vec<FoundReplica> = members
        .map(|member| FoundReplica {
            uid: member.uid.clone(),
            state: member.state,
            ..FoundReplica::default()
        })
        .collect();
    for found in replicas {
        let (node, pool_uid) = (found.node.to_owned(), found.pool_uid().to_owned());
        let (version, promised_epoch) = (found.version(), found.replica.promised_epoch);
        let told = FoundReplica {
            uid: found.uid().to_owned(),
            node,
            pool_uid,
            version,
            promised_epoch,
            state: ReplicaState::Unspecified.into(),
        };
        match listed
            .iter_mut()
            .find(|listed| listed.uid == told.uid && listed.node.is_empty())
        {
            Some(listed) => {
                *listed = FoundReplica {
                    state: listed.state,
                    ..told
                }
            }
            None => listed.push(told),
        }
    }
    volume.replicas = listed;
    let (certainty, message) = match &record {
        Some(record) => judge(uid, record, replicas, targets, usable_pools),
        None => unrecorded(replicas),
    };
    volume.set_certainty(certainty);
    volume.message = message;
    volume.record = record;
    volume
}

/// Replicas without any record that could be read.
fn unrecorded(replicas: &[Found<'_>]) -> (Certainty, String) {
    match replicas.iter().find(|found| !found.replica.problem.is_empty()) {
        Some(found) => {
            let (uid, problem) = (found.uid(), &found.replica.problem);
            let why = format!("replica {uid} cannot tell what it knows: {problem}");
            (Certainty::NoneInSync, why)
        }
        None => (
            Certainty::Unused,
            "no target ever served it: nothing was written".to_owned(),
        ),
    }
}

/// How certain it is that a record is the newest.
fn judge(
    uid: &str,
    record: &Membership,
    replicas: &[Found<'_>],
    targets: &[&TargetConfig],
    usable_pools: &BTreeSet<&str>,
) -> (Certainty, String) {
    let contradictory = |why: String| (Certainty::Contradictory, why);
    if record.volume_uid != uid {
        return contradictory(format!("a replica has a record of volume {}", record.volume_uid));
    }
    if let Err(reason) = check_membership(record) {
        return contradictory(format!("the newest record makes no sense: {reason}"));
    }
    if record.snapshots.iter().any(|snapshot| !is_uuid(&snapshot.uid)) {
        return contradictory("a snapshot of it has no UUID".to_owned());
    }
    let mut copies = replicas.iter().filter_map(|found| found.replica.record.as_ref());
    if copies.any(|copy| copy.version == record.version && copy != record) {
        let version = record.version;
        return contradictory(format!("replicas have different records of version {version}"));
    }
    let mut missing = Vec::new();
    let mut in_sync = 0;
    for member in &record.members {
        let mut of_it = replicas.iter().filter(|found| found.uid() == member.uid);
        let (found, again) = (of_it.next(), of_it.next());
        if again.is_some() {
            return contradictory(format!("replica {} was found twice", member.uid));
        }
        let knows = matches!(member.state(), ReplicaState::InSync | ReplicaState::Stale);
        let Some(found) = found.filter(|found| usable_pools.contains(found.pool_uid())) else {
            if knows {
                missing.push(format!("{} is not found", member.uid));
            }
            continue;
        };
        let room_bytes = found
            .replica
            .config
            .as_ref()
            .map_or(0, |config| config.size_bytes);
        if member.state() == ReplicaState::InSync && room_bytes < record.size_bytes {
            return contradictory(format!("replica {} is smaller than the volume", member.uid));
        }
        if !found.replica.problem.is_empty() && knows {
            missing.push(format!("{} cannot tell what it knows", member.uid));
        } else if member.state() == ReplicaState::InSync && found.replica.record.is_none() {
            missing.push(format!("{} has lost what it knew", member.uid));
        }
        in_sync += u32::from(member.state() == ReplicaState::InSync);
    }
    let ahead = targets
        .iter()
        .find(|target| !target.standby && target.version > record.version);
    if let Some(target) = ahead {
        missing.push(format!(
            "its target works by version {}, which no copy has yet",
            target.version
        ));
    }
    match (in_sync, missing.is_empty()) {
        (0, _) => (
            Certainty::NoneInSync,
            "none of those in sync is found: bring one back".to_owned(),
        ),
        (_, true) => (Certainty::Sure, String::new()),
        (_, false) => (Certainty::Missing, missing.join("; ")),
    }
}

/// The hosts that are admitted now: those of the newest target, or of standbys.
fn hosts(targets: &[&TargetConfig]) -> Vec<HostAccess> {
    let serving = targets
        .iter()
        .filter(|target| !target.standby)
        .max_by_key(|target| target.epoch);
    let mut hosts: BTreeMap<&str, &TargetHost> = BTreeMap::new();
    let told: Vec<&TargetConfig> = match serving {
        Some(target) => vec![*target],
        None => targets.to_vec(),
    };
    for host in told.iter().flat_map(|target| &target.hosts) {
        let mut errors = Vec::new();
        host_nqn(&host.host_nqn, &mut Checker::new("host", &mut errors));
        if errors.is_empty() && hosts.len() < HOSTS_MAX {
            hosts.insert(&host.host_nqn, host);
        }
    }
    let hosts = hosts.into_values().map(|host| HostAccess {
        host_nqn: host.host_nqn.clone(),
        read_only: host.read_only,
        // Engines do not tell the secrets: those that have them go on with them.
        secret_uid: host.secret_uid.clone(),
    });
    hosts.collect()
}

/// The transactions that put on record what was found and is certain: first the pools, then each volume with
/// its snapshots.
pub fn records(world: &World, survey: &Survey) -> Vec<Transaction> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for pool in world.pools.values() {
        names.insert(pool.meta().uid.clone(), pool.name().to_owned());
    }
    let mut transactions = Vec::new();
    let mut events = 0;
    let mut commit = |mut transaction: Transaction, subject: String, message: String| {
        let severity = Severity::Warning;
        add_event(&mut transaction, world, events, severity, (subject, message));
        events += 1;
        transactions.push(transaction);
    };
    for found in survey.pools.iter().filter(|pool| pool.problem.is_empty()) {
        names.insert(found.uid.clone(), found.name.clone());
        let mut pool = Pool {
            metadata: None,
            spec: Some(PoolSpec {
                node: found.node.clone(),
                devices: found.devices.clone(),
                ..PoolSpec::default()
            }),
            status: None,
        };
        describe(&mut pool, world, &found.uid, &found.name);
        let mut transaction = Transaction::default();
        transaction.put(&pool);
        commit(
            transaction,
            pool.subject(),
            "is on record again, as it was found".to_owned(),
        );
    }
    for found in &survey.volumes {
        if let Some((volume, transaction)) = volume_records(world, found, &names) {
            let epoch = found.epoch;
            let message = match found.certainty() {
                _ if found.outdated => format!("is on record as its replicas have it, in epoch {epoch}"),
                Certainty::Accepted => format!(
                    "is on record again, in epoch {epoch}, without replicas that may know better: {}",
                    found.message
                ),
                _ => format!("is on record again, in epoch {epoch}, as its replicas have it"),
            };
            commit(transaction, volume.subject(), message);
        }
    }
    transactions
}

/// What is known of requests to go back to snapshots.
fn roll_backs(world: &World, known: Option<&Volume>, record: &Membership) -> Vec<VolumeRollBack> {
    let known = known.and_then(|known| known.status.as_ref());
    let all = known.map(|status| status.roll_backs.clone()).unwrap_or_default();
    let name_of = |uid: &str| {
        let mut snapshots = world.snapshots.values();
        let found = snapshots.find(|snapshot| snapshot.meta().uid == uid);
        // Those that are not known are put on record by what they are.
        found.map_or(uid, |snapshot| snapshot.name()).to_owned()
    };
    recovered_roll_backs(all, record.roll_back.as_ref(), name_of, world.now_unix_us)
}

fn describe<R: Record>(record: &mut R, world: &World, uid: &str, name: &str) {
    let metadata = record.meta_mut();
    metadata.name = name.to_owned();
    metadata.uid = uid.to_owned();
    metadata.created_unix_us = world.now_unix_us;
}

/// A volume, and the transaction that puts it on record with its snapshots; nothing if it is not certain.
fn volume_records(
    world: &World,
    found: &FoundVolume,
    pools: &BTreeMap<String, String>,
) -> Option<(Volume, Transaction)> {
    let record = found.record.as_ref()?;
    if !is_committed(found) {
        return None;
    }
    let replicas = record.members.iter().filter_map(|member| {
        let mut listed = found.replicas.iter();
        let place = listed.find(|listed| listed.uid == member.uid && !listed.node.is_empty())?;
        Some(Replica {
            uid: member.uid.clone(),
            node: place.node.clone(),
            pool: pools.get(&place.pool_uid)?.clone(),
            state: member.state,
            slot: member.slot,
            leaving: false,
            given_up_unix_us: None,
        })
    });
    let wanted = u32::try_from(record.members.len()).unwrap_or(REPLICAS_MAX);
    let wanted = wanted.clamp(1, REPLICAS_MAX);
    let known = world.volumes.get(&found.name).filter(|_| found.outdated);
    let mut status = VolumeStatus {
        state: VolumeState::Unavailable.into(),
        message: "it was put on record again".to_owned(),
        epoch: found.epoch,
        version: found.version,
        replicas: replicas.collect(),
        target_node: String::new(),
        size_bytes: record.size_bytes,
        min_in_sync: record.min_in_sync.min(wanted),
        snapshots: record.snapshots.clone(),
        // They are on record only.
        reservations: known
            .and_then(|known| known.status.as_ref())
            .map(|status| status.reservations.clone())
            .unwrap_or_default(),
        roll_backs: roll_backs(world, known, record),
        roll_back: record.roll_back.clone(),
        moving_since_unix_us: None,
        caches_lost_epoch: record.caches_lost_epoch,
        unreadable: None,
    };
    forget_snapshots(&mut status);
    let mut transaction = Transaction::default();
    for recorded in &status.snapshots {
        let is_known = |snapshot: &Snapshot| snapshot.meta().uid == recorded.uid;
        if world.snapshots.values().any(is_known) {
            continue;
        }
        let mut snapshot = Snapshot {
            metadata: None,
            spec: Some(SnapshotSpec {
                volume: found.name.clone(),
                group_snapshot: String::new(),
            }),
            status: Some(SnapshotStatus {
                state: SnapshotState::Ready.into(),
                volume_uid: found.uid.clone(),
                size_bytes: record.size_bytes,
                taken_unix_us: None,
            }),
        };
        describe(&mut snapshot, world, &recorded.uid, &recorded.uid);
        transaction.put(&snapshot);
    }
    if let Some(known) = known {
        // One that was deleted since would be taken anew, under the name of what it was.
        for snapshot in world.snapshots.values().filter(|snapshot| {
            let of = snapshot.status.clone().unwrap_or_default();
            let is_there = status
                .snapshots
                .iter()
                .any(|recorded| recorded.uid == snapshot.meta().uid);
            of.volume_uid == found.uid && of.state() == SnapshotState::Ready && !is_there
        }) {
            transaction.delete(snapshot);
        }
        let mut volume = known.clone();
        let spec = volume.spec.get_or_insert_default();
        spec.size_bytes = spec
            .size_bytes
            .max(record.size_bytes.next_multiple_of(VOLUME_UNIT_BYTES));
        volume.status = Some(status);
        transaction.put(&volume);
        return Some((volume, transaction));
    }
    // Nobody knows what the only host would share the volume with: so with none.
    let sharing = match found.hosts.as_slice() {
        [host] => BTreeMap::from([(host.host_nqn.clone(), HostSharing::None.into())]),
        _ => BTreeMap::new(),
    };
    let mut volume = Volume {
        metadata: None,
        spec: Some(VolumeSpec {
            size_bytes: record.size_bytes.next_multiple_of(VOLUME_UNIT_BYTES),
            policy: Some(VolumePolicy {
                replicas: Some(wanted),
                min_in_sync: Some(status.min_in_sync),
                ..VolumePolicy::default()
            }),
            hosts: found.hosts.clone(),
            sharing,
            ..VolumeSpec::default()
        }),
        status: None,
    };
    volume.status = Some(status);
    describe(&mut volume, world, &found.uid, &found.name);
    transaction.put(&volume);
    Some((volume, transaction))
}
