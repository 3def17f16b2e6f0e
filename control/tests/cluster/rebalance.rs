//! Plans to rebalance: what they propose, and what becomes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_api::control::v1::rebalances_server::Rebalances;
use pollux_api::control::v1::*;
use pollux_control::controller::Observations;
use pollux_control::model::Record;
use pollux_control::plan::{Limits, propose};
use pollux_control::security::Guard;
use pollux_control::server::{ServiceParts, Services};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::common::fleet::Fleet;
use crate::common::{Cluster, layout, named, put, volume};

fn limits() -> Limits {
    Limits {
        rebuilds_per_node_max: 4,
        ..Limits::default()
    }
}

/// Three nodes of which the first two hold everything: the third was away when the volumes were made.
async fn uneven() -> Cluster {
    let mut cluster = Cluster::new(&layout(1, 3), limits()).await;
    cluster
        .update::<Node>("n0-2", |node| node.spec.get_or_insert_default().cordoned = true)
        .await;
    cluster.settle().await;
    for number in 0..12 {
        let mut volume = volume(&format!("v{number}"), 2);
        // So that pools are not as good as empty.
        volume.spec.get_or_insert_default().size_bytes = 1 << 40;
        put(&cluster.store, &volume).await;
    }
    cluster.settle().await;
    cluster
        .update::<Node>("n0-2", |node| node.spec.get_or_insert_default().cordoned = false)
        .await;
    cluster.settle().await;
    cluster
}

fn services(cluster: &Cluster) -> Services {
    Services::new(ServiceParts {
        store: Arc::new(cluster.store.clone()),
        observations: Arc::new(Observations::default()),
        engines: Arc::new(Fleet::default()),
        clock: Arc::new(cluster.clock.clone()),
        limits: limits(),
        guard: Guard::Local,
    })
}

fn asked(name: &str, replicas: bool, targets: bool) -> Rebalance {
    let rebalance = Rebalance {
        spec: Some(RebalanceSpec {
            replicas,
            targets,
            ..RebalanceSpec::default()
        }),
        ..Rebalance::default()
    };
    named(rebalance, name)
}

async fn plan(services: &Services, rebalance: Rebalance) -> Rebalance {
    let request = PlanRebalanceRequest {
        rebalance: Some(rebalance),
    };
    let planned = services.plan_rebalance(Request::new(request)).await;
    planned.expect("it can be planned").into_inner()
}

async fn commit(services: &Services, name: &str, revision: u64) -> Result<Rebalance, tonic::Status> {
    let request = CommitRebalanceRequest {
        name: name.to_owned(),
        revision,
    };
    let committed = services.commit_rebalance(Request::new(request)).await;
    committed.map(tonic::Response::into_inner)
}

fn replicas_by_node(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for volume in cluster.world().volumes.values() {
        for replica in volume.status.iter().flat_map(|status| &status.replicas) {
            *counts.entry(replica.node.clone()).or_default() += 1;
        }
    }
    counts
}

fn targets_by_node(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for volume in cluster.world().volumes.values() {
        let status = volume.status.as_ref().expect("it has one");
        *counts.entry(status.target_node.clone()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn data_is_spread_when_it_is_committed_and_not_before() {
    let mut cluster = uneven().await;
    assert_eq!(replicas_by_node(&cluster).len(), 2);
    let services = services(&cluster);
    let planned = plan(&services, asked("r", true, false)).await;
    let status = planned.status.clone().expect("it was planned");
    assert_eq!(status.state(), RebalanceState::Planned);
    assert_eq!(status.replica_moves.len(), 8, "{status:?}");
    assert!(status.replica_moves.iter().all(|one| one.to_pool == "n0-2.p"));
    assert_eq!(status.copied_bytes_max, 8 << 40);
    assert!(
        status.fullest_percent_after < status.fullest_percent_before,
        "{status:?}"
    );
    // Once more is the same plan; nothing moves by it.
    assert_eq!(plan(&services, asked("r", true, false)).await, planned);
    cluster.settle().await;
    assert_eq!(replicas_by_node(&cluster).len(), 2);

    assert_eq!(
        commit(&services, "r", 1).await.expect_err("another one").code(),
        Code::Aborted
    );
    let committed = commit(&services, "r", planned.meta().revision)
        .await
        .expect("it is the one");
    assert_eq!(
        committed.status.map(|status| status.state()),
        Some(RebalanceState::Committed)
    );
    assert!(commit(&services, "r", 1).await.is_ok(), "it is being done");
    cluster.settle().await;
    cluster.check_settled();
    let counts = replicas_by_node(&cluster);
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [8, 8, 8]);
    let done = cluster
        .get::<Rebalance>("r")
        .await
        .and_then(|done| done.status)
        .expect("it is there");
    assert_eq!((done.state(), done.moves_done), (RebalanceState::Done, 8));
    let (per_node, _) = cluster.fleet.lock().rebuilds_seen;
    assert!(per_node <= 4, "{per_node} at a time");
    // What is even is left alone.
    let spec = RebalanceSpec {
        replicas: true,
        targets: true,
        ..RebalanceSpec::default()
    };
    assert_eq!(propose(cluster.world(), &limits(), &spec).replica_moves, []);
}

#[tokio::test]
async fn a_plan_that_time_has_passed_over_ends() {
    let mut cluster = uneven().await;
    let services = services(&cluster);
    let planned = plan(&services, asked("r", true, false))
        .await
        .status
        .expect("it was planned");
    let gone = planned.replica_moves.first().expect("a move").volume.clone();
    let request = DeleteVolumeRequest { name: gone.clone() };
    let deleted =
        pollux_api::control::v1::volumes_server::Volumes::delete_volume(&services, Request::new(request));
    deleted.await.expect("it is not used");
    cluster.settle().await;
    // The node that was planned for is lost while it takes.
    commit(&services, "r", 0).await.expect("it is planned");
    cluster.ticks(2).await;
    cluster.fleet.set_up("n0-2", false);
    cluster.ticks(30).await;
    cluster.check();
    cluster.fleet.set_up("n0-2", true);
    cluster.settle().await;
    cluster.check_settled();
    let done = cluster
        .get::<Rebalance>("r")
        .await
        .and_then(|done| done.status)
        .expect("it is there");
    assert_eq!(done.state(), RebalanceState::Done, "{done:?}");
    assert!(cluster.get::<Volume>(&gone).await.is_none());
}

#[tokio::test]
async fn a_plan_that_is_deleted_leaves_nothing_half_done() {
    let mut cluster = uneven().await;
    let services = services(&cluster);
    plan(&services, asked("r", true, false)).await;
    commit(&services, "r", 0).await.expect("it is planned");
    cluster.ticks(3).await;
    let request = DeleteRebalanceRequest { name: "r".to_owned() };
    services
        .delete_rebalance(Request::new(request))
        .await
        .expect("it is there");
    cluster.settle().await;
    cluster.check_settled();
    assert!(replicas_by_node(&cluster).get("n0-2").copied().unwrap_or(0) < 8);
}

#[tokio::test]
async fn targets_are_spread() {
    let mut cluster = Cluster::new(&layout(1, 3), limits()).await;
    for number in 0..9 {
        put(&cluster.store, &volume(&format!("v{number}"), 3)).await;
    }
    cluster.settle().await;
    // A node is away for a moment: what it served stays where it went.
    cluster.fleet.set_up("n0-0", false);
    cluster.ticks(30).await;
    cluster.fleet.set_up("n0-0", true);
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(targets_by_node(&cluster).get("n0-0"), None);
    let services = services(&cluster);
    let planned = plan(&services, asked("t", false, true)).await;
    let moves = planned
        .status
        .map(|status| status.target_moves)
        .expect("it was planned");
    assert_eq!(moves.len(), 3, "{moves:?}");
    commit(&services, "t", 0).await.expect("it is planned");
    cluster.settle().await;
    cluster.check_settled();
    assert_eq!(
        targets_by_node(&cluster).into_values().collect::<Vec<_>>(),
        [3, 3, 3]
    );
    let done = cluster
        .get::<Rebalance>("t")
        .await
        .and_then(|done| done.status)
        .expect("it is there");
    assert_eq!(done.state(), RebalanceState::Done);
}

#[tokio::test]
async fn what_is_no_plan_is_told() {
    let cluster = Cluster::new(&layout(1, 1), limits()).await;
    let services = services(&cluster);
    let with = |change: fn(&mut RebalanceSpec)| {
        let mut rebalance = asked("r", true, true);
        change(rebalance.spec.get_or_insert_default());
        Some(rebalance)
    };
    for (rebalance, field) in [
        (None, "rebalance"),
        (Some(asked("A", true, true)), "rebalance.metadata.name"),
        (Some(named(Rebalance::default(), "r")), "rebalance.spec"),
        (Some(asked("r", false, false)), "rebalance.spec"),
        (with(|spec| spec.moves_max = Some(0)), "rebalance.spec.moves_max"),
        (
            with(|spec| spec.moves_max = Some(201)),
            "rebalance.spec.moves_max",
        ),
        (
            with(|spec| spec.tolerance_percent = Some(0)),
            "rebalance.spec.tolerance_percent",
        ),
        (
            with(|spec| spec.tolerance_percent = Some(101)),
            "rebalance.spec.tolerance_percent",
        ),
    ] {
        let request = PlanRebalanceRequest { rebalance };
        let status = services
            .plan_rebalance(Request::new(request))
            .await
            .expect_err(field);
        let details = status.get_details_bad_request().expect("fields");
        let fields: Vec<String> = details
            .field_violations
            .into_iter()
            .map(|wrong| wrong.field)
            .collect();
        assert_eq!(fields, [field]);
    }
    assert_eq!(
        commit(&services, "none", 0).await.expect_err("none").code(),
        Code::NotFound
    );
    assert_eq!(
        commit(&services, "A", 0).await.expect_err("no name").code(),
        Code::InvalidArgument
    );
}
