//! The engine as metrics.

use pollux_api::engine::v1::ReactorStatistics;
use pollux_device::metered::{BOUNDS_NS, OperationCounts};
use pollux_http::families::engine as families;
use pollux_http::metrics::{Exposition, Family, Histogram};
use pollux_volume::mirror::Pace;
use pollux_volume::qos::Throttled;

use super::meters::{Measurement, Role};
use super::mirrors::MirrorStatus;
use crate::engine::Engine;

/// Kelvin and degrees Celsius are so far apart; drives tell whole kelvins (NVMe Base, Get Log Page 02h).
const KELVIN_OF_ZERO_CELSIUS: f64 = 273.0;

/// A metric, and what it is of a thing.
type Column<T> = (&'static Family, fn(&T) -> u64);

/// The same with parts of one.
type Sampled<T> = (&'static Family, fn(&T) -> f64);

/// A pool as its owner tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolSpace {
    pub(super) name: String,
    pub(super) total_bytes: u64,
    pub(super) free_bytes: u64,
    pub(super) volumes: u64,
}

/// Writes all of it.
pub(super) fn write(
    engine: &Engine,
    measurements: &[Measurement],
    pools: &[PoolSpace],
    mirrors: &[MirrorStatus],
) -> String {
    let mut text = Exposition::default();
    let info = engine.info();
    text.family(&families::BUILD).add(&[&info.version], 1.0);
    text.family(&families::START)
        .add(&[], info.started_unix_us as f64 / 1e6);
    let draining = f64::from(u8::from(engine.is_draining()));
    text.family(&families::DRAINING).add(&[], draining);
    engine.certificates().write(&mut text);
    reactors(&engine.statistics(), &mut text);
    let of = |role| {
        let measurements = measurements.iter();
        measurements
            .filter(move |one| one.role == role)
            .collect::<Vec<_>>()
    };
    let volumes = of(Role::Volume);
    let mut samples = text.family(&families::VOLUME_SIZE);
    for volume in &volumes {
        samples.add(&[&volume.name], volume.size_bytes as f64);
    }
    operations(
        &volumes,
        [
            &families::VOLUME_OPERATIONS,
            &families::VOLUME_BYTES,
            &families::VOLUME_ERRORS,
            &families::VOLUME_SECONDS,
        ],
        &mut text,
    );
    throttled(&volumes, &mut text);
    operations(
        &of(Role::Replica),
        [
            &families::REPLICA_OPERATIONS,
            &families::REPLICA_BYTES,
            &families::REPLICA_ERRORS,
            &families::REPLICA_SECONDS,
        ],
        &mut text,
    );
    let drives = of(Role::Drive);
    operations(
        &drives,
        [
            &families::DRIVE_OPERATIONS,
            &families::DRIVE_BYTES,
            &families::DRIVE_ERRORS,
            &families::DRIVE_SECONDS,
        ],
        &mut text,
    );
    health(&drives, &mut text);
    replicas(mirrors, &mut text);
    let columns: [Column<PoolSpace>; 3] = [
        (&families::POOL_CAPACITY, |pool| pool.total_bytes),
        (&families::POOL_FREE, |pool| pool.free_bytes),
        (&families::POOL_VOLUMES, |pool| pool.volumes),
    ];
    for (family, value) in columns {
        let mut samples = text.family(family);
        for pool in pools {
            samples.add(&[&pool.name], value(pool) as f64);
        }
    }
    text.finish()
}

fn reactors(reactors: &[ReactorStatistics], text: &mut Exposition) {
    let labels = |reactor: &ReactorStatistics| {
        let core = reactor.core.map_or_else(String::new, |core| core.to_string());
        (reactor.reactor.to_string(), core)
    };
    let mut samples = text.family(&families::REACTOR_SECONDS);
    for reactor in reactors {
        let (number, core) = labels(reactor);
        for (state, ns) in [
            ("busy", reactor.busy_ns),
            ("idle", reactor.idle_ns),
            ("asleep", reactor.asleep_ns),
        ] {
            samples.add(&[&number, &core, state], ns as f64 / 1e9);
        }
    }
    let columns: [Column<ReactorStatistics>; 8] = [
        (&families::REACTOR_TURNS, |reactor| reactor.iterations),
        (&families::REACTOR_TASKS, |reactor| reactor.tasks_run),
        (&families::REACTOR_MESSAGES, |reactor| reactor.messages),
        (&families::REACTOR_TIMERS, |reactor| reactor.timers_fired),
        (&families::REACTOR_EVENTS, |reactor| reactor.driver_events),
        (&families::REACTOR_RUN_QUEUE, |reactor| {
            reactor.run_queue_depth_max
        }),
        (&families::REACTOR_MAILBOX, |reactor| reactor.mailbox_depth_max),
        (&families::REACTOR_CONNECTIONS, |reactor| reactor.connections),
    ];
    for (family, value) in columns {
        let mut samples = text.family(family);
        for reactor in reactors {
            let (number, core) = labels(reactor);
            samples.add(&[&number, &core], value(reactor) as f64);
        }
    }
}

/// Operations, bytes, errors and times of devices of one role.
fn operations(devices: &[&Measurement], families: [&'static Family; 4], text: &mut Exposition) {
    let [operations, bytes, errors, seconds] = families;
    let columns: [Column<OperationCounts>; 3] = [
        (operations, |counts| counts.done),
        (bytes, |counts| counts.bytes),
        (errors, |counts| counts.failed),
    ];
    for (family, value) in columns {
        let mut samples = text.family(family);
        for device in devices {
            for (operation, counts) in device.measured.iter() {
                samples.add(&[&device.name, operation.name()], value(counts) as f64);
            }
        }
    }
    let bounds = BOUNDS_NS.map(|ns| ns as f64 / 1e9);
    let mut samples = text.family(seconds);
    for device in devices {
        for (operation, counts) in device.measured.iter() {
            let histogram = Histogram {
                bounds: &bounds,
                counts: &counts.places,
                sum: counts.sum_ns as f64 / 1e9,
            };
            samples.add_histogram(&[&device.name, operation.name()], histogram);
        }
    }
}

/// Replicas of the volumes that are served here.
fn replicas(mirrors: &[MirrorStatus], text: &mut Exposition) {
    let columns: [Sampled<MirrorStatus>; 4] = [
        (&families::MIRROR_SLOW, |mirror| {
            let replicas = mirror.replicas.iter();
            replicas.filter(|replica| replica.pace != Pace::Well).count() as f64
        }),
        (&families::MIRROR_SLOW_OUT, |mirror| mirror.counters.slow as f64),
        (&families::MIRROR_MISSED, |mirror| {
            mirror.progress.missed_bytes as f64
        }),
        (&families::MIRROR_COPIED, |mirror| {
            mirror.progress.copied_bytes as f64
        }),
    ];
    for (family, value) in columns {
        let mut samples = text.family(family);
        for mirror in mirrors {
            samples.add(&[&mirror.volume], value(mirror));
        }
    }
    let mut samples = text.family(&families::MIRROR_LEFT);
    for mirror in mirrors {
        if let Some(left) = mirror.progress.time_left {
            samples.add(&[&mirror.volume], left.as_secs_f64());
        }
    }
    let roll_backs = || {
        let mirrors = mirrors.iter();
        mirrors.filter_map(|mirror| Some((mirror.volume.as_str(), mirror.roll_back?)))
    };
    let mut samples = text.family(&families::MIRROR_ROLL_BACK_BYTES);
    for (volume, roll_back) in roll_backs() {
        let left_bytes = roll_back.size_bytes.saturating_sub(roll_back.compared_bytes);
        samples.add(&[volume], left_bytes as f64);
    }
    let mut samples = text.family(&families::MIRROR_ROLL_BACK_LEFT);
    for (volume, roll_back) in roll_backs() {
        if let Some(left) = roll_back.time_left {
            samples.add(&[volume], left.as_secs_f64());
        }
    }
}

/// What limits did to volumes.
fn throttled(volumes: &[&Measurement], text: &mut Exposition) {
    let columns: [Sampled<Throttled>; 3] = [
        (&families::VOLUME_THROTTLED, |found| found.requests as f64),
        (&families::VOLUME_THROTTLED_SECONDS, |found| {
            found.held.as_secs_f64()
        }),
        (&families::VOLUME_HELD, |found| found.waiting as f64),
    ];
    for (family, value) in columns {
        let mut samples = text.family(family);
        for volume in volumes {
            if let Some(throttled) = &volume.throttled {
                samples.add(&[&volume.name], value(throttled));
            }
        }
    }
}

fn health(drives: &[&Measurement], text: &mut Exposition) {
    let mut samples = text.family(&families::DRIVE_MEDIA_ERRORS);
    for drive in drives {
        samples.add(&[&drive.name], drive.health.media_errors as f64);
    }
    let mut samples = text.family(&families::DRIVE_WEAR);
    for drive in drives {
        samples.add(&[&drive.name], f64::from(drive.health.percentage_used) / 100.0);
    }
    let mut samples = text.family(&families::DRIVE_TEMPERATURE);
    for drive in drives.iter().filter(|drive| drive.health.temperature_kelvin > 0) {
        let celsius = f64::from(drive.health.temperature_kelvin) - KELVIN_OF_ZERO_CELSIUS;
        samples.add(&[&drive.name], celsius);
    }
}
