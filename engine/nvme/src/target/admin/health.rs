//! The SMART / Health log (NVMe Base 2.0, 5.16.1.3): the health of the devices behind the namespaces, and
//! what this controller's host read and wrote.

use std::sync::Weak;
use std::time::Duration;

use pollux_device::Health;
use pollux_reactor::sleep;

use super::super::controller::{Controller, EventKind, Features};
use crate::wire::log::{CriticalWarning, HealthLog};

/// How often the devices are looked at for what the host wants events of.
const PERIOD: Duration = Duration::from_secs(30);

/// Bytes of a data unit.
const DATA_UNIT_BYTES: u64 = 1000 * 512;

/// Spare at or below this is critical, in percent.
const SPARE_THRESHOLD_PERCENT: u8 = 10;

/// The log of a controller.
pub(super) fn log(controller: &Controller) -> HealthLog {
    let features = controller.with(|state| state.features.clone());
    let health = worst(controller);
    let totals = controller.totals();
    HealthLog {
        critical_warning: warnings(&health, &features),
        temperature_kelvin: health.temperature_kelvin,
        available_spare_percent: health.available_spare_percent,
        available_spare_threshold_percent: SPARE_THRESHOLD_PERCENT,
        used_percent: health.percentage_used,
        data_units_read: totals.read_bytes.div_ceil(DATA_UNIT_BYTES).into(),
        data_units_written: totals.written_bytes.div_ceil(DATA_UNIT_BYTES).into(),
        host_read_commands: totals.read_commands.into(),
        host_write_commands: totals.written_commands.into(),
        power_cycles: health.power_cycles.into(),
        power_on_hours: health.power_on_hours.into(),
        unsafe_shutdowns: health.unsafe_shutdowns.into(),
        media_errors: health.media_errors.into(),
        error_log_entries: controller.subsystem.failures().into(),
        ..HealthLog::default()
    }
}

/// The health of all devices as one: the worst of each, and sums of what is counted.
fn worst(controller: &Controller) -> Health {
    let (_, namespaces) = controller.subsystem.namespaces();
    let mut worst = Health {
        available_spare_percent: 100,
        ..Health::default()
    };
    for namespace in namespaces {
        let health = namespace.device.health();
        // A device that knows nothing of its spare is not one without.
        let spare = if health.available_spare_percent == 0 {
            100
        } else {
            health.available_spare_percent
        };
        worst.temperature_kelvin = worst.temperature_kelvin.max(health.temperature_kelvin);
        worst.available_spare_percent = worst.available_spare_percent.min(spare);
        worst.percentage_used = worst.percentage_used.max(health.percentage_used);
        worst.critical_warning |= health.critical_warning;
        worst.power_cycles = worst.power_cycles.max(health.power_cycles);
        worst.power_on_hours = worst.power_on_hours.max(health.power_on_hours);
        worst.unsafe_shutdowns = worst.unsafe_shutdowns.max(health.unsafe_shutdowns);
        worst.media_errors = worst.media_errors.saturating_add(health.media_errors);
    }
    worst
}

fn warnings(health: &Health, features: &Features) -> CriticalWarning {
    let mut warnings = CriticalWarning::from_bits_retain(health.critical_warning);
    let temperature = health.temperature_kelvin;
    let known = temperature != 0;
    let over = temperature >= features.temperature_over_kelvin;
    let under = temperature <= features.temperature_under_kelvin;
    if known && (over || under) {
        warnings |= CriticalWarning::TEMPERATURE;
    }
    if health.available_spare_percent <= SPARE_THRESHOLD_PERCENT {
        warnings |= CriticalWarning::SPARE;
    }
    warnings
}

/// Tells the host of warnings as they come up, until the controller is gone.
pub(super) async fn watch(controller: Weak<Controller>) {
    let mut told = CriticalWarning::empty();
    loop {
        sleep(PERIOD).await;
        let Some(controller) = controller.upgrade() else {
            return;
        };
        if controller.is_discovery() {
            return;
        }
        let features = controller.with(|state| state.features.clone());
        let now = warnings(&worst(&controller), &features);
        let new = now - told;
        told = now;
        for (warning, kind) in [
            (CriticalWarning::SPARE, EventKind::Spare),
            (CriticalWarning::TEMPERATURE, EventKind::Temperature),
            (CriticalWarning::RELIABILITY, EventKind::Reliability),
            (CriticalWarning::READ_ONLY, EventKind::ReadOnly),
        ] {
            if new.contains(warning) {
                controller.raise(kind);
            }
        }
    }
}
