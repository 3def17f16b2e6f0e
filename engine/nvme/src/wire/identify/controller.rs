//! Identify Controller (Base 2.0, 5.17.2.1; its NVM part, NVM 1.0, 4.1.5.2) and its sibling for the NVM
//! command set.

use crate::wire::features::AsyncEventConfiguration;
use crate::wire::nqn::NqnField;
use crate::wire::properties::Version;
use crate::wire::structure::{structure, wire_flags};
use crate::wire::text::AsciiField;
use crate::wire::wire_enum::wire_enum;
use uuid::Uuid;

/// OAES uses the bits of the Asynchronous Event Configuration feature, of those from 8 on (Base 2.0,
/// 5.17.2.1).
pub type AsyncEventSupport = AsyncEventConfiguration;

wire_flags! {
    /// CMIC (Base 2.0, 5.17.2.1).
    pub struct MultipathCapabilities: u8 {
        /// The subsystem may have several ports.
        PORTS = 1 << 0,
        /// The subsystem may have several controllers.
        CONTROLLERS = 1 << 1,
        /// The controller belongs to a virtual function.
        VIRTUAL_FUNCTION = 1 << 2,
        /// The subsystem reports asymmetric namespace access.
        ANA_REPORTING = 1 << 3,
    }
}

wire_flags! {
    /// CTRATT (Base 2.0, 5.17.2.1).
    pub struct ControllerAttributes: u32 {
        /// Host identifiers of 128 bits.
        HOST_IDENTIFIER_128 = 1 << 0,
        /// Non-operational power state permissive mode.
        PERMISSIVE_POWER_STATE = 1 << 1,
        /// NVM sets.
        NVM_SETS = 1 << 2,
        /// Read recovery levels.
        READ_RECOVERY_LEVELS = 1 << 3,
        /// Endurance groups.
        ENDURANCE_GROUPS = 1 << 4,
        /// Predictable latency mode.
        PREDICTABLE_LATENCY = 1 << 5,
        /// Any command serves as a keep alive (TBKAS).
        TRAFFIC_BASED_KEEP_ALIVE = 1 << 6,
        /// Namespace granularity list.
        NAMESPACE_GRANULARITY = 1 << 7,
        /// Submission queue associations.
        QUEUE_ASSOCIATIONS = 1 << 8,
        /// UUID list.
        UUID_LIST = 1 << 9,
        /// Multiple domains.
        MULTIPLE_DOMAINS = 1 << 10,
        /// Fixed capacity management.
        FIXED_CAPACITY_MANAGEMENT = 1 << 11,
        /// Variable capacity management.
        VARIABLE_CAPACITY_MANAGEMENT = 1 << 12,
        /// Delete endurance group.
        DELETE_ENDURANCE_GROUP = 1 << 13,
        /// Delete NVM set.
        DELETE_NVM_SET = 1 << 14,
        /// Extended LBA formats.
        EXTENDED_LBA_FORMATS = 1 << 15,
        /// Reservations need a host identifier that is not all zeros (RHII; Base 2.1).
        RESERVATIONS_NEED_HOST_IDENTIFIER = 1 << 18,
    }
}

wire_enum! {
    /// CNTRLTYPE (Base 2.0, 5.17.2.1).
    pub enum ControllerType: u8 {
        /// Not reported.
        NotReported = 0,
        /// I/O controller.
        Io = 1,
        /// Discovery controller.
        Discovery = 2,
        /// Administrative controller.
        Administrative = 3,
    }
}

wire_flags! {
    /// OACS (Base 2.0, 5.17.2.1).
    pub struct OptionalAdminCommands: u16 {
        /// Security Send and Receive.
        SECURITY = 1 << 0,
        /// Format NVM.
        FORMAT = 1 << 1,
        /// Firmware Commit and Image Download.
        FIRMWARE = 1 << 2,
        /// Namespace Management and Attachment.
        NAMESPACE_MANAGEMENT = 1 << 3,
        /// Device Self-test.
        SELF_TEST = 1 << 4,
        /// Directives.
        DIRECTIVES = 1 << 5,
        /// NVMe-MI Send and Receive.
        MANAGEMENT_INTERFACE = 1 << 6,
        /// Virtualization Management.
        VIRTUALIZATION = 1 << 7,
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER = 1 << 8,
        /// Get LBA Status.
        LBA_STATUS = 1 << 9,
        /// Lockdown.
        LOCKDOWN = 1 << 10,
    }
}

wire_flags! {
    /// LPA (Base 2.0, 5.17.2.1).
    pub struct LogPageAttributes: u8 {
        /// The SMART log for single namespaces.
        NAMESPACE_HEALTH = 1 << 0,
        /// The Commands Supported and Effects log.
        COMMAND_EFFECTS = 1 << 1,
        /// Get Log Page with an offset and a length of 32 bits.
        EXTENDED = 1 << 2,
        /// The telemetry logs.
        TELEMETRY = 1 << 3,
        /// The Persistent Event log.
        PERSISTENT_EVENTS = 1 << 4,
        /// The logs 00h, 05h for command sets, 12h and 13h.
        SUPPORTED_PAGES = 1 << 5,
    }
}

wire_flags! {
    /// ANACAP (Base 2.0, 5.17.2.1).
    pub struct AnaCapabilities: u8 {
        /// May report ANA Optimized.
        OPTIMIZED = 1 << 0,
        /// May report ANA Non-Optimized.
        NON_OPTIMIZED = 1 << 1,
        /// May report ANA Inaccessible.
        INACCESSIBLE = 1 << 2,
        /// May report ANA Persistent Loss.
        PERSISTENT_LOSS = 1 << 3,
        /// May report ANA Change.
        CHANGE = 1 << 4,
        /// The group of a namespace does not change while it is attached.
        FIXED_GROUPS = 1 << 6,
        /// Namespace Management takes a group.
        GROUP_IN_MANAGEMENT = 1 << 7,
    }
}

wire_flags! {
    /// ONCS (NVM 1.0, 4.1.5.2).
    pub struct IoCommandSupport: u16 {
        /// Compare.
        COMPARE = 1 << 0,
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 1 << 1,
        /// Dataset Management.
        DATASET_MANAGEMENT = 1 << 2,
        /// Write Zeroes.
        WRITE_ZEROES = 1 << 3,
        /// Save of Set Features and Select of Get Features.
        FEATURE_SAVE_SELECT = 1 << 4,
        /// Reservations.
        RESERVATIONS = 1 << 5,
        /// The Timestamp feature.
        TIMESTAMP = 1 << 6,
        /// Verify.
        VERIFY = 1 << 7,
        /// Copy.
        COPY = 1 << 8,
    }
}

wire_flags! {
    /// FUSES (NVM 1.0, 4.1.5.2).
    pub struct FusedOperations: u16 {
        /// Compare and Write.
        COMPARE_AND_WRITE = 1 << 0,
    }
}

wire_flags! {
    /// VWC (Base 2.0, 5.17.2.1).
    pub struct VolatileWriteCache: u8 {
        /// There is one.
        PRESENT = 1 << 0,
        /// Flush may not name all namespaces (10b in bits 2:1).
        FLUSH_ALL_NOT_SUPPORTED = 0b10 << 1,
        /// Flush may name all namespaces (11b in bits 2:1).
        FLUSH_ALL_SUPPORTED = 0b11 << 1,
    }
}

wire_flags! {
    /// SGLS (Base 2.0, 5.17.2.1).
    pub struct SglSupport: u32 {
        /// SGLs, without requirements on alignment (01b in bits 1:0).
        SUPPORTED = 0b01,
        /// SGLs, dword aligned (10b in bits 1:0).
        DWORD_ALIGNED = 0b10,
        /// Keyed data blocks.
        KEYED = 1 << 2,
        /// Bit buckets.
        BIT_BUCKET = 1 << 16,
        /// A byte aligned metadata buffer.
        METADATA_POINTER = 1 << 17,
        /// Longer SGLs than the data.
        OVERSIZED = 1 << 18,
        /// Metadata by an SGL.
        METADATA_SGL = 1 << 19,
        /// Addresses as offsets, which in-capsule data needs.
        OFFSET = 1 << 20,
        /// Transport data blocks.
        TRANSPORT = 1 << 21,
    }
}

wire_flags! {
    /// OFCS (Base 2.0, 5.17.2.1).
    pub struct FabricsCommands: u16 {
        /// Disconnect, and with it the deletion of single I/O queues.
        DISCONNECT = 1 << 0,
    }
}

structure! {
    /// A power state (Base 2.0, 5.17.2.1 "Power State Descriptor Data Structure").
    pub struct PowerState: 32 {
        /// Maximum power, in units of 10 mW (or of 0.1 mW, bit 0 of `flags`) (MP).
        0 => max_power: u16,
        /// Bit 0: scale of the maximum power; bit 1: non-operational.
        3 => flags: u8,
        /// Entry latency in microseconds (ENLAT).
        4 => entry_latency_us: u32,
        /// Exit latency in microseconds (EXLAT).
        8 => exit_latency_us: u32,
    }
}

structure! {
    /// Identify Controller, CNS 01h (Base 2.0, 5.17.2.1).
    pub struct IdentifyController: 4096 {
        /// PCI vendor identifier (VID).
        0 => vendor_id: u16,
        /// PCI subsystem vendor identifier (SSVID).
        2 => subsystem_vendor_id: u16,
        /// Serial number (SN).
        4 => serial_number: AsciiField<20>,
        /// Model number (MN).
        24 => model_number: AsciiField<40>,
        /// Firmware revision (FR).
        64 => firmware_revision: AsciiField<8>,
        /// Recommended arbitration burst, 2^this commands (RAB).
        72 => arbitration_burst: u8,
        /// IEEE OUI, least significant byte first (IEEE).
        73 => ieee_oui: [u8; 3],
        /// Multi-path I/O and namespace sharing (CMIC).
        76 => multipath: MultipathCapabilities,
        /// Largest transfer, 2^this pages of CAP.MPSMIN; 0 for no limit (MDTS).
        77 => max_data_transfer_size: u8,
        /// Controller identifier (CNTLID).
        78 => controller_id: u16,
        /// Version of the specification (VER).
        80 => version: Version,
        /// RTD3 resume latency in microseconds (RTD3R).
        84 => resume_latency_us: u32,
        /// RTD3 entry latency in microseconds (RTD3E): how long to wait for a shutdown.
        88 => entry_latency_us: u32,
        /// Asynchronous events supported (OAES).
        92 => async_events: AsyncEventSupport,
        /// Attributes (CTRATT).
        96 => attributes: ControllerAttributes,
        /// Read recovery levels supported (RRLS).
        100 => read_recovery_levels: u16,
        /// Type of controller (CNTRLTYPE); see [`IdentifyController::controller_type`].
        111 => controller_type_field: u8,
        /// FRU globally unique identifier (FGUID).
        112 => fru_guid: [u8; 16],
        /// Command retry delays 1 to 3, in units of 100 ms (CRDT1 to CRDT3).
        128 => retry_delays_100ms: [u16; 3],
        /// NVM subsystem report (NVMSR).
        253 => subsystem_report: u8,
        /// VPD write cycles (VWCI).
        254 => vpd_write_cycles: u8,
        /// Management endpoints (MEC).
        255 => management_endpoints: u8,
        /// Optional admin commands supported (OACS).
        256 => admin_commands: OptionalAdminCommands,
        /// Abort commands at a time less one (ACL).
        258 => abort_limit_minus_one: u8,
        /// Asynchronous event requests at a time less one (AERL).
        259 => async_event_limit_minus_one: u8,
        /// Firmware updates: bit 0 slot 1 is read only, bits 3:1 number of slots, bit 4 activation without
        /// reset (FRMW).
        260 => firmware_updates: u8,
        /// Log page attributes (LPA).
        261 => log_page_attributes: LogPageAttributes,
        /// Entries of the error log less one (ELPE).
        262 => error_log_entries_minus_one: u8,
        /// Power states less one (NPSS).
        263 => power_states_minus_one: u8,
        /// Admin vendor specific command format (AVSCC).
        264 => admin_vendor_format: u8,
        /// Autonomous power state transitions (APSTA).
        265 => autonomous_power_states: u8,
        /// Warning temperature in kelvin (WCTEMP).
        266 => warning_temperature_kelvin: u16,
        /// Critical temperature in kelvin (CCTEMP).
        268 => critical_temperature_kelvin: u16,
        /// Total capacity in bytes (TNVMCAP).
        280 => total_capacity_bytes: u128,
        /// Unallocated capacity in bytes (UNVMCAP).
        296 => unallocated_capacity_bytes: u128,
        /// Granularity of the keep alive timer in units of 100 ms; 0 for no keep alive (KAS).
        320 => keep_alive_granularity_100ms: u16,
        /// Sanitize capabilities (SANICAP).
        328 => sanitize_capabilities: u32,
        /// Largest endurance group identifier (ENDGIDMAX).
        340 => endurance_group_id_max: u16,
        /// Time in seconds that an ANA transition may take (ANATT).
        342 => ana_transition_seconds: u8,
        /// Asymmetric namespace access capabilities (ANACAP).
        343 => ana_capabilities: AnaCapabilities,
        /// Largest ANA group identifier (ANAGRPMAX).
        344 => ana_group_id_max: u32,
        /// Number of ANA groups (NANAGRPID).
        348 => ana_groups: u32,
        /// Domain identifier (DID).
        356 => domain_id: u16,
        /// Time in ms that commands may take to end once the controller has lost its host; 0 if not reported
        /// (CQT; Base 2.1, 5.1.13.2.1).
        386 => command_quiesce_ms: u16,
        /// Submission entry sizes: bits 3:0 required, 7:4 largest, as powers of two (SQES).
        512 => submission_entry_sizes: u8,
        /// Completion entry sizes: bits 3:0 required, 7:4 largest, as powers of two (CQES).
        513 => completion_entry_sizes: u8,
        /// Most outstanding commands of an I/O queue (MAXCMD); fabrics require it.
        514 => max_commands: u16,
        /// Largest namespace identifier (NN).
        516 => namespaces_max: u32,
        /// Optional NVM commands supported (ONCS).
        520 => io_commands: IoCommandSupport,
        /// Fused operations supported (FUSES).
        522 => fused_operations: FusedOperations,
        /// Format NVM attributes (FNA).
        524 => format_attributes: u8,
        /// Volatile write cache (VWC).
        525 => volatile_write_cache: VolatileWriteCache,
        /// Atomic write unit in normal operation, in blocks less one (AWUN).
        526 => atomic_write_blocks_minus_one: u16,
        /// Atomic write unit at power failure, in blocks less one (AWUPF).
        528 => atomic_write_power_fail_blocks_minus_one: u16,
        /// I/O vendor specific command format (ICSVSCC).
        530 => io_vendor_format: u8,
        /// Namespace write protection capabilities (NWPC).
        531 => write_protection: u8,
        /// Atomic compare and write unit, in blocks less one (ACWU).
        532 => atomic_compare_write_blocks_minus_one: u16,
        /// Copy descriptor formats supported (CDFS).
        534 => copy_formats: u16,
        /// SGL support (SGLS).
        536 => sgl_support: SglSupport,
        /// Most namespaces at a time (MNAN).
        540 => allowed_namespaces_max: u32,
        /// Name of the subsystem (SUBNQN).
        768 => subsystem_nqn: NqnField,
        /// Size of a command capsule of an I/O queue in units of 16 bytes: 4, and 1 for each 16 bytes of
        /// in-capsule data (IOCCSZ).
        1792 => command_capsule_16_bytes: u32,
        /// Size of a response capsule of an I/O queue in units of 16 bytes: 1 (IORCSZ).
        1796 => response_capsule_16_bytes: u32,
        /// Where in-capsule data starts, in units of 16 bytes behind the entry: 0 over TCP (ICDOFF).
        1800 => in_capsule_data_offset_16_bytes: u16,
        /// Fabrics attributes: bit 0 set for the static controller model (FCATT).
        1802 => fabrics_attributes: u8,
        /// Most SGL descriptors of a command; 0 for no limit (MSDBD).
        1803 => sgl_descriptors_max: u8,
        /// Optional fabrics commands supported (OFCS).
        1804 => fabrics_commands: FabricsCommands,
        /// Type of discovery controller: 0 not reported, 1 direct, 2 central (DCTYPE).
        1806 => discovery_controller_type: u8,
        /// Power states (PSD0 to PSD31).
        2048 => power_states: [PowerState; 32],
        /// The vendor's own; of Pollux's targets [`IdentifyController::INSTANCE_MARK`].
        3072 => instance_mark: [u8; 16],
        /// The vendor's own; see [`IdentifyController::instance`].
        3088 => instance_field: Uuid,
    }
}

impl IdentifyController {
    /// SQES: 64 bytes required and largest.
    pub const SUBMISSION_ENTRY_SIZES: u8 = 0x66;
    /// CQES: 16 bytes required and largest.
    pub const COMPLETION_ENTRY_SIZES: u8 = 0x44;

    /// What tells that a run of a target is named in the vendor's own bytes.
    pub const INSTANCE_MARK: [u8; 16] = *b"pollux-instance\0";

    const CAPSULE_UNIT_BYTES: u32 = 16;
    const ENTRY_UNITS: u32 = 4;

    /// Type of controller; `None` for a reserved value.
    #[must_use]
    pub fn controller_type(&self) -> Option<ControllerType> {
        ControllerType::from_wire(self.controller_type_field)
    }

    /// Which run of which target this is, chosen at random when it starts: as long as a host is told the same
    /// one, nothing that the target held in memory is lost. `None` if the target does not say.
    #[must_use]
    pub fn instance(&self) -> Option<Uuid> {
        (self.instance_mark == Self::INSTANCE_MARK && !self.instance_field.is_nil())
            .then_some(self.instance_field)
    }

    /// Names the run of this target.
    #[must_use]
    pub fn with_instance(mut self, instance: Uuid) -> Self {
        self.instance_mark = Self::INSTANCE_MARK;
        self.instance_field = instance;
        self
    }

    /// IOCCSZ for this much in-capsule data, rounded down to 16 bytes.
    #[must_use]
    pub const fn capsule_units(in_capsule_data_bytes: u32) -> u32 {
        Self::ENTRY_UNITS + in_capsule_data_bytes / Self::CAPSULE_UNIT_BYTES
    }

    /// In-capsule data in bytes that a command of an I/O queue may carry, as IOCCSZ says.
    #[must_use]
    pub const fn in_capsule_data_bytes(&self) -> u32 {
        self.command_capsule_16_bytes
            .saturating_sub(Self::ENTRY_UNITS)
            .saturating_mul(Self::CAPSULE_UNIT_BYTES)
    }

    /// Largest transfer in bytes with pages of this size (2^(12 + CAP.MPSMIN)); `None` for no limit.
    #[must_use]
    pub fn transfer_bytes_max(&self, page_bytes: u64) -> Option<u64> {
        match self.max_data_transfer_size {
            0 => None,
            exponent => Some(
                1_u64
                    .checked_shl(exponent.into())
                    .map_or(u64::MAX, |pages| pages.saturating_mul(page_bytes)),
            ),
        }
    }
}

structure! {
    /// Identify Controller for the NVM command set, CNS 06h with CSI 00h (NVM 1.0, 4.1.5.4). Limits are
    /// 2^value pages of CAP.MPSMIN, with 0 for no limit.
    pub struct NvmController: 4096 {
        /// Verify (VSL).
        0 => verify_size: u8,
        /// Write Zeroes (WZSL).
        1 => write_zeroes_size: u8,
        /// Write Uncorrectable (WUSL).
        2 => write_uncorrectable_size: u8,
        /// Most ranges of a Dataset Management command; 0 for no limit (DMRL).
        3 => dataset_ranges_max: u8,
        /// Most blocks of one range; 0 for no limit (DMRSL).
        4 => dataset_range_blocks_max: u32,
        /// Most blocks of all ranges; 0 for no limit (DMSL).
        8 => dataset_blocks_max: u64,
        /// What it knows beyond the optional admin commands (AOCS; NVM 1.1).
        18 => admin_commands: NvmAdminCommands,
    }
}

wire_flags! {
    /// AOCS (NVM 1.1, Identify Controller for the NVM command set).
    pub struct NvmAdminCommands: u16 {
        /// Get LBA Status returns which blocks are allocated (RALBAS).
        REPORTS_ALLOCATED = 1 << 0,
    }
}
