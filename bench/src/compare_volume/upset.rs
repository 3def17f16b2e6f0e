//! What hosts see while something happens to a volume: a rebuild, moves, failovers; and what a resync copies.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pollux_api::control::v1::{VolumeState, VolumeStatus};

use super::Error;
use super::cluster::{Backing, Cluster, Setup};
use super::host::{self, Host, Work};
use super::table::{Row, Wanted};

const GIB: u64 = 1 << 30;

/// The volume that is moved and fails over.
const VOLUME: &str = "v";

/// Its size.
const VOLUME_BYTES: u64 = 256 << 20;

/// The size of the volume that gets one replica more: all of it is written before.
const REBUILT_BYTES: u64 = 768 << 20;

/// The size of pools for it, which are in memory.
const REBUILT_POOL_BYTES: u64 = 1536 << 20;

/// Requests at a time, and how many of a hundred are reads, while something happens.
const DEPTH: usize = 4;
const READ_PERCENT: u64 = 70;

/// How long a host is left alone before it is measured, and how long it is measured before a rebuild.
const WARM_UP: Duration = Duration::from_secs(1);
const BEFORE: Duration = Duration::from_secs(4);

/// How long a host goes on after something has happened.
const AFTER: Duration = Duration::from_millis(500);

/// How often a target moves, and how often one is killed.
const MOVES: usize = 5;
const FAILOVERS: usize = 3;

/// The volume whose replica is away: its size, and the places in which it is written.
const LARGE_BYTES: u64 = 100 * GIB;
const LARGE_POOL_BYTES: u64 = 120 * GIB;
const PLACES: u64 = 16;
const PLACE_BYTES: u64 = 64 << 20;
const OUTAGE: Duration = Duration::from_secs(10);

const BLOCK_BYTES: u64 = 4096;

fn work(volume_bytes: u64) -> Work {
    Work {
        depth: DEPTH,
        read_percent: READ_PERCENT,
        blocks: volume_bytes / BLOCK_BYTES,
    }
}

fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// In milliseconds, as a figure.
fn millis(us: u64) -> f64 {
    us as f64 / 1e3
}

/// Several figures, for the detail of a row.
fn list(values: &[f64], unit: &str) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:.0}")).collect();
    format!("{} {unit}", values.join(", "))
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// A volume of two replicas, all of which is written, gets a third one while it is used.
pub async fn rebuild(setup: &Setup, core: Option<usize>) -> Result<Vec<Row>, Error> {
    let backing = Backing::Memory {
        bytes: REBUILT_POOL_BYTES,
    };
    let cluster = Cluster::start(setup, backing).await?;
    let published = cluster.create(VOLUME, REBUILT_BYTES, 2, None).await?;
    let host = Host::new(&published, core)?;
    host.fill(host::whole(REBUILT_BYTES)).await?;
    host.work(work(REBUILT_BYTES))?;
    tokio::time::sleep(WARM_UP).await;
    host.take()?;
    tokio::time::sleep(BEFORE).await;
    let before = host.take()?;
    let began = std::time::Instant::now();
    cluster.set_replicas(VOLUME, 3).await?;
    let is_done =
        |status: &VolumeStatus| status.replicas.len() == 3 && status.state() == VolumeState::Healthy;
    cluster
        .until_status(VOLUME, "the third replica is in sync", is_done)
        .await?;
    let took = began.elapsed();
    let during = host.take()?;
    let p99 = |span: &host::Span| span.latencies_us.value_at_quantile(0.99) as f64;
    let rate = |span: &host::Span, time: Duration| span.latencies_us.len() as f64 / time.as_secs_f64() / 1e3;
    Ok(vec![Row {
        what: "foreground p99 during a full rebuild against before".to_owned(),
        figure: p99(&during) / p99(&before).max(1.0),
        unit: "",
        wanted: Wanted::AtMost(2.0),
        detail: format!(
            "p99 {:.0} us during, {:.0} before; p50 {} and {}; {:.1} and {:.1} kIOPS at depth {DEPTH}, \
             {READ_PERCENT} % reads; {} MiB in {:.1} s",
            p99(&during),
            p99(&before),
            during.latencies_us.value_at_quantile(0.5),
            before.latencies_us.value_at_quantile(0.5),
            rate(&during, took),
            rate(&before, BEFORE),
            REBUILT_BYTES >> 20,
            took.as_secs_f64()
        ),
    }])
}

/// The node that serves is drained, again and again.
pub async fn moves(setup: &Setup, core: Option<usize>) -> Result<Vec<Row>, Error> {
    let cluster = Cluster::start(setup, Backing::Memory { bytes: GIB }).await?;
    let published = cluster.create(VOLUME, VOLUME_BYTES, 3, None).await?;
    let host = Host::new(&published, core)?;
    host.fill(host::whole(VOLUME_BYTES)).await?;
    host.work(work(VOLUME_BYTES))?;
    tokio::time::sleep(WARM_UP).await;
    let calm = host.take()?;
    let mut held = Vec::new();
    for _ in 0..MOVES {
        let old = cluster.status(VOLUME).await?.target_node;
        tokio::time::sleep(AFTER).await;
        host.take()?;
        cluster.drain(&old, true).await?;
        let has_moved =
            |status: &VolumeStatus| status.target_node != old && status.state() == VolumeState::Healthy;
        cluster
            .until_status(VOLUME, "another node serves it", has_moved)
            .await?;
        tokio::time::sleep(AFTER).await;
        held.push(millis(host.take()?.longest.0));
        cluster.drain(&old, false).await?;
    }
    Ok(vec![Row {
        what: "planned move of a target: longest I/O held".to_owned(),
        figure: largest(&held),
        unit: " ms",
        wanted: Wanted::AtMost(250.0),
        detail: format!("{}; before {:.1} ms", list(&held, "ms"), millis(calm.longest.0)),
    }])
}

/// The engine that serves is killed, and comes back.
pub async fn failovers(setup: &Setup, core: Option<usize>) -> Result<Vec<Row>, Error> {
    let mut cluster = Cluster::start(setup, Backing::File { bytes: 2 * GIB }).await?;
    let published = cluster.create(VOLUME, VOLUME_BYTES, 3, None).await?;
    let host = Host::new(&published, core)?;
    host.fill(host::whole(VOLUME_BYTES)).await?;
    host.work(work(VOLUME_BYTES))?;
    let (mut since_known, mut since_killed) = (Vec::new(), Vec::new());
    for _ in 0..FAILOVERS {
        let old = cluster.status(VOLUME).await?.target_node;
        tokio::time::sleep(WARM_UP).await;
        host.take()?;
        let killed_at = unix_us();
        cluster.kill(&old)?;
        let has_moved =
            |status: &VolumeStatus| status.target_node != old && status.state() == VolumeState::Degraded;
        cluster
            .until_status(VOLUME, "another node serves it", has_moved)
            .await?;
        tokio::time::sleep(AFTER).await;
        let (_, served_at) = host.take()?.longest;
        // When the control plane made up its mind that there is nobody to be told to stop.
        let events = cluster.events(VOLUME).await?;
        let known = events
            .iter()
            .rev()
            .find(|event| event.unix_us >= killed_at && event.message.starts_with("is served by node"));
        let known = known.ok_or_else(|| Error::Odd("nobody tells that the target was lost".to_owned()))?;
        since_known.push(millis(served_at.saturating_sub(known.unix_us)));
        since_killed.push(millis(served_at.saturating_sub(killed_at)));
        cluster.restart(&old)?;
        cluster.until_healthy(VOLUME).await?;
    }
    Ok(vec![Row {
        what: "unplanned failover after the target is known dead".to_owned(),
        figure: largest(&since_known) / 1e3,
        unit: " s",
        wanted: Wanted::AtMost(1.0),
        detail: format!(
            "{}; from the kill {}, of which 2 s until it is missed",
            list(&since_known, "ms"),
            list(&since_killed, "ms")
        ),
    }])
}

/// Blocks of the places that are written: no place begins where a region does.
fn places() -> Vec<Range<u64>> {
    let (step, odd) = (LARGE_BYTES / PLACES / BLOCK_BYTES, 37);
    let place = |number: u64| {
        let start = number * step + number * odd + odd;
        start..start + PLACE_BYTES / BLOCK_BYTES
    };
    (0..PLACES).map(place).collect()
}

/// A replica of a large volume is away while some of it is overwritten.
pub async fn resync(setup: &Setup, core: Option<usize>) -> Result<Vec<Row>, Error> {
    let backing = Backing::File {
        bytes: LARGE_POOL_BYTES,
    };
    let mut cluster = Cluster::start(setup, backing).await?;
    let published = cluster.create(VOLUME, LARGE_BYTES, 3, None).await?;
    let host = Host::new(&published, core)?;
    host.fill(places()).await?;
    let target = cluster.status(VOLUME).await?.target_node;
    let away = cluster.nodes().find(|node| **node != target).map(str::to_owned);
    let away = away.ok_or_else(|| Error::Odd("there is one node only".to_owned()))?;
    let began = std::time::Instant::now();
    cluster.kill(&away)?;
    host.fill(places()).await?;
    tokio::time::sleep(OUTAGE.saturating_sub(began.elapsed())).await;
    let outage = began.elapsed();
    let began = std::time::Instant::now();
    cluster.restart(&away)?;
    let is_there = |status: &VolumeStatus| status.state() == VolumeState::Degraded;
    cluster
        .until_status(VOLUME, "the replica is missed", is_there)
        .await?;
    cluster.until_healthy(VOLUME).await?;
    let took = began.elapsed();
    let written = cluster.written_bytes(&away).await?;
    if written == 0 {
        return Err(Error::Odd("the engine tells nothing of its drive".to_owned()));
    }
    Ok(vec![Row {
        what: "resync after an outage of 10 s of a 100 GiB volume, 1 GiB overwritten meanwhile".to_owned(),
        figure: written as f64 / GIB as f64,
        unit: " GiB",
        wanted: Wanted::AtMost(1.3),
        detail: format!(
            "all that the drive of the returning engine was written, journal included; {PLACES} places of \
             {} MiB; away for {:.1} s, in sync {:.1} s after its start",
            PLACE_BYTES >> 20,
            outage.as_secs_f64(),
            took.as_secs_f64()
        ),
    }])
}
