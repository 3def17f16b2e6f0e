//! Snapshots that all replicas have lost: nothing is made of them, and nobody waits for them.

use std::collections::BTreeMap;

use pollux_api::control::v1::snapshots_server::Snapshots;
use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::*;
use pollux_control::model::{Kind, Record};
use pollux_control::plan::Limits;
use pollux_control::store::Store;
use tonic::{Code, Request, Status};

use crate::calls::reason;
use crate::common::{Cluster, SECOND_US, layout, named, put, services, snapshot, uid, volume};

const SCHEDULE_LABEL: &str = "pollux.io/schedule";

/// A cluster with volume `v` of three replicas and its snapshot `s`.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&layout(1, 4), Limits::default()).await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    put(&cluster.store, &snapshot("s", &volume("v", 3))).await;
    cluster.settle().await;
    cluster
}

/// All replicas of a volume lose the snapshots that are meant; returns once that was seen.
async fn lose(cluster: &mut Cluster, volume: &str, is_meant: impl Fn(&str) -> bool) {
    let uids: Vec<String> = {
        let snapshots = cluster.world().snapshots.values();
        let meant = snapshots.filter(|snapshot| is_meant(snapshot.name()));
        meant.map(|snapshot| snapshot.meta().uid.clone()).collect()
    };
    let forget = |volume: &mut Volume| {
        let status = volume.status.as_mut().expect("it has one");
        status.snapshots.retain(|recorded| !uids.contains(&recorded.uid));
        status.version += 1;
    };
    cluster.update::<Volume>(volume, forget).await;
    for _ in 0..10 {
        cluster.tick().await;
        let snapshots = cluster.world().snapshots.values();
        let mut meant = snapshots.filter(|snapshot| uids.contains(&snapshot.meta().uid));
        if meant.all(|snapshot| is(snapshot, SnapshotState::Lost)) {
            return;
        }
    }
    panic!("they are not seen to be lost");
}

fn is(snapshot: &Snapshot, state: SnapshotState) -> bool {
    let status = snapshot.status.as_ref();
    status.is_some_and(|status| status.state() == state)
}

fn copy(name: &str) -> Volume {
    let mut copy = volume(name, 3);
    copy.spec.as_mut().expect("it has one").source_snapshot = "s".to_owned();
    copy
}

fn create(volume: Volume) -> Request<CreateVolumeRequest> {
    Request::new(CreateVolumeRequest {
        volume: Some(volume),
        wait_us: Some(30_000_000),
    })
}

fn require_lost(answer: Result<impl Sized, Status>, what: &str) {
    let status = answer.err().unwrap_or_else(|| panic!("{what}: it is refused"));
    assert_eq!(status.code(), Code::FailedPrecondition, "{what}: {status}");
    assert_eq!(reason(&status), "SNAPSHOT_LOST", "{what}");
    assert!(
        status.message().contains("snapshot s is lost"),
        "{what}: {status}"
    );
}

/// Has the engines on some nodes do what they are told, and those on all others hear nothing.
fn tell_only(cluster: &Cluster, nodes: &[&str]) {
    for (node, engine) in &mut cluster.fleet.lock().engines {
        engine.deaf = !nodes.contains(&node.as_str());
    }
}

async fn status(cluster: &Cluster, name: &str) -> VolumeStatus {
    let volume = cluster.get::<Volume>(name).await.expect("it is there");
    volume.status.unwrap_or_default()
}

async fn events_of(cluster: &Cluster, subject: &str) -> Vec<Event> {
    let listed = cluster.store.list_all(&Kind::Event.prefix()).await;
    let listed = listed.expect("the store answers").entries;
    let read = listed
        .iter()
        .map(|entry| Event::read(entry).expect("it can be read"));
    read.filter(|event| event.subject == subject).collect()
}

#[tokio::test]
async fn what_is_asked_of_a_lost_snapshot_is_refused_at_once() {
    let mut cluster = cluster().await;
    let services = services(&cluster);
    let made = |copy: Volume| {
        Request::new(CreateVolumeRequest {
            volume: Some(copy),
            wait_us: None,
        })
    };
    services.create_volume(made(copy("early"))).await.expect("it can");
    cluster.settle().await;
    lose(&mut cluster, "v", |name| name == "s").await;

    require_lost(services.create_volume(create(copy("late"))).await, "a copy");
    assert!(cluster.get::<Volume>("late").await.is_none(), "nothing is stored");
    let plan = PlanVolumeRequest {
        volume: Some(copy("late")),
    };
    require_lost(services.plan_volume(Request::new(plan)).await, "a plan");
    let blocks = StreamSnapshotBlocksRequest {
        name: "s".to_owned(),
        ..StreamSnapshotBlocksRequest::default()
    };
    require_lost(
        services.stream_snapshot_blocks(Request::new(blocks)).await,
        "its blocks",
    );
    let back = RollBackVolumeRequest {
        name: "v".to_owned(),
        snapshot: "s".to_owned(),
        request_uid: uid::<Volume>("any"),
        wait_us: None,
    };
    require_lost(
        services.roll_back_volume(Request::new(back)).await,
        "a way back to it",
    );

    // Whoever did not hear that it was made asks again, and it is there.
    let early = services.create_volume(made(copy("early"))).await;
    let early = early.expect("it was made before").into_inner();
    assert_eq!(early.status.unwrap_or_default().state(), VolumeState::Healthy);
}

#[tokio::test]
async fn a_copy_that_waits_for_what_is_lost_fails_and_says_so() {
    let mut cluster = cluster().await;
    tell_only(&cluster, &[]);
    put(&cluster.store, &copy("copy")).await;
    cluster.ticks(5).await;
    assert_eq!(status(&cluster, "copy").await.epoch, 0);
    lose(&mut cluster, "v", |name| name == "s").await;
    tell_only(&cluster, &["n0-0", "n0-1", "n0-2", "n0-3"]);
    cluster.settle().await;
    let failed = status(&cluster, "copy").await;
    assert_eq!(failed.state(), VolumeState::Failed);
    assert!(
        failed.message.contains("snapshot s, is lost"),
        "{}",
        failed.message
    );
    assert!(failed.replicas.is_empty(), "its places are free again");
    let events = events_of(&cluster, "volume/copy").await.into_iter();
    let told: Vec<Event> = events
        .filter(|event| event.message.contains("will never be made"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].severity(), Severity::Error);
    assert!(told[0].message.contains("is lost"), "{told:?}");
    // Who asks for it again is told so at once, whatever they would wait.
    let mut again = copy("copy");
    again.metadata = Some(Metadata {
        name: "copy".to_owned(),
        ..Metadata::default()
    });
    let services = services(&cluster);
    let found = services.create_volume(create(again)).await.expect("it is stored");
    let found = found.into_inner().status.unwrap_or_default();
    assert_eq!(found.state(), VolumeState::Failed);

    // Another snapshot of that name would be taken for its source.
    let one = || Request::new(DeleteSnapshotRequest { name: "s".to_owned() });
    let refused = services.delete_snapshot(one()).await.expect_err("it is named");
    assert!(
        refused.message().contains("volume copy was to be made of it"),
        "{refused}"
    );
    let delete = DeleteVolumeRequest {
        name: "copy".to_owned(),
    };
    services
        .delete_volume(Request::new(delete))
        .await
        .expect("nothing needs it");
    cluster.settle().await;
    assert!(cluster.get::<Volume>("copy").await.is_none());
    services.delete_snapshot(one()).await.expect("nobody needs it");
    cluster.settle().await;
    assert!(cluster.get::<Snapshot>("s").await.is_none());
    cluster.check_settled();
}

#[tokio::test]
async fn a_copy_of_which_a_replica_was_made_goes_on_with_that() {
    let mut cluster = cluster().await;
    let origin = status(&cluster, "v").await;
    tell_only(&cluster, &[origin.replicas[1].node.as_str()]);
    put(&cluster.store, &copy("copy")).await;
    cluster.ticks(10).await;
    assert_eq!(status(&cluster, "copy").await.state(), VolumeState::Creating);
    lose(&mut cluster, "v", |name| name == "s").await;
    tell_only(&cluster, &["n0-0", "n0-1", "n0-2", "n0-3"]);
    cluster.settle().await;
    let made = status(&cluster, "copy").await;
    assert_eq!(made.state(), VolumeState::Healthy, "{}", made.message);
    assert_eq!(made.replicas.len(), 3);
    assert!(
        made.replicas
            .iter()
            .any(|replica| replica.node == origin.replicas[1].node),
        "the one that was made is still there"
    );
    cluster.check_settled();
}

/// The names of the snapshots of a volume that are there, oldest first, with whether they are lost.
fn snapshots_of(cluster: &Cluster, volume: &str) -> Vec<(String, bool)> {
    let all = cluster.world().snapshots.values();
    let own = all.filter(|snapshot| snapshot.spec.as_ref().is_some_and(|spec| spec.volume == volume));
    let by_time: BTreeMap<(u64, &str), &Snapshot> = own
        .map(|snapshot| ((snapshot.meta().created_unix_us, snapshot.name()), snapshot))
        .collect();
    let told = by_time.into_values();
    told.map(|snapshot| (snapshot.name().to_owned(), is(snapshot, SnapshotState::Lost)))
        .collect()
}

fn lost_of(cluster: &Cluster, volume: &str) -> Vec<bool> {
    let own = snapshots_of(cluster, volume).into_iter();
    own.map(|(_, is_lost)| is_lost).collect()
}

fn hourly(cluster: &Cluster, kept_max: u32) -> Group {
    let schedule = SnapshotSchedule {
        interval_us: 60 * SECOND_US,
        kept_max,
    };
    let mut hourly = named(
        Group {
            spec: Some(GroupSpec {
                schedule: Some(schedule),
            }),
            ..Group::default()
        },
        "hourly",
    );
    hourly.meta_mut().created_unix_us = cluster.world().now_unix_us;
    hourly
}

#[tokio::test]
async fn what_is_lost_does_not_fill_what_a_schedule_keeps() {
    let mut cluster = Cluster::new(&layout(1, 4), Limits::default()).await;
    put(&cluster.store, &hourly(&cluster, 3)).await;
    for name in ["a", "b"] {
        let mut member = volume(name, 2);
        member.spec.as_mut().expect("it has one").group = "hourly".to_owned();
        put(&cluster.store, &member).await;
    }
    while lost_of(&cluster, "b") != [false; 3] {
        cluster.tick().await;
    }
    let first = snapshots_of(&cluster, "a")[0].0.clone();
    lose(&mut cluster, "a", |name| {
        name.starts_with("a.") && name != first.as_str()
    })
    .await;
    assert_eq!(lost_of(&cluster, "a"), [false, true, true]);
    // The next two: what is lost leaves room for them, beside the first one.
    for count in [4, 5] {
        while lost_of(&cluster, "a").len() < count {
            cluster.tick().await;
        }
        cluster.ticks(5).await;
        let mut expected = vec![false, true, true];
        expected.resize(count, false);
        assert_eq!(lost_of(&cluster, "a"), expected);
        assert_eq!(lost_of(&cluster, "b"), vec![false; count]);
        assert_eq!(snapshots_of(&cluster, "a")[0].0, first);
    }
    // There are three whole ones by now: what is older goes, and what was lost among it.
    while lost_of(&cluster, "a").contains(&true) {
        cluster.tick().await;
    }
    cluster.ticks(5).await;
    for volume in ["a", "b"] {
        assert_eq!(lost_of(&cluster, volume), [false; 3]);
    }
}

/// As schedules took them one by one.
#[tokio::test]
async fn those_that_were_taken_alone_are_counted_so_too() {
    let mut cluster = Cluster::new(&layout(1, 4), Limits::default()).await;
    let mut idle = hourly(&cluster, 1);
    let spec = idle.spec.as_mut().expect("it has one");
    spec.schedule.as_mut().expect("it has one").interval_us = 1_000_000 * SECOND_US;
    put(&cluster.store, &idle).await;
    let mut member = volume("v", 2);
    member.spec.as_mut().expect("it has one").group = "hourly".to_owned();
    put(&cluster.store, &member).await;
    cluster.settle().await;
    let take = async |cluster: &mut Cluster, name: &str, at: u64| {
        let mut taken = snapshot(name, &volume("v", 2));
        let labels = &mut taken.meta_mut().labels;
        labels.insert(SCHEDULE_LABEL.to_owned(), "hourly".to_owned());
        taken.meta_mut().created_unix_us = at;
        put(&cluster.store, &taken).await;
        while !cluster
            .world()
            .snapshots
            .get(name)
            .is_some_and(|taken| is(taken, SnapshotState::Ready))
        {
            cluster.tick().await;
        }
        cluster.settle().await;
    };
    // The one that is kept is the older one, as the newer one is lost.
    take(&mut cluster, "x1", 1).await;
    cluster
        .update::<Group>("hourly", |group| {
            let spec = group.spec.as_mut().expect("it has one");
            spec.schedule.as_mut().expect("it has one").kept_max = 2;
        })
        .await;
    take(&mut cluster, "x2", 2).await;
    lose(&mut cluster, "v", |name| name == "x2").await;
    cluster
        .update::<Group>("hourly", |group| {
            let spec = group.spec.as_mut().expect("it has one");
            spec.schedule.as_mut().expect("it has one").kept_max = 1;
        })
        .await;
    cluster.settle().await;
    assert_eq!(
        snapshots_of(&cluster, "v"),
        [("x1".to_owned(), false), ("x2".to_owned(), true)]
    );
    take(&mut cluster, "x3", 3).await;
    assert_eq!(snapshots_of(&cluster, "v"), [("x3".to_owned(), false)]);
}
