//! Replicated volumes on engines that are processes of their own, the targets with them, while hosts write
//! and check all that they read: engines are killed, one or two at a time or all at once, and come back;
//! replicas go elsewhere. In the end every block is what it should be.
//!
//! Without counts it is short. The long run:
//!
//! ```text
//! cargo test --release -p pollux-control --test engines -- upsets \
//!     --failovers 200 --resyncs 500 --replacements 50 --kills 20
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use pollux_api::control::v1::{ReplicaState, VolumeState, VolumeStatus};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, HOST, Layout};
use crate::scenarios::{Witness, policy};

/// One more than a volume has replicas, so that there is a place to go.
const ENGINES: usize = 4;

/// As many as engines, so that each has a target.
const VOLUMES: usize = 4;

/// How long a host writes before all is read, and another one goes on.
const HOST_SECONDS: u64 = 5;

/// How long a host goes on without a path that works, in seconds.
const HOST_PATIENCE: &str = "170";

/// How often each thing is to happen at least.
#[derive(Debug, Clone, Parser)]
pub struct Arguments {
    /// Volumes whose target is killed, and that are served elsewhere.
    #[arg(long, default_value_t = 1)]
    failovers: usize,
    /// Replicas that are killed and are in sync again.
    #[arg(long, default_value_t = 3)]
    resyncs: usize,
    /// Replicas that are replaced by one on another engine.
    #[arg(long, default_value_t = 1)]
    replacements: usize,
    /// Kills of all engines at once.
    #[arg(long, default_value_t = 1)]
    kills: usize,
    /// What is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Default for Arguments {
    fn default() -> Self {
        Self::parse_from([""])
    }
}

/// Does what the command line says.
pub fn main(arguments: &[String]) -> ExitCode {
    let arguments = Arguments::parse_from(arguments);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(&arguments));
    ExitCode::SUCCESS
}

/// Something that happens to engines.
#[derive(Debug, Clone, Copy)]
enum Upset {
    /// Some are killed and come back.
    Outage,
    /// One is to have nothing any more.
    Drain,
    /// All are killed at once.
    Kill,
}

/// What has happened.
#[derive(Debug, Default)]
struct Happened {
    failovers: usize,
    resyncs: usize,
    replacements: usize,
    kills: usize,
    /// How long it took until all replicas were in sync again, at most.
    slowest_outage: Duration,
    slowest_drain: Duration,
    slowest_kill: Duration,
}

impl Happened {
    /// What has not happened as often as it is to.
    fn lacks(&self, wanted: &Arguments) -> Vec<Upset> {
        let outages = self.failovers < wanted.failovers || self.resyncs < wanted.resyncs;
        let all = [
            (Upset::Outage, outages),
            (Upset::Drain, self.replacements < wanted.replacements),
            (Upset::Kill, self.kills < wanted.kills),
        ];
        all.into_iter()
            .filter_map(|(upset, lacks)| lacks.then_some(upset))
            .collect()
    }
}

fn volume(number: usize) -> String {
    format!("v{number}")
}

fn has_replica_on(status: &VolumeStatus, node: &str) -> bool {
    status.replicas.iter().any(|replica| replica.node == node)
}

/// Upsets engines until everything has happened as often as it is to, and checks all volumes.
pub async fn run(wanted: &Arguments) {
    let began = Instant::now();
    let layout = Layout {
        engines: ENGINES,
        ..Layout::default()
    };
    let witness = Witness(Cluster::with(layout).await);
    let cluster = Arc::new(witness);
    for number in 0..VOLUMES {
        cluster.0.create(&volume(number), policy(3, 1)).await;
        cluster.0.until_healthy(&volume(number)).await;
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let mut hosts = JoinSet::new();
    for number in 0..VOLUMES {
        hosts.spawn(write(cluster.clone(), volume(number), is_over.clone()));
    }
    let mut random = StdRng::seed_from_u64(wanted.seed);
    let mut happened = Happened::default();
    while let Some(upset) = happened.lacks(wanted).choose(&mut random) {
        match upset {
            Upset::Outage => outage(&cluster.0, &mut random, &mut happened).await,
            Upset::Drain => drain(&cluster.0, &mut random, &mut happened).await,
            Upset::Kill => kill_all(&cluster.0, &mut random, &mut happened).await,
        }
    }
    is_over.store(true, Ordering::Relaxed);
    let mut told = Told::default();
    while let Some(host) = hosts.join_next().await {
        told.add(&host.expect("the host found what it wrote"));
    }
    assert!(told.writes > 0 && told.path_changes > 0, "{told:?}");
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(
        std::io::stdout(),
        "upsets, seed {}, {:.0?}: {happened:?}, {told:?}, no mismatch",
        wanted.seed,
        began.elapsed()
    );
}

/// What hosts tell.
#[derive(Debug, Default)]
struct Told {
    writes: u64,
    reads: u64,
    path_changes: u64,
    longest_gap_ms: u64,
}

impl Told {
    fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.path_changes += other.path_changes;
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
    }

    fn of(told: &Value) -> Self {
        let number = |name: &str| told[name].as_u64().expect("a number");
        Self {
            writes: number("writes"),
            reads: number("reads"),
            path_changes: number("path_changes"),
            longest_gap_ms: number("longest_gap_ms"),
        }
    }
}

/// One host after the other: each reads all that those before it wrote, and then writes.
async fn write(cluster: Arc<Witness>, volume: String, is_over: Arc<AtomicBool>) -> Told {
    let cluster = &cluster.0;
    let published = cluster.publish(&volume, HOST, false).await;
    // Replicas move while it writes.
    let published = cluster.anywhere(&published);
    let mut told = Told::default();
    loop {
        let seconds = match is_over.load(Ordering::Relaxed) {
            true => 0,
            false => HOST_SECONDS,
        };
        let more = ["--power-loss", "--patience", HOST_PATIENCE];
        let host = cluster.host_with(&published, &volume, seconds, &more);
        told.add(&Told::of(&host.finished().await));
        if seconds == 0 {
            return told;
        }
    }
}

/// What is known of all volumes while all of their replicas are in sync.
async fn healthy(cluster: &Cluster) -> Vec<(String, VolumeStatus)> {
    let mut all = Vec::with_capacity(VOLUMES);
    for number in 0..VOLUMES {
        let name = volume(number);
        let status = cluster.until_healthy(&name).await;
        all.push((name, status));
    }
    all
}

/// One engine or two are killed, missed, and come back.
async fn outage(cluster: &Cluster, random: &mut StdRng, happened: &mut Happened) {
    let before = healthy(cluster).await;
    let nodes = cluster.nodes();
    let count = if random.random_bool(0.25) { 2 } else { 1 };
    let down: BTreeSet<&str> = nodes.sample(random, count).map(String::as_str).collect();
    let began = Instant::now();
    for node in &down {
        cluster.kill(node);
    }
    let (mut failovers, mut resyncs) = (0, 0);
    for (name, old) in &before {
        let out = old.replicas.iter().map(|replica| replica.node.as_str());
        let out: Vec<&str> = out.filter(|node| down.contains(node)).collect();
        let is_missed = |status: &VolumeStatus| {
            let is_out = |node: &&str| {
                let mut there = status.replicas.iter().filter(|replica| replica.node == **node);
                there.all(|replica| replica.state() != ReplicaState::InSync)
            };
            status.state() == VolumeState::Degraded
                && !down.contains(status.target_node.as_str())
                && out.iter().all(is_out)
        };
        if out.is_empty() {
            continue;
        }
        let new = cluster
            .until_status(name, "who was killed is missed", is_missed)
            .await;
        if down.contains(old.target_node.as_str()) {
            assert!(new.epoch > old.epoch, "{old:?} {new:?}");
            failovers += 1;
        }
        resyncs += out.len();
    }
    for node in &down {
        cluster.restart(node);
    }
    healthy(cluster).await;
    happened.failovers += failovers;
    happened.resyncs += resyncs;
    happened.slowest_outage = happened.slowest_outage.max(began.elapsed());
}

/// All that an engine has goes to others, which fill new replicas.
async fn drain(cluster: &Cluster, random: &mut StdRng, happened: &mut Happened) {
    let before = healthy(cluster).await;
    let nodes = cluster.nodes();
    let node = nodes.choose(random).expect("there are engines");
    let began = Instant::now();
    cluster.drain(node, true).await;
    for (name, _) in before.iter().filter(|(_, status)| has_replica_on(status, node)) {
        let is_elsewhere =
            |status: &VolumeStatus| !has_replica_on(status, node) && status.state() == VolumeState::Healthy;
        cluster
            .until_status(name, "its replica is elsewhere", is_elsewhere)
            .await;
        happened.replacements += 1;
    }
    cluster.drain(node, false).await;
    happened.slowest_drain = happened.slowest_drain.max(began.elapsed());
}

/// All engines are killed at once.
async fn kill_all(cluster: &Cluster, random: &mut StdRng, happened: &mut Happened) {
    let before = healthy(cluster).await;
    let began = Instant::now();
    for node in cluster.nodes() {
        cluster.kill(&node);
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
    for node in cluster.nodes() {
        cluster.restart(&node);
    }
    for (name, old) in &before {
        cluster
            .until_status(name, "it is served again", |status| status.epoch > old.epoch)
            .await;
    }
    healthy(cluster).await;
    happened.kills += 1;
    happened.slowest_kill = happened.slowest_kill.max(began.elapsed());
}
