//! The long run: engines, the control plane and etcd are killed and brought back at random, while volumes are
//! made, written, limited, snapshotted, cloned, grown, moved and deleted, and their hosts get other secrets.
//! In the end everything is as it was asked for, the data is what was written, and nothing is left of what
//! was deleted.
//!
//! `cargo test -p pollux-control --test engines -- chaos --minutes 30 --etcd`

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use pollux_api::control::v1::{EngineReport, Qos, Volume, VolumePolicy};
use pollux_control::model::Kind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::asked::{Asked, limits, until_limited};
use crate::calls::VOLUME_BYTES;
use crate::cluster::{Cluster, HOST, Layout, Records, until};

/// Machines: one more than a volume has replicas, so that there is a place to go.
const ENGINES: usize = 4;

/// Those who make volumes and use them.
const USERS: u64 = 3;

/// How long a host goes on without a path that works.
const HOST_PATIENCE: &str = "170";

/// How much more of a pool may be in use than when it was new, by what a pool has for itself.
const POOL_OWN_BYTES: u64 = 4 << 20;

/// A volume that is there all the time, and of which snapshots are taken together with those of others.
const STILL: &str = "still";

/// The template that it follows, whose limits are changed all the time.
const TEMPLATE: &str = "still-template";

/// The pause before limits are changed that a host is to see while it writes.
const CHANGE_PAUSE: Duration = Duration::from_millis(500);

/// Records of which none is left when all volumes are deleted.
const GONE: [Kind; 5] = [
    Kind::Volume,
    Kind::Snapshot,
    Kind::GroupSnapshot,
    Kind::HostSecrets,
    Kind::Removal,
];

/// What the control plane has to end what it does, between two looks at its records.
const RECORDS_PAUSE: Duration = Duration::from_secs(2);

const MIB: u64 = 1 << 20;

#[derive(Debug, Parser)]
pub struct Arguments {
    /// How long, in minutes.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Keep records in etcd, and kill it too.
    #[arg(long)]
    etcd: bool,
    /// What is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    volumes: AtomicU64,
    writes: AtomicU64,
    snapshots: AtomicU64,
    group_snapshots: AtomicU64,
    group_snapshots_failed: AtomicU64,
    clones: AtomicU64,
    growths: AtomicU64,
    limits: AtomicU64,
    secrets: AtomicU64,
    drains: AtomicU64,
    engines_killed: AtomicU64,
    controls_killed: AtomicU64,
    etcds_killed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Does what the command line says.
pub fn main(arguments: &[String]) -> ExitCode {
    let arguments = Arguments::parse_from(arguments);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let records = match arguments.etcd {
        true => Records::Etcd,
        false => Records::Embedded,
    };
    let span = Duration::from_secs_f64(arguments.minutes * 60.0);
    runtime.block_on(run(records, span, arguments.seed));
    ExitCode::SUCCESS
}

/// What all who take part share.
struct Run {
    cluster: Cluster,
    until: Instant,
    /// Bytes in use of the fullest pool when all were new.
    new_bytes: u64,
    counts: Counts,
}

impl Run {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// A pause, not longer than the run.
    async fn pause(&self, span: Duration) {
        let left = self.until.saturating_duration_since(Instant::now());
        tokio::time::sleep(span.min(left)).await;
    }
}

/// A snapshot, and the file of what it holds.
struct Taken {
    name: String,
    state: String,
    bytes: u64,
    /// What it was taken by, if together with one of the volume that nobody writes to.
    together: Option<String>,
}

impl Taken {
    /// What there is on record.
    fn names(&self) -> impl Iterator<Item = String> {
        let other = self.together.iter().map(|together| format!("{together}.{STILL}"));
        other.chain([self.name.clone()])
    }

    async fn delete(&self, run: &Run) {
        match &self.together {
            Some(together) => run.cluster.delete_together(together).await,
            None => run.cluster.delete_snapshot(&self.name).await,
        }
    }
}

/// A volume that is to be there in the end.
struct Kept {
    volume: String,
    asked: Asked,
    snapshots: Vec<Taken>,
}

/// Runs for some time, and then looks at everything.
pub async fn run(records: Records, span: Duration, seed: u64) {
    let cluster = Cluster::with(Layout {
        engines: ENGINES,
        records,
        ..Layout::default()
    })
    .await;
    let new_bytes = used_bytes(&cluster.reports().await);
    let policy = VolumePolicy {
        replicas: Some(3),
        min_in_sync: Some(1),
        ..VolumePolicy::default()
    };
    cluster.create_template(TEMPLATE, policy).await;
    cluster.create_following(STILL, TEMPLATE).await;
    cluster.until_healthy(STILL).await;
    let run = Arc::new(Run {
        new_bytes,
        cluster,
        until: Instant::now() + span,
        counts: Counts::default(),
    });
    let _witness = LogWitness(run.clone());
    let mut killers = JoinSet::new();
    killers.spawn(kill_engines(run.clone(), StdRng::seed_from_u64(seed)));
    killers.spawn(kill_control(run.clone(), StdRng::seed_from_u64(seed + 1)));
    killers.spawn(drain(run.clone(), StdRng::seed_from_u64(seed + 2)));
    let limiter = tokio::spawn(change_template(run.clone(), StdRng::seed_from_u64(seed + 3)));
    let mut users = JoinSet::new();
    for number in 0..USERS {
        users.spawn(use_volumes(
            run.clone(),
            number,
            StdRng::seed_from_u64(seed + 10 + number),
        ));
    }
    // Users may have to wait for what was killed: it comes back, whoever waits.
    let mut kept = Vec::new();
    while let Some(ended) = killers.join_next().await {
        ended.expect("nothing went wrong");
    }
    while let Some(ended) = users.join_next().await {
        kept.extend(ended.expect("nothing went wrong"));
    }
    let template = limiter.await.expect("nothing went wrong");
    let began = Instant::now();
    check(&run, kept, template).await;
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(
        std::io::stdout(),
        "{records:?}, seed {seed}, {span:?} and {:.1?} to check: {:?}",
        began.elapsed(),
        run.counts
    );
}

/// Tells what everybody has logged, if the test fails.
struct LogWitness(Arc<Run>);

impl Drop for LogWitness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cluster.tell_logs();
        }
    }
}

/// Kills engines, sometimes two at a time, and brings them back.
async fn kill_engines(run: Arc<Run>, mut random: StdRng) {
    let nodes = run.cluster.nodes();
    while !run.is_over() {
        run.pause(Duration::from_millis(random.random_range(1_000..6_000)))
            .await;
        let first = random.random_range(0..nodes.len());
        let second = random.random_range(0..nodes.len());
        let mut down = vec![first];
        if second != first && random.random_bool(0.2) {
            down.push(second);
        }
        for at in &down {
            run.cluster.kill(&nodes[*at]);
            count(&run.counts.engines_killed);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..5_000))).await;
        for at in down {
            run.cluster.restart(&nodes[at]);
        }
    }
}

/// Kills the control plane, and etcd if there is one.
async fn kill_control(run: Arc<Run>, mut random: StdRng) {
    while !run.is_over() {
        run.pause(Duration::from_millis(random.random_range(2_000..15_000)))
            .await;
        if random.random_bool(0.5) && run.cluster.kill_etcd() {
            count(&run.counts.etcds_killed);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
            run.cluster.start_etcd();
        } else {
            run.cluster.kill_control();
            count(&run.counts.controls_killed);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
            run.cluster.start_control();
        }
    }
}

/// Bytes in use of the fullest pool.
fn used_bytes(reports: &[EngineReport]) -> u64 {
    let pools = reports.iter().flat_map(|report| &report.pools);
    pools.map(|pool| pool.used_bytes).max().unwrap_or(0)
}

/// Has all that is on a node go elsewhere, and lets it come back.
async fn drain(run: Arc<Run>, mut random: StdRng) {
    let nodes = run.cluster.nodes();
    while !run.is_over() {
        run.pause(Duration::from_millis(random.random_range(3_000..20_000)))
            .await;
        let node = &nodes[random.random_range(0..nodes.len())];
        run.cluster.drain(node, true).await;
        count(&run.counts.drains);
        run.pause(Duration::from_millis(random.random_range(1_000..8_000)))
            .await;
        run.cluster.drain(node, false).await;
    }
}

/// Gives a template other limits, again and again; those that it has in the end.
async fn change_template(run: Arc<Run>, mut random: StdRng) -> Qos {
    let mut last = Qos::default();
    while !run.is_over() {
        run.pause(Duration::from_millis(random.random_range(1_000..8_000)))
            .await;
        last = limits(&mut random).unwrap_or_default();
        run.cluster.limit_template(TEMPLATE, last).await;
        count(&run.counts.limits);
    }
    last
}

/// Writes to a volume for some time, from what a file says that it holds, and reads everything back.
async fn write(run: &Arc<Run>, volume: &str, state: &str, seconds: u64, asked: &Asked) {
    let published = run.cluster.publish(volume, HOST, false).await;
    // Replicas move while it writes.
    let published = run.cluster.anywhere(&published);
    // All engines may be killed while it writes.
    let own = asked.arguments(&run.cluster);
    let mut more = vec!["--power-loss", "--patience", HOST_PATIENCE];
    more.extend(own.iter().map(String::as_str));
    let host = run.cluster.host_with(&published, state, seconds, &more);
    let told = host.finished().await;
    let writes = told["writes"].as_u64().expect("a number");
    run.counts.writes.fetch_add(writes, Ordering::Relaxed);
}

/// Makes a volume of a snapshot, and looks whether it holds what it should.
async fn check_snapshot(run: &Arc<Run>, taken: &Taken) {
    let clone = format!("{}-copy", taken.name);
    let policy = VolumePolicy {
        replicas: Some(2),
        min_in_sync: Some(1),
        ..VolumePolicy::default()
    };
    run.cluster
        .create_sized(&clone, policy, &taken.name, taken.bytes)
        .await;
    write(run, &clone, &taken.state, 0, &Asked::default()).await;
    run.cluster.unpublish(&clone, None).await;
    run.cluster.delete(&clone).await;
    until("the copy is gone", || async {
        let volumes = run.cluster.all_volumes().await?;
        let is_there = |volume: &Volume| {
            volume
                .metadata
                .as_ref()
                .is_some_and(|metadata| metadata.name == clone)
        };
        (!volumes.iter().any(is_there)).then_some(())
    })
    .await;
    count(&run.counts.clones);
}

/// Takes snapshots of a volume and of the one that is always there, as often as it takes.
async fn take_together(run: &Arc<Run>, name: &str, volume: &str) {
    while run
        .cluster
        .snapshot_together(name, &[volume, STILL])
        .await
        .is_err()
    {
        // Whoever is needed for it may be away for longer than it is tried.
        count(&run.counts.group_snapshots_failed);
        run.cluster.delete_together(name).await;
    }
    count(&run.counts.group_snapshots);
}

/// One user: volumes one after the other; the last one stays.
async fn use_volumes(run: Arc<Run>, user: u64, mut random: StdRng) -> Option<Kept> {
    let mut number = 0;
    loop {
        let volume = format!("u{user}-{number}");
        number += 1;
        let replicas = random.random_range(2..=3);
        let policy = VolumePolicy {
            replicas: Some(replicas),
            min_in_sync: Some(random.random_range(1..replicas)),
            ..VolumePolicy::default()
        };
        run.cluster.create(&volume, policy).await;
        count(&run.counts.volumes);
        let mut bytes = VOLUME_BYTES;
        let mut snapshots: Vec<Taken> = Vec::new();
        let mut asked = Asked::default();
        for round in 0..random.random_range(2..6) {
            let writing = write(&run, &volume, &volume, random.random_range(1..4), &asked);
            if random.random_bool(0.4) {
                let next = limits(&mut random);
                let limiting = async {
                    tokio::time::sleep(CHANGE_PAUSE).await;
                    run.cluster.limit(&volume, next).await;
                };
                tokio::join!(writing, limiting);
                asked.limits = next;
                count(&run.counts.limits);
            } else {
                writing.await;
            }
            match random.random_range(0..10) {
                0 | 1 => {
                    let (name, state) = (format!("{volume}-s{round}"), format!("{volume}-s{round}-state"));
                    run.cluster.snapshot(&name, &volume).await;
                    run.cluster.copy_state(&volume, &state);
                    count(&run.counts.snapshots);
                    snapshots.push(Taken {
                        name,
                        state,
                        bytes,
                        together: None,
                    });
                }
                2 => {
                    bytes += 16 * MIB;
                    run.cluster.resize(&volume, bytes).await;
                    count(&run.counts.growths);
                }
                3 if !snapshots.is_empty() => {
                    let taken = snapshots.remove(random.random_range(0..snapshots.len()));
                    check_snapshot(&run, &taken).await;
                    taken.delete(&run).await;
                }
                4 | 5 => {
                    let (together, state) =
                        (format!("{volume}-g{round}"), format!("{volume}-g{round}-state"));
                    take_together(&run, &together, &volume).await;
                    run.cluster.copy_state(&volume, &state);
                    snapshots.push(Taken {
                        name: format!("{together}.{volume}"),
                        state,
                        bytes,
                        together: Some(together),
                    });
                }
                6 | 7 => {
                    asked.change_secrets(&run.cluster, &volume, &mut random).await;
                    count(&run.counts.secrets);
                }
                _ => {}
            }
            if run.is_over() {
                return Some(Kept {
                    volume,
                    asked,
                    snapshots,
                });
            }
        }
        for taken in &snapshots {
            taken.delete(&run).await;
        }
        run.cluster.unpublish(&volume, None).await;
        run.cluster.delete(&volume).await;
    }
}

/// The end: what is there is what was asked for, and holds what was written; deleted, nothing is left.
async fn check(run: &Arc<Run>, kept: Vec<Kept>, template: Qos) {
    let cluster = &run.cluster;
    let mut wanted: Vec<&str> = kept.iter().map(|kept| kept.volume.as_str()).collect();
    wanted.push(STILL);
    wanted.sort();
    for volume in &wanted {
        cluster.until_healthy(volume).await;
    }
    let name = |volume: Volume| volume.metadata.map(|metadata| metadata.name);
    until("there are the volumes that are to be", || async {
        let found = cluster.all_volumes().await?;
        let found: Vec<String> = found.into_iter().filter_map(name).collect();
        (found == wanted).then_some(())
    })
    .await;
    let taken = kept.iter().flat_map(|kept| &kept.snapshots);
    let mut snapshots: Vec<String> = taken.flat_map(Taken::names).collect();
    snapshots.sort();
    let found = until("snapshots are listed", || cluster.all_snapshots()).await;
    assert_eq!(found, snapshots);
    until_limited(cluster, STILL, Some(template).filter(|qos| !qos.is_nothing())).await;
    for kept in &kept {
        kept.asked.check(cluster, &kept.volume).await;
        write(run, &kept.volume, &kept.volume, 0, &kept.asked).await;
        for taken in &kept.snapshots {
            check_snapshot(run, taken).await;
        }
    }
    until("engines have the replicas that are on record", || async {
        let volumes = cluster.all_volumes().await?;
        let on_record = volumes.iter().flat_map(|volume| {
            let status = volume.status.iter();
            status.flat_map(|status| status.replicas.iter().map(|replica| replica.uid.clone()))
        });
        let mut on_record: Vec<String> = on_record.collect();
        let reports = cluster.reports().await;
        let held = reports.iter().flat_map(|report| &report.replicas);
        let mut held: Vec<String> = held
            .filter_map(|held| Some(held.config.as_ref()?.uid.clone()))
            .collect();
        on_record.sort();
        held.sort();
        (on_record == held).then_some(())
    })
    .await;
    for kept in &kept {
        for taken in &kept.snapshots {
            taken.delete(run).await;
        }
        cluster.unpublish(&kept.volume, None).await;
        cluster.delete(&kept.volume).await;
    }
    cluster.delete(STILL).await;
    until("nothing is left", || async {
        let reports = cluster.reports().await;
        let is_empty = reports
            .iter()
            .all(|report| report.replicas.is_empty() && report.targets.is_empty());
        let is_empty = is_empty && used_bytes(&reports) <= run.new_bytes + POOL_OWN_BYTES;
        let volumes = cluster.all_volumes().await?;
        (is_empty && volumes.is_empty() && reports.len() == ENGINES).then_some(())
    })
    .await;
    until("no record is left", || async {
        tokio::time::sleep(RECORDS_PAUSE).await;
        let keys = cluster.keys().await;
        let is_left = |key: &String| GONE.iter().any(|kind| key.starts_with(&kind.prefix()));
        (!keys.iter().any(is_left)).then_some(())
    })
    .await;
}
