//! Blocks that no replica in sync can read: people are told of them until hosts have written them.

use pollux_api::control::v1::*;
use pollux_control::model::{Kind, Record};
use pollux_control::plan::Limits;
use pollux_control::store::Store;

use crate::common::{Cluster, layout, put, uid, volume};

async fn status(cluster: &Cluster) -> VolumeStatus {
    let volume = cluster.get::<Volume>("v").await.expect("it is there");
    volume.status.expect("it has one")
}

/// How severe and often it was told that blocks cannot be read, and that they can.
async fn told(cluster: &Cluster) -> (Vec<Severity>, usize) {
    let listed = cluster.store.list_all(&Kind::Event.prefix()).await;
    let listed = listed.expect("the store answers").entries;
    let all: Vec<Event> = listed
        .iter()
        .map(|entry| Event::read(entry).expect("it can be read"))
        .filter(|event| event.subject == "volume/v")
        .collect();
    // What changes of its state tell of it follows their own words.
    let begins = |words: &'static str| all.iter().filter(move |event| event.message.starts_with(words));
    let bad = begins("1 block can be read on no replica in sync");
    (
        bad.map(Event::severity).collect(),
        begins("all of its blocks can be read again").count(),
    )
}

/// A volume of three replicas, of which one is out of sync, and its target.
async fn cluster() -> (Cluster, String) {
    let mut cluster = Cluster::new(&layout(1, 3), Limits::default()).await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    let begun = status(&cluster).await;
    let mut others = begun.replicas.iter();
    let other = others.find(|replica| replica.node != begun.target_node);
    let other = other.expect("there are three").node.clone();
    cluster
        .fleet
        .set_unreadable(&begun.target_node, &uid::<Volume>("v"), 1);
    cluster.fleet.set_up(&other, false);
    while out_of_sync(&status(&cluster).await) == 0 {
        cluster.tick().await;
    }
    cluster.fleet.set_up(&other, true);
    cluster.settle().await;
    (cluster, begun.target_node)
}

fn out_of_sync(status: &VolumeStatus) -> usize {
    let out = |replica: &&Replica| replica.state() != ReplicaState::InSync;
    status.replicas.iter().filter(out).count()
}

#[tokio::test]
async fn people_are_told_until_hosts_have_written_them() {
    let (mut cluster, target) = cluster().await;
    let v = uid::<Volume>("v");
    let now = status(&cluster).await;
    let expected = |blocks| UnreadableBlocks {
        blocks,
        first_offset_bytes: 1 << 20,
    };
    assert_eq!((now.state(), out_of_sync(&now)), (VolumeState::Degraded, 1));
    assert_eq!(now.unreadable, Some(expected(1)));
    assert!(
        now.message
            .starts_with("1 block can be read on no replica in sync, the first one at byte 1048576:"),
        "{}",
        now.message
    );
    assert_eq!(told(&cluster).await, (vec![Severity::Error], 0));

    // More of them are the same trouble.
    cluster.fleet.set_unreadable(&target, &v, 3);
    cluster.settle().await;
    let now = status(&cluster).await;
    assert_eq!(now.unreadable, Some(expected(3)));
    assert!(now.message.starts_with("3 blocks or more"), "{}", now.message);
    assert_eq!(told(&cluster).await, (vec![Severity::Error], 0));

    cluster.fleet.set_unreadable(&target, &v, 0);
    cluster.settle().await;
    let now = status(&cluster).await;
    assert_eq!((now.state(), now.unreadable), (VolumeState::Healthy, None));
    assert_eq!(now.message, "");
    assert_eq!(told(&cluster).await, (vec![Severity::Error], 1));
    cluster.check_settled();
}

/// A target that has just begun does not know yet what the one before found.
#[tokio::test]
async fn what_a_new_target_does_not_know_yet_is_not_forgotten() {
    let (mut cluster, target) = cluster().await;
    let v = uid::<Volume>("v");
    let found = status(&cluster).await.unreadable;
    assert!(found.is_some());
    cluster.fleet.set_up(&target, false);
    let mut seen = Vec::new();
    while status(&cluster).await.target_node == target {
        cluster.tick().await;
        seen.push(status(&cluster).await.unreadable);
    }
    assert!(seen.iter().all(|unreadable| *unreadable == found), "{seen:?}");
    cluster.fleet.set_up(&target, true);
    cluster.settle().await;
    assert_eq!(status(&cluster).await.unreadable, found);
    assert_eq!(told(&cluster).await, (vec![Severity::Error], 0));
    let next = status(&cluster).await.target_node;
    cluster.fleet.set_unreadable(&next, &v, 0);
    cluster.settle().await;
    assert_eq!(status(&cluster).await.unreadable, None);
    assert_eq!(told(&cluster).await, (vec![Severity::Error], 1));
}
