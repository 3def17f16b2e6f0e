//! What happens to clusters.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use pollux_api::control::v1::engine_command::Command;
use pollux_api::control::v1::recoveries_client::RecoveriesClient;
use pollux_api::control::v1::{
    Certainty, CommitRecoveryRequest, FoundVolume, HostSecrets, PoolDevices, PublishVolumeResponse, Qos,
    QosBurst, QosRate, RecoverySpec, ReplicaState, RollBackState, RollBackVolumeRequest,
    SurveyEnginesRequest, TargetConfig, TargetRemoval, VolumePolicy, VolumeState,
};
use pollux_api::qos::{Counted, Direction, Limit};
use tonic::Code;

use crate::asked::until_limited;
use crate::chaos;
use crate::cluster::{Cluster, HOST, Records, until};
use crate::instant::{Writer, numbers};
use crate::reserved::reservations_outlive_their_target;
use crate::{back, traces, trust, upsets};

/// How long things are killed and brought back, in every run of the tests.
const CHAOS: Duration = Duration::from_secs(5);

/// Runs one after the other, and tells how long each takes.
macro_rules! each {
    ($cluster:ident: $($name:ident),* $(,)?) => {
        $(
            let began = std::time::Instant::now();
            $name($cluster).await;
            $crate::scenarios::tell(stringify!($name), began.elapsed());
        )*
    };
}
pub(crate) use each;

/// Tells how long something took.
pub fn tell(what: &str, took: Duration) {
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(std::io::stdout(), "{what}: {:.1} s", took.as_secs_f64());
}

pub fn policy(replicas: u32, min_in_sync: u32) -> VolumePolicy {
    VolumePolicy {
        replicas: Some(replicas),
        min_in_sync: Some(min_in_sync),
        ..VolumePolicy::default()
    }
}

/// Tells what everybody has logged, if the test fails.
pub struct Witness(pub Cluster);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.tell_logs();
        }
    }
}

/// Runs all of it.
pub fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let witness = Witness(Cluster::new(3).await);
        let cluster = &witness.0;
        each!(cluster:
            a_volume_survives_its_target,
            commands_of_leaders_of_before_are_refused,
            io_goes_on_without_a_control_plane,
            hosts_are_admitted_as_they_are_listed,
            hosts_are_admitted_by_their_secrets,
            reservations_outlive_their_target,
            snapshots_are_kept_and_cloned,
            a_volume_goes_back_whoever_is_killed,
            snapshots_of_several_are_of_one_instant,
            limits_of_templates_are_kept,
            all_engines_are_killed_at_once,
            the_store_is_lost,
            an_old_backup_is_restored,
            nothing_is_left_behind,
        );
        drop(witness);
        back::run().await;
        traces::run().await;
    });
    ExitCode::SUCCESS
}

/// Runs volumes that go back to snapshots alone.
pub fn back() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(back::run());
    ExitCode::SUCCESS
}

/// Runs what takes longer: certificates, some upsets, and some seconds of chaos.
pub fn more() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        trust::run().await;
        upsets::run(&upsets::Arguments::default()).await;
        chaos::run(Records::Embedded, CHAOS, 1).await;
        match std::process::Command::new("etcd").arg("--version").output() {
            Ok(_) => chaos::run(Records::Etcd, CHAOS, 2).await,
            // There is nobody to tell that nobody can be told.
            Err(error) => drop(writeln!(std::io::stdout(), "SKIPPED: no etcd ({error})")),
        }
    });
    ExitCode::SUCCESS
}

async fn a_volume_survives_its_target(cluster: &Cluster) {
    cluster.create("v", policy(3, 2)).await;
    let status = cluster.until_healthy("v").await;
    let target = status.target_node;
    let published = cluster.publish("v", HOST, false).await;
    assert_eq!(published.paths.len(), 3, "{:?}", published.paths);
    let host = cluster.host(&published, "state", 6).writing().await;
    cluster.kill(&target);
    let failed_over = cluster
        .until_status("v", "it is served elsewhere", |status| {
            status.target_node != target && status.state() == VolumeState::Degraded
        })
        .await;
    assert!(failed_over.epoch > status.epoch);
    cluster.restart(&target);
    let healthy = cluster.until_healthy("v").await;
    let is_in_sync = |state: ReplicaState| state == ReplicaState::InSync;
    assert!(healthy.replicas.iter().all(|replica| is_in_sync(replica.state())));
    let told = host.finished().await;
    assert!(told["writes"].as_u64().expect("a number") > 0, "{told}");
    assert!(told["path_changes"].as_u64().expect("a number") > 0, "{told}");
}

async fn commands_of_leaders_of_before_are_refused(cluster: &Cluster) {
    let status = cluster.until_healthy("v").await;
    let target = &status.target_node;
    let removal = |epoch| {
        Command::RemoveTarget(TargetRemoval {
            volume_uid: "00000000-0000-0000-0000-000000000001".to_owned(),
            epoch,
        })
    };
    let refused = cluster
        .execute(target, 0, removal(1))
        .await
        .expect_err("an old term");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // The same after a restart: terms are durable.
    cluster.kill(target);
    cluster.restart(target);
    let refused = until("the engine answers", || async {
        let refused = cluster
            .execute(target, 0, removal(1))
            .await
            .expect_err("an old term");
        (refused.code() != Code::Unavailable).then_some(refused)
    })
    .await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    cluster.until_healthy("v").await;
}

async fn io_goes_on_without_a_control_plane(cluster: &Cluster) {
    cluster.until_whole("v", "state").await;
    let published = cluster.publish("v", HOST, false).await;
    cluster.kill_control();
    let told = cluster.host(&published, "state", 2);
    let told = told.finished().await;
    assert_eq!(told["path_changes"].as_u64(), Some(0), "{told}");
    cluster.start_control();
    cluster.until_healthy("v").await;
}

async fn hosts_are_admitted_as_they_are_listed(cluster: &Cluster) {
    let other = "nqn.2026-11.io.pollux:other";
    let published = cluster.publish("v", other, true).await;
    let hosts_of = async || {
        let mut hosts = Vec::new();
        for report in cluster.reports().await {
            let targets = report.targets.into_iter();
            hosts.push(targets.flat_map(|target: TargetConfig| target.hosts).count());
        }
        hosts
    };
    assert_eq!(hosts_of().await, [2, 2, 2]);
    // Each engine tells hosts of the others.
    for report in cluster.reports().await {
        let own = &report.nvmf_listeners;
        for target in &report.targets {
            let others = &target.other_paths;
            assert!(
                others.len() == 2 && others.iter().all(|other| !own.contains(other)),
                "{target:?}"
            );
            let is_path = |other: &String| published.paths.iter().any(|path| path.address == *other);
            assert!(others.iter().all(is_path), "{target:?}");
        }
    }
    cluster.unpublish("v", Some(HOST)).await;
    assert_eq!(hosts_of().await, [1, 1, 1]);
    // Nobody reaches it by the name of a host that is not listed.
    let host = cluster.host_with(&published, "none", 1, &["--patience", "1"]);
    host.failure().await;
    cluster.unpublish("v", None).await;
    cluster.publish("v", HOST, false).await;
}

/// Secrets as `nvme gen-dhchap-key` makes them, of 32 bytes.
pub const SECRETS: [&str; 3] = [
    "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:",
    "DHHC-1:01:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:",
    "DHHC-1:02:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:",
];

async fn hosts_are_admitted_by_their_secrets(cluster: &Cluster) {
    cluster.create("k", policy(3, 2)).await;
    cluster.until_healthy("k").await;
    let files: Vec<String> = (0..3)
        .map(|at| cluster.file(&format!("secret-{at}"), SECRETS[at]))
        .collect();
    let given = |host: usize| HostSecrets {
        host: SECRETS[host].to_owned(),
        controller: SECRETS[2].to_owned(),
    };
    let published = cluster.publish_with("k", HOST, false, Some(given(0))).await;
    let with = |host: usize, controller: usize| {
        [
            "--secret-file",
            &files[host],
            "--controller-secret-file",
            &files[controller],
        ]
    };
    const WRONG: &str = "is the secret the same on both sides";
    const LATE: &str = "did not answer";
    const ATTEMPTS: u32 = 20;
    // Each path by itself: a standby refuses as the target does.
    let refused = async |arguments: &[&str], why: &str| {
        let arguments = [arguments, &["--patience", "1", "--depth", "1"]].concat();
        let all = cluster.publish("k", HOST, false).await;
        let start = |at: usize| {
            let paths = vec![all.paths[at].clone()];
            let one = PublishVolumeResponse { paths, ..all.clone() };
            cluster.host_with(&one, &format!("refused-{at}"), 0, &arguments)
        };
        let hosts: Vec<_> = (0..all.paths.len()).map(start).collect();
        for (at, host) in hosts.into_iter().enumerate() {
            let mut told = host.failure().await;
            // On a busy machine the last of its attempts may have ended by time.
            let mut more = ATTEMPTS;
            while told.contains(LATE) && more > 0 {
                told = start(at).failure().await;
                more -= 1;
            }
            assert!(told.contains(why), "{told}");
        }
    };
    refused(&[], "authenticat").await;
    refused(&with(1, 2), WRONG).await;
    // The subsystem has to prove who it is, too.
    refused(&with(0, 1), WRONG).await;
    let start = |host: usize, seconds: u64| {
        let host = with(host, 2);
        cluster.host_with(&published, "state-of-k", seconds, &host)
    };
    start(0, 1).finished().await;
    // Another secret: who is connected goes on, and who comes needs the new one.
    let running = start(0, 2).writing().await;
    cluster.publish_with("k", HOST, false, Some(given(1))).await;
    let told = running.finished().await;
    assert_eq!(told["path_changes"].as_u64(), Some(0), "{told}");
    refused(&with(0, 2), WRONG).await;
    // The same after a failover, and from an engine that was started again.
    let target = cluster.until_healthy("k").await.target_node;
    let running = start(1, 2).writing().await;
    cluster.kill(&target);
    let told = running.finished().await;
    assert!(told["path_changes"].as_u64().expect("a number") > 0, "{told}");
    cluster.restart(&target);
    cluster.until_healthy("k").await;
    refused(&with(0, 2), WRONG).await;
    start(1, 0).finished().await;
    for (name, log) in cluster.logs() {
        assert!(
            !log.contains("DHHC-1") && !log.contains("ia6zGodO"),
            "a secret is in {name}"
        );
    }
    cluster.unpublish("k", None).await;
    cluster.delete("k").await;
}

async fn limits_of_templates_are_kept(cluster: &Cluster) {
    const TEMPLATE: &str = "limited";
    const VOLUME: &str = "l";
    const WRITES: u64 = 5;
    cluster.create_template(TEMPLATE, policy(2, 1)).await;
    cluster.create_following(VOLUME, TEMPLATE).await;
    cluster.until_healthy(VOLUME).await;
    let published = cluster.publish(VOLUME, HOST, false).await;
    until_limited(cluster, VOLUME, None).await;
    // All that the control plane takes, engines take.
    let mut all = Qos::default();
    for limit in Limit::ALL {
        let most = match limit.counted {
            Counted::Operations => 1_000_000_000,
            Counted::Bytes => 1 << 50,
        };
        let rate = QosRate {
            per_second: most - 1,
            per_second_per_gib: most,
            burst: Some(QosBurst {
                per_second: most,
                seconds: 86_400,
            }),
        };
        all.set_rate(limit, Some(rate));
    }
    all.weight = Some(10_000);
    cluster.limit_template(TEMPLATE, all).await;
    until_limited(cluster, VOLUME, Some(all)).await;
    // Writes apart, while it is served: what is read back is many more blocks than that.
    let rate = |per_second| {
        Some(QosRate {
            per_second,
            ..QosRate::default()
        })
    };
    let mut writes = Qos::default();
    writes.set_rate(Limit::new(Direction::Write, Counted::Operations), rate(WRITES));
    cluster.limit_template(TEMPLATE, writes).await;
    until_limited(cluster, VOLUME, Some(writes)).await;
    let began = std::time::Instant::now();
    let host = cluster.host(&published, "state-of-l", 2);
    let told = host.finished().await;
    let written = told["writes"].as_u64().expect("a number");
    // One begins at once, and one is less than the credit of 40 ms.
    let most = WRITES * (began.elapsed().as_secs() + 1) + 2;
    assert!((1..=most).contains(&written), "{most}: {told}");
    // Limits of its own go before those of the template.
    let mut own = Qos::default();
    own.set_rate(Limit::new(Direction::Read, Counted::Bytes), rate(1 << 30));
    cluster.limit(VOLUME, Some(own)).await;
    until_limited(cluster, VOLUME, Some(own)).await;
    cluster.limit(VOLUME, Some(Qos::default())).await;
    until_limited(cluster, VOLUME, None).await;
    cluster.limit(VOLUME, None).await;
    until_limited(cluster, VOLUME, Some(writes)).await;
    cluster.unpublish(VOLUME, None).await;
    cluster.delete(VOLUME).await;
}

async fn snapshots_are_kept_and_cloned(cluster: &Cluster) {
    let published = cluster.publish("v", HOST, false).await;
    cluster.snapshot("s", "v").await;
    cluster.copy_state("state", "state-of-s");
    let host = cluster.host(&published, "state", 1);
    host.finished().await;
    cluster.create_of("c", policy(3, 1), "s").await;
    cluster.until_healthy("c").await;
    let clone = cluster.publish("c", HOST, false).await;
    let host = cluster.host(&clone, "state-of-s", 1);
    host.finished().await;
    cluster.unpublish("c", None).await;
    cluster.delete("c").await;
    blocks_of_snapshots_are_told(cluster).await;
    cluster.delete_snapshot("s").await;
}

/// It is asked for while the engine that serves is killed, and so is the control plane; a host finds what the
/// snapshot has, whole, and what it writes then stays, asked again or not.
async fn a_volume_goes_back_whoever_is_killed(cluster: &Cluster) {
    let write = async |published: &PublishVolumeResponse, state: &'static str| {
        let host = cluster.host(published, state, 1);
        host.finished().await;
    };
    cluster.create("b", policy(3, 1)).await;
    let status = cluster.until_healthy("b").await;
    let published = cluster.publish("b", HOST, false).await;
    write(&published, "state-b").await;
    cluster.snapshot("b-before", "b").await;
    cluster.copy_state("state-b", "state-of-b");
    write(&published, "state-b").await;
    cluster.unpublish("b", None).await;
    let request = RollBackVolumeRequest {
        name: "b".to_owned(),
        snapshot: "b-before".to_owned(),
        request_uid: "6f6c6c75-7820-4261-8b00-000000000001".to_owned(),
        wait_us: None,
    };
    let ask = async || {
        let asked = cluster.volumes().roll_back_volume(request.clone()).await;
        asked.ok()?.into_inner().roll_back
    };
    until("it is asked for", &ask).await;
    cluster.kill(&status.target_node);
    cluster.kill_control();
    cluster.start_control();
    until("it is what it was", async || {
        let known = ask().await?;
        (known.state() == RollBackState::Done).then_some(())
    })
    .await;
    cluster.restart(&status.target_node);
    let published = cluster.publish("b", HOST, false).await;
    write(&published, "state-of-b").await;
    until("it is asked again", &ask).await;
    cluster.until_healthy("b").await;
    write(&published, "state-of-b").await;
    cluster.unpublish("b", None).await;
    cluster.delete_snapshot("b-before").await;
    cluster.delete("b").await;
}

/// What hosts write is within the first 8 MiB, in blocks of 4 KiB.
async fn blocks_of_snapshots_are_told(cluster: &Cluster) {
    const WRITTEN_BYTES: u64 = 8 << 20;
    cluster.snapshot("t", "v").await;
    cluster.snapshot("u", "v").await;
    let (size_bytes, all) = cluster.blocks("t", "", 0).await.expect("engines have it");
    assert_eq!(size_bytes, 64 << 20);
    assert!(!all.is_empty() && all.is_sorted());
    assert!(
        all.iter()
            .all(|(first, end)| first < end && *end <= WRITTEN_BYTES),
        "{all:?}"
    );
    let (_, changed) = cluster.blocks("t", "s", 0).await.expect("engines have both");
    let is_held = |range: &(u64, u64)| all.iter().any(|held| held.0 <= range.0 && range.1 <= held.1);
    assert!(
        !changed.is_empty() && changed.iter().all(is_held),
        "{changed:?} of {all:?}"
    );
    assert_eq!(
        cluster.blocks("u", "t", 0).await.expect("both"),
        (64 << 20, Vec::new())
    );
    let middle = (all[0].0 + all[0].1) / 2;
    let (_, rest) = cluster.blocks("t", "", middle).await.expect("engines have it");
    assert_eq!(rest[0], (middle, all[0].1));
    // One that has it is enough. It may hold other blocks that were never written: those that were copied to
    // it, or to the first one, with their region.
    let target = cluster.until_healthy("v").await.target_node;
    cluster.kill(&target);
    let (size_bytes, held) = cluster.blocks("t", "", 0).await.expect("others have it");
    assert_eq!(size_bytes, 64 << 20);
    let is_written = |(first, end): &(u64, u64)| first < end && *end <= WRITTEN_BYTES;
    assert!(!held.is_empty() && held.iter().all(is_written), "{held:?}");
    cluster.restart(&target);
    cluster.until_healthy("v").await;
    for (name, since, offset_bytes, code) in [
        ("none", "", 0, Code::NotFound),
        ("t", "none", 0, Code::NotFound),
        ("t", "", (64 << 20) + 1, Code::InvalidArgument),
        ("../t", "", 0, Code::InvalidArgument),
    ] {
        let refused = cluster.blocks(name, since, offset_bytes).await.expect_err(name);
        assert_eq!(refused.code(), code, "{refused}");
    }
    cluster.delete_snapshot("t").await;
    cluster.delete_snapshot("u").await;
}

async fn snapshots_of_several_are_of_one_instant(cluster: &Cluster) {
    for name in ["a", "b"] {
        cluster.create(name, policy(3, 2)).await;
    }
    let (a, b) = (cluster.until_healthy("a").await, cluster.until_healthy("b").await);
    assert_ne!(a.target_node, b.target_node, "two engines take part");
    let a = cluster.publish("a", HOST, false).await;
    let b = cluster.publish("b", HOST, false).await;
    let writer = Writer::start([&a, &b]);
    for round in ["g1", "g2"] {
        let before = writer.written();
        until("it is written", || async {
            (writer.written() > before).then_some(())
        })
        .await;
        let taken = cluster.snapshot_together(round, &["a", "b"]).await;
        assert_eq!(taken, Ok(()));
        let after = writer.written();
        let mut clones = Vec::new();
        for volume in ["a", "b"] {
            let clone = format!("{round}-{volume}");
            cluster
                .create_of(&clone, policy(1, 1), &format!("{round}.{volume}"))
                .await;
            cluster.until_healthy(&clone).await;
            clones.push(cluster.publish(&clone, HOST, false).await);
        }
        let [first, second] = numbers([&clones[0], &clones[1]]).await;
        assert!(
            first == second || first == second + 1,
            "{round}: {first} and {second}"
        );
        assert!(
            (before..=after + 1).contains(&first),
            "{round}: {first} of {before} to {after}"
        );
        for volume in ["a", "b"] {
            let clone = format!("{round}-{volume}");
            cluster.unpublish(&clone, None).await;
            cluster.delete(&clone).await;
        }
    }
    // Holds end: it goes on.
    let before = writer.written();
    until("it is written", || async {
        (writer.written() > before + 1).then_some(())
    })
    .await;
    writer.stop().await;
    for round in ["g1", "g2"] {
        cluster.delete_together(round).await;
    }
    for name in ["a", "b"] {
        cluster.unpublish(name, None).await;
        cluster.delete(name).await;
    }
}

async fn all_engines_are_killed_at_once(cluster: &Cluster) {
    let published = cluster.publish("v", HOST, false).await;
    let host = cluster.host_with(&published, "state", 4, &["--power-loss"]);
    let host = host.writing().await;
    // Some is flushed, and some is not.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for name in ["n1", "n2", "n3"] {
        cluster.kill(name);
    }
    for name in ["n1", "n2", "n3"] {
        cluster.restart(name);
    }
    // It has heard that some of that may be gone, and all else was there.
    let told = host.finished().await;
    assert!(told["losses"].as_u64().expect("a number") > 0, "{told}");
    cluster.until_healthy("v").await;
}

/// Two engines run on, and a third one was started since and has no pool open.
async fn the_store_is_lost(cluster: &Cluster) {
    cluster.until_whole("v", "state").await;
    cluster.snapshot("kept", "v").await;
    let before = cluster.until_healthy("v").await;
    let nodes = cluster.nodes();
    let restarted = nodes.iter().find(|node| **node != before.target_node);
    let restarted = restarted.expect("one of three").clone();
    cluster.kill_control();
    cluster.kill(&restarted);
    cluster.restart(&restarted);
    cluster.lose_store().await;
    assert!(cluster.status("v").await.is_none(), "nobody has agreed yet");
    let mut recoveries = RecoveriesClient::new(cluster.channel.clone());
    let mut spec = RecoverySpec::default();
    let survey = async |spec: &RecoverySpec, certainty: Certainty| {
        until("engines tell what they have", || async {
            let spec = Some(spec.clone());
            let request = SurveyEnginesRequest { spec };
            let survey = recoveries
                .clone()
                .survey_engines(request)
                .await
                .ok()?
                .into_inner();
            let is_so = |volume: &FoundVolume| volume.name == "v" && volume.certainty() == certainty;
            survey.volumes.iter().any(is_so).then_some(survey)
        })
        .await
    };
    survey(&spec, Certainty::Missing).await;
    spec.pools.push(PoolDevices {
        devices: vec![cluster.device(&restarted)],
        node: restarted,
    });
    let digest = survey(&spec, Certainty::Sure).await.digest;
    let spec = Some(spec);
    let request = CommitRecoveryRequest { spec, digest };
    recoveries
        .commit_recovery(request)
        .await
        .expect("it is as it was");
    let after = cluster.until_healthy("v").await;
    assert!(after.epoch > before.epoch + 1, "{after:?} after {before:?}");
    assert_eq!(after.snapshots, before.snapshots);
    // What was written before is read back.
    cluster.until_whole("v", "state").await;
    cluster.delete_snapshot(&before.snapshots[0].uid).await;
}

/// Whoever serves goes on while the records are those of an old backup, and nobody else is told to.
async fn an_old_backup_is_restored(cluster: &Cluster) {
    let old = cluster.until_healthy("v").await;
    let backup = cluster.backup().await;
    cluster.kill(&old.target_node);
    cluster
        .until_status("v", "it is served elsewhere", |status| {
            status.target_node != old.target_node && status.state() == VolumeState::Degraded
        })
        .await;
    cluster.restart(&old.target_node);
    cluster.until_healthy("v").await;
    let grown_bytes = old.size_bytes + (64 << 20);
    cluster.resize("v", grown_bytes).await;
    let newest = cluster
        .until_status("v", "it has grown", |status| {
            status.size_bytes == grown_bytes && status.state() == VolumeState::Healthy
        })
        .await;
    let uid = newest
        .replicas
        .iter()
        .map(|replica| replica.uid.clone())
        .collect::<Vec<_>>();
    for report in cluster.reports().await {
        let configs = report.replicas.into_iter().filter_map(|replica| replica.config);
        for config in configs.filter(|config| uid.contains(&config.uid)) {
            assert!(
                config.size_bytes >= grown_bytes,
                "{} tells: {config:?}",
                report.node
            );
        }
    }
    let published = cluster.publish("v", HOST, false).await;
    let host = cluster.host(&published, "state", 6).writing().await;
    cluster.restore(&backup).await;
    let held = until("the control plane answers", || cluster.status("v")).await;
    assert_eq!((held.epoch, &held.target_node), (old.epoch, &old.target_node));
    let told = host.finished().await;
    assert!(told["writes"].as_u64().expect("a number") > 0, "{told}");
    assert_eq!(told["path_changes"].as_u64(), Some(0), "{told}");
    let held = cluster.status("v").await.expect("it is there");
    assert_eq!((held.epoch, held.version), (old.epoch, old.version));

    let recoveries = RecoveriesClient::new(cluster.channel.clone());
    let spec = Some(RecoverySpec::default());
    let digest = until("engines tell what they have", || async {
        let request = SurveyEnginesRequest { spec: spec.clone() };
        let survey = recoveries.clone().survey_engines(request).await.ok()?;
        let survey = survey.into_inner();
        let is_newer = |volume: &FoundVolume| {
            let is_sure = volume.certainty() == Certainty::Sure;
            volume.name == "v" && volume.outdated && is_sure
        };
        let is_so = survey.restored && survey.volumes.iter().any(is_newer);
        is_so.then_some(survey.digest)
    })
    .await;
    let request = CommitRecoveryRequest { spec, digest };
    let done = recoveries.clone().commit_recovery(request).await;
    assert!(!done.expect("it is as it was").into_inner().restored);
    let after = cluster
        .until_status("v", "it is healthy anew", |status| {
            status.epoch > newest.epoch && status.state() == VolumeState::Healthy
        })
        .await;
    assert!(after.version > newest.version, "{after:?} after {newest:?}");
    assert_eq!(after.size_bytes, grown_bytes);
    cluster.until_whole("v", "state").await;
}

async fn nothing_is_left_behind(cluster: &Cluster) {
    cluster.unpublish("v", None).await;
    cluster.delete("v").await;
    let began = std::time::Instant::now();
    until("nothing is left", || async {
        let reports = cluster.reports().await;
        // What it is, for whoever has to find out why.
        assert!(began.elapsed() < Duration::from_secs(120), "{reports:#?}");
        let is_empty = reports
            .iter()
            .all(|report| report.replicas.is_empty() && report.targets.is_empty());
        is_empty.then_some(())
    })
    .await;
    assert!(cluster.status("v").await.is_none());
}
