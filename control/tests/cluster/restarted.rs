//! A control plane that has just begun to lead has heard nothing of any engine yet, and decides nothing by
//! that.

use std::collections::BTreeMap;

use crate::common::{Cluster, SECOND_US, layout, put, volume};
use pollux_api::control::v1::{Event, Pool, Volume, VolumeState};
use pollux_control::engines::{EngineAddress, EngineClient};
use pollux_control::plan::{Limits, Step, plan};
use pollux_control::store::Store;

/// Enough that one pass could not look at all of them by chance in the right order.
const VOLUMES: usize = 40;

/// Volumes of one and of three replicas, all healthy, and a control plane that has heard nothing.
async fn restarted() -> Cluster {
    let mut cluster = Cluster::new(&layout(3, 2), Limits::default()).await;
    for number in 0..VOLUMES {
        let replicas = if number % 2 == 0 { 1 } else { 3 };
        put(&cluster.store, &volume(&format!("v{number}"), replicas)).await;
    }
    cluster.settle().await;
    cluster.check_settled();
    cluster.restart().await;
    cluster
}

/// An engine is heard.
async fn hear(cluster: &Cluster, node: &str, at_unix_us: u64) {
    let engine = EngineAddress {
        node: node.to_owned(),
        address: String::new(),
    };
    let report = cluster.fleet.report(&engine).await.expect("it answers");
    cluster.observations.put(report, at_unix_us);
}

/// Who serves what.
fn targets(cluster: &Cluster) -> BTreeMap<String, String> {
    let volumes = cluster.world().volumes.iter();
    volumes
        .map(|(name, volume)| {
            let status = volume.status.clone().expect("it has one");
            (name.clone(), status.target_node)
        })
        .collect()
}

async fn events(cluster: &Cluster) -> Vec<Event> {
    let listed = cluster.store.list_all("/event").await.expect("it answers");
    let events = listed.entries.iter();
    events
        .map(|entry| pollux_control::model::Record::read(entry).expect("it can be read"))
        .collect()
}

#[tokio::test]
async fn nothing_is_decided_by_what_was_not_heard_yet() {
    let mut cluster = restarted().await;
    let (revision, known) = (cluster.world().revision, events(&cluster).await.len());
    // Nobody is heard, then one engine after the other.
    assert_eq!(cluster.controller.pass().await, Ok(0));
    let nodes: Vec<String> = cluster.world().nodes.keys().cloned().collect();
    for node in &nodes {
        cluster.clock.advance(SECOND_US / 10);
        hear(&cluster, node, cluster.world().now_unix_us).await;
        assert_eq!(cluster.controller.pass().await, Ok(0), "once {node} is heard");
    }
    assert_eq!(cluster.world().revision, revision, "something was stored");
    assert_eq!(events(&cluster).await.len(), known, "somebody was told something");
    cluster.check_settled();
}

#[tokio::test]
async fn what_was_heard_before_this_instance_led_does_not_count() {
    let mut cluster = restarted().await;
    // It followed for a while, and an engine asked it once.
    let nodes: Vec<String> = cluster.world().nodes.keys().cloned().collect();
    for node in &nodes {
        hear(&cluster, node, cluster.world().now_unix_us - 60 * SECOND_US).await;
    }
    assert_eq!(cluster.controller.pass().await, Ok(0));
    cluster.tick().await;
    cluster.check_settled();
}

#[tokio::test]
async fn an_engine_that_ended_with_the_control_plane_is_given_up_in_time() {
    let mut cluster = restarted().await;
    let before = targets(&cluster);
    let lost = before["v1"].clone();
    cluster.fleet.set_up(&lost, false);
    // As long as it could still be heard, nothing moves.
    for _ in 0..9 {
        cluster.tick().await;
    }
    assert_eq!(targets(&cluster), before);
    cluster.ticks(20).await;
    for (name, volume) in &cluster.world().volumes {
        let status = volume.status.clone().expect("it has one");
        let is_alone = status.replicas.len() == 1;
        match (before[name] == lost, is_alone) {
            (true, true) => assert_eq!(status.state(), VolumeState::Unavailable, "{name}"),
            (true, false) => assert_ne!(status.target_node, lost, "{name} stays where nobody serves it"),
            (false, _) => assert_eq!(status.target_node, before[name], "{name} moves for nothing"),
        }
    }
}

#[tokio::test]
async fn volumes_are_made_and_deleted_while_an_engine_is_awaited() {
    let mut cluster = restarted().await;
    let silent = targets(&cluster)["v0"].clone();
    let nodes: Vec<String> = cluster.world().nodes.keys().cloned().collect();
    put(&cluster.store, &volume("new", 1)).await;
    let of_others = |volume: &Volume| {
        let status = volume.status.as_ref();
        status.is_some_and(|status| {
            status.replicas.len() == 1 && status.replicas.iter().all(|replica| replica.node != silent)
        })
    };
    let deleted = cluster.world().volumes.values().find(|volume| of_others(volume));
    let deleted = deleted.map(|volume| volume.metadata.clone().expect("it has some").name);
    let deleted = deleted.expect("one of the volumes is elsewhere");
    cluster
        .update::<Volume>(&deleted, |volume| {
            volume.metadata.as_mut().expect("it has some").deleted_unix_us = Some(1);
        })
        .await;
    for _ in 0..5 {
        cluster.clock.advance(SECOND_US / 10);
        cluster.fleet.tick(&cluster.store).await;
        for node in nodes.iter().filter(|node| **node != silent) {
            hear(&cluster, node, cluster.world().now_unix_us).await;
        }
        cluster.controller.pass().await.expect("the store answers");
    }
    assert!(!cluster.world().volumes.contains_key(&deleted));
    let steps = plan(cluster.world(), &cluster.limits);
    let pools = cluster.world().pools.values();
    let away = pools.filter(|pool: &&Pool| {
        let status = pool.status.clone().unwrap_or_default();
        status.state() != pollux_api::control::v1::PoolState::Online
    });
    assert_eq!(away.count(), 0, "a pool counts as away");
    assert!(
        !steps.iter().any(|step| matches!(step, Step::Commit(_))),
        "there is something left to decide: {steps:?}"
    );
}

/// Who looks after the machine of the control plane sets its clock right, by an hour.
#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nobody_from_being_missed() {
    let mut cluster = restarted().await;
    cluster.clock.advance(7_200 * SECOND_US);
    cluster.ticks(20).await;
    let (before, known) = (targets(&cluster), events(&cluster).await.len());
    let told = cluster.world().now_unix_us;
    cluster.clock.set_back(3_600 * SECOND_US);
    cluster.ticks(20).await;
    cluster.check_settled();
    assert_eq!(targets(&cluster), before);
    assert_eq!(
        events(&cluster).await.len(),
        known,
        "all goes on, and nobody was told anything"
    );
    assert!(cluster.world().now_unix_us > told, "time goes on");
    let lost = before["v1"].clone();
    cluster.fleet.set_up(&lost, false);
    cluster.ticks(30).await;
    for (name, volume) in &cluster.world().volumes {
        let status = volume.status.clone().expect("it has one");
        if before[name] == lost && status.replicas.len() > 1 {
            assert_ne!(status.target_node, lost, "{name} stays where nobody serves it");
        }
    }
}
