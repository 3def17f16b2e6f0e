//! What Identify returns (Base 2.0, 5.17; NVM 1.0, 4.1.5): structures of 4096 bytes, chosen by the CNS field
//! of the command.
//!
//! | CNS | structure |
//! | --- | --- |
//! | 00h | [`IdentifyNamespace`] |
//! | 01h | [`IdentifyController`] |
//! | 02h, 07h, 10h, 1Ah | a list of namespaces: [`write_namespace_list`], [`parse_namespace_list`] |
//! | 03h | a list of [`NamespaceDescriptor`] |
//! | 05h, CSI 00h | [`NvmNamespace`] |
//! | 06h, CSI 00h | [`NvmController`] |
//! | 08h | [`IndependentNamespace`] |
//! | 11h | [`IdentifyNamespace`] of an allocated namespace |
//! | 12h, 13h | a list of controllers: [`write_controller_list`], [`parse_controller_list`] |
//! | 1Ch | [`CommandSets`] |

mod controller;
mod lists;
mod namespace;
#[cfg(test)]
mod tests;

pub use controller::{
    AnaCapabilities, AsyncEventSupport, ControllerAttributes, ControllerType, FabricsCommands,
    FusedOperations, IdentifyController, IoCommandSupport, LogPageAttributes, MultipathCapabilities,
    NvmAdminCommands, NvmController, OptionalAdminCommands, PowerState, SglSupport, VolatileWriteCache,
};
pub use lists::{
    CommandSets, NamespaceDescriptor, parse_controller_list, parse_descriptors, parse_namespace_list,
    write_controller_list, write_descriptors, write_namespace_list,
};
pub use namespace::{
    DeallocateFeatures, IdentifyNamespace, IndependentNamespace, IndependentNamespaceFeatures, LbaFormat,
    NamespaceFeatures, NamespaceSharing, NamespaceStatus, NvmNamespace, ReservationCapabilities,
};

use super::wire_enum::wire_enum;

/// Size of every Identify structure, in bytes.
pub const IDENTIFY_BYTES: usize = 4096;

/// The namespace identifier that stands for all namespaces (Base 2.0, 3.2.1.2).
pub const NAMESPACE_ALL: u32 = 0xffff_ffff;

wire_enum! {
    /// Controller or Namespace Structure (CNS; Base 2.0, 5.17.1).
    pub enum IdentifyStructure: u8 {
        /// A namespace, for the NVM command set.
        Namespace = 0x00,
        /// The controller.
        Controller = 0x01,
        /// Active namespaces behind the one named.
        ActiveNamespaces = 0x02,
        /// Identifiers of a namespace.
        NamespaceDescriptors = 0x03,
        /// NVM sets.
        NvmSets = 0x04,
        /// A namespace, for the command set named.
        CommandSetNamespace = 0x05,
        /// The controller, for the command set named.
        CommandSetController = 0x06,
        /// As `ActiveNamespaces`, of one command set.
        CommandSetActiveNamespaces = 0x07,
        /// A namespace, whatever its command set.
        IndependentNamespace = 0x08,
        /// Allocated namespaces behind the one named.
        AllocatedNamespaces = 0x10,
        /// An allocated namespace.
        AllocatedNamespace = 0x11,
        /// Controllers that a namespace is attached to.
        NamespaceControllers = 0x12,
        /// Controllers of the subsystem.
        Controllers = 0x13,
        /// Primary controller capabilities.
        PrimaryController = 0x14,
        /// Secondary controllers.
        SecondaryControllers = 0x15,
        /// Namespace granularity (NVM 1.0).
        NamespaceGranularity = 0x16,
        /// UUIDs of vendor specific commands.
        UuidList = 0x17,
        /// Domains.
        Domains = 0x18,
        /// Endurance groups.
        EnduranceGroups = 0x19,
        /// As `AllocatedNamespaces`, of one command set.
        CommandSetAllocatedNamespaces = 0x1a,
        /// As `AllocatedNamespace`, for the command set named.
        CommandSetAllocatedNamespace = 0x1b,
        /// Combinations of command sets.
        CommandSets = 0x1c,
    }
}

wire_enum! {
    /// Command Set Identifier (CSI; Base 2.0, 5.17.1).
    pub enum CommandSetId: u8 {
        /// The NVM command set.
        Nvm = 0x00,
        /// Key value.
        KeyValue = 0x01,
        /// Zoned namespaces.
        Zoned = 0x02,
    }
}
