//! Get Features and Set Features (NVMe Base 2.0, 5.15 and 5.27).
//!
//! No feature is kept through a reset, which the supported capabilities say; a saved value is the default
//! one then. What has no effect here is not changeable, rather than taken and ignored.

use std::sync::Arc;

use pollux_reactor::now;

use super::super::controller::{Controller, Features};
use super::super::queue::{Command, Execution, Outcome};
use super::super::refusal::{Refusal, field};
use super::{data, identify_controller, reservation_features};
use crate::wire::command::{GetFeatures, SetFeatures};
use crate::wire::features::{
    AsyncEventConfiguration, FeatureCapabilities, FeatureId, FeatureSelect, HOST_IDENTIFIER_EXTENDED,
    HostBehavior, QueueCounts, SWITCH, TemperatureThreshold,
};
use crate::wire::identify::NAMESPACE_ALL;
use crate::wire::status::Status;

/// TMPSEL for the composite temperature, and for every sensor there is.
const COMPOSITE: u8 = 0;
const ALL_SENSORS: u8 = 0xf;

/// The critical warnings that hosts can have events for.
const CRITICAL_WARNINGS: AsyncEventConfiguration = AsyncEventConfiguration::SPARE
    .union(AsyncEventConfiguration::TEMPERATURE)
    .union(AsyncEventConfiguration::RELIABILITY)
    .union(AsyncEventConfiguration::READ_ONLY)
    .union(AsyncEventConfiguration::MEMORY_BACKUP);

/// The features of I/O controllers, and those of them that discovery controllers have too.
pub(super) const SUPPORTED: [FeatureId; 13] = [
    FeatureId::Arbitration,
    FeatureId::PowerManagement,
    FeatureId::TemperatureThreshold,
    FeatureId::ErrorRecovery,
    FeatureId::VolatileWriteCache,
    FeatureId::NumberOfQueues,
    FeatureId::WriteAtomicity,
    FeatureId::AsyncEventConfiguration,
    FeatureId::KeepAliveTimer,
    FeatureId::HostBehavior,
    FeatureId::HostIdentifier,
    FeatureId::ReservationNotificationMask,
    FeatureId::ReservationPersistence,
];

/// Whether a controller has a feature.
pub(super) fn is_supported(controller: &Controller, feature: FeatureId) -> bool {
    if controller.is_discovery() {
        return matches!(
            feature,
            FeatureId::AsyncEventConfiguration | FeatureId::KeepAliveTimer | FeatureId::HostIdentifier
        );
    }
    match feature {
        // Without a cache there is nothing to control (NVMe Base 2.0, 5.27.1.4).
        FeatureId::VolatileWriteCache => controller.write_cache_reported,
        FeatureId::ReservationNotificationMask | FeatureId::ReservationPersistence => {
            controller.subsystem.has_reservations()
        }
        _ => SUPPORTED.contains(&feature),
    }
}

/// Whether hosts can change a feature.
pub(super) fn is_changeable(feature: FeatureId) -> bool {
    !matches!(
        feature,
        FeatureId::ErrorRecovery | FeatureId::HostIdentifier | FeatureId::PowerManagement
    )
}

/// Whether a feature is one of each namespace.
pub(super) fn is_of_namespaces(feature: FeatureId) -> bool {
    matches!(
        feature,
        FeatureId::ErrorRecovery | FeatureId::ReservationNotificationMask | FeatureId::ReservationPersistence
    )
}

fn capabilities(feature: FeatureId) -> FeatureCapabilities {
    let mut capabilities = FeatureCapabilities::empty();
    if is_changeable(feature) {
        capabilities |= FeatureCapabilities::CHANGEABLE;
    }
    if is_of_namespaces(feature) {
        capabilities |= FeatureCapabilities::NAMESPACE_SPECIFIC;
    }
    capabilities
}

/// Executes Get Features.
pub(super) fn get(controller: &Controller, command: &Command) -> Result<Outcome, Refusal> {
    let get = GetFeatures::from_entry(&command.entry);
    let invalid = Refusal::invalid_field(field::DWORD_10);
    let feature = get
        .feature()
        .filter(|feature| is_supported(controller, *feature))
        .ok_or(invalid)?;
    let command_id = command.entry.command_id.get();
    let default = Features::default();
    match get.select().ok_or(Refusal::invalid_field(field::DWORD_10 + 1))? {
        FeatureSelect::SupportedCapabilities => {
            Ok(Outcome::result(command_id, capabilities(feature).bits().into()))
        }
        FeatureSelect::Current => {
            let features = controller.with(|state| state.features.clone());
            value(controller, command, &get, feature, &features, false)
        }
        // Nothing is saved: the saved value is the default one (NVMe Base 2.0, 4.4).
        FeatureSelect::Default | FeatureSelect::Saved => {
            value(controller, command, &get, feature, &default, true)
        }
    }
}

/// The value of a feature, the default one or that in use.
fn value(
    controller: &Controller,
    command: &Command,
    get: &GetFeatures,
    feature: FeatureId,
    features: &Features,
    default: bool,
) -> Result<Outcome, Refusal> {
    let dword = match feature {
        FeatureId::Arbitration => features.arbitration,
        FeatureId::TemperatureThreshold => temperature(get.specific, features)?,
        FeatureId::VolatileWriteCache => u32::from(default || controller.has_write_cache_enabled()) * SWITCH,
        FeatureId::NumberOfQueues => queue_counts(features.io_queues(&controller.config)),
        FeatureId::WriteAtomicity => features.write_atomicity,
        FeatureId::AsyncEventConfiguration if default => 0,
        FeatureId::AsyncEventConfiguration => controller.with(|state| state.events.enabled().bits()),
        FeatureId::KeepAliveTimer if default => controller.config.keep_alive_default_ms,
        FeatureId::KeepAliveTimer => controller.with(|state| state.keep_alive.timeout_ms()),
        FeatureId::ReservationNotificationMask => {
            let id = reservation_features::namespace_of(controller, command)?.id;
            features.reservation_masks.get(&id).map_or(0, |mask| mask.bits())
        }
        FeatureId::ReservationPersistence => {
            let namespace = reservation_features::namespace_of(controller, command)?;
            u32::from(!default && namespace.reservations.table().persist) * SWITCH
        }
        FeatureId::HostBehavior => return data(command, &host_behavior(features)),
        FeatureId::HostIdentifier => return host_identifier(controller, command, get),
        // One power state, errors retried without limit.
        _ => 0,
    };
    Ok(Outcome::result(command.entry.command_id.get(), dword.into()))
}

fn temperature(specific: u32, features: &Features) -> Result<u32, Refusal> {
    let asked = TemperatureThreshold::from_dword(specific);
    let kelvin = match (asked.sensor, asked.threshold) {
        (COMPOSITE, 0) => features.temperature_over_kelvin,
        (COMPOSITE, 1) => features.temperature_under_kelvin,
        _ => return Err(Refusal::invalid_field(field::DWORD_11 + 2)),
    };
    Ok(kelvin.into())
}

fn queue_counts(queues: u16) -> u32 {
    let minus_one = queues.saturating_sub(1);
    QueueCounts {
        submission_minus_one: minus_one,
        completion_minus_one: minus_one,
    }
    .to_dword()
}

fn host_behavior(features: &Features) -> [u8; HostBehavior::BYTES] {
    let [advanced_command_retry, extended_telemetry, extended_lba_formats] = features.host_behavior;
    HostBehavior {
        advanced_command_retry,
        extended_telemetry,
        extended_lba_formats,
    }
    .to_bytes()
}

fn host_identifier(
    controller: &Controller,
    command: &Command,
    get: &GetFeatures,
) -> Result<Outcome, Refusal> {
    if get.specific & HOST_IDENTIFIER_EXTENDED == 0 {
        // Over fabrics it has 128 bits.
        return Err(Refusal::invalid_field(field::DWORD_11));
    }
    data(command, &controller.host.id)
}

/// Executes Set Features.
pub(super) fn set(controller: &Arc<Controller>, command: &Command) -> Result<Execution, Refusal> {
    let set = SetFeatures::from_entry(&command.entry);
    let invalid = Refusal::invalid_field(field::DWORD_10);
    let feature = set
        .feature()
        .filter(|feature| is_supported(controller, *feature))
        .ok_or(invalid)?;
    check_namespace(controller, command, feature)?;
    if set.save {
        return Err(Refusal::at(Status::FEATURE_NOT_SAVEABLE, field::DWORD_10 + 3));
    }
    let mut result = 0;
    match feature {
        FeatureId::Arbitration => controller.with(|state| state.features.arbitration = set.value),
        FeatureId::TemperatureThreshold => set_temperature(controller, set.value)?,
        FeatureId::VolatileWriteCache => controller.set_write_cache(set.value & SWITCH != 0),
        FeatureId::NumberOfQueues => result = set_queues(controller, set.value)?,
        FeatureId::WriteAtomicity => {
            controller.with(|state| state.features.write_atomicity = set.value & SWITCH);
        }
        FeatureId::AsyncEventConfiguration => set_events(controller, set.value)?,
        FeatureId::KeepAliveTimer => set_keep_alive(controller, set.value)?,
        FeatureId::HostBehavior => set_host_behavior(controller, command)?,
        FeatureId::ReservationNotificationMask => {
            reservation_features::set_mask(controller, command, set.value)?;
        }
        FeatureId::ReservationPersistence => {
            return reservation_features::set_persistence(controller, command, set.value);
        }
        // It came with Connect (NVMe Base 2.0, 5.27.1.25).
        FeatureId::HostIdentifier => return Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR)),
        // There is one power state: that one can be set, and the rest is refused as what it is.
        FeatureId::PowerManagement if set.value & 0x1f != 0 => {
            return Err(Refusal::invalid_field(field::DWORD_11));
        }
        // What would set them to what they are is fine.
        FeatureId::PowerManagement | FeatureId::ErrorRecovery if set.value == 0 => {}
        _ => return Err(Refusal::at(Status::FEATURE_NOT_CHANGEABLE, field::DWORD_10)),
    }
    Ok(Outcome::result(command.entry.command_id.get(), result).into())
}

/// A namespace may be named where the feature is one of a namespace only.
fn check_namespace(controller: &Controller, command: &Command, feature: FeatureId) -> Result<(), Refusal> {
    match command.entry.namespace_id.get() {
        0 | NAMESPACE_ALL => Ok(()),
        id if !controller.subsystem.is_valid_id(id) => {
            Err(Refusal::at(Status::INVALID_NAMESPACE_OR_FORMAT, field::NAMESPACE))
        }
        _ if is_of_namespaces(feature) => Ok(()),
        _ => Err(Refusal::at(
            Status::FEATURE_NOT_NAMESPACE_SPECIFIC,
            field::NAMESPACE,
        )),
    }
}

fn set_temperature(controller: &Controller, value: u32) -> Result<(), Refusal> {
    let asked = TemperatureThreshold::from_dword(value);
    if !matches!(asked.sensor, COMPOSITE | ALL_SENSORS) {
        return Err(Refusal::invalid_field(field::DWORD_11 + 2));
    }
    controller.with(|state| match asked.threshold {
        0 => {
            state.features.temperature_over_kelvin = asked.kelvin;
            Ok(())
        }
        1 => {
            state.features.temperature_under_kelvin = asked.kelvin;
            Ok(())
        }
        _ => Err(Refusal::invalid_field(field::DWORD_11 + 2)),
    })
}

/// Grants queues, before any is connected (NVMe Base 2.0, 5.27.1.5).
fn set_queues(controller: &Controller, value: u32) -> Result<u64, Refusal> {
    let asked = QueueCounts::from_dword(value);
    if asked.submission_minus_one == u16::MAX || asked.completion_minus_one == u16::MAX {
        return Err(Refusal::invalid_field(field::DWORD_11));
    }
    if controller.queues() > 1 {
        return Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR));
    }
    // Over fabrics each queue is a pair.
    let pairs = asked
        .submission_minus_one
        .min(asked.completion_minus_one)
        .saturating_add(1);
    let granted = pairs.min(controller.config.io_queues_max);
    controller.with(|state| state.features.io_queues_granted = Some(granted));
    Ok(queue_counts(granted).into())
}

fn set_events(controller: &Controller, value: u32) -> Result<(), Refusal> {
    let asked = AsyncEventConfiguration::from_bits_retain(value);
    let mut supported = identify_controller::optional_events(controller);
    if !controller.is_discovery() {
        supported |= CRITICAL_WARNINGS;
    }
    if asked.bits() & !supported.bits() != 0 {
        return Err(Refusal::invalid_field(field::DWORD_11));
    }
    controller.with(|state| state.events.enable(asked));
    Ok(())
}

fn set_keep_alive(controller: &Controller, timeout_ms: u32) -> Result<(), Refusal> {
    if timeout_ms > controller.config.keep_alive_max_ms {
        return Err(Refusal::at(Status::KEEP_ALIVE_INVALID, field::DWORD_11));
    }
    controller.with(|state| state.keep_alive.set(timeout_ms, now()));
    Ok(())
}

fn set_host_behavior(controller: &Controller, command: &Command) -> Result<(), Refusal> {
    let mut bytes = [0; HostBehavior::BYTES];
    if command.data.copy_to(&mut bytes) < bytes.len() {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    let behavior = HostBehavior::from_bytes(&bytes);
    let asked = [
        behavior.advanced_command_retry,
        behavior.extended_telemetry,
        behavior.extended_lba_formats,
    ];
    if asked.iter().any(|value| *value > 1) {
        return Err(Refusal::at(Status::INVALID_FIELD, field::DATA));
    }
    controller.with(|state| state.features.host_behavior = asked);
    controller.set_delays_retries(behavior.advanced_command_retry == 1);
    Ok(())
}
