//! Identify (NVMe Base 2.0, 5.17).

use std::sync::Arc;

use super::super::controller::Controller;
use super::super::namespace::Namespace;
use super::super::queue::{Command, Outcome};
use super::super::refusal::{Refusal, field};
use super::{data, identify_controller};
use crate::wire::command::Identify;
use crate::wire::identify::{
    CommandSetId, CommandSets, DeallocateFeatures, IDENTIFY_BYTES, IdentifyNamespace, IdentifyStructure,
    IndependentNamespace, IndependentNamespaceFeatures, LbaFormat, NamespaceDescriptor, NamespaceFeatures,
    NamespaceSharing, NamespaceStatus, NvmAdminCommands, NvmController, NvmNamespace,
    ReservationCapabilities, write_controller_list, write_descriptors, write_namespace_list,
};
use crate::wire::status::Status;

/// In a namespace list, identifiers from this on have nothing behind them (NVMe Base 2.0, 5.17.2.2).
const LIST_AFTER_MAX: u32 = 0xffff_fffd;

/// The controller identifier that stands for the controller that executes the command.
const THIS_CONTROLLER: u16 = 0xffff;

/// Executes the command.
pub(super) fn execute(controller: &Controller, command: &Command) -> Result<Outcome, Refusal> {
    let identify = Identify::from_entry(&command.entry);
    let id = command.entry.namespace_id.get();
    let unsupported = Refusal::invalid_field(field::DWORD_10);
    let structure = identify.structure().ok_or(unsupported)?;
    if controller.is_discovery() && structure != IdentifyStructure::Controller {
        return Err(unsupported);
    }
    let subsystem = &controller.subsystem;
    match structure {
        IdentifyStructure::Controller => data(command, &identify_controller::identify(controller).to_bytes()),
        IdentifyStructure::Namespace | IdentifyStructure::AllocatedNamespace => {
            let namespace = find(controller, id)?;
            let bytes = namespace
                .map_or_else(IdentifyNamespace::default, |found| describe(controller, &found))
                .to_bytes();
            data(command, &bytes)
        }
        IdentifyStructure::ActiveNamespaces | IdentifyStructure::AllocatedNamespaces => {
            namespace_list(controller, command, id)
        }
        IdentifyStructure::CommandSetActiveNamespaces | IdentifyStructure::CommandSetAllocatedNamespaces => {
            nvm_only(&identify)?;
            namespace_list(controller, command, id)
        }
        IdentifyStructure::NamespaceDescriptors => {
            let namespace = find(controller, id)?.ok_or(Refusal::invalid_field(field::NAMESPACE))?;
            let identity = &namespace.identity;
            let descriptors = [
                NamespaceDescriptor::Eui64(identity.eui64),
                NamespaceDescriptor::Nguid(identity.nguid),
                NamespaceDescriptor::Uuid(identity.uuid),
                NamespaceDescriptor::CommandSet(CommandSetId::Nvm.to_wire()),
            ];
            let mut bytes = [0; IDENTIFY_BYTES];
            write_descriptors(&descriptors, &mut bytes);
            data(command, &bytes)
        }
        IdentifyStructure::CommandSetNamespace | IdentifyStructure::CommandSetAllocatedNamespace => {
            nvm_only(&identify)?;
            // There is no protection information: active or not, it is all zeros.
            find(controller, id)?;
            data(command, &NvmNamespace::default().to_bytes())
        }
        IdentifyStructure::CommandSetController => {
            nvm_only(&identify)?;
            // No limits beside those of the commands themselves.
            let limits = NvmController {
                admin_commands: NvmAdminCommands::REPORTS_ALLOCATED,
                ..NvmController::default()
            };
            data(command, &limits.to_bytes())
        }
        IdentifyStructure::IndependentNamespace => {
            let namespace = find(controller, id)?;
            let independent = namespace.map_or_else(IndependentNamespace::default, |found| {
                describe_independent(controller, &found)
            });
            data(command, &independent.to_bytes())
        }
        IdentifyStructure::NamespaceControllers => {
            find(controller, id)?.ok_or(Refusal::invalid_field(field::NAMESPACE))?;
            controller_list(controller, command, identify.controller_id)
        }
        IdentifyStructure::Controllers => controller_list(controller, command, identify.controller_id),
        IdentifyStructure::CommandSets => {
            let asked = identify.controller_id;
            if asked != THIS_CONTROLLER && asked != controller.id && subsystem.controller(asked).is_none() {
                return Err(Refusal::at(Status::INVALID_FIELD, field::DWORD_10 + 2));
            }
            data(command, &CommandSets::nvm().to_bytes())
        }
        IdentifyStructure::NvmSets
        | IdentifyStructure::PrimaryController
        | IdentifyStructure::SecondaryControllers
        | IdentifyStructure::NamespaceGranularity
        | IdentifyStructure::UuidList
        | IdentifyStructure::Domains
        | IdentifyStructure::EnduranceGroups => Err(unsupported),
    }
}

/// The namespace with this identifier; `None` if there is none now (NVMe Base 2.0, 3.2.1.4).
fn find(controller: &Controller, id: u32) -> Result<Option<Arc<Namespace>>, Refusal> {
    if !controller.subsystem.is_valid_id(id) {
        return Err(Refusal::at(Status::INVALID_NAMESPACE_OR_FORMAT, field::NAMESPACE));
    }
    Ok(controller.subsystem.namespace(id))
}

fn nvm_only(identify: &Identify) -> Result<(), Refusal> {
    match identify.command_set() {
        Some(CommandSetId::Nvm) => Ok(()),
        Some(CommandSetId::KeyValue | CommandSetId::Zoned) | None => {
            Err(Refusal::invalid_field(field::DWORD_11 + 3))
        }
    }
}

/// The identifiers behind `after`.
fn namespace_list(controller: &Controller, command: &Command, after: u32) -> Result<Outcome, Refusal> {
    if after > LIST_AFTER_MAX {
        return Err(Refusal::at(Status::INVALID_NAMESPACE_OR_FORMAT, field::NAMESPACE));
    }
    let (_, namespaces) = controller.subsystem.namespaces();
    let ids = namespaces
        .iter()
        .map(|namespace| namespace.id)
        .filter(|id| *id > after);
    let mut bytes = [0; IDENTIFY_BYTES];
    write_namespace_list(ids, &mut bytes);
    data(command, &bytes)
}

/// The controllers from `from` on; every namespace is attached to all of them.
fn controller_list(controller: &Controller, command: &Command, from: u16) -> Result<Outcome, Refusal> {
    let controllers = controller.subsystem.controllers();
    let ids = controllers
        .iter()
        .map(|controller| controller.id)
        .filter(|id| *id >= from);
    let mut bytes = [0; IDENTIFY_BYTES];
    write_controller_list(ids, &mut bytes);
    data(command, &bytes)
}

/// The group of access states that a namespace is in (ANAGRPID).
fn access_group(controller: &Controller, namespace: &Namespace) -> u32 {
    if controller.subsystem.asymmetric_access {
        namespace.id
    } else {
        0
    }
}

fn describe(controller: &Controller, namespace: &Namespace) -> IdentifyNamespace {
    let geometry = namespace.geometry();
    let optimal = u16::try_from(geometry.optimal_blocks.saturating_sub(1)).unwrap_or(u16::MAX);
    let features = if optimal > 0 {
        NamespaceFeatures::OPTIMAL_PERFORMANCE
    } else {
        NamespaceFeatures::empty()
    };
    let deallocate_optimal = if geometry.deallocates { optimal } else { 0 };
    let mut lba_formats = IdentifyNamespace::default().lba_formats;
    if let Some(format) = lba_formats.first_mut() {
        *format = LbaFormat {
            // At most 2^16, as the subsystem checked.
            block_size_log2: geometry.block_bytes.trailing_zeros() as u8,
            ..LbaFormat::default()
        };
    }
    IdentifyNamespace {
        size_blocks: geometry.blocks,
        capacity_blocks: geometry.blocks,
        used_blocks: geometry.blocks,
        features,
        sharing: NamespaceSharing::SHARED,
        deallocate_features: DeallocateFeatures::READS_ZEROS | DeallocateFeatures::WRITE_ZEROES_DEALLOCATES,
        capacity_bytes: geometry.bytes().into(),
        preferred_write_granularity_blocks_minus_one: optimal,
        preferred_write_alignment_blocks_minus_one: optimal,
        preferred_deallocate_granularity_blocks_minus_one: deallocate_optimal,
        preferred_deallocate_alignment_blocks_minus_one: deallocate_optimal,
        optimal_write_blocks_minus_one: optimal,
        attributes: write_protection(controller, namespace),
        reservations: reservations(namespace),
        ana_group_id: access_group(controller, namespace),
        nguid: namespace.identity.nguid,
        eui64: namespace.identity.eui64,
        lba_formats,
        ..IdentifyNamespace::default()
    }
}

fn describe_independent(controller: &Controller, namespace: &Namespace) -> IndependentNamespace {
    // Where the host does not know of a cache, every write goes through it.
    let cached = namespace.geometry().volatile_write_cache && controller.write_cache_reported;
    let features = if cached {
        IndependentNamespaceFeatures::empty()
    } else {
        IndependentNamespaceFeatures::NO_VOLATILE_WRITE_CACHE
    };
    IndependentNamespace {
        features,
        sharing: NamespaceSharing::SHARED,
        reservations: reservations(namespace),
        ana_group_id: access_group(controller, namespace),
        attributes: write_protection(controller, namespace),
        status: NamespaceStatus::READY,
        ..IndependentNamespace::default()
    }
}

/// Which reservations a namespace can have (RESCAP).
fn reservations(namespace: &Namespace) -> ReservationCapabilities {
    let reservations = &namespace.reservations;
    if !reservations.are_supported() {
        return ReservationCapabilities::empty();
    }
    let types = ReservationCapabilities::WRITE_EXCLUSIVE
        | ReservationCapabilities::EXCLUSIVE_ACCESS
        | ReservationCapabilities::WRITE_EXCLUSIVE_REGISTRANTS
        | ReservationCapabilities::EXCLUSIVE_ACCESS_REGISTRANTS
        | ReservationCapabilities::WRITE_EXCLUSIVE_ALL
        | ReservationCapabilities::EXCLUSIVE_ACCESS_ALL
        | ReservationCapabilities::IGNORE_EXISTING_KEY;
    if reservations.can_persist() {
        types | ReservationCapabilities::PERSIST
    } else {
        types
    }
}

fn write_protection(controller: &Controller, namespace: &Namespace) -> u8 {
    let host = &controller.host.id;
    if namespace.geometry().read_only || controller.subsystem.refuses_writes_of(host) {
        IdentifyNamespace::WRITE_PROTECTED
    } else {
        0
    }
}
