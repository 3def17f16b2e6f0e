//! The control plane ends before and after every step of every operation, and another one takes over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::fleet::Fleet;
use crate::common::{Cluster, GIB, SECOND_US, layout, put, snapshot, volume};
use crate::together::{check_taken, together};
use pollux_api::control::v1::{EngineReport, HostAccess, Node, Snapshot, Volume, engine_command::Command};
use pollux_control::engines::{EngineAddress, EngineClient, EngineError};
use pollux_control::model::Record;
use pollux_control::plan::Limits;
use pollux_control::store::{
    Entry, Leadership, Listing, MemoryStore, Range, Store, StoreError, Transaction, Watcher,
};

/// When a process ends: at the step of this number, before it or after it.
#[derive(Debug)]
struct Fuse {
    left: AtomicUsize,
    is_after: bool,
}

/// What becomes of a step.
enum Fate {
    Done,
    /// It is done, and nobody learns of it.
    DoneUnheard,
    Undone,
}

impl Fuse {
    fn step(&self) -> Fate {
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match before {
            Ok(1) if self.is_after => Fate::DoneUnheard,
            Ok(1) | Err(_) => Fate::Undone,
            Ok(_) => Fate::Done,
        }
    }

    fn is_blown(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

#[derive(Debug)]
struct MortalStore(MemoryStore, Arc<Fuse>);

#[tonic::async_trait]
impl Store for MortalStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        self.0.list(range).await
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.0.list_all(prefix).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.0.revision().await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let dead = Err(StoreError::Unavailable("the process has ended".to_owned()));
        match self.1.step() {
            Fate::Done => self.0.commit(transaction).await,
            Fate::DoneUnheard => {
                self.0.commit(transaction).await?;
                dead
            }
            Fate::Undone => dead,
        }
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError> {
        self.0.watch(prefix, after_revision).await
    }

    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError> {
        self.0.lead(instance).await
    }
}

#[derive(Debug)]
struct MortalFleet(Fleet, Arc<Fuse>);

#[tonic::async_trait]
impl EngineClient for MortalFleet {
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError> {
        let dead = Err(EngineError::Unreachable {
            node: engine.node.clone(),
            reason: "the process has ended".to_owned(),
        });
        match self.1.step() {
            Fate::Done => self.0.execute(engine, term, command).await,
            Fate::DoneUnheard => {
                self.0.execute(engine, term, command).await?;
                dead
            }
            Fate::Undone => dead,
        }
    }

    async fn report(&self, engine: &EngineAddress) -> Result<Arc<EngineReport>, EngineError> {
        self.0.report(engine).await
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    Delete,
    GrowAndPublish,
    Snapshot,
    Clone,
    DeleteSnapshot,
    SnapshotTogether,
    LoseNode,
    Drain,
    Fewer,
}

impl Operation {
    const ALL: [Self; 10] = [
        Self::Create,
        Self::Delete,
        Self::GrowAndPublish,
        Self::Snapshot,
        Self::Clone,
        Self::DeleteSnapshot,
        Self::SnapshotTogether,
        Self::LoseNode,
        Self::Drain,
        Self::Fewer,
    ];

    async fn ask(self, cluster: &mut Cluster) {
        let old = cluster.get::<Volume>("old").await.expect("it is there");
        let old_node = old.status.as_ref().expect("it has one").target_node.clone();
        match self {
            Self::Create => put(&cluster.store, &volume("new", 3)).await,
            Self::Delete => {
                let deleted = |volume: &mut Volume| volume.meta_mut().deleted_unix_us = Some(1);
                cluster.update("other", deleted).await;
            }
            Self::GrowAndPublish => {
                let change = |volume: &mut Volume| {
                    let spec = volume.spec.as_mut().expect("it has one");
                    spec.size_bytes = 30 * GIB;
                    spec.hosts.push(HostAccess {
                        host_nqn: "nqn.2026-11.x:host".to_owned(),
                        read_only: false,
                        ..HostAccess::default()
                    });
                };
                cluster.update("old", change).await;
            }
            Self::Snapshot => put(&cluster.store, &snapshot("new", &old)).await,
            Self::Clone => {
                let mut clone = volume("new", 3);
                clone.spec.as_mut().expect("it has one").source_snapshot = "old".to_owned();
                put(&cluster.store, &clone).await;
            }
            Self::DeleteSnapshot => {
                let deleted = |snapshot: &mut Snapshot| snapshot.meta_mut().deleted_unix_us = Some(1);
                cluster.update("old", deleted).await;
            }
            Self::SnapshotTogether => {
                put(&cluster.store, &together("new", &["old", "other"])).await;
            }
            Self::LoseNode => {
                cluster.fleet.set_up(&old_node, false);
                // Until it counts as lost, and for as long as nobody is killed.
                cluster.clock.advance(SECOND_US);
            }
            Self::Drain => {
                let drain = |node: &mut Node| node.spec.as_mut().expect("it has one").drained = true;
                cluster.update(&old_node, drain).await;
            }
            Self::Fewer => {
                let fewer = |volume: &mut Volume| {
                    let policy = volume.spec.as_mut().and_then(|spec| spec.policy.as_mut());
                    policy.expect("it has one").replicas = Some(1);
                };
                cluster.update("old", fewer).await;
            }
        }
    }

    async fn check(self, cluster: &mut Cluster, acknowledged: &BTreeMap<String, u64>) {
        if self == Self::LoseNode {
            // It comes back, and what was left there goes.
            let nodes: Vec<String> = cluster.fleet.lock().engines.keys().cloned().collect();
            for node in nodes {
                let is_down = !cluster.fleet.lock().engines[&node].up;
                if is_down {
                    cluster.fleet.set_up(&node, true);
                }
            }
            cluster.settle().await;
        }
        cluster.check_settled();
        if self == Self::SnapshotTogether {
            check_taken(cluster, "new", 1);
        }
        let world = cluster.world();
        assert_eq!(
            world.volumes.contains_key("new"),
            matches!(self, Self::Create | Self::Clone)
        );
        assert_eq!(world.volumes.contains_key("other"), self != Self::Delete);
        assert_eq!(world.snapshots.contains_key("new"), self == Self::Snapshot);
        assert_eq!(world.snapshots.contains_key("old"), self != Self::DeleteSnapshot);
        let size = world.volumes["old"]
            .status
            .as_ref()
            .map(|status| status.size_bytes);
        let grown = if self == Self::GrowAndPublish { 30 } else { 10 };
        assert_eq!(size, Some(grown * GIB));
        let engines = cluster.fleet.lock();
        for (volume, before) in acknowledged {
            assert!(
                engines.acknowledged[volume] >= *before,
                "acknowledged writes are lost"
            );
        }
    }
}

async fn prepared() -> Cluster {
    let limits = Limits {
        replace_after_us: 20 * SECOND_US,
        ..Limits::default()
    };
    let mut cluster = Cluster::new(&layout(1, 5), limits).await;
    let old = volume("old", 2);
    put(&cluster.store, &old).await;
    put(&cluster.store, &volume("other", 3)).await;
    cluster.settle().await;
    put(&cluster.store, &snapshot("old", &old)).await;
    cluster.settle().await;
    cluster.check_settled();
    cluster
}

/// One run that is killed at a step. Returns whether it came to that step at all.
async fn run(operation: Operation, step: usize, is_after: bool) -> bool {
    let mut cluster = prepared().await;
    let acknowledged = cluster.fleet.lock().acknowledged.clone();
    let fuse = Arc::new(Fuse {
        left: AtomicUsize::new(step),
        is_after,
    });
    let store = Arc::new(MortalStore(cluster.store.clone(), fuse.clone()));
    let fleet = Arc::new(MortalFleet(cluster.fleet.clone(), fuse.clone()));
    cluster.restart_with(store, fleet).await;
    operation.ask(&mut cluster).await;
    let mut quiet = 0;
    while !fuse.is_blown() && quiet < 40 {
        cluster.clock.advance(SECOND_US);
        cluster.fleet.tick(&cluster.store).await;
        cluster.controller.pull_reports().await;
        quiet = match cluster.controller.pass().await {
            Ok(0) => quiet + 1,
            Ok(_) => 0,
            Err(error) => {
                assert!(fuse.is_blown(), "{error}");
                break;
            }
        };
    }
    let was_killed = fuse.is_blown();
    cluster.restart().await;
    cluster.settle().await;
    operation.check(&mut cluster, &acknowledged).await;
    was_killed
}

#[tokio::test]
async fn every_operation_survives_every_kill() {
    let mut kills = 0;
    for operation in Operation::ALL {
        for is_after in [false, true] {
            let mut step = 1;
            while run(operation, step, is_after).await {
                step += 1;
                assert!(step < 200, "{operation:?} never ends");
            }
            assert!(step > 2, "{operation:?} was killed at hardly any step");
            kills += step - 1;
        }
    }
    // Ten operations with several steps each, before and after.
    assert!(kills > 60, "{kills}");
}
