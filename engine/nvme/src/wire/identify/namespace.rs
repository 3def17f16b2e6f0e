//! Identify Namespace (NVM 1.0, 4.1.5.1), its sibling for the NVM command set (NVM 1.0, 4.1.5.3) and the one
//! for any (Base 2.0, 5.17.2.8).

use crate::wire::structure::{structure, wire_flags};

wire_flags! {
    /// NSFEAT (NVM 1.0, 4.1.5.1).
    pub struct NamespaceFeatures: u8 {
        /// Thin provisioning: NSZE may exceed NCAP.
        THIN_PROVISIONING = 1 << 0,
        /// NAWUN, NAWUPF and NACWU apply.
        ATOMIC_WRITE_UNITS = 1 << 1,
        /// Deallocated or Unwritten Logical Block errors are supported.
        UNWRITTEN_ERROR = 1 << 2,
        /// NGUID and EUI64 are never used again.
        IDENTIFIERS_NOT_REUSED = 1 << 3,
        /// NPWG, NPWA, NPDG, NPDA and NOWS apply.
        OPTIMAL_PERFORMANCE = 1 << 4,
    }
}

wire_flags! {
    /// NMIC (NVM 1.0, 4.1.5.1).
    pub struct NamespaceSharing: u8 {
        /// May be attached to several controllers at a time.
        SHARED = 1 << 0,
        /// May be attached to controllers of several subsystems at a time.
        DISPERSED = 1 << 1,
    }
}

wire_flags! {
    /// RESCAP (NVM 1.0, 4.1.5.1).
    pub struct ReservationCapabilities: u8 {
        /// Persist through a loss of power.
        PERSIST = 1 << 0,
        /// Write Exclusive.
        WRITE_EXCLUSIVE = 1 << 1,
        /// Exclusive Access.
        EXCLUSIVE_ACCESS = 1 << 2,
        /// Write Exclusive, registrants only.
        WRITE_EXCLUSIVE_REGISTRANTS = 1 << 3,
        /// Exclusive Access, registrants only.
        EXCLUSIVE_ACCESS_REGISTRANTS = 1 << 4,
        /// Write Exclusive, all registrants.
        WRITE_EXCLUSIVE_ALL = 1 << 5,
        /// Exclusive Access, all registrants.
        EXCLUSIVE_ACCESS_ALL = 1 << 6,
        /// Ignore Existing Key as of revision 1.3.
        IGNORE_EXISTING_KEY = 1 << 7,
    }
}

wire_flags! {
    /// DLFEAT (NVM 1.0, 4.1.5.1). Bits 2:0 tell what a deallocated block reads as; none of them set says
    /// nothing of it.
    pub struct DeallocateFeatures: u8 {
        /// Deallocated blocks read as zeros (001b in bits 2:0).
        READS_ZEROS = 0b001,
        /// Deallocated blocks read as FFh (010b in bits 2:0).
        READS_ONES = 0b010,
        /// Write Zeroes takes DEAC.
        WRITE_ZEROES_DEALLOCATES = 1 << 3,
        /// The guard of deallocated blocks is a CRC.
        GUARD_IS_CRC = 1 << 4,
    }
}

structure! {
    /// An LBA format (NVM 1.0, 4.1.5.1 "LBA Format Data Structure").
    pub struct LbaFormat: 4 {
        /// Metadata in bytes a block (MS).
        0 => metadata_bytes: u16,
        /// Blocks have 2^this bytes; 0 for a format that is not available (LBADS).
        2 => block_size_log2: u8,
        /// Relative performance: 0 the best, 3 the worst (RP, bits 1:0).
        3 => relative_performance: u8,
    }
}

impl LbaFormat {
    const BLOCK_SIZE_LOG2_MIN: u8 = 9;
    const BLOCK_SIZE_LOG2_MAX: u8 = 31;

    /// Size of a block in bytes; `None` below 512 bytes, which the specification does not allow, and above 2
    /// GiB.
    #[must_use]
    pub fn block_bytes(&self) -> Option<u32> {
        (Self::BLOCK_SIZE_LOG2_MIN..=Self::BLOCK_SIZE_LOG2_MAX)
            .contains(&self.block_size_log2)
            .then(|| 1 << self.block_size_log2)
    }
}

structure! {
    /// Identify Namespace, CNS 00h and 11h (NVM 1.0, 4.1.5.1). Of an inactive namespace it is all zeros.
    pub struct IdentifyNamespace: 4096 {
        /// Size in blocks (NSZE).
        0 => size_blocks: u64,
        /// Blocks that may be allocated (NCAP).
        8 => capacity_blocks: u64,
        /// Blocks that are allocated (NUSE).
        16 => used_blocks: u64,
        /// Features (NSFEAT).
        24 => features: NamespaceFeatures,
        /// LBA formats less one (NLBAF).
        25 => lba_formats_minus_one: u8,
        /// The format in use: bits 3:0 and 6:5 its index, bit 4 metadata follows each block (FLBAS).
        26 => formatted_lba_size: u8,
        /// Metadata capabilities (MC).
        27 => metadata_capabilities: u8,
        /// Protection capabilities (DPC).
        28 => protection_capabilities: u8,
        /// Protection in use (DPS).
        29 => protection_settings: u8,
        /// Sharing (NMIC).
        30 => sharing: NamespaceSharing,
        /// Reservations (RESCAP).
        31 => reservations: ReservationCapabilities,
        /// Format progress (FPI).
        32 => format_progress: u8,
        /// Deallocation (DLFEAT).
        33 => deallocate_features: DeallocateFeatures,
        /// Atomic write unit in normal operation, in blocks less one (NAWUN).
        34 => atomic_write_blocks_minus_one: u16,
        /// Atomic write unit at power failure, in blocks less one (NAWUPF).
        36 => atomic_write_power_fail_blocks_minus_one: u16,
        /// Atomic compare and write unit, in blocks less one (NACWU).
        38 => atomic_compare_write_blocks_minus_one: u16,
        /// Atomic boundary in normal operation, in blocks less one; 0 for none (NABSN).
        40 => atomic_boundary_blocks_minus_one: u16,
        /// Offset of the atomic boundaries in blocks (NABO).
        42 => atomic_boundary_offset_blocks: u16,
        /// Atomic boundary at power failure, in blocks less one; 0 for none (NABSPF).
        44 => atomic_boundary_power_fail_blocks_minus_one: u16,
        /// Optimal I/O boundary in blocks; 0 for none (NOIOB).
        46 => optimal_io_boundary_blocks: u16,
        /// Capacity in bytes (NVMCAP).
        48 => capacity_bytes: u128,
        /// Preferred write granularity, in blocks less one (NPWG).
        64 => preferred_write_granularity_blocks_minus_one: u16,
        /// Preferred write alignment, in blocks less one (NPWA).
        66 => preferred_write_alignment_blocks_minus_one: u16,
        /// Preferred deallocate granularity, in blocks less one (NPDG).
        68 => preferred_deallocate_granularity_blocks_minus_one: u16,
        /// Preferred deallocate alignment, in blocks less one (NPDA).
        70 => preferred_deallocate_alignment_blocks_minus_one: u16,
        /// Optimal write size, in blocks less one (NOWS).
        72 => optimal_write_blocks_minus_one: u16,
        /// Longest source range of Copy in blocks (MSSRL).
        74 => copy_range_blocks_max: u16,
        /// Most blocks of Copy (MCL).
        76 => copy_blocks_max: u32,
        /// Most source ranges of Copy less one (MSRC).
        80 => copy_ranges_max_minus_one: u8,
        /// ANA group (ANAGRPID).
        92 => ana_group_id: u32,
        /// Attributes: bit 0 write protected (NSATTR).
        99 => attributes: u8,
        /// NVM set (NVMSETID).
        100 => nvm_set_id: u16,
        /// Endurance group (ENDGID).
        102 => endurance_group_id: u16,
        /// Globally unique identifier, most significant byte first (NGUID).
        104 => nguid: [u8; 16],
        /// Extended unique identifier, most significant byte first (EUI64).
        120 => eui64: [u8; 8],
        /// LBA formats (LBAF0 to LBAF63).
        128 => lba_formats: [LbaFormat; 64],
    }
}

impl IdentifyNamespace {
    /// Bit of `attributes`: the namespace is write protected.
    pub const WRITE_PROTECTED: u8 = 1 << 0;

    const FORMATS_OF_FOUR_BITS: u8 = 16;

    /// Index of the format in use, in `lba_formats`. Bits 6:5 count only where there are more than 16
    /// formats.
    #[must_use]
    pub fn format_index(&self) -> usize {
        let low = self.formatted_lba_size & 0xf;
        let high = (self.formatted_lba_size >> 5) & 0x3;
        let index = if self.lba_formats_minus_one >= Self::FORMATS_OF_FOUR_BITS {
            low | (high << 4)
        } else {
            low
        };
        index.into()
    }

    /// The format in use; `None` if the structure names one beyond those it has.
    #[must_use]
    pub fn format(&self) -> Option<&LbaFormat> {
        let index = self.format_index();
        (index <= usize::from(self.lba_formats_minus_one))
            .then(|| self.lba_formats.get(index))
            .flatten()
    }
}

structure! {
    /// Identify Namespace for the NVM command set, CNS 05h with CSI 00h (NVM 1.0, 4.1.5.3).
    pub struct NvmNamespace: 4096 {
        /// Storage tag mask (LBSTM).
        0 => storage_tag_mask: u64,
        /// Protection information capabilities (PIC).
        8 => protection_capabilities: u8,
        /// Extended LBA formats: bits 6:0 storage tag size, bits 8:7 guard format (ELBAF0 to ELBAF63).
        12 => extended_formats: [u32; 64],
    }
}

wire_flags! {
    /// NSFEAT of the structure for any command set (Base 2.0, 5.17.2.8).
    pub struct IndependentNamespaceFeatures: u8 {
        /// NGUID and EUI64 are never used again.
        IDENTIFIERS_NOT_REUSED = 1 << 3,
        /// The media rotates.
        ROTATIONAL = 1 << 4,
        /// There is no volatile write cache for this namespace, whatever the controller says (VWCNP; Base
        /// 2.1).
        NO_VOLATILE_WRITE_CACHE = 1 << 5,
    }
}

wire_flags! {
    /// NSTAT (Base 2.0, 5.17.2.8).
    pub struct NamespaceStatus: u8 {
        /// Ready for commands that need the media.
        READY = 1 << 0,
    }
}

structure! {
    /// Identify Namespace for any command set, CNS 08h (Base 2.0, 5.17.2.8).
    pub struct IndependentNamespace: 4096 {
        /// Features (NSFEAT).
        0 => features: IndependentNamespaceFeatures,
        /// Sharing (NMIC).
        1 => sharing: NamespaceSharing,
        /// Reservations (RESCAP).
        2 => reservations: ReservationCapabilities,
        /// Format progress (FPI).
        3 => format_progress: u8,
        /// ANA group (ANAGRPID).
        4 => ana_group_id: u32,
        /// Attributes: bit 0 write protected (NSATTR).
        8 => attributes: u8,
        /// NVM set (NVMSETID).
        10 => nvm_set_id: u16,
        /// Endurance group (ENDGID).
        12 => endurance_group_id: u16,
        /// Status (NSTAT).
        14 => status: NamespaceStatus,
    }
}
