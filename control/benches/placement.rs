//! One decision of the planner over a large fleet.

#![allow(missing_docs, reason = "made by the macros of criterion")]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pollux_api::control::v1::{
    AffinityRule, Domain, LabelRule, MediaClass, Metadata, Node, NodeSpec, NodeState, NodeStatus,
    PlacementPolicy, Pool, PoolSpec, PoolState, PoolStatus, SpreadRule,
};
use pollux_control::placement::{Fleet, PlacementLimits, PlacementRequest, decide, explain};

const NODES: u64 = 1_000;
const POOLS_PER_NODE: u64 = 4;
const REPLICAS: u64 = 100_000;
const GIB: u64 = 1 << 30;

fn metadata(name: String, number: u64) -> Option<Metadata> {
    let labels = [
        ("tier", number % 3),
        ("row", number % 7),
        ("generation", number % 2),
    ];
    Some(Metadata {
        name,
        labels: labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_string()))
            .collect::<BTreeMap<_, _>>(),
        ..Metadata::default()
    })
}

fn fleet() -> Fleet {
    let nodes: Vec<Node> = (0..NODES)
        .map(|node| Node {
            metadata: metadata(format!("node-{node}"), node),
            spec: Some(NodeSpec {
                zone: format!("zone-{}", node % 4),
                rack: format!("rack-{}", node / 4 % 25),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                state: NodeState::Online.into(),
                ..NodeStatus::default()
            }),
        })
        .collect();
    let pools: Vec<Pool> = (0..NODES * POOLS_PER_NODE)
        .map(|pool| Pool {
            metadata: metadata(format!("pool-{pool}"), pool),
            spec: Some(PoolSpec {
                node: format!("node-{}", pool / POOLS_PER_NODE),
                media: MediaClass::Nvme.into(),
                ..PoolSpec::default()
            }),
            status: Some(PoolStatus {
                state: PoolState::Online.into(),
                capacity_bytes: 4096 * GIB,
                used_bytes: (pool * 7919 % 2048) * GIB,
                ..PoolStatus::default()
            }),
        })
        .collect();
    let mut fleet = Fleet::new(&nodes, &pools, PlacementLimits::default());
    for replica in 0..REPLICAS {
        let pool = format!("pool-{}", replica * 7919 % (NODES * POOLS_PER_NODE));
        let Some(site) = fleet.find(&pool) else { continue };
        fleet.occupy(
            site,
            (1 + replica % 100) * GIB,
            &[format!("group-{}", replica % 5_000)],
        );
    }
    fleet
}

fn policy() -> PlacementPolicy {
    PlacementPolicy {
        media: MediaClass::Nvme.into(),
        require: vec![LabelRule {
            key: "generation".to_owned(),
            values: vec!["1".to_owned()],
            ..LabelRule::default()
        }],
        prefer: vec![LabelRule {
            key: "tier".to_owned(),
            values: vec!["2".to_owned()],
            weight: Some(70),
            ..LabelRule::default()
        }],
        spread: vec![SpreadRule {
            domain: Domain::Zone.into(),
            replicas_max: 1,
        }],
        affinity: vec![AffinityRule {
            group: "group-17".to_owned(),
            domain: Domain::Node.into(),
            apart: true,
            required: true,
        }],
        affinity_groups: vec!["group-17".to_owned()],
    }
}

fn placement(criterion: &mut Criterion) {
    let fleet = fleet();
    let plain = PlacementPolicy::default();
    let ruled = policy();
    let request = |policy| PlacementRequest {
        volume_uid: "0b0a9d5e-3c0f-4e52-9d6e-0d4a6a2f8f11",
        size_bytes: 100 * GIB,
        policy,
        kept: &[],
        own: &[],
        count: 3,
        only: None,
        is_rebuild: false,
    };
    let mut group = criterion.benchmark_group("placement of 3 replicas, 1,000 nodes, 100,000 replicas");
    group.bench_function("no rules", |bencher| {
        bencher.iter(|| decide(black_box(&fleet), &request(&plain)));
    });
    group.bench_function("five rules", |bencher| {
        bencher.iter(|| decide(black_box(&fleet), &request(&ruled)));
    });
    group.bench_function("five rules, explained", |bencher| {
        bencher.iter(|| explain(black_box(&fleet), &request(&ruled)));
    });
    group.finish();
}

criterion_group!(benches, placement);
criterion_main!(benches);
