//! What the control plane does about what is asked for and what happens, with simulated engines.

use std::collections::BTreeSet;

use crate::common::fleet::TIB;
use crate::common::{Cluster, GIB, SECOND_US, layout, named, put, snapshot, volume};
use pollux_api::control::v1::{
    Domain, Event, Group, GroupSpec, HostAccess, Node, NodeState, PlacementPolicy, Pool, PoolHealth,
    PoolSpec, PoolState, Qos, QosRate, Snapshot, SnapshotSchedule, SnapshotState, SpreadRule, TargetConfig,
    Template, TemplateSpec, Volume, VolumePolicy, VolumeState,
};
use pollux_api::qos::{Counted, Direction, Limit};
use pollux_control::model::{Kind, Record};
use pollux_control::plan::Limits;
use pollux_control::store::Store;

fn limits() -> Limits {
    Limits {
        replace_after_us: 60 * SECOND_US,
        ..Limits::default()
    }
}

async fn cluster() -> Cluster {
    Cluster::new(&layout(3, 3), limits()).await
}

async fn delete<R: Record>(cluster: &Cluster, name: &str) {
    cluster
        .update::<R>(name, |record| record.meta_mut().deleted_unix_us = Some(1))
        .await;
}

fn nodes_of(volume: &Volume) -> BTreeSet<String> {
    let replicas = volume.status.iter().flat_map(|status| &status.replicas);
    replicas.map(|replica| replica.node.clone()).collect()
}

async fn volume_now(cluster: &Cluster, name: &str) -> Volume {
    cluster.get::<Volume>(name).await.expect("it is there")
}

#[tokio::test]
async fn volumes_are_made_served_and_gone() {
    let mut cluster = cluster().await;
    for number in 0..20 {
        put(&cluster.store, &volume(&format!("v{number}"), 1 + number % 3)).await;
    }
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(cluster.world().volumes.len(), 20);
    for number in 0..20 {
        delete::<Volume>(&cluster, &format!("v{number}")).await;
    }
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(cluster.world().volumes.len(), 0);
}

#[tokio::test]
async fn hosts_sizes_and_limits_reach_the_target() {
    let mut cluster = cluster().await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    cluster
        .update::<Volume>("v", |volume| {
            let spec = volume.spec.as_mut().expect("it has one");
            spec.size_bytes = 20 * GIB;
            spec.hosts.push(HostAccess {
                host_nqn: "nqn.2026-11.x:host".to_owned(),
                read_only: true,
                ..HostAccess::default()
            });
        })
        .await;
    cluster.settle().await;
    cluster.check_settled();
    let volume = volume_now(&cluster, "v").await;
    let status = volume.status.expect("it has one");
    assert_eq!(status.size_bytes, 20 * GIB);
    let engines = cluster.fleet.lock();
    let target =
        &engines.engines[&status.target_node].targets[&volume.metadata.expect("it has some").uid].config;
    assert_eq!(target.size_bytes, 20 * GIB);
    assert!(target.hosts.iter().any(|host| host.read_only));
    let sizes = engines
        .engines
        .values()
        .flat_map(|engine| engine.replicas.values());
    assert!(
        sizes
            .map(|replica| replica.config.size_bytes)
            .all(|size| size == 20 * GIB)
    );
}

#[tokio::test]
async fn a_lost_node_is_waited_for_then_replaced() {
    let mut cluster = cluster().await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    let before = volume_now(&cluster, "v").await;
    let target = before.status.as_ref().expect("it has one").target_node.clone();
    cluster.fleet.set_up(&target, false);
    // Another target soon, other replicas later.
    cluster.ticks(30).await;
    cluster.check();
    let failed_over = volume_now(&cluster, "v").await;
    let status = failed_over.status.as_ref().expect("it has one");
    assert_ne!(status.target_node, target);
    assert_eq!(status.epoch, 3, "one for each that opened it, after the first");
    assert_eq!(status.state(), VolumeState::Degraded);
    assert_eq!(nodes_of(&failed_over), nodes_of(&before));
    cluster.ticks(100).await;
    cluster.check();
    let replaced = volume_now(&cluster, "v").await;
    assert!(!nodes_of(&replaced).contains(&target));
    assert_eq!(replaced.status.expect("it has one").state(), VolumeState::Healthy);
    // What is left there goes when it comes back.
    cluster.fleet.set_up(&target, true);
    cluster.settle().await;
    cluster.check_settled();
}

/// As with a node whose address is wrong.
#[tokio::test]
async fn what_keeps_a_volume_from_being_made_is_told() {
    let mut cluster = cluster().await;
    let nodes: Vec<String> = cluster.world().nodes.keys().cloned().collect();
    let set_deaf = |cluster: &Cluster, deaf| {
        for engine in cluster.fleet.lock().engines.values_mut() {
            engine.deaf = deaf;
        }
    };
    set_deaf(&cluster, true);
    put(&cluster.store, &volume("v", 3)).await;
    cluster.ticks(5).await;
    let status = volume_now(&cluster, "v").await.status.expect("it has one");
    assert_eq!(status.state(), VolumeState::Creating);
    let is_told = |node: &String| {
        status
            .message
            .contains(&format!("node {node} does not answer: it is down"))
            && status.message.contains(&format!("pollux node get {node}"))
    };
    assert!(nodes.iter().any(is_told), "{}", status.message);
    set_deaf(&cluster, false);
    cluster.settle().await;
    cluster.check_settled();
    let status = volume_now(&cluster, "v").await.status.expect("it has one");
    assert_eq!(
        (status.state(), status.message.as_str()),
        (VolumeState::Healthy, "")
    );
}

#[tokio::test]
async fn a_node_that_comes_back_in_time_keeps_its_replicas() {
    let mut cluster = cluster().await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    let before = volume_now(&cluster, "v").await;
    let node = nodes_of(&before).pop_first().expect("it has replicas");
    cluster.fleet.set_up(&node, false);
    cluster.ticks(40).await;
    cluster.fleet.set_up(&node, true);
    cluster.settle().await;
    cluster.check_settled();
    let uids = |volume: &Volume| {
        let replicas = volume.status.iter().flat_map(|status| &status.replicas);
        replicas
            .map(|replica| replica.uid.clone())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(uids(&volume_now(&cluster, "v").await), uids(&before));
}

#[tokio::test]
async fn a_failed_pool_is_replaced_and_a_sick_one_is_left() {
    for health in [PoolHealth::Failed, PoolHealth::Sick] {
        let mut cluster = cluster().await;
        put(&cluster.store, &volume("v", 2)).await;
        cluster.settle().await;
        let before = volume_now(&cluster, "v").await;
        let node = nodes_of(&before).pop_first().expect("it has replicas");
        for pool in cluster
            .fleet
            .lock()
            .engines
            .get_mut(&node)
            .expect("a node")
            .pools
            .values_mut()
        {
            *pool = health;
        }
        if health == PoolHealth::Failed {
            // Its data cannot be reached any more.
            cluster
                .fleet
                .lock()
                .engines
                .get_mut(&node)
                .expect("a node")
                .replicas
                .clear();
        }
        // A report has to be made anew.
        let up = cluster.fleet.clone();
        up.set_up(&node, false);
        up.set_up(&node, true);
        cluster.settle().await;
        let after = volume_now(&cluster, "v").await;
        assert!(!nodes_of(&after).contains(&node), "{health:?}");
        cluster.check_settled();
    }
}

#[tokio::test]
async fn a_replica_that_vanished_is_not_made_again_as_if_in_sync() {
    let mut cluster = cluster().await;
    put(&cluster.store, &volume("v", 2)).await;
    cluster.settle().await;
    let before = volume_now(&cluster, "v").await;
    let target = before.status.as_ref().expect("it has one").target_node.clone();
    let other = nodes_of(&before)
        .into_iter()
        .find(|node| *node != target)
        .expect("two nodes");
    cluster
        .fleet
        .lock()
        .engines
        .get_mut(&other)
        .expect("a node")
        .replicas
        .clear();
    cluster.fleet.set_up(&other, false);
    cluster.fleet.set_up(&other, true);
    cluster.settle().await;
    cluster.check_settled();
    let after = volume_now(&cluster, "v").await;
    let old: BTreeSet<_> = before
        .status
        .iter()
        .flat_map(|s| &s.replicas)
        .map(|r| &r.uid)
        .collect();
    let kept = after
        .status
        .iter()
        .flat_map(|s| &s.replicas)
        .filter(|r| old.contains(&r.uid))
        .count();
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn nothing_is_made_up_when_all_replicas_are_away() {
    let mut cluster = cluster().await;
    put(&cluster.store, &volume("v", 2)).await;
    cluster.settle().await;
    let before = volume_now(&cluster, "v").await;
    for node in nodes_of(&before) {
        cluster.fleet.set_up(&node, false);
    }
    cluster.ticks(200).await;
    let away = volume_now(&cluster, "v").await;
    assert_eq!(
        away.status.as_ref().expect("it has one").state(),
        VolumeState::Unavailable
    );
    assert_eq!(nodes_of(&away), nodes_of(&before));
    for node in nodes_of(&before) {
        cluster.fleet.set_up(&node, true);
    }
    cluster.settle().await;
    cluster.check_settled();
}

#[tokio::test]
async fn drained_nodes_become_empty() {
    let mut cluster = cluster().await;
    for number in 0..12 {
        put(&cluster.store, &volume(&format!("v{number}"), 3)).await;
    }
    cluster.settle().await;
    cluster
        .update::<Node>("n0-0", |node| {
            node.spec.as_mut().expect("it has one").drained = true
        })
        .await;
    cluster.settle().await;
    cluster.check_settled();
    let drained = cluster.get::<Node>("n0-0").await.expect("it is there");
    let status = drained.status.expect("it has one");
    assert!(status.empty);
    assert_eq!(status.state(), NodeState::Online);
    assert!(cluster.fleet.lock().engines["n0-0"].replicas.is_empty());
    // Its pool can be taken apart, and then it can be forgotten.
    delete::<Pool>(&cluster, "n0-0.p").await;
    cluster.settle().await;
    assert_eq!(cluster.get::<Pool>("n0-0.p").await, None);
    assert!(cluster.fleet.lock().engines["n0-0"].pools.is_empty());
}

#[tokio::test]
async fn templates_are_followed() {
    let mut cluster = cluster().await;
    let template = |replicas, domain: Domain| {
        Some(TemplateSpec {
            policy: Some(VolumePolicy {
                replicas: Some(replicas),
                placement: Some(PlacementPolicy {
                    spread: vec![SpreadRule {
                        domain: domain.into(),
                        replicas_max: 1,
                    }],
                    ..PlacementPolicy::default()
                }),
                ..VolumePolicy::default()
            }),
        })
    };
    let gold = Template {
        spec: template(1, Domain::Node),
        ..Template::default()
    };
    put(&cluster.store, &named(gold, "gold")).await;
    for number in 0..6 {
        let mut volume = volume(&format!("v{number}"), 1);
        let spec = volume.spec.as_mut().expect("it has one");
        spec.policy = None;
        spec.template = "gold".to_owned();
        put(&cluster.store, &volume).await;
    }
    cluster.settle().await;
    cluster.check_settled();
    cluster
        .update::<Template>("gold", |gold| gold.spec = template(3, Domain::Zone))
        .await;
    cluster.settle().await;
    cluster.check_settled();
    for number in 0..6 {
        let volume = volume_now(&cluster, &format!("v{number}")).await;
        let zones: BTreeSet<String> = nodes_of(&volume)
            .iter()
            .map(|node| node.chars().take(2).collect())
            .collect();
        assert_eq!(zones.len(), 3);
    }
    cluster
        .update::<Template>("gold", |gold| gold.spec = template(2, Domain::Zone))
        .await;
    cluster.settle().await;
    cluster.check_settled();
}

/// What the target of a volume was told of limits.
fn told_limits(cluster: &Cluster, volume: &Volume) -> TargetConfig {
    let node = &volume.status.as_ref().expect("it has one").target_node;
    let engines = cluster.fleet.lock();
    engines.engines[node].targets[&volume.meta().uid].config.clone()
}

#[tokio::test]
async fn limits_follow_the_template_unless_the_volume_has_its_own() {
    let mut cluster = cluster().await;
    let rate = |per_second, per_second_per_gib| {
        Some(QosRate {
            per_second,
            per_second_per_gib,
            burst: None,
        })
    };
    let of = Limit::new;
    let gold = |qos| {
        Some(TemplateSpec {
            policy: Some(VolumePolicy {
                qos,
                ..VolumePolicy::default()
            }),
        })
    };
    let template = Template {
        spec: gold(None),
        ..Template::default()
    };
    put(&cluster.store, &named(template, "gold")).await;
    for name in ["follows", "own"] {
        let mut volume = volume(name, 1);
        let spec = volume.spec.as_mut().expect("it has one");
        spec.policy = None;
        spec.template = "gold".to_owned();
        put(&cluster.store, &volume).await;
    }
    cluster.settle().await;
    let limits = async |cluster: &Cluster, name: &str| {
        let told = told_limits(cluster, &volume_now(cluster, name).await);
        (told.qos, told.iops_max, told.bandwidth_bytes_max)
    };
    assert_eq!(limits(&cluster, "follows").await, (None, None, None));
    let mut qos = Qos::default();
    qos.set_rate(of(Direction::Total, Counted::Operations), rate(100, 0));
    qos.set_rate(of(Direction::Total, Counted::Bytes), rate(0, 1 << 20));
    qos.set_rate(of(Direction::Write, Counted::Bytes), rate(1 << 20, 0));
    let mut own = Qos::default();
    own.set_rate(of(Direction::Read, Counted::Operations), rate(7, 0));
    cluster
        .update::<Volume>("own", |volume| {
            let policy = &mut volume.spec.as_mut().expect("it has one").policy;
            policy.get_or_insert_default().qos = Some(own);
        })
        .await;
    cluster
        .update::<Template>("gold", |template| template.spec = gold(Some(qos)))
        .await;
    cluster.settle().await;
    cluster.check_settled();
    // Engines that know totals only get those that do not grow with the size.
    assert_eq!(limits(&cluster, "follows").await, (Some(qos), Some(100), None));
    assert_eq!(limits(&cluster, "own").await, (Some(own), None, None));
    // No limits of its own is something else than limits of its own that are none.
    let weighted = Some(Qos {
        weight: Some(300),
        ..Qos::default()
    });
    for (own, wanted) in [
        (Some(Qos::default()), None),
        (weighted, weighted),
        (None, Some(qos)),
    ] {
        cluster
            .update::<Volume>("own", |volume| {
                let policy = &mut volume.spec.as_mut().expect("it has one").policy;
                policy.get_or_insert_default().qos = own;
            })
            .await;
        cluster.settle().await;
        assert_eq!(limits(&cluster, "own").await.0, wanted);
    }
    cluster
        .update::<Template>("gold", |template| template.spec = gold(None))
        .await;
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(limits(&cluster, "own").await, (None, None, None));
}

#[tokio::test]
async fn snapshots_are_taken_cloned_and_gone() {
    let mut cluster = cluster().await;
    let origin = volume("v", 3);
    put(&cluster.store, &origin).await;
    cluster.settle().await;
    put(&cluster.store, &snapshot("s", &origin)).await;
    cluster.settle().await;
    let taken = cluster.get::<Snapshot>("s").await.expect("it is there");
    assert_eq!(
        taken.status.as_ref().expect("it has one").state(),
        SnapshotState::Ready
    );
    let mut clone = volume("clone", 2);
    clone.spec.as_mut().expect("it has one").source_snapshot = "s".to_owned();
    put(&cluster.store, &clone).await;
    cluster.settle().await;
    cluster.check_settled();
    let places = nodes_of(&volume_now(&cluster, "clone").await);
    assert!(places.is_subset(&nodes_of(&volume_now(&cluster, "v").await)));
    // A replica that is made anew gets the snapshots too.
    let node = places.first().expect("it has replicas").clone();
    cluster.fleet.set_up(&node, false);
    cluster.ticks(120).await;
    cluster.check();
    delete::<Snapshot>(&cluster, "s").await;
    cluster.ticks(20).await;
    assert_eq!(cluster.get::<Snapshot>("s").await, None);
    cluster.fleet.set_up(&node, true);
    cluster.settle().await;
    cluster.check_settled();
    let engines = cluster.fleet.lock();
    let replicas = engines
        .engines
        .values()
        .flat_map(|engine| engine.replicas.values());
    assert!(replicas.into_iter().all(|replica| replica.snapshots.is_empty()));
}

/// Its target was not told yet that the snapshot is to go, and may never be.
#[tokio::test]
async fn a_volume_goes_with_its_snapshots_if_both_are_to_go_at_once() {
    for has_target in [true, false] {
        let mut cluster = cluster().await;
        put(&cluster.store, &volume("v", 3)).await;
        cluster.settle().await;
        let found = volume_now(&cluster, "v").await;
        put(&cluster.store, &snapshot("s", &found)).await;
        cluster.settle().await;
        let target = found.status.expect("it has one").target_node;
        cluster.fleet.set_up(&target, has_target);
        delete::<Snapshot>(&cluster, "s").await;
        delete::<Volume>(&cluster, "v").await;
        cluster.ticks(20).await;
        assert!(cluster.get::<Snapshot>("s").await.is_none());
        assert!(cluster.get::<Volume>("v").await.is_none());
        cluster.fleet.set_up(&target, true);
        cluster.settle().await;
        cluster.check_settled();
    }
}

#[tokio::test]
async fn schedules_take_and_forget_snapshots() {
    let mut cluster = cluster().await;
    let hourly = Group {
        spec: Some(GroupSpec {
            schedule: Some(SnapshotSchedule {
                interval_us: 60 * SECOND_US,
                kept_max: 3,
            }),
        }),
        ..Group::default()
    };
    let mut hourly = named(hourly, "hourly");
    hourly.meta_mut().created_unix_us = cluster.world().now_unix_us;
    put(&cluster.store, &hourly).await;
    for name in ["a", "b"] {
        let mut member = volume(name, 2);
        member.spec.as_mut().expect("it has one").group = "hourly".to_owned();
        put(&cluster.store, &member).await;
    }
    put(&cluster.store, &volume("other", 2)).await;
    cluster.ticks(50).await;
    assert_eq!(cluster.world().snapshots.len(), 0);
    cluster.ticks(60).await;
    assert_eq!(cluster.world().snapshots.len(), 2);
    cluster.ticks(600).await;
    cluster.check_settled();
    let mut by_volume = std::collections::BTreeMap::new();
    for snapshot in cluster.world().snapshots.values() {
        let spec = snapshot.spec.as_ref().expect("it has one");
        *by_volume.entry(spec.volume.clone()).or_insert(0) += 1;
    }
    let expected = [("a".to_owned(), 3), ("b".to_owned(), 3)];
    assert_eq!(by_volume, expected.into_iter().collect());
    for engine in cluster.fleet.lock().engines.values() {
        assert!(
            engine
                .replicas
                .values()
                .all(|replica| replica.snapshots.len() <= 3)
        );
    }
}

#[tokio::test]
async fn where_replicas_fail_no_more_are_tried_for_a_while() {
    let mut cluster = Cluster::new(&layout(1, 4), limits()).await;
    cluster
        .fleet
        .lock()
        .engines
        .get_mut("n0-0")
        .expect("a node")
        .refusing = true;
    for number in 0..6 {
        put(&cluster.store, &volume(&format!("v{number}"), 3)).await;
    }
    cluster.settle().await;
    cluster.check_settled();
    assert!(cluster.fleet.lock().engines["n0-0"].replicas.is_empty());
}

/// Whoever made the mistake sees what the engine said; and what was made once is never made anew of drives
/// that hold nothing any more.
#[tokio::test]
async fn a_pool_that_cannot_be_had_says_why() {
    let mut cluster = Cluster::new(&layout(1, 2), limits()).await;
    let set_refusing = |cluster: &Cluster, refusing| {
        let mut engines = cluster.fleet.lock();
        engines.engines.get_mut("n0-0").expect("a node").refusing = refusing;
    };
    set_refusing(&cluster, true);
    let mut pool = named(Pool::default(), "late");
    pool.spec = Some(PoolSpec {
        node: "n0-0".to_owned(),
        devices: vec!["uring:///dev/sdb".to_owned()],
        ..PoolSpec::default()
    });
    put(&cluster.store, &pool).await;
    cluster.ticks(8).await;
    let status = async |cluster: &Cluster| {
        let pool = cluster.get::<Pool>("late").await.expect("it is there");
        pool.status.unwrap_or_default()
    };
    let before = status(&cluster).await;
    assert_eq!(before.state(), PoolState::Unspecified);
    assert!(
        before.message.contains("an ext file system"),
        "{}",
        before.message
    );
    set_refusing(&cluster, false);
    cluster.ticks(8).await;
    let made = status(&cluster).await;
    assert_eq!((made.state(), made.message.as_str()), (PoolState::Online, ""));

    let uid = &pool.meta().uid;
    cluster.fleet.lose_pool("n0-0", uid);
    cluster.ticks(8).await;
    let lost = status(&cluster).await;
    assert_eq!(lost.state(), PoolState::Unreachable);
    assert!(lost.message.contains("holds no pool"), "{}", lost.message);
    let is_made_anew = cluster.fleet.lock().engines["n0-0"].pools.contains_key(uid);
    assert!(!is_made_anew, "a pool is made of drives that were swapped");
}

#[tokio::test]
async fn what_fits_nowhere_waits_and_says_why() {
    let mut cluster = Cluster::new(&layout(1, 2), limits()).await;
    put(&cluster.store, &volume("v", 3)).await;
    let mut large = volume("large", 1);
    large.spec.as_mut().expect("it has one").size_bytes = 200 * TIB;
    put(&cluster.store, &large).await;
    cluster.settle().await;
    for (name, reason) in [("v", "only 2 of 3 replicas"), ("large", "overcommitted")] {
        let status = volume_now(&cluster, name).await.status.expect("it has one");
        assert_eq!(status.state(), VolumeState::Pending);
        assert!(status.message.contains(reason), "{}", status.message);
    }
    delete::<Volume>(&cluster, "large").await;
    cluster
        .update::<Volume>("v", |volume| {
            volume.spec.as_mut().expect("it has one").policy = None;
        })
        .await;
    cluster.settle().await;
    cluster.check_settled();
}

/// A replica that its target has given up as slow is waited for as one that is lost, and then replaced, in
/// another pool.
#[tokio::test]
async fn a_slow_replica_is_replaced_elsewhere() {
    let mut cluster = Cluster::new(&layout(4, 1), Limits::default()).await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    let before = volume_now(&cluster, "v").await.status.expect("it has one");
    let slow = before
        .replicas
        .iter()
        .find(|replica| replica.node != before.target_node);
    let slow = slow.expect("one of three").clone();
    cluster.fleet.give_up(&before.target_node, &slow.uid, true);
    cluster.ticks(5).await;
    // Taken back in time it stays.
    cluster.fleet.give_up(&before.target_node, &slow.uid, false);
    cluster.clock.advance(400 * SECOND_US);
    cluster.settle().await;
    cluster.check_settled();
    let status = volume_now(&cluster, "v").await.status.expect("it has one");
    assert_eq!(status.replicas, before.replicas);

    cluster.fleet.give_up(&before.target_node, &slow.uid, true);
    cluster.ticks(5).await;
    let status = volume_now(&cluster, "v").await.status.expect("it has one");
    assert_eq!(status.replicas.len(), 3, "it is waited for");
    assert_eq!(status.state(), VolumeState::Degraded);
    cluster.clock.advance(400 * SECOND_US);
    cluster.settle().await;
    cluster.check_settled();
    let status = volume_now(&cluster, "v").await.status.expect("it has one");
    assert!(
        status.replicas.iter().all(|replica| replica.pool != slow.pool),
        "{status:?}"
    );
    let events = cluster
        .store
        .list_all(&Kind::Event.prefix())
        .await
        .expect("the store answers");
    let told = events
        .entries
        .iter()
        .map(|entry| Event::read(entry).expect("an event"));
    let told = told
        .filter(|event| event.message.contains("was given up"))
        .count();
    assert_eq!(told, 2, "it is told each time, and once");
}

#[tokio::test]
async fn a_replica_that_alone_has_a_snapshot_is_the_one_that_stays() {
    let mut cluster = cluster().await;
    let made = volume("a", 2);
    put(&cluster.store, &made).await;
    cluster.settle().await;
    put(&cluster.store, &snapshot("s", &made)).await;
    cluster.settle().await;
    let status = volume_now(&cluster, "a").await.status.unwrap();
    let beside = status
        .replicas
        .iter()
        .find(|replica| replica.node != status.target_node);
    let holder = beside.unwrap().clone();
    // As it is when the other one was being brought back while the snapshot was cut.
    cluster
        .update::<Volume>("a", |volume| {
            let status = volume.status.as_mut().unwrap();
            status.snapshots[0].held_by = 1 << holder.slot;
            status.version += 1;
        })
        .await;
    cluster
        .update::<Volume>("a", |volume| {
            let policy = volume.spec.as_mut().unwrap().policy.as_mut().unwrap();
            policy.replicas = Some(1);
        })
        .await;
    cluster.settle().await;
    let status = volume_now(&cluster, "a").await.status.unwrap();
    let left: Vec<_> = status.replicas.iter().map(|replica| &replica.uid).collect();
    assert_eq!(left, [&holder.uid]);
    assert_eq!(status.snapshots.len(), 1, "the snapshot is still there");
    cluster.check_settled();
}
