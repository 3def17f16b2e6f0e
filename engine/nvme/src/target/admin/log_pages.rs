//! Get Log Page (NVMe Base 2.0, 5.16).
//!
//! Each page is made whole, and the part that was asked for is cut out of it; what is asked for behind its
//! end is zeros.

use super::super::controller::{Controller, ERROR_LOG_ENTRIES, EventKind, Kind};
use super::super::discovery;
use super::super::queue::{Command, Outcome};
use super::super::refusal::{Refusal, field};
use super::{data, features, health, identify_controller};
use crate::wire::command::{AdminOpcode, GetLogPage, IoOpcode};
use crate::wire::identify::{CommandSetId, IDENTIFY_BYTES, NAMESPACE_ALL};
use crate::wire::log::{
    AnaLog, CommandEffects, CommandEffectsLog, ErrorEntry, FirmwareLog, LogPageId, SupportedLogPages,
    TransportType, changed_namespaces,
};
use crate::wire::status::Status;
use crate::wire::structure::Field;
use crate::wire::text::AsciiField;

/// The pages of an I/O controller.
const IO_PAGES: &[LogPageId] = &[
    LogPageId::Supported,
    LogPageId::Error,
    LogPageId::Health,
    LogPageId::Firmware,
    LogPageId::ChangedNamespaces,
    LogPageId::CommandEffects,
    LogPageId::FeatureEffects,
    LogPageId::ManagementInterfaceEffects,
    LogPageId::ReservationNotification,
];

/// Those where hosts are told of access states.
const IO_PAGES_WITH_ACCESS: &[LogPageId] = &[
    LogPageId::Supported,
    LogPageId::Error,
    LogPageId::Health,
    LogPageId::Firmware,
    LogPageId::ChangedNamespaces,
    LogPageId::CommandEffects,
    LogPageId::Ana,
    LogPageId::FeatureEffects,
    LogPageId::ManagementInterfaceEffects,
];

/// Those where several engines share what they know of reservations, too.
const IO_PAGES_WITH_ACCESS_AND_RESERVATIONS: &[LogPageId] = &[
    LogPageId::Supported,
    LogPageId::Error,
    LogPageId::Health,
    LogPageId::Firmware,
    LogPageId::ChangedNamespaces,
    LogPageId::CommandEffects,
    LogPageId::Ana,
    LogPageId::FeatureEffects,
    LogPageId::ManagementInterfaceEffects,
    LogPageId::ReservationNotification,
];

/// The pages of a discovery controller.
const DISCOVERY_PAGES: &[LogPageId] = &[
    LogPageId::Supported,
    LogPageId::Error,
    LogPageId::CommandEffects,
    LogPageId::FeatureEffects,
    LogPageId::ManagementInterfaceEffects,
    LogPageId::Discovery,
];

/// Feature is supported (FSUPP), and its scope, in an entry of log page 12h (NVMe Base 2.0, 5.16.1.18).
const FEATURE_SUPPORTED: u32 = 1 << 0;
const FEATURE_SCOPE_NAMESPACE: u32 = 1 << 20;
const FEATURE_SCOPE_CONTROLLER: u32 = 1 << 21;

/// Entries of log pages 12h and 13h.
const EFFECTS_BYTES: usize = 1024;

/// The slot whose firmware runs (AFI).
const ACTIVE_SLOT: u8 = 1;

/// Executes the command.
pub(super) fn execute(controller: &Controller, command: &Command) -> Result<Outcome, Refusal> {
    let get = GetLogPage::from_entry(&command.entry);
    let pages = pages(controller);
    let page = get.page().filter(|page| pages.contains(page));
    let page = page.ok_or(Refusal::at(Status::INVALID_LOG_PAGE, field::DWORD_10))?;
    let bytes_max = controller.config.transfer_bytes_max;
    if get.data_bytes() > u64::from(bytes_max) {
        return Err(Refusal::invalid_field(field::DWORD_10 + 2));
    }
    // Checked before the page is made: making it may clear it.
    if get.data_bytes() > u64::from(command.transfer_bytes_max) {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    if get.offset_in_entries || !get.offset.is_multiple_of(size_of::<u32>() as u64) {
        return Err(Refusal::invalid_field(field::DWORD_12));
    }
    check_namespace(page, command.entry.namespace_id.get(), controller)?;
    let bytes = make(controller, page, &get)?;
    let start = usize::try_from(get.offset)
        .ok()
        .filter(|start| *start <= bytes.len());
    let start = start.ok_or(Refusal::invalid_field(field::DWORD_12))?;
    if !get.retain_event {
        controller.with(|state| {
            let complete = match page {
                // The list was cleared as it was made: what is in it came since.
                LogPageId::ChangedNamespaces => state.changed_namespaces.is_empty(),
                LogPageId::ReservationNotification => state.reservation_notices.is_empty(),
                _ => false,
            };
            state.events.log_was_read(page.to_wire(), complete);
            if page == LogPageId::ReservationNotification && !complete {
                state.events.raise(EventKind::Reservation);
            }
        });
    }
    // At most the largest transfer, as was checked.
    let mut part = vec![0; get.data_bytes() as usize];
    for (slot, byte) in part.iter_mut().zip(bytes.get(start..).unwrap_or_default()) {
        *slot = *byte;
    }
    data(command, &part)
}

fn pages(controller: &Controller) -> &'static [LogPageId] {
    let subsystem = &controller.subsystem;
    match (controller.is_discovery(), subsystem.asymmetric_access) {
        (true, _) => DISCOVERY_PAGES,
        (false, true) if subsystem.has_reservations() => IO_PAGES_WITH_ACCESS_AND_RESERVATIONS,
        (false, true) => IO_PAGES_WITH_ACCESS,
        (false, false) => IO_PAGES,
    }
}

/// These pages are about the controller, or the whole subsystem (LPA bit 0 is clear).
fn check_namespace(page: LogPageId, id: u32, controller: &Controller) -> Result<(), Refusal> {
    match id {
        0 | NAMESPACE_ALL => Ok(()),
        id if page == LogPageId::Health && controller.subsystem.is_valid_id(id) => {
            Err(Refusal::invalid_field(field::NAMESPACE))
        }
        id if page == LogPageId::Health || !controller.subsystem.is_valid_id(id) => {
            Err(Refusal::at(Status::INVALID_NAMESPACE_OR_FORMAT, field::NAMESPACE))
        }
        // Hosts are known to name a namespace for pages that do not use it.
        _ => Ok(()),
    }
}

fn make(controller: &Controller, page: LogPageId, get: &GetLogPage) -> Result<Vec<u8>, Refusal> {
    Ok(match page {
        LogPageId::Supported => SupportedLogPages::of(pages(controller)).to_bytes().to_vec(),
        LogPageId::Ana => access_states(controller, get.specific_parameter & AnaLog::GROUPS_ONLY != 0),
        LogPageId::Error => errors(controller),
        LogPageId::Health => health::log(controller).to_bytes().to_vec(),
        LogPageId::Firmware => firmware().to_bytes().to_vec(),
        LogPageId::ChangedNamespaces => changed(controller, get.retain_event),
        LogPageId::CommandEffects => {
            if get.command_set_field != CommandSetId::Nvm.to_wire() {
                return Err(Refusal::invalid_field(field::DWORD_14 + 3));
            }
            command_effects(controller).to_bytes().to_vec()
        }
        LogPageId::FeatureEffects => feature_effects(controller),
        // There is no management interface: no command is supported.
        LogPageId::ManagementInterfaceEffects => vec![0; IDENTIFY_BYTES],
        LogPageId::ReservationNotification => {
            let notification = controller.with(|state| state.reservation_notices.take());
            notification.to_bytes().to_vec()
        }
        LogPageId::Discovery => match &controller.kind {
            Kind::Discovery { directory, reached } => {
                discovery::log_page(directory, &controller.host.nqn, *reached, &controller.config)
            }
            Kind::Io => return Err(Refusal::at(Status::INVALID_LOG_PAGE, field::DWORD_10)),
        },
        _ => return Err(Refusal::at(Status::INVALID_LOG_PAGE, field::DWORD_10)),
    })
}

fn access_states(controller: &Controller, groups_only: bool) -> Vec<u8> {
    let mut log = controller.subsystem.access_log();
    if groups_only {
        log.groups.iter_mut().for_each(|group| group.namespaces.clear());
    }
    log.to_bytes()
}

fn errors(controller: &Controller) -> Vec<u8> {
    let records: Vec<_> = controller.with(|state| state.errors.newest_first().copied().collect());
    let mut bytes = vec![0; ERROR_LOG_ENTRIES * ErrorEntry::BYTES];
    for (slot, record) in bytes.chunks_mut(ErrorEntry::BYTES).zip(&records) {
        let entry = ErrorEntry {
            error_count: record.count,
            queue_id: record.queue_id,
            command_id: record.command_id,
            parameter_location: record.parameter,
            block: record.block,
            namespace_id: record.namespace_id,
            transport_type: TransportType::Tcp.to_wire(),
            ..ErrorEntry::default()
        };
        entry.with_status(record.status).write(slot);
    }
    bytes
}

fn firmware() -> FirmwareLog {
    let mut log = FirmwareLog {
        active: ACTIVE_SLOT,
        ..FirmwareLog::default()
    };
    if let Some(slot) = log.revisions.first_mut() {
        *slot = AsciiField::new(identify_controller::FIRMWARE);
    }
    log
}

/// The namespaces that changed since this was last read; cleared by that, unless the event is to be retained.
fn changed(controller: &Controller, retain: bool) -> Vec<u8> {
    let ids = controller.with(|state| {
        if retain {
            state.changed_namespaces.clone()
        } else {
            std::mem::take(&mut state.changed_namespaces)
        }
    });
    let mut bytes = [0; IDENTIFY_BYTES];
    changed_namespaces(ids, &mut bytes);
    bytes.to_vec()
}

fn command_effects(controller: &Controller) -> CommandEffectsLog {
    let none = CommandEffects::empty();
    let log = CommandEffectsLog::default()
        .with_admin(AdminOpcode::GetLogPage, none)
        .with_admin(AdminOpcode::Identify, none)
        .with_admin(AdminOpcode::Abort, none)
        .with_admin(AdminOpcode::SetFeatures, none)
        .with_admin(AdminOpcode::GetFeatures, none)
        .with_admin(AdminOpcode::AsynchronousEventRequest, none)
        .with_admin(AdminOpcode::KeepAlive, none);
    if controller.is_discovery() {
        return log;
    }
    let log = if controller.subsystem.has_reservations() {
        log.with_io(IoOpcode::ReservationRegister, none)
            .with_io(IoOpcode::ReservationReport, none)
            .with_io(IoOpcode::ReservationAcquire, none)
            .with_io(IoOpcode::ReservationRelease, none)
    } else {
        log
    };
    log.with_admin(AdminOpcode::GetLbaStatus, none)
        .with_io(IoOpcode::Flush, none)
        .with_io(IoOpcode::Write, CommandEffects::BLOCK_CONTENT)
        .with_io(IoOpcode::Read, none)
        .with_io(IoOpcode::Compare, none)
        .with_io(IoOpcode::WriteZeroes, CommandEffects::BLOCK_CONTENT)
        .with_io(IoOpcode::DatasetManagement, CommandEffects::BLOCK_CONTENT)
        .with_io(IoOpcode::Verify, none)
}

fn feature_effects(controller: &Controller) -> Vec<u8> {
    let mut bytes = vec![0; EFFECTS_BYTES];
    for feature in features::SUPPORTED
        .into_iter()
        .filter(|feature| features::is_supported(controller, *feature))
    {
        let scope = if features::is_of_namespaces(feature) {
            FEATURE_SCOPE_NAMESPACE
        } else {
            FEATURE_SCOPE_CONTROLLER
        };
        let at = usize::from(feature.to_wire()) * size_of::<u32>();
        if let Some(slot) = bytes.get_mut(at..) {
            (FEATURE_SUPPORTED | scope).write(slot);
        }
    }
    bytes
}
