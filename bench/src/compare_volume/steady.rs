//! One replica beside its target, and three, both served by the same engine: the same loads in turns.

use pollux_api::control::v1::PublishVolumeResponse;
use pollux_device::ByteSize;

use super::cluster::{Backing, Cluster, HOST, Setup};
use super::host::Host;
use super::table::{Row, Wanted};
use super::{Error, host};
use crate::load::{Generator, Line, Load, Pattern, Reactors};
use crate::samples::{Figures, Samples};

/// The size of each volume: all of it is written before.
const VOLUME_BYTES: u64 = 256 << 20;

/// The size of each pool.
const POOL_BYTES: u64 = 1 << 30;

/// Seconds before each measurement.
const WARM_UP_SECONDS: f64 = 0.2;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rounds; in each both volumes have each load once.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: f64,
    /// The core of the load.
    pub core: Option<usize>,
}

/// A load, and what both volumes did.
struct Pair {
    pattern: Pattern,
    depth: u16,
    /// One replica, and three.
    samples: [Samples; 2],
}

impl Pair {
    fn new(pattern: Pattern, depth: u16) -> Self {
        Self {
            pattern,
            depth,
            samples: [const { Samples::new() }; 2],
        }
    }

    /// Three by one.
    fn row(&self, what: &str, wanted: Wanted, of: impl Fn(&Samples) -> Option<f64>) -> Result<Row, Error> {
        let [one, three] = &self.samples;
        let figure = of(three).zip(of(one)).map(|(three, one)| three / one);
        Ok(Row {
            what: what.to_owned(),
            figure: figure.ok_or_else(|| Error::Odd(format!("{what}: nothing was measured")))?,
            unit: "",
            wanted,
            detail: format!(
                "three: {} kIOPS, {} us; one: {} kIOPS, {} us",
                three.iops_text(),
                three.latency_text(),
                one.iops_text(),
                one.latency_text()
            ),
        })
    }
}

/// The path to the engine that serves a volume.
pub(super) fn uri(published: &PublishVolumeResponse, target: &str) -> Result<String, Error> {
    let path = published.paths.iter().find(|path| path.node == target);
    let path = path.ok_or_else(|| Error::Odd(format!("there is no path to {target}")))?;
    Ok(format!(
        "nvmf://{}/{}?hostnqn={HOST}&nsid=1",
        path.address, published.subsystem_nqn
    ))
}

/// Measures it.
pub async fn measure(setup: &Setup, plan: Plan) -> Result<Vec<Row>, Error> {
    let cluster = Cluster::start(setup, Backing::Memory { bytes: POOL_BYTES }).await?;
    let three = cluster.create("three", VOLUME_BYTES, 3, None).await?;
    let target = cluster.status("three").await?.target_node;
    let one = cluster.create("one", VOLUME_BYTES, 1, Some(&target)).await?;
    for published in [&one, &three] {
        let host = Host::new(published, plan.core)?;
        host.fill(host::whole(VOLUME_BYTES)).await?;
    }
    let uris = vec![uri(&one, &target)?, uri(&three, &target)?];
    let pairs = tokio::task::spawn_blocking(move || in_turns(&uris, plan));
    let pairs = pairs.await.map_err(|error| Error::Odd(error.to_string()))??;
    // The target has not moved meanwhile.
    for name in ["one", "three"] {
        let now = cluster.status(name).await?.target_node;
        if now != target {
            return Err(Error::Odd(format!(
                "{name} was served by {target} and then by {now}"
            )));
        }
    }
    let [write_1, write_128, read_1, read_128] = &pairs;
    Ok(vec![
        write_1.row(
            "3-replica 4 KiB write at depth 1 against 1-replica local, latency",
            Wanted::AtMost(2.0),
            Samples::latency_us,
        )?,
        write_128.row(
            "3-replica against 1-replica write, depth 128, IOPS of one target core",
            Wanted::AtLeast(0.4),
            Samples::iops,
        )?,
        read_128.row(
            "local read of a 3-replica volume against 1-replica, depth 128, IOPS",
            Wanted::AtLeast(0.97),
            Samples::iops,
        )?,
        read_1.row("the same at depth 1, IOPS", Wanted::AtLeast(0.97), Samples::iops)?,
    ])
}

fn in_turns(uris: &[String], plan: Plan) -> Result<[Pair; 4], Error> {
    let mut pairs = [
        Pair::new(Pattern::Randwrite, 1),
        Pair::new(Pattern::Randwrite, 128),
        Pair::new(Pattern::Randread, 1),
        Pair::new(Pattern::Randread, 128),
    ];
    let reactors = Reactors {
        jobs: 1,
        cores: plan.core.into_iter().collect(),
    };
    let load = |pattern, depth| Load {
        warm_up: WARM_UP_SECONDS,
        ..Load::new(pattern, ByteSize(4096), depth, plan.seconds)
    };
    let memory_bytes = load(Pattern::Randwrite, 128).memory_bytes() * uris.len();
    let generator = Generator::start(uris, &reactors, memory_bytes)?;
    for round in 0..plan.rounds {
        for pair in &mut pairs {
            // Whoever comes first may find the machine in another mood: that goes in turns too.
            let order = match round % 2 {
                0 => [0, 1],
                _ => [1, 0],
            };
            for which in order {
                let load = load(pair.pattern, pair.depth);
                let results = generator.measure(&load, Some(which), &Line::hidden())?;
                let results = results.without_failures()?;
                let side = match pair.pattern {
                    Pattern::Randread => &results.read,
                    _ => &results.write,
                };
                if let Some(samples) = pair.samples.get_mut(which) {
                    samples.push(Figures {
                        iops: side.iops,
                        mean_us: side.mean_us,
                    });
                }
            }
        }
    }
    generator.stop()?;
    Ok(pairs)
}
