use std::time::{Duration, Instant};

use pollux_api::control::v1::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::rates::Rate;
use super::sample::Sample;
use super::screen;
use super::view::{self, View};
use crate::model::Record;

fn named<R: Record>(name: &str) -> R {
    let mut record = R::default();
    record.meta_mut().name = name.to_owned();
    record
}

fn engine(seconds: u64, writes: u64) -> EngineMeasurements {
    let operation = |kind: OperationKind, done: u64| OperationMeasurements {
        operation: kind.into(),
        done,
        failed: 0,
        bytes: done * 4096,
        sum_ns: done * 50_000,
        places: vec![done - done / 50, done / 50, 0],
    };
    EngineMeasurements {
        unix_us: seconds * 1_000_000,
        started_unix_us: 7,
        bounds_ns: vec![64_000, 1_000_000],
        devices: vec![DeviceMeasurements {
            role: DeviceRole::Volume.into(),
            name: "busy".to_owned(),
            size_bytes: 1 << 30,
            operations: vec![
                operation(OperationKind::Read, 0),
                operation(OperationKind::Write, writes),
            ],
        }],
        reactors: vec![ReactorMeasurements {
            reactor: 0,
            busy_ns: seconds * 250_000_000,
            connections: 3,
            ..ReactorMeasurements::default()
        }],
        mirrors: vec![MirrorMeasurements {
            volume: "busy".to_owned(),
            replicas: vec![MirroredReplica {
                missed_bytes: 3 << 20,
                pace: ReplicaPace::Slow.into(),
                ..MirroredReplica::default()
            }],
            copy_time_left_us: Some(90_000_000),
            roll_back: Some(RollBackProgress {
                compared_bytes: 1 << 28,
                size_bytes: 1 << 30,
                time_left_us: Some(30_000_000),
                ..RollBackProgress::default()
            }),
            ..MirrorMeasurements::default()
        }],
    }
}

fn sample(measured: Option<EngineMeasurements>, taken: Instant) -> Sample {
    let mut volume: Volume = named("busy");
    let replica = |state: ReplicaState| Replica {
        state: state.into(),
        ..Replica::default()
    };
    volume.status = Some(VolumeStatus {
        state: VolumeState::Degraded.into(),
        target_node: "a".to_owned(),
        replicas: vec![replica(ReplicaState::InSync), replica(ReplicaState::Rebuilding)],
        ..VolumeStatus::default()
    });
    let mut pool: Pool = named("a.p");
    pool.status = Some(PoolStatus {
        capacity_bytes: 4 << 30,
        used_bytes: 1 << 30,
        ..PoolStatus::default()
    });
    let problem = if measured.is_none() { "it sleeps" } else { "" };
    Sample {
        taken,
        nodes: vec![named("a")],
        pools: vec![pool, named("empty")],
        volumes: vec![named("another"), volume],
        measured: vec![NodeMeasurements {
            node: "a".to_owned(),
            problem: problem.to_owned(),
            measurements: measured,
        }],
    }
}

fn looks() -> (Sample, Sample) {
    let began = Instant::now();
    let later = began + Duration::from_secs(2);
    (
        sample(Some(engine(10, 1_000)), began),
        sample(Some(engine(12, 3_000)), later),
    )
}

#[test]
fn rates_are_differences() {
    let (before, now) = looks();
    let view = View::new(&before, &now);
    assert!((view.seconds - 2.0).abs() < 1e-9);
    let busiest = view.volumes.first().expect("it is there");
    assert_eq!(
        (busiest.name.as_str(), busiest.state.as_str()),
        ("busy", "degraded")
    );
    assert_eq!(
        (
            busiest.replicas_in_sync,
            busiest.replicas,
            busiest.replicas_resyncing
        ),
        (1, 2, 1)
    );
    assert_eq!((busiest.missed_bytes, busiest.replicas_slow), (3 << 20, 1));
    assert_eq!(busiest.cells()[3], "1/2 +1 3.0MiB 90s back 25% 30s 1 slow");
    let expected = Rate {
        operations: 1000.0,
        bytes: 4_096_000.0,
        errors: 0.0,
        latency_mean_us: Some(50.0),
        // One of 50 took longer than the first bound.
        latency_p99_us: Some(1000.0),
    };
    assert_eq!(busiest.activity.write, expected);
    assert_eq!(busiest.activity.read, Rate::default());
    assert_eq!(view.total.write.operations, 1000.0);
    let node = view.nodes.first().expect("it is there");
    assert_eq!((node.busy, node.connections), (Some(0.25), 3));
    let fullest = view.pools.first().expect("it is there");
    assert_eq!(fullest.name, "a.p");
}

#[test]
fn engines_that_were_away_or_are_new_have_no_rates() {
    let (before, now) = looks();
    let mut anew = engine(12, 3_000);
    anew.started_unix_us = 8;
    let away = sample(None, now.taken);
    for (before, now) in [
        (&before, &away),
        (&away, &now),
        (&sample(Some(anew.clone()), before.taken), &now),
        (&now, &before),
        (&now, &now),
    ] {
        let view = View::new(before, now);
        assert_eq!(view.total.write.operations, 0.0);
        assert!(view.nodes.iter().all(|node| node.busy.is_none()));
    }
    assert_eq!(
        View::new(&before, &away)
            .nodes
            .first()
            .map(|node| node.problem.clone()),
        Some("it sleeps".to_owned())
    );
    // A volume that was opened anew counts from 0.
    let fewer = sample(Some(engine(14, 100)), now.taken);
    assert_eq!(View::new(&now, &fewer).total.write.operations, 50.0);
}

#[test]
fn it_fits_into_any_terminal() {
    let (before, now) = looks();
    let view = View::new(&before, &now);
    for (width, height) in [(1, 1), (20, 5), (80, 24), (200, 60)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal
            .draw(|frame| screen::draw(frame, &view, 0))
            .expect("it is drawn");
        terminal
            .draw(|frame| screen::draw(frame, &view, 1000))
            .expect("it is drawn");
        if width >= 80 {
            terminal
                .draw(|frame| screen::draw(frame, &view, 0))
                .expect("it is drawn");
            let text = terminal.backend().to_string();
            for part in ["busy", "1/2 +1", "volumes", "nodes", "pools", "q leaves"] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
    }
}

#[test]
fn numbers_are_short() {
    let counts = [0.0, 999.0, 1500.0, 45_678.0, 2e6].map(view::count);
    assert_eq!(counts, ["0", "999", "1.5k", "46k", "2.0M"]);
    let sizes = [0.0, 2048.0, 3e6, 5e9].map(view::bytes);
    assert_eq!(sizes, ["0B", "2KiB", "2.9MiB", "4.7GiB"]);
    let times = [None, Some(12.0), Some(1500.0), Some(2e6)].map(view::time);
    assert_eq!(times, ["-", "12us", "1.5ms", "2.0s"]);
}
