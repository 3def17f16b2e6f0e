//! Volumes that go back to snapshots: once for a request, whoever fails meanwhile, and never under a host.

use pollux_api::control::v1::group_snapshots_server::GroupSnapshots;
use pollux_api::control::v1::snapshots_server::Snapshots;
use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::*;
use pollux_control::model::{Kind, Record};
use pollux_control::plan::Limits;
use pollux_control::registry::{RegistryError, swap_membership};
use pollux_control::server::Services;
use pollux_control::store::Store;
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::common::fleet::ROLL_BACK_TICKS;
use crate::common::{Cluster, layout, named, put, services, snapshot, volume};

const HOST: &str = "nqn.2026-11.x:host";

fn request_uid(number: u128) -> String {
    Uuid::from_u128(0x7000 + number).to_string()
}

fn request(snapshot: &str, number: u128) -> RollBackVolumeRequest {
    RollBackVolumeRequest {
        name: "v".to_owned(),
        snapshot: snapshot.to_owned(),
        request_uid: request_uid(number),
        wait_us: None,
    }
}

async fn ask(cluster: &Cluster, request: RollBackVolumeRequest) -> Result<VolumeRollBack, Status> {
    let asked = services(cluster).roll_back_volume(Request::new(request)).await?;
    Ok(asked.into_inner().roll_back.expect("it is told"))
}

async fn state(cluster: &Cluster, number: u128) -> RollBackState {
    let status = now(cluster).await.status.expect("it has one");
    let mut known = status.roll_backs.iter();
    known
        .find(|known| known.request_uid == request_uid(number))
        .map_or(RollBackState::Unspecified, VolumeRollBack::state)
}

fn times(cluster: &Cluster, number: u128) -> u32 {
    let engines = cluster.fleet.lock();
    engines
        .rolled_back
        .get(&request_uid(number))
        .copied()
        .unwrap_or(0)
}

async fn now(cluster: &Cluster) -> Volume {
    cluster.get::<Volume>("v").await.expect("it is there")
}

async fn events(cluster: &Cluster) -> Vec<Event> {
    let listed = cluster.store.list_all(&Kind::Event.prefix()).await;
    let listed = listed.expect("the store answers").entries;
    let read = listed
        .iter()
        .map(|entry| Event::read(entry).expect("it can be read"));
    read.collect()
}

/// How far a snapshot is, if it is there.
async fn snapshot_state(cluster: &Cluster, name: &str) -> Option<SnapshotState> {
    let found = cluster.get::<Snapshot>(name).await?;
    Some(found.status.expect("it has one").state())
}

/// A cluster with volumes `v` and `other`, and a snapshot of each, `s` and `of-other`.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&layout(1, 4), Limits::default()).await;
    for (name, taken) in [("v", "s"), ("other", "of-other")] {
        put(&cluster.store, &volume(name, 3)).await;
        cluster.settle().await;
        put(&cluster.store, &snapshot(taken, &volume(name, 3))).await;
        cluster.settle().await;
    }
    cluster
}

async fn publish(services: &Services) -> Result<(), Status> {
    let host = Some(HostAccess {
        host_nqn: HOST.to_owned(),
        ..HostAccess::default()
    });
    let request = PublishVolumeRequest {
        name: "v".to_owned(),
        host,
        ..PublishVolumeRequest::default()
    };
    services.publish_volume(Request::new(request)).await.map(drop)
}

fn refused(answer: Result<impl Sized, Status>, code: Code, words: &str) {
    let status = answer.err().expect("it is refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{status}");
}

#[tokio::test]
async fn a_request_is_done_once() {
    let mut cluster = cluster().await;
    let first = ask(&cluster, request("s", 1)).await.expect("it can");
    assert_eq!(first.state(), RollBackState::Requested);
    let again = ask(&cluster, request("s", 1)).await.expect("it is known");
    assert_eq!(again, first);
    cluster.settle().await;
    assert_eq!(state(&cluster, 1).await, RollBackState::Done);
    cluster.check_settled();
    publish(&services(&cluster)).await.expect("it is over");
    cluster.settle().await;
    // Somebody who did not hear the answer asks again, while a host writes.
    let late = ask(&cluster, request("s", 1)).await.expect("it is known");
    assert_eq!(late.state(), RollBackState::Done);
    assert!(late.ended_unix_us.is_some());
    cluster.settle().await;
    assert_eq!(times(&cluster, 1), 1);
    let events = events(&cluster).await;
    for told in ["goes back to snapshot s", "is what it was in snapshot s"] {
        assert_eq!(
            events.iter().filter(|event| event.message == told).count(),
            1,
            "{told}"
        );
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let mut cluster = cluster().await;
    let mut none = request("s", 1);
    none.request_uid.clear();
    let mut missing = request("s", 1);
    missing.name = "x".to_owned();
    let mut long = request("s", 1);
    long.wait_us = Some(u64::MAX);
    for (wrong, code, words) in [
        (none, Code::InvalidArgument, "request_uid"),
        (missing, Code::NotFound, "no volume x"),
        (
            request("x", 1),
            Code::InvalidArgument,
            "snapshot x, which is not there",
        ),
        (request("", 1), Code::InvalidArgument, "snapshot"),
        (
            request("of-other", 1),
            Code::InvalidArgument,
            "one of volume other",
        ),
        (long, Code::InvalidArgument, "wait_us"),
    ] {
        refused(ask(&cluster, wrong).await, code, words);
    }
    // The same name for something else.
    put(&cluster.store, &snapshot("t", &volume("v", 3))).await;
    refused(
        ask(&cluster, request("t", 1)).await,
        Code::FailedPrecondition,
        "not taken yet",
    );
    cluster.settle().await;
    ask(&cluster, request("s", 1)).await.expect("it can");
    refused(
        ask(&cluster, request("t", 1)).await,
        Code::InvalidArgument,
        "request for snapshot s",
    );
    refused(
        ask(&cluster, request("t", 2)).await,
        Code::FailedPrecondition,
        "going back to snapshot s",
    );
    cluster.settle().await;
    refused(
        ask(&cluster, request("t", 1)).await,
        Code::InvalidArgument,
        "request for snapshot s",
    );
    publish(&services(&cluster)).await.expect("it is over");
    refused(
        ask(&cluster, request("t", 2)).await,
        Code::FailedPrecondition,
        "published to",
    );
    let one = DeleteSnapshotRequest { name: "t".to_owned() };
    services(&cluster)
        .delete_snapshot(Request::new(one))
        .await
        .expect("nobody needs it");
    let unpublish = UnpublishVolumeRequest {
        name: "v".to_owned(),
        ..UnpublishVolumeRequest::default()
    };
    services(&cluster)
        .unpublish_volume(Request::new(unpublish))
        .await
        .expect("it is");
    refused(
        ask(&cluster, request("t", 2)).await,
        Code::FailedPrecondition,
        "being deleted",
    );
    let young = named(
        Volume {
            spec: volume("v", 3).spec,
            ..Volume::default()
        },
        "young",
    );
    put(&cluster.store, &young).await;
    put(&cluster.store, &snapshot("of-young", &young)).await;
    let mut early = request("of-young", 3);
    early.name = "young".to_owned();
    refused(
        ask(&cluster, early).await,
        Code::FailedPrecondition,
        "still being made",
    );
}

#[tokio::test]
async fn nobody_uses_the_volume_meanwhile() {
    let mut cluster = cluster().await;
    ask(&cluster, request("s", 1)).await.expect("it can");
    let look = async |cluster: &Cluster| {
        let services = services(cluster);
        refused(
            publish(&services).await,
            Code::FailedPrecondition,
            "going back to snapshot s",
        );
        let new = CreateSnapshotRequest {
            snapshot: Some(Snapshot {
                status: None,
                ..snapshot("new", &volume("v", 3))
            }),
            wait_us: None,
        };
        let new = services.create_snapshot(Request::new(new)).await;
        refused(new, Code::FailedPrecondition, "going back to snapshot s");
        let together = GroupSnapshot {
            spec: Some(GroupSnapshotSpec {
                volumes: vec!["v".to_owned(), "other".to_owned()],
                ..GroupSnapshotSpec::default()
            }),
            ..GroupSnapshot::default()
        };
        let together = CreateGroupSnapshotRequest {
            group_snapshot: Some(named(together, "both")),
            wait_us: None,
        };
        let together = services.create_group_snapshot(Request::new(together)).await;
        refused(together, Code::FailedPrecondition, "going back to snapshot s");
        let one = DeleteSnapshotRequest { name: "s".to_owned() };
        let deleted = services.delete_snapshot(Request::new(one)).await;
        refused(deleted, Code::FailedPrecondition, "going back to it");
    };
    look(&cluster).await;
    while state(&cluster, 1).await != RollBackState::Running {
        cluster.tick().await;
    }
    look(&cluster).await;
    refused(
        ask(&cluster, request("s", 2)).await,
        Code::FailedPrecondition,
        "going back to snapshot s",
    );
    let message = now(&cluster).await.status.expect("it has one").message;
    assert!(message.contains("going back to snapshot s"), "{message}");
    cluster.settle().await;
    publish(&services(&cluster)).await.expect("it is over");
}

/// The engine that serves, one with a replica, and the control plane end at any moment: it is done all the
/// same, and counted once.
#[tokio::test]
async fn it_is_done_whoever_fails_meanwhile() {
    for ticks in 0..=ROLL_BACK_TICKS as usize + 3 {
        for fails in ["target", "replica", "control"] {
            let mut cluster = cluster().await;
            ask(&cluster, request("s", 1)).await.expect("it can");
            cluster.ticks(ticks).await;
            let status = now(&cluster).await.status.expect("it has one");
            let mut nodes = status.replicas.iter().map(|replica| replica.node.clone());
            let node = match fails {
                "target" => Some(status.target_node.clone()),
                "replica" => nodes.find(|node| *node != status.target_node),
                _ => None,
            };
            match &node {
                Some(node) => cluster.fleet.set_up(node, false),
                None => cluster.restart().await,
            }
            cluster.ticks(30).await;
            if let Some(node) = &node {
                cluster.fleet.set_up(node, true);
            }
            cluster.settle().await;
            cluster.check_settled();
            let state = state(&cluster, 1).await;
            assert_eq!(state, RollBackState::Done, "{fails} after {ticks}");
            assert_eq!(times(&cluster, 1), 1, "{fails} after {ticks}");
        }
    }
}

#[tokio::test]
async fn snapshots_that_were_asked_for_before_are_taken_before() {
    let mut cluster = cluster().await;
    put(&cluster.store, &snapshot("before", &volume("v", 3))).await;
    ask(&cluster, request("s", 1)).await.expect("it can");
    let mut order = Vec::new();
    for _ in 0..20 {
        cluster.tick().await;
        let taken = cluster.get::<Snapshot>("before").await.expect("it is there");
        let is_taken = taken
            .status
            .is_some_and(|status| status.state() == SnapshotState::Ready);
        order.push((is_taken, state(&cluster, 1).await));
    }
    assert!(order.contains(&(true, RollBackState::Done)), "{order:?}");
    let begun = |state| matches!(state, RollBackState::Running | RollBackState::Done);
    assert!(
        order.iter().all(|(is_taken, state)| *is_taken || !begun(*state)),
        "{order:?}"
    );
}

#[tokio::test]
async fn a_snapshot_that_is_lost_leaves_the_volume_as_it_was_or_closed() {
    let lose = |volume: &mut Volume| {
        let status = volume.status.as_mut().expect("it has one");
        let t = crate::common::uid::<Snapshot>("t");
        status.snapshots.retain(|recorded| recorded.uid == t);
        status.version += 1;
    };
    let mut cluster = cluster().await;
    put(&cluster.store, &snapshot("t", &volume("v", 3))).await;
    cluster.settle().await;
    ask(&cluster, request("s", 1)).await.expect("it can");
    cluster.update::<Volume>("v", lose).await;
    cluster.ticks(3).await;
    // It had not begun.
    assert_eq!(state(&cluster, 1).await, RollBackState::Failed);
    publish(&services(&cluster))
        .await
        .expect("nothing of it was changed");
    cluster.settle().await;
    let status = now(&cluster).await.status.expect("it has one");
    assert_eq!(status.roll_back, None);
    assert_eq!(
        status.snapshots.len(),
        1,
        "what is lost is not taken anew under its name"
    );
    assert_eq!(snapshot_state(&cluster, "s").await, Some(SnapshotState::Lost));
    assert_eq!(snapshot_state(&cluster, "t").await, Some(SnapshotState::Ready));
    let told = events(&cluster).await.into_iter();
    let lost: Vec<Event> = told
        .filter(|event| event.message.starts_with("is lost"))
        .collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!(lost[0].severity(), Severity::Error);
    assert!(
        lost[0].message.contains("no replica of volume/v has it"),
        "{lost:?}"
    );
    // Nothing can be made of it, and it can be deleted.
    let mut clone = volume("clone", 1);
    clone.spec.as_mut().expect("it has one").source_snapshot = "s".to_owned();
    put(&cluster.store, &clone).await;
    cluster.settle().await;
    let clone = cluster.get::<Volume>("clone").await.expect("it is there");
    let status = clone.status.expect("it has one");
    assert!(status.message.contains("is lost"), "{}", status.message);
    cluster
        .update::<Volume>("clone", |clone| clone.meta_mut().deleted_unix_us = Some(1))
        .await;
    cluster.settle().await;
    let one = DeleteSnapshotRequest { name: "s".to_owned() };
    services(&cluster)
        .delete_snapshot(Request::new(one))
        .await
        .expect("nobody needs it");
    cluster.settle().await;
    assert_eq!(snapshot_state(&cluster, "s").await, None);

    let mut cluster = self::cluster().await;
    put(&cluster.store, &snapshot("t", &volume("v", 3))).await;
    cluster.settle().await;
    ask(&cluster, request("s", 1)).await.expect("it can");
    while state(&cluster, 1).await != RollBackState::Running {
        cluster.tick().await;
    }
    cluster.update::<Volume>("v", lose).await;
    cluster.ticks(20).await;
    assert_eq!(state(&cluster, 1).await, RollBackState::Running);
    refused(
        publish(&services(&cluster)).await,
        Code::FailedPrecondition,
        "going back",
    );
    // Another one is the way out.
    ask(&cluster, request("t", 2)).await.expect("it can");
    assert_eq!(state(&cluster, 1).await, RollBackState::Failed);
    refused(
        publish(&services(&cluster)).await,
        Code::FailedPrecondition,
        "going back to snapshot t",
    );
    cluster.ticks(20).await;
    assert_eq!(state(&cluster, 2).await, RollBackState::Done);
    assert_eq!((times(&cluster, 1), times(&cluster, 2)), (0, 1));
    publish(&services(&cluster)).await.expect("it is over");
}

#[tokio::test]
async fn a_volume_that_is_gone_meanwhile_is_told() {
    let mut cluster = cluster().await;
    ask(&cluster, request("s", 1)).await.expect("it can");
    cluster.settle().await;
    let one = DeleteSnapshotRequest { name: "s".to_owned() };
    services(&cluster)
        .delete_snapshot(Request::new(one))
        .await
        .expect("it is over");
    cluster.settle().await;
    let delete = DeleteVolumeRequest { name: "v".to_owned() };
    services(&cluster)
        .delete_volume(Request::new(delete))
        .await
        .expect("it has no snapshots");
    refused(
        ask(&cluster, request("s", 2)).await,
        Code::FailedPrecondition,
        "being deleted",
    );
    cluster.settle().await;
    refused(
        ask(&cluster, request("s", 1)).await,
        Code::NotFound,
        "no volume v",
    );
}

#[tokio::test]
async fn only_so_many_requests_are_remembered() {
    let mut cluster = cluster().await;
    for number in 0..18 {
        ask(&cluster, request("s", number)).await.expect("it can");
        cluster.settle().await;
    }
    let status = now(&cluster).await.status.expect("it has one");
    assert_eq!(status.roll_backs.len(), 16);
    assert_eq!(status.roll_backs[15].request_uid, request_uid(17));
    assert_eq!((0..18).map(|number| times(&cluster, number)).sum::<u32>(), 18);
}

/// Targets say that a roll-back is over, and nothing else of it.
#[tokio::test]
async fn targets_neither_begin_nor_forget_one() {
    let mut cluster = cluster().await;
    let volume = now(&cluster).await;
    let status = volume.status.clone().expect("it has one");
    let uid = volume.meta().uid.clone();
    let record = pollux_control::model::membership(&uid, &status);
    let begun = RecordedRollBack {
        request_uid: request_uid(1),
        snapshot_uid: crate::common::uid::<Snapshot>("s"),
        done: false,
    };
    let swap = async |cluster: &Cluster, roll_back: Option<RecordedRollBack>| {
        let status = now(cluster).await.status.expect("it has one");
        let record = pollux_control::model::membership(&uid, &status);
        let next = Membership {
            version: record.version + 1,
            roll_back,
            ..record
        };
        let request = SwapMembershipRequest {
            volume: "v".to_owned(),
            node: status.target_node,
            next: Some(next),
        };
        swap_membership(&cluster.store, &request, 1).await
    };
    assert_eq!(record.roll_back, None);
    let refused = swap(&cluster, Some(begun.clone())).await;
    assert!(
        matches!(refused, Err(RegistryError::Illegal { .. })),
        "{refused:?}"
    );
    ask(&cluster, request("s", 1)).await.expect("it can");
    while state(&cluster, 1).await != RollBackState::Running {
        cluster.tick().await;
    }
    // As an engine would that knows nothing of it.
    let refused = swap(&cluster, None).await;
    assert!(
        matches!(refused, Err(RegistryError::Illegal { .. })),
        "{refused:?}"
    );
    let done = RecordedRollBack { done: true, ..begun };
    let swapped = swap(&cluster, Some(done)).await.expect("it may");
    assert!(swapped.swapped);
}
