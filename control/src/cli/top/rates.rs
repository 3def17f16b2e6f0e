//! From two measurements to what happened between them.

use pollux_api::control::v1::{
    DeviceMeasurements, DeviceRole, EngineMeasurements, OperationKind, OperationMeasurements,
};
use serde::Serialize;

/// What one kind of operations did between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    /// Operations in a second.
    pub(super) operations: f64,
    /// Bytes in a second.
    pub(super) bytes: f64,
    /// Failed operations in a second.
    pub(super) errors: f64,
    /// Mean time of an operation, in microseconds; nothing if there was none.
    pub(super) latency_mean_us: Option<f64>,
    /// The time within which 99 of 100 were done, in microseconds: the bound that it is within.
    pub(super) latency_p99_us: Option<f64>,
}

/// What a device did between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Activity {
    pub(super) read: Rate,
    pub(super) write: Rate,
}

impl Activity {
    /// Operations in a second, both kinds.
    pub(super) fn operations(&self) -> f64 {
        self.read.operations + self.write.operations
    }

    /// Adds another device's. Times are kept as the longer ones, as they do not add up.
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, other) in [(&mut self.read, other.read), (&mut self.write, other.write)] {
            sum.operations += other.operations;
            sum.bytes += other.bytes;
            sum.errors += other.errors;
            sum.latency_mean_us = longer(sum.latency_mean_us, other.latency_mean_us);
            sum.latency_p99_us = longer(sum.latency_p99_us, other.latency_p99_us);
        }
    }
}

pub(super) fn longer(left: Option<f64>, right: Option<f64>) -> Option<f64> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.max(right)),
        (left, right) => left.or(right),
    }
}

/// Seconds between two measurements of one engine, by its own clock; nothing if it was started anew.
pub(super) fn seconds_between(before: &EngineMeasurements, now: &EngineMeasurements) -> Option<f64> {
    let is_same = before.started_unix_us == now.started_unix_us;
    let us = now
        .unix_us
        .checked_sub(before.unix_us)
        .filter(|us| *us > 0 && is_same)?;
    Some(us as f64 / 1e6)
}

/// What devices of a role did, with their names.
pub(super) fn activities<'a>(
    before: &'a EngineMeasurements,
    now: &'a EngineMeasurements,
    role: DeviceRole,
) -> impl Iterator<Item = (&'a DeviceMeasurements, Activity)> {
    let seconds = seconds_between(before, now);
    let bounds = now.bounds_ns.as_slice();
    let devices = now.devices.iter().filter(move |device| device.role() == role);
    devices.map(move |device| {
        let mut earlier = before.devices.iter();
        let earlier = earlier.find(|earlier| earlier.role() == role && earlier.name == device.name);
        let rate = |kind: OperationKind| {
            let of = |device: &DeviceMeasurements| {
                let mut operations = device.operations.iter();
                operations
                    .find(|operation| operation.operation() == kind)
                    .cloned()
            };
            match (seconds, earlier.and_then(of), of(device)) {
                (Some(seconds), Some(before), Some(now)) => of_operation(&before, &now, bounds, seconds),
                _ => Rate::default(),
            }
        };
        let activity = Activity {
            read: rate(OperationKind::Read),
            write: rate(OperationKind::Write),
        };
        (device, activity)
    })
}

fn of_operation(
    before: &OperationMeasurements,
    now: &OperationMeasurements,
    bounds_ns: &[u64],
    seconds: f64,
) -> Rate {
    // A device that was opened anew counts from 0.
    let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
    let done = since(before.done, now.done);
    let places: Vec<u64> = (now.places.iter().enumerate())
        .map(|(index, now)| since(before.places.get(index).copied().unwrap_or(0), *now))
        .collect();
    let sum_ns = since(before.sum_ns, now.sum_ns);
    Rate {
        operations: done as f64 / seconds,
        bytes: since(before.bytes, now.bytes) as f64 / seconds,
        errors: since(before.failed, now.failed) as f64 / seconds,
        latency_mean_us: (done > 0).then(|| sum_ns as f64 / done as f64 / 1e3),
        latency_p99_us: percentile_99(&places, bounds_ns),
    }
}

/// The bound within which 99 of 100 are; the last bound for what is longer than all.
fn percentile_99(places: &[u64], bounds_ns: &[u64]) -> Option<f64> {
    let total: u64 = places.iter().sum();
    let wanted = total - total / 100;
    let mut seen = 0;
    for (index, count) in places.iter().enumerate() {
        seen += count;
        if seen >= wanted && total > 0 {
            let bound = bounds_ns.get(index).or(bounds_ns.last())?;
            return Some(*bound as f64 / 1e3);
        }
    }
    None
}
