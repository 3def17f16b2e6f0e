//! A drive that takes its time: `cargo test -p pollux-control --test engines -- slow`. It takes two or three
//! minutes, most of them until nobody waits for the drive any more, and a machine that is not busy: there
//! all drives are slow.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use pollux_api::control::v1::{ReplicaState, VolumeStatus};

use crate::cluster::{Cluster, HOST, Layout};
use crate::scenarios::{Witness, policy, tell};

/// The engine with the drive.
const SLOW: &str = "n3";

/// Where its replica is to go.
const SPARE: &str = "n4";

/// How long a host writes: until the replica is replaced, and after.
const WRITES: Duration = Duration::from_secs(170);

pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
    ExitCode::SUCCESS
}

/// Whether a replica is on a node, and in sync.
fn has_in_sync(status: &VolumeStatus, node: &str) -> bool {
    let mut replicas = status.replicas.iter();
    replicas.any(|replica| replica.node == node && replica.state() == ReplicaState::InSync)
}

/// A host writes on, without waiting for the slow drive once it is out; its replica is replaced by one
/// elsewhere, and everything is there in the end.
async fn run() {
    let layout = Layout {
        engines: 4,
        slow: Some(SLOW),
        ..Layout::default()
    };
    let witness = Witness(Cluster::with(layout).await);
    let cluster = &witness.0;
    cluster.drain(SPARE, true).await;
    cluster.create("v", policy(3, 2)).await;
    let made = cluster.until_healthy("v").await;
    assert!(has_in_sync(&made, SLOW), "{made:?}");
    cluster.drain(SPARE, false).await;
    let published = cluster.publish("v", HOST, false).await;
    let began = Instant::now();
    let host = cluster.host(&published, "state", WRITES.as_secs());
    let is_out = |status: &VolumeStatus| !has_in_sync(status, SLOW);
    cluster.until_status("v", "the slow one is out", is_out).await;
    tell("the slow one is out", began.elapsed());
    let is_replaced = |status: &VolumeStatus| {
        has_in_sync(status, SPARE) && status.replicas.iter().all(|replica| replica.node != SLOW)
    };
    cluster
        .until_status("v", "the slow one is replaced", is_replaced)
        .await;
    tell("it is replaced", began.elapsed());
    assert!(began.elapsed() < WRITES, "the host wrote all that time");
    let healthy = cluster.until_healthy("v").await;
    assert_eq!(healthy.replicas.len(), 3, "{healthy:?}");
    let told = host.finished().await;
    assert!(told["writes"].as_u64().expect("a number") > 0, "{told}");
}
