//! Snapshots of several volumes, each of one instant.

use pollux_api::control::v1::{
    GroupSnapshot, GroupSnapshotMember, GroupSnapshotSpec, GroupSnapshotState, GroupSnapshotStatus, Volume,
};
use pollux_control::model::Record;
use pollux_control::plan::Limits;

use crate::common::{Cluster, SECOND_US, layout, named, put, uid, volume};

/// One that was asked for, of volumes that are there.
pub fn together(name: &str, volumes: &[&str]) -> GroupSnapshot {
    let member = |volume: &&str| GroupSnapshotMember {
        volume: (*volume).to_owned(),
        volume_uid: uid::<Volume>(volume),
        snapshot: format!("{name}.{volume}"),
        size_bytes: 1,
    };
    let group_snapshot = GroupSnapshot {
        metadata: None,
        spec: Some(GroupSnapshotSpec {
            group: String::new(),
            volumes: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
        }),
        status: Some(GroupSnapshotStatus {
            state: GroupSnapshotState::Pending.into(),
            members: volumes.iter().map(member).collect(),
            ..GroupSnapshotStatus::default()
        }),
    };
    named(group_snapshot, name)
}

/// Whether its snapshots are there and of one instant, and engines have no others but `also`.
pub fn check_taken(cluster: &Cluster, name: &str, also: usize) {
    let world = cluster.world();
    let status = world.group_snapshots[name].status.clone().expect("it has one");
    assert_eq!(status.state(), GroupSnapshotState::Ready, "{}", status.message);
    let engines = cluster.fleet.lock();
    let (mut latest_hold, mut first_release) = (0, u64::MAX);
    for member in &status.members {
        let snapshot = &world.snapshots[&member.snapshot];
        let uid = &snapshot.meta().uid;
        let (held, released) = engines.instants[uid];
        latest_hold = latest_hold.max(held);
        first_release = first_release.min(released);
        let volume = &world.volumes[&member.volume];
        let recorded = &volume.status.as_ref().expect("it has one").snapshots;
        assert!(
            recorded.iter().any(|recorded| recorded.uid == *uid),
            "it is not on record"
        );
    }
    assert!(
        latest_hold <= first_release,
        "the last was held at {latest_hold}, when one was released at {first_release}"
    );
    let on_record = world.volumes.values().map(|volume| {
        let status = volume.status.as_ref().expect("it has one");
        status.snapshots.len()
    });
    assert_eq!(on_record.sum::<usize>(), status.members.len() + also);
    for engine in engines.engines.values() {
        for replica in engine.replicas.values() {
            let own = world.snapshots.values().filter(|snapshot| {
                let status = snapshot.status.as_ref().expect("it has one");
                status.volume_uid == replica.config.volume_uid
            });
            let own: std::collections::BTreeSet<String> = own.map(|own| own.meta().uid.clone()).collect();
            assert!(
                replica.snapshots.is_subset(&own),
                "something is left of an attempt"
            );
        }
    }
}

async fn cluster() -> Cluster {
    let limits = Limits {
        replace_after_us: 60 * SECOND_US,
        ..Limits::default()
    };
    let mut cluster = Cluster::new(&layout(1, 5), limits).await;
    for name in ["a", "b", "c", "other"] {
        put(&cluster.store, &volume(name, 3)).await;
    }
    cluster.settle().await;
    cluster
}

fn state(cluster: &Cluster, name: &str) -> GroupSnapshotState {
    let found = &cluster.world().group_snapshots[name];
    found.status.as_ref().expect("it has one").state()
}

async fn until(cluster: &mut Cluster, name: &str, wanted: GroupSnapshotState) {
    for _ in 0..100 {
        if cluster.world().group_snapshots.contains_key(name) && state(cluster, name) == wanted {
            return;
        }
        cluster.tick().await;
    }
    panic!("it never was {wanted:?}");
}

#[tokio::test]
async fn snapshots_are_of_one_instant_and_go_together() {
    let mut cluster = cluster().await;
    put(&cluster.store, &together("s", &["a", "b", "c"])).await;
    cluster.settle().await;
    check_taken(&cluster, "s", 0);
    cluster.check_settled();
    assert_eq!(cluster.world().snapshots.len(), 3);
    let delete = |found: &mut GroupSnapshot| found.meta_mut().deleted_unix_us = Some(1);
    cluster.update("s", delete).await;
    cluster.settle().await;
    assert_eq!(cluster.world().snapshots.len(), 0);
    assert_eq!(cluster.world().group_snapshots.len(), 0);
    for engine in cluster.fleet.lock().engines.values() {
        assert!(
            engine
                .replicas
                .values()
                .all(|replica| replica.snapshots.is_empty())
        );
    }
}

#[tokio::test]
async fn a_target_that_dies_begins_another_attempt() {
    for when in [GroupSnapshotState::Holding, GroupSnapshotState::Committing] {
        let mut cluster = cluster().await;
        put(&cluster.store, &together("s", &["a", "b"])).await;
        until(&mut cluster, "s", when).await;
        let status = cluster.world().volumes["a"].status.clone().expect("it has one");
        cluster.fleet.set_up(&status.target_node, false);
        // Until the attempt is over, too.
        cluster.ticks(40).await;
        cluster.fleet.set_up(&status.target_node, true);
        cluster.settle().await;
        check_taken(&cluster, "s", 0);
        let attempts = &cluster.world().group_snapshots["s"].status;
        assert!(
            attempts.as_ref().is_some_and(|status| status.attempts_failed > 0),
            "{when:?}"
        );
    }
}

#[tokio::test]
async fn what_is_held_for_nothing_is_released() {
    let mut cluster = cluster().await;
    put(&cluster.store, &together("s", &["a", "b"])).await;
    until(&mut cluster, "s", GroupSnapshotState::Committing).await;
    let delete = |found: &mut GroupSnapshot| found.meta_mut().deleted_unix_us = Some(1);
    cluster.update("s", delete).await;
    cluster.ticks(3).await;
    let engines = cluster.fleet.lock().engines.clone();
    for engine in engines.values() {
        let uids = ["a", "b"].map(uid::<Volume>);
        let mut held = uids.iter().flat_map(|volume| engine.cuts.of(volume));
        assert!(held.all(|cut| !cut.is_held()), "{:?}", engine.cuts);
    }
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(cluster.world().snapshots.len(), 0);
    let on_record = |volume: &Volume| {
        volume
            .status
            .as_ref()
            .is_some_and(|status| !status.snapshots.is_empty())
    };
    assert!(!cluster.world().volumes.values().any(on_record));
}

#[tokio::test]
async fn without_a_volume_there_is_no_snapshot() {
    let mut cluster = cluster().await;
    put(&cluster.store, &together("s", &["a", "gone"])).await;
    cluster.settle().await;
    assert_eq!(state(&cluster, "s"), GroupSnapshotState::Failed);
    cluster.check_settled();
    assert_eq!(cluster.world().snapshots.len(), 0);
}
