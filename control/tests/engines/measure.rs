//! How long volumes take to be made and published, and how long a control plane takes to serve again:
//! `cargo test --release -p pollux-control --test engines -- measure`; the latter alone, with many volumes of
//! one replica: `-- measure --restart 10000`, and `--late 300` for engines that it hears only then.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    CreateVolumeRequest, GetVolumeRequest, HostAccess, PublishVolumeRequest, Volume, VolumePolicy, VolumeSpec,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::calls::named;
use crate::cluster::{Cluster, HOST, Layout};

/// Volumes one after the other, after a few that warm everything.
const ALONE: usize = 100;
const WARM: usize = 10;

/// Volumes side by side, and how many at a time.
const TOGETHER: usize = 1_000;
const AT_A_TIME: usize = 32;

/// Small ones: the pools are small too, and take replicas up to twice their size.
const VOLUME_BYTES: u64 = 1 << 20;

/// How long the control plane waits for a volume to be published before it answers.
const WAIT_US: u64 = 10_000_000;

/// The pause before a control plane that was killed is asked again.
const PAUSE: Duration = Duration::from_millis(2);

/// Pools for many volumes.
const LARGE_POOL_BYTES: u64 = 16 << 30;

/// How often a control plane with many volumes is killed.
const RESTARTS: usize = 3;

#[derive(Debug, Parser)]
struct Arguments {
    /// Only start a control plane again that has so many volumes.
    #[arg(long, value_name = "VOLUMES", value_parser = clap::value_parser!(u32).range(1..=12_000))]
    restart: Option<u32>,

    /// Engines are heard only so many milliseconds after it was started.
    #[arg(long, value_name = "MS", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(0..=1_500))]
    late: u64,
}

/// Measures what is asked for, and tells.
pub fn run(arguments: &[String]) -> ExitCode {
    let arguments = Arguments::parse_from(arguments);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match arguments.restart {
        Some(volumes) => runtime.block_on(restart(volumes as usize, Duration::from_millis(arguments.late))),
        None => runtime.block_on(measure()),
    }
    ExitCode::SUCCESS
}

fn tell(text: &str) {
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Makes a volume, and waits for it if that is said.
async fn create(mut volumes: VolumesClient<Channel>, name: String, replicas: u32, wait_us: Option<u64>) {
    let volume = Volume {
        metadata: named(&name),
        spec: Some(VolumeSpec {
            size_bytes: VOLUME_BYTES,
            policy: Some(VolumePolicy {
                replicas: Some(replicas),
                ..VolumePolicy::default()
            }),
            ..VolumeSpec::default()
        }),
        status: None,
    };
    let request = CreateVolumeRequest {
        volume: Some(volume),
        wait_us,
    };
    volumes.create_volume(request).await.expect("a volume");
}

/// Makes a volume and publishes it; how long until a host could connect to all paths.
async fn make(mut volumes: VolumesClient<Channel>, name: String, replicas: u32) -> Duration {
    let began = Instant::now();
    create(volumes.clone(), name.clone(), replicas, None).await;
    let request = PublishVolumeRequest {
        name,
        host: Some(HostAccess {
            host_nqn: HOST.to_owned(),
            read_only: false,
            ..HostAccess::default()
        }),
        wait_us: Some(WAIT_US),
        ..PublishVolumeRequest::default()
    };
    loop {
        let answer = volumes.publish_volume(request.clone()).await.expect("an answer");
        if answer.into_inner().ready {
            return began.elapsed();
        }
    }
}

async fn measure() {
    let cluster = Cluster::new(3).await;
    for number in 0..WARM {
        make(cluster.volumes(), format!("warm-{number}"), 3).await;
    }
    let mut times = Vec::new();
    for number in 0..ALONE {
        times.push(make(cluster.volumes(), format!("alone-{number}"), 3).await);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(ALONE * percent / 100).min(ALONE - 1)].as_secs_f64() * 1e3;
    tell(&format!(
        "create and publish, {ALONE} one after the other: p50 {:.1} ms, p99 {:.1} ms",
        at(50),
        at(99)
    ));

    let began = Instant::now();
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut tasks = JoinSet::new();
    for number in 0..TOGETHER {
        let (permits, volumes) = (permits.clone(), cluster.volumes());
        tasks.spawn(async move {
            let _permit = permits.acquire().await;
            make(volumes, format!("together-{number}"), 3).await
        });
    }
    while tasks.join_next().await.is_some() {}
    let took = began.elapsed().as_secs_f64();
    tell(&format!(
        "create and publish, {TOGETHER}, {AT_A_TIME} at a time: {took:.1} s"
    ));

    restarted(
        &cluster,
        &format!("together-{}", TOGETHER - 1),
        WARM + ALONE + TOGETHER,
        (0, Duration::ZERO),
    )
    .await;
}

/// Kills a control plane that has these volumes, this one among them, and starts it again. Engines are heard
/// a while after that.
async fn restarted(cluster: &Cluster, name: &str, volumes: usize, (time, late): (usize, Duration)) {
    cluster.kill_control();
    cluster.pause_engines(!late.is_zero());
    let began = Instant::now();
    cluster.start_control();
    loop {
        let request = GetVolumeRequest {
            name: name.to_owned(),
        };
        if cluster.volumes().get_volume(request).await.is_ok() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let answers = began.elapsed().as_secs_f64() * 1e3;
    tokio::time::sleep(late.saturating_sub(began.elapsed())).await;
    cluster.pause_engines(false);
    // One that it has to plan for, and to tell engines of.
    make(cluster.volumes(), format!("after-{time}"), 1).await;
    tell(&format!(
        "a control plane that was killed, with {volumes} volumes: answers after {answers:.0} ms, and one \
         more volume is published after {:.0} ms",
        began.elapsed().as_secs_f64() * 1e3
    ));
}

/// Many volumes, and a control plane that is started again and again.
async fn restart(volumes: usize, late: Duration) {
    let cluster = Cluster::with(Layout {
        pool_bytes: LARGE_POOL_BYTES,
        ..Layout::default()
    })
    .await;
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut tasks = JoinSet::new();
    for number in 0..volumes {
        let (permits, client) = (permits.clone(), cluster.volumes());
        tasks.spawn(async move {
            let _permit = permits.acquire().await;
            create(client, format!("many-{number}"), 1, Some(WAIT_US)).await
        });
    }
    while tasks.join_next().await.is_some() {}
    for time in 0..RESTARTS {
        restarted(&cluster, "many-0", volumes, (time, late)).await;
    }
}
