//! Identify Controller: every field says what is implemented, and nothing else.

use super::super::config::PAGE_BYTES;
use super::super::controller::{
    ASYNC_EVENTS_MAX, Controller, ERROR_LOG_ENTRIES, KEEP_ALIVE_GRANULARITY_100MS, RETRY_DELAY_100MS, VERSION,
};
use super::super::io::FUSED_BLOCKS_MAX;
use super::ABORTS_MAX;
use crate::wire::features::AsyncEventConfiguration;
use crate::wire::identify::{
    AnaCapabilities, ControllerAttributes, ControllerType, FabricsCommands, FusedOperations,
    IdentifyController, IoCommandSupport, LogPageAttributes, MultipathCapabilities, OptionalAdminCommands,
    SglSupport, VolatileWriteCache,
};
use crate::wire::nqn::NqnField;
use crate::wire::text::AsciiField;

/// The version of this program, as the firmware revision.
pub(super) const FIRMWARE: &str = env!("CARGO_PKG_VERSION");

/// How long a host is to wait for a shutdown (RTD3E): as long as for a reset (CAP.TO).
const SHUTDOWN_US: u32 = 15_000_000;

/// Firmware slots (FRMW): one, read only.
const FIRMWARE_UPDATES: u8 = 0b0000_0011;

/// Log page attributes that both kinds of controller have.
const LOG_PAGES: LogPageAttributes = LogPageAttributes::COMMAND_EFFECTS
    .union(LogPageAttributes::EXTENDED)
    .union(LogPageAttributes::SUPPORTED_PAGES);

/// A subsystem can have several ports and controllers.
const MULTIPATH: MultipathCapabilities =
    MultipathCapabilities::PORTS.union(MultipathCapabilities::CONTROLLERS);

/// How long hosts are to bear with a change of access (ANATT): a namespace is between two engines for far
/// less, unless one of them was lost.
const ACCESS_TRANSITION_SECONDS: u8 = 30;

/// A direct discovery controller (DCTYPE).
const DISCOVERY_DIRECT: u8 = 1;

/// The events that a controller can tell beside critical warnings (OAES).
pub(super) fn optional_events(controller: &Controller) -> AsyncEventConfiguration {
    if controller.is_discovery() {
        AsyncEventConfiguration::DISCOVERY_LOG_CHANGE
    } else if controller.subsystem.asymmetric_access {
        AsyncEventConfiguration::NAMESPACE_ATTRIBUTES | AsyncEventConfiguration::ANA_CHANGE
    } else {
        AsyncEventConfiguration::NAMESPACE_ATTRIBUTES
    }
}

/// The structure of a controller.
pub(super) fn identify(controller: &Controller) -> IdentifyController {
    let common = common(controller);
    if controller.is_discovery() {
        discovery(common)
    } else {
        io(controller, common)
    }
}

fn common(controller: &Controller) -> IdentifyController {
    let (config, subsystem) = (&controller.config, &controller.subsystem);
    IdentifyController {
        serial_number: AsciiField::new(&subsystem.serial),
        model_number: AsciiField::new(&subsystem.model),
        firmware_revision: AsciiField::new(FIRMWARE),
        // A power of two pages, which the settings see to.
        max_data_transfer_size: (config.transfer_bytes_max / PAGE_BYTES).trailing_zeros() as u8,
        controller_id: controller.id,
        version: VERSION,
        entry_latency_us: SHUTDOWN_US,
        async_events: optional_events(controller),
        attributes: ControllerAttributes::HOST_IDENTIFIER_128
            | ControllerAttributes::TRAFFIC_BASED_KEEP_ALIVE,
        abort_limit_minus_one: ABORTS_MAX - 1,
        async_event_limit_minus_one: ASYNC_EVENTS_MAX - 1,
        firmware_updates: FIRMWARE_UPDATES,
        log_page_attributes: LOG_PAGES,
        error_log_entries_minus_one: (ERROR_LOG_ENTRIES - 1) as u8,
        keep_alive_granularity_100ms: KEEP_ALIVE_GRANULARITY_100MS,
        max_commands: config.queue_depth_max,
        sgl_support: SglSupport::SUPPORTED | SglSupport::OFFSET | SglSupport::TRANSPORT,
        subsystem_nqn: NqnField::from(&subsystem.nqn),
        ..IdentifyController::default()
    }
    .with_instance(subsystem.run())
}

fn discovery(common: IdentifyController) -> IdentifyController {
    IdentifyController {
        controller_type_field: ControllerType::Discovery.to_wire(),
        discovery_controller_type: DISCOVERY_DIRECT,
        ..common
    }
}

/// What is told of access states, where they are.
fn asymmetric_access(controller: &Controller, common: IdentifyController) -> IdentifyController {
    if !controller.subsystem.asymmetric_access {
        return common;
    }
    // Each namespace is a group of its own.
    let groups = controller.config.namespaces_max;
    IdentifyController {
        ana_transition_seconds: ACCESS_TRANSITION_SECONDS,
        ana_capabilities: AnaCapabilities::OPTIMIZED
            | AnaCapabilities::NON_OPTIMIZED
            | AnaCapabilities::INACCESSIBLE
            | AnaCapabilities::PERSISTENT_LOSS
            | AnaCapabilities::CHANGE
            | AnaCapabilities::FIXED_GROUPS,
        ana_group_id_max: groups,
        ana_groups: groups,
        ..common
    }
}

fn io(controller: &Controller, common: IdentifyController) -> IdentifyController {
    let config = &controller.config;
    let (reservations, attributes) = if controller.subsystem.has_reservations() {
        (
            IoCommandSupport::RESERVATIONS,
            common.attributes | ControllerAttributes::RESERVATIONS_NEED_HOST_IDENTIFIER,
        )
    } else {
        (IoCommandSupport::empty(), common.attributes)
    };
    let write_cache = if controller.write_cache_reported {
        VolatileWriteCache::PRESENT
    } else {
        VolatileWriteCache::empty()
    };
    let capacity_bytes = controller
        .subsystem
        .namespaces()
        .1
        .iter()
        .map(|namespace| u128::from(namespace.geometry().bytes()))
        .sum();
    IdentifyController {
        multipath: if controller.subsystem.asymmetric_access {
            MULTIPATH | MultipathCapabilities::ANA_REPORTING
        } else {
            MULTIPATH
        },
        controller_type_field: ControllerType::Io.to_wire(),
        attributes,
        total_capacity_bytes: capacity_bytes,
        admin_commands: OptionalAdminCommands::LBA_STATUS,
        retry_delays_100ms: [RETRY_DELAY_100MS, 0, 0],
        submission_entry_sizes: IdentifyController::SUBMISSION_ENTRY_SIZES,
        completion_entry_sizes: IdentifyController::COMPLETION_ENTRY_SIZES,
        namespaces_max: config.namespaces_max,
        allowed_namespaces_max: config.namespaces_max,
        io_commands: IoCommandSupport::COMPARE
            | IoCommandSupport::DATASET_MANAGEMENT
            | IoCommandSupport::WRITE_ZEROES
            | IoCommandSupport::FEATURE_SAVE_SELECT
            | IoCommandSupport::VERIFY
            | reservations,
        fused_operations: FusedOperations::COMPARE_AND_WRITE,
        volatile_write_cache: write_cache | VolatileWriteCache::FLUSH_ALL_SUPPORTED,
        // A block is never torn; more is promised for a fused compare and write only.
        atomic_write_blocks_minus_one: 0,
        atomic_write_power_fail_blocks_minus_one: 0,
        atomic_compare_write_blocks_minus_one: (FUSED_BLOCKS_MAX - 1) as u16,
        command_capsule_16_bytes: IdentifyController::capsule_units(config.in_capsule_bytes_max),
        response_capsule_16_bytes: 1,
        sgl_descriptors_max: 1,
        fabrics_commands: FabricsCommands::DISCONNECT,
        ..asymmetric_access(controller, common)
    }
}
