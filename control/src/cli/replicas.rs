//! `pollux volume replicas`: where the copies of a volume are, and what its target sees of them now.
//!
//! What is on record comes from the control plane; how fast replicas are, and what they still miss, is what
//! the engine that serves the volume measures. Without an answer of it the record is told alone, and why.

use std::io::Write;

use pollux_api::control::v1::measurements_client::MeasurementsClient;
use pollux_api::control::v1::{
    GetMeasurementsRequest, MirrorMeasurements, NodeMeasurements, Replica, ReplicaPace, RollBackProgress,
    Volume, VolumeStatus,
};
use serde::Serialize;

use crate::model::{Record, roll_back};

use super::Size;
use super::connection::{Channel, CommandError};
use super::output::{Output, serialized, short, table};
use super::resource::Named;

/// All that is told.
#[derive(Debug, PartialEq, Serialize)]
struct Told {
    volume: String,
    target_node: String,
    /// Why nothing is told of how replicas are now.
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    /// While something is copied and for long enough to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_bytes_per_second: Option<u64>,
    /// How long it will take at this speed, if all that is missed has to be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_time_left_us: Option<u64>,
    /// While it goes back to a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    roll_back: Option<ToldRollBack>,
    /// What no replica in sync can read, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<ToldUnreadable>,
    replicas: Vec<ToldReplica>,
}

#[derive(Debug, PartialEq, Serialize)]
struct ToldUnreadable {
    blocks: u64,
    first_offset_bytes: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct ToldRollBack {
    request_uid: String,
    /// The name of the snapshot, or its UUID where that is not known any more.
    snapshot: String,
    compared_bytes: u64,
    size_bytes: u64,
    /// Once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_bytes_per_second: Option<u64>,
    /// How long it will take at this speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_left_us: Option<u64>,
}

#[derive(Debug, PartialEq, Serialize)]
struct ToldReplica {
    uid: String,
    node: String,
    pool: String,
    state: &'static str,
    /// What the target sees, if it was asked in time.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Seen {
    pace: &'static str,
    missed_bytes: u64,
    resyncing: bool,
    /// The mean of a request in the newest window that says something.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_ns: Option<u64>,
}

/// Does it.
pub(super) async fn run(
    channel: &Channel,
    name: &str,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let volume = Volume::get(channel.clone(), name.to_owned()).await?;
    let node = volume.status.as_ref().map(|status| status.target_node.clone());
    let node = node.unwrap_or_default();
    let measured = match node.is_empty() {
        true => Vec::new(),
        false => {
            let request = GetMeasurementsRequest { node };
            let mut client = MeasurementsClient::new(channel.clone());
            client.get_measurements(request).await?.into_inner().nodes
        }
    };
    let told = told(&volume, measured);
    match output {
        Output::Json | Output::Yaml => serialized(&told, output, into),
        Output::Table | Output::Wide => show(&told, into),
    }
}

/// The record, and what is measured on the node that serves.
fn told(volume: &Volume, measured: Vec<NodeMeasurements>) -> Told {
    let status = volume.status.clone().unwrap_or_default();
    let answer = measured.into_iter().find(|node| node.node == status.target_node);
    let (mirror, problem) = match answer {
        None => (None, "no node serves it".to_owned()),
        Some(answer) if !answer.problem.is_empty() => (None, answer.problem),
        Some(answer) => {
            let mirrors = answer.measurements.unwrap_or_default().mirrors;
            let mirror = mirrors.into_iter().find(|mirror| mirror.volume == volume.name());
            let problem = match mirror.is_some() {
                true => String::new(),
                false => format!("node {} does not serve it now", status.target_node),
            };
            (mirror, problem)
        }
    };
    let replicas = status
        .replicas
        .iter()
        .map(|replica| replica_told(replica, mirror.as_ref()));
    Told {
        volume: volume.name().to_owned(),
        problem,
        copied_bytes_per_second: mirror.as_ref().and_then(|mirror| mirror.copied_bytes_per_second),
        copy_time_left_us: mirror.as_ref().and_then(|mirror| mirror.copy_time_left_us),
        replicas: replicas.collect(),
        unreadable: status.unreadable.map(|unreadable| ToldUnreadable {
            blocks: unreadable.blocks,
            first_offset_bytes: unreadable.first_offset_bytes,
        }),
        roll_back: mirror
            .and_then(|mirror| mirror.roll_back)
            .map(|progress| roll_back_told(&status, progress)),
        target_node: status.target_node,
    }
}

fn roll_back_told(status: &VolumeStatus, progress: RollBackProgress) -> ToldRollBack {
    let request = roll_back(status, &progress.request_uid);
    let name = request.map(|request| request.snapshot.clone());
    ToldRollBack {
        snapshot: name
            .filter(|name| !name.is_empty())
            .unwrap_or(progress.snapshot_uid),
        request_uid: progress.request_uid,
        compared_bytes: progress.compared_bytes,
        size_bytes: progress.size_bytes,
        compared_bytes_per_second: progress.compared_bytes_per_second,
        time_left_us: progress.time_left_us,
    }
}

fn replica_told(replica: &Replica, mirror: Option<&MirrorMeasurements>) -> ToldReplica {
    let seen = mirror.and_then(|mirror| mirror.replicas.iter().find(|seen| seen.uid == replica.uid));
    ToldReplica {
        uid: replica.uid.clone(),
        node: replica.node.clone(),
        pool: replica.pool.clone(),
        state: replica.state().as_str_name(),
        seen: seen.map(|seen| Seen {
            pace: seen.pace().as_str_name(),
            missed_bytes: seen.missed_bytes,
            resyncing: seen.resyncing,
            mean_ns: seen.mean_ns,
        }),
    }
}

fn show(told: &Told, into: &mut impl Write) -> Result<(), CommandError> {
    let rows = told.replicas.iter().map(|replica| {
        let seen = replica.seen.as_ref();
        let is_target = replica.node == told.target_node;
        vec![
            replica.pool.clone(),
            if is_target {
                format!("{} (serves)", replica.node)
            } else {
                replica.node.clone()
            },
            short(replica.state, "REPLICA_STATE_"),
            seen.map_or_else(String::new, pace),
            seen.and_then(|seen| seen.mean_ns)
                .map_or_else(String::new, |ns| format!("{:.1} ms", ns as f64 / 1e6)),
            seen.map_or_else(String::new, |seen| Size(seen.missed_bytes).to_string()),
            replica.uid.clone(),
        ]
    });
    let columns = ["POOL", "NODE", "STATE", "PACE", "WRITES TAKE", "MISSES", "UID"];
    table(&columns, rows.collect(), into)?;
    if !told.problem.is_empty() {
        writeln!(into, "how they are now is not known: {}", told.problem)?;
    }
    if let Some(speed) = told.copied_bytes_per_second {
        let left = time_left(told.copy_time_left_us);
        writeln!(into, "{} are copied in a second{left}", Size(speed))?;
    }
    if let Some(unreadable) = &told.unreadable {
        let first = unreadable.first_offset_bytes;
        let blocks = unreadable.blocks;
        writeln!(
            into,
            "blocks that no replica in sync can read: {blocks} at least, the first at byte {first}"
        )?;
    }
    if let Some(roll_back) = &told.roll_back {
        let speed = roll_back.compared_bytes_per_second;
        let speed = speed.map(|speed| format!(", {} in a second", Size(speed)));
        writeln!(
            into,
            "it goes back to snapshot {}: {} of {} are compared{}{}",
            roll_back.snapshot,
            Size(roll_back.compared_bytes),
            Size(roll_back.size_bytes),
            speed.unwrap_or_default(),
            time_left(roll_back.time_left_us),
        )?;
    }
    Ok(())
}

fn time_left(us: Option<u64>) -> String {
    us.map_or_else(String::new, |us| format!(", {} s left", us.div_ceil(1_000_000)))
}

fn pace(seen: &Seen) -> String {
    match ReplicaPace::from_str_name(seen.pace) {
        Some(ReplicaPace::Out) => "out for being slow".to_owned(),
        _ if seen.resyncing => "being copied to".to_owned(),
        _ => short(seen.pace, "REPLICA_PACE_"),
    }
}

#[cfg(test)]
mod tests {
    use pollux_api::control::v1::{
        EngineMeasurements, Metadata, MirroredReplica, ReplicaState, UnreadableBlocks, VolumeRollBack,
    };

    use super::*;

    fn volume() -> Volume {
        let replica = |uid: &str, node: &str, state: ReplicaState| Replica {
            uid: uid.to_owned(),
            node: node.to_owned(),
            pool: format!("{node}.pool"),
            state: state.into(),
            ..Replica::default()
        };
        Volume {
            metadata: Some(Metadata {
                name: "data".to_owned(),
                ..Metadata::default()
            }),
            spec: None,
            status: Some(VolumeStatus {
                target_node: "n1".to_owned(),
                replicas: vec![
                    replica("u1", "n1", ReplicaState::InSync),
                    replica("u2", "n2", ReplicaState::Stale),
                    replica("u3", "n3", ReplicaState::Stale),
                ],
                ..VolumeStatus::default()
            }),
        }
    }

    fn measured() -> NodeMeasurements {
        let seen = |uid: &str, pace: ReplicaPace, missed_bytes: u64| MirroredReplica {
            uid: uid.to_owned(),
            pace: pace.into(),
            missed_bytes,
            resyncing: uid == "u2",
            mean_ns: (uid == "u1").then_some(1_500_000),
            ..MirroredReplica::default()
        };
        let mirror = |volume: &str| MirrorMeasurements {
            volume: volume.to_owned(),
            replicas: vec![
                seen("u3", ReplicaPace::Out, 5 << 20),
                seen("u1", ReplicaPace::Well, 0),
                seen("u2", ReplicaPace::Well, 3 << 20),
            ],
            copied_bytes_per_second: Some(8 << 20),
            copy_time_left_us: Some(1_000_001),
            ..MirrorMeasurements::default()
        };
        NodeMeasurements {
            node: "n1".to_owned(),
            problem: String::new(),
            measurements: Some(EngineMeasurements {
                mirrors: vec![mirror("data")],
                ..EngineMeasurements::default()
            }),
        }
    }

    fn shown(told: &Told) -> String {
        let mut text = Vec::new();
        show(told, &mut text).expect("it is told");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn what_the_target_sees_is_told_beside_the_record() {
        let told = told(&volume(), vec![measured()]);
        let text = shown(&told);
        let lines: Vec<&str> = text.lines().collect();
        for (line, parts) in [
            (1, ["n1 (serves)", "in sync", "well", "1.5 ms"]),
            (2, ["n2", "stale", "being copied to", "3MiB"]),
            (3, ["n3", "stale", "out for being slow", "5MiB"]),
        ] {
            assert!(parts.iter().all(|part| lines[line].contains(part)), "{text}");
        }
        assert_eq!(lines[4], "8MiB are copied in a second, 2 s left");
        let json = serde_json::to_value(&told).expect("it is told");
        assert_eq!(json["copy_time_left_us"], 1_000_001);
        assert_eq!(json["replicas"][1]["missed_bytes"], 3 << 20);
        assert_eq!(json["replicas"][2]["pace"], "REPLICA_PACE_OUT");
        assert!(json.get("problem").is_none());
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let (mut volume, measured) = (volume(), measured());
        let well = told(&volume, vec![measured.clone()]);
        assert!(!shown(&well).contains("can read"));
        volume.status.as_mut().expect("it has one").unreadable = Some(UnreadableBlocks {
            blocks: 3,
            first_offset_bytes: 8192,
        });
        let ill = told(&volume, vec![measured]);
        let line = "blocks that no replica in sync can read: 3 at least, the first at byte 8192";
        assert!(shown(&ill).lines().any(|told| told == line));
        let json = serde_json::to_value(&ill).expect("it is told");
        assert_eq!(json["unreadable"]["first_offset_bytes"], 8192);
    }

    #[test]
    fn the_way_back_to_a_snapshot_is_told_by_its_name() {
        let (mut volume, mut measured) = (volume(), measured());
        let mirrors = measured.measurements.as_mut().map(|told| &mut told.mirrors);
        let mirror = mirrors.and_then(|mirrors| mirrors.first_mut()).expect("one");
        mirror.copied_bytes_per_second = None;
        let progress = RollBackProgress {
            request_uid: "r1".to_owned(),
            snapshot_uid: "s1".to_owned(),
            compared_bytes: 3 << 30,
            size_bytes: 10 << 30,
            ..RollBackProgress::default()
        };
        mirror.roll_back = Some(progress.clone());
        let early = shown(&told(&volume, vec![measured.clone()]));
        let line = "it goes back to snapshot s1: 3GiB of 10GiB are compared";
        assert_eq!(early.lines().last(), Some(line));
        let status = volume.status.as_mut().expect("it has one");
        status.roll_backs.push(VolumeRollBack {
            request_uid: "r1".to_owned(),
            snapshot: "monday".to_owned(),
            ..VolumeRollBack::default()
        });
        let mirrors = measured.measurements.as_mut().map(|told| &mut told.mirrors);
        let mirror = mirrors.and_then(|mirrors| mirrors.first_mut()).expect("one");
        mirror.roll_back = Some(RollBackProgress {
            compared_bytes_per_second: Some(1 << 30),
            time_left_us: Some(7_000_000),
            ..progress
        });
        let later = told(&volume, vec![measured]);
        let line = "it goes back to snapshot monday: 3GiB of 10GiB are compared, 1GiB in a second, 7 s left";
        assert_eq!(shown(&later).lines().last(), Some(line));
        let json = serde_json::to_value(&later).expect("it is told");
        assert_eq!(json["roll_back"]["compared_bytes"], 3_u64 << 30);
    }

    #[test]
    fn without_an_answer_the_record_is_told_alone_and_why() {
        let silent = NodeMeasurements {
            problem: "it takes too long".to_owned(),
            measurements: None,
            ..measured()
        };
        let elsewhere = NodeMeasurements {
            measurements: Some(EngineMeasurements::default()),
            ..measured()
        };
        for (measured, problem) in [
            (vec![silent], "it takes too long"),
            (vec![elsewhere], "node n1 does not serve it now"),
            (Vec::new(), "no node serves it"),
        ] {
            let told = told(&volume(), measured);
            assert_eq!((told.problem.as_str(), told.replicas.len()), (problem, 3));
            assert!(shown(&told).contains(problem));
            let json = serde_json::to_value(&told).expect("it is told");
            assert!(json["replicas"][0].get("pace").is_none() && json.get("roll_back").is_none());
        }
    }
}
