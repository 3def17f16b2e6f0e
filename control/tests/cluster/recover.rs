//! The store is lost: what is put on record again, and what is not.

use std::collections::BTreeMap;

use pollux_api::control::v1::nodes_server::Nodes;
use pollux_api::control::v1::recoveries_server::Recoveries;
use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::*;
use pollux_control::engines::{EngineAddress, EngineClient};
use pollux_control::model::{Kind, Record};
use pollux_control::plan::Limits;
use pollux_control::recover::{Answers, examine, records};
use pollux_control::store::{MemoryStore, Store, restore, write_backup};
use pollux_control::world::World;
use tonic::Request;

use crate::common::{Cluster, SECOND_US, layout, put, services, snapshot, volume};

/// Three nodes and a volume with a snapshot, written to.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&layout(3, 1), Limits::default()).await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    let made = cluster.get::<Volume>("v").await.expect("it is there");
    put(&cluster.store, &snapshot("s", &made)).await;
    cluster.settle().await;
    cluster.check_settled();
    cluster
}

fn status(cluster: &Cluster) -> VolumeStatus {
    let volume = cluster.world().volumes.values().next().expect("one volume");
    volume.status.clone().expect("it has been planned for")
}

fn replicas(cluster: &Cluster, state: ReplicaState) -> Vec<Replica> {
    let mut replicas = status(cluster).replicas;
    replicas.retain(|replica| replica.state() == state);
    replicas
}

/// The store is lost: there is a new one, that knows the nodes and nothing else.
async fn lose_store(cluster: &mut Cluster) {
    let store = MemoryStore::default();
    for node in cluster.world().nodes.values() {
        let mut node = node.clone();
        node.status = None;
        node.metadata.get_or_insert_default().revision = 0;
        put(&store, &node).await;
    }
    cluster.store = store;
    cluster.restart().await;
    cluster.ticks(3).await;
}

fn accepting(survey: &Survey) -> RecoverySpec {
    RecoverySpec {
        accept_missing: survey.volumes.iter().map(|volume| volume.uid.clone()).collect(),
        ..RecoverySpec::default()
    }
}

async fn survey(cluster: &Cluster, spec: &RecoverySpec) -> Survey {
    let spec = Some(spec.clone());
    let services = services(cluster);
    let answer = services.survey_engines(Request::new(SurveyEnginesRequest { spec }));
    answer.await.expect("it answers").into_inner()
}

pub async fn commit(cluster: &Cluster, spec: &RecoverySpec) -> Survey {
    let digest = survey(cluster, spec).await.digest;
    let spec = Some(spec.clone());
    let services = services(cluster);
    let answer = services.commit_recovery(Request::new(CommitRecoveryRequest { spec, digest }));
    answer.await.expect("it is as it was looked at").into_inner()
}

fn only(survey: &Survey) -> &FoundVolume {
    assert_eq!(survey.volumes.len(), 1, "{survey:?}");
    &survey.volumes[0]
}

#[tokio::test]
async fn what_is_on_engines_comes_back() {
    let mut cluster = cluster().await;
    let before = cluster.get::<Volume>("v").await.expect("it is there");
    let old = before.status.clone().expect("it has been planned for");
    lose_store(&mut cluster).await;
    assert!(cluster.world().volumes.is_empty() && cluster.world().pools.is_empty());
    let spec = RecoverySpec::default();
    let found = survey(&cluster, &spec).await;
    assert_eq!(found.pools.len(), 3);
    assert_eq!(only(&found).certainty(), Certainty::Sure, "{found:?}");
    assert_eq!(only(&found).name, "v", "engines know its name still");
    assert!(cluster.world().volumes.is_empty(), "nobody has agreed yet");

    let wrong = CommitRecoveryRequest {
        spec: Some(spec.clone()),
        digest: "another".to_owned(),
    };
    let services = services(&cluster);
    let refused = services.commit_recovery(Request::new(wrong)).await;
    assert_eq!(
        refused.expect_err("it was not looked at").code(),
        tonic::Code::InvalidArgument
    );

    commit(&cluster, &spec).await;
    cluster.settle().await;
    cluster.check_settled();
    let after = cluster.get::<Volume>("v").await.expect("it is on record again");
    let status = after.status.clone().expect("it has been planned for");
    assert_eq!(after.meta().uid, before.meta().uid);
    assert!(
        status.epoch > old.epoch + 1,
        "{} after {}",
        status.epoch,
        old.epoch
    );
    assert_eq!(status.snapshots, old.snapshots);
    let taken: Vec<&Snapshot> = cluster.world().snapshots.values().collect();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].meta().uid, old.snapshots[0].uid);
    assert_eq!(
        survey(&cluster, &spec).await.volumes,
        Vec::new(),
        "nothing is left"
    );
}

#[tokio::test]
async fn who_may_know_better_has_to_be_asked() {
    let mut cluster = cluster().await;
    // One misses writes, and then those that have them are away.
    let stale = status(&cluster).target_node;
    cluster.fleet.set_up(&stale, false);
    cluster.ticks(20).await;
    let better: Vec<String> = replicas(&cluster, ReplicaState::InSync)
        .into_iter()
        .map(|replica| replica.node)
        .collect();
    assert_eq!(better.len(), 2, "{:?}", status(&cluster));
    for node in &better {
        cluster.fleet.set_up(node, false);
    }
    cluster.fleet.set_up(&stale, true);
    lose_store(&mut cluster).await;
    let spec = RecoverySpec::default();
    let found = commit(&cluster, &spec).await;
    assert_eq!(only(&found).certainty(), Certainty::Missing, "{found:?}");
    cluster.ticks(3).await;
    assert!(cluster.world().volumes.is_empty(), "an old set is served");

    // One of them is enough to know that the first one is stale, and not to know that no other one has more.
    cluster.fleet.set_up(&better[0], true);
    let found = commit(&cluster, &spec).await;
    assert_eq!(only(&found).certainty(), Certainty::Missing, "{found:?}");
    let found = survey(&cluster, &accepting(&found)).await;
    assert_eq!(only(&found).certainty(), Certainty::Accepted, "{found:?}");

    // With all of them it is certain.
    cluster.fleet.set_up(&better[1], true);
    let found = commit(&cluster, &spec).await;
    assert_eq!(only(&found).certainty(), Certainty::Sure, "{found:?}");
    cluster.settle().await;
    cluster.check_settled();
}

#[tokio::test]
async fn what_was_accepted_is_served_without_who_is_missing() {
    let mut cluster = cluster().await;
    cluster.fleet.set_up("n2-0", false);
    lose_store(&mut cluster).await;
    let found = survey(&cluster, &RecoverySpec::default()).await;
    assert_eq!(only(&found).certainty(), Certainty::Missing, "{found:?}");
    let spec = accepting(&found);
    commit(&cluster, &spec).await;
    cluster.ticks(20).await;
    cluster.check();
    let state = status(&cluster).state();
    assert_eq!(state, VolumeState::Degraded, "{:?}", status(&cluster));
    let missing = found.volumes[0]
        .replicas
        .iter()
        .find(|replica| replica.node.is_empty());
    let missing = missing.expect("one is not found").uid.clone();

    // It is back, with what it had: that is left alone, and counts for nothing.
    cluster.fleet.set_up("n2-0", true);
    commit(&cluster, &RecoverySpec::default()).await;
    cluster.clock.advance(400 * SECOND_US);
    cluster.settle().await;
    cluster.check();
    assert_eq!(status(&cluster).state(), VolumeState::Healthy);
    assert!(
        status(&cluster)
            .replicas
            .iter()
            .all(|replica| replica.uid != missing)
    );
    let engines = cluster.fleet.lock();
    assert!(
        engines.engines["n2-0"].replicas.contains_key(&missing),
        "it was removed"
    );
}

/// What all engines answer.
async fn answers(cluster: &Cluster) -> Answers {
    let mut answers = Answers::new();
    for node in cluster.world().nodes.keys() {
        let engine = EngineAddress {
            node: node.clone(),
            address: String::new(),
        };
        let survey = cluster.fleet.survey(&engine, SurveyRequest::default()).await;
        answers.insert(node.clone(), survey.map_err(|error| error.to_string()));
    }
    answers
}

fn first(answers: &mut Answers) -> &mut EngineSurvey {
    let first = answers.values_mut().next().expect("a node");
    first.as_mut().expect("it answers")
}

#[tokio::test]
async fn what_cannot_be_true_is_not_put_on_record() {
    type Damage = fn(&mut Answers);
    let damages: [(Damage, Certainty); 8] = [
        (
            |answers| {
                let record = first(answers).replicas[0].record.as_mut().expect("a copy");
                record.min_in_sync += 1;
            },
            Certainty::Contradictory,
        ),
        (
            |answers| {
                let again = first(answers).replicas[0].clone();
                let last = answers.values_mut().last().expect("a node").as_mut();
                last.expect("it answers").replicas.push(again);
            },
            Certainty::Contradictory,
        ),
        (
            |answers| {
                let config = first(answers).replicas[0].config.as_mut().expect("a config");
                config.size_bytes -= 4096;
            },
            Certainty::Contradictory,
        ),
        (
            |answers| {
                let record = first(answers).replicas[0].record.as_mut().expect("a copy");
                record.version += 1;
                record.members.clear();
            },
            Certainty::Contradictory,
        ),
        (
            |answers| first(answers).replicas[0].record = None,
            Certainty::Missing,
        ),
        (
            |answers| {
                for answer in answers.values_mut() {
                    let answer = answer.as_mut().expect("it answers");
                    answer.replicas[0].record = None;
                }
            },
            Certainty::Unused,
        ),
        (
            |answers| {
                for answer in answers.values_mut().flat_map(|answer| answer.as_mut()) {
                    for target in &mut answer.targets {
                        target.version += 5;
                    }
                }
            },
            Certainty::Missing,
        ),
        (
            // All pools but those of the first node are copies of it.
            |answers| {
                let pool = first(answers).pools[0].pool.clone();
                for answer in answers.values_mut().flat_map(|answer| answer.as_mut()) {
                    answer.pools[0].pool.clone_from(&pool);
                }
            },
            Certainty::NoneInSync,
        ),
    ];
    let mut cluster = cluster().await;
    cluster.ticks(1).await;
    let world = World {
        nodes: cluster.world().nodes.clone(),
        now_unix_us: 1,
        ..World::default()
    };
    let good = answers(&cluster).await;
    let spec = RecoverySpec::default();
    let survey = examine(&world, &good, &spec);
    assert_eq!(only(&survey).certainty(), Certainty::Sure, "{survey:?}");
    assert_eq!(records(&world, &survey).len(), 4, "three pools and a volume");
    for (number, (damage, certainty)) in damages.into_iter().enumerate() {
        let mut damaged = good.clone();
        damage(&mut damaged);
        let survey = examine(&world, &damaged, &spec);
        assert_eq!(
            only(&survey).certainty(),
            certainty,
            "damage {number}: {survey:?}"
        );
        let touched = records(&world, &survey);
        let mut keys = touched.iter().flat_map(|transaction| &transaction.writes);
        assert!(
            keys.all(|write| !write.key().starts_with("/volume/")),
            "damage {number}"
        );
    }
}

/// Whoever commits may die after any transaction.
#[tokio::test]
async fn a_recovery_that_was_cut_off_is_ended_by_another() {
    for done in 0..4 {
        let mut cluster = cluster().await;
        lose_store(&mut cluster).await;
        let spec = RecoverySpec::default();
        let found = examine(cluster.world(), &answers(&cluster).await, &spec);
        for transaction in records(cluster.world(), &found).into_iter().take(done) {
            cluster.store.commit(transaction).await.expect("it is new");
        }
        cluster.ticks(2).await;
        commit(&cluster, &spec).await;
        cluster.settle().await;
        cluster.check_settled();
    }
}

/// What is being deleted is not brought back.
#[tokio::test]
async fn what_is_to_be_removed_stays_so() {
    let mut cluster = cluster().await;
    let now_us = cluster.world().now_unix_us;
    cluster
        .update::<Snapshot>("s", |snapshot| snapshot.meta_mut().deleted_unix_us = Some(now_us))
        .await;
    cluster.settle().await;
    cluster.fleet.set_up("n0-0", false);
    cluster
        .update::<Volume>("v", |volume| volume.meta_mut().deleted_unix_us = Some(now_us))
        .await;
    cluster.ticks(20).await;
    assert!(!cluster.world().removals.is_empty());
    cluster.fleet.set_up("n0-0", true);
    let found = survey(&cluster, &RecoverySpec::default()).await;
    assert_eq!(found.volumes, Vec::new());
    cluster.settle().await;
    cluster.check_settled();
}

/// An old backup is restored: nobody hears its control plane before it knows what came after.
#[tokio::test]
async fn an_old_backup_is_brought_up_to_date() {
    let mut cluster = cluster().await;
    let backup = write_backup(&cluster.store).await.expect("the store answers");
    let old = status(&cluster);
    // Another target, a snapshot less and one more, and a volume of which the backup has nothing.
    cluster.fleet.set_up(&old.target_node, false);
    cluster.ticks(20).await;
    cluster.fleet.set_up(&old.target_node, true);
    cluster.settle().await;
    let now_us = cluster.world().now_unix_us;
    let made = cluster.get::<Volume>("v").await.expect("it is there");
    put(&cluster.store, &snapshot("t", &made)).await;
    cluster
        .update::<Snapshot>("s", |snapshot| snapshot.meta_mut().deleted_unix_us = Some(now_us))
        .await;
    put(&cluster.store, &volume("w", 2)).await;
    cluster.settle().await;
    cluster.check_settled();
    let newest = status(&cluster);
    assert!(newest.epoch > old.epoch);

    cluster.store = MemoryStore::default();
    restore(&cluster.store, &backup).await.expect("it is empty");
    cluster.restart().await;
    cluster.ticks(5).await;
    cluster.check();
    let spec = RecoverySpec::default();
    let found = commit(&cluster, &spec).await;
    let told: Vec<_> = found
        .volumes
        .iter()
        .map(|volume| (volume.name.as_str(), volume.certainty(), volume.outdated))
        .collect();
    assert!(told.contains(&("v", Certainty::Sure, true)), "{told:?}");
    assert!(told.contains(&("w", Certainty::Sure, false)), "{told:?}");
    cluster.settle().await;
    cluster.check_settled();
    let after = cluster.get::<Volume>("v").await.expect("it is there").status;
    assert!(after.expect("it has been planned for").epoch > newest.epoch);
    let snapshots: Vec<&str> = cluster
        .world()
        .snapshots
        .values()
        .map(|snapshot| snapshot.meta().uid.as_str())
        .collect();
    assert_eq!(snapshots, [newest.snapshots[0].uid.as_str()]);
    let found = survey(&cluster, &spec).await;
    assert_eq!(found.volumes, Vec::new(), "nothing is left");
}

/// What targets of a node work by, by the UUIDs of their volumes.
fn targets(cluster: &Cluster, node: &str) -> Vec<(String, Option<Membership>)> {
    let engines = cluster.fleet.lock();
    let targets = engines.engines[node].targets.iter();
    targets
        .filter(|(_, target)| !target.config.standby)
        .map(|(volume, target)| (volume.clone(), target.record.clone()))
        .collect()
}

/// What an old backup says of a volume is served by nobody, though all who know better are away and the terms
/// of its control plane have become later than any that engines have seen.
#[tokio::test]
async fn nothing_is_done_by_an_old_backup_however_often_it_is_started() {
    let mut cluster = cluster().await;
    let backup = write_backup(&cluster.store).await.expect("the store answers");
    let old = status(&cluster);
    cluster.fleet.set_up(&old.target_node, false);
    cluster.ticks(20).await;
    let newest = status(&cluster);
    assert_ne!(newest.target_node, old.target_node);
    let serving = targets(&cluster, &newest.target_node);
    assert_eq!(serving.len(), 1);

    cluster.store = MemoryStore::default();
    cluster.fleet.set_up(&old.target_node, true);
    restore(&cluster.store, &backup).await.expect("it is empty");
    let newest_term = {
        let engines = cluster.fleet.lock();
        let terms = engines.engines.values().map(|engine| engine.term);
        terms.max().expect("there are engines")
    };
    while cluster.store.revision().await.expect("it answers") <= newest_term {
        let change = |node: &mut Node| node.meta_mut().created_unix_us += 1;
        cluster.update::<Node>(&old.target_node, change).await;
    }
    let nodes: Vec<String> = cluster.world().nodes.keys().cloned().collect();
    // Whoever serves goes on; who served once does not, though nobody else is left.
    for away in [false, true] {
        if away {
            for node in nodes.iter().filter(|node| **node != old.target_node) {
                cluster.fleet.set_up(node, false);
            }
        }
        cluster.restart().await;
        cluster.ticks(20).await;
        assert_eq!(status(&cluster), old);
        assert_eq!(targets(&cluster, &old.target_node), []);
        if !away {
            assert_eq!(targets(&cluster, &newest.target_node), serving);
        }
    }
    // Nor once that was committed which is certain, as this is not.
    let spec = RecoverySpec::default();
    let found = commit(&cluster, &spec).await;
    let only = only(&found);
    assert_eq!(
        (only.certainty(), only.outdated),
        (Certainty::Missing, true),
        "{found:?}"
    );
    assert!(found.restored);
    cluster.ticks(20).await;
    assert_eq!(targets(&cluster, &old.target_node), []);
    for node in &nodes {
        cluster.fleet.set_up(node, true);
    }
    let listed = cluster.store.list_all(&Kind::Event.prefix()).await;
    let listed = listed.expect("the store answers").entries;
    let events: Result<Vec<Event>, _> = listed.iter().map(Event::read).collect();
    let events = events.expect("they can be read");
    let told = events
        .iter()
        .filter(|event| event.message.contains("pollux recover"));
    assert_eq!(told.count(), 2);

    // Nothing can be asked for that would be done by old records, and who takes part can be said.
    let services = services(&cluster);
    let made = CreateVolumeRequest {
        volume: Some(volume("w", 1)),
        wait_us: None,
    };
    let refused = services.create_volume(Request::new(made)).await;
    assert_eq!(refused.expect_err("it is held").code(), tonic::Code::Unavailable);
    let mut larger = cluster.get::<Volume>("v").await.expect("it is there");
    larger.spec.get_or_insert_default().size_bytes *= 2;
    let update = UpdateVolumeRequest {
        volume: Some(larger),
        update_mask: crate::calls::mask(&["spec.size_bytes"]),
    };
    let refused = services.update_volume(Request::new(update)).await;
    assert_eq!(refused.expect_err("it is held").code(), tonic::Code::Unavailable);
    let mut node = cluster.get::<Node>(&old.target_node).await.expect("it is there");
    node.spec.get_or_insert_default().cordoned = true;
    let update = UpdateNodeRequest {
        node: Some(node),
        update_mask: crate::calls::mask(&["spec.cordoned"]),
    };
    services.update_node(Request::new(update)).await.expect("it may");

    assert!(survey(&cluster, &spec).await.restored);
    assert!(!commit(&cluster, &spec).await.restored);
    let found = survey(&cluster, &spec).await;
    assert!(!found.restored && found.volumes.is_empty(), "{found:?}");
    cluster.settle().await;
    let after = status(&cluster);
    assert!(after.epoch > newest.epoch, "{after:?}");
    assert_eq!(after.state(), VolumeState::Healthy);
}

/// Of what is gone for good, whoever asks says so: by name, or by deleting it.
#[tokio::test]
async fn what_a_backup_alone_knows_is_accepted_or_deleted() {
    let mut cluster = cluster().await;
    put(&cluster.store, &volume("w", 1)).await;
    cluster.settle().await;
    let of = async |cluster: &Cluster, name: &str| {
        let volume = cluster.get::<Volume>(name).await.expect("it is there");
        (volume.meta().uid.clone(), volume.status.expect("it has one"))
    };
    let ((v_uid, v), (w_uid, w)) = (of(&cluster, "v").await, of(&cluster, "w").await);
    let backup = write_backup(&cluster.store).await.expect("the store answers");
    cluster.store = MemoryStore::default();
    restore(&cluster.store, &backup).await.expect("it is empty");
    // With the only replica of one volume, and one of three of the other.
    let lost = &w.replicas[0].node;
    cluster.fleet.set_up(lost, false);
    cluster.restart().await;
    cluster.ticks(3).await;
    let certainties = |survey: &Survey| -> BTreeMap<String, Certainty> {
        let volumes = survey.volumes.iter();
        volumes
            .map(|volume| (volume.uid.clone(), volume.certainty()))
            .collect()
    };
    let missing = |uids: &[&String]| -> BTreeMap<String, Certainty> {
        uids.iter()
            .map(|uid| ((*uid).clone(), Certainty::Missing))
            .collect()
    };
    let mut spec = RecoverySpec::default();
    let found = commit(&cluster, &spec).await;
    assert_eq!(certainties(&found), missing(&[&v_uid, &w_uid]));
    assert!(found.restored);
    spec.accept_missing.push(v_uid.clone());
    let found = commit(&cluster, &spec).await;
    assert_eq!(certainties(&found), missing(&[&w_uid]));
    assert!(found.restored);
    let request = DeleteVolumeRequest { name: "w".to_owned() };
    let services = services(&cluster);
    services
        .delete_volume(Request::new(request))
        .await
        .expect("it may");
    let found = commit(&cluster, &spec).await;
    assert_eq!(certainties(&found), BTreeMap::new());
    assert!(!found.restored);
    cluster.ticks(10).await;
    let (_, after) = of(&cluster, "v").await;
    assert!(
        after.epoch >= v.epoch && after.state() == VolumeState::Degraded,
        "{after:?}"
    );
    assert!(
        cluster
            .get::<Volume>("w")
            .await
            .is_none_or(|volume| volume.is_deleting())
    );
}

const REQUEST: &str = "00000000-0000-0000-0000-000000007001";

async fn go_back(cluster: &Cluster) {
    let request = RollBackVolumeRequest {
        name: "v".to_owned(),
        snapshot: "s".to_owned(),
        request_uid: REQUEST.to_owned(),
        wait_us: None,
    };
    let asked = services(cluster).roll_back_volume(Request::new(request)).await;
    asked.expect("it can");
}

async fn roll_back_of(cluster: &Cluster) -> VolumeRollBack {
    let volume = cluster.get::<Volume>("v").await.expect("it is there");
    let known = volume.status.expect("it has one").roll_backs;
    assert_eq!(known.len(), 1, "{known:?}");
    known.into_iter().next().expect("one")
}

async fn until_roll_back_is(cluster: &mut Cluster, state: RollBackState, case: &str) {
    for _ in 0..100 {
        if roll_back_of(cluster).await.state() == state {
            return;
        }
        cluster.tick().await;
    }
    panic!("{case}: {:?} is not {state:?}", status(cluster));
}

fn times_gone_back(cluster: &Cluster) -> u32 {
    cluster
        .fleet
        .lock()
        .rolled_back
        .get(REQUEST)
        .copied()
        .unwrap_or(0)
}

/// Whether replicas have a roll-back on record: before, nothing of it has happened.
fn is_on_replicas(cluster: &Cluster) -> bool {
    let engines = cluster.fleet.lock();
    let mut replicas = engines
        .engines
        .values()
        .flat_map(|engine| engine.replicas.values());
    replicas.any(|replica| {
        let record = replica.record.as_ref();
        record.is_some_and(|record| record.roll_back.is_some())
    })
}

async fn publish(cluster: &Cluster) -> Result<(), tonic::Status> {
    let request = PublishVolumeRequest {
        name: "v".to_owned(),
        host: Some(HostAccess {
            host_nqn: "nqn.2026-11.x:host".to_owned(),
            ..HostAccess::default()
        }),
        ..PublishVolumeRequest::default()
    };
    services(cluster)
        .publish_volume(Request::new(request))
        .await
        .map(drop)
}

/// Replicas know nothing of it: nothing happened, and nothing is held up.
#[tokio::test]
async fn a_roll_back_that_only_the_lost_store_knew_is_forgotten() {
    let mut cluster = cluster().await;
    cluster.ticks(1).await;
    go_back(&cluster).await;
    assert!(!is_on_replicas(&cluster));
    lose_store(&mut cluster).await;
    commit(&cluster, &RecoverySpec::default()).await;
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(status(&cluster).roll_backs, []);
    assert_eq!(times_gone_back(&cluster), 0);
    publish(&cluster).await.expect("it is whole");
}

/// How far a roll-back is when the store is lost, and when a backup is made, if one is.
#[tokio::test]
async fn a_roll_back_is_done_once_though_the_store_is_lost() {
    use RollBackState::{Done, Requested, Running};
    for (backed_up_at, lost_at) in [
        (None, Running),
        (None, Done),
        (Some(Requested), Requested),
        (Some(Requested), Running),
        (Some(Requested), Done),
        (Some(Running), Running),
        (Some(Running), Done),
        (Some(Done), Done),
    ] {
        let case = format!("backed up {backed_up_at:?}, lost {lost_at:?}");
        let mut cluster = cluster().await;
        cluster.ticks(1).await;
        go_back(&cluster).await;
        let mut backup = None;
        for state in [Requested, Running, Done] {
            until_roll_back_is(&mut cluster, state, &case).await;
            if backed_up_at == Some(state) {
                backup = Some(write_backup(&cluster.store).await.expect("the store answers"));
            }
            if state == lost_at {
                break;
            }
        }
        while lost_at == Running && !is_on_replicas(&cluster) {
            cluster.tick().await;
        }
        let before = times_gone_back(&cluster);
        assert_eq!(before, u32::from(lost_at == Done), "{case}");
        match backup {
            None => lose_store(&mut cluster).await,
            Some(backup) => {
                cluster.store = MemoryStore::default();
                restore(&cluster.store, &backup).await.expect("it is empty");
                cluster.restart().await;
                cluster.ticks(5).await;
            }
        }
        commit(&cluster, &RecoverySpec::default()).await;
        if lost_at != Done && roll_back_of(&cluster).await.state() != Done {
            let refused = publish(&cluster).await.expect_err("it holds some of both");
            assert_eq!(
                refused.code(),
                tonic::Code::FailedPrecondition,
                "{case}: {refused}"
            );
        }
        until_roll_back_is(&mut cluster, Done, &case).await;
        cluster.settle().await;
        cluster.check_settled();
        assert_eq!(times_gone_back(&cluster), 1, "{case}");
        let known = roll_back_of(&cluster).await;
        assert_eq!(
            (known.state(), known.request_uid.as_str()),
            (Done, REQUEST),
            "{case}"
        );
        assert!(
            !known.snapshot.is_empty() && known.ended_unix_us.is_some(),
            "{case}: {known:?}"
        );
        publish(&cluster)
            .await
            .unwrap_or_else(|status| panic!("{case}: {status}"));
    }
}
