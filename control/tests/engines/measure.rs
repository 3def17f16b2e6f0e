//! How long volumes take to be made and published, and how long a control plane takes to serve again:
//! `cargo test --release -p pollux-control --test engines -- measure`.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    CreateVolumeRequest, GetVolumeRequest, HostAccess, Metadata, PublishVolumeRequest, Volume, VolumePolicy,
    VolumeSpec,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::cluster::{Cluster, HOST};

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

/// Measures all of it, and tells.
pub fn run() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
    ExitCode::SUCCESS
}

fn tell(text: &str) {
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Makes a volume of three replicas and publishes it; how long until a host could connect to all paths.
async fn make(mut volumes: VolumesClient<Channel>, name: String) -> Duration {
    let began = Instant::now();
    let volume = Volume {
        metadata: Some(Metadata {
            name: name.clone(),
            ..Metadata::default()
        }),
        spec: Some(VolumeSpec {
            size_bytes: VOLUME_BYTES,
            policy: Some(VolumePolicy {
                replicas: Some(3),
                ..VolumePolicy::default()
            }),
            ..VolumeSpec::default()
        }),
        status: None,
    };
    let request = CreateVolumeRequest {
        volume: Some(volume),
        wait_us: None,
    };
    volumes.create_volume(request).await.expect("a volume");
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
        make(cluster.volumes(), format!("warm-{number}")).await;
    }
    let mut times = Vec::new();
    for number in 0..ALONE {
        times.push(make(cluster.volumes(), format!("alone-{number}")).await);
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
            make(volumes, format!("together-{number}")).await
        });
    }
    while tasks.join_next().await.is_some() {}
    let took = began.elapsed().as_secs_f64();
    tell(&format!(
        "create and publish, {TOGETHER}, {AT_A_TIME} at a time: {took:.1} s"
    ));

    cluster.kill_control();
    let began = Instant::now();
    cluster.start_control();
    let name = format!("together-{}", TOGETHER - 1);
    loop {
        let request = GetVolumeRequest { name: name.clone() };
        if cluster.volumes().get_volume(request).await.is_ok() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let answers = began.elapsed().as_secs_f64() * 1e3;
    // One that it has to plan for, and to tell engines of.
    make(cluster.volumes(), "after".to_owned()).await;
    let total = WARM + ALONE + TOGETHER;
    tell(&format!(
        "a control plane that was killed, with {total} volumes: answers after {answers:.0} ms, and one more \
         volume is published after {:.0} ms",
        began.elapsed().as_secs_f64() * 1e3
    ));
}
