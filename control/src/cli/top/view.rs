//! What is shown: one row for each node, volume and pool, with what happened between two looks.

use std::collections::BTreeMap;
use std::io::Write;

use pollux_api::control::v1::{
    DeviceRole, MirrorMeasurements, NodeState, PoolState, ReplicaPace, ReplicaState, RollBackProgress,
    VolumeState,
};
use serde::Serialize;

use crate::cli::Size;
use crate::cli::connection::CommandError;
use crate::cli::output::{short, table};
use crate::model::Record;

use super::rates::{Activity, activities, seconds_between};
use super::sample::Sample;

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NodeRow {
    pub(super) name: String,
    pub(super) state: String,
    /// How busy its reactors are, 0 to 1; nothing if its engine did not answer twice.
    pub(super) busy: Option<f64>,
    pub(super) connections: u64,
    pub(super) activity: Activity,
    /// Why there are no numbers.
    pub(super) problem: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct VolumeRow {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) target: String,
    pub(super) size_bytes: u64,
    pub(super) replicas_in_sync: usize,
    pub(super) replicas: usize,
    /// Replicas that data is being copied to.
    pub(super) replicas_resyncing: usize,
    /// Replicas that are far slower than others, or out for that.
    pub(super) replicas_slow: usize,
    /// Bytes that replicas miss, added up.
    pub(super) missed_bytes: u64,
    /// How long the copy will take; nothing if nothing is copied, or it is too early to tell.
    pub(super) copy_seconds_left: Option<f64>,
    /// How far it has gone back to a snapshot; nothing if it does not.
    pub(super) roll_back: Option<RollBackRow>,
    pub(super) activity: Activity,
}

/// The way back to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct RollBackRow {
    pub(super) compared_bytes: u64,
    pub(super) size_bytes: u64,
    /// Nothing if it is too early to tell.
    pub(super) seconds_left: Option<f64>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PoolRow {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) state: String,
    pub(super) used_bytes: u64,
    pub(super) capacity_bytes: u64,
    pub(super) provisioned_bytes: u64,
    pub(super) replicas: u32,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct View {
    /// Between the two looks.
    pub(super) seconds: f64,
    /// All that hosts ask for.
    pub(super) total: Activity,
    /// The busiest first.
    pub(super) volumes: Vec<VolumeRow>,
    /// By name.
    pub(super) nodes: Vec<NodeRow>,
    /// The fullest first.
    pub(super) pools: Vec<PoolRow>,
}

impl View {
    /// What happened between two looks.
    pub(super) fn new(before: &Sample, now: &Sample) -> Self {
        // By the name that engines call them: that of the volume, or its UUID.
        let mut by_device: BTreeMap<String, Activity> = BTreeMap::new();
        let mut total = Activity::default();
        let mut nodes = Vec::new();
        for node in &now.nodes {
            let mut row = NodeRow {
                name: node.name().to_owned(),
                state: match node
                    .status
                    .as_ref()
                    .map(|status| status.state())
                    .unwrap_or_default()
                {
                    NodeState::Unspecified => "never heard from".to_owned(),
                    state => short(state.as_str_name(), "NODE_STATE_"),
                },
                busy: None,
                connections: 0,
                activity: Activity::default(),
                problem: String::new(),
            };
            let of = |sample: &Sample| {
                let mut measured = sample.measured.iter();
                measured.find(|measured| measured.node == node.name()).cloned()
            };
            let newest = of(now);
            if let Some(newest) = &newest {
                row.problem.clone_from(&newest.problem);
            }
            let newest = newest.and_then(|newest| newest.measurements);
            let earlier = of(before).and_then(|earlier| earlier.measurements);
            if let (Some(earlier), Some(newest)) = (earlier, newest) {
                for (device, activity) in activities(&earlier, &newest, DeviceRole::Volume) {
                    by_device.entry(device.name.clone()).or_default().add(&activity);
                    row.activity.add(&activity);
                }
                row.connections = newest.reactors.iter().map(|reactor| reactor.connections).sum();
                let busy_ns = |reactors: &[pollux_api::control::v1::ReactorMeasurements]| {
                    reactors.iter().map(|reactor| reactor.busy_ns).sum::<u64>()
                };
                row.busy = seconds_between(&earlier, &newest).map(|seconds| {
                    let busy_ns = busy_ns(&newest.reactors).saturating_sub(busy_ns(&earlier.reactors));
                    busy_ns as f64 / 1e9 / seconds / newest.reactors.len().max(1) as f64
                });
            }
            total.add(&row.activity);
            nodes.push(row);
        }
        Self {
            seconds: now.taken.saturating_duration_since(before.taken).as_secs_f64(),
            total,
            volumes: volumes(now, &by_device),
            nodes,
            pools: pools(now),
        }
    }

    /// Tells it as tables.
    pub(super) fn write(&self, rows: usize, into: &mut impl Write) -> Result<(), CommandError> {
        writeln!(into, "{}\n", self.headline())?;
        let volumes = self.volumes.iter().take(rows).map(VolumeRow::cells).collect();
        table(&VOLUME_COLUMNS, volumes, into)?;
        writeln!(into)?;
        let nodes = self.nodes.iter().take(rows).map(NodeRow::cells).collect();
        table(&NODE_COLUMNS, nodes, into)?;
        writeln!(into)?;
        let pools = self.pools.iter().take(rows).map(PoolRow::cells).collect();
        table(&POOL_COLUMNS, pools, into)
    }

    /// The whole in one line.
    pub(super) fn headline(&self) -> String {
        let resyncing: usize = self.volumes.iter().map(|volume| volume.replicas_resyncing).sum();
        format!(
            "reads {}/s {}/s  writes {}/s {}/s  {} volumes  {resyncing} replicas resync",
            count(self.total.read.operations),
            bytes(self.total.read.bytes),
            count(self.total.write.operations),
            bytes(self.total.write.bytes),
            self.volumes.len(),
        )
    }
}

pub(super) const VOLUME_COLUMNS: [&str; 10] = [
    "VOLUME",
    "STATE",
    "TARGET",
    "SYNC",
    "READ/S",
    "WRITE/S",
    "READ B/S",
    "WRITE B/S",
    "READ P99",
    "WRITE P99",
];
pub(super) const NODE_COLUMNS: [&str; 9] = [
    "NODE",
    "STATE",
    "BUSY",
    "HOSTS",
    "READ/S",
    "WRITE/S",
    "READ B/S",
    "WRITE B/S",
    "PROBLEM",
];
pub(super) const POOL_COLUMNS: [&str; 6] = ["POOL", "NODE", "STATE", "USED", "CAPACITY", "GIVEN OUT"];

impl VolumeRow {
    pub(super) fn cells(&self) -> Vec<String> {
        let mut resync = match self.replicas_resyncing {
            0 => String::new(),
            resyncing => format!(" +{resyncing}"),
        };
        if self.replicas_resyncing > 0 && self.missed_bytes > 0 {
            resync += &format!(" {}", bytes(self.missed_bytes as f64));
        }
        if let Some(seconds) = self.copy_seconds_left {
            resync += &format!(" {seconds:.0}s");
        }
        if let Some(roll_back) = &self.roll_back {
            let part = roll_back.compared_bytes as f64 / roll_back.size_bytes.max(1) as f64;
            resync += &format!(" back {:.0}%", part * 100.0);
            if let Some(seconds) = roll_back.seconds_left {
                resync += &format!(" {seconds:.0}s");
            }
        }
        if self.replicas_slow > 0 {
            resync += &format!(" {} slow", self.replicas_slow);
        }
        let Activity { read, write } = &self.activity;
        vec![
            self.name.clone(),
            self.state.clone(),
            self.target.clone(),
            format!("{}/{}{resync}", self.replicas_in_sync, self.replicas),
            count(read.operations),
            count(write.operations),
            bytes(read.bytes),
            bytes(write.bytes),
            time(read.latency_p99_us),
            time(write.latency_p99_us),
        ]
    }
}

impl From<&RollBackProgress> for RollBackRow {
    fn from(progress: &RollBackProgress) -> Self {
        Self {
            compared_bytes: progress.compared_bytes,
            size_bytes: progress.size_bytes,
            seconds_left: progress.time_left_us.map(|us| us as f64 / 1e6),
        }
    }
}

impl NodeRow {
    pub(super) fn cells(&self) -> Vec<String> {
        let Activity { read, write } = &self.activity;
        vec![
            self.name.clone(),
            self.state.clone(),
            self.busy
                .map_or_else(String::new, |busy| format!("{:.0}%", busy * 100.0)),
            self.connections.to_string(),
            count(read.operations),
            count(write.operations),
            bytes(read.bytes),
            bytes(write.bytes),
            self.problem.clone(),
        ]
    }
}

impl PoolRow {
    pub(super) fn cells(&self) -> Vec<String> {
        let percent = match self.capacity_bytes {
            0 => String::new(),
            capacity => format!(" {:.0}%", self.used_bytes as f64 * 100.0 / capacity as f64),
        };
        vec![
            self.name.clone(),
            self.node.clone(),
            self.state.clone(),
            format!("{}{percent}", Size(self.used_bytes)),
            Size(self.capacity_bytes).to_string(),
            Size(self.provisioned_bytes).to_string(),
        ]
    }
}

/// What the target of a volume tells of its replicas.
fn mirror<'a>(now: &'a Sample, volume: &str) -> Option<&'a MirrorMeasurements> {
    let measured = now.measured.iter().filter_map(|node| node.measurements.as_ref());
    let mut mirrors = measured.flat_map(|measured| &measured.mirrors);
    mirrors.find(|mirror| mirror.volume == volume)
}

fn slow(mirror: &MirrorMeasurements) -> usize {
    let replicas = mirror.replicas.iter();
    replicas
        .filter(|replica| !matches!(replica.pace(), ReplicaPace::Well | ReplicaPace::Unspecified))
        .count()
}

fn volumes(now: &Sample, by_device: &BTreeMap<String, Activity>) -> Vec<VolumeRow> {
    let mut rows: Vec<VolumeRow> = now
        .volumes
        .iter()
        .map(|volume| {
            let status = volume.status.clone().unwrap_or_default();
            let state = match volume.is_deleting() {
                true => VolumeState::Deleting,
                false => status.state(),
            };
            let of_state = |wanted: ReplicaState| {
                let replicas = status.replicas.iter();
                replicas.filter(|replica| replica.state() == wanted).count()
            };
            let activity = by_device
                .get(volume.name())
                .or_else(|| by_device.get(&volume.meta().uid));
            let mirror = mirror(now, volume.name());
            VolumeRow {
                replicas_slow: mirror.map_or(0, slow),
                missed_bytes: mirror.map_or(0, |mirror| {
                    mirror.replicas.iter().map(|replica| replica.missed_bytes).sum()
                }),
                copy_seconds_left: mirror.and_then(|mirror| Some(mirror.copy_time_left_us? as f64 / 1e6)),
                roll_back: mirror
                    .and_then(|mirror| mirror.roll_back.as_ref())
                    .map(RollBackRow::from),
                name: volume.name().to_owned(),
                state: short(state.as_str_name(), "VOLUME_STATE_"),
                size_bytes: status.size_bytes,
                replicas_in_sync: of_state(ReplicaState::InSync),
                replicas: status.replicas.len(),
                replicas_resyncing: of_state(ReplicaState::Rebuilding) + of_state(ReplicaState::Stale),
                activity: activity.copied().unwrap_or_default(),
                target: status.target_node,
            }
        })
        .collect();
    // What engines serve on their own is shown too.
    for (name, activity) in by_device {
        let is_known = now
            .volumes
            .iter()
            .any(|volume| volume.name() == name || volume.meta().uid == *name);
        if !is_known {
            rows.push(VolumeRow {
                name: name.clone(),
                state: "not on record".to_owned(),
                target: String::new(),
                size_bytes: 0,
                replicas_in_sync: 0,
                replicas: 0,
                replicas_resyncing: 0,
                replicas_slow: 0,
                missed_bytes: 0,
                copy_seconds_left: None,
                roll_back: None,
                activity: *activity,
            });
        }
    }
    rows.sort_by(|left, right| {
        let (left_rate, right_rate) = (left.activity.operations(), right.activity.operations());
        right_rate
            .total_cmp(&left_rate)
            .then_with(|| left.name.cmp(&right.name))
    });
    rows
}

fn pools(now: &Sample) -> Vec<PoolRow> {
    let mut rows: Vec<PoolRow> = now
        .pools
        .iter()
        .map(|pool| {
            let status = pool.status.clone().unwrap_or_default();
            PoolRow {
                name: pool.name().to_owned(),
                node: pool
                    .spec
                    .as_ref()
                    .map_or_else(String::new, |spec| spec.node.clone()),
                state: match status.state() {
                    PoolState::Unspecified => "being made".to_owned(),
                    state => short(state.as_str_name(), "POOL_STATE_"),
                },
                used_bytes: status.used_bytes,
                capacity_bytes: status.capacity_bytes,
                provisioned_bytes: status.provisioned_bytes,
                replicas: status.replicas,
            }
        })
        .collect();
    let fill = |pool: &PoolRow| pool.used_bytes as f64 / pool.capacity_bytes.max(1) as f64;
    rows.sort_by(|left, right| {
        let order = fill(right).total_cmp(&fill(left));
        order.then_with(|| left.name.cmp(&right.name))
    });
    rows
}

/// A number for people: three digits and a letter.
pub(super) fn count(number: f64) -> String {
    match number {
        number if number >= 1e6 => format!("{:.1}M", number / 1e6),
        number if number >= 1e4 => format!("{:.0}k", number / 1e3),
        number if number >= 1e3 => format!("{:.1}k", number / 1e3),
        number => format!("{number:.0}"),
    }
}

/// Bytes for people.
pub(super) fn bytes(number: f64) -> String {
    const KIB: f64 = 1024.0;
    match number {
        number if number >= KIB * KIB * KIB => format!("{:.1}GiB", number / KIB / KIB / KIB),
        number if number >= KIB * KIB => format!("{:.1}MiB", number / KIB / KIB),
        number if number >= KIB => format!("{:.0}KiB", number / KIB),
        number => format!("{number:.0}B"),
    }
}

/// A time for people.
pub(super) fn time(us: Option<f64>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us) if us >= 1e6 => format!("{:.1}s", us / 1e6),
        Some(us) if us >= 1e3 => format!("{:.1}ms", us / 1e3),
        Some(us) => format!("{us:.0}us"),
    }
}
