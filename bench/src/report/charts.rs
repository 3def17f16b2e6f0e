//! The five charts, from runs.

use pollux_device::ByteSize;

use super::chart::{Chart, Content, Curve, Series};
use super::run::Run;
use super::suite::{
    BAR_DEPTHS, CURVE_DEPTHS, MIX_DEPTH, MIXES, RANDOM_BLOCKS, RANDOM_DEPTH, SEQUENTIAL_BLOCKS,
    SEQUENTIAL_DEPTH, SMALL_BYTES, mixed,
};
use crate::load::{Pattern, Results};

const BYTES_A_GIB: f64 = (1u64 << 30) as f64;

/// All charts that have anything to show.
pub fn all(runs: &[Run]) -> Vec<Chart> {
    let charts = [
        latency(runs),
        random_requests(runs),
        mixed_requests(runs),
        random_bandwidth(runs),
        sequential_bandwidth(runs),
    ];
    charts.into_iter().filter(|chart| !chart.is_empty()).collect()
}

fn latency(runs: &[Run]) -> Chart {
    let mut curves = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        for (percentile, dashed) in [(50.0, false), (99.0, true)] {
            let points = CURVE_DEPTHS.iter().filter_map(|&depth| {
                let results = run.find(Pattern::Randread, SMALL_BYTES, depth, 100)?;
                let latency_us = results.read.percentile_us(percentile)?;
                Some((results.read.iops / 1e3, latency_us))
            });
            curves.push(Curve {
                label: format!("{} p{percentile}", run.label),
                run: number,
                dashed,
                points: points.collect(),
            });
        }
    }
    let depths: Vec<String> = CURVE_DEPTHS.iter().map(u16::to_string).collect();
    Chart {
        name: "latency-by-load",
        title: "Latency by load".to_owned(),
        subtitle: format!(
            "random reads of 4 KiB; a point each for depth {}",
            depths.join(", ")
        ),
        value_title: "latency, µs",
        content: Content::Curves {
            quantity_title: "thousands of reads a second",
            curves,
        },
    }
}

/// The load of a group of bars.
struct Group {
    name: String,
    pattern: Pattern,
    block_bytes: u64,
    depth: u16,
    reads: u8,
}

/// Bars: one load for each group.
fn bars(runs: &[Run], groups: Vec<Group>, value: impl Fn(&Results) -> f64) -> Content {
    let series = runs.iter().map(|run| {
        let values = groups.iter().map(|group| {
            run.find(group.pattern, group.block_bytes, group.depth, group.reads)
                .map(&value)
        });
        Series {
            label: run.label.clone(),
            values: values.collect(),
        }
    });
    Content::Bars {
        series: series.collect(),
        groups: groups.into_iter().map(|group| group.name).collect(),
    }
}

/// Both directions, random or in order.
fn directions(random: bool) -> [(&'static str, Pattern, u8); 2] {
    if random {
        [("read", Pattern::Randread, 100), ("write", Pattern::Randwrite, 0)]
    } else {
        [("read", Pattern::Read, 100), ("write", Pattern::Write, 0)]
    }
}

fn random_requests(runs: &[Run]) -> Chart {
    let mut groups = Vec::new();
    for (name, pattern, reads) in directions(true) {
        for depth in BAR_DEPTHS {
            groups.push(Group {
                name: format!("{name}, depth {depth}"),
                pattern,
                block_bytes: SMALL_BYTES,
                depth,
                reads,
            });
        }
    }
    Chart {
        name: "random-iops",
        title: "Random IOPS".to_owned(),
        subtitle: "requests of 4 KiB".to_owned(),
        value_title: "thousands of requests a second",
        content: bars(runs, groups, |results| results.iops() / 1e3),
    }
}

fn mixed_requests(runs: &[Run]) -> Chart {
    let groups = MIXES.iter().map(|&reads| Group {
        name: format!("{reads} : {}", 100 - reads),
        pattern: mixed(reads),
        block_bytes: SMALL_BYTES,
        depth: MIX_DEPTH,
        reads,
    });
    Chart {
        name: "mixed-iops",
        title: "Mixed IOPS".to_owned(),
        subtitle: format!("random requests of 4 KiB at depth {MIX_DEPTH}, reads : writes in percent"),
        value_title: "thousands of requests a second",
        content: bars(runs, groups.collect(), |results| results.iops() / 1e3),
    }
}

fn bandwidth(runs: &[Run], random: bool, blocks: &[u64], depth: u16) -> Content {
    let mut groups = Vec::new();
    for (name, pattern, reads) in directions(random) {
        for &block in blocks {
            groups.push(Group {
                name: format!("{name} {}", ByteSize(block)),
                pattern,
                block_bytes: block,
                depth,
                reads,
            });
        }
    }
    bars(runs, groups, |results| results.bytes_per_second() / BYTES_A_GIB)
}

fn random_bandwidth(runs: &[Run]) -> Chart {
    Chart {
        name: "random-bandwidth",
        title: "Random bandwidth".to_owned(),
        subtitle: format!("at depth {RANDOM_DEPTH}"),
        value_title: "GiB a second",
        content: bandwidth(runs, true, &RANDOM_BLOCKS, RANDOM_DEPTH),
    }
}

fn sequential_bandwidth(runs: &[Run]) -> Chart {
    Chart {
        name: "sequential-bandwidth",
        title: "Sequential bandwidth".to_owned(),
        subtitle: format!("at depth {SEQUENTIAL_DEPTH}"),
        value_title: "GiB a second",
        content: bandwidth(runs, false, &SEQUENTIAL_BLOCKS, SEQUENTIAL_DEPTH),
    }
}
