//! What a volume with limits delivers to hosts that ask for more, in windows of 5 s.

use pollux_api::control::v1::{Qos, QosLimits, QosRate, VolumePolicy};
use pollux_device::ByteSize;

use super::Error;
use super::cluster::{Backing, Cluster, Setup};
use super::host::{self, Host};
use super::steady::uri;
use super::table::{Row, Wanted};
use crate::load::{Generator, Line, Load, Pattern, Reactors};

/// The size of each volume: all of it is written before.
const VOLUME_BYTES: u64 = 256 << 20;

const POOL_BYTES: u64 = 1 << 30;

/// Connections, which share the limits, and what each asks for at a time.
const CONNECTIONS: u16 = 2;
const DEPTH: u16 = 32;

/// The length of a window, and what goes before, so that no credit is left.
const WINDOW_SECONDS: f64 = 5.0;
const WARM_UP_SECONDS: f64 = 0.5;

/// Windows for each limit.
const WINDOWS: usize = 3;

/// How far from the limit may be delivered.
const DEVIATION_PERCENT_MAX: f64 = 2.0;

/// A volume with a limit, and a load that asks for more.
struct Limit {
    name: &'static str,
    what: &'static str,
    pattern: Pattern,
    block_bytes: u64,
    /// Requests in a second.
    iops: u64,
    qos: Qos,
}

fn limits() -> [Limit; 3] {
    let operations = |per_second| QosLimits {
        operations: Some(rate(per_second)),
        bytes: None,
    };
    let bytes = |per_second| QosLimits {
        operations: None,
        bytes: Some(rate(per_second)),
    };
    [
        Limit {
            name: "writes",
            what: "QoS: 20,000 writes of 4 KiB a second, two connections",
            pattern: Pattern::Randwrite,
            block_bytes: 4096,
            iops: 20_000,
            qos: Qos {
                write: Some(operations(20_000)),
                ..Qos::default()
            },
        },
        Limit {
            name: "bandwidth",
            what: "QoS: 100 MiB read a second by 64 KiB, two connections",
            pattern: Pattern::Randread,
            block_bytes: 64 << 10,
            iops: 1600,
            qos: Qos {
                read: Some(bytes(100 << 20)),
                ..Qos::default()
            },
        },
        Limit {
            name: "few",
            what: "QoS: 500 requests of 4 KiB a second, two connections",
            pattern: Pattern::Randread,
            block_bytes: 4096,
            iops: 500,
            qos: Qos {
                total: Some(operations(500)),
                ..Qos::default()
            },
        },
    ]
}

fn rate(per_second: u64) -> QosRate {
    QosRate {
        per_second,
        ..QosRate::default()
    }
}

/// Measures how far from each limit is delivered.
pub async fn measure(setup: &Setup, core: Option<usize>) -> Result<Vec<Row>, Error> {
    let cluster = Cluster::start(setup, Backing::Memory { bytes: POOL_BYTES }).await?;
    let mut rows = Vec::new();
    for limit in limits() {
        let policy = VolumePolicy {
            replicas: Some(3),
            qos: Some(limit.qos),
            ..VolumePolicy::default()
        };
        let published = cluster.create_with(limit.name, VOLUME_BYTES, policy).await?;
        Host::new(&published, core)?
            .fill(host::whole(VOLUME_BYTES))
            .await?;
        let target = cluster.status(limit.name).await?.target_node;
        let uri = uri(&published, &target)?;
        let row = tokio::task::spawn_blocking(move || windows(uri, core, &limit));
        rows.push(row.await.map_err(|error| Error::Odd(error.to_string()))??);
    }
    Ok(rows)
}

fn windows(uri: String, core: Option<usize>, limit: &Limit) -> Result<Row, Error> {
    let reactors = Reactors {
        jobs: CONNECTIONS,
        cores: core.into_iter().collect(),
    };
    let load = Load {
        warm_up: WARM_UP_SECONDS,
        ..Load::new(limit.pattern, ByteSize(limit.block_bytes), DEPTH, WINDOW_SECONDS)
    };
    let generator = Generator::start(&[uri], &reactors, load.memory_bytes())?;
    let mut delivered = Vec::with_capacity(WINDOWS);
    for _ in 0..WINDOWS {
        let results = generator
            .measure(&load, None, &Line::hidden())?
            .without_failures()?;
        delivered.push(results.read.iops + results.write.iops);
    }
    generator.stop()?;
    let wanted = limit.iops as f64;
    let off_percent = |iops: &f64| (iops / wanted - 1.0).abs() * 100.0;
    let texts: Vec<String> = delivered.iter().map(|iops| format!("{iops:.1}")).collect();
    Ok(Row {
        what: limit.what.to_owned(),
        figure: delivered.iter().map(off_percent).fold(0.0, f64::max),
        unit: " %",
        wanted: Wanted::AtMost(DEVIATION_PERCENT_MAX),
        detail: format!("{} of {} a second", texts.join(", "), limit.iops),
    })
}
