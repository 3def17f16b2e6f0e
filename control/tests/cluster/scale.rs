//! Many volumes on many engines lose a zone. The benchmark `zone` runs this with 10,000 volumes on 1,000
//! engines.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::common::{Cluster, SECOND_US, layout, put, volume};
use pollux_api::control::v1::{Domain, PlacementPolicy, SpreadRule, VolumeState};
use pollux_control::plan::Limits;

const ZONES: usize = 4;

#[tokio::test]
async fn a_zone_is_lost_and_replaced_within_limits() {
    println!("{}", lose_zone(50, 2_000).await);
}

/// Volumes of three replicas in different zones; one of the four zones is lost. Tells how long that took.
pub async fn lose_zone(nodes_per_zone: usize, volumes: usize) -> String {
    let limits = Limits {
        replace_after_us: 10 * SECOND_US,
        rebuilds_per_node_max: 4,
        rebuilds_max: 1_000,
        ..Limits::default()
    };
    let began = Instant::now();
    let mut cluster = Cluster::new(&layout(ZONES, nodes_per_zone), limits.clone()).await;
    for number in 0..volumes {
        let mut volume = volume(&format!("v{number}"), 3);
        let policy = volume
            .spec
            .as_mut()
            .and_then(|spec| spec.policy.as_mut())
            .expect("it has one");
        policy.placement = Some(PlacementPolicy {
            spread: vec![SpreadRule {
                domain: Domain::Zone.into(),
                replicas_max: 1,
            }],
            ..PlacementPolicy::default()
        });
        put(&cluster.store, &volume).await;
    }
    let made_ticks = cluster.settle().await;
    cluster.check_settled();
    let made = began.elapsed();
    assert_eq!(cluster.fleet.lock().rebuilds_seen, (0, 0));

    let began = Instant::now();
    for node in 0..nodes_per_zone {
        cluster.fleet.set_up(&format!("n0-{node}"), false);
    }
    // Until they count as lost.
    cluster.ticks(25).await;
    let healed_ticks = 25 + cluster.settle().await;
    let healed = began.elapsed();
    cluster.check();
    let mut affected = 0;
    for volume in cluster.world().volumes.values() {
        let status = volume.status.as_ref().expect("it has one");
        assert_eq!(status.state(), VolumeState::Healthy, "{}", status.message);
        let zones: BTreeSet<&str> = status
            .replicas
            .iter()
            .filter_map(|replica| replica.node.get(..2))
            .collect();
        assert_eq!(zones.len(), 3);
        assert!(!zones.contains("n0"));
        affected += usize::from(status.version > 1);
    }
    // Three of four zones hold a replica of each volume.
    assert!(affected > volumes / 2, "{affected}");
    let (per_node, altogether) = cluster.fleet.lock().rebuilds_seen;
    assert!(
        per_node >= 1 && per_node <= limits.rebuilds_per_node_max as usize,
        "{per_node}"
    );
    assert!(altogether <= limits.rebuilds_max as usize, "{altogether}");
    format!(
        "made in {made_ticks} ticks ({made:.1?}), healed {affected} volumes in {healed_ticks} ticks \
         ({healed:.1?}), at most {per_node} rebuilds on a node and {altogether} altogether"
    )
}
