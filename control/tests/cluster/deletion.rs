//! What is deleted at the very moment at which something comes to name it, and by somebody who dies.

use std::sync::{Arc, Mutex};

use pollux_api::control::v1::engine_command::Command;
use pollux_api::control::v1::*;
use pollux_control::controller::Observations;
use pollux_control::engines::{EngineAddress, EngineClient, EngineError};
use pollux_control::model::{Guarded, Kind, Record};
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{CallError, ServiceParts, Services};
use pollux_control::store::{
    Condition, Entry, Leadership, Listing, MemoryStore, Range, Store, StoreError, Transaction, Watcher,
};

use crate::common::fleet::Fleet;
use crate::common::{Cluster, SECOND_US, VirtualClock, layout, named, put, volume};

/// A store in which something happens right after a kind of records was listed for the first time.
#[derive(Debug)]
struct Meanwhile {
    inner: MemoryStore,
    listed: Kind,
    act: Mutex<Option<Transaction>>,
    acted: Mutex<Option<Result<u64, StoreError>>>,
}

#[tonic::async_trait]
impl Store for Meanwhile {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        self.inner.list(range).await
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        let listing = self.inner.list_all(prefix).await;
        if prefix == self.listed.prefix() {
            let act = self.act.lock().expect("no test panics with it").take();
            if let Some(act) = act {
                let acted = self.inner.commit(act).await;
                self.acted.lock().expect("no test panics with it").replace(acted);
            }
        }
        listing
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.inner.revision().await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        self.inner.commit(transaction).await
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError> {
        self.inner.watch(prefix, after_revision).await
    }

    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError> {
        self.inner.lead(instance).await
    }
}

async fn find<R: Record>(store: &MemoryStore, name: &str) -> Option<R> {
    let entry = store.get(&R::KIND.key(name)).await.expect("it answers")?;
    Some(R::read(&entry).expect("it can be read"))
}

/// What naming a record is: something new, with the condition that the record is as it was looked at.
async fn naming<R: Record, N: Record>(store: &MemoryStore, named: &str, new: &N) -> Transaction {
    let found = find::<R>(store, named).await.expect("it is there");
    let mut transaction = Transaction::default();
    transaction.put(new);
    transaction.conditions.push(Condition {
        key: found.key(),
        revision: found.meta().revision,
    });
    transaction
}

/// Deletes, while a transaction happens between the look and the deletion. Says whether both happened.
async fn race<R: pollux_control::server::Managed>(
    store: &MemoryStore,
    name: &str,
    listed: Kind,
    act: Transaction,
) -> (Result<(), CallError>, Result<u64, StoreError>) {
    let meanwhile = Arc::new(Meanwhile {
        inner: store.clone(),
        listed,
        act: Mutex::new(Some(act)),
        acted: Mutex::new(None),
    });
    let services = Services::new(ServiceParts {
        store: meanwhile.clone(),
        observations: Arc::new(Observations::default()),
        engines: Arc::new(Fleet::default()),
        clock: Arc::new(VirtualClock::default()),
        limits: Limits::default(),
        guard: Guard::Local,
    });
    let deleted = services.delete::<R>(name).await;
    let acted = meanwhile.acted.lock().expect("no test panics with it").take();
    (deleted, acted.expect("it was listed"))
}

#[tokio::test]
async fn nothing_names_what_is_gone() {
    let store = MemoryStore::default();
    put(&store, &named(Template::default(), "t")).await;
    put(&store, &named(Group::default(), "g")).await;
    put(&store, &named(Node::default(), "n")).await;

    let mut new = volume("v", 1);
    new.spec.get_or_insert_default().template = "t".to_owned();
    let act = naming::<Template, _>(&store, "t", &new).await;
    let (deleted, acted) = race::<Template>(&store, "t", Kind::Volume, act).await;
    assert!(acted.is_ok(), "nobody was in its way: {acted:?}");
    assert!(matches!(deleted, Err(CallError::InUse { .. })), "{deleted:?}");
    let kept = find::<Template>(&store, "t").await.expect("it is in use");
    assert!(!kept.is_deleting());

    let mut new = volume("w", 1);
    new.spec.get_or_insert_default().group = "g".to_owned();
    let act = naming::<Group, _>(&store, "g", &new).await;
    let (deleted, acted) = race::<Group>(&store, "g", Kind::Volume, act).await;
    assert_eq!((deleted.is_err(), acted.is_ok()), (true, true));
    assert!(find::<Group>(&store, "g").await.is_some());

    let spec = PoolSpec {
        node: "n".to_owned(),
        ..PoolSpec::default()
    };
    let pool = Pool {
        spec: Some(spec),
        ..Pool::default()
    };
    let act = naming::<Node, _>(&store, "n", &named(pool, "n.p")).await;
    let (deleted, acted) = race::<Node>(&store, "n", Kind::Pool, act).await;
    assert_eq!((deleted.is_err(), acted.is_ok()), (true, true));
    assert!(
        find::<Node>(&store, "n")
            .await
            .is_some_and(|node| !node.is_deleting())
    );
}

#[tokio::test]
async fn who_looked_before_the_mark_names_nothing_after_it() {
    let store = MemoryStore::default();
    put(&store, &named(Template::default(), "t")).await;
    let mut new = volume("v", 1);
    new.spec.get_or_insert_default().template = "t".to_owned();
    let late = naming::<Template, _>(&store, "t", &new).await;
    let (deleted, _) = race::<Template>(&store, "t", Kind::Volume, Transaction::default()).await;
    assert_eq!(deleted, Ok(()));
    assert!(matches!(
        store.commit(late).await,
        Err(StoreError::Conflict { .. })
    ));
    assert!(find::<Volume>(&store, "v").await.is_none());
}

#[tokio::test]
async fn deletions_that_nobody_ends_are_ended() {
    let mut cluster = Cluster::new(&layout(1, 3), Limits::default()).await;
    let mut used = volume("v", 1);
    used.spec.get_or_insert_default().template = "used".to_owned();
    put(&cluster.store, &used).await;
    let now = cluster.world().now_unix_us;
    for name in ["used", "unused"] {
        let mut template = named(Template::default(), name);
        template.meta_mut().deleted_unix_us = Some(now);
        put(&cluster.store, &template).await;
    }
    let mut group = named(Group::default(), "g");
    group.meta_mut().deleted_unix_us = Some(now);
    put(&cluster.store, &group).await;
    cluster.settle().await;
    assert!(
        cluster.get::<Group>("g").await.is_some(),
        "it may be that somebody is about to"
    );
    cluster.clock.advance(60 * SECOND_US);
    cluster.settle().await;
    let used = cluster.get::<Template>("used").await.expect("a volume names it");
    assert!(!used.is_deleting());
    assert!(cluster.get::<Template>("unused").await.is_none());
    assert!(cluster.get::<Group>("g").await.is_none());
}

/// A report that was made before an engine did what it was told is no sign that there is nothing to remove.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_report_does_not_show_is_removed_all_the_same() {
    let mut cluster = Cluster::new(&layout(3, 1), Limits::default()).await;
    let nodes: Vec<String> = cluster.world().nodes.keys().cloned().collect();
    let reports = |cluster: &Cluster| -> Vec<_> {
        let observed = nodes.iter().filter_map(|node| cluster.observations.get(node));
        observed.map(|observation| observation.report).collect()
    };
    let before = reports(&cluster);
    assert_eq!(before.len(), 3, "an engine is silent");
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    cluster.check_settled();
    let now_us = cluster.world().now_unix_us;
    cluster
        .update::<Volume>("v", |volume| volume.meta_mut().deleted_unix_us = Some(now_us))
        .await;
    let mut removals = 0;
    // Nothing that was asked for later comes before the old reports, and they come again and again.
    for _ in 0..8 {
        for report in &before {
            cluster.observations.put(report.clone(), now_us);
        }
        cluster.clock.advance(SECOND_US / 10);
        cluster.controller.pass().await.expect("the store answers");
        removals = removals.max(cluster.world().removals.len());
    }
    assert!(removals > 0, "nothing had to be removed");
    cluster.settle().await;
    cluster.check_settled();
}

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done,
    Refused,
    Never,
}

/// Engines that do not do everything that they are told, and all that they were told to remove.
#[derive(Debug)]
struct Stubborn {
    fleet: Fleet,
    answer: Mutex<fn(&Command) -> Answer>,
    told: Mutex<Vec<Command>>,
}

impl Stubborn {
    fn set(&self, answer: fn(&Command) -> Answer) {
        *self.answer.lock().expect("no test panics with it") = answer;
    }
}

#[tonic::async_trait]
impl EngineClient for Stubborn {
    async fn execute(&self, engine: &EngineAddress, term: u64, command: Command) -> Result<(), EngineError> {
        if let Command::RemoveTarget(_) | Command::RemoveReplica(_) = command {
            self.told
                .lock()
                .expect("no test panics with it")
                .push(command.clone());
        }
        let answer = *self.answer.lock().expect("no test panics with it");
        match answer(&command) {
            Answer::Done => self.fleet.execute(engine, term, command).await,
            Answer::Refused => Err(EngineError::Refused {
                node: engine.node.clone(),
                reason: "it is in use".to_owned(),
            }),
            Answer::Never => std::future::pending().await,
        }
    }

    async fn report(&self, engine: &EngineAddress) -> Result<Arc<EngineReport>, EngineError> {
        self.fleet.report(engine).await
    }
}

/// How many commands of each kind were told: to end targets, to remove replicas.
fn count(engines: &Stubborn) -> (usize, usize) {
    let told = engines.told.lock().expect("no test panics with it");
    let targets = told
        .iter()
        .filter(|command| matches!(command, Command::RemoveTarget(_)));
    let targets = targets.count();
    (targets, told.len() - targets)
}

/// A cluster with a volume that is about to go, and the node that serves it.
async fn cluster_with_doomed(answer: fn(&Command) -> Answer) -> (Cluster, Arc<Stubborn>, String) {
    let mut cluster = Cluster::new(&layout(3, 1), Limits::default()).await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    let served = cluster.get::<Volume>("v").await.expect("it is there");
    let node = served.status.expect("it has been planned for").target_node;
    let engines = Arc::new(Stubborn {
        fleet: cluster.fleet.clone(),
        answer: Mutex::new(answer),
        told: Mutex::default(),
    });
    let store = Arc::new(cluster.store.clone());
    cluster.restart_with(store, engines.clone()).await;
    let now_us = cluster.world().now_unix_us;
    cluster
        .update::<Volume>("v", |volume| volume.meta_mut().deleted_unix_us = Some(now_us))
        .await;
    (cluster, engines, node)
}

fn ends_no_target(command: &Command) -> Answer {
    match command {
        Command::RemoveTarget(_) => Answer::Refused,
        _ => Answer::Done,
    }
}

#[tokio::test]
async fn replicas_stay_until_their_volume_is_served_nowhere() {
    let (mut cluster, engines, _) = cluster_with_doomed(ends_no_target).await;
    cluster.ticks(5).await;
    assert!(cluster.get::<Volume>("v").await.is_none(), "its name is free");
    let (targets, replicas) = count(&engines);
    assert!(targets > 0, "nobody is told to serve it no more");
    assert_eq!(replicas, 0, "its target is left without replicas");
    engines.set(|_| Answer::Done);
    cluster.settle().await;
    cluster.check_settled();
}

#[tokio::test]
async fn replicas_wait_for_nobody_who_is_dead() {
    let (mut cluster, engines, node) = cluster_with_doomed(ends_no_target).await;
    cluster.ticks(1).await;
    cluster.fleet.set_up(&node, false);
    engines.set(|_| Answer::Done);
    cluster.settle().await;
    let left = &cluster.world().removals;
    assert!(
        !left.is_empty() && left.values().all(|removal| removal.node == node),
        "{left:?}"
    );
    cluster.fleet.set_up(&node, true);
    cluster.settle().await;
    cluster.check_settled();
}

#[tokio::test]
async fn what_is_made_does_not_wait_for_what_is_removed() {
    // Replicas are to be removed and made, and neither is done yet.
    let neither = |command: &Command| match command {
        Command::RemoveReplica(_) | Command::EnsureReplica(_) => Answer::Refused,
        _ => Answer::Done,
    };
    let (mut cluster, engines, _) = cluster_with_doomed(neither).await;
    put(&cluster.store, &volume("w", 3)).await;
    cluster.ticks(5).await;
    let (_, replicas) = count(&engines);
    assert!(replicas > 0, "nothing is to be removed");
    // Whoever leads next tells engines both at once.
    engines.set(|command| match command {
        Command::RemoveReplica(_) => Answer::Never,
        _ => Answer::Done,
    });
    let store = Arc::new(cluster.store.clone());
    cluster.restart_with(store, engines.clone()).await;
    cluster.clock.advance(700 * SECOND_US);
    cluster.ticks(6).await;
    let made = cluster.get::<Volume>("w").await.expect("it is there");
    let status = made.status.expect("it has been planned for");
    assert_eq!(status.state(), VolumeState::Healthy, "{status:?}");
}
