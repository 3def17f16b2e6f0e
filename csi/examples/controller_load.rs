//! How fast a controller service is: volumes are created, published, unpublished and deleted, so many at a
//! time, and it is told how long calls of each kind took. Nothing is left behind, or it ends with an error.
//!
//!     pollux up --engines 3 --size 100GiB
//!     pollux-csi controller --endpoint unix:///tmp/csi.sock
//!     cargo run --release -p pollux-csi --example controller_load -- --endpoint /tmp/csi.sock

#![allow(clippy::print_stdout, reason = "it tells what it measured")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use hyper_util::rt::TokioIo;
use pollux_api::csi::v1::controller_client::ControllerClient;
use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use pollux_api::csi::v1::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, ListVolumesRequest, VolumeCapability,
};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

/// How many nodes volumes are published to, one each.
const NODES: u32 = 100;

#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// The socket of the controller service.
    #[arg(long, value_name = "PATH")]
    endpoint: PathBuf,
    /// How many volumes.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    volumes: u32,
    /// How many at a time.
    #[arg(long, value_name = "N", default_value_t = 32)]
    at_once: usize,
    /// Copies of each.
    #[arg(long, value_name = "N", default_value_t = 3)]
    replicas: u32,
    /// Bytes of each.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    bytes: i64,
}

/// How long calls took, by kind.
type Times = BTreeMap<&'static str, Vec<Duration>>;

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// The whole life of a volume.
async fn live(
    mut driver: ControllerClient<Channel>,
    number: u32,
    arguments: &Arguments,
) -> Result<Times, Status> {
    let mut times = Times::new();
    let mut began = Instant::now();
    let mut note = |kind| {
        times.entry(kind).or_default().push(began.elapsed());
        began = Instant::now();
    };
    let create = CreateVolumeRequest {
        name: format!("load-{number}"),
        capacity_range: Some(CapacityRange {
            required_bytes: arguments.bytes,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability()],
        parameters: [("replicas".to_owned(), arguments.replicas.to_string())].into(),
        ..CreateVolumeRequest::default()
    };
    let made = driver.create_volume(create).await?.into_inner();
    let volume_id = made.volume.unwrap_or_default().volume_id;
    note("1 CreateVolume");
    let node_id = format!("nqn.2026-11.io.pollux:node:default:n{}", number % NODES);
    let publish = ControllerPublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: node_id.clone(),
        volume_capability: Some(capability()),
        ..ControllerPublishVolumeRequest::default()
    };
    driver.controller_publish_volume(publish).await?;
    note("2 ControllerPublishVolume");
    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id,
        ..ControllerUnpublishVolumeRequest::default()
    };
    driver.controller_unpublish_volume(unpublish).await?;
    note("3 ControllerUnpublishVolume");
    let delete = DeleteVolumeRequest {
        volume_id,
        ..DeleteVolumeRequest::default()
    };
    driver.delete_volume(delete).await?;
    note("4 DeleteVolume");
    Ok(times)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arc::new(Arguments::parse());
    let socket = arguments.endpoint.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://socket");
    let mut driver = ControllerClient::new(endpoint.connect_with_connector(connector).await?);
    let turns = Arc::new(Semaphore::new(arguments.at_once.max(1)));
    let began = Instant::now();
    let mut lives = JoinSet::new();
    for number in 0..arguments.volumes {
        let turn = turns.clone().acquire_owned().await?;
        let (driver, arguments) = (driver.clone(), arguments.clone());
        lives.spawn(async move {
            let lived = live(driver, number, &arguments).await;
            drop(turn);
            lived
        });
    }
    let mut times = Times::new();
    while let Some(lived) = lives.join_next().await {
        for (kind, taken) in lived?? {
            times.entry(kind).or_default().extend(taken);
        }
    }
    let all = began.elapsed();
    for (kind, taken) in &mut times {
        taken.sort_unstable();
        let at = |percent: usize| taken.get((taken.len() * percent / 100).min(taken.len() - 1));
        let told = [50, 99, 100].map(|percent| at(percent).map_or(0.0, |time| time.as_secs_f64() * 1000.0));
        println!(
            "{kind:30} p50 {:8.1} ms   p99 {:8.1} ms   longest {:8.1} ms",
            told[0], told[1], told[2]
        );
    }
    println!(
        "{} volumes, {} at a time, in {:.1} s: {:.1} a second",
        arguments.volumes,
        arguments.at_once,
        all.as_secs_f64(),
        f64::from(arguments.volumes) / all.as_secs_f64()
    );
    let left = driver.list_volumes(ListVolumesRequest::default()).await?;
    let mut left = left
        .into_inner()
        .entries
        .into_iter()
        .filter_map(|entry| entry.volume);
    match left.find(|volume| volume.volume_id.starts_with("load-")) {
        None => Ok(()),
        Some(volume) => Err(format!("{} is left behind", volume.volume_id).into()),
    }
}
