//! Nodes and pools that are emptied: what is said when that cannot be done, and that nothing is wrong when it
//! can.

use pollux_api::control::v1::{Event, Node, NodeState, Pool, Severity, Volume};
use pollux_control::model::Record;
use pollux_control::plan::Limits;
use pollux_control::store::Store;

use crate::common::{Cluster, layout, put, volume};

async fn events(cluster: &Cluster) -> Vec<Event> {
    let listed = cluster.store.list_all("/event").await.expect("it answers");
    let events = listed.entries.iter();
    events
        .map(|entry| Event::read(entry).expect("it can be read"))
        .collect()
}

async fn drain_node(cluster: &Cluster, name: &str, drained: bool) {
    let change = |node: &mut Node| node.spec.get_or_insert_default().drained = drained;
    cluster.update(name, change).await;
}

/// What a node tells.
async fn message(cluster: &Cluster, node: &str) -> String {
    let node = cluster.get::<Node>(node).await.expect("it is there");
    node.status.expect("it was heard from").message
}

/// Three replicas on three nodes have nowhere to go.
#[tokio::test]
async fn what_cannot_leave_a_node_is_told_with_the_reason() {
    let mut cluster = Cluster::new(&layout(1, 3), Limits::default()).await;
    cluster.settle().await;
    for number in 0..5 {
        put(&cluster.store, &volume(&format!("v{number}"), 3)).await;
    }
    cluster.settle().await;
    drain_node(&cluster, "n0-0", true).await;
    cluster.settle().await;
    let told = message(&cluster, "n0-0").await;
    assert!(
        told.contains("volume v0 stays: no replica has a place:"),
        "{told}"
    );
    assert!(told.contains("holds a replica of the volume already"), "{told}");
    assert!(told.ends_with("and 2 more"), "{told}");
    assert_eq!(message(&cluster, "n0-1").await, "");
    let is_told = |event: &Event| {
        let is_it = event.subject == "node/n0-0" && event.message.starts_with("cannot be emptied: volume v0");
        is_it && event.severity() == Severity::Warning
    };
    assert_eq!(
        events(&cluster)
            .await
            .iter()
            .filter(|event| is_told(event))
            .count(),
        1
    );

    drain_node(&cluster, "n0-0", false).await;
    cluster.settle().await;
    assert_eq!(message(&cluster, "n0-0").await, "");

    let change = |pool: &mut Pool| pool.spec.get_or_insert_default().drained = true;
    cluster.update("n0-1.p", change).await;
    cluster.settle().await;
    let pool = cluster.get::<Pool>("n0-1.p").await.expect("it is there");
    let told = pool.status.expect("it is made").message;
    assert!(
        told.contains("volume v0 stays: no replica has a place:"),
        "{told}"
    );
    let is_told = |event: &Event| {
        event.subject == "pool/n0-1.p" && event.message.starts_with("cannot be emptied: volume v0")
    };
    assert!(events(&cluster).await.iter().any(is_told));
}

/// A target that moves as was planned is away for a moment, and nobody is told that something is wrong.
#[tokio::test]
async fn a_target_that_is_to_move_raises_no_alarm() {
    let mut cluster = Cluster::new(&layout(1, 3), Limits::default()).await;
    cluster.settle().await;
    for number in 0..6 {
        put(&cluster.store, &volume(&format!("v{number}"), 2)).await;
    }
    cluster.settle().await;
    let target = |volume: &Volume| volume.status.clone().unwrap_or_default().target_node;
    let moved: Vec<String> = cluster
        .world()
        .volumes
        .values()
        .filter(|volume| target(volume) == "n0-0")
        .map(|volume| volume.name().to_owned())
        .collect();
    assert!(!moved.is_empty());
    let known = events(&cluster).await.len();
    drain_node(&cluster, "n0-0", true).await;
    cluster.settle().await;
    for name in &moved {
        let volume = &cluster.world().volumes[name];
        assert_ne!(target(volume), "n0-0", "{name}");
        let status = volume.status.clone().unwrap_or_default();
        assert_eq!(status.moving_since_unix_us, None, "it has arrived");
    }
    let told = events(&cluster).await.split_off(known);
    let alarms: Vec<_> = told
        .iter()
        .filter(|event| event.severity() == Severity::Error || event.message.contains("instead of"))
        .filter(|event| event.severity() != Severity::Info)
        .collect();
    assert!(alarms.is_empty(), "{alarms:#?}");
}

/// One that does not arrive is missed.
#[tokio::test]
async fn a_target_that_does_not_arrive_raises_an_alarm() {
    let mut cluster = Cluster::new(&layout(1, 2), Limits::default()).await;
    cluster.settle().await;
    put(&cluster.store, &volume("v", 2)).await;
    cluster.settle().await;
    let before = cluster.world().volumes["v"].status.clone().expect("it has one");
    drain_node(&cluster, &before.target_node, true).await;
    // It is asked to serve, and dies before it does.
    cluster.controller.pull_reports().await;
    cluster.controller.pass().await.expect("the store answers");
    cluster.tick().await;
    let other = cluster.world().volumes["v"]
        .status
        .clone()
        .expect("it has one")
        .target_node;
    cluster.fleet.set_up(&other, false);
    cluster.fleet.set_up(&before.target_node, false);
    cluster.ticks(20).await;
    let is_alarm = |event: &Event| event.severity() == Severity::Error && event.subject == "volume/v";
    assert!(events(&cluster).await.iter().any(is_alarm));
}

/// A node that was never heard from says why.
#[tokio::test]
async fn why_a_node_is_not_heard_from_is_told() {
    let mut cluster = Cluster::new(&layout(1, 2), Limits::default()).await;
    cluster.settle().await;
    assert_eq!(message(&cluster, "n0-0").await, "");
    cluster.fleet.set_up("n0-0", false);
    cluster.ticks(20).await;
    let node = cluster.get::<Node>("n0-0").await.expect("it is there");
    let status = node.status.expect("it was heard from");
    assert_eq!(status.state(), NodeState::Unreachable);
    assert!(status.message.contains("node n0-0"), "{}", status.message);
    cluster.fleet.set_up("n0-0", true);
    cluster.ticks(3).await;
    assert_eq!(message(&cluster, "n0-0").await, "");
}
